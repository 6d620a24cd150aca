//! Q5_1.

use super::legacy::{pack_fifth_bits, pack_nibbles, quantize_affine, unpack_5_bits};
use crate::quant::block::{Block, F16};
use bytemuck::{Pod, Zeroable};

/// 32 weights of 5 bits: `w[i] = d * q[i] + m`, bits as in [`BlockQ5_0`](super::BlockQ5_0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_1 {
    pub(crate) d: F16,
    pub(crate) m: F16,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; 16],
}

impl Block<32> for BlockQ5_1 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let q = unpack_5_bits(&self.qs, self.qh);
        *out = q.map(|q| d * f32::from(q) + m);
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, m, q) = quantize_affine(x, 31);
        Self { d, m, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) }
    }
}
