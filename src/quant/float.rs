//! Conversions between f32 and the 16-bit floats: inlined, and free of branches where loops must
//! vectorize.

/// The value of IEEE half-precision bits, exactly. A NaN stays a NaN with its payload.
#[inline]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    // A half whose bits are moved to the place of f32's exponent and mantissa reads 2^112 times too
    // small, subnormals included, so one multiplication corrects it. Only infinities and NaNs come
    // out wrong, as finite numbers, and need their exponent filled.
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | u32::from(bits & 0x8000) << 16)
}

/// The half-precision bits nearest to `value`, ties to even; too large values become infinite.
#[inline]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    half::f16::from_f32(value).to_bits()
}

/// The value of bfloat16 bits, exactly.
#[inline]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bfloat16 bits nearest to `value`, ties to even; NaNs are made quiet.
#[inline]
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    half::bf16::from_f32(value).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_halves_widen_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, expected) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(), "{bits:#06x}: {ours}");
        }
    }

    #[test]
    fn all_halves_round_trip() {
        for bits in 0..=u16::MAX {
            let half = f16_to_f32(bits);
            assert!(half.is_nan() || f32_to_f16(half) == bits, "f16 {bits:#06x}");
            let brain = bf16_to_f32(bits);
            assert!(brain.is_nan() || f32_to_bf16(brain) == bits, "bf16 {bits:#06x}");
        }
    }
}
