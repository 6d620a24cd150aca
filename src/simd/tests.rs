//! Compares each operation of each instruction set with plain Rust, and checks the accuracy of the
//! elementary functions.

use super::*;
use crate::simd::Isa;

/// Runs the operations on lanes with distinct values.
struct Operations;

impl<S: Simd> Kernel<S> for Operations {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let n = S::LANES;
        assert!(16 % n == 0 && (S::ROWS == 4 || S::ROWS == 8) && (1..=4).contains(&S::QUERIES));
        let a: Vec<f32> = (0..n).map(|i| i as f32 * 1.25 - 3.0).collect();
        let b: Vec<f32> = (0..n).map(|i| 7.5 - i as f32 * 0.75).collect();
        let get = |v: S::V| {
            let mut out = vec![0.0; n];
            // SAFETY: `out` is as long as a vector.
            unsafe { s.store(out.as_mut_ptr(), v) };
            out
        };
        // SAFETY: `a` and `b` are as long as a vector.
        let (va, vb) = unsafe { (s.load(a.as_ptr()), s.load(b.as_ptr())) };
        let each = |f: &dyn Fn(f32, f32) -> f32| a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect::<Vec<_>>();
        assert_eq!(get(va), a);
        assert_eq!(get(s.splat(2.5)), vec![2.5; n]);
        assert_eq!(get(s.add(va, vb)), each(&|a, b| a + b));
        assert_eq!(get(s.sub(va, vb)), each(&|a, b| a - b));
        assert_eq!(get(s.mul(va, vb)), each(&|a, b| a * b));
        assert_eq!(get(s.div(va, vb)), each(&|a, b| a / b));
        assert_eq!(get(s.max(va, vb)), each(&|a, b| a.max(b)));
        assert_eq!(get(s.min(va, vb)), each(&|a, b| a.min(b)));
        assert_eq!(get(s.fma(va, vb, s.splat(0.5))), each(&|a, b| a * b + 0.5), "exact for these");
        let nan = s.splat(f32::NAN);
        assert_eq!((get(s.max(nan, va)), get(s.min(nan, va))), (a.clone(), a.clone()));
        assert!(get(s.max(va, nan)).iter().chain(&get(s.min(va, nan))).all(|x| x.is_nan()));
        let halves = get(s.round(s.mul(va, s.splat(2.0))));
        assert_eq!(halves, each(&|a, _| (a * 2.0).round_ties_even()));
        assert_eq!(s.sum(va), a.iter().sum::<f32>());
        assert_eq!((s.largest(va), s.largest(vb)), (a[n - 1], b[0]));
        let mut halves: Vec<f32> = (0..n).map(|i| 1.0 / (i + 3) as f32).collect();
        // SAFETY: `halves` is as long as a vector.
        let thirds = s.sum(unsafe { s.load(halves.as_ptr()) });
        while halves.len() > 1 {
            let upper = halves.split_off(halves.len() / 2);
            halves.iter_mut().zip(upper).for_each(|(a, b)| *a += b);
        }
        assert_eq!(thirds.to_bits(), halves[0].to_bits(), "in this order");
        assert_eq!((first(s, va), first(s, vb)), (a[0], b[0]));
        for (at, lo, hi) in [(0.0, -1.0, 3.0), (2.0, 2.0, 3.0), (3.0, 2.0, 3.0), (1.0, 2.0, 3.0)] {
            let got = get(s.select_within(s.splat(at), s.splat(lo), s.splat(hi), va, vb));
            assert_eq!(got, if lo <= at && at < hi { &a[..] } else { &b[..] });
        }
        for power in [-127, -126, -1, 0, 5, 127] {
            let expected = if power == -127 { 0.0 } else { 1.5 * 2f32.powi(power) };
            assert_eq!(get(s.scale_by_power(s.splat(1.5), s.splat(power as f32)))[0], expected);
        }
        let (even, odd) = s.deinterleave(va, vb);
        let both: Vec<f32> = a.iter().chain(&b).copied().collect();
        assert_eq!(get(even), both.iter().copied().step_by(2).collect::<Vec<_>>());
        assert_eq!(get(odd), both.iter().copied().skip(1).step_by(2).collect::<Vec<_>>());
        let (low, high) = s.interleave(even, odd);
        assert_eq!((get(low), get(high)), (a.clone(), b.clone()));
        let square: Vec<f32> = (0..n * (n + 1)).map(|i| i as f32).collect();
        let mut transposed = vec![-1.0; n * (n + 2)];
        // SAFETY: `square` has `n` rows with one number between them, `transposed` has `n` with
        // two.
        unsafe { transpose(s, square.as_ptr(), n + 1, transposed.as_mut_ptr(), n + 2) };
        for (i, &x) in transposed.iter().enumerate() {
            let (row, column) = (i / (n + 2), i % (n + 2));
            assert_eq!(x, if column < n { square[column * (n + 1) + row] } else { -1.0 });
        }
        for part in 0..n {
            let mut out = vec![9.0; n];
            // SAFETY: both are as long as a vector, and `part` is less.
            let loaded = unsafe {
                s.store_part(out.as_mut_ptr(), part, va);
                get(s.load_part(a.as_ptr(), part))
            };
            for i in 0..n {
                assert_eq!((out[i], loaded[i]), if i < part { (a[i], a[i]) } else { (9.0, 0.0) });
            }
        }
    }
}

/// Loads every number of the small types, and rounds to them.
struct Conversions;

impl<S: Simd> Kernel<S> for Conversions {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let mut out = vec![0.0; S::LANES];
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        for bits in halves.chunks_exact(S::LANES) {
            let mut back = vec![0; S::LANES];
            // SAFETY: all three are as long as a vector.
            unsafe {
                let v = s.load_f16(bits.as_ptr());
                s.store(out.as_mut_ptr(), v);
                s.store_f16(back.as_mut_ptr(), v);
            }
            for i in 0..S::LANES {
                let expected = half::f16::from_bits(bits[i]);
                if expected.is_nan() {
                    assert!(out[i].is_nan() && half::f16::from_bits(back[i]).is_nan());
                } else {
                    assert_eq!((out[i].to_bits(), back[i]), (expected.to_f32().to_bits(), bits[i]));
                }
            }
        }
        let between = [2049.0, 2051.0, 1e-8, 1e6];
        let (numbers, mut back) = ([between; 4], [0; 16]);
        let bytes: Vec<i8> = (-128..=127).collect();
        // SAFETY: all are at least as long as a vector.
        unsafe {
            s.store_f16(back.as_mut_ptr(), s.load(numbers.as_ptr().cast()));
            assert_eq!(back[..4], between.map(|x| half::f16::from_f32(x).to_bits()));
            for bytes in bytes.chunks_exact(S::LANES) {
                let mut back = vec![0; S::LANES];
                s.store(out.as_mut_ptr(), s.load_i8(bytes.as_ptr()));
                assert_eq!(out, bytes.iter().map(|&b| f32::from(b)).collect::<Vec<_>>());
                s.store_i8(back.as_mut_ptr(), s.add(s.load(out.as_ptr()), s.splat(0.25)));
                assert_eq!(back, bytes);
            }
        }
    }
}

/// Evaluates one of the elementary functions on many numbers.
struct Evaluate<'a>(Function, &'a [f32]);

#[derive(Debug, Clone, Copy)]
enum Function {
    Exp2,
    Exp,
    Tanh,
    Sigmoid,
    Silu,
    GeluTanh,
}

impl<S: Simd> Kernel<S> for Evaluate<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self, s: S) -> Vec<f32> {
        let mut out = self.1.to_vec();
        for x in out.chunks_mut(S::LANES) {
            // SAFETY: only the chunk is accessed.
            unsafe {
                let v = load_up_to(s, x.as_ptr(), x.len());
                let y = match self.0 {
                    Function::Exp2 => math::exp2(s, v),
                    Function::Exp => math::exp(s, v),
                    Function::Tanh => math::tanh(s, v),
                    Function::Sigmoid => math::sigmoid(s, v),
                    Function::Silu => math::silu(s, v),
                    Function::GeluTanh => math::gelu_tanh(s, v),
                };
                store_up_to(s, x.as_mut_ptr(), x.len(), y);
            }
        }
        out
    }
}

/// The largest relative error over a range. The error is relative to `magnitude(x, f(x))`.
fn worst(isa: Isa, f: Function, from: f32, to: f32, exact: fn(f64) -> f64, magnitude: fn(f64, f64) -> f64) -> f64 {
    const STEPS: usize = 40_000;
    let mut x: Vec<f32> = (0..=STEPS).map(|i| from + (to - from) * (i as f32 / STEPS as f32)).collect();
    // Also numbers near zero, where relative errors show.
    x.extend((0..60).map(|i| 1e-1f32.powi(i / 4) * (i as f32 - 30.0) / 30.0).filter(|x| (from..=to).contains(x)));
    let error = |(&x, y): (&f32, f32)| {
        let (x, y) = (f64::from(x), f64::from(y));
        let (exact, size) = (exact(x), magnitude(x, exact(x)));
        if exact == y { 0.0 } else { (y - exact).abs() / size }
    };
    x.iter().zip(run(isa, Evaluate(f, &x))).map(error).fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

#[test]
fn operations_agree_with_plain_rust() {
    for isa in Isa::available() {
        run(isa, Operations);
        run(isa, Conversions);
    }
}

#[test]
fn functions_are_as_accurate_as_documented() {
    let relative = |_: f64, y: f64| y.abs();
    let to_x = |x: f64, _: f64| x.abs();
    let gelu_tanh =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
    for isa in Isa::available() {
        let errors = [
            (Function::Exp2, 2e-7, worst(isa, Function::Exp2, -126.0, 127.0, f64::exp2, relative)),
            (Function::Exp, 3e-7, worst(isa, Function::Exp, -87.0, 88.0, f64::exp, relative)),
            (Function::Tanh, 5e-7, worst(isa, Function::Tanh, -12.0, 12.0, f64::tanh, relative)),
            (
                Function::Sigmoid,
                5e-7,
                worst(isa, Function::Sigmoid, -86.0, 100.0, |x| 1.0 / (1.0 + (-x).exp()), relative),
            ),
            (Function::Silu, 5e-7, worst(isa, Function::Silu, -100.0, 100.0, |x| x / (1.0 + (-x).exp()), to_x)),
            (Function::GeluTanh, 5e-7, worst(isa, Function::GeluTanh, -20.0, 20.0, gelu_tanh, to_x)),
        ];
        for (function, limit, error) in errors {
            println!("{isa:?} {function:?}: {error:.2e}");
            assert!(error < limit, "{isa:?} {function:?}: {error:e}");
        }
    }
}

#[test]
fn functions_of_extremes() {
    let x = [f32::NEG_INFINITY, -1e30, -127.0, -128.0, f32::NAN];
    for isa in Isa::available() {
        let exp2 = run(isa, Evaluate(Function::Exp2, &x));
        assert!(exp2[..4] == [0.0; 4] && exp2[4].is_nan(), "{isa:?} {exp2:?}");
        let exp = run(isa, Evaluate(Function::Exp, &[f32::NEG_INFINITY, -90.0, 0.0, f32::INFINITY, f32::NAN]));
        assert!(exp[..3] == [0.0, 0.0, 1.0] && exp[3] > 1.6e38 && exp[4].is_nan(), "{isa:?} {exp:?}");
        let tanh = run(isa, Evaluate(Function::Tanh, &[f32::NEG_INFINITY, 0.0, f32::INFINITY, f32::NAN]));
        assert!(tanh[..3] == [-1.0, 0.0, 1.0] && tanh[3].is_nan(), "{isa:?} {tanh:?}");
    }
}
