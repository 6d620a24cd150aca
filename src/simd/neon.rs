//! Vectors of four lanes: NEON.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::{Kernel, Simd, Token};

/// NEON, which every 64-bit ARM processor with an operating system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    /// The token, if the processor has the instructions.
    pub(super) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

impl Token for Neon {
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn call<K: Kernel<Neon>>(token: Neon, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has the features.
        unsafe { call(self, kernel) }
    }
}

/// The dot products of ARMv8.4 (`sdot`), besides [`Neon`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dotprod(Neon);

impl Dotprod {
    /// The token, if the processor has the instructions.
    pub(super) fn new() -> Option<Self> {
        Neon::new().filter(|_| is_aarch64_feature_detected!("dotprod")).map(Self)
    }

    /// The instruction set whose vectors this one uses.
    pub(crate) fn neon(self) -> Neon {
        self.0
    }
}

impl Token for Dotprod {
    unsafe fn assume() -> Self {
        // SAFETY: the caller's promise covers NEON.
        Self(unsafe { Neon::assume() })
    }

    #[inline(always)]
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn call<K: Kernel<Dotprod>>(token: Dotprod, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has the features.
        unsafe { call(self, kernel) }
    }
}

/// The 8-bit matrix products of ARMv8.6 (`smmla`), besides all of [`Dotprod`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct I8mm(Dotprod);

impl I8mm {
    /// The token, if the processor has the instructions.
    pub(super) fn new() -> Option<Self> {
        Dotprod::new().filter(|_| is_aarch64_feature_detected!("i8mm")).map(Self)
    }

    /// The instruction set whose vectors this one uses.
    pub(crate) fn neon(self) -> Neon {
        self.0.neon()
    }
}

impl Token for I8mm {
    unsafe fn assume() -> Self {
        // SAFETY: the caller's promise covers `Dotprod`.
        Self(unsafe { Dotprod::assume() })
    }

    #[inline(always)]
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn call<K: Kernel<I8mm>>(token: I8mm, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has the features.
        unsafe { call(self, kernel) }
    }
}

/// Wraps instructions. A value of [`Neon`] proves that the processor has them.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: `Neon` exists only where the processor has the features. Where memory is
        // accessed, the enclosing function is unsafe, and its caller promises that the memory is
        // valid.
        unsafe { $e }
    };
}

/// Converts half precision to single. The standard library's functions for this are not stable yet.
#[inline(always)]
pub(crate) fn f16_to_f32(h: uint16x4_t) -> float32x4_t {
    let v;
    // SAFETY: every processor with NEON has this instruction, and it works on registers only.
    unsafe { asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) v, in(vreg) h, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// Rounds to half precision, to nearest even.
#[inline(always)]
fn f32_to_f16(v: float32x4_t) -> uint16x4_t {
    let h;
    // SAFETY: as above.
    unsafe { asm!("fcvtn {:v}.4h, {:v}.4s", out(vreg) h, in(vreg) v, options(pure, nomem, nostack, preserves_flags)) };
    h
}

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 8;
    const QUERIES: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        proven!(vdupq_n_f32(x))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        proven!(p.cast::<float32x4_t>().read_unaligned())
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        proven!(p.cast::<float32x4_t>().write_unaligned(v))
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> float32x4_t {
        debug_assert!(n < 4);
        proven!({
            let mut v = vdupq_n_f32(0.0);
            if n >= 2 {
                v = vcombine_f32(p.cast::<float32x2_t>().read_unaligned(), vdup_n_f32(0.0));
            }
            match n {
                1 => vsetq_lane_f32::<0>(p.read_unaligned(), v),
                3 => vsetq_lane_f32::<2>(p.add(2).read_unaligned(), v),
                _ => v,
            }
        })
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: float32x4_t) {
        debug_assert!(n < 4);
        proven!({
            if n >= 2 {
                p.cast::<float32x2_t>().write_unaligned(vget_low_f32(v));
            }
            match n {
                1 => p.write_unaligned(vgetq_lane_f32::<0>(v)),
                3 => p.add(2).write_unaligned(vgetq_lane_f32::<2>(v)),
                _ => {}
            }
        })
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> float32x4_t {
        proven!(f16_to_f32(p.cast::<uint16x4_t>().read_unaligned()))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: float32x4_t) {
        proven!(p.cast::<uint16x4_t>().write_unaligned(f32_to_f16(v)))
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> float32x4_t {
        proven!({
            let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        })
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: float32x4_t) {
        proven!({
            let x = vmovn_s32(vcvtnq_s32_f32(v));
            let x = vmovn_s16(vcombine_s16(x, x));
            p.cast::<i32>().write_unaligned(vget_lane_s32::<0>(vreinterpret_s32_s8(x)))
        })
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // `fmax` would return NaN where either operand is NaN.
        proven!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vbslq_f32(vcltq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        proven!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn round(self, v: float32x4_t) -> float32x4_t {
        proven!(vrndnq_f32(v))
    }

    #[inline(always)]
    fn scale_by_power(self, v: float32x4_t, n: float32x4_t) -> float32x4_t {
        proven!({
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(v, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        })
    }

    #[inline(always)]
    fn select_within(
        self,
        at: float32x4_t,
        lo: float32x4_t,
        hi: float32x4_t,
        v: float32x4_t,
        other: float32x4_t,
    ) -> float32x4_t {
        proven!(vbslq_f32(vandq_u32(vcleq_f32(lo, at), vcltq_f32(at, hi)), v, other))
    }

    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        proven!({
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(vpadd_f32(v, v))
        })
    }

    #[inline(always)]
    fn largest(self, v: float32x4_t) -> f32 {
        // Ignores NaN, like plain Rust.
        proven!(vmaxnmvq_f32(v))
    }

    #[inline(always)]
    fn deinterleave(self, a: float32x4_t, b: float32x4_t) -> (float32x4_t, float32x4_t) {
        proven!((vuzp1q_f32(a, b), vuzp2q_f32(a, b)))
    }

    #[inline(always)]
    fn interleave(self, even: float32x4_t, odd: float32x4_t) -> (float32x4_t, float32x4_t) {
        proven!((vzip1q_f32(even, odd), vzip2q_f32(even, odd)))
    }
}
