//! Lanes of AVX2: eight rows in a vector.

use super::{Lanes, Rows};
use crate::simd::{Avx2, Token};
use std::arch::x86_64::*;

/// An instruction set with the vectors of AVX2: in which form its products of bytes take weights.
pub(crate) trait Eight: Token {
    /// [`Lanes::WIDE_ZERO`].
    const WIDE_ZERO: i32;

    /// [`Lanes::wide`].
    fn wide(self, a: __m256i) -> __m256i;
}

impl Eight for Avx2 {
    const WIDE_ZERO: i32 = 0;

    #[inline(always)]
    fn wide(self, a: __m256i) -> __m256i {
        a
    }
}

// What "SAFETY" says below: `self` proves that the processor has the instructions, and where there are pointers, the
// caller promises that they are valid for the whole vector; no instruction used needs alignment.
impl<T: Eight> Lanes for T {
    const LANES: usize = 8;
    const WIDE_ZERO: i32 = T::WIDE_ZERO;
    type Int = __m256i;
    type Float = __m256;

    #[inline(always)]
    fn splat(self, value: i32) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    fn shl(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_sllv_epi32(a, _mm256_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn shr(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_srlv_epi32(a, _mm256_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn sar(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_srav_epi32(a, _mm256_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn spread_bits(self, a: __m256i, nibble: u32) -> __m256i {
        // The byte that holds the nibble to all bytes of its lane; then each byte tests a bit of its own.
        let byte = (nibble / 2) as i32 * 0x0101_0101;
        let bits = if nibble.is_multiple_of(2) { 0x0804_0201_u32 } else { 0x8040_2010 };
        // SAFETY: the processor has the instructions.
        unsafe {
            let lanes =
                _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
            let bytes = _mm256_shuffle_epi8(a, _mm256_or_si256(lanes, _mm256_set1_epi32(byte)));
            let bits = _mm256_set1_epi32(bits as i32);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
            _mm256_and_si256(set, _mm256_set1_epi8(16))
        }
    }

    #[inline(always)]
    fn wide(self, a: __m256i) -> __m256i {
        T::wide(self, a)
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn to_float(self, a: __m256i) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn half_to_float(self, a: __m256i) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe {
            let low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm256_cvtph_ps(packed)
        }
    }

    #[inline(always)]
    fn bits_to_float(self, a: __m256i) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_castsi256_ps(a) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32) -> __m256i {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_halves(self, from: *const u16) -> __m256i {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32, value: __m256i) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm256_storeu_si256(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn load_float(self, from: *const f32) -> __m256 {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_float(self, to: *mut f32, value: __m256) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // Not the intrinsic: see AVX-512.
        // SAFETY: the processor has the instruction, which is a hint: no address faults.
        unsafe { std::arch::asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn transpose(self, rows: Rows, offset: usize) -> [__m256i; 4] {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe {
            let [a, b, c, d] = load_rows(rows, offset);
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab_low, cd_low),
                _mm256_unpackhi_epi64(ab_low, cd_low),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }
}

/// Vector `i` holds 16 bytes of each of the rows `i` and `i + 4`.
///
/// # Safety
/// As for [`Lanes::transpose`]; the processor has AVX2.
#[inline(always)]
unsafe fn load_rows(rows: Rows, offset: usize) -> [__m256i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [load_two(rows, 0, offset), load_two(rows, 1, offset), load_two(rows, 2, offset), load_two(rows, 3, offset)]
    }
}

#[inline(always)]
unsafe fn load_two(rows: Rows, first: usize, offset: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let v = _mm256_castsi128_si256(_mm_loadu_si128(rows.at(first, offset).cast()));
        _mm256_inserti128_si256::<1>(v, _mm_loadu_si128(rows.at(first + 4, offset).cast()))
    }
}
