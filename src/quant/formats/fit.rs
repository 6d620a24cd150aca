//! The quantizers of the formats of 256 weights a block, in groups of 16 or 32 with quantized scales.
//!
//! They are plain. For each group, a small search finds the scale of least squared error; then the
//! group scales themselves are rounded. They are good for tests and tools. ggml's quantizers weigh
//! the errors by importance and search longer.

use crate::quant::block::F16;

/// A fit `x = (d * scale) * q` in 16 groups of 16.
pub(super) struct Symmetric {
    pub(super) d: F16,
    pub(super) scales: [i8; 16],
    pub(super) q: [i8; 256],
}

impl Symmetric {
    /// Levels are in `-levels..levels`, scales in `-scales..scales`.
    pub(super) fn fit(x: &[f32; 256], levels: u8, scales: u8) -> Self {
        let groups = x.as_chunks::<16>().0;
        let ideal: [f32; 16] = std::array::from_fn(|g| symmetric_scale(&groups[g], levels));
        let peak = ideal.iter().fold(0.0_f32, |peak, &v| if v.abs() > peak.abs() { v } else { peak });
        // The negative end of the range reaches one step further, so the scale of the largest
        // magnitude goes there.
        let d = F16::from_f32(peak / -f32::from(scales));
        let rounded = ideal.map(|scale| nearest(ratio(scale, d.to_f32()), scales));
        let q = std::array::from_fn(|i| nearest(ratio(x[i], d.to_f32() * f32::from(rounded[i / 16])), levels));
        Self { d, scales: rounded, q }
    }
}

/// The scale for levels in `-levels..levels` with the least squared error, among a few candidates
/// near the scale that just fits.
fn symmetric_scale(x: &[f32; 16], levels: u8) -> f32 {
    let peak = x.iter().fold(0.0_f32, |peak, &v| if v.abs() > peak.abs() { v } else { peak });
    let fitting = peak / -f32::from(levels);
    let error = |scale: f32| x.iter().map(|&v| (v - scale * f32::from(nearest(ratio(v, scale), levels))).powi(2)).sum();
    least_error((-8..=8).map(|step| fitting * (1.0 + step as f32 * 0.025)), fitting, error)
}

/// A fit `x = (d * scale) * q - dmin * min` in `G` groups; scales and minima are not negative.
pub(super) struct Affine<const G: usize> {
    pub(super) d: F16,
    pub(super) dmin: F16,
    pub(super) scales: [u8; G],
    pub(super) mins: [u8; G],
    pub(super) q: [u8; 256],
}

impl<const G: usize> Affine<G> {
    /// Groups have `L` elements, levels are in `0..=top_level`, scales and minima in `0..=top_scale`.
    pub(super) fn fit<const L: usize>(x: &[f32; 256], top_level: u8, top_scale: u8) -> Self {
        const { assert!(G * L == 256) };
        let groups = x.as_chunks::<L>().0;
        let ideal: [(f32, f32); G] = std::array::from_fn(|g| affine_scale_min(&groups[g], top_level));
        let largest = |values: [f32; G]| F16::from_f32(values.into_iter().fold(0.0, f32::max) / f32::from(top_scale));
        let (d, dmin) = (largest(ideal.map(|(scale, _)| scale)), largest(ideal.map(|(_, min)| min)));
        let scales = ideal.map(|(scale, _)| nearest_level(ratio(scale, d.to_f32()), top_scale));
        let mins = ideal.map(|(_, min)| nearest_level(ratio(min, dmin.to_f32()), top_scale));
        let q = std::array::from_fn(|i| {
            let (scale, min) = (d.to_f32() * f32::from(scales[i / L]), dmin.to_f32() * f32::from(mins[i / L]));
            nearest_level(ratio(x[i] + min, scale), top_level)
        });
        Self { d, dmin, scales, mins, q }
    }
}

/// The scale and minimum (as its distance below zero) with the least squared error, among a few
/// candidates that span somewhat less than the range of `x`.
fn affine_scale_min<const L: usize>(x: &[f32; L], top: u8) -> (f32, f32) {
    let low = x.iter().fold(0.0_f32, |low, &v| low.min(v));
    let span = x.iter().fold(low, |high, &v| high.max(v)) - low;
    let error = |shrink: f32| {
        let (scale, min) = (span * shrink / f32::from(top), -low * shrink);
        x.iter().map(|&v| (v + min - scale * f32::from(nearest_level(ratio(v + min, scale), top))).powi(2)).sum()
    };
    let shrink = least_error((0..12).map(|step| 1.0 - step as f32 * 0.04), 1.0, error);
    (span * shrink / f32::from(top), -low * shrink)
}

/// The candidate with the least error; `default` where no error compares, as with NaNs.
fn least_error(candidates: impl Iterator<Item = f32>, default: f32, error: impl Fn(f32) -> f32) -> f32 {
    let best = (default, f32::INFINITY);
    candidates.map(|c| (c, error(c))).fold(best, |best, next| if next.1 < best.1 { next } else { best }).0
}

/// `x / y`, but 0 for a scale of zero, where all values are zeros.
fn ratio(x: f32, y: f32) -> f32 {
    if y == 0.0 { 0.0 } else { x / y }
}

/// The nearest integer in `-limit..limit`; `limit` is at most 128.
fn nearest(x: f32, limit: u8) -> i8 {
    x.round().clamp(-f32::from(limit), f32::from(limit) - 1.0) as i8
}

/// The nearest integer in `0..=top`.
fn nearest_level(x: f32, top: u8) -> u8 {
    (x.round() as u8).min(top)
}
