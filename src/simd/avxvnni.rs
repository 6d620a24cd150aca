//! AVX-VNNI: VNNI's products of bytes in vectors of 256 bits. Intel's client processors have it
//! from the 12th generation on, without AVX-512. It uses AVX2's vectors of `f32`.

use super::lanes::avx2::Eight;
use super::{Avx2, Kernel, Token};
use std::arch::x86_64::*;

/// AVX-VNNI, besides all of [`Avx2`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    /// The token, if the processor has the instructions.
    pub(super) fn new() -> Option<Self> {
        Avx2::new().filter(|_| is_x86_feature_detected!("avxvnni")).map(Self)
    }

    /// The instruction set that this one extends.
    pub(crate) fn avx2(self) -> Avx2 {
        self.0
    }
}

impl Token for AvxVnni {
    unsafe fn assume() -> Self {
        // SAFETY: the caller's promise covers AVX2.
        Self(unsafe { Avx2::assume() })
    }

    #[inline(always)]
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
        fn call<K: Kernel<AvxVnni>>(token: AvxVnni, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has the features.
        unsafe { call(self, kernel) }
    }
}

impl Eight for AvxVnni {
    const WIDE_ZERO: i32 = 128;

    #[inline(always)]
    fn wide(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_xor_si256(a, _mm256_set1_epi8(-128)) }
    }
}
