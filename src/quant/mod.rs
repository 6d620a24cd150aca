//! Block formats of quantized tensors, with scalar dequantization and quantization: the oracle of every fast kernel.
//!
//! A quantized row is a whole number of blocks; a block holds 32 or 256 weights as small integers with one or two
//! scales. The layouts are ggml's, as GGUF files hold them; [`dequantize`] agrees with the Python package `gguf` (its
//! `gguf.quants`) bit for bit on every supported type, and [`quantize`] does where that package has a quantizer.

pub(crate) mod blocks;
mod float;
mod k_quants;
mod simple;

use crate::gguf::TensorType;
use crate::{Error, Result};
use blocks::{
    Block, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};

/// Whether tensors of this type can be dequantized by this version.
pub fn is_supported(ty: TensorType) -> bool {
    use TensorType::*;
    matches!(ty, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K)
}

/// Dequantizes whole blocks: `out.len()` elements of type `ty` from `data`.
///
/// `data` needs no alignment. Scales that are infinite or NaN give infinite or NaN elements, as the arithmetic has it.
///
/// # Errors
/// `Unsupported` for a type without a dequantizer; `InvalidInput` where the sizes do not agree.
///
/// # Example
/// ```
/// use wavelm::{gguf::TensorType, quant};
///
/// let weights: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
/// let data = quant::quantize(TensorType::Q8_0, &weights)?;
/// assert_eq!(data.len(), 34); // one block: a scale and 32 bytes
/// let mut out = [0.0; 32];
/// quant::dequantize(TensorType::Q8_0, &data, &mut out)?;
/// assert!(weights.iter().zip(&out).all(|(w, o)| (w - o).abs() < 0.1));
/// # Ok::<(), wavelm::Error>(())
/// ```
pub fn dequantize(ty: TensorType, data: &[u8], out: &mut [f32]) -> Result<()> {
    use TensorType::*;
    let agrees = out.len() % ty.block_len() == 0 && out.len() / ty.block_len() * ty.block_bytes() == data.len();
    if is_supported(ty) && !agrees {
        return Err(Error::invalid_input(format!(
            "cannot dequantize {} bytes of {ty:?} to {} elements: {} elements take {} bytes",
            data.len(),
            out.len(),
            ty.block_len(),
            ty.block_bytes()
        )));
    }
    match ty {
        F32 => from_elements(data, out, f32::from_le_bytes),
        F16 => from_elements(data, out, |b| float::f16_to_f32(u16::from_le_bytes(b))),
        BF16 => from_elements(data, out, |b| float::bf16_to_f32(u16::from_le_bytes(b))),
        Q4_0 => from_blocks::<BlockQ4_0, _>(data, out),
        Q4_1 => from_blocks::<BlockQ4_1, _>(data, out),
        Q5_0 => from_blocks::<BlockQ5_0, _>(data, out),
        Q5_1 => from_blocks::<BlockQ5_1, _>(data, out),
        Q8_0 => from_blocks::<BlockQ8_0, _>(data, out),
        Q2_K => from_blocks::<BlockQ2K, _>(data, out),
        Q3_K => from_blocks::<BlockQ3K, _>(data, out),
        Q4_K => from_blocks::<BlockQ4K, _>(data, out),
        Q5_K => from_blocks::<BlockQ5K, _>(data, out),
        Q6_K => from_blocks::<BlockQ6K, _>(data, out),
        _ => return Err(unsupported(ty)),
    }
    Ok(())
}

/// Quantizes `values` to `ty`: whole blocks only.
///
/// The values should be finite and within the range of f16 scales (±65504 for the types with 32 elements a block): there
/// is no error for others, but what they are quantized to is unspecified.
///
/// # Errors
/// `Unsupported` for a type without a quantizer; `InvalidInput` where the length is not a whole number of blocks.
pub fn quantize(ty: TensorType, values: &[f32]) -> Result<Vec<u8>> {
    use TensorType::*;
    if is_supported(ty) && values.len() % ty.block_len() != 0 {
        return Err(Error::invalid_input(format!(
            "cannot quantize {} values to {ty:?}: give a multiple of {}, the length of its blocks",
            values.len(),
            ty.block_len()
        )));
    }
    Ok(match ty {
        F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        F16 => values.iter().flat_map(|&v| float::f32_to_f16(v).to_le_bytes()).collect(),
        BF16 => values.iter().flat_map(|&v| float::f32_to_bf16(v).to_le_bytes()).collect(),
        Q4_0 => to_blocks::<BlockQ4_0, _>(values),
        Q4_1 => to_blocks::<BlockQ4_1, _>(values),
        Q5_0 => to_blocks::<BlockQ5_0, _>(values),
        Q5_1 => to_blocks::<BlockQ5_1, _>(values),
        Q8_0 => to_blocks::<BlockQ8_0, _>(values),
        Q2_K => to_blocks::<BlockQ2K, _>(values),
        Q3_K => to_blocks::<BlockQ3K, _>(values),
        Q4_K => to_blocks::<BlockQ4K, _>(values),
        Q5_K => to_blocks::<BlockQ5K, _>(values),
        Q6_K => to_blocks::<BlockQ6K, _>(values),
        _ => return Err(unsupported(ty)),
    })
}

fn unsupported(ty: TensorType) -> Error {
    Error::unsupported(format!(
        "tensors of type {ty:?} are not supported: use a file that is quantized to one of \
         F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K (or requantize this one)"
    ))
}

fn from_elements<const SIZE: usize>(data: &[u8], out: &mut [f32], to_f32: impl Fn([u8; SIZE]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<SIZE>().0) {
        *out = to_f32(bytes);
    }
}

fn from_blocks<B: Block<N>, const N: usize>(data: &[u8], out: &mut [f32]) {
    for (out, block) in out.as_chunks_mut::<N>().0.iter_mut().zip(blocks::cast::<B>(data)) {
        block.dequantize(out);
    }
}

fn to_blocks<B: Block<N>, const N: usize>(values: &[f32]) -> Vec<u8> {
    let blocks: Vec<B> = values.as_chunks::<N>().0.iter().map(B::quantize).collect();
    bytemuck::cast_slice(&blocks).to_vec()
}
