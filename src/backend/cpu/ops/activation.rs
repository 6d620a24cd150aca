//! Activation functions, alone and gated.

use super::elementwise::{Function, Map};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::simd::{self, Kernel, Simd, load_up_to, math, store_up_to};

/// The nonlinear function of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x · sigmoid(x)`, also called swish.
    Silu,
    /// GELU in its approximation by tanh.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
}

/// `x = activation(x)`. Errors are below `5e-7 · |x|`.
pub(crate) fn activate(isa: Isa, activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => simd::run(isa, Map { x, function: Silu }),
        Activation::GeluTanh => simd::run(isa, Map { x, function: GeluTanh }),
        Activation::GeluErf => simd::run(isa, Map { x, function: GeluErf }),
        Activation::Relu => simd::run(isa, Map { x, function: Relu }),
    }
}

/// `out = activation(gate) · up`: a gated linear unit (Shazeer, GLU Variants Improve Transformer, 2020).
pub(crate) fn glu(isa: Isa, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && up.len() == out.len());
    match activation {
        Activation::Silu => simd::run(isa, Gate { gate, up, out, function: Silu }),
        Activation::GeluTanh => simd::run(isa, Gate { gate, up, out, function: GeluTanh }),
        Activation::GeluErf => simd::run(isa, Gate { gate, up, out, function: GeluErf }),
        Activation::Relu => simd::run(isa, Gate { gate, up, out, function: Relu }),
    }
}

struct Gate<'a, F> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
    function: F,
}

impl<F: Function> Kernel for Gate<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.gate.len().min(self.up.len()).min(self.out.len());
        for i in (0..len).step_by(S::LANES) {
            // SAFETY: no more than what is left of all three slices.
            unsafe {
                let gate = self.function.of(s, load_up_to(s, self.gate.as_ptr().add(i), len - i));
                let up = load_up_to(s, self.up.as_ptr().add(i), len - i);
                store_up_to(s, self.out.as_mut_ptr().add(i), len - i, s.mul(gate, up));
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
    GeluTanh = math::gelu_tanh;
    GeluErf = math::gelu_erf;
    Relu = math::relu;
}
