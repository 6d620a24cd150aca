//! What a format is, and what its blocks are.

use super::float;
use super::unpack::{Kind, Sink, Source};
use crate::gguf::TensorType;
use crate::simd::lanes::Lanes;
use bytemuck::{Pod, Zeroable};

/// The fields of a block in the order of their planes in the memory of a GPU, each as (offset in the block, length).
pub(crate) type Planes = &'static [(usize, usize)];

/// A quantized format: what is known of its blocks, and how the CPU unpacks them.
pub(crate) trait Format: Pod {
    /// The name in GGUF.
    const TYPE: TensorType;
    /// As in hip/quant/formats.h. A half-precision number beside whole words, with which a block begins or ends, is a plane of its
    /// own.
    const PLANES: Planes;
    /// A little above the relative error of quantizing weights of normal distribution, and well below that with one bit
    /// less.
    #[cfg(test)]
    const ROUND_TRIP_ERROR: f64;

    /// What kind it is; `()` for a format without [`unpack`](Self::unpack).
    type Kind: Kind;
    /// The zero point: what is subtracted from the unpacked bytes. For a wide format, [`Lanes::WIDE_ZERO`] stands in its
    /// place.
    const ZERO: i32 = 0;

    /// Unpacks one block, which starts at `offset`, of each row.
    ///
    /// # Safety
    /// `LANES` rows are valid for reads of `offset` plus the bytes of a block, and `out` takes a block.
    #[inline(always)]
    unsafe fn unpack<S: Lanes>(_: S, _rows: impl Source<S>, _offset: usize, _out: &mut impl Sink<S>) {
        const { assert!(!Self::Kind::UNPACKS, "only formats of the kind `()` can do without this function") }
    }
}

/// A format of `N` weights a block.
pub(crate) trait Block<const N: usize>: Format {
    /// The weights of the block. Total: no bytes are invalid.
    fn dequantize(&self, out: &mut [f32; N]);

    /// The block that represents `x`. Total: values that are not finite give some block.
    fn quantize(x: &[f32; N]) -> Self;
}

/// The [`Planes`] of a block: each of some neighbouring fields.
macro_rules! planes {
    ($block:ty: $([$first:ident $(, $next:ident)*]),*) => {
        &[$((
            std::mem::offset_of!($block, $first),
            $crate::quant::block::len_of(|block: &$block| &block.$first)
                $(+ $crate::quant::block::len_of(|block: &$block| &block.$next))*,
        )),*]
    };
}
pub(super) use planes;

/// The bytes of a field.
pub(super) const fn len_of<B, T>(_: fn(&B) -> &T) -> usize {
    size_of::<T>()
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

    #[test]
    fn casts_need_no_alignment_and_leave_incomplete_blocks() {
        let data: Vec<u8> = (0..55).collect();
        for start in 0..8 {
            let blocks: &[[u8; 18]] = cast(&data[start..]);
            assert_eq!(blocks.len(), (55 - start) / 18);
            assert_eq!(blocks[1][2] as usize, start + 18 + 2);
        }
    }
}
