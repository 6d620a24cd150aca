//! The matrix kernel of the floating-point types: as that of the quantized formats, with f32 weights in the tile and f32
//! activations. Quantized formats that no code unpacks are dequantized to such a tile.

use super::kernels::Dots;
use super::tile::{self, Tile};
use crate::quant::Block;
use crate::simd::lanes::{Lanes, MAX_LANES, Rows, unroll};
use std::marker::PhantomData;

/// The most columns of a slice: it takes as much memory as for quantized weights.
pub(super) const SLICE: usize = tile::SLICE / 4;

/// Weights that are multiplied as f32.
pub(super) trait FloatFormat {
    /// Columns that are converted together. Where they are more than [`SLICE`], a tile has fewer rows.
    const BLOCK: usize;

    /// Converts some columns, whole blocks, of a vector of rows to f32, transposed: `VECTORS` vectors from one column to the
    /// next.
    ///
    /// # Safety
    /// The rows hold the columns, and `to` is valid for as many vectors.
    unsafe fn unpack_rows<S: Lanes, const VECTORS: usize>(
        s: S,
        rows: Rows,
        column: usize,
        columns: usize,
        to: *mut f32,
    );
}

/// A floating-point type of one or two elements in 32 bits.
pub(super) trait Element {
    /// Elements in 32 bits.
    const IN_WORD: usize;

    /// Element `i` of each lane.
    fn element<S: Lanes>(s: S, word: S::Int, i: usize) -> S::Float;
}

pub(super) struct F32;

impl Element for F32 {
    const IN_WORD: usize = 1;

    #[inline(always)]
    fn element<S: Lanes>(s: S, word: S::Int, _: usize) -> S::Float {
        s.bits_to_float(word)
    }
}

pub(super) struct F16;

impl Element for F16 {
    const IN_WORD: usize = 2;

    #[inline(always)]
    fn element<S: Lanes>(s: S, word: S::Int, i: usize) -> S::Float {
        s.half_to_float(s.shr(word, 16 * i as u32))
    }
}

pub(super) struct Bf16;

impl Element for Bf16 {
    const IN_WORD: usize = 2;

    #[inline(always)]
    fn element<S: Lanes>(s: S, word: S::Int, i: usize) -> S::Float {
        s.bits_to_float(if i == 0 { s.shl(word, 16) } else { s.and(word, s.splat(0xffff_0000_u32 as i32)) })
    }
}

/// Converts some columns of `VECTORS` vectors of rows to f32, transposed.
///
/// # Safety
/// The rows hold the columns, and the columns fit the tile.
#[inline(always)]
pub(super) unsafe fn unpack<S: Lanes, F: FloatFormat, const VECTORS: usize>(
    s: S,
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &mut Tile,
) {
    for v in 0..VECTORS {
        let rows = Rows { first: rows.at(v * S::LANES, 0), ..rows };
        // SAFETY: the caller's promise.
        unsafe {
            let to = tile.q.as_mut_ptr().cast::<f32>().add(v * S::LANES);
            F::unpack_rows::<S, VECTORS>(s, rows, column, columns, to);
        }
    }
}

impl<E: Element> FloatFormat for E {
    const BLOCK: usize = 1;

    #[inline(always)]
    unsafe fn unpack_rows<S: Lanes, const VECTORS: usize>(
        s: S,
        rows: Rows,
        column: usize,
        columns: usize,
        to: *mut f32,
    ) {
        let (step, bytes) = (4 * Self::IN_WORD, 4 / Self::IN_WORD);
        let mut at = 0;
        // SAFETY: the caller's promise; no column past the last is read or written.
        unsafe {
            while at + step <= columns {
                for (word, v) in s.transpose(rows, (column + at) * bytes).into_iter().enumerate() {
                    for i in 0..Self::IN_WORD {
                        let column = at + word * Self::IN_WORD + i;
                        s.store_float(to.add(column * VECTORS * S::LANES), Self::element(s, v, i));
                    }
                }
                at += step;
            }
            while at < columns {
                let mut words = [0_i32; MAX_LANES];
                for (r, word) in words.iter_mut().enumerate().take(S::LANES) {
                    let from = rows.at(r, (column + at) * bytes);
                    *word = if bytes == 4 {
                        i32::from_le(from.cast::<i32>().read_unaligned())
                    } else {
                        i32::from(u16::from_le(from.cast::<u16>().read_unaligned()))
                    };
                }
                s.store_float(to.add(at * VECTORS * S::LANES), Self::element(s, s.load(words.as_ptr()), 0));
                at += 1;
            }
        }
    }
}

/// A quantized format as f32.
pub(super) struct Dequantized<B, const N: usize>(PhantomData<B>);

impl<B: Block<N>, const N: usize> FloatFormat for Dequantized<B, N> {
    const BLOCK: usize = N;

    #[inline(always)]
    unsafe fn unpack_rows<S: Lanes, const VECTORS: usize>(
        _: S,
        rows: Rows,
        column: usize,
        columns: usize,
        to: *mut f32,
    ) {
        let mut weights = [0.0; N];
        for r in 0..S::LANES {
            for first in (0..columns).step_by(N) {
                // SAFETY: the caller's promise: the block is within the rows, and its weights within the tile.
                unsafe {
                    let block = rows.at(r, (column + first) / N * size_of::<B>()).cast::<B>().read_unaligned();
                    block.dequantize(&mut weights);
                    for (i, &weight) in weights.iter().enumerate() {
                        *to.add((first + i) * VECTORS * S::LANES + r) = weight;
                    }
                }
            }
        }
    }
}

/// The most vectors that are multiplied at once, limited by the registers.
const AT_ONCE: usize = 2;

const fn at_once(vectors: usize) -> usize {
    if vectors < AT_ONCE { vectors } else { AT_ONCE }
}

/// Multiplies a tile of `VECTORS` vectors of rows with `TOKENS` tokens.
///
/// # Safety
/// The pointers are valid for the sizes in `dots`.
#[inline(always)]
pub(super) unsafe fn dots<S: Lanes, const VECTORS: usize, const TOKENS: usize>(s: S, dots: &Dots<'_>) {
    const { assert!(VECTORS == 1 || VECTORS.is_multiple_of(AT_ONCE)) };
    for first in (0..VECTORS).step_by(AT_ONCE) {
        // SAFETY: all offsets are within the tile and the activations, by the caller's promise.
        unsafe {
            let x: [*const f32; TOKENS] = std::array::from_fn(|t| dots.tokens.x.add(t * dots.tokens.x_stride).cast());
            let mut weights = dots.tile.q.as_ptr().cast::<f32>().add(first * S::LANES);
            let mut totals = [[s.splat_float(0.0); TOKENS]; AT_ONCE];
            for column in 0..dots.columns {
                let mut w = [s.splat_float(0.0); AT_ONCE];
                unroll!(v < at_once(VECTORS); 0 1, {
                    w[v] = s.load_float(weights.add(v * S::LANES));
                });
                unroll!(t < TOKENS, {
                    let x = s.splat_float(*x[t].add(column));
                    unroll!(v < at_once(VECTORS); 0 1, {
                        totals[v][t] = s.mul_add(w[v], x, totals[v][t]);
                    });
                });
                weights = weights.add(VECTORS * S::LANES);
            }
            unroll!(v < at_once(VECTORS); 0 1, {
                unroll!(t < TOKENS, {
                    dots.write(s, t, (first + v) * S::LANES, totals[v][t]);
                });
            });
        }
    }
}
