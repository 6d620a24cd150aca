//! Finding special tokens in text.

use super::TokenId;
use crate::{Result, memory};
use std::ops::Range;

/// A piece of the text to encode.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fragment {
    Text(Range<usize>),
    Token(TokenId),
}

/// A special token to look for.
pub(super) struct Special<'a> {
    pub(super) text: &'a [u8],
    pub(super) id: TokenId,
    /// Found in any text, not only where control tokens are looked for.
    pub(super) anywhere: bool,
    /// Takes the white space before it.
    pub(super) strip_left: bool,
    /// Takes the white space after it.
    pub(super) strip_right: bool,
}

/// A trie of special tokens. Nodes of one parent form a chain.
#[derive(Default)]
pub(super) struct Trie {
    roots: Vec<u32>,
    nodes: Vec<Node>,
    /// Tokens that take white space with them: mostly none, at most a few.
    strip_left: Vec<TokenId>,
    strip_right: Vec<TokenId>,
}

struct Node {
    byte: u8,
    anywhere: bool,
    token: Option<TokenId>,
    first_child: u32,
    next_sibling: u32,
}

const NO_NODE: u32 = u32::MAX;

/// What the memory is for, in texts of errors.
const WHAT: &str = "the special tokens";
const IN_TEXT: &str = "the special tokens of a text";

/// An accepted match, with the white space around it.
struct Taken {
    start: usize,
    end: usize,
    token: TokenId,
}

impl Trie {
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn new<'a>(specials: impl IntoIterator<Item = Special<'a>>) -> Result<Self> {
        let mut trie = Self::default();
        for special in specials {
            if special.text.is_empty() {
                continue;
            }
            trie.insert(&special)?;
            if special.strip_left {
                memory::push(&mut trie.strip_left, special.id, WHAT)?;
            }
            if special.strip_right {
                memory::push(&mut trie.strip_right, special.id, WHAT)?;
            }
        }
        Ok(trie)
    }

    fn insert(&mut self, special: &Special<'_>) -> Result<()> {
        if self.roots.is_empty() {
            self.roots = vec![NO_NODE; 256];
        }
        let mut at = NO_NODE;
        for &byte in special.text {
            let first = match self.nodes.get(at as usize) {
                Some(node) => node.first_child,
                None => self.roots.get(usize::from(byte)).copied().unwrap_or(NO_NODE),
            };
            let mut child = self.child(first, byte);
            if child == NO_NODE {
                child = self.nodes.len() as u32;
                let node = Node { byte, anywhere: false, token: None, first_child: NO_NODE, next_sibling: first };
                memory::push(&mut self.nodes, node, WHAT)?;
                match self.nodes.get_mut(at as usize) {
                    Some(node) => node.first_child = child,
                    None => self.roots[usize::from(byte)] = child,
                }
            }
            at = child;
        }
        if let Some(node) = self.nodes.get_mut(at as usize) {
            node.token = Some(special.id);
            node.anywhere = special.anywhere;
        }
        Ok(())
    }

    fn child(&self, first: u32, byte: u8) -> u32 {
        let mut at = first;
        while let Some(node) = self.nodes.get(at as usize) {
            if node.byte == byte {
                break;
            }
            at = node.next_sibling;
        }
        at
    }

    /// The token whose text is exactly `text`.
    pub(super) fn get(&self, text: &[u8]) -> Option<TokenId> {
        let (length, token) = self.longest(text, text.len(), usize::MAX)?;
        (length == text.len()).then_some(token)
    }

    /// The longest token shorter than `below` at the start of `text`, and its length. A control
    /// token must lie in the first `trusted` bytes.
    fn longest(&self, text: &[u8], trusted: usize, below: usize) -> Option<(usize, TokenId)> {
        let mut at = *self.roots.get(usize::from(*text.first()?))?;
        let mut found = None;
        for (length, &byte) in (1..below).zip(text) {
            at = if length == 1 { at } else { self.child(self.nodes.get(at as usize)?.first_child, byte) };
            let Some(node) = self.nodes.get(at as usize) else { break };
            if let Some(token) = node.token
                && (node.anywhere || length <= trusted)
            {
                found = Some((length, token));
            }
        }
        found
    }

    /// Splits `text` at the special tokens in it. Longer tokens take precedence over shorter ones
    /// wherever they are; tokens of equal length go from left to right. Control tokens must lie in
    /// one of the `trusted` ranges, which are in order and apart from each other.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn split(&self, text: &str, trusted: &[Range<usize>]) -> Result<Vec<Fragment>> {
        let mut taken = self.take(text.as_bytes(), trusted)?;
        taken.sort_unstable_by_key(|taken| taken.start);
        let mut fragments = memory::with_room(2 * taken.len() + 1, IN_TEXT)?;
        let mut pos = 0;
        for Taken { start, end, token } in taken {
            if pos < start {
                fragments.push(Fragment::Text(pos..start));
            }
            fragments.push(Fragment::Token(token));
            pos = end;
        }
        if pos < text.len() {
            fragments.push(Fragment::Text(pos..text.len()));
        }
        Ok(fragments)
    }

    fn take(&self, text: &[u8], trusted: &[Range<usize>]) -> Result<Vec<Taken>> {
        let mut taken = Vec::new();
        if self.nodes.is_empty() {
            return Ok(taken);
        }
        let longest = |start: usize, below: usize| {
            // The first range that ends after the start.
            let range = trusted.get(trusted.partition_point(|range| range.end <= start));
            let trusted = range.filter(|range| range.start <= start).map_or(0, |range| range.end - start);
            self.longest(text.get(start..).unwrap_or_default(), trusted, below)
        };
        // A longer token nearby may block the longest token at a position. Then the next shorter
        // token there gets its turn, together with the others of its length.
        let mut by_length: std::collections::BTreeMap<usize, Vec<(usize, TokenId)>> = Default::default();
        for (start, &byte) in text.iter().enumerate() {
            if self.roots.get(usize::from(byte)) != Some(&NO_NODE)
                && let Some((length, token)) = longest(start, usize::MAX)
            {
                memory::push(by_length.entry(length).or_default(), (start, token), IN_TEXT)?;
            }
        }
        if by_length.is_empty() {
            return Ok(taken);
        }
        let mut occupied = memory::filled(text.len(), false, IN_TEXT)?;
        let is_free = |occupied: &[bool], at: usize| occupied.get(at) == Some(&false);
        while let Some((length, mut candidates)) = by_length.pop_last() {
            candidates.sort_unstable();
            for (start, token) in candidates {
                if !is_free(&occupied, start) {
                    continue;
                }
                // Tokens taken earlier are at least as long, so each one covers an end of any match
                // that it overlaps. The white space that a token takes lies next to it.
                if !is_free(&occupied, start + length - 1) {
                    if let Some((shorter, token)) = longest(start, length) {
                        memory::push(by_length.entry(shorter).or_default(), (start, token), IN_TEXT)?;
                    }
                    continue;
                }
                let is_space = |at: usize| matches!(text.get(at), Some(b' ' | b'\t'..=b'\r'));
                let mut range = Taken { start, end: start + length, token };
                if self.strip_left.contains(&token) {
                    while range.start > 0 && is_space(range.start - 1) && is_free(&occupied, range.start - 1) {
                        range.start -= 1;
                    }
                }
                if self.strip_right.contains(&token) {
                    while is_space(range.end) && is_free(&occupied, range.end) {
                        range.end += 1;
                    }
                }
                if let Some(occupied) = occupied.get_mut(range.start..range.end) {
                    occupied.fill(true);
                }
                memory::push(&mut taken, range, IN_TEXT)?;
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::Fragment::{Text, Token};
    use super::*;

    const EVERYTHING: Range<usize> = 0..usize::MAX;
    const ALL: &[Range<usize>] = std::slice::from_ref(&EVERYTHING);

    fn trie(texts: &[&str]) -> Trie {
        let special = |(id, text): (usize, &&'static str)| Special {
            text: text.as_bytes(),
            id: id as TokenId,
            anywhere: text.starts_with("any"),
            strip_left: text.starts_with("<l"),
            strip_right: text.ends_with("r>"),
        };
        let texts: Vec<&'static str> = texts.iter().map(|text| &*text.to_string().leak()).collect();
        Trie::new(texts.iter().enumerate().map(special)).unwrap()
    }

    #[test]
    fn longer_tokens_go_first() {
        assert_eq!(trie(&["bcde", "abc"]).split("abcde", ALL).unwrap(), [Text(0..1), Token(0)]);
        assert_eq!(trie(&["ab", "abc", "c"]).split("abcab", ALL).unwrap(), [Token(1), Token(0)]);
        assert_eq!(trie(&["ab", "ba"]).split("abab", ALL).unwrap(), [Token(0), Token(0)]);
        // The longer "cdef" blocks "abc", and "ab" takes its place.
        assert_eq!(trie(&["abc", "ab", "cdef"]).split("abcdef", ALL).unwrap(), [Token(1), Token(2)]);
        assert_eq!(trie(&["\n\n", "\n\n\n"]).split("\n\n\n\n\n\n\n\n", ALL).unwrap(), [Token(1), Token(1), Token(0)]);
        assert_eq!(trie(&[]).split("text", ALL).unwrap(), [Text(0..4)]);
        assert_eq!(trie(&["a"]).split("", ALL).unwrap(), []);
    }

    #[test]
    fn control_tokens_are_found_in_trusted_text_only() {
        let trie = trie(&["<a>", "any", "any>"]);
        let text = "<a>any<a>any>";
        assert_eq!(trie.split(text, ALL).unwrap(), [Token(0), Token(1), Token(0), Token(2)]);
        assert_eq!(trie.split(text, &[]).unwrap(), [Text(0..3), Token(1), Text(6..9), Token(2)]);
        assert_eq!(trie.split(text, &[0..3, 7..9]).unwrap(), [Token(0), Token(1), Text(6..9), Token(2)]);
        assert_eq!(trie.split(text, &[0..2, 6..12]).unwrap(), [Text(0..3), Token(1), Token(0), Token(2)]);
    }

    #[test]
    fn white_space_is_stripped() {
        assert_eq!(trie(&["<lr>"]).split("a \n<lr>\t b", ALL).unwrap(), [Text(0..1), Token(0), Text(9..10)]);
        assert_eq!(trie(&["<l>"]).split("a <l> b", ALL).unwrap(), [Text(0..1), Token(0), Text(5..7)]);
        assert_eq!(trie(&["<r>"]).split("<r> <r> ", ALL).unwrap(), [Token(0), Token(0)]);
    }

    #[test]
    fn exact_texts_are_found() {
        let trie = trie(&["<a>", "<ab>", "<a"]);
        assert_eq!(trie.get(b"<a>"), Some(0));
        assert_eq!(trie.get(b"<ab>"), Some(1));
        assert_eq!(trie.get(b"<a"), Some(2));
        assert_eq!(trie.get(b"<"), None);
        assert_eq!(trie.get(b"<ab"), None);
        assert_eq!(trie.get(b""), None);
    }
}
