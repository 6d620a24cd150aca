//! SentencePiece's byte-pair encoding: joins neighbours again and again over the whole text, always
//! the two that make the token with the best score. Characters that end up without a token are
//! spelled in bytes.

use super::index::NONE;
use super::vocab::{SCORES, Vocab, same_length};
use super::{TokenId, TokenKind, byte_ids};
use crate::gguf::Metadata;
use crate::{ErrorKind, Result, memory};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What the memory is for, in texts of errors.
const WHAT: &str = "the scores of the tokenizer";
const TOKENS: &str = "the tokens of a text";
const PAIRS: &str = "the pairs of a text";

pub(super) struct Spm {
    /// Scores as integers in the same order, all above 0; empty if the file has none.
    scores: Vec<u32>,
    /// The token of each single byte, or [`NONE`].
    bytes: [u32; 256],
    /// The token for characters that no tokens spell. It is never a control token, because text
    /// must not become one.
    unk: Option<TokenId>,
}

/// A token so far, in the linked list of a text's tokens.
struct Symbol {
    previous: u32,
    next: u32,
    start: u32,
    /// 0 once it is merged into the symbol before it.
    length: u32,
    /// The token that it has become; [`NONE`] for a single character.
    token: u32,
}

/// A pair to merge; the greatest one is next.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    score: u32,
    /// Among equal scores, the leftmost pair is next.
    left: Reverse<u32>,
    /// Bytes of both together; another length shows that one of them has changed since.
    length: u32,
    token: u32,
}

/// Memory that is reused between texts.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
}

/// The most bytes for which searching all pairs for the best one beats a queue.
const SHORT: usize = 32;

impl Spm {
    pub(super) fn new(metadata: &Metadata, vocab: &Vocab) -> Result<Self> {
        let scores = match scores(metadata)? {
            Some(scores) => {
                same_length(SCORES, scores.len(), vocab.len())?;
                memory::collected(scores.into_iter().map(order), WHAT)?
            }
            None => Vec::new(),
        };
        let unk = vocab.ids.unk.filter(|&unk| vocab.kind(unk) != Some(TokenKind::Control));
        Ok(Self { scores, bytes: byte_ids(vocab), unk })
    }

    /// Appends the tokens of `text`. Spaces in it are plain spaces.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        scratch: &mut Scratch,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        let bytes = text.as_bytes();
        let mut start = 0;
        for (end, (&first, &second)) in (1..).zip(bytes.iter().zip(bytes.iter().skip(1))) {
            if !vocab.joins(first, second) && text.is_char_boundary(end) {
                self.encode_part(vocab, text.get(start..end).unwrap_or_default(), scratch, out)?;
                start = end;
            }
        }
        self.encode_part(vocab, text.get(start..).unwrap_or_default(), scratch, out)
    }

    /// Encodes a part of the text; no token crosses its ends.
    fn encode_part(&self, vocab: &Vocab, text: &str, scratch: &mut Scratch, out: &mut Vec<TokenId>) -> Result<()> {
        if text.len() <= SHORT {
            return self.encode_short(vocab, text.as_bytes(), out);
        }
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
            let symbol = Symbol { previous, next: NONE, start: start as u32, length, token: NONE };
            memory::push(symbols, symbol, PAIRS)?;
            self.try_pair(vocab, text, symbols, previous, queue)?;
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
            self.try_pair(vocab, text, symbols, previous, queue)?;
            self.try_pair(vocab, text, symbols, left, queue)?;
        }
        let mut symbol = symbols.first();
        while let Some(at) = symbol {
            let bytes = text.as_bytes().get(at.start as usize..(at.start + at.length) as usize);
            self.emit(vocab, bytes.unwrap_or_default(), at.token, out)?;
            symbol = symbols.get(at.next as usize);
        }
        Ok(())
    }

    /// For few bytes: searches all pairs for the best one again and again.
    fn encode_short(&self, vocab: &Vocab, text: &[u8], out: &mut Vec<TokenId>) -> Result<()> {
        // Symbol i lies between starts i and i + 1; pair i is symbol i and the next one.
        let mut starts = [0; SHORT + 1];
        let mut tokens = [NONE; SHORT];
        let mut pairs = [(0, NONE); SHORT];
        let mut count = 0;
        for (at, &byte) in text.iter().enumerate() {
            // Every byte that is no continuation byte starts a character.
            if byte & 0xC0 != 0x80 {
                starts[count] = at;
                count += 1;
            }
        }
        starts[count] = text.len();
        let pair = |starts: &[usize; SHORT + 1], at: usize| match text.get(starts[at]..starts[at + 2]) {
            Some(bytes) => self.pair(vocab, bytes),
            None => (0, NONE),
        };
        for at in 1..count {
            pairs[at - 1] = pair(&starts, at - 1);
        }
        while count > 1 {
            let mut best = 0;
            for at in 1..count - 1 {
                if pairs[at].0 > pairs[best].0 {
                    best = at;
                }
            }
            let (score, token) = pairs[best];
            if score == 0 {
                break;
            }
            tokens[best] = token;
            tokens.copy_within(best + 2..count, best + 1);
            pairs.copy_within((best + 1).min(count - 1)..count - 1, best);
            starts.copy_within(best + 2..count + 1, best + 1);
            count -= 1;
            if best > 0 {
                pairs[best - 1] = pair(&starts, best - 1);
            }
            if best + 1 < count {
                pairs[best] = pair(&starts, best);
            }
        }
        for (at, &token) in tokens.iter().enumerate().take(count) {
            self.emit(vocab, text.get(starts[at]..starts[at + 1]).unwrap_or_default(), token, out)?;
        }
        Ok(())
    }

    /// The score of the token that these bytes make, and the token; 0 and [`NONE`] if they make none.
    #[inline]
    fn pair(&self, vocab: &Vocab, bytes: &[u8]) -> (u32, u32) {
        match vocab.find(bytes) {
            NONE => (0, NONE),
            token => (self.scores.get(token as usize).copied().unwrap_or(1), token),
        }
    }

    /// Queues symbol `left` and the next one, if they make a token.
    #[inline]
    fn try_pair(
        &self,
        vocab: &Vocab,
        text: &str,
        symbols: &[Symbol],
        left: u32,
        queue: &mut BinaryHeap<Pair>,
    ) -> Result<()> {
        let Some(first) = symbols.get(left as usize) else { return Ok(()) };
        let Some(second) = symbols.get(first.next as usize) else { return Ok(()) };
        let length = first.length + second.length;
        let bytes = text.as_bytes().get(first.start as usize..(first.start + length) as usize).unwrap_or_default();
        if let (score @ 1.., token) = self.pair(vocab, bytes) {
            memory::push_to_heap(queue, Pair { score, left: Reverse(left), length, token }, PAIRS)?;
        }
        Ok(())
    }

    /// Appends a token. A character that was not merged becomes its own token, the tokens of its
    /// bytes, or the unknown token.
    fn emit(&self, vocab: &Vocab, bytes: &[u8], token: u32, out: &mut Vec<TokenId>) -> Result<()> {
        let token = if token == NONE { vocab.find(bytes) } else { token };
        if token != NONE {
            return memory::push(out, token, TOKENS);
        }
        let bytes = if bytes == b" " { "\u{2581}".as_bytes() } else { bytes };
        let tokens = bytes.iter().map(|&byte| self.bytes.get(usize::from(byte)).copied().unwrap_or(NONE));
        memory::reserve(out, bytes.len().max(1), TOKENS)?;
        if tokens.clone().any(|token| token == NONE) {
            out.extend(self.unk);
        } else {
            out.extend(tokens);
        }
        Ok(())
    }
}

/// The scores; a few files store them as integers.
fn scores(metadata: &Metadata) -> Result<Option<Vec<f32>>> {
    match metadata.f32s(SCORES) {
        Ok(scores) => Ok(scores),
        Err(error) if error.kind() == ErrorKind::OutOfMemory => Err(error),
        Err(error) => match metadata.ints(SCORES) {
            Ok(Some(scores)) => memory::collected(scores.into_iter().map(|score| score as f32), WHAT).map(Some),
            _ => Err(error),
        },
    }
}

/// An integer that orders like the score; NaN is the worst.
fn order(score: f32) -> u32 {
    // -0 + 0 is 0, which makes both zeros equal.
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
