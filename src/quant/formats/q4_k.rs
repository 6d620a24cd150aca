//! Q4_K.

use super::fit::Affine;
use super::packed::{Heads, pack_nibble_pairs, pack_scales_mins_k4, scale_min_k4};
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Mins32, Sink, Source, halves, two_quants};
use crate::simd::lanes::{Lanes, high, low, unroll};
use bytemuck::{Pod, Zeroable};

/// 256 weights of 4 bits in 8 groups of 32: `w[i] = (d * sc) * q[i] - dmin * m`.
///
/// With `i = 64p + l` (l < 32), `q[i]` is the low nibble of `qs[32p + l]`, and `q[i + 32]` the high nibble. `sc` and `m`
/// are packed in `scales`: see [`scale_min_k4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4K {
    pub(crate) d: F16,
    pub(crate) dmin: F16,
    pub(crate) scales: [u8; 12],
    pub(crate) qs: [u8; 128],
}

impl Block<256> for BlockQ4K {
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

impl Format for BlockQ4K {
    const TYPE: TensorType = TensorType::Q4_K;
    const PLANES: Planes = planes!(BlockQ4K: [qs], [d, dmin, scales]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.08;

    type Kind = Mins32<15>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 144 bytes of the block, all writes within its 256 weights.
        unsafe {
            let mut heads = Heads::new(s, rows.words(s, at));
            for half in halves() {
                unroll!(pair < 2; 0 1, {
                    // The low nibbles of 32 bytes are one group, the high ones the next.
                    let packed = two_quants(s, rows, at + 16 + 64 * half + 32 * pair);
                    out.begin(4 * half + 2 * pair);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            out.q(32 * half + 16 * pair + 4 * part + j, low(s, packed[part][j]));
                        });
                    });
                    heads.end(s, half, 2 * pair, out);
                    out.begin(4 * half + 2 * pair + 1);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            out.q(32 * half + 16 * pair + 8 + 4 * part + j, high(s, packed[part][j]));
                        });
                    });
                    heads.end(s, half, 2 * pair + 1, out);
                });
                heads.next_half();
            }
        }
    }
}
