//! Attention of few queries, as in decoding, straight from the cache for up to [`Simd::QUERIES`]
//! queries at once. Keys are in the lanes while scores are computed, and then the numbers of a
//! value. Memory limits the speed. So while the keys of a page are read, its values are prefetched,
//! and then the keys of the next page or item.

use std::marker::PhantomData;
use std::ops::Range;

use super::Queries;
use super::page::{Cache, Element, F16, F32, KeyTile, Q8_0, RowTile, first_page, next_number};
use super::partial::Total;
use super::plan::{Item, segment_end};
use crate::Result;
use crate::backend::KvType;
use crate::backend::cpu::kv::PAGE_LEN;
use crate::simd::{self, Kernel, Simd, first, math};

/// The working memory of an item: a row for each query.
#[derive(Clone, Copy)]
struct Work {
    /// Queries, multiplied by the scale and padded with zeros to `q_len` numbers.
    q: *mut f32,
    /// Scores of a page, then their powers.
    scores: *mut f32,
    /// Sums of the segment: values, padded as in the cache, largest score and sum of powers.
    segment: Total,
    /// Sums of all segments before.
    total: Total,
    /// The factor for the sums of earlier pages.
    rescale: *mut f32,
    q_len: usize,
    v_padded: usize,
}

impl Work {
    /// The memory of the i-th key-value head, given that of the first. All heads share scores and
    /// factors.
    #[inline(always)]
    fn of_head(self, i: usize, count: usize) -> Self {
        let m = i * count;
        let (segment, total) = (self.of_query(self.segment, m), self.of_query(self.total, m));
        Self { q: self.q.wrapping_add(m * self.q_len), segment, total, ..self }
    }

    #[inline(always)]
    fn of_query(&self, sums: Total, m: usize) -> Total {
        Total {
            max: sums.max.wrapping_add(m),
            sum: sums.sum.wrapping_add(m),
            values: sums.values.wrapping_add(m * self.v_padded),
        }
    }
}

#[inline(always)]
pub(super) fn run<S: Simd>(s: S, item: Item) -> Result<()> {
    let count = item.queries.count;
    let heads = item.kv_heads();
    let all = heads.len() * count;
    let (keys, values) = (item.cache.layout.keys, item.cache.layout.values);
    let (q_len, v_padded) = (keys.dim.next_multiple_of(S::LANES), values.padded);
    let sums = |all: usize| [all * v_padded, all, all];
    let [in_segment, in_total] = [sums(all), sums(if item.folds() { all } else { 0 })];
    let [q, scores, segment_values, segment_max, segment_sum, total_values, total_max, total_sum, rescale, v_scales] =
        item.scratch.buffers([
            all * q_len,
            count * PAGE_LEN,
            in_segment[0],
            in_segment[1],
            in_segment[2],
            in_total[0],
            in_total[1],
            in_total[2],
            count,
            Cache::scales_len(&values),
        ])?;
    let work = Work {
        q,
        scores,
        segment: Total { max: segment_max, sum: segment_sum, values: segment_values },
        total: Total { max: total_max, sum: total_sum, values: total_values },
        rescale,
        q_len,
        v_padded,
    };
    let (scale, cap) = item.queries.params.factors();
    // SAFETY: all accesses are within the lengths just requested, and within pages by the promise
    // of `run_item`'s caller: this reads only rows that the queries see, and the keys of their
    // groups.
    unsafe {
        for head in heads.clone() {
            let work = work.of_head(head - heads.start, count);
            let queries = Queries { kv_head: head, ..item.queries };
            for m in 0..count {
                queries.write_scaled(s, m, scale, q_len, work.q.add(m * q_len));
            }
        }
        for m in 0..all {
            work.of_query(work.segment, m).clear(v_padded);
            if item.folds() {
                work.of_query(work.total, m).clear(v_padded);
            }
        }
        let mut positions = item.positions();
        let mut segment = item.first_segment();
        while !positions.is_empty() {
            let page = first_page(&positions);
            positions.start = page.end;
            for head in heads.clone() {
                let work = work.of_head(head - heads.start, count);
                let cache = Cache { kv_head: head, ..item.cache };
                let rows = (cache.keys(&page), cache.values(s, &page, v_scales));
                let after = if head + 1 < heads.end {
                    Cache { kv_head: head + 1, ..item.cache }.keys_ahead(&page)
                } else if positions.is_empty() {
                    item.next
                } else {
                    item.cache.keys_ahead(&positions)
                };
                run_page(s, &item, work, &page, rows, after, cap);
            }
            if page.end == segment_end(page.start) && !positions.is_empty() {
                for m in 0..all {
                    let state = work.of_query(work.segment, m);
                    if item.folds() {
                        work.of_query(work.total, m).add(s, state.state(v_padded));
                    } else {
                        item.emit(s, segment, heads.start + m / count, m % count, state.state(v_padded));
                    }
                    state.clear(v_padded);
                }
                segment += 1;
            }
        }
        for m in 0..all {
            let mut state = work.of_query(work.segment, m);
            if item.folds() {
                work.of_query(work.total, m).add(s, state.state(v_padded));
                state = work.of_query(work.total, m);
            }
            item.emit(s, segment, heads.start + m / count, m % count, state.state(v_padded));
        }
    }
    Ok(())
}

/// Adds the keys and values of a page to the sums, and prefetches the following reads.
///
/// # Safety
/// The queries of `work` are set up, for the key-value head of the keys and values. These are the
/// page's.
#[inline(always)]
unsafe fn run_page<S: Simd>(
    s: S,
    item: &Item,
    work: Work,
    page: &Range<usize>,
    (keys, values): (KeyTile, RowTile),
    after: *const u8,
    cap: Option<f32>,
) {
    let (kv_type, count, n) = (item.cache.layout.kv_type, item.queries.count, page.len());
    run_pass(s, kv_type, count, Pass { rows: Rows::Keys(keys), work, first: 0, n, ahead: values.data });
    for m in 0..count {
        // SAFETY: the first pass has written the scores of the page.
        unsafe { soften(s, &work, m, n, item.queries.visible_in(m, page), cap) };
    }
    run_pass(s, kv_type, count, Pass { rows: Rows::Values(values), work, first: 0, n, ahead: after });
}

/// A pass over the keys or the values of a page. Only constructed when all is as [`run`] promises.
#[derive(Clone, Copy)]
struct Pass {
    rows: Rows,
    /// The number of rows.
    n: usize,
    work: Work,
    /// The first query.
    first: usize,
    /// The first of the rows to prefetch meanwhile. They are consecutive.
    ahead: *const u8,
}

/// The input of a pass.
#[derive(Clone, Copy)]
enum Rows {
    /// Computes their scores.
    Keys(KeyTile),
    /// Adds them, weighted.
    Values(RowTile),
}

/// Runs a pass for all queries, in as few blocks as possible, of about equal size.
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

impl<S: Simd, E: Element, const G: usize> Kernel<S> for Block<E, G> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let pass = &self.0;
        match &pass.rows {
            Rows::Keys(keys) => {
                // Lanes beyond the last key belong to its group, and are overwritten afterwards.
                let mut j = 0;
                while j < pass.n {
                    match (pass.n - j).div_ceil(S::LANES) {
                        1 => j += pass.score::<S, E, G, 1>(s, keys, j),
                        2 | 3 => j += pass.score::<S, E, G, 2>(s, keys, j),
                        _ => j += pass.score::<S, E, G, 4>(s, keys, j),
                    }
                }
            }
            Rows::Values(values) => {
                let mut d = 0;
                while d < pass.work.v_padded {
                    match (pass.work.v_padded - d) / S::LANES {
                        1 if S::LANES == 16 => d += pass.accumulate::<S, E, G, 1>(s, values, d),
                        2 | 3 if S::LANES >= 8 => d += pass.accumulate::<S, E, G, 2>(s, values, d),
                        _ => d += pass.accumulate::<S, E, G, 4>(s, values, d),
                    }
                }
            }
        }
    }
}

impl Pass {
    /// Prefetches `count` numbers from byte `offset` of the rows ahead. They need not exist.
    #[inline(always)]
    fn prefetch<E: Element>(&self, offset: usize, count: usize) {
        for line in (0..count * E::SIZE).step_by(64) {
            simd::prefetch(self.ahead.wrapping_add(offset + line));
        }
    }

    /// Computes the scores of `B` vectors of keys from the j-th on. Returns the number of keys.
    #[inline(always)]
    fn score<S: Simd, E: Element, const G: usize, const B: usize>(&self, s: S, keys: &KeyTile, j: usize) -> usize {
        let Work { q_len, scores, .. } = self.work;
        let block = keys.block_len::<E>();
        // SAFETY: see the type.
        unsafe {
            let q = self.work.q.add(self.first * q_len).cast_const();
            let mut at: [*const u8; B] = std::array::from_fn(|b| keys.keys::<E>(j + b * S::LANES));
            let mut sums = [[s.splat(0.0); B]; G];
            let mut from = 0;
            while from < keys.dim {
                let mut scales = [s.splat(1.0); B];
                if E::SCALED {
                    for (b, scales) in scales.iter_mut().enumerate() {
                        *scales = keys.block_scales::<S, E>(s, from / block, j + b * S::LANES);
                    }
                }
                let to = (from + block).min(keys.dim);
                for d in from..to {
                    self.prefetch::<E>((j * keys.dim + d * B * S::LANES) * E::SIZE, B * S::LANES);
                    let mut numbers = [s.splat(0.0); G];
                    for (g, number) in numbers.iter_mut().enumerate() {
                        *number = s.splat(*q.add(g * q_len + d));
                    }
                    for b in 0..B {
                        let key = E::load_keys(s, at[b], scales[b]);
                        at[b] = at[b].wrapping_add(next_number::<E>());
                        for (sums, number) in sums.iter_mut().zip(numbers) {
                            sums[b] = s.fma(key, number, sums[b]);
                        }
                    }
                }
                from = to;
            }
            for (g, sums) in sums.into_iter().enumerate() {
                for (b, sum) in sums.into_iter().enumerate() {
                    s.store(scores.add((self.first + g) * PAGE_LEN + j + b * S::LANES), sum);
                }
            }
        }
        B * S::LANES
    }

    /// Adds `B` vectors from number `d` on. Returns the number of numbers.
    #[inline(always)]
    fn accumulate<S: Simd, E: Element, const G: usize, const B: usize>(&self, s: S, rows: &RowTile, d: usize) -> usize {
        let Work { scores, segment, rescale, v_padded, .. } = self.work;
        // SAFETY: see the type.
        unsafe {
            let sums = segment.values.add(self.first * v_padded + d);
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
                    let value = E::load(s, rows, j, d + b * S::LANES);
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

/// Turns the `n` scores of a query, of which it sees `visible`, into powers, and updates its
/// maximum and sum.
#[inline(always)]
unsafe fn soften<S: Simd>(s: S, work: &Work, m: usize, n: usize, visible: Range<usize>, cap: Option<f32>) {
    // SAFETY: see `run`; `PAGE_LEN` is a multiple of the lanes, so the last vector ends within the
    // row.
    unsafe {
        let scores = work.scores.add(m * PAGE_LEN);
        let Total { max: state_max, sum: state_sum, .. } = work.of_query(work.segment, m);
        let whole = n.next_multiple_of(S::LANES);
        if let Some(cap) = cap {
            for i in (0..whole).step_by(S::LANES) {
                s.store(scores.add(i), s.mul(math::tanh(s, s.load(scores.add(i))), s.splat(cap)));
            }
        }
        for i in (0..visible.start).chain(visible.end..whole) {
            *scores.add(i) = f32::NEG_INFINITY;
        }
        let before = *state_max;
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
        let rescale = math::exp2(s, s.splat(before - max));
        *state_max = max;
        *state_sum = first(s, s.fma(s.splat(*state_sum), rescale, s.splat(s.sum(sum))));
        *work.rescale.add(m) = first(s, rescale);
    }
}
