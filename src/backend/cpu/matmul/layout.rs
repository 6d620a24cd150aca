//! The layout of a matrix's rows in memory: consecutive, as in a file, or interleaved.
//!
//! As many rows are interleaved as a vector has lanes, block by block. Each four bytes of a block
//! are neighbours of the same four bytes of the other rows. So a vector is one read, and memory is
//! read from beginning to end. A block may begin or end with two more bytes, a scale, which are
//! neighbours as well. Bytes at offset `o` of a block are at `LANES * o`, so interleaved rows take
//! the same memory as in a file, at the same place.

use crate::gguf::TensorType;
use crate::quant::formats::facts;
use crate::quant::unpack::Source;
use crate::simd::lanes::{Lanes, Rows};

impl<S: Lanes> Source<S> for Rows {
    const INTERLEAVED: bool = false;

    #[inline(always)]
    fn new(rows: Rows) -> Self {
        rows
    }

    #[inline(always)]
    unsafe fn quants(self, s: S, at: usize) -> [S::Int; 4] {
        // SAFETY: the caller's promise.
        unsafe { s.quants(self, at) }
    }

    #[inline(always)]
    unsafe fn words(self, s: S, at: usize) -> [S::Int; 4] {
        // SAFETY: the caller's promise.
        unsafe { s.transpose(self, at) }
    }

    #[inline(always)]
    unsafe fn first_half(self, s: S, at: usize) -> S::Int {
        // SAFETY: the caller's promise: the 16 bytes from here on belong to the block.
        unsafe { s.transpose(self, at)[0] }
    }

    #[inline(always)]
    unsafe fn first_half_and_word(self, s: S, at: usize) -> [S::Int; 2] {
        // SAFETY: as above.
        let [head, next, ..] = unsafe { s.transpose(self, at) };
        [head, s.or(s.shr(head, 16), s.shl(next, 16))]
    }

    #[inline(always)]
    unsafe fn last_half(self, s: S, at: usize) -> S::Int {
        // SAFETY: the caller's promise: the 16 bytes that end here belong to the block.
        unsafe { s.shr(s.transpose(self, at - 14)[3], 16) }
    }

    #[inline(always)]
    unsafe fn last_words_and_half(self, s: S, at: usize) -> ([S::Int; 3], S::Int) {
        // SAFETY: as above.
        let tail = unsafe { s.transpose(self, at - 2) };
        let word = |i: usize| s.or(s.shr(tail[i], 16), s.shl(tail[i + 1], 16));
        ([word(0), word(1), word(2)], s.shr(tail[3], 16))
    }
}

/// Interleaved rows.
#[derive(Clone, Copy)]
pub(super) struct Interleaved(*const u8);

impl Interleaved {
    /// The four bytes at `at` of all rows.
    #[inline(always)]
    unsafe fn word<S: Lanes>(self, s: S, at: usize) -> S::Int {
        // SAFETY: the caller's promise.
        unsafe { s.load(self.0.add(at * S::LANES).cast()) }
    }

    #[inline(always)]
    unsafe fn half<S: Lanes>(self, s: S, at: usize) -> S::Int {
        // SAFETY: the caller's promise.
        unsafe { s.load_halves(self.0.add(at * S::LANES).cast()) }
    }
}

impl<S: Lanes> Source<S> for Interleaved {
    const INTERLEAVED: bool = true;

    #[inline(always)]
    fn new(rows: Rows) -> Self {
        Self(rows.first)
    }

    #[inline(always)]
    unsafe fn quants(self, s: S, at: usize) -> [S::Int; 4] {
        // SAFETY: the caller's promise.
        unsafe { <Self as Source<S>>::words(self, s, at) }
    }

    #[inline(always)]
    unsafe fn words(self, s: S, at: usize) -> [S::Int; 4] {
        // SAFETY: the caller's promise.
        unsafe { [self.word(s, at), self.word(s, at + 4), self.word(s, at + 8), self.word(s, at + 12)] }
    }

    #[inline(always)]
    unsafe fn first_half(self, s: S, at: usize) -> S::Int {
        // SAFETY: the caller's promise.
        unsafe { self.half(s, at) }
    }

    #[inline(always)]
    unsafe fn first_half_and_word(self, s: S, at: usize) -> [S::Int; 2] {
        // SAFETY: the caller's promise.
        unsafe { [self.half(s, at), self.word(s, at + 2)] }
    }

    #[inline(always)]
    unsafe fn last_half(self, s: S, at: usize) -> S::Int {
        // SAFETY: the caller's promise.
        unsafe { self.half(s, at) }
    }

    #[inline(always)]
    unsafe fn last_words_and_half(self, s: S, at: usize) -> ([S::Int; 3], S::Int) {
        // SAFETY: the caller's promise.
        unsafe { ([self.word(s, at), self.word(s, at + 4), self.word(s, at + 8)], self.half(s, at + 12)) }
    }
}

/// The offset of a block's two bytes beside whole words, at its beginning or its end, if it has
/// them.
fn half_at(ty: TensorType) -> Option<usize> {
    facts(ty)?.half_at
}

/// Interleaves `lanes` rows at a time. `rows` consists of whole groups of them, of `row_bytes`
/// each.
pub(super) fn interleave(ty: TensorType, lanes: usize, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    match lanes {
        8 => interleave_lanes::<8>(ty, row_bytes, rows, out),
        16 => interleave_lanes::<16>(ty, row_bytes, rows, out),
        _ => unreachable!("no vector of {lanes} rows is interleaved"),
    }
}

/// Extracts the block of row `r` from `blocks`, the blocks of `lanes` interleaved rows.
pub(super) fn take_block(ty: TensorType, lanes: usize, blocks: &[u8], r: usize, block: &mut [u8]) {
    let half = half_at(ty);
    if let Some(at) = half {
        block[at..at + 2].copy_from_slice(&blocks[lanes * at + 2 * r..][..2]);
    }
    let first_word = if half == Some(0) { 2 } else { 0 };
    let words = blocks[lanes * first_word..].chunks_exact(4 * lanes);
    for (word, blocks) in block[first_word..].as_chunks_mut::<4>().0.iter_mut().zip(words) {
        word.copy_from_slice(&blocks[4 * r..][..4]);
    }
}

fn interleave_lanes<const LANES: usize>(ty: TensorType, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    let bytes = ty.block_bytes();
    let half = half_at(ty);
    let first_word = if half == Some(0) { 2 } else { 0 };
    let groups = rows.chunks_exact(LANES * row_bytes).zip(out.chunks_exact_mut(LANES * row_bytes));
    for (rows, out) in groups {
        for (block, out) in out.chunks_exact_mut(LANES * bytes).enumerate() {
            let row = |r: usize| &rows[r * row_bytes + block * bytes..][..bytes];
            let rows: [&[u8]; LANES] = std::array::from_fn(row);
            if let Some(at) = half {
                for (row, to) in rows.iter().zip(out[LANES * at..].chunks_exact_mut(2)) {
                    to.copy_from_slice(&row[at..at + 2]);
                }
            }
            let words = bytes / 4;
            let out = &mut out[LANES * first_word..][..LANES * 4 * words];
            let rows = rows.map(|row| &row[first_word..][..4 * words]);
            for (word, to) in out.as_chunks_mut::<4>().0.chunks_exact_mut(LANES).enumerate() {
                for (row, to) in rows.iter().zip(to) {
                    *to = [row[4 * word], row[4 * word + 1], row[4 * word + 2], row[4 * word + 3]];
                }
            }
        }
    }
}
