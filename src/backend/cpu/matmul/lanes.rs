//! What the kernels need of an instruction set: vectors of 32-bit lanes, where lane `r` works on row `r` of a matrix.
//!
//! All kernels are written once, generic over [`Lanes`]. [`kernels`](super::kernels) makes functions of them that are compiled
//! for the instruction set.

use super::activations;
use super::float::FloatFormat;
use super::formats::{Format, Kind};
use super::kernels::{Direct, Dots, Kernels, Multiply};
use super::layout::Source;
use crate::simd::Token;

/// 1.5 * 2^23: the f32 with the bits of this plus an integer below 2^22 in magnitude is `MAGIC` plus that integer.
#[cfg(target_arch = "x86_64")]
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Lanes of the widest vector.
pub(super) const MAX_LANES: usize = 16;

/// Rows of bytes, one for each lane.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The start of the first one.
    pub(super) first: *const u8,
    /// From one row to the next.
    pub(super) stride: usize,
}

impl Rows {
    /// Where the 16 bytes at `offset` of row `r` are.
    #[inline(always)]
    pub(super) fn at(self, r: usize, offset: usize) -> *const u8 {
        self.first.wrapping_add(offset).wrapping_add(r * self.stride)
    }
}

/// Vectors of [`LANES`](Self::LANES) 32-bit lanes. An `Int` is also seen as four bytes a lane, first byte lowest.
pub(super) trait Lanes: Token {
    /// 32-bit lanes in a vector: rows that are worked on together.
    const LANES: usize;
    /// What [`wide`](Self::wide) adds to signed bytes.
    const WIDE_ZERO: i32;
    /// What sums start at, for [`scaled`](Self::scaled).
    const SUM_START: i32;
    /// Whether the next tile is asked for while one is multiplied; where registers are few, that costs more than it saves.
    const ASKS_AHEAD: bool = false;
    /// A vector of integers.
    type Int: Copy;
    /// A vector of f32.
    type Float: Copy;

    /// Whether weights are copied to an order in which rows are [interleaved](super::layout).
    const INTERLEAVES: bool = false;
    /// Whether a product of a few tokens reads rows on and on also where they lie as in the file.
    const STREAMS_ROWS: bool = false;

    /// The kernels for a quantized format and rows that are read as `R`. With few tokens tiles may be smaller.
    fn quant_kernels<F: Format, R: Source<Self>>(is_few: bool) -> Kernels;
    /// The kernels for a floating-point type.
    fn float_kernels<F: FloatFormat>(is_few: bool) -> Kernels;
    /// Products of a tile with 1, 2, … tokens, as many as there are registers for.
    fn products<K: Kind, const VECTORS: usize>() -> &'static [Multiply];
    /// The same for floating-point weights.
    fn float_products<const VECTORS: usize>() -> &'static [Multiply];
    /// Products of rows with 1, 2, … tokens without a tile.
    fn direct_products<F: Format, R: Source<Self>>() -> &'static [Direct] {
        &[]
    }

    /// The nearest integers to a group of activations times `by`, which are below 128; returns the sums of both halves.
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
    /// Shifts each lane right by less than 32 bits, zeros coming in.
    fn shr(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shifts each lane right by less than 32 bits, copies of the sign coming in.
    fn sar(self, a: Self::Int, bits: u32) -> Self::Int;
    /// The bits of the weights of [element](Self::quants) `nibble`, whose rows have the bits of 32 weights each in the
    /// lanes of `a`; bits of weights go to their bytes, there as bit 4 (0 or 16).
    fn spread_bits(self, a: Self::Int, nibble: u32) -> Self::Int;
    /// Signed bytes in the form that products with [`Kind::WIDE`] take: [`WIDE_ZERO`](Self::WIDE_ZERO) added.
    fn wide(self, a: Self::Int) -> Self::Int;

    /// The same number in all lanes.
    fn splat_float(self, value: f32) -> Self::Float;
    /// What [`scaled`](Self::scaled) takes besides a scale.
    fn offset(self, scale: Self::Float) -> Self::Float;
    /// `(sum - SUM_START) * scale`, for sums that differ from [`SUM_START`](Self::SUM_START) by less than 2^22, and scales
    /// of up to 22 significant bits with their [`offset`](Self::offset).
    fn scaled(self, sum: Self::Int, scale: Self::Float, offset: Self::Float) -> Self::Float;
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
    /// 16 weights of one byte of each row, as the four elements of a tile that [`dots`](Self::dots) takes: where nothing
    /// else is said, as transposed. What formats do to weights they do to all bytes alike.
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

/// What the kernel in [`tile`](super::tile) needs besides, to multiply bytes. Sums of products may be kept in another form
/// for a few words, where that takes fewer instructions.
pub(super) trait Dot: Lanes {
    /// Four activations of one token.
    type Word: Copy;
    /// Sums of products of up to [`run`](Self::run) words.
    type Partial: Copy;

    /// How many words a [`Partial`](Self::Partial) has room for with weights of up to `max`: a power of two.
    fn run(max: i32) -> usize;
    /// Word `i`, below 4, of those at `from`.
    ///
    /// # Safety
    /// `from` is valid for reads of four elements.
    unsafe fn word(self, from: *const i32, i: usize) -> Self::Word;
    /// Begins a run that is to be added to `sum`.
    fn begin(self, sum: Self::Int) -> Self::Partial;
    /// Adds, in each lane, the products of its four bytes with those of `x`: `w` unsigned and below 128, `x` signed, not
    /// -128.
    fn dot4(self, sum: Self::Partial, w: Self::Int, x: Self::Word) -> Self::Partial;
    /// The same for any bytes in `w` that come from [`wide`](Lanes::wide).
    fn dot4_wide(self, sum: Self::Partial, w: Self::Int, x: Self::Word) -> Self::Partial;
    /// `sum`, with which the run began, and what was added.
    fn end(self, sum: Self::Int, run: Self::Partial) -> Self::Int;
}

/// What a [`Dot`] defines that adds products to 32-bit sums right away.
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
pub(super) use unroll;
