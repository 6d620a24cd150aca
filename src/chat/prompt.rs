//! Rendered prompts, and which parts of them the tokenizer may read as special tokens.

use super::jinja::Rendered;
use crate::{Result, memory};
use std::collections::BTreeMap;
use std::ops::Range;

/// A prompt, in segments for the tokenizer to read one by one.
///
/// Text of the conversation does not become a special token. Where it spells one, alone or together
/// with adjacent text of the template, the stretch between the template's own special tokens around
/// it becomes a segment that is read as plain text. Everything else is read with special tokens.
/// Special tokens split a text for the tokenizer anyway, so cutting there changes no other token.
/// Nearly every conversation spells no special token, and is a single segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RenderedPrompt {
    segments: Vec<Segment>,
}

/// A part of a [`RenderedPrompt`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// The text; never empty.
    pub text: String,
    /// Whether special (control) tokens spelled in the text count as such.
    pub parse_special: bool,
}

impl RenderedPrompt {
    /// The segments in order; no two neighbours have the same `parse_special`.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The whole text, as written by the template.
    pub fn text(&self) -> String {
        self.segments.iter().map(|segment| segment.text.as_str()).collect()
    }

    /// Cuts a rendered text into segments.
    pub(super) fn new(rendered: &Rendered, control: &ControlTokens) -> Result<Self> {
        let text = &rendered.text;
        let mut segments: Vec<Segment> = Vec::new();
        let mut push = |range: Range<usize>, parse_special: bool| -> Result<()> {
            let Some(part) = text.get(range).filter(|part| !part.is_empty()) else { return Ok(()) };
            match segments.last_mut() {
                Some(last) if last.parse_special == parse_special => {
                    memory::reserve_text(&mut last.text, part.len(), "a prompt")?;
                    last.text.push_str(part);
                }
                _ => {
                    let text = memory::copied_text(part, "a prompt")?;
                    memory::push(&mut segments, Segment { text, parse_special }, "the segments of a prompt")?;
                }
            }
            Ok(())
        };
        let Occurrences { meant, spelled } = control.occurrences(rendered)?;
        if spelled.is_empty() {
            push(0..text.len(), true)?;
            return Ok(Self { segments });
        }
        let mut spelled = spelled.into_iter().peekable();
        let mut gap_start = 0;
        for (start, end) in meant.into_iter().chain([(text.len(), text.len())]) {
            let gap = gap_start..start;
            while spelled.next_if(|range| range.end <= gap.start).is_some() {}
            let is_plain = spelled.peek().is_some_and(|range| range.start < gap.end);
            push(gap, !is_plain)?;
            push(start..end, true)?;
            gap_start = end;
        }
        Ok(Self { segments })
    }
}

/// The texts of a vocabulary's control tokens, ready for searching.
#[derive(Debug, Clone, Default)]
pub(super) struct ControlTokens {
    /// Sorted and distinct, none empty.
    tokens: Vec<Box<[u8]>>,
    /// For each first byte, the index of the first token that begins with it. The last element is
    /// the number of tokens.
    starts: Vec<usize>,
}

impl ControlTokens {
    pub fn new<'a>(tokens: impl Iterator<Item = &'a str>) -> Self {
        let mut tokens: Vec<Box<[u8]>> =
            tokens.filter(|token| !token.is_empty()).map(|token| token.as_bytes().into()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let first = |token: &[u8]| token.first().copied().map_or(0, usize::from);
        let starts = (0..=256).map(|byte| tokens.partition_point(|token| first(token) < byte)).collect();
        Self { tokens, starts }
    }

    /// The lengths of all tokens at the start of `text`, shortest first.
    fn prefixes_of<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let first = text.first().copied().map_or(0, usize::from);
        let bounds = self.starts.get(first).zip(self.starts.get(first + 1));
        let mut candidates = bounds.and_then(|(from, to)| self.tokens.get(*from..*to)).unwrap_or_default();
        let mut length = 0;
        std::iter::from_fn(move || {
            // All candidates start with the first `length` bytes.
            while !candidates.is_empty() {
                let byte = *text.get(length)?;
                let at = |token: &[u8]| token.get(length).copied();
                let from = candidates.partition_point(|token| at(token).is_none_or(|other| other < byte));
                let to = candidates.partition_point(|token| at(token).is_none_or(|other| other <= byte));
                candidates = candidates.get(from..to)?;
                length += 1;
                // The shortest candidate comes first.
                if candidates.first().is_some_and(|token| token.len() == length) {
                    return Some(length);
                }
            }
            None
        })
    }

    /// Finds the control tokens in a text.
    fn occurrences(&self, rendered: &Rendered) -> Result<Occurrences> {
        let bytes = rendered.text.as_bytes();
        let mut candidates = Vec::new();
        let mut spelled: Vec<Range<usize>> = Vec::new();
        let mut borders = rendered.borders.iter().copied().peekable();
        let mut is_callers = false;
        for start in 0..bytes.len() {
            while borders.next_if(|border| *border <= start).is_some() {
                is_callers = !is_callers;
            }
            let next_border = borders.peek().copied().unwrap_or(bytes.len());
            for length in self.prefixes_of(bytes.get(start..).unwrap_or_default()) {
                let range = start..start + length;
                if !is_callers && range.end <= next_border {
                    memory::push(&mut candidates, range, "the tokens of a prompt")?;
                } else if spelled.last().is_none_or(|last| last.end < range.end) {
                    // The last range covers one that ends inside it, or where it ends.
                    memory::push(&mut spelled, range, "the tokens of a prompt")?;
                }
            }
        }
        if spelled.is_empty() {
            return Ok(Occurrences { meant: BTreeMap::new(), spelled });
        }
        // A tokenizer takes longer special tokens first, and those of equal length from left to
        // right.
        candidates.sort_by_key(|range| (std::cmp::Reverse(range.len()), range.start));
        let mut meant: BTreeMap<usize, usize> = BTreeMap::new();
        for range in candidates {
            let before = meant.range(..range.end).next_back();
            if before.is_none_or(|(_, end)| *end <= range.start) {
                meant.insert(range.start, range.end);
            }
        }
        Ok(Occurrences { meant, spelled })
    }
}

/// The places of control tokens in a text.
struct Occurrences {
    /// Tokens that the template wrote and the tokenizer will find: the start and end of each. Left
    /// empty where there are no spelled ones.
    meant: BTreeMap<usize, usize>,
    /// Tokens that the caller spelled or helped to spell, in the order of their starts.
    spelled: Vec<Range<usize>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The segments of a text, plain ones as "=…". Text in «…» comes from the conversation.
    fn cut(tokens: &[&str], source: &str) -> Vec<String> {
        let control = ControlTokens::new(tokens.iter().copied());
        let (mut text, mut borders) = (String::new(), Vec::new());
        for (i, piece) in source.split(['«', '»']).enumerate() {
            if i > 0 && borders.pop_if(|border| *border == text.len()).is_none() {
                borders.push(text.len());
            }
            text.push_str(piece);
        }
        let prompt = RenderedPrompt::new(&Rendered { text, borders }, &control).unwrap();
        assert_eq!(prompt.text(), source.replace(['«', '»'], ""));
        let spell = |s: &Segment| if s.parse_special { s.text.clone() } else { format!("={}", s.text) };
        prompt.segments().iter().map(spell).collect()
    }

    #[test]
    fn ordinary_prompts_are_one_segment() {
        assert_eq!(cut(&["<s>", "</s>"], "<s>user «hi» </s>"), ["<s>user hi </s>"]);
        assert_eq!(cut(&["<s>", "</s>"], "<s>«a < b, </ s>»</s>"), ["<s>a < b, </ s></s>"]);
        assert_eq!(cut(&["<s>", "</s>"], "<s>«> a <»</s>"), ["<s>> a <</s>"], "borders that matter not leave no trace");
        assert_eq!(cut(&["<s>"], "«»"), Vec::<String>::new());
        assert_eq!(cut(&[], "«<s>»"), ["<s>"]);
        assert_eq!(cut(&["<s>"], "<s>«<s »a"), ["<s><s a"]);
    }

    #[test]
    fn spelled_tokens_are_plain_text() {
        let tokens = ["<s>", "</s>", "<sep>"];
        assert_eq!(cut(&tokens, "<s>a «b</s>c» d</s>e"), ["<s>", "=a b</s>c d", "</s>e"]);
        assert_eq!(cut(&tokens, "«<s>»"), ["=<s>"]);
        assert_eq!(cut(&tokens, "<s>«x»</s><s>«<sep>»</s><s>«</s>»"), ["<s>x</s><s>", "=<sep>", "</s><s>", "=</s>"]);
        assert_eq!(cut(&["¶"], "¶a «b¶c» d¶"), ["¶", "=a b¶c d", "¶"]);
    }

    #[test]
    fn spelled_tokens_may_straddle_the_edge() {
        let tokens = ["<s>", "[/I]"];
        assert_eq!(cut(&tokens, "<s>a «b<s»>c<s>"), ["<s>", "=a b<s>c", "<s>"]);
        assert_eq!(cut(&tokens, "<s>a «b<»s>c<s>"), ["<s>", "=a b<s>c", "<s>"]);
        assert_eq!(cut(&tokens, "<s>a <«s>b»<s>"), ["<s>", "=a <s>b", "<s>"]);
        assert_eq!(cut(&tokens, "<s>a <s«>b»<s>"), ["<s>", "=a <s>b", "<s>"]);
        assert_eq!(cut(&tokens, "<s>«[»/«I]»<s>"), ["<s>", "=[/I]", "<s>"]);
    }

    #[test]
    fn overlaps_with_meant_tokens_are_cut() {
        // The spelled "<<" reaches into the meant "<a>".
        assert_eq!(cut(&["<<", "<a>"], "x«<»<a>y"), ["=x<", "<a>y"]);
        // The spelled ">>>>" is longer than the meant "<a>", and takes its end.
        assert_eq!(cut(&[">>>>", "<a>"], "<a>«>>>»y"), ["<a>", "=>>>y"]);
        // Among meant tokens the longer one wins, as in the tokenizer.
        assert_eq!(cut(&["ab", "bcd"], "abcd«bcd»"), ["abcd", "=bcd"]);
        assert_eq!(cut(&["aa"], "«aaa»"), ["=aaa"]);
    }
}
