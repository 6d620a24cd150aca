//! Lanes of NEON: four rows in a vector. With i8mm weights of one byte lie otherwise, as `smmla` takes them.

use super::{Lanes, Rows};
use crate::simd::neon::f16_to_f32;
use crate::simd::{Dotprod, I8mm, Neon, Token};
use std::arch::aarch64::*;

/// An instruction set with the vectors of NEON: how its products of bytes take weights.
pub(crate) trait Four: Token {
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
}

impl Four for Neon {}

impl Four for Dotprod {}

impl Four for I8mm {
    #[inline(always)]
    fn spread_bits(self, a: int32x4_t, nibble: u32) -> int32x4_t {
        spread_in_pairs(a, nibble)
    }

    #[inline(always)]
    unsafe fn quants(self, rows: Rows, offset: usize) -> [int32x4_t; 4] {
        // SAFETY: the caller's promise.
        unsafe { in_pairs(load_rows(rows, offset)) }
    }
}

// What "SAFETY" says below: `self` proves that the processor has the instructions, and where there are pointers,
// the caller promises that they are valid for the whole vector; no read or write needs alignment.
impl<T: Four> Lanes for T {
    const LANES: usize = 4;
    const WIDE_ZERO: i32 = 0;
    type Int = int32x4_t;
    type Float = float32x4_t;

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
pub(crate) fn halves(a: int32x4_t, b: int32x4_t) -> (int32x4_t, int32x4_t) {
    // SAFETY: instructions of every processor with NEON, which work on registers only.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
        (vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b)))
    }
}

/// [`Lanes::spread_bits`] where an element is four weights of each of four rows.
#[inline(always)]
fn spread_in_lanes(a: int32x4_t, nibble: u32) -> int32x4_t {
    // The byte that holds the nibble goes to all bytes of its lane.
    let byte = nibble / 2;
    let bits = if nibble.is_multiple_of(2) { 0x0804_0201_0804_0201 } else { 0x8040_2010_8040_2010 };
    let lanes = [byte, byte + 4, byte + 8, byte + 12].map(|byte| byte * 0x0101_0101);
    select_bits(a, lanes, bits)
}

/// Bytes of `a`, those that the bytes of `from` name, and of each one bit, a bit of `bits`, as 16 or 0.
#[inline(always)]
fn select_bits(a: int32x4_t, from: [u32; 4], bits: u64) -> int32x4_t {
    // SAFETY: instructions of every processor with NEON, which work on registers only; the array is a vector long.
    unsafe {
        let from = from.as_ptr().cast::<uint8x16_t>().read_unaligned();
        let bytes = vqtbl1q_u8(vreinterpretq_u8_s32(a), from);
        let set = vtstq_u8(bytes, vreinterpretq_u8_u64(vdupq_n_u64(bits)));
        vreinterpretq_s32_u8(vandq_u8(set, vdupq_n_u8(16)))
    }
}

/// [`Lanes::quants`] for `smmla`, of 16 bytes of four rows: an element is eight weights of each of two rows.
#[inline(always)]
fn in_pairs([a, b, c, d]: [int32x4_t; 4]) -> [int32x4_t; 4] {
    let ((ab_low, ab_high), (cd_low, cd_high)) = (halves(a, b), halves(c, d));
    [ab_low, cd_low, ab_high, cd_high]
}

/// [`Lanes::spread_bits`] where an element is eight weights of each of two rows.
#[inline(always)]
fn spread_in_pairs(a: int32x4_t, element: u32) -> int32x4_t {
    let (rows, columns) = (2 * (element % 2), element / 2);
    let [first, second] = [4 * rows + columns, 4 * (rows + 1) + columns].map(|byte| byte * 0x0101_0101);
    select_bits(a, [first, first, second, second], 0x8040_2010_0804_0201)
}
