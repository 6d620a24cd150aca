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

use crate::gguf::TensorType;
use crate::{Error, Result, memory};
use block::Block;
use formats::{QUANTIZED, Visit, visit};

/// The floating-point types.
const FLOATS: [TensorType; 3] = [TensorType::F32, TensorType::F16, TensorType::BF16];

/// Whether tensors of this type can be dequantized by this version.
pub fn is_supported(ty: TensorType) -> bool {
    FLOATS.contains(&ty) || QUANTIZED.contains(&ty)
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
    let names: Vec<String> = FLOATS.iter().chain(QUANTIZED).map(|ty| format!("{ty:?}")).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use TensorType::*;

    fn supported() -> impl Iterator<Item = TensorType> {
        FLOATS.into_iter().chain(QUANTIZED.iter().copied())
    }

    fn all_types() -> impl Iterator<Item = TensorType> {
        (0..64).filter_map(TensorType::from_id)
    }

    /// Pseudorandom numbers (splitmix64).
    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Roughly normal numbers of variance 1: each is the sum of twelve uniform ones.
    fn normal(seed: &mut u64) -> f32 {
        (0..12).map(|_| (random(seed) >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }

    /// The root mean squared error of a round trip, relative to that of replacing all values by 0.
    fn relative_error(ty: TensorType, values: &[f32]) -> f64 {
        let mut out = vec![f32::NAN; values.len()];
        dequantize(ty, &quantize(ty, values).unwrap(), &mut out).unwrap();
        let sum = |terms: &mut dyn Iterator<Item = f32>| terms.map(|v| f64::from(v).powi(2)).sum::<f64>();
        (sum(&mut values.iter().zip(&out).map(|(v, o)| v - o)) / sum(&mut values.iter().copied())).sqrt()
    }

    #[test]
    fn supported_types_are_those_that_work() {
        for ty in all_types() {
            let mut out = vec![f32::NAN; ty.block_len()];
            let values = vec![0.0; ty.block_len()];
            let (from, to) = (dequantize(ty, &vec![0; ty.block_bytes()], &mut out), quantize(ty, &values));
            if is_supported(ty) {
                assert_eq!((from.is_ok(), out), (true, values.clone()), "{ty:?}");
                assert_eq!(to.unwrap().len(), ty.block_bytes());
            } else {
                for error in [from.unwrap_err(), to.unwrap_err()] {
                    assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
                    assert!(error.to_string().contains(&format!("{ty:?} are not supported")), "{error}");
                }
            }
        }
        assert!(supported().all(is_supported) && supported().count() >= 13);
    }

    #[test]
    fn sizes_must_agree() {
        for ty in supported() {
            let (len, bytes) = (ty.block_len(), ty.block_bytes());
            let error = |data: usize, out: usize| dequantize(ty, &vec![0; data], &mut vec![0.0; out]).unwrap_err();
            for error in [error(2 * bytes, len), error(bytes, 2 * len), error(0, len), error(bytes + 1, len)] {
                assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
            }
            dequantize(ty, &[], &mut []).unwrap();
            assert!(quantize(ty, &[]).unwrap().is_empty());
            if len > 1 {
                assert_eq!(error(bytes, len - 1).kind(), crate::ErrorKind::InvalidInput);
                assert_eq!(quantize(ty, &vec![0.0; len + 1]).unwrap_err().kind(), crate::ErrorKind::InvalidInput);
            }
        }
    }

    #[test]
    fn round_trips_are_close() {
        let mut seed = 1;
        let values: Vec<f32> = (0..64 * 256).map(|_| normal(&mut seed) * 0.02).collect();
        // Each bound is a little above the quantizer's error, and well below the error with one bit
        // less.
        for (ty, bound) in [
            (F32, 0.0),
            (F16, 0.0003),
            (BF16, 0.002),
            (Q8_0, 0.006),
            (Q6_K, 0.02),
            (Q5_0, 0.045),
            (Q5_1, 0.04),
            (Q5_K, 0.04),
            (Q4_0, 0.09),
            (Q4_1, 0.08),
            (Q4_K, 0.08),
            (Q3_K, 0.15),
            (Q2_K, 0.3),
        ] {
            let error = relative_error(ty, &values);
            assert!(error <= bound, "{ty:?}: the relative error is {error}");
        }
    }

    #[test]
    fn round_trips_hold_at_any_magnitude_and_offset() {
        let mut seed = 2;
        for ty in supported() {
            for magnitude in [1e-2, 1.0, 1e4] {
                for offset in [0.0, 0.9, -0.9] {
                    let values: Vec<f32> = (0..1024).map(|_| magnitude * (0.3 * normal(&mut seed) + offset)).collect();
                    let error = relative_error(ty, &values);
                    assert!(error < 0.3, "{ty:?}: the relative error is {error} at {magnitude} with offset {offset}");
                }
            }
        }
    }

    #[test]
    fn any_bytes_and_any_values_are_accepted() {
        let mut seed = 3;
        for ty in supported() {
            let (len, bytes) = (4 * ty.block_len(), 4 * ty.block_bytes());
            let mut out = vec![0.0; len];
            for _ in 0..100 {
                let data: Vec<u8> = (0..bytes).map(|_| random(&mut seed) as u8).collect();
                dequantize(ty, &data, &mut out).unwrap();
                let values: Vec<f32> = (0..len).map(|_| f32::from_bits(random(&mut seed) as u32)).collect();
                assert_eq!(quantize(ty, &values).unwrap().len(), bytes);
            }
            dequantize(ty, &vec![0xff; bytes], &mut out).unwrap();
            assert!(out.iter().all(|v| v.is_nan()), "{ty:?}: NaN scales give NaN weights");
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::from_bits(1)] {
                assert_eq!(quantize(ty, &vec![value; len]).unwrap().len(), bytes);
            }
        }
    }
}
