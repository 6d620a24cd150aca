//! Q4_1.

use super::legacy::{pack_nibbles, quantize_affine};
use crate::quant::block::{Block, F16};
use bytemuck::{Pod, Zeroable};

/// 32 weights of 4 bits: `w[i] = d * q[i] + m`, nibbles as in [`BlockQ4_0`](super::BlockQ4_0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_1 {
    pub(crate) d: F16,
    pub(crate) m: F16,
    pub(crate) qs: [u8; 16],
}

impl Block<32> for BlockQ4_1 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (i, q) in self.qs.iter().enumerate() {
            out[i] = d * f32::from(q & 15) + m;
            out[i + 16] = d * f32::from(q >> 4) + m;
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, m, q) = quantize_affine(x, 15);
        Self { d, m, qs: pack_nibbles(&q) }
    }
}
