//! The reference product for the fast kernels.

use super::{Input, Product, Scratch};
use crate::{Error, ErrorKind, Result, quant};
use std::ops::Range;

/// Like [`matmul`](super::matmul), but with f32 activations for weights of every type, and sums in
/// f64: accurate, not fast.
///
/// # Errors
/// `Unsupported` for weights that cannot be dequantized; `OutOfMemory`; `Device` for quantized
/// activations, a bug.
///
/// # Safety
/// As for [`matmul`](super::matmul).
///
/// # Panics
/// If the sizes do not agree.
pub(crate) unsafe fn matmul_f32(product: &Product<'_>, rows: Range<usize>, scratch: &mut Scratch) -> Result<()> {
    let &Product { weights: ref w, x, n, out, bias } = product;
    let Input::F32(x) = x else {
        return Err(Error::new(ErrorKind::Device, "an accurate product got quantized activations: a bug in wavelm"));
    };
    assert!(x.len() >= n * w.cols(), "{} activations for {n} x {}", x.len(), w.cols());
    out.check(w, n, &rows, bias);
    let dequantized = scratch.row(w.cols())?;
    for row in rows {
        quant::dequantize(w.ty(), w.row(row), dequantized)?;
        for token in 0..n {
            let x = &x[token * w.cols()..][..w.cols()];
            let dot = dot(dequantized, x) + bias.map_or(0.0, |bias| f64::from(bias[row]));
            // SAFETY: `check` ensured that the element is within the output. The caller promises
            // that it belongs to this thread.
            unsafe { out.element(token, row).write(dot as f32) };
        }
    }
    Ok(())
}

/// The dot product, in eight sums that vectorize.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    sums.iter().sum::<f64>() + rest
}
