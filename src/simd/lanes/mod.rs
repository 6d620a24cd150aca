//! Vectors of 32-bit lanes, where lane `r` works on row `r` of a matrix: what it takes to unpack quantized weights.
//!
//! [`Simd`](super::Simd) has vectors of `f32` whose lanes are neighbours in memory. Here each lane belongs to a row of its
//! own, so that the bits of all rows are taken apart by the same full-width instructions.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod scalar;

use super::Token;

/// Lanes of the widest vector.
pub(crate) const MAX_LANES: usize = 16;

/// Rows of bytes, one for each lane.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// The start of the first one.
    pub(crate) first: *const u8,
    /// From one row to the next.
    pub(crate) stride: usize,
}

impl Rows {
    /// Where the 16 bytes at `offset` of row `r` are.
    #[inline(always)]
    pub(crate) fn at(self, r: usize, offset: usize) -> *const u8 {
        self.first.wrapping_add(offset).wrapping_add(r * self.stride)
    }
}

/// Vectors of [`LANES`](Self::LANES) 32-bit lanes. An `Int` is also seen as four bytes a lane, first byte lowest.
pub(crate) trait Lanes: Token {
    /// 32-bit lanes in a vector: rows that are worked on together.
    const LANES: usize;
    /// What [`wide`](Self::wide) adds to signed bytes.
    const WIDE_ZERO: i32;
    /// A vector of integers.
    type Int: Copy;
    /// A vector of f32.
    type Float: Copy;

    /// The same integer in all lanes.
    fn splat(self, value: i32) -> Self::Int;
    /// Bitwise and.
    fn and(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Bitwise or.
    fn or(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Shifts each lane left by less than 32 bits.
    fn shl(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shifts each lane right by less than 32 bits, zeros coming in.
    fn shr(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shifts each lane right by less than 32 bits, copies of the sign coming in.
    fn sar(self, a: Self::Int, bits: u32) -> Self::Int;
    /// The bits of the weights of [element](Self::quants) `nibble`, whose rows have the bits of 32 weights each in the
    /// lanes of `a`; bits of weights go to their bytes, there as bit 4 (0 or 16).
    fn spread_bits(self, a: Self::Int, nibble: u32) -> Self::Int;
    /// Signed bytes in the form that products of bytes take: [`WIDE_ZERO`](Self::WIDE_ZERO) added.
    fn wide(self, a: Self::Int) -> Self::Int;

    /// The same number in all lanes.
    fn splat_float(self, value: f32) -> Self::Float;
    /// The nearest f32 to each integer.
    fn to_float(self, a: Self::Int) -> Self::Float;
    /// The f16 that the low half of each lane holds.
    fn half_to_float(self, a: Self::Int) -> Self::Float;
    /// The f32 whose bits each lane holds.
    fn bits_to_float(self, a: Self::Int) -> Self::Float;
    /// Products.
    fn mul(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// Sums.
    fn add(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;

    /// Reads one vector.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` elements; so for the functions below.
    unsafe fn load(self, from: *const i32) -> Self::Int;
    /// Reads 16-bit numbers to the low halves of the lanes, zeros above them.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn load_halves(self, from: *const u16) -> Self::Int {
        let mut lanes = [0; MAX_LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's promise.
            *lane = i32::from(unsafe { from.add(i).read_unaligned() });
        }
        // SAFETY: there are as many lanes.
        unsafe { self.load(lanes.as_ptr()) }
    }
    /// Writes one vector.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` elements.
    unsafe fn store(self, to: *mut i32, value: Self::Int);
    /// Reads one vector of floats.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` elements.
    unsafe fn load_float(self, from: *const f32) -> Self::Float;
    /// Writes one vector of floats.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` elements.
    unsafe fn store_float(self, to: *mut f32, value: Self::Float);
    /// Asks for memory that will be read soon; any address will do.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    /// In lane `r` of vector `j`, the four bytes at `offset + 4 * j` of row `r`: 16 bytes of each row, transposed.
    ///
    /// # Safety
    /// `LANES` rows are valid for reads of `offset + 16` bytes.
    unsafe fn transpose(self, rows: Rows, offset: usize) -> [Self::Int; 4];
    /// 16 weights of one byte of each row, as the four elements that products of bytes take: where nothing else is said, as
    /// transposed. What formats do to weights they do to all bytes alike.
    ///
    /// # Safety
    /// As for [`transpose`](Self::transpose).
    #[inline(always)]
    unsafe fn quants(self, rows: Rows, offset: usize) -> [Self::Int; 4] {
        // SAFETY: the caller's promise.
        unsafe { self.transpose(rows, offset) }
    }
}

/// Byte `i` of each lane, as a number.
#[inline(always)]
pub(crate) fn byte<S: Lanes>(s: S, v: S::Int, i: usize) -> S::Float {
    s.to_float(s.and(s.shr(v, 8 * i as u32), s.splat(255)))
}

/// Byte `i` of each lane, as a signed number.
#[inline(always)]
pub(crate) fn signed_byte<S: Lanes>(s: S, v: S::Int, i: usize) -> S::Float {
    s.to_float(s.sar(s.shl(v, 24 - 8 * i as u32), 24))
}

/// The low nibbles.
#[inline(always)]
pub(crate) fn low<S: Lanes>(s: S, v: S::Int) -> S::Int {
    s.and(v, s.splat(0x0f0f_0f0f))
}

/// The high nibbles.
#[inline(always)]
pub(crate) fn high<S: Lanes>(s: S, v: S::Int) -> S::Int {
    low(s, s.shr(v, 4))
}

/// Repeats a block for `$i` in `0..$n`, which is at most 6, without a loop: accumulators indexed by `$i` are then sure to
/// be kept in registers. Where it is at most less, the values may be given, so that no constant index is out of range.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!($i < $n; 0 1 2 3 4 5, $body)
    };
    ($i:ident < $n:expr; $($value:literal)*, $body:block) => {
        const { assert!($n <= 6) };
        $(
            if $value < $n {
                #[allow(clippy::identity_op, clippy::erasing_op)]
                {
                    let $i: usize = $value;
                    $body
                }
            }
        )*
    };
}
pub(crate) use unroll;
