//! Rendered prompts, and which parts of them may be read as special tokens.

use super::marks::{Density, Unmarked};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A prompt, in the segments that the tokenizer is to read one by one.
///
/// Text of the conversation does not become a special token: where it spells one, alone or together with the template's
/// text next to it, the stretch between the template's own special tokens around it is a segment of its own that is to
/// be read as plain text. All the rest is read with special tokens. As special tokens part a text for the tokenizer
/// anyway, cutting there changes no other token. A conversation that spells no special token, that is nearly every one,
/// is a single segment.
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
    /// Whether special (control) tokens that are spelled in the text are meant as such.
    pub parse_special: bool,
}

impl RenderedPrompt {
    /// The segments in order; no two neighbours have the same `parse_special`.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The whole text, as the template wrote it.
    pub fn text(&self) -> String {
        self.segments.iter().map(|segment| segment.text.as_str()).collect()
    }

    /// Cuts a rendered text into segments.
    pub(super) fn new(rendered: &Unmarked, control: &ControlTokens) -> Self {
        let text = &rendered.text;
        let mut segments: Vec<Segment> = Vec::new();
        let mut push = |range: Range<usize>, parse_special: bool| {
            let Some(part) = text.get(range).filter(|part| !part.is_empty()) else { return };
            match segments.last_mut() {
                Some(last) if last.parse_special == parse_special => last.text.push_str(part),
                _ => segments.push(Segment { text: part.to_string(), parse_special }),
            }
        };
        if rendered.marks.is_empty() {
            push(0..text.len(), true);
            return Self { segments };
        }
        let (meant, spelled) = control.occurrences(rendered);
        if spelled.is_empty() {
            push(0..text.len(), true);
            return Self { segments };
        }
        let mut spelled = spelled.into_iter().peekable();
        let mut gap_start = 0;
        for (start, end) in meant.into_iter().chain([(text.len(), text.len())]) {
            let gap = gap_start..start;
            while spelled.next_if(|range| range.end <= gap.start).is_some() {}
            let is_plain = spelled.peek().is_some_and(|range| range.start < gap.end);
            push(gap, !is_plain);
            push(start..end, true);
            gap_start = end;
        }
        Self { segments }
    }
}

/// The texts of a vocabulary's control tokens, ready to be searched for.
#[derive(Debug, Clone, Default)]
pub(super) struct ControlTokens {
    exact: Index,
    /// In lower case (ASCII): templates may change the case of a message.
    lower: Index,
    /// In lower case and backwards.
    reversed: Index,
}

/// Byte strings, sorted and distinct, none empty.
#[derive(Debug, Clone, Default)]
struct Index {
    strings: Vec<Box<[u8]>>,
    /// For each first byte: the lengths of the strings that begin with it, longest first.
    lengths: Vec<Vec<usize>>,
}

impl Index {
    fn new(strings: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut strings: Vec<Box<[u8]>> = strings.filter(|string| !string.is_empty()).map(Into::into).collect();
        strings.sort_unstable();
        strings.dedup();
        let mut lengths = vec![Vec::new(); 256];
        for string in &strings {
            if let Some(lengths) = string.first().and_then(|first| lengths.get_mut(usize::from(*first))) {
                lengths.push(string.len());
            }
        }
        for lengths in &mut lengths {
            lengths.sort_unstable_by(|a: &usize, b| b.cmp(a));
            lengths.dedup();
        }
        Self { strings, lengths }
    }

    /// The lengths of all strings that `text` begins with, longest first.
    fn prefixes_of<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let lengths = text.first().and_then(|first| self.lengths.get(usize::from(*first)));
        lengths.into_iter().flatten().copied().filter(|length| {
            text.get(..*length).is_some_and(|part| self.strings.binary_search_by(|s| (**s).cmp(part)).is_ok())
        })
    }

    /// Whether some string begins with `text` and goes on.
    fn continues(&self, text: &[u8]) -> bool {
        let first = self.strings.partition_point(|string| **string <= *text);
        self.strings.get(first).is_some_and(|string| string.starts_with(text))
    }

    fn longest(&self) -> usize {
        self.lengths.iter().filter_map(|lengths| lengths.first()).copied().max().unwrap_or(0)
    }
}

impl ControlTokens {
    pub fn new<'a>(tokens: impl Iterator<Item = &'a str> + Clone) -> Self {
        let lower = |token: &str| token.to_ascii_lowercase().into_bytes();
        Self {
            exact: Index::new(tokens.clone().map(|token| token.as_bytes().to_vec())),
            lower: Index::new(tokens.clone().map(lower)),
            reversed: Index::new(tokens.map(|token| lower(token).into_iter().rev().collect())),
        }
    }

    /// Byte positions of `text` before which a mark belongs, ascending: see [`super::marks`].
    pub fn places(&self, text: &str, density: Density) -> BTreeSet<usize> {
        let mut places = BTreeSet::new();
        if self.lower.strings.is_empty() {
            return places;
        }
        let lower = text.to_ascii_lowercase();
        let bytes = lower.as_bytes();
        for (at, c) in lower.char_indices() {
            let Some(rest) = bytes.get(at..) else { continue };
            let lengths = rest.first().and_then(|first| self.lower.lengths.get(usize::from(*first)));
            if lengths.is_none_or(Vec::is_empty) {
                continue;
            }
            // A token of one character cannot be marked inside.
            for length in self.lower.prefixes_of(rest) {
                places.insert(if length <= c.len_utf8() { at } else { at + c.len_utf8() });
            }
            if density == Density::Dense {
                places.insert(at + c.len_utf8());
            }
        }
        self.mark_end(&lower, &mut places);
        self.mark_start(&lower, &mut places);
        places
    }

    /// The end of `text`, blanks apart, where it begins a token.
    fn mark_end(&self, text: &str, places: &mut BTreeSet<usize>) {
        let trimmed = text.trim_end();
        let nearest = trimmed.len().saturating_sub(self.lower.longest());
        for (at, c) in trimmed.char_indices().rev().take_while(|(at, _)| *at >= nearest) {
            if self.lower.continues(trimmed.as_bytes().get(at..).unwrap_or_default()) {
                places.insert(at + c.len_utf8());
            }
        }
    }

    /// The start of `text`, blanks apart, where it completes a token.
    fn mark_start(&self, text: &str, places: &mut BTreeSet<usize>) {
        let trimmed = text.trim_start();
        let start = text.len() - trimmed.len();
        let mut reversed = Vec::new();
        for (at, c) in trimmed.char_indices() {
            let end = at + c.len_utf8();
            if end > self.reversed.longest() {
                return;
            }
            reversed.clear();
            reversed.extend(trimmed.bytes().take(end).rev());
            if self.reversed.continues(&reversed) {
                places.insert(start + at);
            }
        }
    }

    /// The occurrences without a mark, as far as the tokenizer will find them (start and end of each), and those with
    /// one, by their starts.
    fn occurrences(&self, rendered: &Unmarked) -> (BTreeMap<usize, usize>, Vec<Range<usize>>) {
        let bytes = rendered.text.as_bytes();
        let mut candidates = Vec::new();
        let mut spelled: Vec<Range<usize>> = Vec::new();
        for start in 0..bytes.len() {
            for length in self.exact.prefixes_of(bytes.get(start..).unwrap_or_default()) {
                let range = start..start + length;
                let one_character = rendered.text.get(range.clone()).is_some_and(|token| token.chars().count() == 1);
                let from = if one_character { range.start } else { range.start + 1 };
                let mark = rendered.marks.get(rendered.marks.partition_point(|mark| *mark < from));
                if mark.is_none_or(|mark| *mark >= range.end) {
                    candidates.push(range);
                } else if spelled.last().is_none_or(|last| last.end < range.end) {
                    // A shorter one from the same place, or inside of the last one, is covered by it.
                    spelled.push(range);
                }
            }
        }
        // A tokenizer takes longer special tokens first, and those of one length from left to right.
        candidates.sort_by_key(|range| (std::cmp::Reverse(range.len()), range.start));
        let mut meant: BTreeMap<usize, usize> = BTreeMap::new();
        for range in candidates {
            let before = meant.range(..range.end).next_back();
            if before.is_none_or(|(_, end)| *end <= range.start) {
                meant.insert(range.start, range.end);
            }
        }
        (meant, spelled)
    }
}

#[cfg(test)]
mod tests {
    use super::super::marks::Marker;
    use super::*;

    /// Segments of a text in which what stands in «…» comes from the conversation; plain ones as "=…".
    fn cut(tokens: &[&str], source: &str) -> Vec<String> {
        let control = ControlTokens::new(tokens.iter().copied());
        let mut marker = Marker::new(&control, Density::Sparse, [source].into_iter()).unwrap();
        let pieces = source.split(['«', '»']).enumerate();
        let marked: String =
            pieces.map(|(i, piece)| if i % 2 == 1 { marker.apply(piece) } else { piece.to_string() }).collect();
        let prompt = RenderedPrompt::new(&Unmarked::new(&marked, marker.mark()), &control);
        assert_eq!(prompt.text(), source.replace(['«', '»'], ""));
        let spell = |s: &Segment| if s.parse_special { s.text.clone() } else { format!("={}", s.text) };
        prompt.segments().iter().map(spell).collect()
    }

    #[test]
    fn ordinary_prompts_are_one_segment() {
        assert_eq!(cut(&["<s>", "</s>"], "<s>user «hi» </s>"), ["<s>user hi </s>"]);
        assert_eq!(cut(&["<s>", "</s>"], "<s>«a < b, </ s>»</s>"), ["<s>a < b, </ s></s>"]);
        assert_eq!(cut(&["<s>", "</s>"], "<s>«> a <»</s>"), ["<s>> a <</s>"], "marks that matter not leave no trace");
        assert_eq!(cut(&["<s>"], "«»"), Vec::<String>::new());
        assert_eq!(cut(&[], "«<s>»"), ["<s>"]);
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
        // The spelled ">>>>" is longer than the meant "<a>" whose end it takes.
        assert_eq!(cut(&[">>>>", "<a>"], "<a>«>>>»y"), ["<a>", "=>>>y"]);
        // Of meant ones, the longer wins, as in the tokenizer.
        assert_eq!(cut(&["ab", "bcd"], "abcd«bcd»"), ["abcd", "=bcd"]);
        assert_eq!(cut(&["aa"], "«aaa»"), ["=aaa"]);
    }
}
