//! Attention of few queries, as in decoding: the numbers of a head are in the lanes, and keys and values are converted
//! in registers, straight from the cache, for up to [`Simd::QUERIES`] queries at once. What bounds it is memory: while
//! the keys of a page are read, its values are prefetched, and then the keys of the next page.

use std::ops::Range;

use super::page::{Cache, Element, RowTile, first_page};
use super::plan::Item;
use super::{LOWEST, State};
use crate::backend::cpu::kv::PAGE_LEN;
use crate::backend::cpu::simd::{self, Simd, math};

/// Keys whose dot products are computed together.
const KEYS: usize = 4;

/// The working memory of an item, for each query a row.
#[derive(Clone, Copy)]
struct Work {
    /// Queries, padded like the keys, multiplied by the scale.
    q: *mut f32,
    /// Scores of a page, then their powers.
    scores: *mut f32,
    /// Sums of values, padded like them.
    values: *mut f32,
    /// Largest score, sum of powers, and the factor for what was summed before this page.
    max: *mut f32,
    sum: *mut f32,
    rescale: *mut f32,
    k_padded: usize,
    v_padded: usize,
}

#[inline(always)]
pub(super) fn run<S: Simd, E: Element>(s: S, item: Item) {
    let count = item.queries.count;
    let (keys, values) = (item.cache.layout.keys, item.cache.layout.values);
    let (k_padded, v_padded) = (keys.padded, values.padded);
    let [q, scores, sums, max, sum, rescale, k_scales, v_scales] = item.scratch.buffers([
        count * k_padded,
        count * PAGE_LEN,
        count * v_padded,
        count,
        count,
        count,
        Cache::scales_len(&keys),
        Cache::scales_len(&values),
    ]);
    let work = Work { q, scores, values: sums, max, sum, rescale, k_padded, v_padded };
    let (scale, cap) = item.queries.params.factors();
    // SAFETY: all accesses are within the lengths just asked for, and within pages by the promise of `run_item`'s
    // caller: only rows that the queries see are read.
    unsafe {
        for m in 0..count {
            let query = item.queries.query(m);
            let row = q.add(m * k_padded);
            for d in 0..k_padded {
                *row.add(d) = query.get(d).map_or(0.0, |x| x * scale);
            }
            *max.add(m) = LOWEST;
            *sum.add(m) = 0.0;
            for d in 0..v_padded {
                *sums.add(m * v_padded + d) = 0.0;
            }
        }
        let mut positions = item.positions();
        while !positions.is_empty() {
            let page = first_page(positions.clone());
            let n = page.len();
            let k = item.cache.keys(s, &page, k_scales);
            let v = item.cache.values(s, &page, v_scales);
            for_blocks::<S>(count, |first, g| match g {
                1 => score::<S, E, 1>(s, &work, first, &k, n, &v),
                2 => score::<S, E, 2>(s, &work, first, &k, n, &v),
                3 => score::<S, E, 3>(s, &work, first, &k, n, &v),
                _ => score::<S, E, 4>(s, &work, first, &k, n, &v),
            });
            for m in 0..count {
                soften(s, &work, m, n, item.queries.visible_in(m, &page), cap);
            }
            positions.start = page.end;
            let ahead = match positions.is_empty() {
                true => v,
                false => item.cache.keys_ahead(&positions),
            };
            for_blocks::<S>(count, |first, g| match g {
                1 => accumulate::<S, E, 1>(s, &work, first, &v, n, &ahead),
                2 => accumulate::<S, E, 2>(s, &work, first, &v, n, &ahead),
                3 => accumulate::<S, E, 3>(s, &work, first, &v, n, &ahead),
                _ => accumulate::<S, E, 4>(s, &work, first, &v, n, &ahead),
            });
        }
        for m in 0..count {
            let values = std::slice::from_raw_parts(sums.add(m * v_padded).cast_const(), v_padded);
            item.emit(s, m, State { max: *max.add(m), sum: *sum.add(m), values });
        }
    }
}

/// Calls `f(first, count)` for the queries in as few blocks as there can be, of about the same size.
#[inline(always)]
fn for_blocks<S: Simd>(count: usize, mut f: impl FnMut(usize, usize)) {
    let blocks = count.div_ceil(S::QUERIES);
    let mut first = 0;
    for block in 0..blocks {
        let size = (count - first).div_ceil(blocks - block);
        f(first, size);
        first += size;
    }
}

/// The scores of `G` queries from `first` on with the `n` keys of a page.
#[inline(always)]
unsafe fn score<S: Simd, E: Element, const G: usize>(
    s: S,
    work: &Work,
    first: usize,
    keys: &RowTile,
    n: usize,
    ahead: &RowTile,
) {
    // SAFETY: see `run`.
    unsafe {
        let dim = work.k_padded;
        let q = work.q.add(first * dim).cast_const();
        for j in (0..n).step_by(KEYS) {
            // Past the end, the last key stands in; its scores are overwritten afterwards.
            let rows = [j, (j + 1).min(n - 1), (j + 2).min(n - 1), (j + 3).min(n - 1)];
            for row in rows {
                ahead.prefetch(row);
            }
            let mut sums = [[s.splat(0.0); KEYS]; G];
            for d in (0..dim).step_by(S::LANES) {
                for (i, row) in rows.into_iter().enumerate() {
                    let key = E::load(s, keys, row, d);
                    for (g, sums) in sums.iter_mut().enumerate() {
                        sums[i] = s.fma(key, s.load(q.add(g * dim + d)), sums[i]);
                    }
                }
            }
            for (g, sums) in sums.into_iter().enumerate() {
                work.scores.add((first + g) * PAGE_LEN + j).cast::<[f32; KEYS]>().write_unaligned(s.sum4(sums));
            }
        }
    }
}

/// Turns the `n` scores of a query, of which it sees `visible`, into powers, and updates its maximum and sum.
#[inline(always)]
unsafe fn soften<S: Simd>(s: S, work: &Work, m: usize, n: usize, visible: Range<usize>, cap: Option<f32>) {
    // SAFETY: see `run`; `PAGE_LEN` is a multiple of the lanes, so that the last vector ends within the row.
    unsafe {
        let scores = work.scores.add(m * PAGE_LEN);
        let whole = n.next_multiple_of(S::LANES);
        if let Some(cap) = cap {
            for i in (0..whole).step_by(S::LANES) {
                s.store(scores.add(i), s.mul(math::tanh(s, s.load(scores.add(i))), s.splat(cap)));
            }
        }
        for i in (0..visible.start).chain(visible.end..whole) {
            *scores.add(i) = f32::NEG_INFINITY;
        }
        let before = *work.max.add(m);
        let mut largest = s.splat(before);
        for i in (0..whole).step_by(S::LANES) {
            largest = s.max(largest, s.load(scores.add(i)));
        }
        let max = s.largest(largest);
        let mut sum = s.splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let power = math::exp2(s, s.sub(s.load(scores.add(i)), s.splat(max)));
            s.store(scores.add(i), power);
            sum = s.add(sum, power);
        }
        let rescale = (before - max).exp2();
        *work.max.add(m) = max;
        *work.sum.add(m) = *work.sum.add(m) * rescale + s.sum(sum);
        *work.rescale.add(m) = rescale;
    }
}

/// Adds the `n` values of a page, weighted, to the sums of `G` queries from `first` on.
#[inline(always)]
unsafe fn accumulate<S: Simd, E: Element, const G: usize>(
    s: S,
    work: &Work,
    first: usize,
    values: &RowTile,
    n: usize,
    ahead: &RowTile,
) {
    // SAFETY: see `run`.
    unsafe {
        let mut d = 0;
        while d < work.v_padded {
            // The first pass over the rows is the one that waits for memory.
            let ahead = (d == 0).then_some(ahead);
            match (work.v_padded - d) / S::LANES {
                4.. => d += columns::<S, E, G, 4>(s, work, first, values, n, d, ahead),
                2 | 3 => d += columns::<S, E, G, 2>(s, work, first, values, n, d, ahead),
                _ => d += columns::<S, E, G, 1>(s, work, first, values, n, d, ahead),
            }
        }
    }
}

/// [`accumulate`] for `B` vectors from number `d` on; returns how many numbers these are.
#[inline(always)]
unsafe fn columns<S: Simd, E: Element, const G: usize, const B: usize>(
    s: S,
    work: &Work,
    first: usize,
    values: &RowTile,
    n: usize,
    d: usize,
    ahead: Option<&RowTile>,
) -> usize {
    // SAFETY: see `run`.
    unsafe {
        let sums = work.values.add(first * work.v_padded + d);
        let powers = work.scores.add(first * PAGE_LEN).cast_const();
        let mut total = [[s.splat(0.0); B]; G];
        for (g, total) in total.iter_mut().enumerate() {
            let rescale = s.splat(*work.rescale.add(first + g));
            for (b, total) in total.iter_mut().enumerate() {
                *total = s.mul(s.load(sums.add(g * work.v_padded + b * S::LANES)), rescale);
            }
        }
        for j in 0..n {
            if let Some(ahead) = ahead {
                ahead.prefetch(j);
            }
            let mut weights = [s.splat(0.0); G];
            for (g, weight) in weights.iter_mut().enumerate() {
                *weight = s.splat(*powers.add(g * PAGE_LEN + j));
            }
            for b in 0..B {
                let value = E::load(s, values, j, d + b * S::LANES);
                for g in 0..G {
                    total[g][b] = s.fma(value, weights[g], total[g][b]);
                }
            }
        }
        for (g, total) in total.into_iter().enumerate() {
            for (b, total) in total.into_iter().enumerate() {
                s.store(sums.add(g * work.v_padded + b * S::LANES), total);
            }
        }
    }
    B * S::LANES
}

impl RowTile {
    /// Asks for row `j`, which need not exist, to be brought near.
    #[inline(always)]
    fn prefetch(&self, j: usize) {
        let row = self.data.wrapping_add(j * self.row_bytes);
        for line in (0..self.row_bytes).step_by(64) {
            simd::prefetch(row.wrapping_add(line));
        }
    }
}
