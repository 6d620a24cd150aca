//! Vectors of eight: AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::{Kernel, Simd, Token};

/// AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, if the processor has the instructions.
    pub(super) fn new() -> Option<Self> {
        let has_all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }
}

impl Token for Avx2 {
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn call<K: Kernel<Avx2>>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has the features.
        unsafe { call(self, kernel) }
    }
}

/// Wraps instructions. A value of [`Avx2`] proves that the processor has them.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: `Avx2` exists only where the processor has the features. Where memory is
        // accessed, the enclosing function is unsafe, and its caller promises that the memory is
        // valid.
        unsafe { $e }
    };
}

/// Masks for `maskload` and `maskstore`: eight numbers from `8 - n` on select the first `n` lanes.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

impl Avx2 {
    #[inline(always)]
    fn first(self, n: usize) -> __m256i {
        debug_assert!(n <= 8);
        proven!(_mm256_loadu_si256(FIRST.as_ptr().add(8 - n.min(8)).cast()))
    }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const QUERIES: usize = 3;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        proven!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        proven!(_mm256_loadu_ps(p))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        proven!(_mm256_storeu_ps(p, v))
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m256 {
        proven!(_mm256_maskload_ps(p, self.first(n)))
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: __m256) {
        proven!(_mm256_maskstore_ps(p, self.first(n), v))
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        proven!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m256) {
        proven!(_mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)))
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m256 {
        proven!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))))
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: __m256) {
        proven!({
            let x = _mm256_cvtps_epi32(v);
            let x = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(x, x))
        })
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn round(self, v: __m256) -> __m256 {
        proven!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }

    #[inline(always)]
    fn scale_by_power(self, v: __m256, n: __m256) -> __m256 {
        proven!({
            let exponent = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
            _mm256_mul_ps(v, _mm256_castsi256_ps(exponent))
        })
    }

    #[inline(always)]
    fn select_within(self, at: __m256, lo: __m256, hi: __m256, v: __m256, other: __m256) -> __m256 {
        proven!({
            let within = _mm256_and_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(lo, at), _mm256_cmp_ps::<_CMP_LT_OQ>(at, hi));
            _mm256_blendv_ps(other, v, within)
        })
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        proven!({
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        proven!({
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn deinterleave(self, a: __m256, b: __m256) -> (__m256, __m256) {
        proven!({
            let low = _mm256_permute2f128_ps::<0x20>(a, b);
            let high = _mm256_permute2f128_ps::<0x31>(a, b);
            (_mm256_shuffle_ps::<0x88>(low, high), _mm256_shuffle_ps::<0xdd>(low, high))
        })
    }

    #[inline(always)]
    fn interleave(self, even: __m256, odd: __m256) -> (__m256, __m256) {
        proven!({
            let low = _mm256_unpacklo_ps(even, odd);
            let high = _mm256_unpackhi_ps(even, odd);
            (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        })
    }
}
