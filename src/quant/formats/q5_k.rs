//! Q5_K.

use super::fit::Affine;
use super::packed::{Heads, pack_nibble_pairs, pack_scales_mins_k4, scale_min_k4};
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Mins32, Sink, Source, halves, shift_right, two_quants};
use crate::simd::lanes::{Lanes, high, low, unroll};
use bytemuck::{Pod, Zeroable};

/// 256 weights of 5 bits in 8 groups of 32: as [`BlockQ4K`](super::q4_k::BlockQ4K), and bit 4 of `q[32g + l]` is bit `g`
/// of `qh[l]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5K {
    pub(crate) d: F16,
    pub(crate) dmin: F16,
    pub(crate) scales: [u8; 12],
    pub(crate) qh: [u8; 32],
    pub(crate) qs: [u8; 128],
}

impl Block<256> for BlockQ5K {
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

impl Format for BlockQ5K {
    const TYPE: TensorType = TensorType::Q5_K;
    const PLANES: Planes = planes!(BlockQ5K: [qs], [qh], [d, dmin, scales]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.04;

    type Kind = Mins32<31>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 176 bytes of the block, all writes within its 256 weights.
        unsafe {
            let mut heads = Heads::new(s, rows.words(s, at));
            // Bit g of a byte of the high bits belongs to group g.
            let mut bits = two_quants(s, rows, at + 16);
            let bit = |v, group: usize| s.and(s.shl(s.shr(v, group as u32), 4), s.splat(0x1010_1010));
            for half in halves() {
                unroll!(pair < 2; 0 1, {
                    let packed = two_quants(s, rows, at + 48 + 64 * half + 32 * pair);
                    out.begin(4 * half + 2 * pair);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            let q = s.or(low(s, packed[part][j]), bit(bits[part][j], 2 * pair));
                            out.q(32 * half + 16 * pair + 4 * part + j, q);
                        });
                    });
                    heads.end(s, half, 2 * pair, out);
                    out.begin(4 * half + 2 * pair + 1);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            let q = s.or(high(s, packed[part][j]), bit(bits[part][j], 2 * pair + 1));
                            out.q(32 * half + 16 * pair + 8 + 4 * part + j, q);
                        });
                    });
                    heads.end(s, half, 2 * pair + 1, out);
                });
                shift_right(s, &mut bits);
                heads.next_half();
            }
        }
    }
}
