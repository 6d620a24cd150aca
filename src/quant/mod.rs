//! Block formats of quantized tensors, with scalar dequantization and quantization. They are the
//! oracle for every fast kernel.
//!
//! A quantized row is a whole number of blocks; a block holds 32 or 256 weights as small integers
//! with one or two scales. The layouts are ggml's, as GGUF files hold them. [`dequantize`] agrees
//! with the Python package `gguf` (its `gguf.quants`) bit for bit on every supported type;
//! [`quantize`] does so where that package has a quantizer.

mod block;
pub(crate) mod float;
pub(crate) mod formats;
#[cfg(test)]
mod tests;
pub(crate) mod unpack;

pub(crate) use block::{Block, Format, Planes};

use crate::gguf::TensorType;
use crate::{Error, Result, memory};
use formats::{QUANTIZED, Visit, facts, visit};

/// The floating-point types.
const FLOATS: [TensorType; 3] = [TensorType::F32, TensorType::F16, TensorType::BF16];

/// Whether tensors of this type can be dequantized by this version.
pub fn is_supported(ty: TensorType) -> bool {
    FLOATS.contains(&ty) || QUANTIZED.contains(&ty)
}

/// The types that [can be dequantized](is_supported).
pub(crate) fn supported() -> impl Iterator<Item = TensorType> {
    FLOATS.iter().chain(QUANTIZED).copied()
}

/// A supported type in the names of GPU kernels.
pub(crate) fn kernel_name(ty: TensorType) -> Option<&'static str> {
    match ty {
        TensorType::F32 => Some("f32"),
        TensorType::F16 => Some("f16"),
        TensorType::BF16 => Some("bf16"),
        _ => facts(ty).map(|facts| facts.name),
    }
}

/// The GPU kernels that multiply with a supported type on matrix cores; there are none for f32, which may have values that
/// f16 cannot hold.
pub(crate) fn core_family(ty: TensorType) -> Option<&'static str> {
    match ty {
        TensorType::F16 => Some("matmul_core_f16"),
        TensorType::BF16 => Some("matmul_core_bf16"),
        _ => facts(ty).map(|facts| facts.core_family),
    }
}

/// The planes of a supported type: the same as in hip/quant/formats.h.
pub(crate) fn planes(ty: TensorType) -> Option<Planes> {
    match ty {
        TensorType::F32 => Some(&[(0, 4)]),
        TensorType::F16 | TensorType::BF16 => Some(&[(0, 2)]),
        _ => facts(ty).map(|facts| facts.planes),
    }
}

/// Dequantizes whole blocks: `out.len()` elements of type `ty` from `data`.
///
/// `data` needs no alignment. Scales that are infinite or NaN give infinite or NaN elements.
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
    let agrees =
        out.len().is_multiple_of(ty.block_len()) && out.len() / ty.block_len() * ty.block_bytes() == data.len();
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
        _ => visit(ty, FromBlocks { data, out }).ok_or_else(|| unsupported(ty))?,
    }
    Ok(())
}

/// Quantizes `values` to `ty`: whole blocks only.
///
/// The values should be finite, and of magnitudes that half-precision scales can hold (below 65504
/// is safe for every type). Other values give no error, but an unspecified result.
///
/// # Errors
/// `Unsupported` for a type without a quantizer; `InvalidInput` where the length is not a whole number of blocks;
/// `OutOfMemory`.
pub fn quantize(ty: TensorType, values: &[f32]) -> Result<Vec<u8>> {
    use TensorType::*;
    if is_supported(ty) && !values.len().is_multiple_of(ty.block_len()) {
        return Err(Error::invalid_input(format!(
            "cannot quantize {} values to {ty:?}: give a multiple of {}, the length of its blocks",
            values.len(),
            ty.block_len()
        )));
    }
    Ok(match ty {
        F32 => to_elements(values, f32::to_le_bytes)?,
        F16 => to_elements(values, |v| float::f32_to_f16(v).to_le_bytes())?,
        BF16 => to_elements(values, |v| float::f32_to_bf16(v).to_le_bytes())?,
        _ => visit(ty, ToBlocks(values)).ok_or_else(|| unsupported(ty))??,
    })
}

fn unsupported(ty: TensorType) -> Error {
    let names: Vec<String> = supported().map(|ty| format!("{ty:?}")).collect();
    Error::unsupported(format!(
        "tensors of type {ty:?} are not supported: use a file that is quantized to one of {} (or requantize this one)",
        names.join(", ")
    ))
}

fn from_elements<const SIZE: usize>(data: &[u8], out: &mut [f32], to_f32: impl Fn([u8; SIZE]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<SIZE>().0) {
        *out = to_f32(bytes);
    }
}

struct FromBlocks<'a> {
    data: &'a [u8],
    out: &'a mut [f32],
}

impl Visit for FromBlocks<'_> {
    type Output = ();

    fn visit<B: Block<N>, const N: usize>(self) {
        for (out, block) in self.out.as_chunks_mut::<N>().0.iter_mut().zip(block::cast::<B>(self.data)) {
            block.dequantize(out);
        }
    }
}

/// What the memory is for, in texts of errors.
const WHAT: &str = "quantized weights";

fn to_elements<const SIZE: usize>(values: &[f32], to_bytes: impl Fn(f32) -> [u8; SIZE]) -> Result<Vec<u8>> {
    let mut bytes = memory::with_room(values.len().saturating_mul(SIZE), WHAT)?;
    bytes.extend(values.iter().flat_map(|&value| to_bytes(value)));
    Ok(bytes)
}

struct ToBlocks<'a>(&'a [f32]);

impl Visit for ToBlocks<'_> {
    type Output = Result<Vec<u8>>;

    fn visit<B: Block<N>, const N: usize>(self) -> Result<Vec<u8>> {
        let blocks = self.0.as_chunks::<N>().0;
        let mut bytes = memory::with_room(blocks.len().saturating_mul(size_of::<B>()), WHAT)?;
        blocks.iter().for_each(|block| bytes.extend_from_slice(bytemuck::bytes_of(&B::quantize(block))));
        Ok(bytes)
    }
}
