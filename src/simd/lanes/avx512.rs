//! Lanes of AVX-512: 16 rows in a vector.

use super::{Lanes, Rows};
use crate::simd::Avx512;
use std::arch::x86_64::*;

// What "SAFETY" says below: `self` proves that the processor has the instructions, and where there are pointers, the
// caller promises that they are valid for the whole vector; no instruction used needs alignment.
impl Lanes for Avx512 {
    const LANES: usize = 16;
    const WIDE_ZERO: i32 = 128;
    type Int = __m512i;
    type Float = __m512;

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
        // The byte that holds the nibble to all bytes of its lane; then each byte tests a bit of its own.
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
        // Not the intrinsic: compilers gather such requests in one place, where they are too many at a time.
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
