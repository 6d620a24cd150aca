//! Character classes for pre-tokenizers: what `\p{L}`, `\p{N}`, … and `\s` mean in Unicode 15.1.

use super::unicode_tables::RUNS;
use std::sync::OnceLock;

/// A set of character classes, one bit each. Every character has exactly one class; the end of the text has none.
pub(super) type Set = u8;

/// Everything else: controls, format characters, unassigned code points.
pub(super) const OTHER: Set = 1;
/// `\p{L}`
pub(super) const LETTER: Set = 1 << 1;
/// `\p{N}`
pub(super) const NUMBER: Set = 1 << 2;
/// `\p{P}`
pub(super) const PUNCTUATION: Set = 1 << 3;
/// `\p{S}`
pub(super) const SYMBOL: Set = 1 << 4;
/// `\p{M}`
pub(super) const MARK: Set = 1 << 5;
/// `\s`: the property White_Space, which also holds for some controls (tab, newline, …)
pub(super) const SPACE: Set = 1 << 6;

const BLOCK: usize = 256;
const CODE_POINTS: usize = 0x11_0000;

/// The classes of all code points. Equal blocks of 256 are stored once (about 40 KiB in all).
pub(super) struct Classes {
    ascii: [Set; 128],
    block_of: Vec<u8>,
    blocks: Vec<[Set; BLOCK]>,
}

impl Classes {
    /// The table, built on first use.
    pub(super) fn get() -> &'static Self {
        static TABLE: OnceLock<Classes> = OnceLock::new();
        TABLE.get_or_init(Self::build)
    }

    /// Builds the table block by block, so that it needs no large piece of memory.
    fn build() -> Self {
        // A few more than needed.
        const BLOCKS: usize = 192;
        let mut table = Self {
            ascii: [OTHER; 128],
            block_of: Vec::with_capacity(CODE_POINTS / BLOCK),
            blocks: Vec::with_capacity(BLOCKS),
        };
        let mut runs = RUNS.iter().map(|run| (usize::from(run >> 3), 1 << (run & 7)));
        let (mut left, mut class) = (0, OTHER);
        for first in (0..CODE_POINTS).step_by(BLOCK) {
            let mut block = [OTHER; BLOCK];
            let mut rest = block.as_mut_slice();
            while !rest.is_empty() {
                if left == 0 {
                    let Some(run) = runs.next() else { break };
                    (left, class) = run;
                }
                let (head, tail) = rest.split_at_mut(left.min(rest.len()));
                head.fill(class);
                left -= head.len();
                rest = tail;
            }
            if first == 0 {
                table.ascii.iter_mut().zip(&block).for_each(|(class, known)| *class = *known);
            }
            let known = table.blocks.iter().rposition(|known| *known == block);
            let number = known.unwrap_or_else(|| {
                table.blocks.push(block);
                table.blocks.len() - 1
            });
            table.block_of.push(number as u8);
        }
        table
    }

    /// The class of a code point, as a set of one.
    #[inline]
    pub(super) fn of(&self, code: u32) -> Set {
        match self.ascii.get(code as usize) {
            Some(class) => *class,
            None => self.of_wide(code),
        }
    }

    fn of_wide(&self, code: u32) -> Set {
        let block = self.block_of.get(code as usize / BLOCK).and_then(|&number| self.blocks.get(usize::from(number)));
        block.map_or(OTHER, |block| block[code as usize % BLOCK])
    }
}

/// Han characters as llama.cpp delimits them for Kimi K2: the unified ideographs with their
/// extensions up to F, and the compatibility ideographs.
pub(super) fn is_han(code: u32) -> bool {
    matches!(code,
        0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF
        | 0x2_0000..=0x2_A6DF | 0x2_A700..=0x2_EBEF | 0x2_F800..=0x2_FA1F)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_known_characters() {
        let table = Classes::get();
        for (text, class) in [
            ("aZéßжΩ中あ한עअกªᵃ", LETTER),
            ("09٣४②Ⅷ½𝟘", NUMBER),
            ("!-_.«¿、“〜§", PUNCTUATION),
            ("$+<=>^`|~€©😀→", SYMBOL),
            ("\u{300}\u{903}\u{20e3}\u{fe0f}\u{e0100}", MARK),
            ("\t\n\u{b}\u{c}\r \u{85}\u{a0}\u{1680}\u{2003}\u{2028}\u{2029}\u{202f}\u{3000}", SPACE),
            ("\0\u{1b}\u{1c}\u{7f}\u{ad}\u{200b}\u{200d}\u{feff}\u{e000}\u{378}\u{10ffff}", OTHER),
        ] {
            for c in text.chars() {
                assert_eq!(table.of(c as u32), class, "U+{:04X}", c as u32);
            }
        }
        assert_eq!(table.of(u32::MAX), OTHER);
    }

    /// `\s` is White_Space, which the standard library knows too.
    #[test]
    fn white_space_agrees_with_std() {
        let table = Classes::get();
        for c in '\0'..=char::MAX {
            assert_eq!(table.of(c as u32) == SPACE, c.is_whitespace(), "U+{:04X}", c as u32);
        }
    }

    #[test]
    fn runs_cover_every_code_point() {
        assert_eq!(RUNS.iter().map(|&run| usize::from(run >> 3)).sum::<usize>(), CODE_POINTS);
    }
}
