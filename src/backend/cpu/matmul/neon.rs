//! The kernels' instructions on 64-bit ARM: four rows per vector. Plain NEON, `sdot`, or `smmla`
//! ([`mmla`]) multiplies bytes; all else is the same. Bytes are signed on both sides, so they need
//! no offset.

use super::float::FloatFormat;
use super::kernels::{Dots, Kernels, Multiply};
use super::multiplier::{Dot, Multiplier, no_partial_sums};
use super::{kernels, mmla, tile};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Source};
use crate::simd::lanes::Lanes;
use crate::simd::lanes::neon::Four;
use crate::simd::{Dotprod, I8mm, Neon};
use std::arch::aarch64::*;
use std::arch::asm;

/// An instruction set with the vectors of NEON: how it multiplies bytes.
pub(super) trait ByteProducts: Four {
    /// [`Multiplier::dots`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>);

    /// [`Multiplier::products`].
    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply];
}

// What "SAFETY" says below: `self` proves that the processor has the instructions, and where there are pointers,
// the caller promises that they are valid for the whole vector; no read or write needs alignment.
impl<T: ByteProducts> Multiplier for T {
    const SUM_START: i32 = 0;

    fn quant_kernels<F: Format, R: Source<Self>>(_: bool) -> Kernels {
        kernels::quant::<Self, F, R, 2>()
    }

    fn float_kernels<F: FloatFormat>(_: bool) -> Kernels {
        kernels::float::<Self, F, 2>()
    }

    fn products<K: Kind, const VECTORS: usize>() -> &'static [Multiply] {
        T::byte_products::<K, VECTORS>()
    }

    fn float_products<const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::float_dots::<Self, VECTORS, 1>,
            kernels::float_dots::<Self, VECTORS, 2>,
            kernels::float_dots::<Self, VECTORS, 3>,
            kernels::float_dots::<Self, VECTORS, 4>,
        ]
    }

    #[inline(always)]
    fn offset(self, scale: float32x4_t) -> float32x4_t {
        scale
    }

    #[inline(always)]
    fn scaled(self, sum: int32x4_t, scale: float32x4_t, _: float32x4_t) -> float32x4_t {
        self.mul(self.to_float(sum), scale)
    }

    #[inline(always)]
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the caller's promise.
        unsafe { self.multiply::<K, VECTORS, TOKENS>(dots) }
    }
}

impl ByteProducts for Neon {
    #[inline(always)]
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the caller's promise.
        unsafe { tile::dots::<Self, K, VECTORS, VECTORS, TOKENS>(self, dots) }
    }

    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::dots::<Self, K, VECTORS, 1>,
            kernels::dots::<Self, K, VECTORS, 2>,
            kernels::dots::<Self, K, VECTORS, 3>,
            kernels::dots::<Self, K, VECTORS, 4>,
        ]
    }
}

// SAFETY comments below: `self` proves that the processor has the instructions. The caller promises
// that `x` can be read, which needs no alignment.
impl Dot for Neon {
    type Word = int32x4_t;
    /// The products of the first two rows and of the other two, each in its own lane.
    type Partial = (int16x8_t, int16x8_t);

    #[inline(always)]
    unsafe fn word(self, from: *const i32, i: usize) -> int32x4_t {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { self.splat(from.add(i).read_unaligned()) }
    }

    #[inline(always)]
    fn run(max: i32) -> usize {
        // The two 16-bit sums that are added at the end each have one product of each word.
        1 << (i32::from(i16::MAX) / (2 * 127 * max)).ilog2()
    }

    #[inline(always)]
    fn begin(self, _: int32x4_t) -> (int16x8_t, int16x8_t) {
        // SAFETY: the processor has the instructions.
        unsafe { (vdupq_n_s16(0), vdupq_n_s16(0)) }
    }

    #[inline(always)]
    fn dot4(self, (low, high): Self::Partial, w: int32x4_t, x: int32x4_t) -> Self::Partial {
        // SAFETY: the processor has the instructions.
        unsafe {
            let (w, x) = (vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
            (vmlal_s8(low, vget_low_s8(w), vget_low_s8(x)), vmlal_high_s8(high, w, x))
        }
    }

    #[inline(always)]
    fn dot4_wide(self, sum: Self::Partial, w: int32x4_t, x: int32x4_t) -> Self::Partial {
        self.dot4(sum, w, x)
    }

    #[inline(always)]
    fn end(self, sum: int32x4_t, (low, high): Self::Partial) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vpadalq_s16(sum, vpaddq_s16(low, high)) }
    }
}

impl ByteProducts for Dotprod {
    #[inline(always)]
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the caller's promise.
        unsafe { tile::dots::<Self, K, VECTORS, VECTORS, TOKENS>(self, dots) }
    }

    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::dots::<Self, K, VECTORS, 1>,
            kernels::dots::<Self, K, VECTORS, 2>,
            kernels::dots::<Self, K, VECTORS, 3>,
            kernels::dots::<Self, K, VECTORS, 4>,
        ]
    }
}

impl Dot for Dotprod {
    /// 16 activations, and the index of a word of them.
    type Word = (int32x4_t, usize);

    no_partial_sums!();

    #[inline(always)]
    unsafe fn word(self, from: *const i32, i: usize) -> (int32x4_t, usize) {
        // Compilers read only once for all four words.
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { (self.load(from), i) }
    }

    #[inline(always)]
    fn dot4(self, sum: int32x4_t, w: int32x4_t, (x, word): (int32x4_t, usize)) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe {
            match word {
                0 => sdot::<0>(sum, w, x),
                1 => sdot::<1>(sum, w, x),
                2 => sdot::<2>(sum, w, x),
                _ => sdot::<3>(sum, w, x),
            }
        }
    }

    #[inline(always)]
    fn dot4_wide(self, sum: int32x4_t, w: int32x4_t, x: (int32x4_t, usize)) -> int32x4_t {
        self.dot4(sum, w, x)
    }
}

/// `sum` plus, in each lane, the products of the four signed bytes of `w` with those in lane `WORD`
/// of `x`. The standard library's function for this is not stable yet.
///
/// # Safety
/// The processor has the dot products, and this is inlined into a function that is compiled for
/// them.
#[inline(always)]
unsafe fn sdot<const WORD: usize>(mut sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's promise; it works on registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{word}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            word = const WORD,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl ByteProducts for I8mm {
    #[inline(always)]
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the caller's promise.
        unsafe { mmla::dots::<K, VECTORS, TOKENS>(self, dots) }
    }

    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::dots::<Self, K, VECTORS, 1>,
            kernels::dots::<Self, K, VECTORS, 2>,
            kernels::dots::<Self, K, VECTORS, 3>,
            kernels::dots::<Self, K, VECTORS, 4>,
            kernels::dots::<Self, K, VECTORS, 5>,
            kernels::dots::<Self, K, VECTORS, 6>,
        ]
    }
}
