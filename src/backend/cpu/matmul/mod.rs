//! Matrix products: `out[t][r] = sum over c of w[r][c] * x[t][c]`, with weights as GGUF files hold them.
//!
//! One kernel serves all quantized formats ([`tile`]) and one the floating-point types ([`float`]); both are written once
//! for all instruction sets ([`simd`]) and for any number of tokens. What is particular to a format is how it unpacks
//! ([`formats`]). Quantized weights are multiplied with activations of 8 bits ([`activations`]), floating-point weights
//! with f32. [`matmul_f32`] is the accurate product of any weights, to compare with.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod driver;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only AVX2 and AVX-512 have kernels of it
mod few;
mod float;
mod formats;
mod kernels;
mod lanes;
mod layout;
#[cfg(target_arch = "aarch64")]
mod mmla;
#[cfg(target_arch = "aarch64")]
mod neon;
mod reference;
mod scalar;
#[cfg(test)]
mod tests;
mod tile;

pub(crate) use activations::{QuantRows, quantize_rows};
pub(crate) use reference::matmul_f32;

use crate::gguf::TensorType;
use crate::simd::{self, Isa, Kernel};
use crate::{Error, Result, memory, quant};
use activations::SUM_GROUP;
use driver::{Activations, LastRows};
use lanes::Lanes;
use std::marker::PhantomData;
use std::ops::Range;
use tile::Tile;

/// Products of ranges of rows whose lengths are multiples of this are the fastest.
pub(crate) const ROW_STEP: usize = driver::TILE_ROWS;
/// The same where products [stream](streams) weights.
pub(crate) const STREAM_ROWS: usize = lanes::MAX_LANES;
/// Bytes of a block at most: those of Q6_K.
const MAX_BLOCK_BYTES: usize = TensorType::Q6_K.block_bytes();
/// Bytes of a cache line.
pub(crate) const LINE: usize = driver::LINE;

/// Whether products of such weights with `n` tokens read on and on, asking for what follows, so that they are best cut
/// into long ranges of rows.
pub(crate) fn streams(isa: Isa, w: &Matrix<'_>, n: usize) -> bool {
    let direct = w.lanes > 1 || (input_kind(w.ty) == InputKind::Quant && simd::run_exactly(isa, Traits).streams_rows);
    direct && n <= driver::DIRECT_TOKENS
}

/// What differs between instruction sets, besides the kernels.
struct Traits;

struct IsaTraits {
    /// Rows that are interleaved; 1 where none are.
    lanes: usize,
    streams_rows: bool,
}

impl<S: Lanes> Kernel<S> for Traits {
    type Output = IsaTraits;

    #[inline(always)]
    fn run(self, _: S) -> IsaTraits {
        IsaTraits { lanes: if S::INTERLEAVES { S::LANES } else { 1 }, streams_rows: S::STREAMS_ROWS }
    }
}

/// Asks for the memory at `at` to be brought to the second-level cache; any address will do.
#[inline(always)]
pub(crate) fn ask_for(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: all processors have the instruction, which is a hint: no address faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Weights in GGUF's layout: rows of blocks, one after the other, straight from the file.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    ty: TensorType,
    data: &'a [u8],
    rows: usize,
    cols: usize,
    row_bytes: usize,
    /// Rows that are [interleaved](layout) with each other; 1 where they lie one after the other.
    lanes: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix of `rows` rows, each of `cols` weights of type `ty`.
    ///
    /// # Errors
    /// `Unsupported` for a type without kernels; `InvalidInput` where the sizes do not agree.
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

    /// Rows: the outputs of the product.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the inputs of the product.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The type of the weights.
    pub(crate) fn ty(&self) -> TensorType {
        self.ty
    }

    /// The size in bytes of so many columns of a row: whole blocks.
    fn bytes(&self, columns: usize) -> usize {
        columns / self.ty.block_len() * self.ty.block_bytes()
    }

    /// The bytes of a row.
    ///
    /// # Panics
    /// Where there is no such row, or the rows are interleaved.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        assert!(self.lanes == 1, "there are no rows where they are interleaved");
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }

    /// The weights of a row, however the rows lie.
    ///
    /// # Errors
    /// `InvalidInput` where `out` is not as long as a row.
    ///
    /// # Panics
    /// Where there is no such row.
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

    /// Where rows are among the bytes of the matrix; of interleaved ones, groups of them.
    pub(crate) fn bytes_of(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.row_bytes..rows.end * self.row_bytes
    }

    /// The bytes of rows; of interleaved ones, of groups of them.
    ///
    /// # Panics
    /// Where there are no such rows.
    pub(crate) fn data_of(&self, rows: Range<usize>) -> &'a [u8] {
        &self.data[self.bytes_of(rows)]
    }

    /// Where a row starts; of interleaved ones, a group of them.
    pub(crate) fn start(&self, row: usize) -> *const u8 {
        debug_assert!(row.is_multiple_of(self.lanes));
        self.data[row * self.row_bytes..].as_ptr()
    }

    /// Whether there is another form, which the kernels of `isa` are faster with.
    pub(crate) fn can_interleave(&self, isa: Isa) -> bool {
        lanes(isa) > 1 && self.rows.is_multiple_of(ROW_STEP) && input_kind(self.ty) == InputKind::Quant
    }

    /// Writes some rows in that form, from a multiple of [`ROW_STEP`] to another; `out` has as many bytes as they.
    pub(crate) fn interleave(&self, isa: Isa, rows: Range<usize>, out: &mut [u8]) {
        layout::interleave(self.ty, lanes(isa), self.row_bytes, self.data_of(rows), out);
    }

    /// The matrix, if its bytes were [written](Self::interleave) by that, or [interleaved](interleave_in_place).
    pub(crate) fn written(self, isa: Isa) -> Self {
        Self { lanes: lanes(isa), ..self }
    }
}

/// Rows that are interleaved for an instruction set; 1 where there are no kernels for it.
fn lanes(isa: Isa) -> usize {
    simd::run_exactly(isa, Traits).lanes
}

/// Interleaves rows of `row_bytes` each, groups of [`ROW_STEP`] of them, where they lie. `room` has as many bytes as
/// [`interleaved_at_once`] rows.
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

/// What weights are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputKind {
    /// f32 activations.
    F32,
    /// Quantized activations.
    Quant,
}

/// What [`matmul`] takes for weights of type `ty`.
pub(crate) fn input_kind(ty: TensorType) -> InputKind {
    match ty {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => InputKind::F32,
        _ => InputKind::Quant,
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

/// A product's output, `[tokens][stride]`: element `(t, r)` is at `t * stride + r`. Threads share it, each for rows `r` of
/// its own.
#[derive(Clone, Copy)]
pub(crate) struct OutPtr<'a> {
    to: *mut f32,
    len: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is only written through by functions whose callers promise that no element is accessed by two threads.
unsafe impl Send for OutPtr<'_> {}
// SAFETY: as above.
unsafe impl Sync for OutPtr<'_> {}

impl<'a> OutPtr<'a> {
    /// An output to `to`, where tokens are `stride` elements apart.
    pub(crate) fn new(to: &'a mut [f32], stride: usize) -> Self {
        Self { to: to.as_mut_ptr(), len: to.len(), stride, lifetime: PhantomData }
    }

    /// An output to the `len` elements at `to`, where tokens are `stride` elements apart.
    ///
    /// # Safety
    /// They are valid for writes for the lifetime.
    pub(crate) unsafe fn from_raw(to: *mut f32, len: usize, stride: usize) -> Self {
        Self { to, len, stride, lifetime: PhantomData }
    }

    /// Panics unless rows `rows` of `n` tokens are within the matrix and the output.
    fn check(&self, w: &Matrix<'_>, n: usize, rows: &Range<usize>, bias: Option<&[f32]>) {
        assert!(rows.start <= rows.end && rows.end <= w.rows, "rows {rows:?} of {}", w.rows);
        assert!(bias.is_none_or(|bias| bias.len() == w.rows), "a bias of another length than {} rows", w.rows);
        let last = n.checked_sub(1).map_or(Some(0), |last| last.checked_mul(self.stride)?.checked_add(rows.end));
        assert!(last.is_some_and(|last| last <= self.len), "{n} x {} do not fit {}", self.stride, self.len);
        assert!(n <= 1 || rows.end <= self.stride, "{} rows do not fit a stride of {}", rows.end, self.stride);
    }

    /// # Safety
    /// The element is within the output.
    #[inline(always)]
    unsafe fn element(&self, token: usize, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.to.add(token * self.stride + row) }
    }
}

/// Memory that [`matmul`] works in: one for each thread, reused.
pub(crate) struct Scratch {
    tile: Box<Tile>,
    last_rows: Box<LastRows>,
    corrections: Box<[i32]>,
    /// What the corrections are of: see [`forget`](Self::forget).
    corrected: Option<driver::Corrected>,
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

    /// Makes room for products of `n` tokens with rows of `cols` columns, and smaller ones. Corrections that are there are kept
    /// where there is room already.
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

    /// To be called before a product whose activations have changed since the last one: what was computed of them alone is
    /// kept.
    pub(crate) fn forget(&mut self) {
        self.corrected = None;
    }

    /// Room for a dequantized row.
    fn row(&mut self, cols: usize) -> Result<&mut [f32]> {
        activations::grow(&mut self.row, cols, || 0.0)
            .map_err(|()| memory::out_of_memory("a row of weights", cols.saturating_mul(size_of::<f32>())))?;
        Ok(&mut self.row[..cols])
    }
}

/// The kernels for a matrix and so many tokens.
fn find(isa: Isa, w: &Matrix<'_>, n: usize) -> driver::Kernels {
    simd::run_exactly(isa, Find { ty: w.ty, is_few: n <= driver::FEW_TOKENS, is_interleaved: w.lanes > 1 })
}

struct Find {
    ty: TensorType,
    is_few: bool,
    is_interleaved: bool,
}

impl Find {
    #[inline(always)]
    fn quant<S: Lanes, F: formats::Format>(&self) -> driver::Kernels {
        if self.is_interleaved {
            S::quant_kernels::<F, layout::Interleaved>(self.is_few)
        } else {
            S::quant_kernels::<F, lanes::Rows>(self.is_few)
        }
    }
}

impl<S: Lanes> Kernel<S> for Find {
    type Output = driver::Kernels;

    #[inline(always)]
    fn run(self, _: S) -> driver::Kernels {
        use TensorType as T;
        match self.ty {
            T::F32 => S::float_kernels::<float::F32>(self.is_few),
            T::F16 => S::float_kernels::<float::F16>(self.is_few),
            T::BF16 => S::float_kernels::<float::Bf16>(self.is_few),
            T::Q4_0 => self.quant::<S, formats::Q4_0>(),
            T::Q4_1 => self.quant::<S, formats::Q4_1>(),
            T::Q5_0 => self.quant::<S, formats::Q5_0>(),
            T::Q5_1 => self.quant::<S, formats::Q5_1>(),
            T::Q8_0 => self.quant::<S, formats::Q8_0>(),
            T::Q2_K => self.quant::<S, formats::Q2K>(),
            T::Q3_K => self.quant::<S, formats::Q3K>(),
            T::Q4_K => self.quant::<S, formats::Q4K>(),
            T::Q5_K => self.quant::<S, formats::Q5K>(),
            T::Q6_K => self.quant::<S, formats::Q6K>(),
            ty => panic!("there are no kernels for weights of type {ty:?}"),
        }
    }
}

/// Multiplies rows `rows` of `w` with `n` tokens: `out[t][r] = bias[r] + sum over c of w[r][c] * x[t][c]`.
///
/// An element of the output is the same, bit by bit, whatever the other rows and tokens of the call are. `next` is memory
/// to ask for towards the end: the weights that this thread will read after these, if not those of the next rows.
///
/// # Safety
/// No other thread accesses these rows of the output, or writes the activations, meanwhile.
///
/// # Panics
/// If the sizes do not agree, rows that are interleaved are not asked for in multiples of [`ROW_STEP`] (of [`STREAM_ROWS`]
/// where they [stream](streams)), the activations are not of the [`input_kind`] of the weights, or `scratch` was not
/// [reserved](Scratch::reserve) for the size.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn matmul(
    isa: Isa,
    w: &Matrix<'_>,
    x: Input<'_>,
    n: usize,
    rows: Range<usize>,
    out: OutPtr<'_>,
    bias: Option<&[f32]>,
    next: Option<*const u8>,
    scratch: &mut Scratch,
) {
    out.check(w, n, &rows, bias);
    if n == 0 || rows.is_empty() {
        return;
    }
    if w.lanes > 1 {
        let step = if streams(isa, w, n) { STREAM_ROWS } else { ROW_STEP };
        let whole = rows.start.is_multiple_of(step) && rows.end.is_multiple_of(step);
        assert!(whole && w.lanes == lanes(isa), "rows {rows:?}, of which {} are interleaved", w.lanes);
    }
    match x {
        Input::F32(x) => {
            assert!(input_kind(w.ty) == InputKind::F32, "weights of type {:?} take quantized activations", w.ty);
            assert!(x.len() >= n * w.cols, "{} activations for {n} x {}", x.len(), w.cols);
            let kernels = find(isa, w, n);
            let size = size_of::<f32>();
            let x = Activations {
                x: x.as_ptr().cast(),
                stride: w.cols * size,
                size,
                scales: std::ptr::null(),
                sums: std::ptr::null(),
                group_stride: n,
                n,
            };
            // SAFETY: all sizes were checked; the caller promises that nothing else accesses the rows of the output.
            unsafe { driver::run(&kernels, w, x, rows, out, bias, next, scratch) };
        }
        Input::Quant(x) => {
            assert!(input_kind(w.ty) == InputKind::Quant, "weights of type {:?} take f32 activations", w.ty);
            assert!(
                x.rows() == n && x.cols() == w.cols,
                "{} x {} activations, not {n} x {}",
                x.rows(),
                x.cols(),
                w.cols
            );
            let group_stride = activations::group_stride(n);
            let corrections = group_stride * (w.cols / SUM_GROUP);
            assert!(scratch.corrections.len() >= corrections, "no scratch memory for {n} x {}", w.cols);
            let kernels = find(isa, w, n);
            let x = Activations {
                x: x.q().cast_const().cast(),
                stride: x.stride(),
                size: 1,
                scales: x.scales(),
                sums: x.sums(),
                group_stride,
                n,
            };
            // SAFETY: all sizes were checked; the caller promises that nothing else accesses the rows of the output or
            // writes the activations.
            unsafe { driver::run(&kernels, w, x, rows, out, bias, next, scratch) };
        }
    }
}
