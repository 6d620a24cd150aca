//! The operands of a product besides weights: activations, the output, and working memory.

use super::Matrix;
use super::activations::{self, QuantRows, SUM_GROUP};
use super::corrections::Corrected;
use super::schedule::LastRows;
use super::tile::Tile;
use crate::gguf::TensorType;
use crate::quant::formats::facts;
use crate::{Result, memory};
use std::marker::PhantomData;
use std::ops::Range;

/// The kind of activations that weights are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputKind {
    /// f32 activations.
    F32,
    /// Quantized activations.
    Quant,
}

/// The activations that [`matmul`] takes for weights of type `ty`.
pub(crate) fn input_kind(ty: TensorType) -> InputKind {
    match facts(ty) {
        Some(facts) if facts.unpacks => InputKind::Quant,
        _ => InputKind::F32,
    }
}

/// Activations, a row for each token.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Row-major, `[tokens][columns]`.
    F32(&'a [f32]),
    /// Quantized: as many rows as there are tokens.
    Quant(&'a QuantRows),
}

/// A product's output, `[tokens][stride]`: element `(t, r)` is at `t * stride + r`. Threads share
/// it, and each writes rows `r` of its own.
#[derive(Clone, Copy)]
pub(crate) struct OutPtr<'a> {
    to: *mut f32,
    len: usize,
    pub(super) stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: only functions whose callers promise that no two threads access an element write through
// it.
unsafe impl Send for OutPtr<'_> {}
// SAFETY: as above.
unsafe impl Sync for OutPtr<'_> {}

impl<'a> OutPtr<'a> {
    /// An output to `to`, with tokens `stride` elements apart.
    pub(crate) fn new(to: &'a mut [f32], stride: usize) -> Self {
        Self { to: to.as_mut_ptr(), len: to.len(), stride, lifetime: PhantomData }
    }

    /// An output to the `len` elements at `to`, with tokens `stride` elements apart.
    ///
    /// # Safety
    /// The elements are valid for writes for the lifetime.
    pub(crate) unsafe fn from_raw(to: *mut f32, len: usize, stride: usize) -> Self {
        Self { to, len, stride, lifetime: PhantomData }
    }

    /// Panics unless rows `rows` of `n` tokens are within the matrix and the output.
    pub(super) fn check(&self, w: &Matrix<'_>, n: usize, rows: &Range<usize>, bias: Option<&[f32]>) {
        assert!(rows.start <= rows.end && rows.end <= w.rows(), "rows {rows:?} of {}", w.rows());
        assert!(bias.is_none_or(|bias| bias.len() == w.rows()), "a bias of another length than {} rows", w.rows());
        let last = n.checked_sub(1).map_or(Some(0), |last| last.checked_mul(self.stride)?.checked_add(rows.end));
        assert!(last.is_some_and(|last| last <= self.len), "{n} x {} do not fit {}", self.stride, self.len);
        assert!(n <= 1 || rows.end <= self.stride, "{} rows do not fit a stride of {}", rows.end, self.stride);
    }

    /// # Safety
    /// The element is within the output.
    #[inline(always)]
    pub(super) unsafe fn element(&self, token: usize, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.to.add(token * self.stride + row) }
    }
}

/// A thread's working memory for [`matmul`], reused between products.
pub(crate) struct Scratch {
    pub(super) tile: Box<Tile>,
    pub(super) last_rows: Box<LastRows>,
    pub(super) corrections: Box<[i32]>,
    /// The inputs of the corrections: see [`forget`](Self::forget).
    pub(super) corrected: Option<Corrected>,
    row: Box<[f32]>,
}

impl Scratch {
    /// Memory for single tokens; see [`reserve`](Self::reserve).
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn new() -> Result<Self> {
        const WHAT: &str = "the tile of a matrix product";
        Ok(Self {
            tile: memory::boxed(Tile::ZERO, WHAT)?,
            last_rows: memory::boxed(LastRows::ZERO, WHAT)?,
            corrections: Box::default(),
            corrected: None,
            row: Box::default(),
        })
    }

    /// Makes room for products of `n` tokens with rows of `cols` columns, and smaller ones. Keeps
    /// existing corrections if there is room already.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn reserve(&mut self, n: usize, cols: usize) -> Result<()> {
        activations::group_stride(n)
            .checked_mul(cols / SUM_GROUP)
            .and_then(|len| {
                if self.corrections.len() < len {
                    self.corrected = None;
                }
                activations::grow(&mut self.corrections, len, || 0).ok()
            })
            .ok_or_else(|| {
                let bytes = n.saturating_mul(cols / SUM_GROUP).saturating_mul(size_of::<i32>());
                memory::out_of_memory(format_args!("products of {n} tokens at a time"), bytes)
            })
    }

    /// Call this before a product whose activations have changed since the last one. Otherwise
    /// results that depend on activations alone are kept.
    pub(crate) fn forget(&mut self) {
        self.corrected = None;
    }

    /// Whether there is room for `corrections` corrections.
    pub(super) fn is_reserved(&self, corrections: usize) -> bool {
        self.corrections.len() >= corrections
    }

    /// Room for a dequantized row.
    pub(super) fn row(&mut self, cols: usize) -> Result<&mut [f32]> {
        activations::grow(&mut self.row, cols, || 0.0)
            .map_err(|()| memory::out_of_memory("a row of weights", cols.saturating_mul(size_of::<f32>())))?;
        Ok(&mut self.row[..cols])
    }
}
