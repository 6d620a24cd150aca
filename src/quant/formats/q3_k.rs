//! Q3_K.

use super::fit::Symmetric;
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Sink, Source, Zero16, halves, shift_right, two_quants};
use crate::simd::lanes::{Lanes, byte, low, unroll};
use bytemuck::{Pod, Zeroable};

/// 256 weights of 3 bits in 16 groups of 16: `w[i] = (d * sc) * q[i]`, with sc in -32..32 and q in -4..4.
///
/// With `i = 128h + 32j + l` as in [`BlockQ2K`](super::q2_k::BlockQ2K), `q[i] + 4` has its low two bits as there, and bit 2 in bit `4h + j` of
/// `hmask[l]`. The scales are packed: see [`scales_q3k`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ3K {
    pub(crate) hmask: [u8; 32],
    pub(crate) qs: [u8; 64],
    pub(crate) scales: [u8; 12],
    pub(crate) d: F16,
}

impl Block<256> for BlockQ3K {
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

impl Format for BlockQ3K {
    const TYPE: TensorType = TensorType::Q3_K;
    const PLANES: Planes = planes!(BlockQ3K: [qs], [hmask], [scales], [d]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.15;

    type Kind = Zero16<7>;
    const ZERO: i32 = 4;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 110 bytes of the block, all writes within its 256 weights.
        unsafe {
            let ([first, second, mut tops], d) = rows.last_words_and_half(s, at + 96);
            let (mut lows, d) = ([first, second], s.half_to_float(d));
            // The mask's 32 bytes are for all 256 weights.
            let mut mask = two_quants(s, rows, at);
            for half in halves() {
                let pairs = two_quants(s, rows, at + 32 + 32 * half);
                unroll!(pair < 4; 0 1 2 3, {
                    unroll!(part < 2; 0 1, {
                        let group = 8 * half + 2 * pair + part;
                        out.begin(group);
                        unroll!(j < 4; 0 1 2 3, {
                            let low = s.and(s.shr(pairs[part][j], 2 * pair as u32), s.splat(0x0303_0303));
                            let top = s.and(s.shr(mask[part][j], pair as u32), s.splat(0x0101_0101));
                            out.q(4 * group + j, s.or(low, s.shl(top, 2)));
                        });
                        // Four scales: four low bits in nibbles, two high bits in pairs.
                        let j = pair / 2;
                        let nibbles = low(s, lows[j]);
                        let scales = s.or(nibbles, s.shl(s.and(s.shr(tops, 2 * j as u32), s.splat(0x0303_0303)), 4));
                        let scale = s.add(byte(s, scales, 2 * (pair % 2) + part), s.splat_float(-32.0));
                        out.end(group, s.mul(d, scale), None);
                    });
                });
                shift_right(s, &mut mask);
                (lows, tops) = ([s.shr(lows[0], 4), s.shr(lows[1], 4)], s.shr(tops, 4));
            }
        }
    }
}

/// The scales of a [`BlockQ3K`], in -32..32.
///
/// Scale `g`, plus 32, has its low 4 bits in byte `g % 8` (the high nibble for g >= 8) and its bits 4 and 5 in byte
/// `8 + g % 4`, from bit `2 * (g / 4)`.
#[inline]
fn scales_q3k(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let low = packed[g % 8] >> (g / 8 * 4) & 15;
        let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The inverse of [`scales_q3k`].
fn pack_scales_q3k(scales: &[i8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (g, &scale) in scales.iter().enumerate() {
        let scale = scale.wrapping_add(32) as u8;
        packed[g % 8] |= (scale & 15) << (g / 8 * 4);
        packed[8 + g % 4] |= (scale >> 4 & 3) << (g / 4 * 2);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_scales_round_trip() {
        // 37 is coprime to 64, so every group sees many of the 6-bit values, no two neighbours the same.
        for start in 0..64_u8 {
            let scales = std::array::from_fn(|g| ((start as usize + 37 * g) % 64) as i8 - 32);
            assert_eq!(scales_q3k(&pack_scales_q3k(&scales)), scales);
        }
    }
}
