//! Normalization of rows.

use crate::simd::Isa;
use crate::simd::{self, Kernel, Simd, load_up_to, store_up_to};

/// `out = x / √(mean(x²) + eps) · weight` for each row of `dim` numbers (Zhang and Sennrich, Root
/// Mean Square Layer Normalization, 2019).
pub(crate) fn rms_norm(isa: Isa, x: &[f32], dim: usize, weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let rows = Rows::new(x.as_ptr(), out.as_mut_ptr(), x.len(), dim, weight, eps);
    simd::run(isa, RmsNorm(rows));
}

/// The same in place. With the `dim` of one head it normalizes each head by itself.
pub(crate) fn rms_norm_in_place(isa: Isa, x: &mut [f32], dim: usize, weight: &[f32], eps: f32) {
    let out = x.as_mut_ptr();
    let rows = Rows::new(out, out, x.len(), dim, weight, eps);
    simd::run(isa, RmsNorm(rows));
}

/// Rows to normalize. Only [`Rows::new`] creates it, from pointers that are valid for reads and
/// writes of `rows * dim` numbers while it is used. The pointers may be equal.
struct Rows<'a> {
    x: *const f32,
    out: *mut f32,
    rows: usize,
    dim: usize,
    weight: &'a [f32],
    eps: f32,
}

impl<'a> Rows<'a> {
    fn new(x: *const f32, out: *mut f32, len: usize, dim: usize, weight: &'a [f32], eps: f32) -> Self {
        assert!(dim > 0 && len.is_multiple_of(dim));
        assert!(weight.len() == dim);
        Self { x, out, rows: len / dim, dim, weight, eps }
    }

    /// The sum of the squares of row `row`.
    #[inline(always)]
    fn squares<S: Simd>(&self, s: S, row: usize) -> f32 {
        // Four independent sums, so that one addition need not wait for another.
        const SUMS: usize = 4;
        let mut sums = [s.splat(0.0); SUMS];
        let whole = self.dim / (S::LANES * SUMS) * (S::LANES * SUMS);
        // SAFETY: see the type; accesses at most the rest of the row.
        unsafe {
            let x = self.x.add(row * self.dim);
            for i in (0..whole).step_by(S::LANES * SUMS) {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let x = s.load(x.add(i + v * S::LANES));
                    *sum = s.fma(x, x, *sum);
                }
            }
            let mut sum = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
            for i in whole..self.dim {
                sum += *x.add(i) * *x.add(i);
            }
            sum
        }
    }

    /// Writes `x · factor · weight` for row `row`.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, row: usize, factor: f32) {
        for i in (0..self.dim).step_by(S::LANES) {
            let left = self.dim - i;
            // SAFETY: see the type; accesses at most the rest of the row, and of the weight, which
            // is as long.
            unsafe {
                let x = load_up_to(s, self.x.add(row * self.dim + i), left);
                let y = s.mul(s.mul(x, s.splat(factor)), load_up_to(s, self.weight.as_ptr().add(i), left));
                store_up_to(s, self.out.add(row * self.dim + i), left, y);
            }
        }
    }
}

struct RmsNorm<'a>(Rows<'a>);

impl<S: Simd> Kernel<S> for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let rows = self.0;
        for row in 0..rows.rows {
            let mean = rows.squares(s, row) / rows.dim as f32;
            rows.write(s, row, 1.0 / (mean + rows.eps).sqrt());
        }
    }
}
