//! What a block is.

use super::float;
use bytemuck::{Pod, Zeroable};

/// A format of `N` weights a block.
pub(crate) trait Block<const N: usize>: Pod {
    /// The weights of the block. Total: no bytes are invalid.
    fn dequantize(&self, out: &mut [f32; N]);

    /// The block that represents `x`. Total: values that are not finite give some block.
    fn quantize(x: &[f32; N]) -> Self;
}

/// Views bytes as blocks, and leaves out the bytes of an incomplete last block.
pub(crate) fn cast<B: Pod>(data: &[u8]) -> &[B] {
    let whole = data.len() - data.len() % size_of::<B>();
    // This cannot fail for types of alignment 1; the assertions of [`formats`](super::formats) check that all blocks are.
    bytemuck::try_cast_slice(&data[..whole]).unwrap_or_default()
}

/// A half-precision number of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct F16([u8; 2]);

impl F16 {
    /// The nearest half-precision number.
    #[inline]
    pub(crate) fn from_f32(value: f32) -> Self {
        Self(float::f32_to_f16(value).to_le_bytes())
    }

    /// The exact value.
    #[inline]
    pub(crate) fn to_f32(self) -> f32 {
        float::f16_to_f32(u16::from_le_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::formats::BlockQ4_0;

    #[test]
    fn casts_need_no_alignment_and_leave_incomplete_blocks() {
        let data: Vec<u8> = (0..55).collect();
        for start in 0..8 {
            let blocks: &[BlockQ4_0] = cast(&data[start..]);
            assert_eq!(blocks.len(), (55 - start) / 18);
            assert_eq!(blocks[1].qs[0] as usize, start + 18 + 2);
        }
    }
}
