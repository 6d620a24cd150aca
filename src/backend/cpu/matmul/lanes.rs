//! The kernels' view of an instruction set: vectors of 32-bit lanes, where lane `r` works on row
//! `r` of a matrix.
//!
//! All kernels are written once, generic over [`Lanes`]. [`kernels`](super::kernels) makes
//! functions of them, compiled for the instruction set.

use super::activations;
use super::float::FloatFormat;
use super::formats::{Format, Kind};
use super::kernels::{Direct, Dots, Kernels, Multiply};
use super::layout::Source;
use crate::simd::Token;

/// 1.5 * 2^23: adding an integer below 2^22 in magnitude to its bits yields the f32 `MAGIC` plus
/// that integer.
#[cfg(target_arch = "x86_64")]
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Lanes of the widest vector.
pub(super) const MAX_LANES: usize = 16;

/// Rows of bytes, one for each lane.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The start of the first row.
    pub(super) first: *const u8,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
}

impl Rows {
    /// The address of the 16 bytes at `offset` of row `r`.
    #[inline(always)]
    pub(super) fn at(self, r: usize, offset: usize) -> *const u8 {
        self.first.wrapping_add(offset).wrapping_add(r * self.stride)
    }
}

/// Vectors of [`LANES`](Self::LANES) 32-bit lanes. An `Int` also serves as four bytes per lane,
/// first byte lowest.
pub(super) trait Lanes: Token {
    /// 32-bit lanes per vector: rows that are worked on together.
    const LANES: usize;
    /// The number that [`wide`](Self::wide) adds to signed bytes.
    const WIDE_ZERO: i32;
    /// The start of sums, for [`scaled`](Self::scaled).
    const SUM_START: i32;
    /// Whether to prefetch the next tile while one is multiplied. With few registers that costs
    /// more than it saves.
    const ASKS_AHEAD: bool = false;
    /// A vector of integers.
    type Int: Copy;
    /// A vector of f32.
    type Float: Copy;

    /// Whether to copy weights to a layout with [interleaved](super::layout) rows.
    const INTERLEAVES: bool = false;
    /// Whether products of few tokens read rows without a break also in the file's layout.
    const STREAMS_ROWS: bool = false;

    /// The kernels for a quantized format and rows that are read as `R`. With few tokens tiles may
    /// be smaller.
    fn quant_kernels<F: Format, R: Source<Self>>(is_few: bool) -> Kernels;
    /// The kernels for a floating-point type.
    fn float_kernels<F: FloatFormat>(is_few: bool) -> Kernels;
    /// Products of a tile with 1, 2, … tokens, up to the number that the registers allow.
    fn products<K: Kind, const VECTORS: usize>() -> &'static [Multiply];
    /// The same for floating-point weights.
    fn float_products<const VECTORS: usize>() -> &'static [Multiply];
    /// Products of rows with 1, 2, … tokens without a tile.
    fn direct_products<F: Format, R: Source<Self>>() -> &'static [Direct] {
        &[]
    }

    /// The nearest integers to a group of activations times `by`, which are below 128. Returns the
    /// sums of both halves.
    #[inline(always)]
    fn round(self, x: &[f32; activations::GROUP], by: f32, q: &mut [i8; activations::GROUP]) -> [i32; 2] {
        activations::round(x, by, q)
    }

    /// The same integer in all lanes.
    fn splat(self, value: i32) -> Self::Int;
    /// Bitwise and.
    fn and(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Bitwise or.
    fn or(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Shifts each lane left by less than 32 bits.
    fn shl(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shifts each lane right by less than 32 bits, with zeros coming in.
    fn shr(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shifts each lane right by less than 32 bits, with copies of the sign coming in.
    fn sar(self, a: Self::Int, bits: u32) -> Self::Int;
    /// The bits of the weights of [element](Self::quants) `nibble`. The lanes of `a` have the bits
    /// of 32 weights of each row. The result has each bit in the byte of its weight, as bit 4 (0 or
    /// 16).
    fn spread_bits(self, a: Self::Int, nibble: u32) -> Self::Int;
    /// Signed bytes in the form for products with [`Kind::WIDE`]: [`WIDE_ZERO`](Self::WIDE_ZERO)
    /// added.
    fn wide(self, a: Self::Int) -> Self::Int;

    /// The same number in all lanes.
    fn splat_float(self, value: f32) -> Self::Float;
    /// The second number that [`scaled`](Self::scaled) needs for a scale.
    fn offset(self, scale: Self::Float) -> Self::Float;
    /// `(sum - SUM_START) * scale`, for sums that differ from [`SUM_START`](Self::SUM_START) by
    /// less than 2^22, and scales of up to 22 significant bits with their [`offset`](Self::offset).
    fn scaled(self, sum: Self::Int, scale: Self::Float, offset: Self::Float) -> Self::Float;
    /// The nearest f32 to each integer.
    fn to_float(self, a: Self::Int) -> Self::Float;
    /// The f16 in the low half of each lane.
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
    /// `from` is valid for reads of `LANES` elements. The same holds for the functions below.
    unsafe fn load(self, from: *const i32) -> Self::Int;
    /// Reads 16-bit numbers to the low halves of the lanes, with zeros above them.
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
        // SAFETY: `lanes` has at least `LANES` elements.
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
    /// Prefetches memory that will be read soon. Any address will do.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    /// In lane `r` of vector `j`, the four bytes at `offset + 4 * j` of row `r`: 16 bytes of each
    /// row, transposed.
    ///
    /// # Safety
    /// `LANES` rows are valid for reads of `offset + 16` bytes.
    unsafe fn transpose(self, rows: Rows, offset: usize) -> [Self::Int; 4];
    /// 16 one-byte weights of each row, as the four elements of a tile for [`dots`](Self::dots). By
    /// default they are transposed. Formats treat all bytes of weights alike.
    ///
    /// # Safety
    /// As for [`transpose`](Self::transpose).
    #[inline(always)]
    unsafe fn quants(self, rows: Rows, offset: usize) -> [Self::Int; 4] {
        // SAFETY: the caller's promise.
        unsafe { self.transpose(rows, offset) }
    }
    /// Multiplies a tile of `VECTORS` vectors of rows with `TOKENS` tokens.
    ///
    /// # Safety
    /// The pointers are valid for the sizes in `dots`.
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>);
}

/// Products of bytes, for the kernel in [`tile`](super::tile). Sums of products of a few words may
/// have another form, if that takes fewer instructions.
pub(super) trait Dot: Lanes {
    /// Four activations of one token.
    type Word: Copy;
    /// Sums of products of up to [`run`](Self::run) words.
    type Partial: Copy;

    /// The number of words whose sum fits a [`Partial`](Self::Partial) with weights of up to `max`:
    /// a power of two.
    fn run(max: i32) -> usize;
    /// Word `i`, below 4, of those at `from`.
    ///
    /// # Safety
    /// `from` is valid for reads of four elements.
    unsafe fn word(self, from: *const i32, i: usize) -> Self::Word;
    /// Begins a run, whose sum will be added to `sum`.
    fn begin(self, sum: Self::Int) -> Self::Partial;
    /// Adds, in each lane, the products of its four bytes with those of `x`. `w` is unsigned and
    /// below 128, `x` is signed and not -128.
    fn dot4(self, sum: Self::Partial, w: Self::Int, x: Self::Word) -> Self::Partial;
    /// The same for any bytes in `w` that come from [`wide`](Lanes::wide).
    fn dot4_wide(self, sum: Self::Partial, w: Self::Int, x: Self::Word) -> Self::Partial;
    /// `sum`, with which the run began, plus the run's sum.
    fn end(self, sum: Self::Int, run: Self::Partial) -> Self::Int;
}

/// Definitions of a [`Dot`] that adds products to 32-bit sums right away.
macro_rules! no_partial_sums {
    () => {
        type Partial = Self::Int;

        #[inline(always)]
        fn run(_: i32) -> usize {
            1
        }

        #[inline(always)]
        fn begin(self, sum: Self::Int) -> Self::Int {
            sum
        }

        #[inline(always)]
        fn end(self, _: Self::Int, run: Self::Int) -> Self::Int {
            run
        }
    };
}
pub(super) use no_partial_sums;

/// Repeats a block for `$i` in `0..$n` without a loop, where `$n` is at most 6. So accumulators
/// indexed by `$i` surely stay in registers. With a smaller limit, the values may be given, so that
/// no constant index is out of range.
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
pub(super) use unroll;
