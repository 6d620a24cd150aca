//! Q4_0.

use super::legacy::{nibbles, pack_nibbles, quantize_symmetric};
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Sink, Source, Zero32};
use crate::simd::lanes::Lanes;
use bytemuck::{Pod, Zeroable};

/// 32 weights of 4 bits: `w[i] = d * (q[i] - 8)`.
///
/// `q[i]` for i < 16 is the low nibble of `qs[i]`, `q[i + 16]` the high nibble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_0 {
    pub(crate) d: F16,
    pub(crate) qs: [u8; 16],
}

impl Block<32> for BlockQ4_0 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.iter().enumerate() {
            out[i] = d * f32::from((q & 15) as i8 - 8);
            out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, q) = quantize_symmetric(x, 8);
        Self { d, qs: pack_nibbles(&q) }
    }
}

impl Format for BlockQ4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    const PLANES: Planes = planes!(BlockQ4_0: [qs], [d]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.09;

    type Kind = Zero32<15>;
    const ZERO: i32 = 8;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 18 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = rows.first_half(s, at);
            nibbles(s, rows.quants(s, at + 2), s.half_to_float(head), None, out);
        }
    }
}
