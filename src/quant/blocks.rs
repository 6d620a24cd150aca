//! The block formats, as plain data.
//!
//! All fields are bytes, so that a block has alignment 1 and any slice of the right length can be viewed as blocks.
//! Numbers of more than a byte are little-endian, as GGUF has them. In the descriptions, `w[i]` is the i-th weight.

use super::float;
use crate::gguf::TensorType;
use bytemuck::{Pod, Zeroable};

/// A format of `N` weights a block.
pub(crate) trait Block<const N: usize>: Pod {
    /// The format's name in GGUF.
    const TYPE: TensorType;

    /// The weights of the block. Total: no bytes are invalid.
    fn dequantize(&self, out: &mut [f32; N]);

    /// The block that represents `x`. Total: values that are not finite give some block.
    fn quantize(x: &[f32; N]) -> Self;
}

/// Views bytes as blocks, and leaves out the bytes of an incomplete last block.
pub(crate) fn cast<B: Pod>(data: &[u8]) -> &[B] {
    let whole = data.len() - data.len() % size_of::<B>();
    // This cannot fail for types of alignment 1; the assertions below check that all blocks are.
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

/// 32 weights of 4 bits: `w[i] = d * (q[i] - 8)`.
///
/// `q[i]` for i < 16 is the low nibble of `qs[i]`, `q[i + 16]` the high nibble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_0 {
    pub(crate) d: F16,
    pub(crate) qs: [u8; 16],
}

/// 32 weights of 4 bits: `w[i] = d * q[i] + m`, nibbles as in [`BlockQ4_0`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_1 {
    pub(crate) d: F16,
    pub(crate) m: F16,
    pub(crate) qs: [u8; 16],
}

/// 32 weights of 5 bits: `w[i] = d * (q[i] - 16)`.
///
/// The low 4 bits of `q[i]` are as in [`BlockQ4_0`]; bit 4 is bit `i` of `qh`, read as a little-endian u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_0 {
    pub(crate) d: F16,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; 16],
}

/// 32 weights of 5 bits: `w[i] = d * q[i] + m`, bits as in [`BlockQ5_0`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_1 {
    pub(crate) d: F16,
    pub(crate) m: F16,
    pub(crate) qh: [u8; 4],
    pub(crate) qs: [u8; 16],
}

/// 32 weights of 8 bits: `w[i] = d * qs[i]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ8_0 {
    pub(crate) d: F16,
    pub(crate) qs: [i8; 32],
}

/// 256 weights of 2 bits in 16 groups of 16: `w[i] = (d * sc) * q[i] - dmin * m`.
///
/// Group `g` has `sc` in the low nibble of `scales[g]` and `m` in the high nibble. With `i = 128h + 32j + l`
/// (h < 2, j < 4, l < 32), `q[i]` is the two bits of `qs[32h + l]` that start at bit `2j`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ2K {
    pub(crate) scales: [u8; 16],
    pub(crate) qs: [u8; 64],
    pub(crate) d: F16,
    pub(crate) dmin: F16,
}

/// 256 weights of 3 bits in 16 groups of 16: `w[i] = (d * sc) * q[i]`, with sc in -32..32 and q in -4..4.
///
/// With `i = 128h + 32j + l` as in [`BlockQ2K`], `q[i] + 4` has its low two bits as there, and bit 2 in bit `4h + j` of
/// `hmask[l]`. The scales are packed: see [`scales_q3k`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ3K {
    pub(crate) hmask: [u8; 32],
    pub(crate) qs: [u8; 64],
    pub(crate) scales: [u8; 12],
    pub(crate) d: F16,
}

/// 256 weights of 4 bits in 8 groups of 32: `w[i] = (d * sc) * q[i] - dmin * m`.
///
/// With `i = 64p + l` (l < 32), `q[i]` is the low nibble of `qs[32p + l]`, and `q[i + 32]` the high nibble. `sc` and `m`
/// are packed in `scales`: see [`scale_min_k4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4K {
    pub(crate) d: F16,
    pub(crate) dmin: F16,
    pub(crate) scales: [u8; 12],
    pub(crate) qs: [u8; 128],
}

/// 256 weights of 5 bits in 8 groups of 32: as [`BlockQ4K`], and bit 4 of `q[32g + l]` is bit `g`
/// of `qh[l]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5K {
    pub(crate) d: F16,
    pub(crate) dmin: F16,
    pub(crate) scales: [u8; 12],
    pub(crate) qh: [u8; 32],
    pub(crate) qs: [u8; 128],
}

/// 256 weights of 6 bits in 16 groups of 16: `w[i] = (d * sc) * (q[i] - 32)`.
///
/// Group `g` has `sc = scales[g]`. With `i = 128h + 32j + l` (h < 2, j < 4, l < 32), the low 4 bits of `q[i]` are the
/// low (j < 2) or high (j >= 2) nibble of `ql[64h + 32(j % 2) + l]`, and bits 4 and 5 are the two bits of `qh[32h + l]`
/// that start at bit `2j`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ6K {
    pub(crate) ql: [u8; 128],
    pub(crate) qh: [u8; 64],
    pub(crate) scales: [i8; 16],
    pub(crate) d: F16,
}

macro_rules! assert_layout {
    ($($block:ty, $len:literal;)*) => {$(const _: () = {
        let ty = <$block as Block<$len>>::TYPE;
        assert!(size_of::<$block>() == ty.block_bytes() && align_of::<$block>() == 1 && ty.block_len() == $len);
    };)*};
}

assert_layout! {
    BlockQ4_0, 32;
    BlockQ4_1, 32;
    BlockQ5_0, 32;
    BlockQ5_1, 32;
    BlockQ8_0, 32;
    BlockQ2K, 256;
    BlockQ3K, 256;
    BlockQ4K, 256;
    BlockQ5K, 256;
    BlockQ6K, 256;
}

/// The 6-bit scale and minimum of group `j` (of 8) of a [`BlockQ4K`] or [`BlockQ5K`].
///
/// Bytes 0..4 hold the scales of groups 0..4 in their low 6 bits, bytes 4..8 the minima likewise. Groups 4..8 have their
/// low nibbles in bytes 8..12 (scale low, minimum high), and bits 4 and 5 in the top bits of bytes 0..4 and 4..8.
#[inline]
pub(crate) fn scale_min_k4(j: usize, scales: &[u8; 12]) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        ((low & 15) | (scales[j - 4] >> 6 << 4), (low >> 4) | (scales[j] >> 6 << 4))
    }
}

/// The inverse of [`scale_min_k4`]: packs 6-bit scales and minima.
pub(crate) fn pack_scales_mins_k4(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4 << 6);
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4 << 6);
        packed[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] << 4);
    }
    packed
}

/// The scales of a [`BlockQ3K`], in -32..32.
///
/// Scale `g`, plus 32, has its low 4 bits in byte `g % 8` (the high nibble for g >= 8) and its bits 4 and 5 in byte
/// `8 + g % 4`, from bit `2 * (g / 4)`.
#[inline]
pub(crate) fn scales_q3k(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let low = packed[g % 8] >> (g / 8 * 4) & 15;
        let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The inverse of [`scales_q3k`].
pub(crate) fn pack_scales_q3k(scales: &[i8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (g, &scale) in scales.iter().enumerate() {
        let scale = scale.wrapping_add(32) as u8;
        packed[g % 8] |= (scale & 15) << (g / 8 * 4);
        packed[8 + g % 4] |= (scale >> 4 & 3) << (g / 4 * 2);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_scales_round_trip() {
        // 37 is coprime to 64, so every group sees many of the 6-bit values, no two neighbours the same.
        for start in 0..64_u8 {
            let value = |i: usize| (start as usize + 37 * i) as u8 % 64;
            let (scales, mins) = (std::array::from_fn(value), std::array::from_fn(|j| value(j + 8)));
            let packed = pack_scales_mins_k4(&scales, &mins);
            for j in 0..8 {
                assert_eq!(scale_min_k4(j, &packed), (scales[j], mins[j]), "group {j} of {packed:?}");
            }
            let scales = std::array::from_fn(|g| value(g) as i8 - 32);
            assert_eq!(scales_q3k(&pack_scales_q3k(&scales)), scales);
        }
    }

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
