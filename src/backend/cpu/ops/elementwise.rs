//! Element-wise operations.

use crate::simd::Isa;
use crate::simd::{self, Kernel, Simd, load_up_to, math, store_up_to};

/// `out += x`.
pub(crate) fn add(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    simd::run(isa, Add { x, out });
}

struct Add<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<S: Simd> Kernel<S> for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let len = self.x.len().min(self.out.len());
        for i in (0..len).step_by(S::LANES) {
            // SAFETY: accesses at most the rest of both slices.
            unsafe {
                let out = self.out.as_mut_ptr().add(i);
                let sum = s.add(load_up_to(s, out, len - i), load_up_to(s, self.x.as_ptr().add(i), len - i));
                store_up_to(s, out, len - i, sum);
            }
        }
    }
}

/// `x *= factor`.
pub(crate) fn scale(isa: Isa, factor: f32, x: &mut [f32]) {
    simd::run(isa, Map { x, function: Scale(factor) });
}

/// `x = cap · tanh(x / cap)`, which keeps magnitudes below `cap`.
pub(crate) fn softcap(isa: Isa, cap: f32, x: &mut [f32]) {
    simd::run(isa, Map { x, function: Softcap(cap) });
}

/// A function of one number.
pub(super) trait Function: Copy {
    /// The value for each lane. Implementations must be `#[inline(always)]`.
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V;
}

/// Applies the function to each number.
struct Map<'a, F> {
    x: &'a mut [f32],
    function: F,
}

impl<S: Simd, F: Function> Kernel<S> for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let len = self.x.len();
        for i in (0..len).step_by(S::LANES) {
            // SAFETY: accesses at most the rest of the slice.
            unsafe {
                let x = self.x.as_mut_ptr().add(i);
                store_up_to(s, x, len - i, self.function.of(s, load_up_to(s, x, len - i)));
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);

impl Function for Scale {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.mul(x, s.splat(self.0))
    }
}

#[derive(Clone, Copy)]
struct Softcap(f32);

impl Function for Softcap {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
        let cap = s.splat(self.0);
        s.mul(math::tanh(s, s.div(x, cap)), cap)
    }
}
