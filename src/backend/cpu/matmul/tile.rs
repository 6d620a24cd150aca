//! The matrix kernel of all quantized formats: unpacking to a tile, and multiplying the tile with a
//! few tokens.

use super::activations::{self, SUM_GROUP};
use super::kernels::Dots;
use super::multiplier::Dot;
use super::prefetch::LINE;
use super::schedule::TILE_ROWS;
use crate::quant::Format;
use crate::quant::unpack::{Kind, Sink, Source};
use crate::simd::lanes::{Lanes, Rows, unroll};

/// The most columns of a slice: a multiple of every format's block.
pub(super) const SLICE: usize = 512;

/// An unpacked slice of some rows: about half of a first-level cache.
#[repr(C, align(64))]
pub(super) struct Tile {
    /// `[columns / 4][rows]`, four bytes per element; or f32 weights, `[columns][rows]`.
    pub(super) q: [i32; SLICE / 4 * TILE_ROWS],
    /// `[groups][rows]`.
    pub(super) scales: [f32; SLICE / SUM_GROUP * TILE_ROWS],
    /// `[groups][rows]`.
    pub(super) mins: [f32; SLICE / SUM_GROUP * TILE_ROWS],
}

impl Tile {
    pub(super) const ZERO: Self = Self {
        q: [0; SLICE / 4 * TILE_ROWS],
        scales: [0.0; SLICE / SUM_GROUP * TILE_ROWS],
        mins: [0.0; SLICE / SUM_GROUP * TILE_ROWS],
    };
}

/// Where a vector of rows unpacks to: arrays whose elements are `VECTORS` vectors of rows, this one among them.
struct Unpacked<S, const VECTORS: usize> {
    simd: S,
    /// Elements of four bytes: weights `4 * i ..` of the rows.
    q: *mut i32,
    /// Elements for groups.
    scales: *mut f32,
    mins: *mut f32,
}

impl<S: Lanes, const VECTORS: usize> Unpacked<S, VECTORS> {
    #[inline(always)]
    fn new(simd: S, q: *mut i32, scales: *mut f32, mins: *mut f32) -> Self {
        Self { simd, q, scales, mins }
    }
}

impl<S: Lanes, const VECTORS: usize> Sink<S> for Unpacked<S, VECTORS> {
    #[inline(always)]
    unsafe fn begin(&mut self, _: usize) {}

    #[inline(always)]
    unsafe fn q(&mut self, i: usize, value: S::Int) {
        // SAFETY: the caller's promise that the block can be written, of which `i` is a part.
        unsafe { self.simd.store(self.q.add(i * VECTORS * S::LANES), value) }
    }

    #[inline(always)]
    unsafe fn end(&mut self, group: usize, scale: S::Float, min: Option<S::Float>) {
        // SAFETY: as above.
        unsafe {
            self.simd.store_float(self.scales.add(group * VECTORS * S::LANES), scale);
            if let Some(min) = min {
                self.simd.store_float(self.mins.add(group * VECTORS * S::LANES), min);
            }
        }
    }
}

/// Unpacks `columns` columns from `column` on, whole blocks, of `VECTORS` vectors of rows.
///
/// # Safety
/// The rows hold the columns, and the columns fit the tile.
#[inline(always)]
pub(super) unsafe fn unpack<S: Lanes, F: Format, R: Source<S>, const VECTORS: usize>(
    s: S,
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &mut Tile,
) {
    let (block, block_bytes) = (F::TYPE.block_len(), F::TYPE.block_bytes());
    for v in 0..VECTORS {
        let rows = Rows { first: rows.at(v * S::LANES, 0), ..rows };
        let mut at = 0;
        while at < columns {
            let index = |columns: usize| (at / columns * VECTORS + v) * S::LANES;
            if !R::INTERLEAVED {
                prefetch(s, rows, (column + at) / block * block_bytes, block_bytes);
            }
            // SAFETY: the block is within the rows and within the tile.
            unsafe {
                let mut out = Unpacked::<S, VECTORS>::new(
                    s,
                    tile.q.as_mut_ptr().add(index(4)),
                    tile.scales.as_mut_ptr().add(index(F::Kind::GROUP)),
                    tile.mins.as_mut_ptr().add(index(F::Kind::GROUP)),
                );
                F::unpack(s, R::new(rows), (column + at) / block * block_bytes, &mut out);
            }
            at += block;
        }
    }
}

/// Prefetches a part of the rows, some blocks after the one at `offset`. Processors do so by
/// themselves where rows are read in steps, but blocks of 256 weights are not read from beginning
/// to end.
#[inline(always)]
fn prefetch<S: Lanes>(s: S, rows: Rows, offset: usize, block_bytes: usize) {
    const BLOCKS_AHEAD: usize = 4;
    if block_bytes >= LINE {
        for r in 0..S::LANES {
            for line in (0..block_bytes).step_by(LINE) {
                s.prefetch(rows.at(r, offset + BLOCKS_AHEAD * block_bytes + line));
            }
        }
    }
}

/// Multiplies a tile of `VECTORS` vectors of rows with `TOKENS` tokens. It works on `AT_ONCE`
/// vectors at a time, a divisor of `VECTORS` that the registers limit.
///
/// # Safety
/// The pointers are valid for the sizes in `dots`.
#[inline(always)]
pub(super) unsafe fn dots<S: Dot, K: Kind, const VECTORS: usize, const AT_ONCE: usize, const TOKENS: usize>(
    s: S,
    dots: &Dots<'_>,
) {
    for first in (0..VECTORS).step_by(AT_ONCE) {
        // SAFETY: the caller's promise.
        unsafe { dots_of::<S, K, VECTORS, AT_ONCE, TOKENS>(s, dots, first * S::LANES) }
    }
}

/// [`dots`] for the rows from `first` on.
///
/// # Safety
/// As for that function.
#[inline(always)]
unsafe fn dots_of<S: Dot, K: Kind, const VECTORS: usize, const AT_ONCE: usize, const TOKENS: usize>(
    s: S,
    dots: &Dots<'_>,
    first: usize,
) {
    const WORDS_AT_ONCE: usize = 4;
    let group_stride = dots.tokens.group_stride;
    let rows = VECTORS * S::LANES;
    let run = S::run(K::MAX).min(K::GROUP / 4);
    // SAFETY: all offsets are within the tile and the activations, by the caller's promise.
    unsafe {
        let mut x: [*const i32; TOKENS] = std::array::from_fn(|t| dots.tokens.x.add(t * dots.tokens.x_stride).cast());
        let mut q = dots.tile.q.as_ptr().add(first);
        let mut scales = dots.tile.scales.as_ptr().add(first);
        let mut mins = dots.tile.mins.as_ptr().add(first);
        let mut x_scales = dots.tokens.scales;
        let mut corrections = dots.tokens.corrections;
        let mut totals = [[s.splat_float(0.0); TOKENS]; AT_ONCE];
        let mut column = 0;
        let mut ahead = dots.ahead;
        while column < dots.columns {
            if S::ASKS_AHEAD {
                for _ in 0..dots.ahead_lines {
                    s.prefetch(ahead);
                    ahead = ahead.wrapping_add(LINE);
                }
            }
            let mut sums = [[s.splat(S::SUM_START); TOKENS]; AT_ONCE];
            if K::HAS_ZERO {
                unroll!(t < TOKENS, {
                    let start = s.splat(*corrections.add(t));
                    unroll!(v < AT_ONCE, {
                        sums[v][t] = start;
                    });
                });
            }
            let mut partial = [[s.begin(sums[0][0]); TOKENS]; AT_ONCE];
            unroll!(piece < K::GROUP / 4 / WORDS_AT_ONCE; 0 1, {
                unroll!(word < WORDS_AT_ONCE; 0 1 2 3, {
                    let at = piece * WORDS_AT_ONCE + word;
                    if at.is_multiple_of(run) {
                        unroll!(t < TOKENS, {
                            unroll!(v < AT_ONCE, {
                                partial[v][t] = s.begin(sums[v][t]);
                            });
                        });
                    }
                    let mut w = [s.splat(0); AT_ONCE];
                    unroll!(v < AT_ONCE, {
                        w[v] = s.load(q.add(word * rows + v * S::LANES));
                    });
                    unroll!(t < TOKENS, {
                        let x = s.word(x[t], word);
                        unroll!(v < AT_ONCE, {
                            let sum = partial[v][t];
                            partial[v][t] = if K::WIDE { s.dot4_wide(sum, w[v], x) } else { s.dot4(sum, w[v], x) };
                        });
                    });
                    if (at + 1).is_multiple_of(run) {
                        unroll!(t < TOKENS, {
                            unroll!(v < AT_ONCE, {
                                sums[v][t] = s.end(sums[v][t], partial[v][t]);
                            });
                        });
                    }
                });
                q = q.add(WORDS_AT_ONCE * rows);
                unroll!(t < TOKENS, {
                    x[t] = x[t].add(WORDS_AT_ONCE);
                });
            });
            unroll!(v < AT_ONCE, {
                let scale = s.load_float(scales.add(v * S::LANES));
                let offset = s.offset(scale);
                unroll!(t < TOKENS, {
                    let scaled = s.scaled(sums[v][t], scale, offset);
                    totals[v][t] = s.mul_add(scaled, s.splat_float(*x_scales.add(t)), totals[v][t]);
                });
            });
            if K::MINS {
                unroll!(t < TOKENS, {
                    let x_sum = s.splat_float(f32::from_bits(*corrections.add(t) as u32));
                    unroll!(v < AT_ONCE, {
                        totals[v][t] = s.mul_add(s.load_float(mins.add(v * S::LANES)), x_sum, totals[v][t]);
                    });
                });
            }
            scales = scales.add(rows);
            mins = mins.add(rows);
            corrections = corrections.add(group_stride);
            column += K::GROUP;
            if K::GROUP == activations::GROUP || column % activations::GROUP == 0 {
                x_scales = x_scales.add(group_stride);
            }
        }
        unroll!(v < AT_ONCE, {
            unroll!(t < TOKENS, {
                dots.write(s, t, first + v * S::LANES, totals[v][t]);
            });
        });
    }
}
