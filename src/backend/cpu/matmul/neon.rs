//! The kernels' instructions on 64-bit ARM: four rows per vector. Plain NEON, `sdot`, or `smmla`
//! ([`mmla`]) multiplies bytes; all else is the same. Bytes are signed on both sides, so they need
//! no offset.

use super::float::FloatFormat;
use super::formats::{Format, Kind};
use super::kernels::{Dots, Kernels, Multiply};
use super::lanes::{Dot, Lanes, Rows, no_partial_sums};
use super::layout::Source;
use super::{kernels, mmla, tile};
use crate::simd::neon::f16_to_f32;
use crate::simd::{Dotprod, I8mm, Neon, Token};
use std::arch::aarch64::*;
use std::arch::asm;

/// An instruction set with the vectors of NEON, and its way to multiply bytes.
pub(super) trait Four: Token {
    /// [`Lanes::spread_bits`].
    #[inline(always)]
    fn spread_bits(self, a: int32x4_t, nibble: u32) -> int32x4_t {
        spread_in_lanes(a, nibble)
    }

    /// [`Lanes::quants`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn quants(self, rows: Rows, offset: usize) -> [int32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { transposed(rows, offset) }
    }

    /// [`Lanes::dots`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>);

    /// [`Lanes::products`].
    fn byte_products<K: Kind, const VECTORS: usize>() -> &'static [Multiply];
}

// SAFETY comments below: `self` proves that the processor has the instructions. Where there are
// pointers, the caller promises that they are valid for the whole vector. No read or write needs
// alignment.
impl<T: Four> Lanes for T {
    const LANES: usize = 4;
    const WIDE_ZERO: i32 = 0;
    const SUM_START: i32 = 0;
    type Int = int32x4_t;
    type Float = float32x4_t;

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
    fn splat(self, value: i32) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vdupq_n_s32(value) }
    }

    #[inline(always)]
    fn and(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vandq_s32(a, b) }
    }

    #[inline(always)]
    fn or(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vorrq_s32(a, b) }
    }

    #[inline(always)]
    fn shl(self, a: int32x4_t, bits: u32) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vshlq_s32(a, vdupq_n_s32(bits as i32)) }
    }

    #[inline(always)]
    fn shr(self, a: int32x4_t, bits: u32) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(bits as i32)))) }
    }

    #[inline(always)]
    fn sar(self, a: int32x4_t, bits: u32) -> int32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vshlq_s32(a, vdupq_n_s32(-(bits as i32))) }
    }

    #[inline(always)]
    fn wide(self, a: int32x4_t) -> int32x4_t {
        a
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> float32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vdupq_n_f32(value) }
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
    fn to_float(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vcvtq_f32_s32(a) }
    }

    #[inline(always)]
    fn half_to_float(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { f16_to_f32(vmovn_u32(vreinterpretq_u32_s32(a))) }
    }

    #[inline(always)]
    fn bits_to_float(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vreinterpretq_f32_s32(a) }
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: the processor has the instructions.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32) -> int32x4_t {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { from.cast::<int32x4_t>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32, value: int32x4_t) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { to.cast::<int32x4_t>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_float(self, from: *const f32) -> float32x4_t {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { from.cast::<float32x4_t>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_float(self, to: *mut f32, value: float32x4_t) {
        // SAFETY: the processor has the instructions, and the caller promises the rest.
        unsafe { to.cast::<float32x4_t>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn transpose(self, rows: Rows, offset: usize) -> [int32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { transposed(rows, offset) }
    }

    #[inline(always)]
    fn spread_bits(self, a: int32x4_t, nibble: u32) -> int32x4_t {
        T::spread_bits(self, a, nibble)
    }

    #[inline(always)]
    unsafe fn quants(self, rows: Rows, offset: usize) -> [int32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { T::quants(self, rows, offset) }
    }

    #[inline(always)]
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the caller's promise.
        unsafe { self.multiply::<K, VECTORS, TOKENS>(dots) }
    }
}

impl Four for Neon {
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

impl Four for Dotprod {
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

impl Four for I8mm {
    #[inline(always)]
    fn spread_bits(self, a: int32x4_t, nibble: u32) -> int32x4_t {
        mmla::spread_bits(a, nibble)
    }

    #[inline(always)]
    unsafe fn quants(self, rows: Rows, offset: usize) -> [int32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { mmla::quants(load_rows(rows, offset)) }
    }

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

/// [`Lanes::transpose`].
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn transposed(rows: Rows, offset: usize) -> [int32x4_t; 4] {
    // SAFETY: instructions of every processor with NEON; the caller promises the rest.
    unsafe {
        let [a, b, c, d] = load_rows(rows, offset);
        let (even, odd) = ((vtrn1q_s32(a, b), vtrn1q_s32(c, d)), (vtrn2q_s32(a, b), vtrn2q_s32(c, d)));
        let ((zero, two), (one, three)) = (halves(even.0, even.1), halves(odd.0, odd.1));
        [zero, one, two, three]
    }
}

/// Vector `i` holds 16 bytes of row `i`.
///
/// # Safety
/// As for [`Lanes::transpose`].
#[inline(always)]
unsafe fn load_rows(rows: Rows, offset: usize) -> [int32x4_t; 4] {
    // SAFETY: the caller's promise; the reads need no alignment.
    let load = |row| unsafe { rows.at(row, offset).cast::<int32x4_t>().read_unaligned() };
    [load(0), load(1), load(2), load(3)]
}

/// The low halves of `a` and `b`, and their high halves.
#[inline(always)]
pub(super) fn halves(a: int32x4_t, b: int32x4_t) -> (int32x4_t, int32x4_t) {
    // SAFETY: instructions of every processor with NEON, which work on registers only.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
        (vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b)))
    }
}

/// [`Lanes::spread_bits`] where an element is four weights of each of four rows.
#[inline(always)]
fn spread_in_lanes(a: int32x4_t, nibble: u32) -> int32x4_t {
    // Copies the byte with the nibble to all bytes of its lane.
    let byte = nibble / 2;
    let bits = if nibble.is_multiple_of(2) { 0x0804_0201_0804_0201 } else { 0x8040_2010_8040_2010 };
    let lanes = [byte, byte + 4, byte + 8, byte + 12].map(|byte| byte * 0x0101_0101);
    select_bits(a, lanes, bits)
}

/// For each byte: 16 or 0, by one bit, given in `bits`, of the byte of `a` that `from` names.
#[inline(always)]
pub(super) fn select_bits(a: int32x4_t, from: [u32; 4], bits: u64) -> int32x4_t {
    // SAFETY: instructions of every processor with NEON, which work on registers only; the array is
    // as long as a vector.
    unsafe {
        let from = from.as_ptr().cast::<uint8x16_t>().read_unaligned();
        let bytes = vqtbl1q_u8(vreinterpretq_u8_s32(a), from);
        let set = vtstq_u8(bytes, vreinterpretq_u8_u64(vdupq_n_u64(bits)));
        vreinterpretq_s32_u8(vandq_u8(set, vdupq_n_u8(16)))
    }
}
