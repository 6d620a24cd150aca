//! Block formats of quantized tensors, with scalar dequantization and quantization: the oracle of every fast kernel.

use crate::Result;
use crate::gguf::TensorType;

/// Whether tensors of this type can be dequantized by this version.
pub fn is_supported(_ty: TensorType) -> bool {
    todo!()
}

/// Dequantizes whole blocks: `out.len()` elements of type `ty` from `data`.
///
/// # Errors
/// `Unsupported` for a type without a dequantizer; `InvalidInput` where the sizes do not agree.
pub fn dequantize(_ty: TensorType, _data: &[u8], _out: &mut [f32]) -> Result<()> {
    todo!()
}

/// Quantizes `values` to `ty`: whole blocks only.
///
/// # Errors
/// `Unsupported` for a type without a quantizer; `InvalidInput` where the length is not a whole number of blocks.
pub fn quantize(_ty: TensorType, _values: &[f32]) -> Result<Vec<u8>> {
    todo!()
}
