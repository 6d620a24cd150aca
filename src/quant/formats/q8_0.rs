//! Q8_0.

use super::legacy::inverse_or_zero;
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Sink, Source, Wide32};
use crate::simd::lanes::{Lanes, unroll};
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

impl Format for BlockQ8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    const PLANES: Planes = planes!(BlockQ8_0: [qs], [d]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.006;

    type Kind = Wide32;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 34 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = rows.first_half(s, at);
            out.begin(0);
            unroll!(part < 2; 0 1, {
                let quants = rows.quants(s, at + 2 + 16 * part);
                unroll!(j < 4; 0 1 2 3, {
                    out.q(4 * part + j, s.wide(quants[j]));
                });
            });
            out.end(0, s.half_to_float(head), None);
        }
    }
}
