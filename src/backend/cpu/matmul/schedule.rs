//! The order of work of a matrix product, for all types of weights and all instruction sets.
//!
//! A tile of rows is unpacked, one slice of columns at a time, into memory that stays in the
//! first-level cache. All tokens are multiplied with it, so the weights are read once. A lane holds
//! one row from beginning to end, and slices depend only on the number of columns. So an element of
//! the product is the same, bit by bit, whatever is computed with it: other tokens or rows, on any
//! number of threads.

use super::corrections;
use super::few::Few;
use super::kernels::{Activations, Dots, Kernels, Multiply, Tokens};
use super::prefetch::{AHEAD, AHEAD_INTERLEAVED, Ahead, AheadOfRows};
use super::tile::SLICE;
use super::{Matrix, OutPtr, Scratch};
use crate::quant::formats;
use crate::simd::lanes::Rows;
use std::ops::Range;

/// The most rows of a tile.
pub(super) const TILE_ROWS: usize = 32;
/// The most tokens that a tile is multiplied with at once.
pub(super) const MAX_TOKENS: usize = 6;

/// Up to this many tokens, reading the weights takes most of the time.
pub(super) const FEW_TOKENS: usize = 8;

/// Up to this many tokens, rows are multiplied without a tile, if there are kernels for it.
pub(super) const DIRECT_TOKENS: usize = 8;
/// A product: weights, activations, and the output.
pub(super) struct Job<'a> {
    pub(super) w: &'a Matrix<'a>,
    pub(super) x: Activations,
    pub(super) out: OutPtr<'a>,
    pub(super) bias: Option<&'a [f32]>,
}

/// Multiplies rows of a matrix with all tokens.
///
/// # Safety
/// The kernels are for the matrix and for this processor. The pointers are valid for the sizes, and
/// the scratch memory is large enough. Nothing else accesses the rows of the output or writes the
/// activations.
pub(super) unsafe fn run(
    kernels: &Kernels,
    job: &Job<'_>,
    rows: Range<usize>,
    next: Option<*const u8>,
    scratch: &mut Scratch,
) {
    static ZEROS: [f32; TILE_ROWS] = [0.0; TILE_ROWS];
    debug_assert!(kernels.rows <= TILE_ROWS && kernels.dots.len() <= MAX_TOKENS);
    let &Job { w, x, out, bias } = job;
    let Scratch { tile, last_rows, corrections, corrected, .. } = scratch;
    // SAFETY: the caller's promise.
    let correction_group = unsafe { corrections::prepare(kernels.correction, w.cols(), &x, corrections, corrected) };
    // Slices of about the same length.
    let blocks = w.cols() / kernels.block;
    let slice = blocks.div_ceil(w.cols().div_ceil(kernels.slice).max(1)).max(1) * kernels.block;
    let mut rows = rows;
    if x.n <= DIRECT_TOKENS && !kernels.direct.is_empty() {
        let whole = rows.start..rows.end - rows.len() % kernels.direct_rows;
        rows.start = whole.end;
        let ahead = AheadOfRows::new(w, whole.end, next);
        for first in whole.step_by(kernels.direct_rows) {
            // SAFETY: the rows are within the matrix and the output.
            unsafe { run_direct(kernels, job, first, slice, (corrections, correction_group), &ahead) };
        }
    }
    for places in tiles(kernels.rows, x.n <= FEW_TOKENS && !w.is_interleaved(), &rows) {
        let first = places.first;
        for column in (0..w.cols().max(1)).step_by(slice) {
            let columns = slice.min(w.cols() - column);
            // SAFETY: the columns are within the rows, and no more than a slice.
            unsafe {
                if first + (kernels.rows - 1) * places.step < w.rows() {
                    let rows = Rows { first: w.start(first), stride: places.step * w.row_bytes() };
                    (kernels.unpack)(rows, column, columns, tile);
                } else {
                    (kernels.unpack)(last_rows.copy(w, first, column, columns), 0, columns, tile);
                }
            }
            // The part of the next tile that is as large as the part just unpacked.
            let mut ahead = Ahead::new(kernels, w, &places, column, columns, x.n);
            let mut token = 0;
            while token < x.n {
                // Groups of tokens are as even as possible, because small ones are less efficient.
                let left = x.n - token;
                let tokens = left.div_ceil(left.div_ceil(kernels.dots.len()));
                // SAFETY: the tokens and columns are within the activations, the tokens and rows
                // within the output.
                unsafe {
                    let mut dots = Dots {
                        tile,
                        columns,
                        tokens: x.tokens(token, column, (corrections, correction_group), out, first),
                        before: ZEROS.as_ptr(),
                        before_stride: 0,
                        ahead: ahead.from,
                        ahead_lines: ahead.next(),
                    };
                    if column > 0 {
                        (dots.before, dots.before_stride) = (dots.tokens.out, out.stride);
                    } else if let Some(bias) = bias {
                        dots.before = bias.as_ptr().add(first);
                    }
                    let multiply = kernels.dots[tokens - 1];
                    if places.count == kernels.rows && places.step == 1 {
                        multiply(&dots);
                    } else {
                        multiply_apart(multiply, dots, tokens, &places, bias.is_none() && column == 0);
                    }
                }
                token += tokens;
            }
        }
    }
}

/// Multiplies the rows from `first` on with all tokens, with the kernels that need no tile.
///
/// # Safety
/// As for [`run`], with all of these rows.
unsafe fn run_direct(
    kernels: &Kernels,
    job: &Job<'_>,
    first: usize,
    slice: usize,
    corrections: (&[i32], usize),
    ahead: &AheadOfRows,
) {
    let &Job { w, x, out, bias } = job;
    let rows = Rows { first: w.start(first), stride: w.row_bytes() };
    // Rows are read side by side, but prefetched one after the other.
    let further = if !w.is_interleaved() { w.row_bytes() * kernels.direct_rows + AHEAD } else { AHEAD_INTERLEAVED };
    let mut token = 0;
    while token < x.n {
        let left = x.n - token;
        let tokens = left.div_ceil(left.div_ceil(kernels.direct.len()));
        // SAFETY: the tokens and columns are within the activations, the tokens and rows within the
        // output.
        unsafe {
            kernels.direct[tokens - 1](&Few {
                rows,
                cols: w.cols(),
                slice,
                tokens: x.tokens(token, 0, corrections, out, first),
                bias: bias.map(|bias| bias.as_ptr().add(first)),
                ahead: ahead.at(rows.first.wrapping_add(further)),
            });
        }
        token += tokens;
    }
}

/// The rows of a tile.
pub(super) struct Places {
    pub(super) first: usize,
    /// The distance from one row to the next.
    pub(super) step: usize,
    /// The number of rows to write: the first ones.
    pub(super) count: usize,
}

/// Cuts rows into tiles.
///
/// With few tokens, reading the weights takes most of the time, and memory is fastest if each lane
/// reads without a break, far from the others. So rows of a tile that are not interleaved are then
/// as far `apart` as possible.
fn tiles(tile_rows: usize, apart: bool, rows: &Range<usize>) -> impl Iterator<Item = Places> {
    let step = if apart { rows.len() / tile_rows } else { 0 };
    let rest = rows.start + step * tile_rows..rows.end;
    let apart = (rows.start..rows.start + step).map(move |first| Places { first, step, count: tile_rows });
    let end = rest.end;
    let side_by_side =
        rest.step_by(tile_rows).map(move |first| Places { first, step: 1, count: tile_rows.min(end - first) });
    apart.chain(side_by_side)
}

/// Multiplies a tile whose rows are not all to be written, or not adjacent. With `no_bias`, the
/// products are added to zeros.
///
/// # Safety
/// As for `multiply`, with the rows at their places.
unsafe fn multiply_apart(multiply: Multiply, mut dots: Dots<'_>, tokens: usize, places: &Places, no_bias: bool) {
    let mut before = [0.0; TILE_ROWS * MAX_TOKENS];
    let mut products = [0.0; TILE_ROWS * MAX_TOKENS];
    let Tokens { out, out_stride, .. } = dots.tokens;
    // SAFETY: the rows to be written can be read and written, and the arrays have room for all
    // rows.
    unsafe {
        if !no_bias {
            for (t, to) in before.chunks_exact_mut(TILE_ROWS).enumerate().take(tokens) {
                for (r, to) in to.iter_mut().enumerate().take(places.count) {
                    *to = *dots.before.add(t * dots.before_stride + r * places.step);
                }
            }
        }
        (dots.before, dots.before_stride) = (before.as_ptr(), TILE_ROWS);
        (dots.tokens.out, dots.tokens.out_stride) = (products.as_mut_ptr(), TILE_ROWS);
        multiply(&dots);
        for (t, from) in products.chunks_exact(TILE_ROWS).enumerate().take(tokens) {
            for (r, from) in from.iter().enumerate().take(places.count) {
                *out.add(t * out_stride + r * places.step) = *from;
            }
        }
    }
}

/// Memory for a slice of a matrix's last rows, if they are less than a tile.
pub(super) struct LastRows([u8; TILE_ROWS * Self::STRIDE]);

impl LastRows {
    pub(super) const ZERO: Self = Self([0; TILE_ROWS * Self::STRIDE]);
    /// The longest slice of a row.
    const STRIDE: usize = formats::most_bytes(SLICE);

    /// Copies columns of rows `first` and up. The rows past the end are arbitrary.
    fn copy(&mut self, w: &Matrix<'_>, first: usize, column: usize, columns: usize) -> Rows {
        for (to, row) in self.0.chunks_exact_mut(Self::STRIDE).zip(first..w.rows()) {
            to[..w.bytes(columns)].copy_from_slice(&w.row(row)[w.bytes(column)..][..w.bytes(columns)]);
        }
        Rows { first: self.0.as_ptr(), stride: Self::STRIDE }
    }
}
