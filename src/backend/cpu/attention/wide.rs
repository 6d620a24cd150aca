//! Attention of many queries, as in prefill: the queries are in the lanes. Scores have a row for
//! each key, so that the softmax needs no operation across lanes. Both products, `S = K Qᵀ` and
//! `Oᵀ = Vᵀ P`, are the same register-blocked multiplication: it broadcasts a number of a key or
//! value to three vectors of queries. The keys and values of a page are converted to `f32` once for
//! a tile of queries.

use std::marker::PhantomData;
use std::ops::Range;

use super::page::{Cache, Element, F16, F32, KeyTile, Q8_0, RowTile, first_page, next_number};
use super::partial::Merge;
use super::plan::{Item, segment_end};
use super::{LOWEST, State};
use crate::Result;
use crate::backend::KvType;
use crate::backend::cpu::kv::{KEY_GROUP, PAGE_LEN};
use crate::simd::{Kernel, Simd, math, transpose};

/// Vectors of queries in a register tile.
const VECTORS: usize = 3;

/// The sums of blocks of up to `3 * LANES` queries, with a column for each query.
#[derive(Clone, Copy)]
struct Sums {
    /// Sums of values, padded like them: a row for each number.
    values: *mut f32,
    /// Largest score and sum of powers.
    max: *mut f32,
    sum: *mut f32,
}

impl Sums {
    /// The sums of block `index`, given those of the first.
    #[inline(always)]
    fn of_block<S: Simd>(self, _: S, index: usize, v_padded: usize) -> Self {
        let first = index * VECTORS * S::LANES;
        Self {
            values: self.values.wrapping_add(first * v_padded),
            max: self.max.wrapping_add(first),
            sum: self.sum.wrapping_add(first),
        }
    }

    /// Makes them the sums over no position.
    ///
    /// # Safety
    /// All pointers are valid for writes of `columns` columns.
    #[inline(always)]
    unsafe fn clear<S: Simd>(self, s: S, columns: usize, v_padded: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for column in (0..columns).step_by(S::LANES) {
                s.store(self.max.add(column), s.splat(LOWEST));
                s.store(self.sum.add(column), s.splat(0.0));
            }
            self.values.write_bytes(0, columns * v_padded);
        }
    }

    /// Adds the sums of the next segment to a block's.
    ///
    /// # Safety
    /// All pointers are valid for reads and writes of `vectors` vectors and `v_padded` values.
    #[inline(always)]
    unsafe fn add<S: Simd>(self, s: S, segment: Sums, vectors: usize, v_padded: usize) {
        let width = VECTORS * S::LANES;
        // SAFETY: the caller's promise.
        unsafe {
            for column in (0..vectors * S::LANES).step_by(S::LANES) {
                let (max, sum) = (self.max.add(column), self.sum.add(column));
                let merge = Merge::new(s, s.load(max), s.load(segment.max.add(column)));
                s.store(max, merge.max);
                s.store(sum, merge.join(s, s.load(sum), s.load(segment.sum.add(column))));
                for d in 0..v_padded {
                    let value = self.values.add(d * width + column);
                    let joined = merge.join(s, s.load(value), s.load(segment.values.add(d * width + column)));
                    s.store(value, joined);
                }
            }
        }
    }
}

/// Up to `3 * LANES` queries, with a column for each query.
#[derive(Clone, Copy)]
struct Block {
    /// Queries, multiplied by the scale: a row for each number.
    q: *mut f32,
    /// Scores of a page, then their powers: a row for each key.
    scores: *mut f32,
    /// The sums of this segment.
    sums: Sums,
    /// The factor for the sums of earlier pages.
    rescale: *mut f32,
    /// The first and the end of the keys that a query sees, counted from the start of the page.
    from: *mut f32,
    to: *mut f32,
}

#[inline(always)]
pub(super) fn run<S: Simd>(s: S, item: Item) -> Result<()> {
    let width = VECTORS * S::LANES;
    let count = item.queries.count;
    let kv_type = item.cache.layout.kv_type;
    let blocks = count.div_ceil(width);
    let columns = blocks * width;
    let (keys, values) = (item.cache.layout.keys, item.cache.layout.values);
    let (k_dim, v_padded) = (keys.dim, values.padded);
    let q_len = k_dim.next_multiple_of(S::LANES);
    let total_columns = if item.folds() { columns } else { 0 };
    let [q, segment_values, total_values, k_f32, v_f32, scores, in_segment, in_total, limited, rows, v_scales] =
        item.scratch.buffers([
            columns * q_len,
            columns * v_padded,
            total_columns * v_padded,
            PAGE_LEN * k_dim,
            PAGE_LEN * v_padded,
            PAGE_LEN * width,
            2 * columns,
            2 * total_columns,
            3 * width,
            S::LANES * q_len.max(v_padded),
            Cache::scales_len(&values),
        ])?;
    let (scale, cap) = item.queries.params.factors();
    // SAFETY: all accesses are within the lengths just requested, and within pages by the promise
    // of `run_item`'s caller: this reads only rows that the queries see, and the keys of their
    // groups.
    unsafe {
        let mut segment = Sums { values: segment_values, max: in_segment, sum: in_segment.add(columns) };
        let mut total = Sums { values: total_values, max: in_total, sum: in_total.add(total_columns) };
        let block = |sums: Sums, index: usize| Block {
            q: q.add(index * width * q_len),
            scores,
            sums: sums.of_block(s, index, v_padded),
            rescale: limited,
            from: limited.add(width),
            to: limited.add(2 * width),
        };
        for first in (0..columns).step_by(S::LANES) {
            let (block, column) = (block(segment, first / width), first % width);
            for lane in 0..S::LANES {
                let row = rows.add(lane * q_len);
                match first + lane < count {
                    true => item.queries.write_scaled(s, first + lane, scale, q_len, row),
                    false => row.write_bytes(0, q_len),
                }
            }
            for d in (0..q_len).step_by(S::LANES) {
                transpose(s, rows.add(d), q_len, block.q.add(d * width + column), width);
            }
        }
        segment.clear(s, columns, v_padded);
        let mut positions = item.positions();
        let mut index = item.first_segment();
        let mut in_total = false;
        loop {
            let page = first_page(&positions);
            let n = page.len();
            if n > 0 {
                let (keys, values) = (item.cache.keys(&page), item.cache.values(s, &page, v_scales));
                convert(s, kv_type, Convert::Keys { rows: keys, n, out: k_f32 });
                convert(s, kv_type, Convert::Values { rows: values, n, padded: v_padded, out: v_f32 });
            }
            for index in 0..blocks {
                let first = index * width;
                let used = width.min(count - first);
                let block = block(segment, index);
                let masked = limits(&item, &block, first, used, &page);
                let tile = Page { keys: k_f32, values: v_f32, k_dim, v_padded, n, masked, cap };
                attend(s, &block, &tile, used.div_ceil(S::LANES));
            }
            positions.start = page.end;
            if !positions.is_empty() && page.end != segment_end(page.start) {
                continue;
            }
            // The end of a segment.
            if !item.folds() {
                emit(s, &item, segment, index, rows);
            } else if !in_total {
                // Zero plus the segment.
                (segment, total) = (total, segment);
                in_total = true;
            } else {
                for index in 0..blocks {
                    let vectors = width.min(count - index * width).div_ceil(S::LANES);
                    let sums = segment.of_block(s, index, v_padded);
                    total.of_block(s, index, v_padded).add(s, sums, vectors, v_padded);
                }
            }
            if positions.is_empty() {
                break;
            }
            segment.clear(s, columns, v_padded);
            index += 1;
        }
        if item.folds() {
            emit(s, &item, total, index, rows);
        }
    }
    Ok(())
}

/// Emits the state of all queries, over a segment or over all of them.
///
/// # Safety
/// The sums are those of all queries, and `rows` is valid for writes of a row of values for each
/// lane.
#[inline(always)]
unsafe fn emit<S: Simd>(s: S, item: &Item, sums: Sums, segment: usize, rows: *mut f32) {
    let width = VECTORS * S::LANES;
    let (count, v_padded) = (item.queries.count, item.cache.layout.values.padded);
    for first in (0..count).step_by(S::LANES) {
        let (sums, column) = (sums.of_block(s, first / width, v_padded), first % width);
        // SAFETY: the caller's promise.
        unsafe {
            for d in (0..v_padded).step_by(S::LANES) {
                transpose(s, sums.values.add(d * width + column), width, rows.add(d), v_padded);
            }
            for lane in 0..S::LANES.min(count - first) {
                let values = std::slice::from_raw_parts(rows.add(lane * v_padded).cast_const(), v_padded);
                let (max, sum) = (*sums.max.add(column + lane), *sums.sum.add(column + lane));
                item.emit(s, segment, item.queries.kv_head, first + lane, State { max, sum, values });
            }
        }
    }
}

/// Converts `n` rows to `f32`, each element in its place. Only constructed when these are as
/// [`run`] promises.
enum Convert {
    /// All keys of the groups.
    Keys {
        rows: KeyTile,
        n: usize,
        out: *mut f32,
    },
    Values {
        rows: RowTile,
        n: usize,
        padded: usize,
        out: *mut f32,
    },
}

#[inline(always)]
fn convert<S: Simd>(s: S, kv_type: KvType, convert: Convert) {
    match kv_type {
        KvType::F32 => s.call(ConvertFrom::<F32>(convert, PhantomData)),
        KvType::F16 => s.call(ConvertFrom::<F16>(convert, PhantomData)),
        KvType::Q8_0 => s.call(ConvertFrom::<Q8_0>(convert, PhantomData)),
    }
}

struct ConvertFrom<E>(Convert, PhantomData<E>);

impl<S: Simd, E: Element> Kernel<S> for ConvertFrom<E> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        // SAFETY: see the type.
        unsafe {
            match self.0 {
                Convert::Keys { rows, n, out } => {
                    for j in (0..n).step_by(S::LANES) {
                        let mut at = rows.keys::<E>(j);
                        let out = out.add(j / KEY_GROUP * KEY_GROUP * rows.dim + j % KEY_GROUP);
                        let block = rows.block_len::<E>();
                        for from in (0..rows.dim).step_by(block) {
                            let scales = rows.block_scales::<S, E>(s, from / block, j);
                            for d in from..(from + block).min(rows.dim) {
                                s.store(out.add(d * KEY_GROUP), E::load_keys(s, at, scales));
                                at = at.wrapping_add(next_number::<E>());
                            }
                        }
                    }
                }
                Convert::Values { rows, n, padded, out } => {
                    for j in 0..n {
                        for d in (0..padded).step_by(S::LANES) {
                            s.store(out.add(j * padded + d), E::load(s, &rows, j, d));
                        }
                    }
                }
            }
        }
    }
}

/// Writes which keys of the page the queries of a block see. Returns whether some query does not
/// see all of them.
#[inline(always)]
unsafe fn limits(item: &Item, block: &Block, first: usize, used: usize, page: &Range<usize>) -> bool {
    let sees_all = |m: usize| item.queries.visible_in(m, page).len() == page.len();
    // Both limits only grow from query to query.
    if sees_all(first) && sees_all(first + used - 1) {
        return false;
    }
    for column in 0..used {
        let visible = item.queries.visible_in(first + column, page);
        // SAFETY: see `run`.
        unsafe {
            *block.from.add(column) = visible.start as f32;
            *block.to.add(column) = visible.end as f32;
        }
    }
    true
}

/// The keys and values of a page, as `f32`, and how to use them.
#[derive(Clone, Copy)]
struct Page {
    /// Transposed in groups, as stored.
    keys: *const f32,
    values: *const f32,
    k_dim: usize,
    v_padded: usize,
    n: usize,
    /// Whether some query does not see all of them.
    masked: bool,
    cap: Option<f32>,
}

/// Adds a page to the sums of the first `vectors` vectors of queries of a block.
#[inline(always)]
unsafe fn attend<S: Simd>(s: S, block: &Block, page: &Page, vectors: usize) {
    // This also computes scores of a few keys beyond the last, from arbitrary numbers, and ignores
    // them.
    let keys = Product {
        left: page.keys,
        left_group: page.k_dim * KEY_GROUP,
        left_column: KEY_GROUP,
        rows: page.n.next_multiple_of(S::ROWS),
        right: block.q,
        depth: page.k_dim,
        out: block.scores,
        rescale: None,
    };
    keys.run(s, vectors);
    // SAFETY: see `run`.
    unsafe { soften(s, block, page, vectors) };
    let values = Product {
        left: page.values,
        left_group: KEY_GROUP,
        left_column: page.v_padded,
        rows: page.v_padded,
        right: block.scores,
        depth: page.n,
        out: block.sums.values,
        rescale: Some(block.rescale),
    };
    values.run(s, vectors);
}

/// Turns scores into powers, and updates maxima and sums.
#[inline(always)]
unsafe fn soften<S: Simd>(s: S, block: &Block, page: &Page, vectors: usize) {
    let width = VECTORS * S::LANES;
    // SAFETY: see `run`.
    unsafe {
        for v in 0..vectors {
            let column = v * S::LANES;
            let scores = block.scores.add(column);
            let (state_max, state_sum) = (block.sums.max.add(column), block.sums.sum.add(column));
            let before = s.load(state_max);
            let mut max = before;
            if page.masked || page.cap.is_some() {
                let (from, to) = (s.load(block.from.add(column)), s.load(block.to.add(column)));
                for j in 0..page.n {
                    let mut score = s.load(scores.add(j * width));
                    if let Some(cap) = page.cap {
                        score = s.mul(math::tanh(s, score), s.splat(cap));
                    }
                    if page.masked {
                        score = s.select_within(s.splat(j as f32), from, to, score, s.splat(f32::NEG_INFINITY));
                    }
                    s.store(scores.add(j * width), score);
                    max = s.max(max, score);
                }
            } else {
                for j in 0..page.n {
                    max = s.max(max, s.load(scores.add(j * width)));
                }
            }
            // The other kernel has these keys in its lanes as well.
            let whole = page.n.next_multiple_of(S::LANES);
            for j in page.n..whole {
                s.store(scores.add(j * width), s.splat(f32::NEG_INFINITY));
            }
            // Adds in the order of the other kernel: each of its lanes over the page, and then the
            // lanes' halves ([`Simd::sum`]), down to four.
            let mut quarters = [s.splat(0.0); 4];
            for (lane, quarter) in quarters.iter_mut().enumerate() {
                let mut lanes = [s.splat(0.0); 4];
                for first in (0..whole).step_by(S::LANES) {
                    for (i, sum) in lanes.iter_mut().enumerate().take(S::LANES / 4) {
                        let score = scores.add((first + lane + 4 * i) * width);
                        let power = math::exp2(s, s.sub(s.load(score), max));
                        s.store(score, power);
                        *sum = s.add(*sum, power);
                    }
                }
                *quarter = match S::LANES {
                    16 => s.add(s.add(lanes[0], lanes[2]), s.add(lanes[1], lanes[3])),
                    8 => s.add(lanes[0], lanes[1]),
                    _ => lanes[0],
                };
            }
            let sum = s.add(s.add(quarters[0], quarters[2]), s.add(quarters[1], quarters[3]));
            let rescale = math::exp2(s, s.sub(before, max));
            s.store(state_max, max);
            s.store(block.rescale.add(column), rescale);
            s.store(state_sum, s.fma(s.load(state_sum), rescale, sum));
        }
    }
}

/// The product of two matrices, of `rows` rows and some vectors of columns, over `depth`. With
/// `rescale`, a number for each column, the old content of `out` is multiplied by it and the
/// product is added.
///
/// Rows of `right` and `out` are `3 * LANES` apart. Only constructed when all of this is valid to
/// read, and `out` to write.
#[derive(Clone, Copy)]
struct Product {
    /// Element `(i, k)` is number `i % KEY_GROUP` of the group at
    /// `i / KEY_GROUP * left_group + k * left_column`.
    left: *const f32,
    left_group: usize,
    left_column: usize,
    /// A multiple of [`Simd::ROWS`].
    rows: usize,
    right: *const f32,
    depth: usize,
    out: *mut f32,
    rescale: Option<*mut f32>,
}

impl Product {
    #[inline(always)]
    fn run<S: Simd>(self, s: S, vectors: usize) {
        match vectors {
            1 => s.call(Columns::<1>(self)),
            2 => s.call(Columns::<2>(self)),
            _ => s.call(Columns::<VECTORS>(self)),
        }
    }

    /// Computes `R` rows from `i` on, in registers.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const NV: usize>(&self, s: S, i: usize) {
        let width = VECTORS * S::LANES;
        // SAFETY: see the type.
        unsafe {
            let left = self.left.add(i / KEY_GROUP * self.left_group + i % KEY_GROUP);
            let out = self.out.add(i * width);
            let mut total = [[s.splat(0.0); NV]; R];
            if let Some(rescale) = self.rescale {
                for (i, total) in total.iter_mut().enumerate() {
                    for (v, total) in total.iter_mut().enumerate() {
                        let column = v * S::LANES;
                        *total = s.mul(s.load(out.add(i * width + column)), s.load(rescale.add(column)));
                    }
                }
            }
            for k in 0..self.depth {
                let mut vectors = [s.splat(0.0); NV];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = s.load(self.right.add(k * width + v * S::LANES));
                }
                for (i, total) in total.iter_mut().enumerate() {
                    let x = s.splat(*left.add(k * self.left_column + i));
                    for (total, vector) in total.iter_mut().zip(vectors) {
                        *total = s.fma(x, vector, *total);
                    }
                }
            }
            for (i, total) in total.into_iter().enumerate() {
                for (v, total) in total.into_iter().enumerate() {
                    s.store(out.add(i * width + v * S::LANES), total);
                }
            }
        }
    }
}

/// A [`Product`] with `NV` vectors of columns.
struct Columns<const NV: usize>(Product);

impl<S: Simd, const NV: usize> Kernel<S> for Columns<NV> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        for i in (0..self.0.rows).step_by(S::ROWS) {
            if S::ROWS == 8 { self.0.rows::<S, 8, NV>(s, i) } else { self.0.rows::<S, 4, NV>(s, i) }
        }
    }
}
