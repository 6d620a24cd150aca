//! Q5_0.

use super::legacy::{pack_fifth_bits, pack_nibbles, quantize_symmetric, unpack_5_bits};
use crate::quant::block::{Block, F16};
use bytemuck::{Pod, Zeroable};

/// 32 weights of 5 bits: `w[i] = d * (q[i] - 16)`.
///
/// The low 4 bits of `q[i]` are as in [`BlockQ4_0`](super::BlockQ4_0); bit 4 is bit `i` of `qh`, read as a little-endian u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_0 {
    pub(crate) d: F16,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; 16],
}

impl Block<32> for BlockQ5_0 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        let q = unpack_5_bits(&self.qs, self.qh);
        *out = q.map(|q| d * f32::from(q as i8 - 16));
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, q) = quantize_symmetric(x, 16);
        Self { d, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) }
    }
}
