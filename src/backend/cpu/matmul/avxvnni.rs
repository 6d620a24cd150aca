//! Products of bytes by AVX-VNNI, whose instruction adds four of them to a 32-bit sum. Everything
//! else is AVX2's.

use super::avx2::ByteProducts;
use super::kernels::{Direct, Dots, Multiply};
use super::multiplier::{Dot, no_partial_sums};
use super::{kernels, tile};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Source};
use crate::simd::AvxVnni;
use crate::simd::lanes::Lanes;
use std::arch::x86_64::*;

impl ByteProducts for AvxVnni {
    #[inline(always)]
    unsafe fn multiply<K: Kind, const VECTORS: usize, const TOKENS: usize>(self, dots: &Dots<'_>) {
        // A product takes five cycles and two begin in each. With two vectors of a tile at a time,
        // the 12 sums of six tokens keep them busy, and the sums of floats wait in memory.
        // SAFETY: the caller's promise.
        unsafe {
            match VECTORS % 2 {
                0 => tile::dots::<Self, K, VECTORS, 2, TOKENS>(self, dots),
                _ => tile::dots::<Self, K, VECTORS, 1, TOKENS>(self, dots),
            }
        }
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

    fn direct_byte_products<F: Format, R: Source<Self>>() -> &'static [Direct] {
        &[kernels::direct::<Self, F, R, 1>, kernels::direct::<Self, F, R, 2>, kernels::direct::<Self, F, R, 3>]
    }
}

// SAFETY comments below: the token proves that the processor has the instructions. The caller
// promises that `from` can be read, which needs no alignment.
impl Dot for AvxVnni {
    type Word = __m256i;

    no_partial_sums!();

    #[inline(always)]
    unsafe fn word(self, from: *const i32, i: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { self.splat(from.add(i).read_unaligned()) }
    }

    #[inline(always)]
    fn dot4(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the processor has the instruction.
        unsafe { _mm256_dpbusd_avx_epi32(sum, w, x) }
    }

    #[inline(always)]
    fn dot4_wide(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        self.dot4(sum, w, x)
    }
}
