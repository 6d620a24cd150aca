//! Attention of few queries, as in decoding: the numbers of a head are in the lanes, and keys and values are converted
//! in registers, straight from the cache, for up to [`Simd::QUERIES`] queries at once. What bounds it is memory: while
//! the keys of a page are read, its values are prefetched, and then the keys of the next page or item.

use std::marker::PhantomData;
use std::ops::Range;

use super::page::{Cache, Element, F16, F32, Q8_0, RowTile, first_page};
use super::plan::Item;
use super::{LOWEST, Queries, State};
use crate::backend::KvType;
use crate::backend::cpu::kv::PAGE_LEN;
use crate::backend::cpu::simd::{self, Kernel, Simd, math};

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

impl Work {
    /// That of the i-th key-value head, if it is for the first; scores and factors serve all of them.
    #[inline(always)]
    fn of_head(self, i: usize, count: usize) -> Self {
        let m = i * count;
        Self {
            q: self.q.wrapping_add(m * self.k_padded),
            values: self.values.wrapping_add(m * self.v_padded),
            max: self.max.wrapping_add(m),
            sum: self.sum.wrapping_add(m),
            ..self
        }
    }
}

#[inline(always)]
pub(super) fn run<S: Simd>(s: S, item: Item) {
    let count = item.queries.count;
    let heads = item.kv_heads();
    let all = heads.len() * count;
    let (keys, values) = (item.cache.layout.keys, item.cache.layout.values);
    let (k_padded, v_padded) = (keys.padded, values.padded);
    let [q, scores, sums, max, sum, rescale, k_scales, v_scales] = item.scratch.buffers([
        all * k_padded,
        count * PAGE_LEN,
        all * v_padded,
        all,
        all,
        count,
        Cache::scales_len(&keys),
        Cache::scales_len(&values),
    ]);
    let first = Work { q, scores, values: sums, max, sum, rescale, k_padded, v_padded };
    let (scale, cap) = item.queries.params.factors();
    // SAFETY: all accesses are within the lengths just asked for, and within pages by the promise of `run_item`'s
    // caller: only rows that the queries see are read.
    unsafe {
        for head in heads.clone() {
            let work = first.of_head(head - heads.start, count);
            let queries = Queries { kv_head: head, ..item.queries };
            for m in 0..count {
                queries.write_scaled(s, m, scale, k_padded, work.q.add(m * k_padded));
                *work.max.add(m) = LOWEST;
                *work.sum.add(m) = 0.0;
                for d in 0..v_padded {
                    *work.values.add(m * v_padded + d) = 0.0;
                }
            }
        }
        let mut positions = item.positions();
        while !positions.is_empty() {
            let page = first_page(positions.clone());
            positions.start = page.end;
            for head in heads.clone() {
                let work = first.of_head(head - heads.start, count);
                let cache = Cache { kv_head: head, ..item.cache };
                let rows = [cache.keys(s, &page, k_scales), cache.values(s, &page, v_scales)];
                let after = if head + 1 < heads.end {
                    Cache { kv_head: head + 1, ..item.cache }.keys_ahead(&page)
                } else if positions.is_empty() {
                    item.next
                } else {
                    item.cache.keys_ahead(&positions)
                };
                run_page(s, &item, work, &page, rows, after, cap);
            }
        }
        for head in heads.clone() {
            let work = first.of_head(head - heads.start, count);
            for m in 0..count {
                let values = std::slice::from_raw_parts(work.values.add(m * v_padded).cast_const(), v_padded);
                item.emit(s, head, m, State { max: *work.max.add(m), sum: *work.sum.add(m), values });
            }
        }
    }
}

/// Takes the keys and the values of a page into account, asking for what is to be read after them.
///
/// # Safety
/// The queries of `work` are set up, for the key-value head that the rows are of, which are those of the page.
#[inline(always)]
unsafe fn run_page<S: Simd>(
    s: S,
    item: &Item,
    work: Work,
    page: &Range<usize>,
    [keys, values]: [RowTile; 2],
    after: *const u8,
    cap: Option<f32>,
) {
    let (kv_type, count, n) = (item.cache.layout.kv_type, item.queries.count, page.len());
    run_pass(s, kv_type, count, Pass { step: Step::Score, work, first: 0, rows: keys, n, ahead: values.data });
    for m in 0..count {
        // SAFETY: the first pass has written the scores of the page.
        unsafe { soften(s, &work, m, n, item.queries.visible_in(m, page), cap) };
    }
    run_pass(s, kv_type, count, Pass { step: Step::Accumulate, work, first: 0, rows: values, n, ahead: after });
}

/// A pass over the keys or the values of a page. Only made where everything is as [`run`] promises.
#[derive(Clone, Copy)]
struct Pass {
    step: Step,
    work: Work,
    /// The first query.
    first: usize,
    /// The rows to read, and how many.
    rows: RowTile,
    n: usize,
    /// The first of the rows to prefetch meanwhile, which lie one after the other.
    ahead: *const u8,
}

#[derive(Clone, Copy)]
enum Step {
    /// Computes the scores of the keys.
    Score,
    /// Adds the values, weighted.
    Accumulate,
}

/// Runs a pass for all queries, in as few blocks as there can be, of about the same size.
#[inline(always)]
fn run_pass<S: Simd>(s: S, kv_type: KvType, count: usize, pass: Pass) {
    let blocks = count.div_ceil(S::QUERIES);
    let mut first = 0;
    for block in 0..blocks {
        let queries = (count - first).div_ceil(blocks - block);
        let pass = Pass { first, ..pass };
        match kv_type {
            KvType::F32 => run_block::<S, F32>(s, queries, pass),
            KvType::F16 => run_block::<S, F16>(s, queries, pass),
            KvType::Q8_0 => run_block::<S, Q8_0>(s, queries, pass),
        }
        first += queries;
    }
}

#[inline(always)]
fn run_block<S: Simd, E: Element>(s: S, queries: usize, pass: Pass) {
    match queries {
        4 if S::QUERIES >= 4 => s.call(Block::<E, 4>(pass, PhantomData)),
        3 if S::QUERIES >= 3 => s.call(Block::<E, 3>(pass, PhantomData)),
        2 if S::QUERIES >= 2 => s.call(Block::<E, 2>(pass, PhantomData)),
        _ => s.call(Block::<E, 1>(pass, PhantomData)),
    }
}

/// A pass for `G` queries over a cache of elements `E`.
struct Block<E, const G: usize>(Pass, PhantomData<E>);

impl<E: Element, const G: usize> Kernel for Block<E, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let pass = &self.0;
        match pass.step {
            Step::Score => pass.score::<S, E, G>(s),
            Step::Accumulate => {
                let mut d = 0;
                while d < pass.work.v_padded {
                    match (pass.work.v_padded - d) / S::LANES {
                        1 if S::LANES == 16 => d += pass.accumulate::<S, E, G, 1>(s, d),
                        2 | 3 if S::LANES >= 8 => d += pass.accumulate::<S, E, G, 2>(s, d),
                        _ => d += pass.accumulate::<S, E, G, 4>(s, d),
                    }
                }
            }
        }
    }
}

impl Pass {
    /// Asks for `count` numbers, which need not exist, from byte `offset` on of the rows ahead to be brought near.
    #[inline(always)]
    fn prefetch<E: Element>(&self, offset: usize, count: usize) {
        for line in (0..count * E::SIZE).step_by(64) {
            simd::prefetch(self.ahead.wrapping_add(offset + line));
        }
    }

    #[inline(always)]
    fn score<S: Simd, E: Element, const G: usize>(&self, s: S) {
        let (dim, n) = (self.work.k_padded, self.n);
        // SAFETY: see the type.
        unsafe {
            let q = self.work.q.add(self.first * dim).cast_const();
            for j in (0..n).step_by(KEYS) {
                // Past the end, the last key stands in; its scores are overwritten afterwards.
                let rows = [j, (j + 1).min(n - 1), (j + 2).min(n - 1), (j + 3).min(n - 1)];
                let mut sums = [[s.splat(0.0); KEYS]; G];
                for d in (0..dim).step_by(S::LANES) {
                    self.prefetch::<E>((j * dim + d * KEYS) * E::SIZE, KEYS * S::LANES);
                    for (i, row) in rows.into_iter().enumerate() {
                        let key = E::load(s, &self.rows, row, d);
                        for (g, sums) in sums.iter_mut().enumerate() {
                            sums[i] = s.fma(key, s.load(q.add(g * dim + d)), sums[i]);
                        }
                    }
                }
                for (g, sums) in sums.into_iter().enumerate() {
                    let scores = self.work.scores.add((self.first + g) * PAGE_LEN + j);
                    scores.cast::<[f32; KEYS]>().write_unaligned(s.sum4(sums));
                }
            }
        }
    }

    /// Adds `B` vectors from number `d` on; returns how many numbers these are.
    #[inline(always)]
    fn accumulate<S: Simd, E: Element, const G: usize, const B: usize>(&self, s: S, d: usize) -> usize {
        let Work { scores, values, rescale, v_padded, .. } = self.work;
        // SAFETY: see the type.
        unsafe {
            let sums = values.add(self.first * v_padded + d);
            let powers = scores.add(self.first * PAGE_LEN).cast_const();
            let mut total = [[s.splat(0.0); B]; G];
            for (g, total) in total.iter_mut().enumerate() {
                let rescale = s.splat(*rescale.add(self.first + g));
                for (b, total) in total.iter_mut().enumerate() {
                    *total = s.mul(s.load(sums.add(g * v_padded + b * S::LANES)), rescale);
                }
            }
            for j in 0..self.n {
                self.prefetch::<E>((j * v_padded + d) * E::SIZE, B * S::LANES);
                let mut weights = [s.splat(0.0); G];
                for (g, weight) in weights.iter_mut().enumerate() {
                    *weight = s.splat(*powers.add(g * PAGE_LEN + j));
                }
                for b in 0..B {
                    let value = E::load(s, &self.rows, j, d + b * S::LANES);
                    for (total, weight) in total.iter_mut().zip(weights) {
                        total[b] = s.fma(value, weight, total[b]);
                    }
                }
            }
            for (g, total) in total.into_iter().enumerate() {
                for (b, total) in total.into_iter().enumerate() {
                    s.store(sums.add(g * v_padded + b * S::LANES), total);
                }
            }
        }
        B * S::LANES
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
