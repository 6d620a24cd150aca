//! Attention over the paged cache: blocked, with an online softmax in `f32` (Milakov and
//! Gimelshein, 2018; Dao et al., FlashAttention, 2022), so that only a tile of scores exists at a
//! time.
//!
//! The rows of a span and the query heads that share a key-value head are packed together: packed
//! query `m` is row `m / group` and head `m % group` of its group. So a tile of keys or values is
//! read and converted once for all of them. Work is cut into *tiles*, up to [`TILE`] packed queries
//! of one key-value head. Where tiles are few, as in decoding, they are cut into parts of their
//! positions (split-K; Dao et al., Flash-Decoding, 2023). The thread that finishes a tile's last
//! part combines the parts.
//!
//! There are two kernels. [`narrow`], for few queries, has keys in the lanes, and then the numbers
//! of a value, and reads the cache as stored. [`wide`], for many queries, has queries in the lanes
//! and multiplies matrices.
//!
//! # Order of sums
//!
//! A query's output has the same bits however a context is cut into passes and passes into items.
//! So both kernels add in one order, which depends on positions alone:
//! - A score is the sum over the numbers of a key, one after the other. The cache stores keys
//!   transposed, in groups of 16, so this needs no sum across lanes.
//! - The powers of a page's scores are first added lane by lane, where a key's place in the page
//!   decides its lane, and then the vector's [halves](Simd::sum). Values are added position by
//!   position.
//! - From page to page, sums are multiplied by the power that the growth of the maximum calls for.
//!   A page of which a query sees nothing changes nothing: factors are exactly one, and the terms
//!   are zero. So a tile may have more pages than a query sees.
//! - Sums begin anew with each segment of positions, and the states of segments are joined in
//!   order. A part of a tile consists of whole segments.
//!
//! This holds within an instruction set, and for finite values: a value with weight zero counts as
//! zero. Without `causal`, the positions that a query sees depend on its pass.

mod narrow;
mod page;
mod partial;
mod plan;
mod scratch;
#[cfg(test)]
mod tests;
mod wide;

use std::ops::Range;

pub(crate) use plan::AttentionPlan;
pub(crate) use scratch::AttentionScratch;

use super::kv::Span;
use crate::simd::{Simd, load_up_to};

/// Packed queries per tile: a multiple of the width of a register tile of every instruction set.
const TILE: usize = 96;

/// The parameters of an attention layer, `softmax(softcap(scale · q kᵀ) + mask) v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AttnParams {
    /// Query heads: a multiple of `kv_heads`. Query head `h` reads key-value head
    /// `h / (heads / kv_heads)`.
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Numbers in a query and in a key.
    pub(crate) k_dim: usize,
    /// Numbers in a value and in an output.
    pub(crate) v_dim: usize,
    /// The factor of scores.
    pub(crate) scale: f32,
    /// A query at position `p` sees no position at or before `p - window`.
    pub(crate) window: Option<usize>,
    /// Scores become `softcap · tanh(score / softcap)`, as in Gemma 2.
    pub(crate) softcap: Option<f32>,
    /// A query sees no later position. Otherwise it sees all that the cache and its span hold.
    pub(crate) causal: bool,
}

impl AttnParams {
    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a row of the span sees.
    #[inline(always)]
    fn visible(&self, span: &Span, row: usize) -> Range<usize> {
        let after = span.first_pos + row + 1;
        let start = self.window.map_or(0, |window| after.saturating_sub(window));
        start..if self.causal { after } else { span.first_pos + span.rows }
    }

    /// The factor of queries, and the factor of scores after the softcap's tanh. Softmax is
    /// computed in powers of two, so scores are to be multiplied by log2 e.
    fn factors(&self) -> (f32, Option<f32>) {
        match self.softcap {
            Some(cap) => (self.scale / cap, Some(cap * std::f32::consts::LOG2_E)),
            None => (self.scale * std::f32::consts::LOG2_E, None),
        }
    }
}

/// The initial maximum of scores: below any score, but finite, so that no difference is NaN.
const LOWEST: f32 = -1e30;

/// The packed queries of a tile, resolved to rows and heads.
#[derive(Clone, Copy)]
struct Queries<'a> {
    params: &'a AttnParams,
    span: &'a Span<'a>,
    kv_head: usize,
    /// The first packed query.
    first: usize,
    /// The number of packed queries.
    count: usize,
    /// The queries of the batch, `[rows][heads * k_dim]`.
    q: &'a [f32],
}

impl<'a> Queries<'a> {
    /// The numbers of a packed query.
    #[inline(always)]
    fn query(&self, m: usize) -> &'a [f32] {
        let dim = self.params.k_dim;
        &self.q[self.batch_index(m) * dim..][..dim]
    }

    /// The query's index among the `rows * heads` queries of the batch.
    #[inline(always)]
    fn batch_index(&self, m: usize) -> usize {
        let group = self.params.group();
        let m = self.first + m;
        (self.span.first_row + m / group) * self.params.heads + self.kv_head * group + m % group
    }

    /// The positions that the query sees.
    #[inline(always)]
    fn visible(&self, m: usize) -> Range<usize> {
        self.params.visible(self.span, (self.first + m) / self.params.group())
    }

    /// The positions of `tile` that the query sees, counted from the tile's start.
    #[inline(always)]
    fn visible_in(&self, m: usize, tile: &Range<usize>) -> Range<usize> {
        let visible = self.visible(m);
        let end = visible.end.clamp(tile.start, tile.end);
        visible.start.clamp(tile.start, end) - tile.start..end - tile.start
    }
}

impl Queries<'_> {
    /// Writes the query, multiplied by `scale`, and zeros up to `padded` numbers.
    ///
    /// # Safety
    /// `out` is valid for writes of `padded` numbers, a multiple of the lanes.
    #[inline(always)]
    unsafe fn write_scaled<S: Simd>(&self, s: S, m: usize, scale: f32, padded: usize, out: *mut f32) {
        let query = self.query(m);
        for d in (0..padded).step_by(S::LANES) {
            // SAFETY: reads at most the rest of the query; the caller's promise for `out`.
            unsafe {
                let left = query.len().saturating_sub(d);
                let x = load_up_to(s, query.as_ptr().add(d.min(query.len())), left);
                s.store(out.add(d), s.mul(x, s.splat(scale)));
            }
        }
    }
}

/// The running result of one query, before the division by its sum.
#[derive(Clone, Copy)]
struct State<'a> {
    /// The largest score so far, in units of log2.
    max: f32,
    /// The sum of `2^(score - max)`.
    sum: f32,
    /// The sum of the values, weighted with the same powers, padded as in the cache.
    values: &'a [f32],
}
