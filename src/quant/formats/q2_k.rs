//! Q2_K.

use super::fit::Affine;
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Mins16, Sink, Source, halves, two_quants};
use crate::simd::lanes::{Lanes, byte, high, low, unroll};
use bytemuck::{Pod, Zeroable};

/// 256 weights of 2 bits in 16 groups of 16: `w[i] = (d * sc) * q[i] - dmin * m`.
///
/// Group `g` has `sc` in the low nibble of `scales[g]` and `m` in the high nibble. With `i = 128h + 32j + l`
/// (h < 2, j < 4, l < 32), `q[i]` is the two bits of `qs[32h + l]` that start at bit `2j`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ2K {
    pub(crate) scales: [u8; 16],
    pub(crate) qs: [u8; 64],
    pub(crate) d: F16,
    pub(crate) dmin: F16,
}

impl Block<256> for BlockQ2K {
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

impl Format for BlockQ2K {
    const TYPE: TensorType = TensorType::Q2_K;
    const PLANES: Planes = planes!(BlockQ2K: [qs], [scales], [d, dmin]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.3;

    type Kind = Mins16<3>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 84 bytes of the block, all writes within its 256 weights.
        unsafe {
            let tail = rows.words(s, at + 68)[3];
            let d = s.half_to_float(tail);
            let minus_dmin = s.mul(s.half_to_float(s.shr(tail, 16)), s.splat_float(-1.0));
            let mut packed = rows.words(s, at);
            for half in halves() {
                // 32 bytes hold 16 weights of each of eight groups: two of each pair of bits.
                let quants = two_quants(s, rows, at + 16 + 32 * half);
                unroll!(pair < 4; 0 1 2 3, {
                    unroll!(part < 2; 0 1, {
                        let group = 8 * half + 2 * pair + part;
                        out.begin(group);
                        unroll!(j < 4; 0 1 2 3, {
                            out.q(4 * group + j, s.and(s.shr(quants[part][j], 2 * pair as u32), s.splat(0x0303_0303)));
                        });
                        let (scales, mins) = (low(s, packed[pair / 2]), high(s, packed[pair / 2]));
                        let scale = s.mul(d, byte(s, scales, 2 * (pair % 2) + part));
                        out.end(group, scale, Some(s.mul(minus_dmin, byte(s, mins, 2 * (pair % 2) + part))));
                    });
                });
                packed = [packed[2], packed[3], packed[0], packed[1]];
            }
        }
    }
}
