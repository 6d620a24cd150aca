//! The kernels' instructions on AVX-512 with VNNI: 16 rows per vector.

use super::activations::ROUND;
use super::float::FloatFormat;
use super::formats::{Format, Kind};
use super::kernels::{Direct, Dots, Kernels, Multiply};
use super::lanes::{Dot, Lanes, MAGIC, Rows, no_partial_sums};
use super::layout::Source;
use super::{kernels, tile};
use crate::simd::Avx512;
use std::arch::x86_64::*;

// SAFETY comments below: `self` proves that the processor has the instructions. Where there are
// pointers, the caller promises that they are valid for the whole vector. None of the instructions
// needs alignment.
impl Lanes for Avx512 {
    const LANES: usize = 16;
    const WIDE_ZERO: i32 = 128;
    const SUM_START: i32 = MAGIC.to_bits() as i32;
    const ASKS_AHEAD: bool = true;
    const INTERLEAVES: bool = true;
    const STREAMS_ROWS: bool = true;
    type Int = __m512i;
    type Float = __m512;

    fn quant_kernels<F: Format, R: Source<Self>>(_: bool) -> Kernels {
        kernels::quant::<Self, F, R, 2>()
    }

    fn float_kernels<F: FloatFormat>(_: bool) -> Kernels {
        kernels::float::<Self, F, 2>()
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
    fn splat(self, value: i32) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn shl(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_sllv_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn shr(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_srlv_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn sar(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_srav_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn spread_bits(self, a: __m512i, nibble: u32) -> __m512i {
        // Copies the byte with the nibble to all bytes of its lane. Then each byte tests its own
        // bit.
        let byte = (nibble / 2) as i32 * 0x0101_0101;
        // SAFETY: the processor has the instructions.
        let lanes = unsafe { _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0) };
        let bits = if nibble.is_multiple_of(2) { 0x0804_0201_u32 } else { 0x8040_2010 };
        // SAFETY: the processor has the instructions.
        unsafe {
            let bytes = _mm512_shuffle_epi8(a, _mm512_or_si512(lanes, _mm512_set1_epi32(byte)));
            let set = _mm512_test_epi8_mask(bytes, _mm512_set1_epi32(bits as i32));
            _mm512_maskz_mov_epi8(set, _mm512_set1_epi8(16))
        }
    }

    #[inline(always)]
    fn wide(self, a: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_xor_si512(a, _mm512_set1_epi8(-128)) }
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_set1_ps(value) }
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
    fn to_float(self, a: __m512i) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn half_to_float(self, a: __m512i) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)) }
    }

    #[inline(always)]
    fn bits_to_float(self, a: __m512i) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_castsi512_ps(a) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32) -> __m512i {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm512_loadu_epi32(from) }
    }

    #[inline(always)]
    unsafe fn load_halves(self, from: *const u16) -> __m512i {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32, value: __m512i) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm512_storeu_epi32(to, value) }
    }

    #[inline(always)]
    unsafe fn load_float(self, from: *const f32) -> __m512 {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_float(self, to: *mut f32, value: __m512) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // Compilers gather uses of the intrinsic in one place, where they are too many at a time.
        // SAFETY: the processor has the instruction, which is a hint: no address faults.
        unsafe { std::arch::asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn transpose(self, rows: Rows, offset: usize) -> [__m512i; 4] {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe {
            let [a, b, c, d] = load_rows(rows, offset);
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab_low, cd_low),
                _mm512_unpackhi_epi64(ab_low, cd_low),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
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

/// Vector `i` holds 16 bytes of each of the rows `i`, `i + 4`, `i + 8` and `i + 12`.
///
/// # Safety
/// As for [`Lanes::transpose`]; the processor has AVX-512.
#[inline(always)]
unsafe fn load_rows(rows: Rows, offset: usize) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [load_four(rows, 0, offset), load_four(rows, 1, offset), load_four(rows, 2, offset), load_four(rows, 3, offset)]
    }
}

#[inline(always)]
unsafe fn load_four(rows: Rows, first: usize, offset: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let v = _mm512_castsi128_si512(_mm_loadu_si128(rows.at(first, offset).cast()));
        let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(rows.at(first + 4, offset).cast()));
        let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(rows.at(first + 8, offset).cast()));
        _mm512_inserti32x4::<3>(v, _mm_loadu_si128(rows.at(first + 12, offset).cast()))
    }
}
