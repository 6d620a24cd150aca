//! Vectors of sixteen: AVX-512.

use std::arch::x86_64::*;

use super::{Avx2, Kernel, Simd, Token};

/// AVX-512 F, BW, DQ, VL and VNNI, besides all of [`Avx2`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The token, if the processor has the instructions.
    pub(super) fn new() -> Option<Self> {
        let has_all = Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has_all.then_some(Self(()))
    }
}

impl Token for Avx512 {
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn call<K: Kernel<Avx512>>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has the features.
        unsafe { call(self, kernel) }
    }
}

/// Wraps instructions. A value of [`Avx512`] proves that the processor has them.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: `Avx512` exists only where the processor has the features. Where memory is
        // accessed, the enclosing function is unsafe, and its caller promises that the memory is
        // valid.
        unsafe { $e }
    };
}

/// The mask of the first `n` < 16 lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    (1u16 << n) - 1
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const QUERIES: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        proven!(_mm512_loadu_ps(p))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        proven!(_mm512_storeu_ps(p, v))
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
        proven!(_mm512_maskz_loadu_ps(first(n), p))
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: __m512) {
        proven!(_mm512_mask_storeu_ps(p, first(n), v))
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // `_mm512_cvtph_ps` suppresses exceptions and therefore cannot take its operand from
        // memory.
        proven!(_mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(p.cast())))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m512) {
        proven!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)))
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512 {
        proven!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))))
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: __m512) {
        proven!(_mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        proven!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }

    #[inline(always)]
    fn scale_by_power(self, v: __m512, n: __m512) -> __m512 {
        // For n = -127 the instruction would return subnormal numbers.
        proven!(_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(n, _mm512_set1_ps(-127.0)), v, n))
    }

    #[inline(always)]
    fn select_within(self, at: __m512, lo: __m512, hi: __m512, v: __m512, other: __m512) -> __m512 {
        proven!({
            let after = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(lo, at);
            let within = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(after, at, hi);
            _mm512_mask_blend_ps(within, other, v)
        })
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        proven!({
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(v))
    }

    #[inline(always)]
    fn deinterleave(self, a: __m512, b: __m512) -> (__m512, __m512) {
        proven!({
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        })
    }

    #[inline(always)]
    fn interleave(self, even: __m512, odd: __m512) -> (__m512, __m512) {
        proven!({
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(even, low, odd), _mm512_permutex2var_ps(even, high, odd))
        })
    }
}
