//! Byte-pair encoding: joins neighbours again and again, always the pair that comes first in the
//! list of merges.

use super::index::{NONE, ODD, mix, seed};
use super::pretokenizer::PreTokenizer;
use super::vocab::{Spelling, Vocab, missing};
use super::{TokenId, byte_ids, bytes_of_letters};
use crate::gguf::Metadata;
use crate::{Result, memory};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const MERGES: &str = "tokenizer.ggml.merges";

/// What the memory is for, in texts of errors.
const WHAT: &str = "the merges of the tokenizer";
const TOKENS: &str = "the tokens of a text";
const WORD: &str = "the pairs of a long word";

pub(super) struct Bpe {
    pre: PreTokenizer,
    merges: Merges,
    /// The token of each single byte, or [`NONE`].
    bytes: [u32; 256],
}

/// One merge: two tokens and what they become.
#[derive(Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    joined: u32,
}

/// The merges in order of their rank, and a hash table from pairs to ranks.
struct Merges {
    list: Vec<Merge>,
    /// Ranks; [`NONE`] where empty.
    slots: Vec<u32>,
    seed: u64,
}

impl Merges {
    fn with_capacity(count: usize) -> Result<Self> {
        let slots = (count * 3 / 2 + 1).next_power_of_two();
        let (list, slots) = (memory::with_room(count, WHAT)?, memory::filled(slots, NONE, WHAT)?);
        Ok(Self { list, slots, seed: seed() })
    }

    /// Appends a merge, unless an earlier one has the same pair. The caller has made room for it.
    fn push(&mut self, merge: Merge) {
        let slot = self.find_slot(merge.left, merge.right);
        if let Some(slot @ &mut NONE) = self.slots.get_mut(slot) {
            *slot = self.list.len() as u32;
            self.list.push(merge);
        }
    }

    #[inline]
    fn find_slot(&self, left: u32, right: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = mix((u64::from(left) << 32 | u64::from(right)) ^ self.seed, ODD) as usize & mask;
        loop {
            // The table is never full, as it has more slots than merges. An empty slot refers to no
            // merge of the list.
            match self.slots.get(at).and_then(|&rank| self.list.get(rank as usize)) {
                Some(merge) if (merge.left, merge.right) != (left, right) => at = (at + 1) & mask,
                _ => return at,
            }
        }
    }

    /// The rank of the merge of two tokens, or [`NONE`].
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.slots.get(self.find_slot(left, right)).copied().unwrap_or(NONE)
    }

    #[inline]
    fn joined(&self, rank: u32) -> u32 {
        self.list.get(rank as usize).map_or(NONE, |merge| merge.joined)
    }
}

/// A token so far, in the linked list of a word's tokens.
struct Symbol {
    previous: u32,
    next: u32,
    start: u32,
    /// [`NONE`] where the vocabulary has no token for it.
    token: u32,
}

/// Memory that is reused between words.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// Pairs to merge, with the rank in the upper half and the left symbol in the lower half.
    queue: BinaryHeap<Reverse<u64>>,
}

/// The most bytes for which searching all pairs for the best one beats a queue.
const SHORT: usize = 32;

impl Bpe {
    pub(super) fn new(metadata: &Metadata, vocab: &Vocab, pre: PreTokenizer, merges_needed: bool) -> Result<Self> {
        let spelling = if pre.plain_text { Spelling::LowerBlock } else { Spelling::ByteLetters };
        let merges = match metadata.strings(MERGES)? {
            Some(list) => read_merges(list.iter(), vocab, spelling)?,
            None if merges_needed => return Err(missing(MERGES, "merges for its byte-pair encoding")),
            None => Merges::with_capacity(0)?,
        };
        let bytes = match spelling {
            Spelling::ByteLetters => std::array::from_fn(|byte| vocab.find(&[byte as u8])),
            Spelling::LowerBlock => byte_ids(vocab),
        };
        Ok(Self { pre, merges, bytes })
    }

    /// Appends the tokens of `text`. Spaces in it are plain spaces.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        let mut encoded = Ok(());
        self.pre.split(text, &mut |word| {
            if encoded.is_ok() {
                encoded = self.encode_word(vocab, word, scratch, out);
            }
        });
        encoded
    }

    fn encode_word(&self, vocab: &Vocab, word: &[u8], scratch: &mut Scratch, out: &mut Vec<TokenId>) -> Result<()> {
        let whole = self.pre.ignore_merges || (self.pre.whole_newlines && word.iter().all(|&byte| byte == b'\n'));
        let token = if whole { vocab.find(word) } else { NONE };
        if token != NONE {
            return memory::push(out, token, TOKENS);
        }
        if word.len() <= SHORT {
            return self.encode_part(vocab, word, scratch, out);
        }
        let mut start = 0;
        for (end, (&first, &second)) in (1..).zip(word.iter().zip(word.iter().skip(1))) {
            // In plain text, symbols are characters.
            let starts_symbol = !self.pre.plain_text || second & 0xC0 != 0x80;
            if starts_symbol && !vocab.joins(first, second) {
                self.encode_part(vocab, word.get(start..end).unwrap_or_default(), scratch, out)?;
                start = end;
            }
        }
        self.encode_part(vocab, word.get(start..).unwrap_or_default(), scratch, out)
    }

    /// Encodes a part of a word; no token crosses its ends.
    #[inline]
    fn encode_part(&self, vocab: &Vocab, part: &[u8], scratch: &mut Scratch, out: &mut Vec<TokenId>) -> Result<()> {
        if self.pre.plain_text {
            let text = std::str::from_utf8(part).unwrap_or_default();
            let symbols = text
                .char_indices()
                .map(|(start, c)| (start, vocab.find(part.get(start..start + c.len_utf8()).unwrap_or_default())));
            self.merge_long(symbols, scratch)?;
            self.emit(part, scratch, out)
        } else if part.len() <= SHORT {
            self.encode_short(part, out)
        } else {
            let tokens = part.iter().map(|&byte| self.bytes.get(usize::from(byte)).copied().unwrap_or(NONE));
            self.merge_long(tokens.enumerate(), scratch)?;
            self.emit(part, scratch, out)
        }
    }

    /// For few bytes: searches all pairs for the best one again and again.
    fn encode_short(&self, word: &[u8], out: &mut Vec<TokenId>) -> Result<()> {
        let mut tokens = [NONE; SHORT];
        // The rank of each token's merge with the next one.
        let mut ranks = [NONE; SHORT];
        let mut count = 0;
        for (token, &byte) in tokens.iter_mut().zip(word) {
            *token = self.bytes.get(usize::from(byte)).copied().unwrap_or(NONE);
            count += 1;
        }
        for (rank, pair) in ranks.iter_mut().zip(tokens.windows(2)).take(count - 1) {
            *rank = self.merges.rank(pair[0], pair[1]);
        }
        while count > 1 {
            let Some((best, &rank)) = ranks[..count - 1].iter().enumerate().min_by_key(|&(_, &rank)| rank) else {
                break;
            };
            if rank == NONE {
                break;
            }
            tokens[best] = self.merges.joined(rank);
            tokens.copy_within(best + 2..count, best + 1);
            ranks.copy_within((best + 1).min(count - 1)..count, best);
            count -= 1;
            if best > 0 {
                ranks[best - 1] = self.merges.rank(tokens[best - 1], tokens[best]);
            }
            if best + 1 < count {
                ranks[best] = self.merges.rank(tokens[best], tokens[best + 1]);
            }
        }
        memory::reserve(out, count, TOKENS)?;
        out.extend(tokens[..count].iter().filter(|&&token| token != NONE));
        Ok(())
    }

    /// Merges symbols, given as start and token, with a queue of pairs: n symbols take n log n
    /// steps.
    fn merge_long(&self, symbols: impl Iterator<Item = (usize, u32)>, scratch: &mut Scratch) -> Result<()> {
        let Scratch { symbols: list, queue } = scratch;
        list.clear();
        queue.clear();
        for (start, token) in symbols {
            let number = list.len() as u32;
            let previous = match list.last_mut() {
                Some(last) => {
                    last.next = number;
                    let rank = self.merges.rank(last.token, token);
                    if rank != NONE {
                        memory::push_to_heap(queue, entry(rank, number - 1), WORD)?;
                    }
                    number - 1
                }
                None => NONE,
            };
            memory::push(list, Symbol { previous, next: NONE, start: start as u32, token }, WORD)?;
        }
        while let Some(Reverse(pair)) = queue.pop() {
            let left = pair as u32;
            let Some(merge) = self.merges.list.get((pair >> 32) as usize) else { continue };
            let Some((left_token, next)) = list.get(left as usize).map(|symbol| (symbol.token, symbol.next)) else {
                continue;
            };
            let Some((right_token, after)) = list.get(next as usize).map(|symbol| (symbol.token, symbol.next)) else {
                continue;
            };
            // One of the two may have become part of another merge in the meantime.
            if (left_token, right_token) != (merge.left, merge.right) {
                continue;
            }
            if let Some(right) = list.get_mut(next as usize) {
                right.token = NONE;
            }
            let mut previous = NONE;
            if let Some(symbol) = list.get_mut(left as usize) {
                symbol.token = merge.joined;
                symbol.next = after;
                previous = symbol.previous;
            }
            if let Some(symbol) = list.get_mut(after as usize) {
                symbol.previous = left;
                let rank = self.merges.rank(merge.joined, symbol.token);
                if rank != NONE {
                    memory::push_to_heap(queue, entry(rank, left), WORD)?;
                }
            }
            if let Some(symbol) = list.get(previous as usize) {
                let rank = self.merges.rank(symbol.token, merge.joined);
                if rank != NONE {
                    memory::push_to_heap(queue, entry(rank, previous), WORD)?;
                }
            }
        }
        Ok(())
    }

    /// Appends the tokens of merged symbols. A symbol without a token becomes the tokens of its
    /// bytes, if there are any.
    fn emit(&self, word: &[u8], scratch: &Scratch, out: &mut Vec<TokenId>) -> Result<()> {
        let mut symbol = scratch.symbols.first();
        while let Some(at) = symbol {
            let next = scratch.symbols.get(at.next as usize);
            if at.token != NONE {
                memory::push(out, at.token, TOKENS)?;
            } else if self.pre.plain_text {
                let end = next.map_or(word.len(), |next| next.start as usize);
                let bytes = word.get(at.start as usize..end).unwrap_or_default();
                let bytes = if bytes == b" " { "\u{2581}".as_bytes() } else { bytes };
                let tokens = bytes.iter().map(|&byte| self.bytes.get(usize::from(byte)).copied().unwrap_or(NONE));
                memory::reserve(out, bytes.len(), TOKENS)?;
                out.extend(tokens.filter(|&token| token != NONE));
            }
            symbol = next;
        }
        Ok(())
    }
}

fn entry(rank: u32, left: u32) -> Reverse<u64> {
    Reverse(u64::from(rank) << 32 | u64::from(left))
}

fn read_merges<'a>(list: impl ExactSizeIterator<Item = &'a str>, vocab: &Vocab, spelling: Spelling) -> Result<Merges> {
    let mut merges = Merges::with_capacity(list.len())?;
    let mut unknown = 0usize;
    let mut bytes = Vec::new();
    let mut joined = NONE;
    for text in list {
        bytes.clear();
        memory::reserve(&mut bytes, text.len(), WHAT)?;
        // The first character belongs to the left token even if it is a space.
        let first = text.chars().next().map_or(0, char::len_utf8);
        let Some(space) = text.get(first..).and_then(|rest| rest.find(' ')).map(|at| first + at) else {
            unknown += 1;
            continue;
        };
        let (left, right) = (text.get(..space).unwrap_or_default(), text.get(space + 1..).unwrap_or_default());
        let spelled = spell(left, spelling, &mut bytes);
        let middle = bytes.len();
        let spelled = spelled && spell(right, spelling, &mut bytes);
        let (left, right) = bytes.split_at(middle);
        // Merges mostly come in the order of the tokens that they make. Trying the next tokens
        // first saves a search.
        let near = [joined, joined.wrapping_add(1)].into_iter().find(|&near| vocab.is_found_for(&bytes, near));
        joined = near.unwrap_or_else(|| vocab.find(&bytes));
        let merge = Merge { left: vocab.find(left), right: vocab.find(right), joined };
        if !spelled || [merge.left, merge.right, merge.joined].contains(&NONE) {
            unknown += 1;
            continue;
        }
        merges.push(merge);
    }
    if unknown > 0 {
        log::warn!("{MERGES} has {unknown} merges of or to something that is no token for text; they are ignored");
    }
    Ok(merges)
}

/// Appends the bytes that one half of a merge stands for: no more bytes than the half has itself.
fn spell(text: &str, spelling: Spelling, out: &mut Vec<u8>) -> bool {
    match spelling {
        Spelling::ByteLetters => bytes_of_letters(text, out),
        Spelling::LowerBlock => {
            for (i, part) in text.split('\u{2581}').enumerate() {
                if i > 0 {
                    out.push(b' ');
                }
                out.extend_from_slice(part.as_bytes());
            }
            true
        }
    }
}
