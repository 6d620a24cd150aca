//! Operations on rows.

use super::named;
use crate::backend::cpu::ops;
use crate::program::Activation;
use crate::program::RopeStyle;
use crate::simd::Isa;
use crate::{Error, Result};

/// Numbers in a head.
const HEAD_DIM: usize = 64;

/// A row, and operations on it to run repeatedly.
pub struct Rows {
    isa: Isa,
    x: Vec<f32>,
    y: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    out: Vec<f32>,
}

impl Rows {
    /// Creates a row of `len` numbers: whole heads of 64. An unknown `isa` means the best one.
    ///
    /// # Errors
    /// If `len` is zero or not a multiple of the head's size.
    pub fn new(isa: &str, len: usize) -> Result<Self> {
        if len == 0 || !len.is_multiple_of(HEAD_DIM) {
            return Err(Error::invalid_input(format!("a row of {len} numbers has no heads of {HEAD_DIM}")));
        }
        let x: Vec<f32> = (0..len).map(|i| -0.5 - (i * 7919 % 1009) as f32 / 1009.0).collect();
        // `silu(x) · y` equals `x`, so gates that are computed in place keep their values.
        // Otherwise they would soon be infinite, or so small that the processor is slow. For these
        // `x` rounding errors shrink.
        let y = x.iter().map(|x| 1.0 + (-x).exp()).collect();
        let angles = || (0..HEAD_DIM / 2).map(|i| 100.0 * 10_000_f32.powf(-(i as f32) / (HEAD_DIM / 2) as f32));
        let (cos, sin) = (angles().map(f32::cos).collect(), angles().map(f32::sin).collect());
        Ok(Self { isa: named(isa), out: x.clone(), x, y, cos, sin })
    }

    /// Normalizes the row.
    pub fn rms_norm(&mut self) {
        ops::rms_norm(self.isa, &self.x, self.x.len(), &self.y, 1e-5, &mut self.out);
    }

    /// Multiplies the row's SiLU with another row.
    pub fn silu_glu(&mut self) {
        ops::glu(self.isa, Activation::Silu, &mut self.out, &self.y);
    }

    /// Rotates the heads: pairs of neighbours or, with `halves`, of halves.
    pub fn rope(&mut self, halves: bool) {
        let (style, heads) = (if halves { RopeStyle::Neox } else { RopeStyle::Norm }, self.out.len() / HEAD_DIM);
        ops::rope(self.isa, style, &mut self.out, heads, HEAD_DIM, &self.cos, &self.sin);
    }

    /// Adds another row.
    pub fn add(&mut self) {
        ops::add(self.isa, &self.x, &mut self.out);
    }

    /// The last result.
    pub fn out(&self) -> &[f32] {
        &self.out
    }
}
