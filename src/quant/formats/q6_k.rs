//! Q6_K.

use super::fit::Symmetric;
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Sink, Source, Zero16, halves, two_quants};
use crate::simd::lanes::{Lanes, high, low, signed_byte, unroll};
use bytemuck::{Pod, Zeroable};

/// 256 weights of 6 bits in 16 groups of 16: `w[i] = (d * sc) * (q[i] - 32)`.
///
/// Group `g` has `sc = scales[g]`. With `i = 128h + 32j + l` (h < 2, j < 4, l < 32), the low 4 bits of `q[i]` are the
/// low (j < 2) or high (j >= 2) nibble of `ql[64h + 32(j % 2) + l]`, and bits 4 and 5 are the two bits of `qh[32h + l]`
/// that start at bit `2j`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ6K {
    pub(crate) ql: [u8; 128],
    pub(crate) qh: [u8; 64],
    pub(crate) scales: [i8; 16],
    pub(crate) d: F16,
}

impl Block<256> for BlockQ6K {
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

impl Format for BlockQ6K {
    const TYPE: TensorType = TensorType::Q6_K;
    const PLANES: Planes = planes!(BlockQ6K: [ql], [qh], [scales], [d]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.02;

    type Kind = Zero16<63>;
    const ZERO: i32 = 32;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 210 bytes of the block, all writes within its 256 weights.
        unsafe {
            let d = s.half_to_float(rows.last_half(s, at + 208));
            let mut scales = rows.words(s, at + 192);
            let pair = s.splat(0x3030_3030);
            for half in halves() {
                // Groups 0 to 3 have the low nibbles of 64 bytes, 4 to 7 the high ones; a pair of bits of 32 bytes each.
                let nibbles = [two_quants(s, rows, at + 64 * half), two_quants(s, rows, at + 64 * half + 32)];
                let tops = two_quants(s, rows, at + 128 + 32 * half);
                unroll!(two < 4; 0 1 2 3, {
                    unroll!(part < 2; 0 1, {
                        let group = 8 * half + 2 * two + part;
                        out.begin(group);
                        unroll!(j < 4; 0 1 2 3, {
                            let (v, top) = (nibbles[two % 2][part][j], tops[part][j]);
                            let q = match two {
                                0 => s.or(low(s, v), s.and(s.shl(top, 4), pair)),
                                1 => s.or(low(s, v), s.and(s.shl(top, 2), pair)),
                                2 => s.or(high(s, v), s.and(top, pair)),
                                _ => s.or(high(s, v), s.and(s.shr(top, 2), pair)),
                            };
                            out.q(4 * group + j, q);
                        });
                        out.end(group, s.mul(d, signed_byte(s, scales[two / 2], 2 * (two % 2) + part)), None);
                    });
                });
                scales = [scales[2], scales[3], scales[0], scales[1]];
            }
        }
    }
}
