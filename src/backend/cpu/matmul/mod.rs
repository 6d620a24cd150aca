//! Matrix products: `out[t][r] = bias[r] + sum over c of w[r][c] * x[t][c]`, with weights as GGUF
//! files hold them.
//!
//! The basic idea is simple: lanes are rows, and weights are unpacked once for all tokens.
//!
//! ```text
//! for each tile of 8 to 32 rows                       schedule.rs
//!     for each slice of up to 512 columns
//!         tile = unpack(rows, slice)                      quant/formats/, layout.rs: bytes, scales, minima
//!         for each few tokens                             as many as there are registers for
//!             for each group of 16 or 32 columns          tile.rs
//!                 sums = corrections[group][token]        corrections.rs: zero points
//!                 for each 4 columns: sums += dot4(tile, x)
//!                 totals += scale[row] * scale[token] * sums + min[row] * sum of x
//!             out[token][rows] += totals
//! ```
//!
//! With up to 8 tokens, reading the weights takes most of the time. Rows are then multiplied as
//! they are unpacked, without a tile ([`few`]), and memory is requested ahead of its use
//! ([`prefetch`]). Both ways add in the same order.
//!
//! Quantized weights are multiplied with activations of 8 bits ([`activations`]), floating-point weights with f32 ([`float`]).
//! Everything is written once for all instruction sets ([`multiplier`]); [`kernels`] makes functions of it that are compiled
//! for each. How a format unpacks is in its own file, and one that has no code for it is dequantized ([`float::Dequantized`]).
//! [`reference`] has the accurate product of any weights, to compare with.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod corrections;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only x86 has kernels of it
mod few;
mod float;
mod kernels;
mod layout;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod mmla;
mod multiplier;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operands;
mod prefetch;
mod reference;
mod scalar;
mod schedule;
#[cfg(test)]
mod tests;
mod tile;

pub(crate) use activations::{QuantRows, quantize_rows};
pub(crate) use matrix::{Matrix, ROW_STEP, interleave_in_place, interleaved_at_once};
pub(crate) use operands::{Input, InputKind, OutPtr, Scratch, input_kind};
pub(crate) use prefetch::{LINE, ask_for};
pub(crate) use reference::matmul_f32;

use crate::gguf::TensorType;
use crate::quant::formats::{Visit, visit};
use crate::quant::unpack::Kind;
use crate::quant::{Block, Format};
use crate::simd::lanes::{MAX_LANES, Rows};
use crate::simd::{self, Isa, Kernel};
use activations::SUM_GROUP;
use kernels::{Activations, Kernels};
use multiplier::Multiplier;
use schedule::Job;
use std::marker::PhantomData;
use std::ops::Range;

/// As [`ROW_STEP`], where products [stream](streams) weights.
pub(crate) const STREAM_ROWS: usize = MAX_LANES;

/// A matrix product of `n` tokens: `out[t][r] = bias[r] + sum over c of weights[r][c] * x[t][c]`.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) weights: Matrix<'a>,
    /// Activations of the [`input_kind`] of the weights.
    pub(crate) x: Input<'a>,
    pub(crate) n: usize,
    pub(crate) out: OutPtr<'a>,
    /// A number for each row.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Whether products of such weights with `n` tokens read without a break and prefetch what follows.
/// These are best cut into long ranges of rows.
pub(crate) fn streams(isa: Isa, w: &Matrix<'_>, n: usize) -> bool {
    let is_quant = input_kind(w.ty()) == InputKind::Quant;
    let direct = w.is_interleaved() || (is_quant && simd::run_exactly(isa, Traits).streams_rows);
    direct && n <= schedule::DIRECT_TOKENS
}

/// Selects the differences between instruction sets besides the kernels.
struct Traits;

struct IsaTraits {
    /// Rows that are interleaved; 1 if none are.
    lanes: usize,
    streams_rows: bool,
}

impl<S: Multiplier> Kernel<S> for Traits {
    type Output = IsaTraits;

    #[inline(always)]
    fn run(self, _: S) -> IsaTraits {
        IsaTraits { lanes: if S::INTERLEAVES { S::LANES } else { 1 }, streams_rows: S::STREAMS_ROWS }
    }
}

/// The kernels for a matrix and a number of tokens.
fn find(isa: Isa, w: &Matrix<'_>, n: usize) -> Kernels {
    simd::run_exactly(isa, Find { ty: w.ty(), is_few: n <= schedule::FEW_TOKENS, is_interleaved: w.is_interleaved() })
}

struct Find {
    ty: TensorType,
    is_few: bool,
    is_interleaved: bool,
}

impl<S: Multiplier> Kernel<S> for Find {
    type Output = Kernels;

    #[inline(always)]
    fn run(self, _: S) -> Kernels {
        match self.ty {
            TensorType::F32 => S::float_kernels::<float::F32>(self.is_few),
            TensorType::F16 => S::float_kernels::<float::F16>(self.is_few),
            TensorType::BF16 => S::float_kernels::<float::Bf16>(self.is_few),
            ty => visit(ty, FindQuant(self, PhantomData::<S>))
                .unwrap_or_else(|| panic!("there are no kernels for weights of type {ty:?}")),
        }
    }
}

/// The same for a quantized format.
struct FindQuant<S>(Find, PhantomData<S>);

impl<S: Multiplier> Visit for FindQuant<S> {
    type Output = Kernels;

    fn visit<B: Block<N>, const N: usize>(self) -> Kernels {
        let Find { is_few, is_interleaved, .. } = self.0;
        if !<B as Format>::Kind::UNPACKS {
            S::float_kernels::<float::Dequantized<B, N>>(is_few)
        } else if is_interleaved {
            S::quant_kernels::<B, layout::Interleaved>(is_few)
        } else {
            S::quant_kernels::<B, Rows>(is_few)
        }
    }
}

/// Computes rows of a product.
///
/// An element of the output is the same, bit by bit, whatever the other rows and tokens of the call
/// are. `next` is memory to prefetch towards the end: the weights that this thread will read after
/// these, if not those of the next rows.
///
/// # Safety
/// No other thread accesses these rows of the output, or writes the activations, meanwhile.
///
/// # Panics
/// If the sizes do not agree, the bounds of a range of interleaved rows are not multiples of
/// [`ROW_STEP`] (of [`STREAM_ROWS`] where they [stream](streams)), the activations are not of the
/// [`input_kind`] of the weights, or `scratch` was not [reserved](Scratch::reserve) for the size.
pub(crate) unsafe fn matmul(
    isa: Isa,
    product: &Product<'_>,
    rows: Range<usize>,
    next: Option<*const u8>,
    scratch: &mut Scratch,
) {
    let &Product { weights: ref w, x, n, out, bias } = product;
    out.check(w, n, &rows, bias);
    if n == 0 || rows.is_empty() {
        return;
    }
    if w.is_interleaved() {
        let step = if streams(isa, w, n) { STREAM_ROWS } else { ROW_STEP };
        let whole = rows.start.is_multiple_of(step) && rows.end.is_multiple_of(step);
        assert!(whole && w.is_written_for(isa), "rows {rows:?}, of which some are interleaved");
    }
    let x = match (x, input_kind(w.ty())) {
        (Input::F32(x), InputKind::F32) => Activations::of_floats(x, w.cols(), n),
        (Input::Quant(x), InputKind::Quant) => {
            let (rows, cols) = (x.rows(), x.cols());
            assert!(rows == n && cols == w.cols(), "{rows} x {cols} activations, not {n} x {}", w.cols());
            let group_stride = activations::group_stride(n);
            assert!(scratch.is_reserved(group_stride * (cols / SUM_GROUP)), "no scratch memory for {n} x {cols}");
            Activations {
                x: x.q().cast_const().cast(),
                stride: x.stride(),
                size: 1,
                scales: x.scales(),
                sums: x.sums(),
                group_stride,
                n,
            }
        }
        (_, kind) => panic!("weights of type {:?} take activations of the kind {kind:?}", w.ty()),
    };
    let kernels = find(isa, w, n);
    // SAFETY: all sizes were checked. The caller promises that nothing else accesses the rows of
    // the output or writes the activations.
    unsafe { schedule::run(&kernels, &Job { w, x, out, bias }, rows, next, scratch) };
}
