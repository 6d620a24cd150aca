//! Attention of many queries, as in prompts: the queries are in the lanes. Scores are kept with a row for each key, so
//! that the softmax needs no operation across lanes, and both products, `S = K Qᵀ` and `Oᵀ = Vᵀ P`, are the same
//! register-blocked multiplication, in which a number of a key or value is broadcast and three vectors of queries share
//! it. Keys and values of a page are converted to `f32` once for a tile of queries.

use std::marker::PhantomData;
use std::ops::Range;

use super::page::{Cache, Element, F16, F32, Q8_0, RowTile, first_page};
use super::plan::Item;
use super::{LOWEST, State};
use crate::backend::KvType;
use crate::backend::cpu::kv::PAGE_LEN;
use crate::backend::cpu::simd::{Kernel, Simd, math, transpose};

/// Vectors of queries in a register tile.
const VECTORS: usize = 3;

/// Up to `3 * LANES` queries, with a column for each.
#[derive(Clone, Copy)]
struct Block {
    /// Queries, padded like the keys and multiplied by the scale: a row for each number.
    q: *mut f32,
    /// Scores of a page, then their powers: a row for each key.
    scores: *mut f32,
    /// Sums of values, padded like them: a row for each number.
    values: *mut f32,
    /// Largest score, sum of powers, and the factor for what was summed before this page.
    max: *mut f32,
    sum: *mut f32,
    rescale: *mut f32,
    /// The first and the end of the keys that a query sees, counted from the first of the page.
    from: *mut f32,
    to: *mut f32,
}

#[inline(always)]
pub(super) fn run<S: Simd>(s: S, item: Item) {
    let width = VECTORS * S::LANES;
    let count = item.queries.count;
    let kv_type = item.cache.layout.kv_type;
    let blocks = count.div_ceil(width);
    let columns = blocks * width;
    let (keys, values) = (item.cache.layout.keys, item.cache.layout.values);
    let (k_padded, v_padded) = (keys.padded, values.padded);
    let [q, sums, k_f32, v_f32, scores, max, sum, rescale, from, to, rows, k_scales, v_scales] =
        item.scratch.buffers([
            columns * k_padded,
            columns * v_padded,
            PAGE_LEN * k_padded,
            PAGE_LEN * v_padded,
            PAGE_LEN * width,
            columns,
            columns,
            width,
            width,
            width,
            S::LANES * k_padded.max(v_padded),
            Cache::scales_len(&keys),
            Cache::scales_len(&values),
        ]);
    let (scale, cap) = item.queries.params.factors();
    // SAFETY: all accesses are within the lengths just asked for, and within pages by the promise of `run_item`'s
    // caller: only rows that the queries see are read.
    unsafe {
        let block = |index: usize| Block {
            q: q.add(index * width * k_padded),
            scores,
            values: sums.add(index * width * v_padded),
            max: max.add(index * width),
            sum: sum.add(index * width),
            rescale,
            from,
            to,
        };
        for first in (0..columns).step_by(S::LANES) {
            let (block, column) = (block(first / width), first % width);
            for lane in 0..S::LANES {
                let row = rows.add(lane * k_padded);
                match first + lane < count {
                    true => item.queries.write_scaled(s, first + lane, scale, k_padded, row),
                    false => row.write_bytes(0, k_padded),
                }
            }
            for d in (0..k_padded).step_by(S::LANES) {
                transpose(s, rows.add(d), k_padded, block.q.add(d * width + column), width);
            }
            s.store(block.max.add(column), s.splat(LOWEST));
            s.store(block.sum.add(column), s.splat(0.0));
        }
        sums.write_bytes(0, columns * v_padded);
        let mut positions = item.positions();
        while !positions.is_empty() {
            let page = first_page(positions.clone());
            let n = page.len();
            let (keys, values) = (item.cache.keys(s, &page, k_scales), item.cache.values(s, &page, v_scales));
            convert(s, kv_type, Convert { rows: keys, n, padded: k_padded, out: k_f32 });
            convert(s, kv_type, Convert { rows: values, n, padded: v_padded, out: v_f32 });
            for index in 0..blocks {
                let first = index * width;
                let used = width.min(count - first);
                let block = block(index);
                let masked = limits(&item, &block, first, used, &page);
                let tile = Page { keys: k_f32, values: v_f32, k_padded, v_padded, n, masked, cap };
                attend(s, &block, &tile, used.div_ceil(S::LANES));
            }
            positions.start = page.end;
        }
        for first in (0..count).step_by(S::LANES) {
            let (block, column) = (block(first / width), first % width);
            for d in (0..v_padded).step_by(S::LANES) {
                transpose(s, block.values.add(d * width + column), width, rows.add(d), v_padded);
            }
            for lane in 0..S::LANES.min(count - first) {
                let values = std::slice::from_raw_parts(rows.add(lane * v_padded).cast_const(), v_padded);
                let (max, sum) = (*block.max.add(column + lane), *block.sum.add(column + lane));
                item.emit(s, item.queries.kv_head, first + lane, State { max, sum, values });
            }
        }
    }
}

/// Converts `n` rows to `f32`. Only made where these are as [`run`] promises.
struct Convert {
    rows: RowTile,
    n: usize,
    padded: usize,
    out: *mut f32,
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

impl<E: Element> Kernel for ConvertFrom<E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Convert { rows, n, padded, out } = self.0;
        for j in 0..n {
            for d in (0..padded).step_by(S::LANES) {
                // SAFETY: see the type.
                unsafe { s.store(out.add(j * padded + d), E::load(s, &rows, j, d)) }
            }
        }
    }
}

/// Sets which keys of the page the queries of a block see; returns whether any does not see all.
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
    keys: *const f32,
    values: *const f32,
    k_padded: usize,
    v_padded: usize,
    n: usize,
    /// Whether some query does not see all of them.
    masked: bool,
    cap: Option<f32>,
}

/// Brings the first `vectors` vectors of queries of a block up to date with a page.
#[inline(always)]
unsafe fn attend<S: Simd>(s: S, block: &Block, page: &Page, vectors: usize) {
    // The scores of a few keys beyond the last, whatever is in the place of these, are computed but not used.
    let keys = Product {
        left: page.keys,
        left_row: page.k_padded,
        left_column: 1,
        rows: page.n.next_multiple_of(S::ROWS),
        right: block.q,
        depth: page.k_padded,
        out: block.scores,
        rescale: None,
    };
    keys.run(s, vectors);
    // SAFETY: see `run`.
    unsafe { soften(s, block, page, vectors) };
    let values = Product {
        left: page.values,
        left_row: 1,
        left_column: page.v_padded,
        rows: page.v_padded,
        right: block.scores,
        depth: page.n,
        out: block.values,
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
            let before = s.load(block.max.add(column));
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
            let mut sum = s.splat(0.0);
            for j in 0..page.n {
                let power = math::exp2(s, s.sub(s.load(scores.add(j * width)), max));
                s.store(scores.add(j * width), power);
                sum = s.add(sum, power);
            }
            let rescale = math::exp2(s, s.sub(before, max));
            s.store(block.max.add(column), max);
            s.store(block.rescale.add(column), rescale);
            s.store(block.sum.add(column), s.fma(s.load(block.sum.add(column)), rescale, sum));
        }
    }
}

/// The product of two matrices, `rows` × some vectors of columns over `depth`; with `rescale`, which has a number for
/// each column, what `out` held is multiplied by it and the product is added.
///
/// Rows of `right` and `out` are `3 * LANES` apart. Only made where all of this is valid to read, and `out` to write.
#[derive(Clone, Copy)]
struct Product {
    /// Element `(i, k)` is at `i * left_row + k * left_column`.
    left: *const f32,
    left_row: usize,
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

    /// `R` rows from `i` on, in registers.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const NV: usize>(&self, s: S, i: usize) {
        let width = VECTORS * S::LANES;
        // SAFETY: see the type.
        unsafe {
            let left = self.left.add(i * self.left_row);
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
                    let x = s.splat(*left.add(i * self.left_row + k * self.left_column));
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

/// A [`Product`] of `NV` vectors of columns.
struct Columns<const NV: usize>(Product);

impl<const NV: usize> Kernel for Columns<NV> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.0.rows).step_by(S::ROWS) {
            if S::ROWS == 8 { self.0.rows::<S, 8, NV>(s, i) } else { self.0.rows::<S, 4, NV>(s, i) }
        }
    }
}
