//! Block formats of quantized tensors, with scalar dequantization and quantization. They are the
//! oracle for every fast kernel.
//!
//! A quantized row is a whole number of blocks; a block holds 32 or 256 weights as small integers
//! with one or two scales. The layouts are ggml's, as GGUF files hold them. [`dequantize`] agrees
//! with the Python package `gguf` (its `gguf.quants`) bit for bit on every supported type;
//! [`quantize`] does so where that package has a quantizer.

pub(crate) mod blocks;
pub(crate) mod float;
mod k_quants;
mod simple;

use crate::gguf::TensorType;
use crate::{Error, Result, memory};
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
        Q4_0 => to_blocks::<BlockQ4_0, _>(values)?,
        Q4_1 => to_blocks::<BlockQ4_1, _>(values)?,
        Q5_0 => to_blocks::<BlockQ5_0, _>(values)?,
        Q5_1 => to_blocks::<BlockQ5_1, _>(values)?,
        Q8_0 => to_blocks::<BlockQ8_0, _>(values)?,
        Q2_K => to_blocks::<BlockQ2K, _>(values)?,
        Q3_K => to_blocks::<BlockQ3K, _>(values)?,
        Q4_K => to_blocks::<BlockQ4K, _>(values)?,
        Q5_K => to_blocks::<BlockQ5K, _>(values)?,
        Q6_K => to_blocks::<BlockQ6K, _>(values)?,
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

/// What the memory is for, in texts of errors.
const QUANTIZED: &str = "quantized weights";

fn to_elements<const SIZE: usize>(values: &[f32], to_bytes: impl Fn(f32) -> [u8; SIZE]) -> Result<Vec<u8>> {
    let mut bytes = memory::with_room(values.len().saturating_mul(SIZE), QUANTIZED)?;
    bytes.extend(values.iter().flat_map(|&value| to_bytes(value)));
    Ok(bytes)
}

fn to_blocks<B: Block<N>, const N: usize>(values: &[f32]) -> Result<Vec<u8>> {
    let blocks = values.as_chunks::<N>().0;
    let mut bytes = memory::with_room(blocks.len().saturating_mul(size_of::<B>()), QUANTIZED)?;
    blocks.iter().for_each(|block| bytes.extend_from_slice(bytemuck::bytes_of(&B::quantize(block))));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use TensorType::*;

    const SUPPORTED: [TensorType; 13] = [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K];

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
        assert!(SUPPORTED.into_iter().all(is_supported));
    }

    #[test]
    fn sizes_must_agree() {
        for ty in SUPPORTED {
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
        for ty in SUPPORTED {
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
        for ty in SUPPORTED {
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
