//! Rotary position embedding (Su et al., RoFormer, 2021).

use crate::backend::cpu::exec::Pass;
use crate::program::RopeStyle;
use crate::simd::Isa;
use crate::simd::{self, Kernel, Simd, load_up_to, store_up_to};

/// Rotates row `row` of a buffer by its position.
pub(super) fn rotate(pass: &Pass<'_>, x: &mut [f32], number: usize, head_dim: usize, row: usize) {
    let (info, angles) = (&pass.backend.program.ropes[number], &pass.angles[number]);
    let pairs = info.inv_freq.len();
    let (cos, sin) = angles.as_slice()[row * pairs * 2..(row + 1) * pairs * 2].split_at(pairs);
    rope(pass.backend.isa, info.style, x, x.len() / head_dim, head_dim, cos, sin);
}

/// Rotates in place the first `n_rot` numbers of each of the `heads` heads of each row of `x`,
/// `[rows][heads * head_dim]`. `cos` and `sin` have `n_rot / 2` numbers for each row, those of its
/// position.
pub(crate) fn rope(isa: Isa, style: RopeStyle, x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32]) {
    let columns = heads * head_dim;
    assert!(columns > 0 && x.len().is_multiple_of(columns) && cos.len() == sin.len());
    let rows = x.len() / columns;
    if rows == 0 {
        return;
    }
    let pairs = cos.len() / rows;
    assert!(cos.len().is_multiple_of(rows) && 2 * pairs <= head_dim);
    simd::run(isa, Rope { style, x, heads, head_dim, pairs, cos, sin });
}

/// Only [`rope`] creates it, after checking the sizes.
struct Rope<'a> {
    style: RopeStyle,
    x: &'a mut [f32],
    heads: usize,
    head_dim: usize,
    pairs: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl<S: Simd> Kernel<S> for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        for (row, x) in self.x.chunks_exact_mut(self.heads * self.head_dim).enumerate() {
            let cos = &self.cos[row * self.pairs..][..self.pairs];
            let sin = &self.sin[row * self.pairs..][..self.pairs];
            for head in x.chunks_exact_mut(self.head_dim) {
                match self.style {
                    RopeStyle::Norm => rotate_interleaved(s, head, cos, sin),
                    RopeStyle::Neox => rotate_halves(s, head, cos, sin),
                }
            }
        }
    }
}

/// Rotates the points `(a, b)`.
#[inline(always)]
fn turned<S: Simd>(s: S, a: S::V, b: S::V, cos: S::V, sin: S::V) -> (S::V, S::V) {
    (s.sub(s.mul(a, cos), s.mul(b, sin)), s.fma(a, sin, s.mul(b, cos)))
}

#[inline(always)]
fn rotate_halves<S: Simd>(s: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let pairs = cos.len().min(sin.len()).min(head.len() / 2);
    for i in (0..pairs).step_by(S::LANES) {
        let left = pairs - i;
        // SAFETY: accesses at most the rest of the tables and of each half.
        unsafe {
            let (first, second) = (head.as_mut_ptr().add(i), head.as_mut_ptr().add(pairs + i));
            let (a, b) = (load_up_to(s, first, left), load_up_to(s, second, left));
            let (cos, sin) = (load_up_to(s, cos.as_ptr().add(i), left), load_up_to(s, sin.as_ptr().add(i), left));
            let (a, b) = turned(s, a, b, cos, sin);
            store_up_to(s, first, left, a);
            store_up_to(s, second, left, b);
        }
    }
}

#[inline(always)]
fn rotate_interleaved<S: Simd>(s: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let pairs = cos.len().min(sin.len()).min(head.len() / 2);
    for i in (0..pairs).step_by(S::LANES) {
        let left = pairs - i;
        // SAFETY: accesses at most the rest of the tables and of the pairs, which two vectors hold.
        unsafe {
            let first = head.as_mut_ptr().add(2 * i);
            let second = first.wrapping_add(S::LANES);
            let beyond = (2 * left).saturating_sub(S::LANES);
            let (a, b) = s.deinterleave(load_up_to(s, first, 2 * left), load_up_to(s, second, beyond));
            let (cos, sin) = (load_up_to(s, cos.as_ptr().add(i), left), load_up_to(s, sin.as_ptr().add(i), left));
            let (a, b) = turned(s, a, b, cos, sin);
            let (low, high) = s.interleave(a, b);
            store_up_to(s, first, 2 * left, low);
            store_up_to(s, second, beyond, high);
        }
    }
}
