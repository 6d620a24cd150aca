//! Q5_0.

use super::legacy::{nibbles_and_bits, pack_fifth_bits, pack_nibbles, quantize_symmetric, unpack_5_bits};
use crate::gguf::TensorType;
use crate::quant::block::{Block, F16, Format, Planes, planes};
use crate::quant::unpack::{Sink, Source, Zero32};
use crate::simd::lanes::Lanes;
use bytemuck::{Pod, Zeroable};

/// 32 weights of 5 bits: `w[i] = d * (q[i] - 16)`.
///
/// The low 4 bits of `q[i]` are as in [`BlockQ4_0`](super::q4_0::BlockQ4_0); bit 4 is bit `i` of `qh`, read as a little-endian u32.
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

impl Format for BlockQ5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    const PLANES: Planes = planes!(BlockQ5_0: [qs], [qh], [d]);
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64 = 0.045;

    type Kind = Zero32<31>;
    const ZERO: i32 = 16;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 22 bytes of the block, all writes within its 32 weights.
        unsafe {
            let [head, bits] = rows.first_half_and_word(s, at);
            nibbles_and_bits(s, rows.quants(s, at + 6), bits, s.half_to_float(head), None, out);
        }
    }
}
