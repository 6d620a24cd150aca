//! The formats of 32 weights a block with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Quantization rounds like ggml's reference, so the same weights give the same file.

use super::blocks::{Block, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, F16};
use crate::gguf::TensorType;

impl Block<32> for BlockQ4_0 {
    const TYPE: TensorType = TensorType::Q4_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.iter().enumerate() {
            out[i] = d * f32::from((q & 15) as i8 - 8);
            out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, q) = quantize_symmetric(x, 8);
        Self { d, qs: pack_nibbles(&q) }
    }
}

impl Block<32> for BlockQ4_1 {
    const TYPE: TensorType = TensorType::Q4_1;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (i, q) in self.qs.iter().enumerate() {
            out[i] = d * f32::from(q & 15) + m;
            out[i + 16] = d * f32::from(q >> 4) + m;
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, m, q) = quantize_affine(x, 15);
        Self { d, m, qs: pack_nibbles(&q) }
    }
}

impl Block<32> for BlockQ5_0 {
    const TYPE: TensorType = TensorType::Q5_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        let q = unpack_5_bits(&self.qs, self.qh);
        *out = q.map(|q| d * f32::from(q as i8 - 16));
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, q) = quantize_symmetric(x, 16);
        Self { d, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) }
    }
}

impl Block<32> for BlockQ5_1 {
    const TYPE: TensorType = TensorType::Q5_1;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let q = unpack_5_bits(&self.qs, self.qh);
        *out = q.map(|q| d * f32::from(q) + m);
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, m, q) = quantize_affine(x, 31);
        Self { d, m, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) }
    }
}

impl Block<32> for BlockQ8_0 {
    const TYPE: TensorType = TensorType::Q8_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        *out = self.qs.map(|q| d * f32::from(q));
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let d = x.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 127.0;
        let inverse = inverse_or_zero(d);
        Self { d: F16::from_f32(d), qs: x.map(|v| (v * inverse).round() as i8) }
    }
}

/// Scale and levels 0..2 * `zero` such that `d * (q - zero)` represents `x`. The value of the
/// greatest magnitude gets level 0; the scale is therefore negative where that value is positive.
fn quantize_symmetric(x: &[f32; 32], zero: u8) -> (F16, [u8; 32]) {
    let peak = x.iter().fold(0.0_f32, |peak, &v| if v.abs() > peak.abs() { v } else { peak });
    let d = peak / -f32::from(zero);
    let inverse = inverse_or_zero(d);
    let shift = f32::from(zero) + 0.5;
    (F16::from_f32(d), x.map(|v| ((v * inverse + shift) as u8).min(2 * zero - 1)))
}

/// Scale, minimum and levels 0..=`top` such that `d * q + m` represents `x`.
fn quantize_affine(x: &[f32; 32], top: u8) -> (F16, F16, [u8; 32]) {
    let (min, max) = x[1..].iter().fold((x[0], x[0]), |(min, max), &v| (min.min(v), max.max(v)));
    let d = (max - min) / f32::from(top);
    let inverse = inverse_or_zero(d);
    (F16::from_f32(d), F16::from_f32(min), x.map(|v| (((v - min) * inverse + 0.5) as u8).min(top)))
}

fn inverse_or_zero(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn pack_nibbles(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| (q[i] & 15) | (q[i + 16] << 4))
}

fn pack_fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    (0..32).fold(0_u32, |bits, i| bits | u32::from(q[i] >> 4 & 1) << i).to_le_bytes()
}

fn unpack_5_bits(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let qh = u32::from_le_bytes(qh);
    std::array::from_fn(|i| (qs[i % 16] >> (i / 16 * 4) & 15) | ((qh >> i & 1) << 4) as u8)
}
