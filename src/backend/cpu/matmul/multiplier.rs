//! What the kernels need of an instruction set besides its [`Lanes`]: how it multiplies, and which kernels there are.
//!
//! All kernels are written once, generic over [`Multiplier`]. [`kernels`](super::kernels) makes functions of them that are
//! compiled for the instruction set.

use super::activations;
use super::float::FloatFormat;
use super::kernels::{Direct, Dots, Kernels, Multiply};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Source};
use crate::simd::lanes::Lanes;

/// 1.5 * 2^23: the f32 with the bits of this plus an integer below 2^22 in magnitude is `MAGIC` plus that integer.
#[cfg(target_arch = "x86_64")]
pub(super) const MAGIC: f32 = 12_582_912.0;

/// An instruction set with kernels for matrix products.
pub(super) trait Multiplier: Lanes {
    /// What sums start at, for [`scaled`](Self::scaled).
    const SUM_START: i32;
    /// Whether the next tile is asked for while one is multiplied; where registers are few, that costs more than it saves.
    const ASKS_AHEAD: bool = false;
    /// Whether weights are copied to an order in which rows are [interleaved](super::layout).
    const INTERLEAVES: bool = false;
    /// Whether a product of a few tokens reads rows on and on also where they lie as in the file.
    const STREAMS_ROWS: bool = false;

    /// The kernels for a quantized format and rows that are read as `R`. With few tokens tiles may be smaller.
    fn quant_kernels<F: Format, R: Source<Self>>(is_few: bool) -> Kernels;
    /// The kernels for weights that are multiplied as f32.
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

    /// What [`scaled`](Self::scaled) takes besides a scale.
    fn offset(self, scale: Self::Float) -> Self::Float;
    /// `(sum - SUM_START) * scale`, for sums that differ from [`SUM_START`](Self::SUM_START) by less than 2^22, and scales
    /// of up to 22 significant bits with their [`offset`](Self::offset).
    fn scaled(self, sum: Self::Int, scale: Self::Float, offset: Self::Float) -> Self::Float;
    /// Multiplies a tile of `VECTORS` vectors of rows with `TOKENS` tokens.
    ///
    /// # Safety
    /// The pointers are valid for the sizes in `dots`.
    unsafe fn dots<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>);
}

/// What the kernel in [`tile`](super::tile) needs besides, to multiply bytes. Sums of products may be kept in another form
/// for a few words, where that takes fewer instructions.
pub(super) trait Dot: Multiplier {
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
