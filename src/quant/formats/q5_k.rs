//! Q5_K.

use super::fit::Affine;
use super::packed::{pack_nibble_pairs, pack_scales_mins_k4, scale_min_k4};
use crate::quant::block::{Block, F16};
use bytemuck::{Pod, Zeroable};

/// 256 weights of 5 bits in 8 groups of 32: as [`BlockQ4K`](super::BlockQ4K), and bit 4 of `q[32g + l]` is bit `g`
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
