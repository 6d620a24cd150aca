//! Q4_1.

use super::legacy::{nibbles, pack_nibbles, quantize_affine};
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Mins32, Sink, Source};
use crate::simd::lanes::Lanes;
use bytemuck::{Pod, Zeroable};

/// 32 weights of 4 bits: `w[i] = d * q[i] + m`, nibbles as in [`BlockQ4_0`](super::q4_0::BlockQ4_0).
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

impl Format for BlockQ4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    const PLANES: Planes = planes!(BlockQ4_1: [qs], [d, m]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.08;

    type Kind = Mins32<15>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 20 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = rows.words(s, at)[0];
            let (scale, min) = (s.half_to_float(head), s.half_to_float(s.shr(head, 16)));
            nibbles(s, rows.quants(s, at + 4), scale, Some(min), out);
        }
    }
}
