//! Marks in the conversation's text: how a rendered prompt tells whose text spells a special token.
//!
//! Before rendering, each place of the conversation's text that could become part of a special token gets a mark, a
//! noncharacter of Unicode that occurs nowhere in the input. The template carries the marks along. Afterwards the marks
//! are taken out again, and a special token that has one inside was spelled by the conversation, or with its help.
//!
//! Marked are, in all text that is not the template's:
//!
//! - each spelled token, in any case of its letters: after its first character (a token of one character: before it);
//! - the end, blanks apart, where it begins a token that text of the template could complete: after its first character;
//! - the start, blanks apart, where it completes a token that text of the template could have begun: before its last
//!   character.
//!
//! Marks stand next to the characters of special tokens only, so that a template that trims, splits, compares or
//! searches messages works as without them. A template that *cuts* text out of a message can join a token from the two
//! sides: [`Density::Dense`] therefore marks every character that begins a token. As that can keep a template from
//! finding its own words (`</think>`) in a message, it counts only where it leaves the prompt's text unchanged.

use super::prompt::ControlTokens;
use crate::{Error, Result};

/// Where marks are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Density {
    /// Where a token is spelled, or begun or completed at an end.
    Sparse,
    /// And also after every character that begins a token.
    Dense,
}

/// Whether `c` is one of the 66 code points that Unicode keeps for uses inside of programs.
pub(super) fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
}

/// Sets marks, and counts them.
pub(super) struct Marker<'a> {
    control: &'a ControlTokens,
    mark: char,
    density: Density,
    count: usize,
}

impl<'a> Marker<'a> {
    /// A marker with a mark that is in none of `texts`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where the texts use up all noncharacters, which no honest text does.
    pub fn new<'t>(control: &'a ControlTokens, density: Density, texts: impl Iterator<Item = &'t str>) -> Result<Self> {
        let used: std::collections::BTreeSet<char> =
            texts.flat_map(str::chars).filter(|c| is_noncharacter(*c)).collect();
        let planes = (0..=16).flat_map(|plane| [plane << 16 | 0xfffe, plane << 16 | 0xffff]).filter_map(char::from_u32);
        let mark = ('\u{fdd0}'..='\u{fdef}').chain(planes).find(|c| !used.contains(c)).ok_or_else(|| {
            Error::invalid_input("the conversation contains all 66 noncharacters of Unicode; take one of them out")
        })?;
        Ok(Self { control, mark, density, count: 0 })
    }

    pub fn mark(&self) -> char {
        self.mark
    }

    /// How many marks were set.
    pub fn count(&self) -> usize {
        self.count
    }

    /// `text` with marks.
    pub fn apply(&mut self, text: &str) -> String {
        let places = self.control.places(text, self.density);
        self.count += places.len();
        let mut out = String::with_capacity(text.len() + places.len() * self.mark.len_utf8());
        let mut at = 0;
        for place in places {
            out.push_str(text.get(at..place).unwrap_or_default());
            out.push(self.mark);
            at = place;
        }
        out.push_str(text.get(at..).unwrap_or_default());
        out
    }
}

/// A rendered text without its marks, and where they stood.
pub(super) struct Unmarked {
    pub text: String,
    /// Byte positions in `text`, ascending.
    pub marks: Vec<usize>,
}

impl Unmarked {
    pub fn new(rendered: &str, mark: char) -> Self {
        let mut text = String::with_capacity(rendered.len());
        let mut marks = Vec::new();
        for (i, piece) in rendered.split(mark).enumerate() {
            if i > 0 {
                marks.push(text.len());
            }
            text.push_str(piece);
        }
        Self { text, marks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(density: Density, tokens: &[&str], text: &str) -> String {
        let control = ControlTokens::new(tokens.iter().copied());
        let mut marker = Marker::new(&control, density, [text].into_iter()).unwrap();
        let marked = marker.apply(text);
        let unmarked = Unmarked::new(&marked, marker.mark());
        assert_eq!((unmarked.text.as_str(), unmarked.marks.len()), (text, marker.count()));
        marked.replace(marker.mark(), "·")
    }

    #[test]
    fn sparse_marks_touch_spelled_tokens_and_ends_only() {
        let tokens = ["<s>", "</s>", "<|end|>", "§", "[A]"];
        let cases = [
            ("a < b, <think> and [x] </think>.", "a < b, <think> and [x] </think>."),
            ("<s></s>", "<·s><·/s>"),
            ("a<S>b", "a<·S>b"),
            ("<<s>s>", "<<·s>s>"),
            ("x § y", "x ·§ y"),
            ("say <|en \n", "say <·|en \n"),
            ("a <", "a <·"),
            (" \n d|> b", " \n d|·> b"),
            ("] is", "·] is"),
            ("é<s>é", "é<·s>é"),
        ];
        for (text, marked) in cases {
            assert_eq!(apply(Density::Sparse, &tokens, text), marked, "{text}");
        }
    }

    #[test]
    fn dense_marks_touch_every_first_character() {
        assert_eq!(apply(Density::Dense, &["<s>"], "a < b <think> <s>"), "a <· b <·think> <·s>");
        assert_eq!(apply(Density::Dense, &["<s>"], "plain"), "plain");
        assert_eq!(apply(Density::Dense, &[], "<s>"), "<s>");
    }

    #[test]
    fn marks_do_not_occur_in_the_text() {
        let control = ControlTokens::new(["<s>"].into_iter());
        let marker = Marker::new(&control, Density::Sparse, ["\u{fdd0}", "\u{fdd1}x"].into_iter()).unwrap();
        assert_eq!(marker.mark(), '\u{fdd2}');
        let block: String = ('\u{fdd0}'..='\u{fdef}').collect();
        let marker = Marker::new(&control, Density::Sparse, [block.as_str()].into_iter()).unwrap();
        assert_eq!(marker.mark(), '\u{fffe}');
        let all: String = ('\0'..=char::MAX).filter(|c| is_noncharacter(*c)).collect();
        assert_eq!(all.chars().count(), 66);
        assert!(Marker::new(&control, Density::Sparse, [all.as_str()].into_iter()).is_err());
    }
}
