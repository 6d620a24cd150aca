//! The kernel of the quantized formats for products of 8-bit matrices: `smmla` multiplies two rows
//! of eight bytes with two tokens, and one vector holds the four sums.
//!
//! For 16 columns of four rows, a tile has these elements: columns 0..8 of rows 0 and 1, the same
//! of rows 2 and 3, then columns 8..16 of both. The last of an odd number of tokens is its own
//! neighbour, so that all numbers of tokens are computed alike.

use super::activations;
use super::kernels::Dots;
use super::multiplier::Multiplier;
use crate::quant::unpack::Kind;
use crate::simd::I8mm;
use crate::simd::lanes::neon::halves;
use crate::simd::lanes::{Lanes, unroll};
use std::arch::aarch64::*;
use std::arch::asm;

/// Columns to multiply between two advances of the pointers.
const COLUMNS_AT_ONCE: usize = 16;
/// The most pairs of tokens.
const MAX_PAIRS: usize = 3;

/// Two rows of eight bytes in `w` times two tokens in `x`: row 0 with both tokens, then row 1. The compiler's own function
/// for it is not stable yet.
///
/// # Safety
/// This is inlined into a function that is compiled for the instruction.
#[inline(always)]
unsafe fn smmla(_: I8mm, mut sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    // SAFETY: the value of `I8mm` proves that the processor has the instruction, which works on
    // registers only.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The numbers of a pair of tokens, twice. Without a second token, only those of the first.
///
/// # Safety
/// `of` is valid for reads of as many elements.
#[inline(always)]
unsafe fn pair(of: *const i32, second: bool) -> int32x4_t {
    // SAFETY: the caller's promise, and instructions of every processor with NEON.
    unsafe {
        if second {
            vreinterpretq_s32_s64(vdupq_n_s64(of.cast::<i64>().read_unaligned()))
        } else {
            vdupq_n_s32(of.read_unaligned())
        }
    }
}

/// [`Multiplier::dots`].
///
/// # Safety
/// As for that function.
#[inline(always)]
pub(super) unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(s: I8mm, dots: &Dots<'_>) {
    const { assert!(TOKENS <= 2 * MAX_PAIRS) };
    let rows = VECTORS * I8mm::LANES;
    let zero = s.splat_float(0.0);
    // SAFETY: all offsets are within the tile and the activations, by the caller's promise.
    unsafe {
        let mut x: [*const u8; TOKENS] = [dots.tokens.x; TOKENS];
        unroll!(t < TOKENS, {
            x[t] = dots.tokens.x.add(t * dots.tokens.x_stride);
        });
        let mut q = dots.tile.q.as_ptr();
        let mut scales = dots.tile.scales.as_ptr();
        let mut mins = dots.tile.mins.as_ptr();
        let mut x_scales = dots.tokens.scales;
        let mut corrections = dots.tokens.corrections;
        // For each vector of rows: rows 0 and 1, then rows 2 and 3.
        let mut totals = [[[zero; MAX_PAIRS]; 2]; VECTORS];
        let mut column = 0;
        while column < dots.columns {
            let mut sums = [[[s.splat(0); MAX_PAIRS]; 2]; VECTORS];
            if K::HAS_ZERO {
                unroll!(p < TOKENS.div_ceil(2); 0 1 2, {
                    let start = pair(corrections.add(2 * p), 2 * p + 1 < TOKENS);
                    unroll!(v < VECTORS, {
                        (sums[v][0][p], sums[v][1][p]) = (start, start);
                    });
                });
            }
            for _ in 0..K::GROUP / COLUMNS_AT_ONCE {
                let mut words = [(s.splat(0), s.splat(0)); MAX_PAIRS];
                unroll!(p < TOKENS.div_ceil(2); 0 1 2, {
                    let first = s.load(x[2 * p].cast());
                    let second = if 2 * p + 1 < TOKENS { s.load(x[2 * p + 1].cast()) } else { first };
                    words[p] = halves(first, second);
                });
                unroll!(element < 4; 0 1 2 3, {
                    unroll!(v < VECTORS, {
                        let w = s.load(q.add(element * rows + v * I8mm::LANES));
                        unroll!(p < TOKENS.div_ceil(2); 0 1 2, {
                            let x = if element < 2 { words[p].0 } else { words[p].1 };
                            sums[v][element % 2][p] = smmla(s, sums[v][element % 2][p], w, x);
                        });
                    });
                });
                q = q.add(4 * rows);
                unroll!(t < TOKENS, {
                    x[t] = x[t].add(COLUMNS_AT_ONCE);
                });
            }
            let mut factors = [(zero, zero); MAX_PAIRS];
            unroll!(p < TOKENS.div_ceil(2); 0 1 2, {
                let second = 2 * p + 1 < TOKENS;
                factors[p].0 = s.bits_to_float(pair(x_scales.add(2 * p).cast(), second));
                if K::MINS {
                    factors[p].1 = s.bits_to_float(pair(corrections.add(2 * p), second));
                }
            });
            unroll!(v < VECTORS, {
                let scale = twice(s.load_float(scales.add(v * I8mm::LANES)));
                let min = if K::MINS { twice(s.load_float(mins.add(v * I8mm::LANES))) } else { [zero; 2] };
                unroll!(half < 2; 0 1, {
                    unroll!(p < TOKENS.div_ceil(2); 0 1 2, {
                        let scaled = s.scaled(sums[v][half][p], scale[half], zero);
                        let mut total = s.mul_add(scaled, factors[p].0, totals[v][half][p]);
                        if K::MINS {
                            total = s.mul_add(min[half], factors[p].1, total);
                        }
                        totals[v][half][p] = total;
                    });
                });
            });
            scales = scales.add(rows);
            mins = mins.add(rows);
            corrections = corrections.add(dots.tokens.group_stride);
            column += K::GROUP;
            if K::GROUP == activations::GROUP || column % activations::GROUP == 0 {
                x_scales = x_scales.add(dots.tokens.group_stride);
            }
        }
        unroll!(v < VECTORS, {
            unroll!(p < TOKENS.div_ceil(2); 0 1 2, {
                let [low, high] = [totals[v][0][p], totals[v][1][p]];
                dots.write(s, 2 * p, v * I8mm::LANES, vuzp1q_f32(low, high));
                if 2 * p + 1 < TOKENS {
                    dots.write(s, 2 * p + 1, v * I8mm::LANES, vuzp2q_f32(low, high));
                }
            });
        });
    }
}

/// Each lane twice: the first two lanes, then the others.
#[inline(always)]
fn twice(v: float32x4_t) -> [float32x4_t; 2] {
    // SAFETY: instructions of every processor with NEON, which work on registers only.
    unsafe { [vzip1q_f32(v, v), vzip2q_f32(v, v)] }
}
