//! Cuts attention into work items, and runs them.

use std::cmp::Reverse;
use std::ops::Range;

use super::page::Cache;
use super::partial::{Combine, Countdown, Partials, finish};
use super::scratch::AttentionScratch;
use super::{AttnParams, Queries, State, TILE, narrow, wide};
use crate::backend::cpu::kv::{KEY_GROUP, KvLayout, PAGE_LEN, Span};
use crate::simd::Isa;
use crate::simd::{self, Kernel, Simd};
use crate::{Error, Result, memory};

/// The fewest items of a span that is long enough: several for each thread of a large machine.
const SPAN_ITEMS: usize = 32;

/// The fewest positions of a segment: fewer would not be worth the combination. A power of two and
/// a multiple of [`PAGE_LEN`].
const SEGMENT: usize = 2 * PAGE_LEN;

/// The fewest segments of equal length: the second half of any context has this many. A power of
/// two.
const SEGMENTS: usize = 32;

/// The number of packed queries from which the wide kernel is faster.
const WIDE_FROM: usize = 9;

/// Numbers that a span may use for the states of shared tiles, besides a quarter of what it reads.
const SPAN_PARTIALS: usize = 1 << 18;

/// The end of the segment of a position.
///
/// Sums begin anew at segments, so segments depend on nothing but the position. They grow with it,
/// so that the longest context has some hundred.
pub(super) fn segment_end(position: usize) -> usize {
    let len = (1 << position.max(1).ilog2()) / SEGMENTS;
    let len = len.max(SEGMENT);
    (position / len * len).saturating_add(len)
}

/// Cuts `positions` at the ends of segments.
fn segments(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let next = move |before: &Range<usize>| {
        (before.end < positions.end).then(|| before.end..segment_end(before.end).min(positions.end))
    };
    std::iter::successors(next(&(positions.start..positions.start)), next)
}

/// Packed queries of each of some key-value heads of one span.
#[derive(Debug)]
struct Tile {
    span: usize,
    kv_heads: Range<usize>,
    first: usize,
    count: usize,
    /// The segments of the positions that at least one of the queries sees.
    segments: usize,
    /// The number of items.
    items: usize,
    /// The start of the states over segments, if there are several items.
    partials: usize,
    finished: Countdown,
}

/// A part of a tile: whole segments.
#[derive(Debug, Clone)]
struct Part {
    tile: usize,
    /// The positions, from the start of a group of keys on.
    positions: Range<usize>,
    /// The number of the first segment in the tile.
    first_segment: usize,
}

/// The work of an attention op over a batch, as items that may run in any order and concurrently.
/// Cutting does not change results: see the [module](super).
#[derive(Debug)]
pub(crate) struct AttentionPlan<'a> {
    params: AttnParams,
    layout: KvLayout,
    spans: &'a [Span<'a>],
    tiles: Vec<Tile>,
    /// Longest first.
    items: Vec<Part>,
    partials: Partials,
    /// Rows that the batch must have.
    rows: usize,
}

impl<'a> AttentionPlan<'a> {
    /// A plan, for every layer with these parameters and this layout.
    ///
    /// # Errors
    /// `InvalidInput` if parameters and layout do not agree, or the block table of a span is too
    /// short; `OutOfMemory`.
    pub(crate) fn new(params: &AttnParams, layout: &KvLayout, spans: &'a [Span<'a>]) -> Result<Self> {
        Self::with_items(params, layout, spans, SPAN_ITEMS)
    }

    /// A plan with about `span_items` items per span.
    pub(super) fn with_items(
        params: &AttnParams,
        layout: &KvLayout,
        spans: &'a [Span<'a>],
        span_items: usize,
    ) -> Result<Self> {
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
        let partials = Partials::new(0)?;
        let (tiles, items) = (vec![], vec![]);
        let mut plan = Self { params: *params, layout: *layout, spans, tiles, items, partials, rows: 0 };
        let mut partials = 0;
        for (index, span) in spans.iter().enumerate() {
            span.check(params.heads, params.k_dim.max(params.v_dim))?;
            plan.rows = plan.rows.max(span.first_row + span.rows);
            plan.add_tiles(index, span_items, &mut partials)?;
        }
        plan.partials = Partials::new(partials)?;
        // The longest first, so that the remaining items are short when threads run out of work.
        let Self { items, tiles, .. } = &mut plan;
        items.sort_unstable_by_key(|part| {
            let tile = &tiles[part.tile];
            (Reverse(part.positions.len() * tile.count * tile.kv_heads.len()), part.tile, part.first_segment)
        });
        Ok(plan)
    }

    fn add_tiles(&mut self, index: usize, span_items: usize, partials: &mut usize) -> Result<()> {
        const WHAT: &str = "a plan of attention";
        let (params, span) = (self.params, &self.spans[index]);
        let group = params.group();
        let packed = span.rows * group;
        let stride = Partials::stride(self.layout.values.padded);
        for first in (0..packed).step_by(TILE) {
            let count = TILE.min(packed - first);
            let (first_row, last_row) = (first / group, (first + count - 1) / group);
            let positions = params.visible(span, first_row).start..params.visible(span, last_row).end;
            let positions = positions.start / KEY_GROUP * KEY_GROUP..positions.end;
            // A query that sees nothing still has an output.
            let in_tile = segments(positions.clone()).count().max(1);
            let heads = if count < WIDE_FROM { heads_together(params.kv_heads, in_tile, span_items) } else { 1 };
            let wanted = span_items.div_ceil(packed.div_ceil(TILE) * params.kv_heads / heads);
            let read = positions.len() * params.kv_heads * (self.layout.keys.padded + self.layout.values.padded);
            let states = packed.saturating_mul(params.kv_heads).saturating_mul(in_tile).saturating_mul(stride);
            let wanted = if states <= SPAN_PARTIALS.saturating_add(read / 4) { wanted.min(in_tile) } else { 1 };
            for kv_head in (0..params.kv_heads).step_by(heads) {
                let tile = self.tiles.len();
                let mut items = 0;
                let mut part = Part { tile, positions: positions.start..positions.start, first_segment: 0 };
                for (i, segment) in segments(positions.clone()).enumerate() {
                    part.positions.end = segment.end;
                    let done = segment.end - positions.start;
                    // Ends an item as soon as the items have their share of the positions so far.
                    if i + 1 == in_tile || done * wanted >= (items + 1) * positions.len() {
                        memory::push(&mut self.items, part.clone(), WHAT)?;
                        items += 1;
                        part = Part { tile, positions: segment.end..segment.end, first_segment: i + 1 };
                    }
                }
                if items == 0 {
                    memory::push(&mut self.items, part, WHAT)?;
                    items = 1;
                }
                let tile = Tile {
                    span: index,
                    kv_heads: kv_head..kv_head + heads,
                    first,
                    count,
                    segments: in_tile,
                    items,
                    partials: *partials,
                    finished: Countdown::default(),
                };
                memory::push(&mut self.tiles, tile, WHAT)?;
                if items > 1 {
                    *partials += in_tile * heads * count * stride;
                }
            }
        }
        Ok(())
    }

    /// The number of items.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    /// Computes one item. `q` holds `[rows][heads * k_dim]` numbers and `out`
    /// `[rows][heads * v_dim]`. Each item writes its own part of `out`; rows outside all spans are
    /// left alone. Run every item once per layer, and do not use the plan again if some were not
    /// run. Meanwhile this prefetches the first keys of the next item.
    ///
    /// # Errors
    /// `OutOfMemory`.
    ///
    /// # Panics
    /// If `q` or `out` is too short, or `item` is not below [`items`](Self::items).
    ///
    /// # Safety
    /// - Each page that holds a position which a query of the batch sees is valid for reads of
    ///   `layer_offset + layout.bytes()` bytes and initialized. All positions up to the last of
    ///   each span have been stored, and nothing writes to them meanwhile.
    /// - `out` is valid for writes, and only other items access it until all items have been run.
    /// - No item runs twice at the same time, and items of another layer run only when all items of
    ///   one have been run.
    pub(crate) unsafe fn run_item(
        &self,
        isa: Isa,
        layer_offset: usize,
        item: usize,
        q: &[f32],
        out: *mut [f32],
        scratch: &mut AttentionScratch,
    ) -> Result<()> {
        let part = &self.items[item];
        let tile = &self.tiles[part.tile];
        assert!(q.len() >= self.rows * self.params.heads * self.params.k_dim);
        assert!(out.len() >= self.rows * self.params.heads * self.params.v_dim);
        let span = &self.spans[tile.span];
        let (first, count, kv_head) = (tile.first, tile.count, tile.kv_heads.start);
        let queries = Queries { params: &self.params, span, kv_head, first, count, q };
        let cache = Cache { layout: &self.layout, layer_offset, span, kv_head };
        let next = self.first_keys(layer_offset, item + 1).unwrap_or(std::ptr::null());
        simd::run(isa, Item { plan: self, tile, part, queries, cache, next, out, scratch })?;
        if tile.items > 1 && tile.finished.finished_last(tile.items) {
            let v_padded = self.layout.values.padded;
            let stride = Partials::stride(v_padded);
            let all = tile.kv_heads.len() * count;
            let [values] = scratch.buffers([v_padded])?;
            for m in 0..all {
                let queries = Queries { kv_head: tile.kv_heads.start + m / count, ..queries };
                // SAFETY: all items of the tile have finished, and the buffer belongs to this
                // thread. No other item has the output of the query.
                unsafe {
                    let combine = Combine {
                        partials: &self.partials,
                        offset: tile.partials + m * stride,
                        stride: all * stride,
                        segments: tile.segments,
                        v_padded,
                        values,
                        out: output(out, &queries, m % count),
                    };
                    simd::run(isa, combine);
                }
            }
        }
        Ok(())
    }

    /// The address of the first keys that an item reads, if it reads any.
    fn first_keys(&self, layer_offset: usize, item: usize) -> Option<*const u8> {
        let Part { tile, positions, .. } = self.items.get(item)?;
        let tile = &self.tiles[*tile];
        let span = &self.spans[tile.span];
        let cache = Cache { layout: &self.layout, layer_offset, span, kv_head: tile.kv_heads.start };
        (!positions.is_empty()).then(|| cache.keys_ahead(positions))
    }
}

/// The number of key-value heads per item. Heads lie next to each other in the pages of the
/// `segments`, and longer sequential reads are faster. So this is the most that leaves enough
/// items.
fn heads_together(kv_heads: usize, segments: usize, items: usize) -> usize {
    (1..=kv_heads).rev().find(|&n| kv_heads.is_multiple_of(n) && kv_heads / n * segments >= items).unwrap_or(1)
}

/// The output of a packed query.
///
/// # Safety
/// `out` is valid for writes and long enough for the batch, and nothing else accesses the output
/// of this query.
#[inline(always)]
unsafe fn output<'a>(out: *mut [f32], queries: &Queries, m: usize) -> &'a mut [f32] {
    let dim = queries.params.v_dim;
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(out.cast::<f32>().add(queries.batch_index(m) * dim), dim) }
}

/// An item, resolved by [`AttentionPlan::run_item`], whose caller's promises hold.
pub(super) struct Item<'a> {
    plan: &'a AttentionPlan<'a>,
    tile: &'a Tile,
    part: &'a Part,
    pub(super) queries: Queries<'a>,
    pub(super) cache: Cache<'a>,
    /// The address of the next item's keys, to prefetch. Any address is allowed.
    pub(super) next: *const u8,
    out: *mut [f32],
    pub(super) scratch: &'a mut AttentionScratch,
}

impl Item<'_> {
    pub(super) fn positions(&self) -> Range<usize> {
        self.part.positions.clone()
    }

    /// The number of its first segment in the tile.
    pub(super) fn first_segment(&self) -> usize {
        self.part.first_segment
    }

    /// Whether to join the states of several segments here, because this item has all of them.
    pub(super) fn folds(&self) -> bool {
        self.tile.items == 1 && self.tile.segments > 1
    }

    /// The key-value heads of the item.
    pub(super) fn kv_heads(&self) -> Range<usize> {
        self.tile.kv_heads.clone()
    }

    /// Accepts the state of a query of a key-value head over a segment, or over all segments if
    /// this item has them all.
    #[inline(always)]
    pub(super) fn emit<S: Simd>(&self, s: S, segment: usize, kv_head: usize, m: usize, state: State) {
        let tile = self.tile;
        let queries = Queries { kv_head, ..self.queries };
        if tile.items == 1 {
            // SAFETY: `run_item`'s caller promises that `out` is valid, its size was checked, and
            // no other item has this query.
            finish(s, state, unsafe { output(self.out, &queries, m) });
        } else {
            let heads = tile.kv_heads.len();
            let index = (segment * heads + kv_head - tile.kv_heads.start) * tile.count + m;
            // SAFETY: only this item writes to the place of this query and segment, and nothing
            // reads it before the item is done.
            unsafe {
                self.plan.partials.write(tile.partials + index * Partials::stride(state.values.len()), state);
            }
        }
    }
}

impl<S: Simd> Kernel<S> for Item<'_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self, s: S) -> Result<()> {
        if self.queries.count < WIDE_FROM { narrow::run(s, self) } else { wide::run(s, self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvType;

    #[test]
    fn segments_cover_all_positions_once_and_grow() {
        assert_eq!([0, 255, 256, 8191, 16383].map(segment_end), [128, 256, 384, 8192, 16384]);
        assert_eq!([16384, 16896, 131_071, 131_072].map(segment_end), [16896, 17408, 131_072, 135_168]);
        assert_eq!(segment_end(usize::MAX), usize::MAX);
        for positions in [0..0, 5..5, 0..1, 16..256, 100..257, 300..40_000] {
            let parts: Vec<_> = segments(positions.clone()).collect();
            assert_eq!(parts.iter().map(Range::len).sum::<usize>(), positions.len());
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start), "{parts:?}");
            for part in &parts {
                assert!(part.end == positions.end || part.end.is_multiple_of(PAGE_LEN));
                assert!(part.clone().all(|position| segment_end(position) == segment_end(part.start)));
            }
        }
        assert!(segments(0..1 << 20).count() < 300);
    }

    /// With enough positions, an item takes several key-value heads.
    #[test]
    fn items_take_heads_together() {
        assert_eq!([1, 2, 4, 8, 32, 1000].map(|segments| heads_together(16, segments, 32)), [1, 1, 2, 4, 16, 16]);
        assert_eq!([8, 16, 32].map(|segments| heads_together(6, segments, 32)), [1, 3, 6]);
    }

    /// States take a bounded amount of memory, and a part of what is read.
    #[test]
    fn partial_states_are_bounded() {
        let check = |heads: usize, kv_heads: usize, rows: usize, past: usize| {
            let layout = KvLayout::for_layer(KvType::F16, kv_heads, 128, 128).unwrap();
            let (window, softcap) = (None, None);
            let p = AttnParams { heads, kv_heads, k_dim: 128, v_dim: 128, scale: 1.0, window, softcap, causal: true };
            let pages = vec![std::ptr::null_mut(); (past + rows).div_ceil(PAGE_LEN)];
            let spans = [Span { first_row: 0, rows, first_pos: past, pages: &pages }];
            let plan = AttentionPlan::new(&p, &layout, &spans).unwrap();
            assert!(plan.partials.len() <= SPAN_PARTIALS + (past + rows) * kv_heads * 256 / 4);
            plan.items()
        };
        // Many threads share decoding in a long context, and also a short prompt there.
        for (heads, kv_heads, rows) in [(32, 8, 1), (9, 3, 1), (8, 1, 1), (64, 1, 1), (8, 1, 12), (32, 8, 30)] {
            let items = check(heads, kv_heads, rows, 40_000);
            assert!((SPAN_ITEMS..3 * SPAN_ITEMS).contains(&items), "{heads} {kv_heads} {rows}: {items}");
        }
        // A long prompt has many queries.
        check(8, 1, 256, 130_000);
        check(1, 1, 4096, 1_000_000);
    }
}
