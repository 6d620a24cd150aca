//! How a matrix product is taken apart, for all types of weights and all instruction sets.
//!
//! A tile of rows is unpacked, a slice of the columns at a time, into memory that stays in the first-level cache, and is
//! then multiplied with all tokens: the weights are read once. In a lane there is one row from beginning to end, and
//! slices depend on nothing but the number of columns. So an element of the product is the same number bit by bit
//! whatever else is computed with it: other tokens, other rows, on however many threads.

use super::activations::{self, SUM_GROUP};
use super::simd::{MAX_LANES, RowPtrs, Simd};
use super::tile::Tile;
use super::{Matrix, OutPtr};
use std::ops::Range;

/// Rows of a tile at most.
pub(super) const TILE_ROWS: usize = 32;
/// Vectors of rows in a tile at most.
const MAX_VECTORS: usize = 2;

/// Unpacks columns (the first, and how many) of some vectors of rows.
pub(super) type Unpack = unsafe fn(&[RowPtrs], usize, usize, &mut Tile);
/// Multiplies a tile with a certain number of tokens.
pub(super) type Multiply = unsafe fn(&Dots<'_>);

/// The kernels for one type of weights on one instruction set.
pub(super) struct Kernels {
    /// Rows in a vector.
    pub(super) lanes: usize,
    /// Vectors in a tile.
    pub(super) vectors: usize,
    /// Slices are multiples of this.
    pub(super) block: usize,
    /// Columns of a slice at most.
    pub(super) slice: usize,
    pub(super) unpack: Unpack,
    /// For 1, 2, … tokens.
    pub(super) dots: &'static [Multiply],
    pub(super) correction: Correction,
}

/// What the sums of activations are for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Correction {
    /// Nothing.
    None,
    /// The zero point, which the unpacked bytes exceed the weights by, in groups of so many columns.
    Zero { zero: i32, group: usize },
    /// Minima of groups of so many columns.
    Mins { group: usize },
}

/// Activations as the kernels read them.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    /// Row-major, i8 or f32.
    pub(super) x: *const u8,
    /// Bytes from one token to the next.
    pub(super) stride: usize,
    /// Bytes of a column.
    pub(super) size: usize,
    /// For quantized ones: scales, `[cols / 32][n]`,
    pub(super) scales: *const f32,
    /// and sums, `[cols / 16][n]`.
    pub(super) sums: *const i32,
    /// Tokens.
    pub(super) n: usize,
}

/// A slice of a tile times a few tokens, for a [`Multiply`].
pub(super) struct Dots<'a> {
    pub(super) tile: &'a Tile,
    pub(super) columns: usize,
    /// From the first of the tokens and columns on, as [`Activations::x`].
    pub(super) x: *const u8,
    pub(super) x_stride: usize,
    /// From the first token and group on; the next group is `n` elements further.
    pub(super) scales: *const f32,
    /// As `scales`, for the groups of the [`Correction`].
    pub(super) corrections: *const i32,
    pub(super) n: usize,
    /// From the first token and row on.
    out: *mut f32,
    out_stride: usize,
    /// Rows of the tile that are to be written.
    rows: usize,
    start: Start,
}

/// What the products are added to.
#[derive(Clone, Copy)]
enum Start {
    Zero,
    /// To the bias of the rows.
    Bias(*const f32),
    /// To what the output holds: the sum of earlier slices.
    Output,
}

/// Multiplies rows of a matrix with all tokens. `corrections` has room for an element for each 16 columns and token.
///
/// # Safety
/// The kernels are for the matrix and for this processor; the pointers are valid for the sizes; and nothing else accesses
/// the rows of the output or writes the activations.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run(
    kernels: &Kernels,
    w: &Matrix<'_>,
    x: Activations,
    rows: Range<usize>,
    out: OutPtr<'_>,
    bias: Option<&[f32]>,
    tile: &mut Tile,
    corrections: &mut [i32],
) {
    let tile_rows = kernels.lanes * kernels.vectors;
    debug_assert!(kernels.vectors <= MAX_VECTORS && tile_rows <= TILE_ROWS);
    // SAFETY: the caller's promise.
    let correction_group = unsafe { prepare(kernels.correction, w.cols, &x, corrections) };
    // Slices of about the same length.
    let blocks = w.cols / kernels.block;
    let slice = blocks.div_ceil(w.cols.div_ceil(kernels.slice).max(1)) * kernels.block;
    for row in rows.clone().step_by(tile_rows) {
        let ptrs = [row_ptrs(w, row, rows.end), row_ptrs(w, row + kernels.lanes, rows.end)];
        for column in (0..w.cols).step_by(slice) {
            let columns = slice.min(w.cols - column);
            // SAFETY: the columns are within the rows, and no more than a slice.
            unsafe { (kernels.unpack)(&ptrs[..kernels.vectors], column, columns, tile) };
            let mut token = 0;
            while token < x.n {
                // As even as possible: few tokens at a time are less efficient.
                let left = x.n - token;
                let tokens = left.div_ceil(left.div_ceil(kernels.dots.len()));
                // SAFETY: the tokens and columns are within the activations, the tokens and rows within the output.
                unsafe {
                    let dots = Dots {
                        tile,
                        columns,
                        x: x.x.add(token * x.stride + column * x.size),
                        x_stride: x.stride,
                        scales: x.scales.wrapping_add(column / activations::GROUP * x.n + token),
                        corrections: corrections.as_ptr().wrapping_add(column / correction_group * x.n + token),
                        n: x.n,
                        out: out.element(token, row),
                        out_stride: out.stride,
                        rows: tile_rows.min(rows.end - row),
                        start: match bias {
                            _ if column > 0 => Start::Output,
                            Some(bias) => Start::Bias(bias.as_ptr().add(row)),
                            None => Start::Zero,
                        },
                    };
                    kernels.dots[tokens - 1](&dots);
                }
                token += tokens;
            }
        }
    }
}

/// The start of rows `first` and up; past `end`, of the last one again.
fn row_ptrs(w: &Matrix<'_>, first: usize, end: usize) -> RowPtrs {
    RowPtrs(std::array::from_fn(|lane| w.row((first + lane).min(end - 1)).as_ptr()))
}

/// Fills in the corrections, `[groups][tokens]`: where integer sums start so as to account for the zero point, or what
/// minima are multiplied with, as bits. Returns the columns of a group.
///
/// # Safety
/// The pointers of the activations are valid.
unsafe fn prepare(correction: Correction, cols: usize, x: &Activations, corrections: &mut [i32]) -> usize {
    let (Correction::Zero { group, .. } | Correction::Mins { group }) = correction else { return 1 };
    let n = x.n;
    // SAFETY: there are as many sums and scales, and nothing writes them.
    let (sums, scales) = unsafe {
        (
            std::slice::from_raw_parts(x.sums, cols / SUM_GROUP * n),
            std::slice::from_raw_parts(x.scales, cols / activations::GROUP * n),
        )
    };
    for (i, to) in corrections.chunks_exact_mut(n).take(cols / group).enumerate() {
        let column = i * group;
        let first = &sums[column / SUM_GROUP * n..][..n];
        let second = if group > SUM_GROUP { &sums[(column / SUM_GROUP + 1) * n..][..n] } else { &[] };
        to.copy_from_slice(first);
        for (to, second) in to.iter_mut().zip(second) {
            *to += second;
        }
        match correction {
            Correction::Zero { zero, .. } => to.iter_mut().for_each(|to| *to *= -zero),
            _ => {
                for (to, scale) in to.iter_mut().zip(&scales[column / activations::GROUP * n..]) {
                    *to = (*to as f32 * scale).to_bits() as i32;
                }
            }
        }
    }
    group
}

impl Dots<'_> {
    /// Adds a vector of products, of token `t` with rows `row` and up, to the output.
    ///
    /// # Safety
    /// The rows that are to be written are within the output and this thread's.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, s: S, t: usize, row: usize, product: S::Float) {
        let count = self.rows.saturating_sub(row);
        // SAFETY: the rows below `count` are within the output; the buffers have room for a vector.
        unsafe {
            let to = self.out.wrapping_add(t * self.out_stride + row);
            let before = match self.start {
                Start::Zero => None,
                Start::Bias(bias) => Some(bias.wrapping_add(row)),
                Start::Output => Some(to.cast_const()),
            };
            if count >= S::LANES {
                let sum = match before {
                    Some(before) => s.add(s.load_float(before), product),
                    None => product,
                };
                s.store_float(to, sum);
            } else {
                let mut products = [0.0; MAX_LANES];
                s.store_float(products.as_mut_ptr(), product);
                for (i, product) in products.into_iter().enumerate().take(count) {
                    to.add(i).write(before.map_or(0.0, |before| *before.add(i)) + product);
                }
            }
        }
    }
}
