//! Weights in the form that the kernels read.

use super::schedule::TILE_ROWS;
use super::{InputKind, Traits, input_kind, layout};
use crate::gguf::TensorType;
use crate::quant::formats::MAX_BLOCK_BYTES;
use crate::simd::{self, Isa};
use crate::{Error, Result, quant};
use std::ops::Range;

/// Products of ranges of rows are fastest if their lengths are multiples of this.
pub(crate) const ROW_STEP: usize = TILE_ROWS;

/// Weights in GGUF's layout: consecutive rows of blocks, straight from the file.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    ty: TensorType,
    data: &'a [u8],
    rows: usize,
    cols: usize,
    row_bytes: usize,
    /// Rows that are [interleaved](layout) with each other; 1 if rows are consecutive.
    lanes: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix of `rows` rows, each of `cols` weights of type `ty`.
    ///
    /// # Errors
    /// `Unsupported` for a type without kernels; `InvalidInput` if the sizes do not agree.
    pub(crate) fn new(ty: TensorType, data: &'a [u8], rows: usize, cols: usize) -> Result<Self> {
        if !quant::is_supported(ty) {
            return Err(Error::unsupported(format!("there are no kernels for weights of type {ty:?}")));
        }
        let row_bytes = if cols.is_multiple_of(ty.block_len()) {
            (cols / ty.block_len()).checked_mul(ty.block_bytes())
        } else {
            None
        };
        match row_bytes {
            Some(row_bytes) if row_bytes.checked_mul(rows) == Some(data.len()) => {
                Ok(Self { ty, data, rows, cols, row_bytes, lanes: 1 })
            }
            _ => Err(Error::invalid_input(format!(
                "{} bytes are not a matrix of {rows} rows and {cols} columns of type {ty:?}",
                data.len()
            ))),
        }
    }

    /// Rows, the outputs of the product.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, the inputs of the product.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The type of the weights.
    pub(crate) fn ty(&self) -> TensorType {
        self.ty
    }

    /// Bytes from one row to the next.
    pub(super) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Whether groups of rows are [interleaved](layout).
    pub(super) fn is_interleaved(&self) -> bool {
        self.lanes > 1
    }

    /// Whether they are interleaved for this instruction set.
    pub(super) fn is_written_for(&self, isa: Isa) -> bool {
        self.lanes == lanes(isa)
    }

    /// The bytes of `columns` columns of a row: whole blocks.
    pub(super) fn bytes(&self, columns: usize) -> usize {
        columns / self.ty.block_len() * self.ty.block_bytes()
    }

    /// The bytes of a row.
    ///
    /// # Panics
    /// If there is no such row, or the rows are interleaved.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        assert!(self.lanes == 1, "there are no rows where they are interleaved");
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }

    /// The weights of a row, in any layout of the rows.
    ///
    /// # Errors
    /// `InvalidInput` if `out` is not as long as a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        if self.lanes == 1 || out.len() != self.cols {
            return quant::dequantize(self.ty, &self.data[row * self.row_bytes..][..self.row_bytes], out);
        }
        let (len, bytes) = (self.ty.block_len(), self.ty.block_bytes());
        let rows = &self.data[self.bytes_of(row / self.lanes * self.lanes..row / self.lanes * self.lanes + self.lanes)];
        let mut block = [0; MAX_BLOCK_BYTES];
        for (blocks, out) in rows.chunks_exact(self.lanes * bytes).zip(out.chunks_exact_mut(len)) {
            layout::take_block(self.ty, self.lanes, blocks, row % self.lanes, &mut block[..bytes]);
            quant::dequantize(self.ty, &block[..bytes], out)?;
        }
        Ok(())
    }

    /// The place of rows among the bytes of the matrix. Interleaved rows must form whole groups.
    pub(crate) fn bytes_of(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.row_bytes..rows.end * self.row_bytes
    }

    /// The bytes of rows. Interleaved rows must form whole groups.
    ///
    /// # Panics
    /// If there are no such rows.
    pub(crate) fn data_of(&self, rows: Range<usize>) -> &'a [u8] {
        &self.data[self.bytes_of(rows)]
    }

    /// The start of a row. With interleaved rows, it must be the first of a group.
    pub(crate) fn start(&self, row: usize) -> *const u8 {
        debug_assert!(row.is_multiple_of(self.lanes));
        self.data[row * self.row_bytes..].as_ptr()
    }

    /// Whether the matrix can be interleaved for the kernels of `isa`, which are faster then.
    pub(crate) fn can_interleave(&self, isa: Isa) -> bool {
        lanes(isa) > 1 && self.rows.is_multiple_of(ROW_STEP) && input_kind(self.ty) == InputKind::Quant
    }

    /// Interleaves some rows, from one multiple of [`ROW_STEP`] to another. `out` has as many bytes
    /// as they.
    pub(crate) fn interleave(&self, isa: Isa, rows: Range<usize>, out: &mut [u8]) {
        layout::interleave(self.ty, lanes(isa), self.row_bytes, self.data_of(rows), out);
    }

    /// The matrix with interleaved rows, if its bytes were [interleaved](Self::interleave),
    /// possibly [in place](interleave_in_place).
    pub(crate) fn written(self, isa: Isa) -> Self {
        Self { lanes: lanes(isa), ..self }
    }
}

/// Rows that are interleaved for an instruction set; 1 if it has no kernels for that.
fn lanes(isa: Isa) -> usize {
    simd::run_exactly(isa, Traits).lanes
}

/// Interleaves rows of `row_bytes` each in place. Their number is a multiple of [`ROW_STEP`].
/// `room` has as many bytes as [`interleaved_at_once`] rows.
pub(crate) fn interleave_in_place(isa: Isa, ty: TensorType, row_bytes: usize, rows: &mut [u8], room: &mut [u8]) {
    let lanes = lanes(isa);
    for rows in rows.chunks_exact_mut((lanes * row_bytes).max(1)) {
        room[..rows.len()].copy_from_slice(rows);
        layout::interleave(ty, lanes, row_bytes, &room[..rows.len()], rows);
    }
}

/// Rows that are interleaved with each other: a divisor of [`ROW_STEP`].
pub(crate) fn interleaved_at_once(isa: Isa) -> usize {
    lanes(isa)
}
