//! What the formats of 32 weights a block share. Quantization rounds like ggml's reference, so the same
//! weights give the same file.

use crate::quant::block::F16;
use crate::quant::unpack::Sink;
use crate::simd::lanes::{Lanes, high, low, unroll};

/// Scale and levels 0..2 * `zero` such that `d * (q - zero)` represents `x`. The value of the
/// greatest magnitude gets level 0; the scale is therefore negative where that value is positive.
pub(super) fn quantize_symmetric(x: &[f32; 32], zero: u8) -> (F16, [u8; 32]) {
    let peak = x.iter().fold(0.0_f32, |peak, &v| if v.abs() > peak.abs() { v } else { peak });
    let d = peak / -f32::from(zero);
    let inverse = inverse_or_zero(d);
    let shift = f32::from(zero) + 0.5;
    (F16::from_f32(d), x.map(|v| ((v * inverse + shift) as u8).min(2 * zero - 1)))
}

/// Scale, minimum and levels 0..=`top` such that `d * q + m` represents `x`.
pub(super) fn quantize_affine(x: &[f32; 32], top: u8) -> (F16, F16, [u8; 32]) {
    let (min, max) = x[1..].iter().fold((x[0], x[0]), |(min, max), &v| (min.min(v), max.max(v)));
    let d = (max - min) / f32::from(top);
    let inverse = inverse_or_zero(d);
    (F16::from_f32(d), F16::from_f32(min), x.map(|v| (((v - min) * inverse + 0.5) as u8).min(top)))
}

/// `1 / d`, but 0 for a scale of zero.
pub(super) fn inverse_or_zero(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Levels as nibbles: the first half in the low ones.
pub(super) fn pack_nibbles(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| (q[i] & 15) | (q[i + 16] << 4))
}

/// Bit 4 of each level.
pub(super) fn pack_fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    (0..32).fold(0_u32, |bits, i| bits | u32::from(q[i] >> 4 & 1) << i).to_le_bytes()
}

/// Levels of 5 bits: nibbles, and a bit for each.
pub(super) fn unpack_5_bits(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let qh = u32::from_le_bytes(qh);
    std::array::from_fn(|i| (qs[i % 16] >> (i / 16 * 4) & 15) | ((qh >> i & 1) << 4) as u8)
}

/// A block of one group: the nibbles of 16 bytes, low ones for weights 0..16, high ones for 16..32.
#[inline(always)]
pub(super) unsafe fn nibbles<S: Lanes>(
    s: S,
    packed: [S::Int; 4],
    scale: S::Float,
    min: Option<S::Float>,
    out: &mut impl Sink<S>,
) {
    // SAFETY: the caller's promise that `out` takes a block.
    unsafe {
        out.begin(0);
        unroll!(j < 4; 0 1 2 3, {
            out.q(j, low(s, packed[j]));
            out.q(4 + j, high(s, packed[j]));
        });
        out.end(0, scale, min);
    }
}

/// The same with a fifth bit: bit `i` of `bits` for weight `i`.
#[inline(always)]
pub(super) unsafe fn nibbles_and_bits<S: Lanes>(
    s: S,
    packed: [S::Int; 4],
    bits: S::Int,
    scale: S::Float,
    min: Option<S::Float>,
    out: &mut impl Sink<S>,
) {
    // SAFETY: the caller's promise that `out` takes a block.
    unsafe {
        out.begin(0);
        unroll!(j < 4; 0 1 2 3, {
            out.q(j, s.or(low(s, packed[j]), s.spread_bits(bits, j as u32)));
            out.q(4 + j, s.or(high(s, packed[j]), s.spread_bits(bits, 4 + j as u32)));
        });
        out.end(0, scale, min);
    }
}
