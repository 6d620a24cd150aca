//! SentencePiece's byte-pair encoding: the two neighbours that make the token with the best score are joined, again and
//! again, over the whole text; what is no token in the end is spelled in bytes.

use super::index::NONE;
use super::vocab::{SCORES, Vocab, same_length};
use super::{TokenId, byte_ids};
use crate::Result;
use crate::gguf::Metadata;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub(super) struct Spm {
    /// Scores as integers that order like them, all above 0; empty if the file has none.
    scores: Vec<u32>,
    /// The token of each single byte, or [`NONE`].
    bytes: [u32; 256],
    /// Last bytes of characters before a space inside of a token. Tokens never reach across any other start of a run of
    /// spaces, so that text can be cut there.
    before_inner_space: [bool; 256],
}

/// A token so far, in the list of those of a text.
struct Symbol {
    previous: u32,
    next: u32,
    start: u32,
    /// 0 once merged into the symbol before.
    length: u32,
    /// The token that it was merged to; [`NONE`] for a character.
    token: u32,
}

/// A pair to merge; the greatest one is next.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    score: u32,
    /// Where scores are equal, the leftmost pair is next.
    left: Reverse<u32>,
    /// Bytes of both together, which tell whether one has changed since.
    length: u32,
    token: u32,
}

/// Memory to reuse between texts.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
}

impl Spm {
    pub(super) fn new(metadata: &Metadata, vocab: &Vocab) -> Result<Self> {
        let scores = match scores(metadata)? {
            Some(scores) => {
                same_length(SCORES, scores.len(), vocab.len())?;
                scores.into_iter().map(order).collect()
            }
            None => Vec::new(),
        };
        let mut before_inner_space = [false; 256];
        for id in 0..vocab.len() as u32 {
            let piece = vocab.piece(id).unwrap_or_default();
            for pair in piece.windows(2) {
                if pair[1] == b' ' && pair[0] != b' ' {
                    before_inner_space[usize::from(pair[0])] = true;
                }
            }
        }
        Ok(Self { scores, bytes: byte_ids(vocab), before_inner_space })
    }

    /// Appends the tokens of `text`, in which spaces are spaces.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        let bytes = text.as_bytes();
        let mut start = 0;
        for (at, pair) in bytes.windows(2).enumerate() {
            if pair[1] == b' ' && pair[0] != b' ' && !self.before_inner_space[usize::from(pair[0])] {
                self.encode_part(vocab, text.get(start..at + 1).unwrap_or_default(), scratch, out);
                start = at + 1;
            }
        }
        self.encode_part(vocab, text.get(start..).unwrap_or_default(), scratch, out);
    }

    fn encode_part(&self, vocab: &Vocab, text: &str, scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        let Scratch { symbols, queue } = scratch;
        symbols.clear();
        queue.clear();
        for (start, c) in text.char_indices() {
            let number = symbols.len() as u32;
            if let Some(last) = symbols.last_mut() {
                last.next = number;
            }
            let previous = number.checked_sub(1).unwrap_or(NONE);
            let length = c.len_utf8() as u32;
            symbols.push(Symbol { previous, next: NONE, start: start as u32, length, token: NONE });
            self.try_pair(vocab, text, symbols, previous, queue);
        }
        while let Some(Pair { left: Reverse(left), length, token, .. }) = queue.pop() {
            let Some((left_length, next)) = symbols.get(left as usize).map(|at| (at.length, at.next)) else { continue };
            let Some(right) = symbols.get_mut(next as usize) else { continue };
            if left_length == 0 || left_length + right.length != length {
                continue;
            }
            right.length = 0;
            let after = right.next;
            if let Some(symbol) = symbols.get_mut(after as usize) {
                symbol.previous = left;
            }
            let mut previous = NONE;
            if let Some(symbol) = symbols.get_mut(left as usize) {
                symbol.length = length;
                symbol.token = token;
                symbol.next = after;
                previous = symbol.previous;
            }
            self.try_pair(vocab, text, symbols, previous, queue);
            self.try_pair(vocab, text, symbols, left, queue);
        }
        let mut symbol = symbols.first();
        while let Some(at) = symbol {
            self.emit(vocab, text, at, out);
            symbol = symbols.get(at.next as usize);
        }
    }

    /// Queues symbol `left` and the next one, if they make a token.
    #[inline]
    fn try_pair(&self, vocab: &Vocab, text: &str, symbols: &[Symbol], left: u32, queue: &mut BinaryHeap<Pair>) {
        let Some(first) = symbols.get(left as usize) else { return };
        let Some(second) = symbols.get(first.next as usize) else { return };
        let length = first.length + second.length;
        let bytes = text.as_bytes().get(first.start as usize..(first.start + length) as usize).unwrap_or_default();
        let token = vocab.find(bytes);
        if token != NONE {
            let score = self.scores.get(token as usize).copied().unwrap_or(1);
            queue.push(Pair { score, left: Reverse(left), length, token });
        }
    }

    fn emit(&self, vocab: &Vocab, text: &str, symbol: &Symbol, out: &mut Vec<TokenId>) {
        if symbol.token != NONE {
            return out.push(symbol.token);
        }
        let bytes = text.as_bytes().get(symbol.start as usize..(symbol.start + symbol.length) as usize);
        let bytes = bytes.unwrap_or_default();
        let token = vocab.find(bytes);
        if token != NONE {
            return out.push(token);
        }
        let bytes = if bytes == b" " { "\u{2581}".as_bytes() } else { bytes };
        for &byte in bytes {
            match self.bytes.get(usize::from(byte)) {
                Some(&NONE) | None => out.extend(vocab.ids.unk),
                Some(&token) => out.push(token),
            }
        }
    }
}

/// The scores, which a few files have as integers.
fn scores(metadata: &Metadata) -> Result<Option<Vec<f32>>> {
    match metadata.f32s(SCORES) {
        Ok(scores) => Ok(scores),
        Err(error) => match metadata.ints(SCORES) {
            Ok(Some(scores)) => Ok(Some(scores.into_iter().map(|score| score as f32).collect())),
            _ => Err(error),
        },
    }
}

/// An integer that orders like the score; not a number is the worst.
fn order(score: f32) -> u32 {
    // -0 + 0 is 0: the two are equal.
    let bits = if score.is_nan() { f32::NEG_INFINITY.to_bits() } else { (score + 0.0).to_bits() };
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn scores_keep_their_order() {
        let scores = [f32::NEG_INFINITY, -1e9, -2.0, -1.0, -1e-40, 0.0, 1e-40, 0.5, 3.0, f32::INFINITY];
        for pair in scores.windows(2) {
            assert!(order(pair[0]) < order(pair[1]), "{pair:?}");
        }
        assert_eq!(order(-0.0), order(0.0));
        assert_eq!(order(f32::NAN), order(f32::NEG_INFINITY));
        assert!(order(f32::NEG_INFINITY) > 1);
    }
}
