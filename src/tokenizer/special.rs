//! Finding special tokens in text.

use super::TokenId;
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
    /// White space before it belongs to it.
    pub(super) strip_left: bool,
    /// White space after it belongs to it.
    pub(super) strip_right: bool,
}

/// A trie of special tokens. Nodes of one parent form a chain.
#[derive(Default)]
pub(super) struct Trie {
    roots: Vec<u32>,
    nodes: Vec<Node>,
    /// Tokens that take white space with them; few and mostly none.
    strip_left: Vec<TokenId>,
    strip_right: Vec<TokenId>,
}

struct Node {
    byte: u8,
    token: Option<TokenId>,
    first_child: u32,
    next_sibling: u32,
}

const NO_NODE: u32 = u32::MAX;

/// A match that was taken, with the white space around it.
struct Taken {
    start: usize,
    end: usize,
    token: TokenId,
}

impl Trie {
    pub(super) fn new<'a>(specials: impl IntoIterator<Item = Special<'a>>) -> Self {
        let mut trie = Self::default();
        for special in specials {
            if special.text.is_empty() {
                continue;
            }
            trie.insert(special.text, special.id);
            if special.strip_left {
                trie.strip_left.push(special.id);
            }
            if special.strip_right {
                trie.strip_right.push(special.id);
            }
        }
        trie
    }

    fn insert(&mut self, text: &[u8], id: TokenId) {
        if self.roots.is_empty() {
            self.roots = vec![NO_NODE; 256];
        }
        let mut at = NO_NODE;
        for &byte in text {
            let first = match self.nodes.get(at as usize) {
                Some(node) => node.first_child,
                None => self.roots.get(usize::from(byte)).copied().unwrap_or(NO_NODE),
            };
            let mut child = self.child(first, byte);
            if child == NO_NODE {
                child = self.nodes.len() as u32;
                self.nodes.push(Node { byte, token: None, first_child: NO_NODE, next_sibling: first });
                match self.nodes.get_mut(at as usize) {
                    Some(node) => node.first_child = child,
                    None => self.roots[usize::from(byte)] = child,
                }
            }
            at = child;
        }
        if let Some(node) = self.nodes.get_mut(at as usize) {
            node.token = Some(id);
        }
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
        let (length, token) = self.longest(text, usize::MAX)?;
        (length == text.len()).then_some(token)
    }

    /// The longest token shorter than `below` that `text` starts with, and its length.
    fn longest(&self, text: &[u8], below: usize) -> Option<(usize, TokenId)> {
        let mut at = *self.roots.get(usize::from(*text.first()?))?;
        let mut found = None;
        for (length, &byte) in (1..below).zip(text) {
            at = if length == 1 { at } else { self.child(self.nodes.get(at as usize)?.first_child, byte) };
            match self.nodes.get(at as usize) {
                Some(node) => found = node.token.map(|token| (length, token)).or(found),
                None => break,
            }
        }
        found
    }

    /// Splits `text` at the special tokens in it. Longer tokens are taken before shorter ones, wherever they are, and
    /// equally long ones from left to right.
    pub(super) fn split(&self, text: &str) -> Vec<Fragment> {
        let mut taken = self.take(text.as_bytes());
        taken.sort_unstable_by_key(|taken| taken.start);
        let mut fragments = Vec::with_capacity(2 * taken.len() + 1);
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
        fragments
    }

    fn take(&self, text: &[u8]) -> Vec<Taken> {
        let mut taken = Vec::new();
        if self.nodes.is_empty() {
            return taken;
        }
        // Where the longest token at a position cannot be taken, because a longer one nearby was, the next shorter one
        // there gets its turn among those of its length.
        let mut by_length: std::collections::BTreeMap<usize, Vec<(usize, TokenId)>> = Default::default();
        for (start, &byte) in text.iter().enumerate() {
            if self.roots.get(usize::from(byte)) != Some(&NO_NODE)
                && let Some((length, token)) = self.longest(&text[start..], usize::MAX)
            {
                by_length.entry(length).or_default().push((start, token));
            }
        }
        if by_length.is_empty() {
            return taken;
        }
        let mut occupied = vec![false; text.len()];
        let is_free = |occupied: &[bool], at: usize| occupied.get(at) == Some(&false);
        while let Some((length, mut candidates)) = by_length.pop_last() {
            candidates.sort_unstable();
            for (start, token) in candidates {
                if !is_free(&occupied, start) {
                    continue;
                }
                // What was taken before is at least as long, so that it covers one end of whatever it overlaps; white
                // space that it took with it is next to it.
                if !is_free(&occupied, start + length - 1) {
                    if let Some((shorter, token)) = self.longest(text.get(start..).unwrap_or_default(), length) {
                        by_length.entry(shorter).or_default().push((start, token));
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
                taken.push(range);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::Fragment::{Text, Token};
    use super::*;

    fn trie(texts: &[&str]) -> Trie {
        let special = |(id, text): (usize, &&'static str)| Special {
            text: text.as_bytes(),
            id: id as TokenId,
            strip_left: text.starts_with("<l"),
            strip_right: text.ends_with("r>"),
        };
        let texts: Vec<&'static str> = texts.iter().map(|text| &*text.to_string().leak()).collect();
        Trie::new(texts.iter().enumerate().map(special))
    }

    #[test]
    fn longer_tokens_go_first() {
        assert_eq!(trie(&["bcde", "abc"]).split("abcde"), [Text(0..1), Token(0)]);
        assert_eq!(trie(&["ab", "abc", "c"]).split("abcab"), [Token(1), Token(0)]);
        assert_eq!(trie(&["ab", "ba"]).split("abab"), [Token(0), Token(0)]);
        // "abc" is blocked by the longer "cdef", and "ab" takes its place.
        assert_eq!(trie(&["abc", "ab", "cdef"]).split("abcdef"), [Token(1), Token(2)]);
        assert_eq!(trie(&["\n\n", "\n\n\n"]).split("\n\n\n\n\n\n\n\n"), [Token(1), Token(1), Token(0)]);
        assert_eq!(trie(&[]).split("text"), [Text(0..4)]);
        assert_eq!(trie(&["a"]).split(""), []);
    }

    #[test]
    fn white_space_is_stripped() {
        assert_eq!(trie(&["<lr>"]).split("a \n<lr>\t b"), [Text(0..1), Token(0), Text(9..10)]);
        assert_eq!(trie(&["<l>"]).split("a <l> b"), [Text(0..1), Token(0), Text(5..7)]);
        assert_eq!(trie(&["<r>"]).split("<r> <r> "), [Token(0), Token(0)]);
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
