//! The kernels' instructions in vectors of 256 bits: eight rows per vector, four vectors per tile.
//! Activations come from the first-level cache for the later three of them. Plain AVX2 multiplies
//! bytes here, and AVX-VNNI in `avxvnni.rs`.

use super::float::{self, FloatFormat};
use super::kernels::{Direct, Dots, Kernels, Multiply};
use super::multiplier::{Dot, MAGIC, Multiplier};
use super::{kernels, tile};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Source};
use crate::simd::Avx2;
use crate::simd::lanes::Lanes;
use crate::simd::lanes::avx2::Eight;
use std::arch::x86_64::*;

/// An instruction set with the vectors of AVX2: how it multiplies bytes.
pub(super) trait ByteProducts: Eight {
    /// [`Multiplier::dots`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>);

    /// [`Multiplier::products`].
    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply];

    /// [`Multiplier::direct_products`].
    fn direct_byte_products<F: Format, R: Source<Self>>() -> &'static [Direct];
}

// What "SAFETY" says below: `self` proves that the processor has the instructions, and where there are pointers, the
// caller promises that they are valid for the whole vector; no instruction used needs alignment.
impl<T: ByteProducts> Multiplier for T {
    const INTERLEAVES: bool = true;
    const SUM_START: i32 = MAGIC.to_bits() as i32;

    fn quant_kernels<F: Format, R: Source<Self>>(is_few: bool) -> Kernels {
        if is_few { kernels::quant::<Self, F, R, 1>() } else { kernels::quant::<Self, F, R, 4>() }
    }

    fn float_kernels<F: FloatFormat>(is_few: bool) -> Kernels {
        if is_few || F::BLOCK > float::SLICE { kernels::float::<Self, F, 1>() } else { kernels::float::<Self, F, 4>() }
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

    fn direct_products<F: Format, R: Source<Self>>() -> &'static [Direct] {
        T::direct_byte_products::<F, R>()
    }

    #[inline(always)]
    fn offset(self, scale: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_mul_ps(scale, _mm256_set1_ps(-MAGIC)) }
    }

    #[inline(always)]
    fn scaled(self, sum: __m256i, scale: __m256, offset: __m256) -> __m256 {
        // The sum's bits are those of MAGIC plus the sum, so no conversion is needed. The products
        // are exact up to the one rounding.
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_fmadd_ps(_mm256_castsi256_ps(sum), scale, offset) }
    }

    #[inline(always)]
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { self.multiply::<K, VECTORS, TOKENS>(dots) }
    }
}

impl ByteProducts for Avx2 {
    #[inline(always)]
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the caller's promise.
        unsafe { tile::dots::<Self, K, VECTORS, 1, TOKENS>(self, dots) }
    }

    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::dots::<Self, K, VECTORS, 1>,
            kernels::dots::<Self, K, VECTORS, 2>,
            kernels::dots::<Self, K, VECTORS, 3>,
            kernels::dots::<Self, K, VECTORS, 4>,
        ]
    }

    fn direct_byte_products<F: Format, R: Source<Self>>() -> &'static [Direct] {
        &[kernels::direct::<Self, F, R, 1>, kernels::direct::<Self, F, R, 2>, kernels::direct::<Self, F, R, 3>]
    }
}

impl Dot for Avx2 {
    type Word = __m256i;
    /// 16-bit sums, two per lane.
    type Partial = __m256i;

    #[inline(always)]
    unsafe fn word(self, from: *const i32, i: usize) -> __m256i {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { self.splat(from.add(i).read_unaligned()) }
    }

    #[inline(always)]
    fn run(max: i32) -> usize {
        // A 16-bit sum takes two products of each word.
        1 << (i32::from(i16::MAX) / (2 * 127 * max)).ilog2()
    }

    #[inline(always)]
    fn begin(self, _: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn dot4(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)) }
    }

    #[inline(always)]
    fn dot4_wide(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // w * x = |w| * (x with the sign of w); |w| is at most 128 and x at least -127.
        // SAFETY: the processor has the instructions.
        unsafe { self.dot4(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) }
    }

    #[inline(always)]
    fn end(self, sum: __m256i, run: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(run, _mm256_set1_epi16(1))) }
    }
}
