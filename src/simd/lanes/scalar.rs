//! Lanes in plain Rust: arrays of four, which compilers vectorize as far as the target allows.

use super::{Lanes, Rows};
use crate::simd::Scalar;
use std::array;

const LANES: usize = 4;

type Int = [i32; LANES];
type Float = [f32; LANES];

/// Reads four bytes, first byte lowest.
///
/// # Safety
/// `from` is valid for reads of four bytes.
#[inline(always)]
unsafe fn word(from: *const u8) -> i32 {
    // SAFETY: the caller's promise; the read needs no alignment.
    i32::from_le(unsafe { from.cast::<i32>().read_unaligned() })
}

impl Lanes for Scalar {
    const LANES: usize = LANES;
    const WIDE_ZERO: i32 = 0;
    type Int = Int;
    type Float = Float;

    #[inline(always)]
    fn splat(self, value: i32) -> Int {
        [value; LANES]
    }

    #[inline(always)]
    fn and(self, a: Int, b: Int) -> Int {
        array::from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: Int, b: Int) -> Int {
        array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn shl(self, a: Int, bits: u32) -> Int {
        a.map(|a| a << (bits & 31))
    }

    #[inline(always)]
    fn shr(self, a: Int, bits: u32) -> Int {
        a.map(|a| (a as u32 >> (bits & 31)) as i32)
    }

    #[inline(always)]
    fn sar(self, a: Int, bits: u32) -> Int {
        a.map(|a| a >> (bits & 31))
    }

    #[inline(always)]
    fn spread_bits(self, a: Int, nibble: u32) -> Int {
        a.map(|a| {
            // The four bits, at bit 4 and up, then copies of them 7 bits apart: bit b ends at bit 8 * b + 4.
            let bits = (a as u32 >> ((4 * nibble) & 31) & 15) << 4;
            ((bits | bits << 7 | bits << 14 | bits << 21) & 0x1010_1010) as i32
        })
    }

    #[inline(always)]
    fn wide(self, a: Int) -> Int {
        a
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> Float {
        [value; LANES]
    }

    #[inline(always)]
    fn to_float(self, a: Int) -> Float {
        a.map(|a| a as f32)
    }

    #[inline(always)]
    fn half_to_float(self, a: Int) -> Float {
        a.map(|a| half::f16::from_bits(a as u16).to_f32_const())
    }

    #[inline(always)]
    fn bits_to_float(self, a: Int) -> Float {
        a.map(|a| f32::from_bits(a as u32))
    }

    #[inline(always)]
    fn mul(self, a: Float, b: Float) -> Float {
        array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn add(self, a: Float, b: Float) -> Float {
        array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Float, b: Float, c: Float) -> Float {
        // Not `f32::mul_add`: a target without the instruction would call a function for each.
        array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32) -> Int {
        // SAFETY: the caller's promise; the read needs no alignment.
        unsafe { from.cast::<Int>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32, value: Int) {
        // SAFETY: the caller's promise; the write needs no alignment.
        unsafe { to.cast::<Int>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_float(self, from: *const f32) -> Float {
        // SAFETY: the caller's promise; the read needs no alignment.
        unsafe { from.cast::<Float>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_float(self, to: *mut f32, value: Float) {
        // SAFETY: the caller's promise; the write needs no alignment.
        unsafe { to.cast::<Float>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn transpose(self, rows: Rows, offset: usize) -> [Int; 4] {
        // SAFETY: the caller's promise.
        array::from_fn(|j| array::from_fn(|r| unsafe { word(rows.at(r, offset + 4 * j)) }))
    }
}
