//! Normalization of rows.

use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::simd::{self, Kernel, Simd, load_up_to, store_up_to};

/// `out = x / √(mean(x²) + eps) · weight` for each row of `dim` numbers (Zhang and Sennrich, Root Mean Square Layer
/// Normalization, 2019); a missing weight is one.
pub(crate) fn rms_norm(isa: Isa, x: &[f32], dim: usize, weight: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let rows = Rows::new(x.as_ptr(), out.as_mut_ptr(), x.len(), dim, weight, None, eps);
    simd::run(isa, RmsNorm(rows));
}

/// The same in place; with a `dim` of one head it normalizes heads, each on its own.
pub(crate) fn rms_norm_in_place(isa: Isa, x: &mut [f32], dim: usize, weight: Option<&[f32]>, eps: f32) {
    let out = x.as_mut_ptr();
    let rows = Rows::new(out, out, x.len(), dim, weight, None, eps);
    simd::run(isa, RmsNorm(rows));
}

/// `out = (x - mean(x)) / √(variance(x) + eps) · weight + bias` for each row of `dim` numbers (Ba et al., Layer
/// Normalization, 2016); a missing weight is one, a missing bias zero.
pub(crate) fn layer_norm(
    isa: Isa,
    x: &[f32],
    dim: usize,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len());
    let rows = Rows::new(x.as_ptr(), out.as_mut_ptr(), x.len(), dim, weight, bias, eps);
    simd::run(isa, LayerNorm(rows));
}

/// Rows to normalize. Only made by [`Rows::new`], from pointers that are valid for reads and writes of `rows * dim`
/// numbers while it is used, and which may be the same.
struct Rows<'a> {
    x: *const f32,
    out: *mut f32,
    rows: usize,
    dim: usize,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl<'a> Rows<'a> {
    fn new(
        x: *const f32,
        out: *mut f32,
        len: usize,
        dim: usize,
        weight: Option<&'a [f32]>,
        bias: Option<&'a [f32]>,
        eps: f32,
    ) -> Self {
        assert!(dim > 0 && len.is_multiple_of(dim));
        assert!(weight.is_none_or(|weight| weight.len() == dim));
        assert!(bias.is_none_or(|bias| bias.len() == dim));
        Self { x, out, rows: len / dim, dim, weight, bias, eps }
    }

    /// The sum over row `row` of `(x - shift)²`, or of `x` itself.
    #[inline(always)]
    fn sum<S: Simd>(&self, s: S, row: usize, squares_around: Option<f32>) -> f32 {
        // Four sums, so that one addition need not wait for the other.
        const SUMS: usize = 4;
        let mut sums = [s.splat(0.0); SUMS];
        let whole = self.dim / (S::LANES * SUMS) * (S::LANES * SUMS);
        // SAFETY: see the type; no more than what is left of the row.
        unsafe {
            let x = self.x.add(row * self.dim);
            for i in (0..whole).step_by(S::LANES * SUMS) {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let x = s.load(x.add(i + v * S::LANES));
                    *sum = match squares_around {
                        Some(shift) => {
                            let x = s.sub(x, s.splat(shift));
                            s.fma(x, x, *sum)
                        }
                        None => s.add(*sum, x),
                    };
                }
            }
            let mut sum = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
            for i in whole..self.dim {
                let x = *x.add(i);
                sum += squares_around.map_or(x, |shift| (x - shift) * (x - shift));
            }
            sum
        }
    }

    /// Writes `(x - shift) · factor · weight + bias` for row `row`.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, row: usize, shift: f32, factor: f32) {
        for i in (0..self.dim).step_by(S::LANES) {
            let left = self.dim - i;
            // SAFETY: see the type; no more than what is left of the row, and of weight and bias, which are as long.
            unsafe {
                let x = load_up_to(s, self.x.add(row * self.dim + i), left);
                let mut y = s.mul(s.sub(x, s.splat(shift)), s.splat(factor));
                if let Some(weight) = self.weight {
                    y = s.mul(y, load_up_to(s, weight.as_ptr().add(i), left));
                }
                if let Some(bias) = self.bias {
                    y = s.add(y, load_up_to(s, bias.as_ptr().add(i), left));
                }
                store_up_to(s, self.out.add(row * self.dim + i), left, y);
            }
        }
    }
}

struct RmsNorm<'a>(Rows<'a>);

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.0;
        for row in 0..rows.rows {
            let mean = rows.sum(s, row, Some(0.0)) / rows.dim as f32;
            rows.write(s, row, 0.0, 1.0 / (mean + rows.eps).sqrt());
        }
    }
}

struct LayerNorm<'a>(Rows<'a>);

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.0;
        for row in 0..rows.rows {
            let mean = rows.sum(s, row, None) / rows.dim as f32;
            let variance = rows.sum(s, row, Some(mean)) / rows.dim as f32;
            rows.write(s, row, mean, 1.0 / (variance + rows.eps).sqrt());
        }
    }
}
