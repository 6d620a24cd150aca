//! Vectors in plain Rust. Compilers turn them into instructions of the target (SSE2, NEON). They
//! run where there is no hand-written instruction set, and are the reference for the others.

use super::{Kernel, Simd, Token};

const LANES: usize = 4;

/// Plain Rust, which every processor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scalar;

impl Token for Scalar {
    unsafe fn assume() -> Self {
        Self
    }

    #[inline(always)]
    fn call<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        // Not inlined, like the kernels of the other instruction sets.
        #[inline(never)]
        fn call<K: Kernel<Scalar>>(kernel: K) -> K::Output {
            kernel.run(Scalar)
        }
        call(kernel)
    }
}

/// Computes each lane.
#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    [f(0), f(1), f(2), f(3)]
}

/// Converts half precision to single, exactly. A multiplication moves the exponent and also
/// normalizes subnormal numbers. It cannot give infinity and NaN their exponent, so they get it
/// afterwards.
#[inline(always)]
fn f16_to_f32(h: u16) -> f32 {
    let magnitude = (u32::from(h) & 0x7fff) << 13;
    let sign = (u32::from(h) & 0x8000) << 16;
    let value = f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23);
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | special | sign)
}

impl Simd for Scalar {
    type V = [f32; LANES];
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const QUERIES: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V {
        // SAFETY: the caller's promise; only the first n numbers are read.
        lanes(|i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller's promise; only the first n numbers are written.
            unsafe { p.add(i).write_unaligned(x) }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::V {
        // SAFETY: the caller's promise.
        let h = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        lanes(|i| f16_to_f32(h[i]))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::V) {
        let h = v.map(|x| half::f16::from_f32(x).to_bits());
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(h) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::V {
        // SAFETY: the caller's promise.
        let x = unsafe { p.cast::<[i8; LANES]>().read_unaligned() };
        lanes(|i| f32::from(x[i]))
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::V) {
        let x = self.round(v).map(|x| x as i8);
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(x) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // On targets without such an instruction, `mul_add` is a slow library call.
        if cfg!(target_arch = "aarch64") { lanes(|i| a[i].mul_add(b[i], c[i])) } else { lanes(|i| a[i] * b[i] + c[i]) }
    }

    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        // 1.5 * 2^23: adding it leaves no bits for a fraction.
        const SHIFT: f32 = 12_582_912.0;
        lanes(|i| (v[i] + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn scale_by_power(self, v: Self::V, n: Self::V) -> Self::V {
        lanes(|i| v[i] * f32::from_bits(((n[i] as i32).wrapping_add(127) << 23) as u32))
    }

    #[inline(always)]
    fn select_within(self, at: Self::V, lo: Self::V, hi: Self::V, v: Self::V, other: Self::V) -> Self::V {
        lanes(|i| if lo[i] <= at[i] && at[i] < hi[i] { v[i] } else { other[i] })
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }

    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v[0].max(v[1]).max(v[2].max(v[3]))
    }

    #[inline(always)]
    fn deinterleave(self, a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        ([a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]])
    }

    #[inline(always)]
    fn interleave(self, even: Self::V, odd: Self::V) -> (Self::V, Self::V) {
        ([even[0], odd[0], even[1], odd[1]], [even[2], odd[2], even[3], odd[3]])
    }
}
