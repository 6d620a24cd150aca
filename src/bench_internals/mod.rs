//! Access to private parts for the programs in `benches/`. Not part of the API: anything here may
//! change.

mod attention;
mod rows;
#[cfg(test)]
mod tests;

pub use attention::{Attention, Shape};
pub use rows::Rows;

use crate::Result;
use crate::backend::cpu::matmul::{self, input_kind, quantize_rows};
use crate::backend::cpu::matmul::{Input, InputKind, Matrix, OutPtr, QuantRows, Scratch};
use crate::gguf::TensorType;
use crate::quant;
use crate::simd::Isa;
use std::ops::Range;

/// The name of the instruction set that the kernels use by default: the best one, or the one that
/// `WAVELM_CPU` names.
pub fn instruction_set() -> &'static str {
    Isa::best().name()
}

/// The types of weights that are supported.
pub fn tensor_types() -> impl Iterator<Item = TensorType> {
    quant::supported()
}

/// A supported type in the names of GPU kernels.
pub fn kernel_name(ty: TensorType) -> Option<&'static str> {
    quant::kernel_name(ty)
}

/// The fields of a block of a supported type in the order of their planes in the memory of a GPU, each as (offset in the
/// block, length).
pub fn planes(ty: TensorType) -> Option<&'static [(usize, usize)]> {
    quant::planes(ty)
}

/// Copies weights to the order that is fastest for the kernels of `isa`; `None` if they have no
/// such order for these weights. An unknown `isa` means the best one.
///
/// # Errors
/// If the sizes do not agree.
pub fn interleave(isa: &str, ty: TensorType, weights: &[u8], rows: usize, cols: usize) -> Result<Option<Vec<u8>>> {
    let (isa, weights) = (named(isa), Matrix::new(ty, weights, rows, cols)?);
    if !weights.can_interleave(isa) {
        return Ok(None);
    }
    let mut copy = vec![0; weights.bytes_of(0..rows).len()];
    weights.interleave(isa, 0..rows, &mut copy);
    Ok(Some(copy))
}

fn named(isa: &str) -> Isa {
    Isa::available().into_iter().find(|one| one.name() == isa).unwrap_or_else(Isa::best)
}

/// One matrix product on one thread, to run repeatedly.
pub struct Product<'a> {
    isa: Isa,
    weights: Matrix<'a>,
    x: Vec<f32>,
    quantized: QuantRows,
    n: usize,
    out: Vec<f32>,
    scratch: Scratch,
}

impl<'a> Product<'a> {
    /// Prepares the product of weights, of `rows` rows and `cols` columns, and `n` tokens. An
    /// unknown `isa` means the best one.
    ///
    /// # Errors
    /// If the sizes do not agree.
    pub fn new(isa: &str, ty: TensorType, weights: &'a [u8], rows: usize, cols: usize, n: usize) -> Result<Self> {
        let isa = named(isa);
        let weights = Matrix::new(ty, weights, rows, cols)?;
        let x: Vec<f32> = (0..n * cols).map(|i| (i * 7919 % 255) as f32 - 127.0).collect();
        let (mut quantized, mut scratch) = (QuantRows::new(), Scratch::new()?);
        scratch.reserve(n, cols)?;
        if input_kind(ty) == InputKind::Quant {
            quantized.reserve(n, cols)?;
        }
        let mut product = Self { isa, weights, x, quantized, n, out: vec![0.0; n * rows], scratch };
        product.quantize();
        Ok(product)
    }

    /// Declares the weights to be [interleaved](interleave).
    pub fn interleaved(mut self) -> Self {
        self.weights = self.weights.written(self.isa);
        self
    }

    /// Quantizes the activations, if the weights need it.
    pub fn quantize(&mut self) {
        self.scratch.forget();
        if self.quantized.rows() > 0 {
            // SAFETY: this is the only reference.
            unsafe { quantize_rows(self.isa, &self.x, 0..self.n, &self.quantized) }
        }
    }

    /// Multiplies all rows.
    pub fn run(&mut self) {
        self.run_rows(0..self.weights.rows());
    }

    /// Multiplies some rows.
    ///
    /// # Panics
    /// If the matrix has fewer rows.
    pub fn run_rows(&mut self, rows: Range<usize>) {
        let input = match input_kind(self.weights.ty()) {
            InputKind::F32 => Input::F32(&self.x),
            InputKind::Quant => Input::Quant(&self.quantized),
        };
        let out = OutPtr::new(&mut self.out, self.weights.rows());
        let product = matmul::Product { weights: self.weights, x: input, n: self.n, out, bias: None };
        // SAFETY: this is the only reference.
        unsafe { matmul::matmul(self.isa, &product, rows, None, &mut self.scratch) }
    }
}
