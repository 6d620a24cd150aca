//! The kernels in plain Rust: arrays that compilers vectorize as far as the target allows. They are
//! the oracle of the others.

use super::float::FloatFormat;
use super::formats::{Format, Kind};
use super::kernels::{Dots, Kernels, Multiply};
use super::lanes::{Dot, Lanes, Rows, no_partial_sums};
use super::layout::Source;
use super::{kernels, tile};
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
    const SUM_START: i32 = 0;
    type Int = Int;
    type Float = Float;

    fn quant_kernels<F: Format, R: Source<Self>>(_: bool) -> Kernels {
        kernels::quant::<Self, F, R, 1>()
    }

    fn float_kernels<F: FloatFormat>(_: bool) -> Kernels {
        kernels::float::<Self, F, 1>()
    }

    fn products<K: Kind, const VECTORS: usize>() -> &'static [Multiply] {
        &[
            kernels::dots::<Self, K, VECTORS, 1>,
            kernels::dots::<Self, K, VECTORS, 2>,
            kernels::dots::<Self, K, VECTORS, 3>,
            kernels::dots::<Self, K, VECTORS, 4>,
        ]
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
            // Puts the four bits at bit 4 and up, then copies 7 bits apart: bit b ends at bit 8 * b
            // + 4.
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
    fn offset(self, scale: Float) -> Float {
        scale
    }

    #[inline(always)]
    fn scaled(self, sum: Int, scale: Float, _: Float) -> Float {
        self.mul(self.to_float(sum), scale)
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
        // On a target without the instruction, `f32::mul_add` would call a function for each
        // number.
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

    #[inline(always)]
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // SAFETY: the caller's promise.
        unsafe { tile::dots::<Self, K, VECTORS, VECTORS, TOKENS>(self, dots) }
    }
}

impl Dot for Scalar {
    type Word = i32;

    no_partial_sums!();

    #[inline(always)]
    unsafe fn word(self, from: *const i32, i: usize) -> i32 {
        // SAFETY: the caller's promise; the read needs no alignment.
        unsafe { from.add(i).read_unaligned() }
    }

    #[inline(always)]
    fn dot4(self, sum: Int, w: Int, x: i32) -> Int {
        // Bytes below 128 are the same signed and unsigned.
        self.dot4_wide(sum, w, x)
    }

    #[inline(always)]
    fn dot4_wide(self, sum: Int, w: Int, x: i32) -> Int {
        array::from_fn(|i| {
            let byte = |v: i32, shift: u32| (v << (24 - shift)) >> 24;
            sum[i]
                + byte(w[i], 0) * byte(x, 0)
                + byte(w[i], 8) * byte(x, 8)
                + byte(w[i], 16) * byte(x, 16)
                + byte(w[i], 24) * byte(x, 24)
        })
    }
}
