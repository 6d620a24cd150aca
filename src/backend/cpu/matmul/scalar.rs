//! The kernels in plain Rust: arrays that compilers vectorize as far as the target allows. They are
//! the oracle of the others.

use super::float::FloatFormat;
use super::kernels::{Dots, Kernels, Multiply};
use super::multiplier::{Dot, Multiplier, no_partial_sums};
use super::{kernels, tile};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Source};
use crate::simd::Scalar;
use crate::simd::lanes::Lanes;
use std::array;

type Int = <Scalar as Lanes>::Int;
type Float = <Scalar as Lanes>::Float;

impl Multiplier for Scalar {
    const SUM_START: i32 = 0;

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
    fn offset(self, scale: Float) -> Float {
        scale
    }

    #[inline(always)]
    fn scaled(self, sum: Int, scale: Float, _: Float) -> Float {
        self.mul(self.to_float(sum), scale)
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
