//! Q8_0.

use super::legacy::inverse_or_zero;
use crate::quant::block::{Block, F16};
use bytemuck::{Pod, Zeroable};

/// 32 weights of 8 bits: `w[i] = d * qs[i]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ8_0 {
    pub(crate) d: F16,
    pub(crate) qs: [i8; 32],
}

impl Block<32> for BlockQ8_0 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        *out = self.qs.map(|q| d * f32::from(q));
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let d = x.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 127.0;
        let inverse = inverse_or_zero(d);
        Self { d: F16::from_f32(d), qs: x.map(|v| (v * inverse).round() as i8) }
    }
}
