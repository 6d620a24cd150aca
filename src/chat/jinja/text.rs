//! Texts that record who wrote each character: the template, or the caller (the conversation, tools
//! and variables).
//!
//! Every operation of the engine builds its texts from pieces of others with a [`Builder`], which
//! carries the marks along. So a prompt knows which characters are the template's, and only those
//! can spell control tokens.

use super::budget::Budget;
use super::fault::{Fault, Res};
use crate::memory;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

/// The writer of a text or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chat) enum By {
    Template,
    Caller,
}

impl By {
    /// The writer of the result of two things: the caller, if either is the caller's.
    pub fn with(self, other: Self) -> Self {
        if self == Self::Caller { self } else { other }
    }
}

/// Who wrote which parts of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Marks {
    All(By),
    /// The bytes at which the writer changes, ascending. The template comes first.
    Borders(Vec<usize>),
}

/// A text. Cheap to clone.
#[derive(Clone)]
pub(super) struct Text(Rc<Inner>);

struct Inner {
    text: String,
    marks: Marks,
    /// The number of characters, once counted.
    chars: Cell<Option<usize>>,
}

/// Memory that a text takes besides its bytes.
const OVERHEAD: usize = 96;

impl Text {
    /// A copy of `text`.
    pub fn new(text: &str, by: By, budget: &Budget) -> Res<Self> {
        budget.bytes(text.len())?;
        budget.memory(text.len().saturating_add(OVERHEAD))?;
        Ok(Self::from_string(memory::copied_text(text, "a text of a chat template")?, by))
    }

    /// A text that has been paid for already.
    pub fn from_string(text: String, by: By) -> Self {
        Self(Rc::new(Inner { text, marks: Marks::All(by), chars: Cell::new(None) }))
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    pub fn len(&self) -> usize {
        self.0.text.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.text.is_empty()
    }

    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// The number of characters.
    pub fn chars(&self) -> usize {
        self.0.chars.get().unwrap_or_else(|| {
            let count = self.as_str().chars().count();
            self.0.chars.set(Some(count));
            count
        })
    }

    /// The text's writer: the caller, if any character is the caller's.
    pub fn by(&self) -> By {
        match &self.0.marks {
            Marks::All(by) => *by,
            Marks::Borders(_) => By::Caller,
        }
    }

    /// The writer of a part.
    pub fn by_in(&self, range: Range<usize>) -> By {
        match &self.0.marks {
            Marks::All(by) => *by,
            Marks::Borders(_) => {
                self.runs(range).map(|(_, by)| by).find(|by| *by == By::Caller).unwrap_or(By::Template)
            }
        }
    }

    /// Splits `range` into parts with one writer each.
    pub fn runs(&self, range: Range<usize>) -> Runs<'_> {
        let (by, borders) = match &self.0.marks {
            Marks::All(by) => (*by, &[][..]),
            Marks::Borders(borders) => {
                let passed = borders.partition_point(|border| *border <= range.start);
                let by = if passed % 2 == 1 { By::Caller } else { By::Template };
                (by, borders.get(passed..).unwrap_or_default())
            }
        };
        Runs { by, borders, at: range.start, end: range.end }
    }

    /// The characters with their positions and writers.
    pub fn marked_chars(&self) -> impl Iterator<Item = (usize, char, By)> + '_ {
        self.runs(0..self.len()).flat_map(|(range, by)| {
            let start = range.start;
            let part = self.as_str().get(range).unwrap_or_default();
            part.char_indices().map(move |(at, c)| (start + at, c, by))
        })
    }

    /// The byte at which character `index` begins; the end of the text for an index past the last.
    pub fn offset(&self, index: usize) -> usize {
        let text = self.as_str();
        if self.chars() == text.len() {
            return index.min(text.len());
        }
        text.char_indices().nth(index).map_or(text.len(), |(at, _)| at)
    }

    /// A part, given in bytes.
    pub fn slice(&self, range: Range<usize>, budget: &Budget) -> Res<Self> {
        if range == (0..self.len()) {
            return Ok(self.clone());
        }
        let mut out = Builder::new(budget);
        out.push_part(self, range)?;
        Ok(out.finish())
    }

    /// The part `part`, which must be a slice of this text.
    pub fn part_of(&self, part: &str, budget: &Budget) -> Res<Self> {
        let start = (part.as_ptr() as usize).saturating_sub(self.as_str().as_ptr() as usize);
        self.slice(start..start + part.len(), budget)
    }

    /// The text, and the bytes at which the writer changes, beginning with the template.
    pub fn into_parts(self, budget: &Budget) -> Res<(String, Vec<usize>)> {
        let borders = match &self.0.marks {
            Marks::All(By::Template) => Vec::new(),
            Marks::All(By::Caller) => vec![0],
            Marks::Borders(borders) => memory::copied(borders, "the marks of a prompt")?,
        };
        let text = match Rc::try_unwrap(self.0) {
            Ok(inner) => inner.text,
            Err(shared) => {
                budget.memory(shared.text.len())?;
                memory::copied_text(&shared.text, "a prompt")?
            }
        };
        Ok((text, borders))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.0.text, self.0.marks)
    }
}

/// Parts of a text with one writer each.
pub(super) struct Runs<'t> {
    by: By,
    borders: &'t [usize],
    at: usize,
    end: usize,
}

impl Iterator for Runs<'_> {
    type Item = (Range<usize>, By);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let (start, by) = (self.at, self.by);
        match self.borders.split_first() {
            Some((border, rest)) if *border < self.end => {
                self.borders = rest;
                self.at = *border;
                self.by = if by == By::Caller { By::Template } else { By::Caller };
            }
            _ => self.at = self.end,
        }
        Some((start..self.at, by))
    }
}

/// Builds a text piece by piece.
pub(super) struct Builder<'b> {
    text: String,
    borders: Vec<usize>,
    by: By,
    budget: &'b Budget,
}

impl<'b> Builder<'b> {
    pub fn new(budget: &'b Budget) -> Self {
        Self { text: String::new(), borders: Vec::new(), by: By::Template, budget }
    }

    pub fn budget(&self) -> &'b Budget {
        self.budget
    }

    /// Charges for `more` bytes and makes room for them.
    fn reserve(&mut self, more: usize) -> Res<()> {
        let len = self.text.len().saturating_add(more);
        if len > self.budget.limits().max_output {
            return Err(Fault::too_much_output(self.budget.limits()));
        }
        self.budget.bytes(more)?;
        if len > self.text.capacity() {
            // Growing doubles the capacity. The old piece is freed, but still counts.
            self.budget.memory(len.max(self.text.capacity() * 2))?;
            memory::reserve_text(&mut self.text, more, "a text of a chat template")?;
        }
        Ok(())
    }

    fn switch(&mut self, by: By) -> Res<()> {
        if self.by != by {
            self.by = by;
            if self.borders.len() == self.borders.capacity() {
                self.budget.memory((self.borders.len() + 4) * 2 * size_of::<usize>())?;
            }
            memory::push(&mut self.borders, self.text.len(), "the marks of a text")?;
        }
        Ok(())
    }

    pub fn push_str(&mut self, text: &str, by: By) -> Res<()> {
        self.reserve(text.len())?;
        if !text.is_empty() {
            self.switch(by)?;
            self.text.push_str(text);
        }
        Ok(())
    }

    pub fn push(&mut self, c: char, by: By) -> Res<()> {
        self.push_str(c.encode_utf8(&mut [0; 4]), by)
    }

    /// Appends a character `count` times.
    pub fn fill(&mut self, c: char, count: usize, by: By) -> Res<()> {
        if count > 0 {
            self.reserve(count.saturating_mul(c.len_utf8()))?;
            self.switch(by)?;
            self.text.extend(std::iter::repeat_n(c, count));
        }
        Ok(())
    }

    pub fn push_text(&mut self, text: &Text) -> Res<()> {
        match text.0.marks {
            Marks::All(by) => self.push_str(text.as_str(), by),
            Marks::Borders(_) => self.push_part(text, 0..text.len()),
        }
    }

    /// Appends a text `count` times.
    pub fn repeat(&mut self, text: &Text, count: usize) -> Res<()> {
        if text.len().saturating_mul(count) > self.budget.limits().max_output {
            return Err(Fault::too_much_output(self.budget.limits()));
        }
        match text.0.marks {
            Marks::All(by) if count > 0 => {
                self.reserve(text.len().saturating_mul(count))?;
                self.switch(by)?;
                self.text.extend(std::iter::repeat_n(text.as_str(), count));
                Ok(())
            }
            _ => (0..count).try_for_each(|_| self.push_text(text)),
        }
    }

    /// Appends a part of a text, given in bytes.
    pub fn push_part(&mut self, text: &Text, range: Range<usize>) -> Res<()> {
        self.budget.steps(1)?;
        for (range, by) in text.runs(range) {
            self.push_str(text.as_str().get(range).unwrap_or_default(), by)?;
        }
        Ok(())
    }

    /// Appends a text. All of it counts as the caller's if `by` is the caller.
    pub fn push_text_by(&mut self, text: &Text, by: By) -> Res<()> {
        if by == By::Caller { self.push_str(text.as_str(), by) } else { self.push_text(text) }
    }

    pub fn finish(self) -> Text {
        let marks = match &*self.borders {
            [] => Marks::All(By::Template),
            [0] => Marks::All(By::Caller),
            _ => Marks::Borders(self.borders),
        };
        Text(Rc::new(Inner { text: self.text, marks, chars: Cell::new(None) }))
    }
}

/// Whether Python counts a character as white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::super::budget::Limits;
    use super::*;

    #[test]
    fn marks_follow_the_characters() {
        let budget = Budget::new(Limits::new(0, 0, 0));
        let mut out = Builder::new(&budget);
        for (part, by) in
            [("ab", By::Template), ("", By::Caller), ("cé", By::Caller), ("d", By::Caller), ("e", By::Template)]
        {
            out.push_str(part, by).unwrap();
        }
        let text = out.finish();
        let show = |text: &Text| -> String {
            text.marked_chars().map(|(_, c, by)| if by == By::Caller { c.to_ascii_uppercase() } else { c }).collect()
        };
        assert_eq!(show(&text), "abCéDe");
        assert_eq!(show(&text.slice(1..6, &budget).unwrap()), "bCéD");
        assert_eq!(text.slice(2..5, &budget).unwrap().by(), By::Caller);
        assert_eq!(text.slice(0..2, &budget).unwrap().by(), By::Template);
        assert_eq!((text.by_in(0..2), text.by_in(1..3), text.by_in(6..7)), (By::Template, By::Caller, By::Template));
        assert_eq!((text.chars(), text.offset(4), text.offset(9)), (6, 5, 7));
        let mut twice = Builder::new(&budget);
        twice.push_text(&text).unwrap();
        twice.push_part(&text, 2..7).unwrap();
        assert_eq!(show(&twice.finish()), "abCéDeCéDe");
    }
}
