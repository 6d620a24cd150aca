//! Q4_K.

use super::fit::Affine;
use super::packed::{pack_nibble_pairs, pack_scales_mins_k4, scale_min_k4};
use crate::quant::block::{Block, F16};
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
