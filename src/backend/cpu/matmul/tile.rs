//! The matrix kernel of all quantized formats: unpacking to a tile, and the tile times a few tokens.

use super::activations::{self, SUM_GROUP};
use super::driver::{Dots, TILE_ROWS};
use super::formats::{Format, Kind, Unpacked};
use super::simd::{Dot, Rows, Simd, unroll};

/// Columns of a slice at most: a multiple of every format's block.
pub(super) const SLICE: usize = 512;

/// A slice of some rows, unpacked: about half of a first-level cache.
#[repr(C, align(64))]
pub(super) struct Tile {
    /// `[columns / 4][rows]`, four bytes an element; or f32 weights, `[columns][rows]`.
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

/// Unpacks `columns` columns from `column` on, whole blocks, of `VECTORS` vectors of rows.
///
/// # Safety
/// The rows hold the columns, and they are no more than fit the tile.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, F: Format, const VECTORS: usize>(
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
            // SAFETY: the block is within the rows and within the tile.
            unsafe {
                let out = Unpacked::<S, VECTORS>::new(
                    s,
                    tile.q.as_mut_ptr().add(index(4)),
                    tile.scales.as_mut_ptr().add(index(F::Kind::GROUP)),
                    tile.mins.as_mut_ptr().add(index(F::Kind::GROUP)),
                );
                F::unpack(s, rows, (column + at) / block * block_bytes, out);
            }
            at += block;
        }
    }
}

/// Multiplies a tile with `TOKENS` tokens.
///
/// # Safety
/// The pointers are valid for the sizes in `dots`.
#[inline(always)]
pub(super) unsafe fn dots<S: Dot, K: Kind, const VECTORS: usize, const TOKENS: usize>(s: S, dots: &Dots<'_>) {
    const WORDS_AT_ONCE: usize = 4;
    let n = dots.n;
    let rows = VECTORS * S::LANES;
    // SAFETY: all offsets are within the tile and the activations, by the caller's promise.
    unsafe {
        let mut x: [*const i32; TOKENS] = std::array::from_fn(|t| dots.x.add(t * dots.x_stride).cast());
        let mut q = dots.tile.q.as_ptr();
        let mut scales = dots.tile.scales.as_ptr();
        let mut mins = dots.tile.mins.as_ptr();
        let mut x_scales = dots.scales;
        let mut corrections = dots.corrections;
        let mut totals = [[s.splat_float(0.0); TOKENS]; VECTORS];
        let mut column = 0;
        while column < dots.columns {
            let mut sums = [[s.splat(S::SUM_START); TOKENS]; VECTORS];
            if K::HAS_ZERO {
                unroll!(t < TOKENS, {
                    let start = s.splat(*corrections.add(t));
                    unroll!(v < VECTORS, {
                        sums[v][t] = start;
                    });
                });
            }
            for _ in 0..K::GROUP / 4 / WORDS_AT_ONCE {
                unroll!(word < WORDS_AT_ONCE, {
                    let mut w = [s.splat(0); VECTORS];
                    unroll!(v < VECTORS, {
                        w[v] = s.load(q.add(word * rows + v * S::LANES));
                    });
                    unroll!(t < TOKENS, {
                        let x = s.word(x[t], word);
                        unroll!(v < VECTORS, {
                            sums[v][t] =
                                if K::WIDE { s.dot4_wide(sums[v][t], w[v], x) } else { s.dot4(sums[v][t], w[v], x) };
                        });
                    });
                });
                q = q.add(WORDS_AT_ONCE * rows);
                unroll!(t < TOKENS, {
                    x[t] = x[t].add(WORDS_AT_ONCE);
                });
            }
            unroll!(v < VECTORS, {
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
                    unroll!(v < VECTORS, {
                        totals[v][t] = s.mul_add(s.load_float(mins.add(v * S::LANES)), x_sum, totals[v][t]);
                    });
                });
            }
            scales = scales.add(rows);
            mins = mins.add(rows);
            corrections = corrections.add(n);
            column += K::GROUP;
            if K::GROUP == activations::GROUP || column % activations::GROUP == 0 {
                x_scales = x_scales.add(n);
            }
        }
        unroll!(v < VECTORS, {
            unroll!(t < TOKENS, {
                dots.write(s, t, v * S::LANES, totals[v][t]);
            });
        });
    }
}
