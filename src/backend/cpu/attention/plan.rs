//! Cutting attention into work items, and running them.

use std::cmp::Reverse;
use std::ops::Range;

use super::page::Cache;
use super::partial::{Combine, Countdown, Partials, finish};
use super::scratch::AttentionScratch;
use super::{AttnParams, Queries, State, TILE, narrow, wide};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::kv::{KvLayout, PAGE_LEN, Span};
use crate::backend::cpu::simd::{self, Kernel, Simd};
use crate::{Error, Result};

/// Items that a span should have at least, where it is long enough: several for each thread of a large machine.
const SPAN_ITEMS: usize = 32;

/// Positions in a split at least: fewer would not be worth the combination. A multiple of [`PAGE_LEN`].
const SPLIT_LEN: usize = 2 * PAGE_LEN;

/// Packed queries from which the wide kernel is faster.
const WIDE_FROM: usize = 9;

/// Packed queries of each of some key-value heads of one span.
#[derive(Debug)]
struct Tile {
    span: usize,
    kv_heads: Range<usize>,
    first: usize,
    count: usize,
    /// The positions that at least one of the queries sees.
    positions: Range<usize>,
    splits: usize,
    /// Positions in a split: a multiple of [`PAGE_LEN`], counted from the page that the positions start in.
    split_len: usize,
    /// Where its partial results start.
    partials: usize,
    finished: Countdown,
}

impl Tile {
    fn split(&self, split: usize) -> Range<usize> {
        let first_page = self.positions.start / PAGE_LEN * PAGE_LEN;
        let start = first_page + split * self.split_len;
        start.max(self.positions.start)..start.saturating_add(self.split_len).min(self.positions.end)
    }
}

/// The work of an attention op over a batch, as items that may run in any order and at the same time. It depends on
/// the shapes only, and for each span on its own only: neither the number of threads nor what else is in the batch
/// changes a result.
#[derive(Debug)]
pub(crate) struct AttentionPlan<'a> {
    params: AttnParams,
    layout: KvLayout,
    spans: &'a [Span<'a>],
    tiles: Vec<Tile>,
    /// For each item its tile and split, longest first.
    items: Vec<(usize, usize)>,
    partials: Partials,
    /// Rows that the batch must have.
    rows: usize,
}

impl<'a> AttentionPlan<'a> {
    /// A plan, which holds for every layer with these parameters and this layout.
    ///
    /// # Errors
    /// `InvalidInput` where parameters and layout do not agree, or the block table of a span is too short.
    pub(crate) fn new(params: &AttnParams, layout: &KvLayout, spans: &'a [Span<'a>]) -> Result<Self> {
        let agree = params.kv_heads == layout.kv_heads
            && params.k_dim == layout.keys.dim
            && params.v_dim == layout.values.dim
            && params.heads > 0
            && params.heads.is_multiple_of(params.kv_heads);
        if !agree {
            return Err(Error::invalid_input(format!(
                "attention of {} heads over {} with keys of {} and values of {} numbers does not fit a cache of {} \
                 heads with {} and {}",
                params.heads,
                params.kv_heads,
                params.k_dim,
                params.v_dim,
                layout.kv_heads,
                layout.keys.dim,
                layout.values.dim
            )));
        }
        let mut plan = Self {
            params: *params,
            layout: *layout,
            spans,
            tiles: vec![],
            items: vec![],
            partials: Partials::new(0),
            rows: 0,
        };
        let mut partials = 0;
        for (index, span) in spans.iter().enumerate() {
            span.check(params.heads, params.k_dim.max(params.v_dim))?;
            plan.rows = plan.rows.max(span.first_row + span.rows);
            plan.add_tiles(index, &mut partials);
        }
        plan.partials = Partials::new(partials);
        for (index, tile) in plan.tiles.iter().enumerate() {
            plan.items.extend((0..tile.splits).map(|split| (index, split)));
        }
        // The longest first: what is left at the end, when threads run out of work, is then short.
        let cost = |&(tile, split): &(usize, usize)| {
            let tile = &plan.tiles[tile];
            tile.split(split).len() * tile.count * tile.kv_heads.len()
        };
        let mut items = std::mem::take(&mut plan.items);
        items.sort_by_key(|item| Reverse(cost(item)));
        plan.items = items;
        Ok(plan)
    }

    fn add_tiles(&mut self, index: usize, partials: &mut usize) {
        let (params, span) = (self.params, &self.spans[index]);
        let group = params.group();
        let packed = span.rows * group;
        for first in (0..packed).step_by(TILE) {
            let count = TILE.min(packed - first);
            let (first_row, last_row) = (first / group, (first + count - 1) / group);
            let positions = params.visible(span, first_row).start..params.visible(span, last_row).end;
            let pages = positions.end.div_ceil(PAGE_LEN) - positions.start / PAGE_LEN;
            let heads = if count < WIDE_FROM { heads_together(params.kv_heads, pages) } else { 1 };
            let wanted = SPAN_ITEMS.div_ceil(packed.div_ceil(TILE) * params.kv_heads / heads);
            let split_len = (pages.div_ceil(wanted) * PAGE_LEN).max(SPLIT_LEN);
            // A query that sees nothing still has an output.
            let splits = (pages * PAGE_LEN).div_ceil(split_len).max(1);
            for kv_head in (0..params.kv_heads).step_by(heads) {
                let offset = *partials;
                if splits > 1 {
                    *partials += splits * heads * count * Partials::stride(self.layout.values.padded);
                }
                self.tiles.push(Tile {
                    span: index,
                    kv_heads: kv_head..kv_head + heads,
                    first,
                    count,
                    positions: positions.clone(),
                    splits,
                    split_len,
                    partials: offset,
                    finished: Countdown::default(),
                });
            }
        }
    }

    /// How many items there are.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    /// Computes one item: `q` holds `[rows][heads * k_dim]` numbers and `out` `[rows][heads * v_dim]`, of which each
    /// item writes its own part (rows that are in no span are left alone). Every item is to be run once for each layer;
    /// when some were not, the plan is not to be used again. The first keys of the item after this one are asked for meanwhile.
    ///
    /// # Panics
    /// Where `q` or `out` is too short, or `item` is not below [`items`](Self::items).
    ///
    /// # Safety
    /// - Each page that holds a position which a query of the batch sees is valid for reads of
    ///   `layer_offset + layout.bytes()` bytes and initialized; all positions up to the last of each span have been
    ///   stored, and nobody writes to them meanwhile.
    /// - `out` is valid for writes, and nobody else accesses it until all items have been run, but for other items.
    /// - No item is run twice at the same time, and the items of another layer only when all of one have been run.
    pub(crate) unsafe fn run_item(
        &self,
        isa: Isa,
        layer_offset: usize,
        item: usize,
        q: &[f32],
        out: *mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        let (tile, split) = self.items[item];
        let tile = &self.tiles[tile];
        assert!(q.len() >= self.rows * self.params.heads * self.params.k_dim);
        assert!(out.len() >= self.rows * self.params.heads * self.params.v_dim);
        let span = &self.spans[tile.span];
        let (first, count, kv_head) = (tile.first, tile.count, tile.kv_heads.start);
        let queries = Queries { params: &self.params, span, kv_head, first, count, q };
        let cache = Cache { layout: &self.layout, layer_offset, span, kv_head };
        let next = self.first_keys(layer_offset, item + 1).unwrap_or(std::ptr::null());
        simd::run(isa, Item { plan: self, tile, split, queries, cache, next, out, scratch });
        if tile.splits > 1 && tile.finished.finished_last(tile.splits) {
            let v_padded = self.layout.values.padded;
            let stride = Partials::stride(v_padded);
            let all = tile.kv_heads.len() * count;
            for m in 0..all {
                let queries = Queries { kv_head: tile.kv_heads.start + m / count, ..queries };
                let [sum] = scratch.buffers([v_padded]);
                // SAFETY: all splits of the tile were finished before this, and the buffer is this thread's; the
                // output of the query is no other item's.
                unsafe {
                    let combine = Combine {
                        partials: &self.partials,
                        offset: tile.partials + m * stride,
                        stride: all * stride,
                        splits: tile.splits,
                        v_padded,
                        sum: std::slice::from_raw_parts_mut(sum, v_padded),
                        out: output(out, &queries, m % count),
                    };
                    simd::run(isa, combine);
                }
            }
        }
    }

    /// Where the first keys are that an item reads, if it reads any.
    fn first_keys(&self, layer_offset: usize, item: usize) -> Option<*const u8> {
        let &(tile, split) = self.items.get(item)?;
        let tile = &self.tiles[tile];
        let (span, positions) = (&self.spans[tile.span], tile.split(split));
        let cache = Cache { layout: &self.layout, layer_offset, span, kv_head: tile.kv_heads.start };
        (!positions.is_empty()).then(|| cache.keys_ahead(&positions))
    }
}

/// How many key-value heads an item should take together, which lie next to each other in `pages` pages of the cache: as many as
/// leave enough items for all threads, since memory is the faster the longer it is read on and on.
pub(super) fn heads_together(kv_heads: usize, pages: usize) -> usize {
    let splits = pages * PAGE_LEN / SPLIT_LEN;
    (1..=kv_heads).rev().find(|&n| kv_heads.is_multiple_of(n) && kv_heads / n * splits >= SPAN_ITEMS).unwrap_or(1)
}

/// The output of a packed query.
///
/// # Safety
/// `out` is valid for writes and long enough for the batch, and nobody else accesses the output of this query.
#[inline(always)]
unsafe fn output<'a>(out: *mut [f32], queries: &Queries, m: usize) -> &'a mut [f32] {
    let dim = queries.params.v_dim;
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(out.cast::<f32>().add(queries.batch_index(m) * dim), dim) }
}

/// An item as resolved by [`AttentionPlan::run_item`], whose caller's promises hold.
pub(super) struct Item<'a> {
    plan: &'a AttentionPlan<'a>,
    tile: &'a Tile,
    split: usize,
    pub(super) queries: Queries<'a>,
    pub(super) cache: Cache<'a>,
    /// Where the keys of the next item are, or any other address: to be asked for.
    pub(super) next: *const u8,
    out: *mut [f32],
    pub(super) scratch: &'a mut AttentionScratch,
}

impl Item<'_> {
    pub(super) fn positions(&self) -> Range<usize> {
        self.tile.split(self.split)
    }

    /// The key-value heads.
    pub(super) fn kv_heads(&self) -> Range<usize> {
        self.tile.kv_heads.clone()
    }

    /// Takes the final state of a query of a key-value head.
    #[inline(always)]
    pub(super) fn emit<S: Simd>(&self, s: S, kv_head: usize, m: usize, state: State) {
        let tile = self.tile;
        let queries = Queries { kv_head, ..self.queries };
        if tile.splits == 1 {
            // SAFETY: `run_item`'s caller promises that `out` is valid, its size was checked, and no other item has
            // this query.
            finish(s, state, unsafe { output(self.out, &queries, m) });
        } else {
            let heads = tile.kv_heads.len();
            let index = (self.split * heads + kv_head - tile.kv_heads.start) * tile.count + m;
            // SAFETY: only this item writes to the place of this query and split, and nobody reads before it is done.
            unsafe {
                self.plan.partials.write(tile.partials + index * Partials::stride(state.values.len()), state);
            }
        }
    }
}

impl Kernel for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.queries.count < WIDE_FROM { narrow::run(s, self) } else { wide::run(s, self) }
    }
}
