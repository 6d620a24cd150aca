//! Compares each kernel on each instruction set with its definition in `f64`, for lengths around a
//! vector's.

use super::*;
use crate::program::Activation;
use crate::program::RopeStyle;
use crate::simd::Isa;

/// Numbers in -4 to 4 (Knuth's multiplicative hash).
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let number =
        |i: u32| (i.wrapping_add(seed * 7919).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 21) as f32 - 4.0;
    (0..len as u32).map(number).collect()
}

const LENGTHS: [usize; 14] = [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 64, 65, 80, 576];

#[track_caller]
fn assert_close(got: &[f32], expected: impl IntoIterator<Item = f64>, tolerance: f64) {
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(got.len(), expected.len());
    for (i, (&got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(got) - expected).abs() <= tolerance, "{i}: {got} for {expected}");
    }
}

fn definition(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
    }
}

macro_rules! for_each_isa {
    ($($test:ident)*) => { $(
        #[test]
        fn $test() {
            for isa in Isa::available() {
                super::$test(isa);
            }
        }
    )* };
}

mod each {
    use super::Isa;
    for_each_isa! { additions scales_and_softcaps activations rms_norms ropes }
}

fn additions(isa: Isa) {
    for len in LENGTHS {
        let (x, y) = (numbers(len, 1), numbers(len, 2));
        let mut out = y.clone();
        add(isa, &x, &mut out);
        assert_close(&out, (0..len).map(|i| f64::from(x[i] + y[i])), 0.0);
    }
}

fn scales_and_softcaps(isa: Isa) {
    for len in LENGTHS {
        let x = numbers(len, 3);
        let mut out = x.clone();
        scale(isa, 0.3, &mut out);
        assert_close(&out, x.iter().map(|&x| f64::from(x * 0.3)), 0.0);
        let mut out = x.clone();
        softcap(isa, 2.5, &mut out);
        assert_close(&out, x.iter().map(|&x| 2.5 * (f64::from(x) / 2.5).tanh()), 1e-6);
    }
    let mut extremes = [f32::INFINITY, f32::NEG_INFINITY, 1e30, 1e-30, 0.0, f32::NAN];
    softcap(isa, 30.0, &mut extremes);
    assert_eq!(extremes[..5], [30.0, -30.0, 30.0, 1e-30, 0.0]);
    assert!(extremes[5].is_nan());
}

fn activations(isa: Isa) {
    for activation in [Activation::Silu, Activation::Gelu] {
        for len in LENGTHS {
            let (gate, up) = (numbers(len, 4), numbers(len, 5));
            let mut out = gate.clone();
            glu(isa, activation, &mut out, &up);
            let expected = (0..len).map(|i| definition(activation, f64::from(gate[i])) * f64::from(up[i]));
            assert_close(&out, expected, 1e-5);
        }
        let mut extremes = [1e30, -1e30, f32::NAN];
        glu(isa, activation, &mut extremes, &[1.0; 3]);
        assert!(extremes[0] == 1e30 && extremes[1].abs() < 1e-6 && extremes[2].is_nan(), "{activation:?} {extremes:?}");
    }
}

fn rms_norms(isa: Isa) {
    for dim in LENGTHS {
        let (x, weight) = (numbers(3 * dim, 6), numbers(dim, 7));
        let expected = || {
            (0..3 * dim).map(|i| {
                let row = &x[i / dim * dim..][..dim];
                let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / dim as f64;
                f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i % dim])
            })
        };
        let mut out = vec![f32::NAN; 3 * dim];
        rms_norm(isa, &x, dim, &weight, 1e-5, &mut out);
        assert_close(&out, expected(), 2e-5);
        let mut out = x.clone();
        rms_norm_in_place(isa, &mut out, dim, &weight, 1e-5);
        assert_close(&out, expected(), 2e-5);
    }
}

fn ropes(isa: Isa) {
    for (head_dim, n_rot) in [(2, 2), (6, 4), (64, 64), (80, 32), (80, 80), (72, 72), (128, 128), (66, 34), (5, 0)] {
        let (rows, heads, pairs) = (3, 2, n_rot / 2);
        let x = numbers(rows * heads * head_dim, 11);
        let angles = numbers(rows * pairs, 12);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        for style in [RopeStyle::Norm, RopeStyle::Neox] {
            let mut expected: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            for (head, values) in expected.chunks_exact_mut(head_dim).enumerate() {
                for i in 0..pairs {
                    let (a, b) = match style {
                        RopeStyle::Norm => (2 * i, 2 * i + 1),
                        RopeStyle::Neox => (i, i + pairs),
                    };
                    let at = head / heads * pairs + i;
                    let (cos, sin) = (f64::from(cos[at]), f64::from(sin[at]));
                    (values[a], values[b]) = (values[a] * cos - values[b] * sin, values[a] * sin + values[b] * cos);
                }
            }
            let mut out = x.clone();
            rope(isa, style, &mut out, heads, head_dim, &cos, &sin);
            assert_close(&out, expected, 1e-6);
        }
    }
    rope(isa, RopeStyle::Neox, &mut [], 2, 4, &[], &[]);
}
