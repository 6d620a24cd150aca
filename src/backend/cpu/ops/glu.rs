//! Gated activation functions.

use super::elementwise::Function;
use crate::program::Activation;
use crate::simd::Isa;
use crate::simd::{self, Kernel, Simd, load_up_to, math, store_up_to};

/// `gate = activation(gate) · up`: a gated linear unit (Shazeer, GLU Variants Improve Transformer,
/// 2020). The activation's error is below `5e-7 · |x|`.
pub(crate) fn glu(isa: Isa, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert!(gate.len() == up.len());
    match activation {
        Activation::Silu => simd::run(isa, Gate { gate, up, function: Silu }),
        Activation::Gelu => simd::run(isa, Gate { gate, up, function: Gelu }),
    }
}

struct Gate<'a, F> {
    gate: &'a mut [f32],
    up: &'a [f32],
    function: F,
}

impl<S: Simd, F: Function> Kernel<S> for Gate<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let len = self.gate.len().min(self.up.len());
        for i in (0..len).step_by(S::LANES) {
            // SAFETY: accesses at most the rest of both slices.
            unsafe {
                let gate = self.gate.as_mut_ptr().add(i);
                let up = load_up_to(s, self.up.as_ptr().add(i), len - i);
                let activated = self.function.of(s, load_up_to(s, gate, len - i));
                store_up_to(s, gate, len - i, s.mul(activated, up));
            }
        }
    }
}

macro_rules! functions {
    ($($name:ident = $function:expr;)*) => { $(
        #[derive(Clone, Copy)]
        struct $name;

        impl Function for $name {
            #[inline(always)]
            fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
                $function(s, x)
            }
        }
    )* };
}

functions! {
    Silu = math::silu;
    Gelu = math::gelu_tanh;
}
