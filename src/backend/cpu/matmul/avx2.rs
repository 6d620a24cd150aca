//! The kernels' instructions in vectors of 256 bits: eight rows per vector, four vectors per tile.
//! Activations come from the first-level cache for the later three of them. Plain AVX2 multiplies
//! bytes here, and AVX-VNNI in `avxvnni.rs`.

use super::float::FloatFormat;
use super::formats::{Format, Kind};
use super::kernels::{Direct, Dots, Kernels, Multiply};
use super::lanes::{Dot, Lanes, MAGIC, Rows};
use super::layout::Source;
use super::{kernels, tile};
use crate::simd::{Avx2, Token};
use std::arch::x86_64::*;

/// An instruction set with the vectors of AVX2, and its way to multiply bytes.
pub(super) trait Eight: Token {
    /// [`Lanes::WIDE_ZERO`].
    const WIDE_ZERO: i32;

    /// [`Lanes::wide`].
    fn wide(self, a: __m256i) -> __m256i;

    /// [`Lanes::dots`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>);

    /// [`Lanes::products`].
    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply];

    /// [`Lanes::direct_products`].
    fn direct_byte_products<F: Format, R: Source<Self>>() -> &'static [Direct];
}

// SAFETY comments below: `self` proves that the processor has the instructions. Where there are
// pointers, the caller promises that they are valid for the whole vector. None of the instructions
// needs alignment.
impl<T: Eight> Lanes for T {
    const LANES: usize = 8;
    const WIDE_ZERO: i32 = T::WIDE_ZERO;
    const INTERLEAVES: bool = true;
    const SUM_START: i32 = MAGIC.to_bits() as i32;
    type Int = __m256i;
    type Float = __m256;

    fn quant_kernels<F: Format, R: Source<Self>>(is_few: bool) -> Kernels {
        if is_few { kernels::quant::<Self, F, R, 1>() } else { kernels::quant::<Self, F, R, 4>() }
    }

    fn float_kernels<F: FloatFormat>(is_few: bool) -> Kernels {
        if is_few { kernels::float::<Self, F, 1>() } else { kernels::float::<Self, F, 4>() }
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
        // Copies the byte with the nibble to all bytes of its lane. Then each byte tests its own
        // bit.
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
        // AVX-512's kernel says why this is not the intrinsic.
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

    #[inline(always)]
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { self.multiply::<K, VECTORS, TOKENS>(dots) }
    }
}

impl Eight for Avx2 {
    const WIDE_ZERO: i32 = 0;

    #[inline(always)]
    fn wide(self, a: __m256i) -> __m256i {
        a
    }

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
