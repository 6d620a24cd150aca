//! The operations between matrix products and attention. Each works on any number of whole rows of
//! a buffer. A caller may cut the rows of a batch in any way, and results do not depend on it.
//!
//! Each operation has a file with its kernel, and an arm in [`run`]. All panic if the lengths of
//! their arguments do not agree.

#[cfg(test)]
pub(super) mod decay;
mod elementwise;
mod embed;
mod glu;
mod norm;
mod rope;
#[cfg(test)]
mod tests;

pub(crate) use elementwise::{add, scale, softcap};
pub(crate) use glu::glu;
pub(crate) use norm::{rms_norm, rms_norm_in_place};
pub(crate) use rope::rope;

use super::exec::Pass;
use super::matmul;
use super::plan::RowOp;
use crate::program::Op;
use crate::{Error, ErrorKind, Result};
use std::ops::Range;

/// Runs an operation on `rows`.
///
/// # Errors
/// `InvalidInput` for a token that is not in the vocabulary.
///
/// # Safety
/// No other thread accesses these rows of the buffers meanwhile.
pub(super) unsafe fn run(pass: &Pass<'_>, op: &RowOp, rows: Range<usize>) -> Result<()> {
    let isa = pass.backend.isa;
    let op = match op {
        RowOp::Op(op) => op,
        RowOp::Quantize { x } => {
            if let Some(Some(quant)) = pass.quant.get(x.0) {
                // SAFETY: the caller's promise.
                unsafe { matmul::quantize_rows(isa, pass.read(*x, rows.clone()), rows, quant) };
            }
            return Ok(());
        }
    };
    // SAFETY: the caller's promise; no buffer is accessed through two slices at a time.
    unsafe {
        match op {
            Op::Embed { table, out } => {
                let table = pass.matrix(*table)?;
                rows.into_iter().try_for_each(|row| embed::embed(pass, &table, row, pass.write(*out, row..row + 1)))?
            }
            Op::Scale { x, by } => scale(isa, *by, pass.write(*x, rows)),
            Op::RmsNorm { x, weight, eps, out } => {
                let (columns, weight) = (pass.columns(*x), pass.vector(*weight));
                if x == out {
                    rms_norm_in_place(isa, pass.write(*x, rows), columns, weight, *eps);
                } else {
                    let (x, out) = (pass.read(*x, rows.clone()), pass.write(*out, rows));
                    rms_norm(isa, x, columns, weight, *eps, out);
                }
            }
            Op::HeadNorm { x, weight, eps } => {
                let weight = pass.vector(*weight);
                rms_norm_in_place(isa, pass.write(*x, rows), weight.len(), weight, *eps);
            }
            Op::Rope { x, rope, head_dim } => {
                rows.for_each(|row| rope::rotate(pass, pass.write(*x, row..row + 1), *rope, *head_dim, row))
            }
            Op::Glu { gate, up, act } => {
                glu(isa, *act, pass.write(*gate, rows.clone()), pass.read(*up, rows));
            }
            Op::Add { x, y } => add(isa, pass.read(*y, rows.clone()), pass.write(*x, rows)),
            Op::Softcap { x, cap } => softcap(isa, *cap, pass.write(*x, rows)),
            Op::Rows { x, out } => {
                for row in rows {
                    let from = pass.wanted.get(row).copied().unwrap_or(0);
                    pass.write(*out, row..row + 1).copy_from_slice(pass.read(*x, from..from + 1));
                }
            }
            Op::MatMul { .. } | Op::StoreKv { .. } | Op::Attention { .. } | Op::Logits { .. } => {
                return Err(Error::new(ErrorKind::Device, "an operation does not work on rows: a bug in wavelm"));
            }
            #[cfg(test)]
            Op::Decay { .. } => {
                return Err(Error::new(ErrorKind::Device, "an operation does not work on rows: a bug in wavelm"));
            }
        }
    }
    Ok(())
}
