//! Passes over a whole row of logits, for the sampler.
//!
//! Each pass has one body, which the compiler vectorizes for each instruction set. The results are
//! the same to the bit, because maxima and integer sums do not depend on the order, and each
//! element's arithmetic is the same in every width.

use crate::sampler::math::{WEIGHT_BITS_OF_ZERO, weight_bits};
use crate::simd::{self, Isa, Kernel};

/// Logits per block; each block has one peak.
pub(crate) const BLOCK: usize = 64;

/// Independent lanes of the maximum of a block, and of a sum: enough to keep the widest registers busy.
const MAX_LANES: usize = 16;
const SUM_LANES: usize = 32;

/// Writes the largest logit of each [`BLOCK`] to `peaks` and returns the largest of all. NaN counts as -∞, as does an
/// empty row.
pub(crate) fn peaks(logits: &[f32], peaks: &mut Vec<f32>) -> f32 {
    peaks_with(Isa::best(), logits, peaks)
}

fn peaks_with(isa: Isa, logits: &[f32], peaks: &mut Vec<f32>) -> f32 {
    peaks.clear();
    simd::run(isa, Peaks { logits, peaks })
}

struct Peaks<'a> {
    logits: &'a [f32],
    peaks: &'a mut Vec<f32>,
}

impl<S> Kernel<S> for Peaks<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self, _: S) -> f32 {
        peaks_body(self.logits, self.peaks)
    }
}

/// The sum of the [weights](crate::sampler::math::weight) of `(logit - best) / temperature` over all logits that are
/// at least `floor`; NaN weighs nothing. `best` must be the largest logit, and the row no longer than
/// [`MAX_VOCABULARY`](crate::sampler::math::MAX_VOCABULARY), or the sum wraps.
pub(crate) fn total(logits: &[f32], best: f32, temperature: f32, floor: f32) -> u64 {
    total_with(Isa::best(), logits, best, temperature, floor)
}

fn total_with(isa: Isa, logits: &[f32], best: f32, temperature: f32, floor: f32) -> u64 {
    simd::run(isa, Total { logits, best, temperature, floor })
}

struct Total<'a> {
    logits: &'a [f32],
    best: f32,
    temperature: f32,
    floor: f32,
}

impl<S> Kernel<S> for Total<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self, _: S) -> u64 {
        total_body(self.logits, self.best, self.temperature, self.floor)
    }
}

#[inline(always)]
fn peaks_body(logits: &[f32], peaks: &mut Vec<f32>) -> f32 {
    // A comparison with NaN is false and so keeps the other number. Unlike f32::max, it is one
    // instruction.
    #[inline(always)]
    fn larger(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    let mut best = f32::NEG_INFINITY;
    for block in logits.chunks(BLOCK) {
        let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
        let (groups, rest) = block.as_chunks::<MAX_LANES>();
        for group in groups {
            for (lane, &logit) in lanes.iter_mut().zip(group) {
                *lane = larger(logit, *lane);
            }
        }
        let peak = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |peak, &logit| larger(logit, peak));
        best = larger(peak, best);
        peaks.push(peak);
    }
    best
}

#[inline(always)]
fn total_body(logits: &[f32], best: f32, temperature: f32, floor: f32) -> u64 {
    if temperature == 1.0 && floor == f32::NEG_INFINITY {
        // By far the most frequent case, and a third faster without the division. NaN and -∞ weigh
        // nothing anyway.
        sum(logits, |logit| logit - best)
    } else {
        sum(logits, |logit| if logit >= floor { (logit - best) / temperature } else { f32::NEG_INFINITY })
    }
}

/// The sum of the weights of `distance(logit)`.
#[inline(always)]
fn sum(logits: &[f32], distance: impl Fn(f32) -> f32) -> u64 {
    let mut lanes = [0u64; SUM_LANES];
    let (groups, rest) = logits.as_chunks::<SUM_LANES>();
    for group in groups {
        for (lane, &logit) in lanes.iter_mut().zip(group) {
            *lane = lane.wrapping_add(weight_bits(distance(logit)));
        }
    }
    let lanes = lanes.iter().fold(0u64, |sum, &lane| sum.wrapping_add(lane));
    let sum = rest.iter().fold(lanes, |sum, &logit| sum.wrapping_add(weight_bits(distance(logit))));
    sum.wrapping_sub((logits.len() as u64).wrapping_mul(WEIGHT_BITS_OF_ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::math::{UNIT, weight};
    use crate::sampler::tests::random_logits;

    #[test]
    fn every_instruction_set_returns_the_same_bits() {
        for len in [0, 1, 15, 16, 63, 64, 65, 1000, 32_001] {
            let mut row = random_logits(len as u64, len, 8.0);
            for (i, logit) in row.iter_mut().enumerate() {
                match i % 97 {
                    13 => *logit = f32::NAN,
                    57 => *logit = f32::NEG_INFINITY,
                    _ => (),
                }
            }
            let expected_peaks: Vec<f32> =
                row.chunks(BLOCK).map(|block| block.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b))).collect();
            let expected_best = expected_peaks.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            for isa in Isa::available() {
                let mut found = vec![1.0];
                assert_eq!(peaks_with(isa, &row, &mut found), expected_best, "{isa:?}");
                assert_eq!(found, expected_peaks, "{isa:?}");
                for (temperature, floor) in [(1.0, f32::NEG_INFINITY), (0.7, 0.0), (30.0, -5.0)] {
                    let kept = row.iter().filter(|&&logit| logit >= floor);
                    let expected: u64 = kept.map(|&logit| weight((logit - expected_best) / temperature)).sum();
                    assert_eq!(total_with(isa, &row, expected_best, temperature, floor), expected, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn a_total_of_equal_logits_is_their_number() {
        assert_eq!(total(&[3.0; 100], 3.0, 1.0, f32::NEG_INFINITY), 100 * UNIT);
    }
}
