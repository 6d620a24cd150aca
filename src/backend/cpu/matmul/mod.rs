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
mod float;
mod formats;
mod reference;
mod scalar;
mod simd;
#[cfg(test)]
mod tests;
mod tile;

pub(crate) use activations::{QuantRows, quantize_rows};
pub(crate) use reference::matmul_f32;

use super::isa::Isa;
use crate::gguf::TensorType;
use crate::{Error, ErrorKind, Result, quant};
use activations::SUM_GROUP;
use simd::{MAX_LANES, RowPtrs, Simd};
use std::marker::PhantomData;
use std::ops::Range;
use tile::Tile;

/// Rows that kernels work on together at most. Ranges of rows whose lengths are multiples of this are the fastest.
pub(crate) const TILE_ROWS: usize = 32;

/// Runs `$body` with `$simd` being the [`Simd`] of the instruction set.
macro_rules! on_isa {
    ($isa:expr, $simd:ident => $body:expr) => {
        match $isa {
            Isa::Scalar => {
                let $simd = $crate::backend::cpu::matmul::scalar::Scalar;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: the `Isa` is proof of the features.
                let $simd = unsafe { $crate::backend::cpu::matmul::avx2::Avx2::new_unchecked() };
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                // SAFETY: the `Isa` is proof of the features.
                let $simd = unsafe { $crate::backend::cpu::matmul::avx512::Avx512::new_unchecked() };
                $body
            }
        }
    };
}
use on_isa;

/// Weights in GGUF's layout: rows of blocks, one after the other, straight from the file.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    ty: TensorType,
    data: &'a [u8],
    rows: usize,
    cols: usize,
    row_bytes: usize,
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
        let row_bytes =
            if cols % ty.block_len() == 0 { (cols / ty.block_len()).checked_mul(ty.block_bytes()) } else { None };
        match row_bytes {
            Some(row_bytes) if row_bytes.checked_mul(rows) == Some(data.len()) => {
                Ok(Self { ty, data, rows, cols, row_bytes })
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

    /// The bytes of a row.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }
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
    corrections: Box<[i32]>,
    row: Box<[f32]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// Memory for single tokens; see [`reserve`](Self::reserve).
    pub(crate) fn new() -> Self {
        Self { tile: Box::new(Tile::ZERO), corrections: Box::default(), row: Box::default() }
    }

    /// Makes room for products of `n` tokens with rows of `cols` columns, and smaller ones.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn reserve(&mut self, n: usize, cols: usize) -> Result<()> {
        n.checked_mul(cols / SUM_GROUP)
            .and_then(|len| activations::grow(&mut self.corrections, len, || 0).ok())
            .ok_or_else(|| Error::new(ErrorKind::OutOfMemory, format!("no memory to multiply {n} tokens at a time")))
    }

    /// Room for a dequantized row.
    fn row(&mut self, cols: usize) -> Result<&mut [f32]> {
        activations::grow(&mut self.row, cols, || 0.0)
            .map_err(|()| Error::new(ErrorKind::OutOfMemory, format!("no memory for a row of {cols} columns")))?;
        Ok(&mut self.row[..cols])
    }
}

/// A product with quantized weights.
struct QuantJob<'a> {
    weights: &'a [u8],
    row_bytes: usize,
    cols: usize,
    /// Quantized activations, rows `x_stride` apart.
    x: *const i8,
    x_stride: usize,
    /// Their scales, `[cols / 32][n]`.
    scales: *const f32,
    /// Their sums, `[cols / 16][n]`.
    sums: *const i32,
    n: usize,
    rows: Range<usize>,
    out: OutPtr<'a>,
    bias: Option<&'a [f32]>,
    tile: &'a mut Tile,
    /// Room for `n * cols / 16`.
    corrections: &'a mut [i32],
}

/// A product with floating-point weights.
struct FloatJob<'a> {
    weights: &'a [u8],
    row_bytes: usize,
    cols: usize,
    /// `[n][cols]`.
    x: &'a [f32],
    n: usize,
    rows: Range<usize>,
    out: OutPtr<'a>,
    bias: Option<&'a [f32]>,
    tile: &'a mut Tile,
}

impl QuantJob<'_> {
    fn row_ptrs(&self, first: usize) -> RowPtrs {
        row_ptrs(self.weights, self.row_bytes, first, &self.rows)
    }
}

impl FloatJob<'_> {
    fn row_ptrs(&self, first: usize) -> RowPtrs {
        row_ptrs(self.weights, self.row_bytes, first, &self.rows)
    }
}

/// Rows `first` and up; past the end of `rows`, the last one again.
#[inline(always)]
fn row_ptrs(weights: &[u8], row_bytes: usize, first: usize, rows: &Range<usize>) -> RowPtrs {
    let mut ptrs = [weights.as_ptr(); MAX_LANES];
    for (lane, ptr) in ptrs.iter_mut().enumerate() {
        *ptr = weights[(first + lane).min(rows.end - 1) * row_bytes..].as_ptr();
    }
    RowPtrs(ptrs)
}

/// Where the sums of a tile and some tokens go.
struct Output {
    first: usize,
    token: usize,
    /// Whether the output already holds the sum of earlier columns.
    is_sum: bool,
}

impl Output {
    /// Adds `totals` to the output, or to the bias where these are the first columns.
    ///
    /// # Safety
    /// The rows that are within `rows` are within the output for all tokens, and this thread's.
    #[inline(always)]
    unsafe fn write<S: Simd, const VECTORS: usize, const TOKENS: usize>(
        &self,
        s: S,
        out: OutPtr<'_>,
        bias: Option<&[f32]>,
        rows: &Range<usize>,
        totals: &[[S::Float; TOKENS]; VECTORS],
    ) {
        for v in 0..VECTORS {
            let first = self.first + v * S::LANES;
            let count = S::LANES.min(rows.end.saturating_sub(first));
            let bias = bias.filter(|_| !self.is_sum).and_then(|bias| bias.get(first..first + count));
            for t in 0..TOKENS {
                // SAFETY: `count` elements from here are within the output; buffers have room for a vector.
                unsafe {
                    let to = out.element(self.token + t, first.min(rows.end));
                    let before = match bias {
                        Some(bias) => bias.as_ptr(),
                        None => to.cast_const(),
                    };
                    let is_added = self.is_sum || bias.is_some();
                    if count == S::LANES {
                        let total = totals[v][t];
                        s.store_float(to, if is_added { s.add(s.load_float(before), total) } else { total });
                    } else {
                        let mut total = [0.0; MAX_LANES];
                        s.store_float(total.as_mut_ptr(), totals[v][t]);
                        for (i, total) in total.iter().enumerate().take(count) {
                            to.add(i).write(if is_added { *before.add(i) + total } else { *total });
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies rows `rows` of `w` with `n` tokens: `out[t][r] = bias[r] + sum over c of w[r][c] * x[t][c]`.
///
/// An element of the output is the same, bit by bit, whatever the other rows and tokens of the call are.
///
/// # Safety
/// No other thread accesses these rows of the output, or writes the activations, meanwhile.
///
/// # Panics
/// If the sizes do not agree, the activations are not of the [`input_kind`] of the weights, or `scratch` was not
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
    scratch: &mut Scratch,
) {
    use TensorType as T;
    out.check(w, n, &rows, bias);
    if n == 0 || rows.is_empty() {
        return;
    }
    let &Matrix { ty, data: weights, cols, row_bytes, .. } = w;
    let tile = &mut *scratch.tile;
    match x {
        Input::F32(x) => {
            assert!(x.len() >= n * cols, "{} activations for {n} x {cols}", x.len());
            let mut job = FloatJob { weights, row_bytes, cols, x, n, rows, out, bias, tile };
            // SAFETY: all sizes were checked; the caller promises that nothing else accesses the rows of the output.
            on_isa!(isa, simd => unsafe {
                match ty {
                    T::F32 => simd.float::<float::F32>(&mut job),
                    T::F16 => simd.float::<float::F16>(&mut job),
                    T::BF16 => simd.float::<float::Bf16>(&mut job),
                    _ => panic!("weights of type {ty:?} take quantized activations"),
                }
            });
        }
        Input::Quant(x) => {
            assert!(x.rows() == n && x.cols() == cols, "activations of {} x {} for {n} x {cols}", x.rows(), x.cols());
            let corrections = &mut scratch.corrections[..n * (cols / SUM_GROUP)];
            let (x_stride, scales, sums, x) = (x.stride(), x.scales(), x.sums(), x.q());
            let mut job =
                QuantJob { weights, row_bytes, cols, x, x_stride, scales, sums, n, rows, out, bias, tile, corrections };
            // SAFETY: all sizes were checked; the caller promises that nothing else accesses the rows of the output or
            // writes the activations.
            on_isa!(isa, simd => unsafe {
                match ty {
                    T::Q4_0 => simd.quant::<formats::Q4_0>(&mut job),
                    T::Q4_1 => simd.quant::<formats::Q4_1>(&mut job),
                    T::Q5_0 => simd.quant::<formats::Q5_0>(&mut job),
                    T::Q5_1 => simd.quant::<formats::Q5_1>(&mut job),
                    T::Q8_0 => simd.quant::<formats::Q8_0>(&mut job),
                    T::Q2_K => simd.quant::<formats::Q2K>(&mut job),
                    T::Q3_K => simd.quant::<formats::Q3K>(&mut job),
                    T::Q4_K => simd.quant::<formats::Q4K>(&mut job),
                    T::Q5_K => simd.quant::<formats::Q5K>(&mut job),
                    T::Q6_K => simd.quant::<formats::Q6K>(&mut job),
                    _ => panic!("weights of type {ty:?} do not take quantized activations"),
                }
            });
        }
    }
}
