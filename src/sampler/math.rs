//! exp and ln from `+ - * /` and integer operations only, so that every machine gets the same bits.
//! The platforms' libm versions differ, and a difference in the last place is enough to draw
//! another token. Nothing here uses a fused multiply-add, and the compiler never forms one by
//! itself.

/// The weight of a candidate that is as good as the best one. Weights are fixed-point numbers of 40
/// fractional bits. Their sums are exact in any order, so neither the width of a vector register
/// nor the way of sorting candidates can change a draw.
pub(crate) const UNIT: u64 = 1 << 40;

/// The longest row of logits whose weights cannot overflow a sum in 64 bits.
pub(crate) const MAX_VOCABULARY: usize = 1 << 23;

/// 2^12, whose neighbours are 2^-40 apart. Adding it rounds a number below 2^12 to the grid of the
/// weights, and leaves the grid's integer in the low bits.
const GRID: f64 = 4096.0;

/// `exp(x)` for `x <= 0`. `x` is clamped to at least -40, and NaN counts as -40. The relative error
/// is below 9e-8, and `exp(0)` is exactly 1.
///
/// The argument is reduced to `x = n ln 2 + r` with `|r| <= ln 2 / 2`, in two steps so that `r` is exact to the last
/// place (Cody and Waite); `exp(r)` is `1 + r + r² q(r)` with a minimax polynomial `q` of degree 4.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23, whose neighbours are 1 apart. Adding it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts. The first has so few bits that its product with `n` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    // In this form, NaN takes the second branch, and the clamp is one instruction.
    let x = if x > -40.0 { x } else { -40.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let q = (((1.381_454e-3 * r + 8.368_745e-3) * r + 4.166_839e-2) * r + 0.166_665_2) * r + 0.499_999_93;
    let mantissa = (q * (r * r) + r) + 1.0;
    // The low bits of `rounded` are n. The shift moves them to the exponent, where they add, and
    // drops the rest.
    f32::from_bits(mantissa.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// `exp(x)` for `x <= 0` as a weight: [`UNIT`] for 0, and 0 for anything below -28.4 and for NaN.
#[inline(always)]
pub(crate) fn weight(x: f32) -> u64 {
    weight_bits(x).wrapping_sub(WEIGHT_BITS_OF_ZERO)
}

/// A [`weight`] plus [`WEIGHT_BITS_OF_ZERO`]. A loop sums these and subtracts the constant only
/// once (both wrapping).
#[inline(always)]
pub(crate) fn weight_bits(x: f32) -> u64 {
    (f64::from(exp(x)) + GRID).to_bits()
}

/// The result of [`weight_bits`] for a weight of 0.
pub(crate) const WEIGHT_BITS_OF_ZERO: u64 = GRID.to_bits();

/// The natural logarithm of a positive, finite, normal number. The absolute error is below 1e-15 plus one unit in the
/// last place.
///
/// `x = m 2^e` with `m` between √½ and √2; `ln m = 2 artanh((m - 1) / (m + 1))` by its Taylor series, whose terms fall
/// by a factor of 34 each.
pub(crate) fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i32 - 1023;
    let mut m = f64::from_bits((bits & MANTISSA) | 1.0f64.to_bits());
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    // 1 + s²/3 + s⁴/5 + … + s²²/23, from the last term on
    let series = (1..12).rev().fold(0.0, |sum, k| (sum + 1.0 / f64::from(2 * k + 1)) * square) + 1.0;
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_9e_8_of_the_exact_value() {
        let mut worst = 0f64;
        // With this step, no two arguments have the same reduced value
        for i in 0..2_000_000 {
            let x = -(i as f32) * 1.4317e-5;
            worst = worst.max((f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs());
        }
        assert!(worst < 9e-8, "{worst:e}");
    }

    #[test]
    fn exp_is_monotone_where_weights_are_compared() {
        let mut last = exp(-30.0);
        for i in 0..300_000 {
            let now = exp(-30.0 + i as f32 * 1e-4);
            assert!(now >= last, "at step {i}");
            last = now;
        }
    }

    #[test]
    fn weights_of_special_arguments() {
        assert_eq!(weight(0.0), UNIT);
        assert_eq!(weight(-0.0), UNIT);
        assert_eq!(weight(f32::NEG_INFINITY), 0);
        assert_eq!(weight(f32::NAN), 0);
        assert_eq!(weight(-28.5), 0);
        assert_eq!(weight(-28.4), 1);
        assert_eq!(weight(-f32::MIN_POSITIVE), UNIT);
        let half = weight(-std::f32::consts::LN_2) as f64 / UNIT as f64;
        assert!((half - 0.5).abs() < 1e-7, "{half}");
        assert!((MAX_VOCABULARY as u64).checked_mul(UNIT).is_some());
    }

    #[test]
    fn ln_is_exact_to_the_last_places() {
        let mut x = 1e-45;
        while x < 1e30 {
            let error = (ln(x) - f64::ln(x)).abs();
            assert!(error < 1e-15 + 2.3e-16 * f64::ln(x).abs(), "ln({x:e}): off by {error:e}");
            x *= 1.000_37;
        }
        assert_eq!(ln(1.0), 0.0);
    }
}
