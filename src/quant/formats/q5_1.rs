//! Q5_1.

use super::legacy::{nibbles_and_bits, pack_fifth_bits, pack_nibbles, quantize_affine, unpack_5_bits};
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Mins32, Sink, Source};
use crate::simd::lanes::Lanes;
use bytemuck::{Pod, Zeroable};

/// 32 weights of 5 bits: `w[i] = d * q[i] + m`, bits as in [`BlockQ5_0`](super::q5_0::BlockQ5_0).
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

impl Format for BlockQ5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    const PLANES: Planes = planes!(BlockQ5_1: [qs], [qh], [d, m]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.04;

    type Kind = Mins32<31>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 24 bytes of the block, all writes within its 32 weights.
        unsafe {
            let [head, bits, ..] = rows.words(s, at);
            let (scale, min) = (s.half_to_float(head), s.half_to_float(s.shr(head, 16)));
            nibbles_and_bits(s, rows.quants(s, at + 8), bits, scale, Some(min), out);
        }
    }
}
