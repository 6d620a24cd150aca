//! The kernels' instructions on AVX-512 with VNNI: 16 rows per vector.

use super::activations::ROUND;
use super::float::{self, FloatFormat};
use super::kernels::{Direct, Dots, Kernels, Multiply};
use super::multiplier::{Dot, MAGIC, Multiplier, no_partial_sums};
use super::{kernels, tile};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Source};
use crate::simd::Avx512;
use crate::simd::lanes::Lanes;
use std::arch::x86_64::*;

// What "SAFETY" says below: `self` proves that the processor has the instructions, and where there are pointers, the
// caller promises that they are valid for the whole vector; no instruction used needs alignment.
impl Multiplier for Avx512 {
    const SUM_START: i32 = MAGIC.to_bits() as i32;
    const ASKS_AHEAD: bool = true;
    const INTERLEAVES: bool = true;
    const STREAMS_ROWS: bool = true;

    fn quant_kernels<F: Format, R: Source<Self>>(_: bool) -> Kernels {
        kernels::quant::<Self, F, R, 2>()
    }

    fn float_kernels<F: FloatFormat>(_: bool) -> Kernels {
        if F::BLOCK > float::SLICE { kernels::float::<Self, F, 1>() } else { kernels::float::<Self, F, 2>() }
    }

    fn products<K: Kind, const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::dots::<Self, K, VECTORS, 1>,
            kernels::dots::<Self, K, VECTORS, 2>,
            kernels::dots::<Self, K, VECTORS, 3>,
            kernels::dots::<Self, K, VECTORS, 4>,
            kernels::dots::<Self, K, VECTORS, 5>,
            kernels::dots::<Self, K, VECTORS, 6>,
        ]
    }

    fn float_products<const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::float_dots::<Self, VECTORS, 1>,
            kernels::float_dots::<Self, VECTORS, 2>,
            kernels::float_dots::<Self, VECTORS, 3>,
            kernels::float_dots::<Self, VECTORS, 4>,
            kernels::float_dots::<Self, VECTORS, 5>,
            kernels::float_dots::<Self, VECTORS, 6>,
        ]
    }

    fn direct_products<F: Format, R: Source<Self>>() -> &'static [Direct] {
        &[
            kernels::direct::<Self, F, R, 1>,
            kernels::direct::<Self, F, R, 2>,
            kernels::direct::<Self, F, R, 3>,
            kernels::direct::<Self, F, R, 4>,
        ]
    }

    #[inline(always)]
    fn round(self, x: &[f32; 32], by: f32, q: &mut [i8; 32]) -> [i32; 2] {
        // Written by hand, because compilers take the vectors apart for the sums.
        // SAFETY: the processor has the instructions, and both arrays have two halves of 16.
        let [low, high] = [0, 16].map(|half| unsafe {
            let x = _mm512_loadu_ps(x.as_ptr().add(half));
            // Not fused: all instruction sets round twice.
            let sum = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(by)), _mm512_set1_ps(ROUND));
            let rounded = _mm512_cvtepi32_epi8(_mm512_castps_si512(sum));
            _mm_storeu_si128(q.as_mut_ptr().add(half).cast(), rounded);
            // Only unsigned bytes can be summed: each is 128 too large.
            let eights = _mm_sad_epu8(_mm_xor_si128(rounded, _mm_set1_epi8(-128)), _mm_setzero_si128());
            _mm_cvtsi128_si32(_mm_add_epi32(eights, _mm_unpackhi_epi64(eights, eights))) - 16 * 128
        });
        [low, high]
    }

    #[inline(always)]
    fn offset(self, scale: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_mul_ps(scale, _mm512_set1_ps(-MAGIC)) }
    }

    #[inline(always)]
    fn scaled(self, sum: __m512i, scale: __m512, offset: __m512) -> __m512 {
        // The sum's bits are those of MAGIC plus the sum, so no conversion is needed. The products
        // are exact up to the one rounding.
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(sum), scale, offset) }
    }

    #[inline(always)]
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { tile::dots::<Self, K, VECTORS, VECTORS, TOKENS>(self, dots) }
    }
}

impl Dot for Avx512 {
    type Word = __m512i;

    no_partial_sums!();

    #[inline(always)]
    unsafe fn word(self, from: *const i32, i: usize) -> __m512i {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { self.splat(from.add(i).read_unaligned()) }
    }

    #[inline(always)]
    fn dot4(self, sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }

    #[inline(always)]
    fn dot4_wide(self, sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }
}
