//! Q6_K.

use super::fit::Symmetric;
use crate::quant::block::{Block, F16};
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
