//! Q2_K.

use super::fit::Affine;
use crate::quant::block::{Block, F16};
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
