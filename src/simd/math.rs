//! Elementary functions of vectors. The tests check the stated errors.

use std::f32::consts::{LN_2, LOG2_E};

use super::Simd;

/// Where exponentials saturate: 2^127 above, zero below.
const LARGEST_EXPONENT: f32 = 127.0;

/// `(2^t - 1) / t` for `t` in -0.5 to 0.5: interpolation at the Chebyshev nodes, of degree five,
/// with an error of 1.2e-8.
const POLYNOMIAL: [f32; 6] = [LN_2, 0.240_226_5, 0.055_503_57, 0.009_618_083, 0.001_339_086_3, 0.000_154_531_63];

/// `2^t - 1` for `t` in -0.5 to 0.5. The relative error is small near zero too.
#[inline(always)]
fn exp2_fraction<S: Simd>(s: S, t: S::V) -> S::V {
    let mut sum = s.splat(POLYNOMIAL[5]);
    for i in [4, 3, 2, 1, 0] {
        sum = s.fma(sum, t, s.splat(POLYNOMIAL[i]));
    }
    s.mul(sum, t)
}

/// `2^t` for `t` up to 127. Zero below -126.5 and for negative infinity, NaN for NaN. Relative
/// error below 2e-7.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, t: S::V) -> S::V {
    let t = s.max(s.splat(-LARGEST_EXPONENT), t);
    let n = s.round(t);
    let fraction = exp2_fraction(s, s.sub(t, n));
    s.scale_by_power(s.add(fraction, s.splat(1.0)), n)
}

/// Splits `x = n * ln 2 + r` into the integer `n` and `2^(r / ln 2) - 1`, for `n` within -127 to
/// 127.
#[inline(always)]
fn split_exponent<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    // ln 2 in two parts. The first has so few bits that its product with n is exact (Cody and
    // Waite, 1980).
    const HIGH: f32 = 355.0 / 512.0;
    const LOW: f32 = -2.121_944_4e-4;
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.fma(n, s.splat(-HIGH), x);
    let r = s.fma(n, s.splat(-LOW), r);
    (n, exp2_fraction(s, s.mul(r, s.splat(LOG2_E))))
}

/// `e^x`; saturates at 1.7e38, zero below -87.7. Relative error below 3e-7.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    const LIMIT: f32 = LARGEST_EXPONENT * LN_2;
    let x = s.max(s.splat(-LIMIT), s.min(s.splat(LIMIT), x));
    let (n, fraction) = split_exponent(s, x);
    s.scale_by_power(s.add(fraction, s.splat(1.0)), n)
}

/// `tanh x`. Relative error below 5e-7, near zero too.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // With e = exp(2x) - 1, computed without cancellation, tanh x = e / (e + 2). In f32 it is 1
    // from 9.01 on.
    let x = s.max(s.splat(-9.5), s.min(s.splat(9.5), x));
    let (n, fraction) = split_exponent(s, s.add(x, x));
    let power = s.scale_by_power(s.splat(1.0), n);
    let e = s.fma(power, fraction, s.sub(power, s.splat(1.0)));
    s.div(e, s.add(e, s.splat(2.0)))
}

/// `1 / (1 + e^-x)`. Relative error below 5e-7 for `x` above -87. Below that the result is less
/// than 1e-38 or zero.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `x · sigmoid(x)`. Error below 5e-7 · |x|.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.mul(x, sigmoid(s, x))
}

/// GELU, approximated by tanh: `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))` (Hendrycks and Gimpel,
/// 2016). Error below 5e-7 · |x|.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // (1 + tanh u) / 2 = sigmoid 2u.
    const SQRT_8_OVER_PI: f32 = 1.595_769;
    let cubic = s.mul(s.mul(x, x), s.splat(0.044715 * SQRT_8_OVER_PI));
    let u = s.mul(x, s.add(cubic, s.splat(SQRT_8_OVER_PI)));
    s.mul(x, sigmoid(s, u))
}
