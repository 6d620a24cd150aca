//! The formats of 256 weights a block, in groups of 16 or 32 with quantized scales: Q2_K, Q3_K,
//! Q4_K, Q5_K, Q6_K.
//!
//! The quantizers here are plain. For each group, a small search finds the scale of least squared
//! error; then the group scales themselves are rounded. They are good for tests and tools. ggml's
//! quantizers weigh the errors by importance and search longer.

use super::blocks::{
    Block, BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, F16, pack_scales_mins_k4, pack_scales_q3k, scale_min_k4,
    scales_q3k,
};
use crate::gguf::TensorType;

impl Block<256> for BlockQ2K {
    const TYPE: TensorType = TensorType::Q2_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(self.scales[g] & 15);
            let min = dmin * f32::from(self.scales[g] >> 4);
            let (start, shift) = (g / 8 * 32 + g % 2 * 16, g / 2 % 4 * 2);
            for (out, q) in out.iter_mut().zip(&self.qs[start..start + 16]) {
                *out = scale * f32::from(q >> shift & 3) - min;
            }
        }
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let Affine { d, dmin, scales, mins, q } = Affine::<16>::fit::<16>(x, 3, 15);
        let qs = std::array::from_fn(|i| {
            let first = i / 32 * 128 + i % 32;
            q[first] | q[first + 32] << 2 | q[first + 64] << 4 | q[first + 96] << 6
        });
        Self { scales: std::array::from_fn(|g| scales[g] | mins[g] << 4), qs, d, dmin }
    }
}

impl Block<256> for BlockQ3K {
    const TYPE: TensorType = TensorType::Q3_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let scales = scales_q3k(&self.scales);
        for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(scales[g]);
            let (start, shift) = (g / 8 * 32 + g % 2 * 16, g / 2 % 4 * 2);
            let high = &self.hmask[g % 2 * 16..][..16];
            for ((out, q), high) in out.iter_mut().zip(&self.qs[start..start + 16]).zip(high) {
                *out = scale * f32::from((q >> shift & 3 | (high >> (g / 2) & 1) << 2) as i8 - 4);
            }
        }
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let Symmetric { d, scales, q } = Symmetric::fit(x, 4, 32);
        let q = q.map(|q| (q + 4) as u8);
        let qs = std::array::from_fn(|i| {
            let first = i / 32 * 128 + i % 32;
            (0..4).fold(0, |bits, j| bits | (q[first + 32 * j] & 3) << (2 * j))
        });
        let hmask = std::array::from_fn(|l| (0..8).fold(0, |bits, j| bits | (q[32 * j + l] >> 2) << j));
        Self { hmask, qs, scales: pack_scales_q3k(&scales), d }
    }
}

impl Block<256> for BlockQ4K {
    const TYPE: TensorType = TensorType::Q4_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (p, (out, qs)) in out.as_chunks_mut::<64>().0.iter_mut().zip(self.qs.as_chunks::<32>().0).enumerate() {
            let [(scale0, min0), (scale1, min1)] = [2 * p, 2 * p + 1].map(|g| {
                let (scale, min) = scale_min_k4(g, &self.scales);
                (d * f32::from(scale), dmin * f32::from(min))
            });
            for (l, q) in qs.iter().enumerate() {
                out[l] = scale0 * f32::from(q & 15) - min0;
                out[l + 32] = scale1 * f32::from(q >> 4) - min1;
            }
        }
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let Affine { d, dmin, scales, mins, q } = Affine::<8>::fit::<32>(x, 15, 63);
        Self { d, dmin, scales: pack_scales_mins_k4(&scales, &mins), qs: pack_nibble_pairs(&q) }
    }
}

impl Block<256> for BlockQ5K {
    const TYPE: TensorType = TensorType::Q5_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min_k4(g, &self.scales);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            let qs = &self.qs[g / 2 * 32..][..32];
            for ((out, q), high) in out.iter_mut().zip(qs).zip(&self.qh) {
                *out = scale * f32::from(q >> (g % 2 * 4) & 15 | (high >> g & 1) << 4) - min;
            }
        }
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let Affine { d, dmin, scales, mins, q } = Affine::<8>::fit::<32>(x, 31, 63);
        let qh = std::array::from_fn(|l| (0..8).fold(0, |bits, g| bits | (q[32 * g + l] >> 4) << g));
        Self { d, dmin, scales: pack_scales_mins_k4(&scales, &mins), qh, qs: pack_nibble_pairs(&q) }
    }
}

impl Block<256> for BlockQ6K {
    const TYPE: TensorType = TensorType::Q6_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(self.scales[g]);
            let (half, j) = (g / 8, g / 2 % 4);
            let low = &self.ql[64 * half + 32 * (j % 2) + g % 2 * 16..][..16];
            let high = &self.qh[32 * half + g % 2 * 16..][..16];
            for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                *out = scale * f32::from((low >> (j / 2 * 4) & 15 | (high >> (2 * j) & 3) << 4) as i8 - 32);
            }
        }
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let Symmetric { d, scales, q } = Symmetric::fit(x, 32, 128);
        let q = q.map(|q| (q + 32) as u8);
        let ql = std::array::from_fn(|i| {
            let first = i / 64 * 128 + i % 64;
            (q[first] & 15) | q[first + 64] << 4
        });
        let qh = std::array::from_fn(|i| {
            let first = i / 32 * 128 + i % 32;
            (0..4).fold(0, |bits, j| bits | (q[first + 32 * j] >> 4) << (2 * j))
        });
        Self { ql, qh, scales, d }
    }
}

/// Packs the nibbles of Q4_K and Q5_K: of each 64 levels, the first 32 go into low nibbles and the
/// others into high ones.
fn pack_nibble_pairs(q: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|i| {
        let first = i / 32 * 64 + i % 32;
        (q[first] & 15) | q[first + 32] << 4
    })
}

/// A fit `x = (d * scale) * q` in 16 groups of 16.
struct Symmetric {
    d: F16,
    scales: [i8; 16],
    q: [i8; 256],
}

impl Symmetric {
    /// Levels are in `-levels..levels`, scales in `-scales..scales`.
    fn fit(x: &[f32; 256], levels: u8, scales: u8) -> Self {
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
struct Affine<const G: usize> {
    d: F16,
    dmin: F16,
    scales: [u8; G],
    mins: [u8; G],
    q: [u8; 256],
}

impl<const G: usize> Affine<G> {
    /// Groups have `L` elements, levels are in `0..=top_level`, scales and minima in `0..=top_scale`.
    fn fit<const L: usize>(x: &[f32; 256], top_level: u8, top_scale: u8) -> Self {
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
