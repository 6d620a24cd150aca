//! Reading keys and values from a page, as stored.

use std::ops::Range;

use crate::backend::cpu::kv::{KvLayout, PAGE_LEN, Q8_BLOCK, Rows, Span};
use crate::backend::cpu::simd::Simd;

/// How the numbers of the cache are stored.
pub(super) trait Element {
    /// Bytes of a number.
    const SIZE: usize;

    /// `LANES` numbers of row `j` from number `d` on.
    ///
    /// # Safety
    /// `j` is below the rows that the tile was made for, `d` a multiple of the lanes below the padded dimension.
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V;
}

/// Consecutive rows of one head in a page.
#[derive(Clone, Copy)]
pub(super) struct RowTile {
    pub(super) data: *const u8,
    pub(super) row_bytes: usize,
    /// The scales of the blocks, as `f32`; dangling for types without.
    scales: *const f32,
    blocks: usize,
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Q8_0;

impl Element for F32 {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(tile.data.add(j * tile.row_bytes).cast::<f32>().add(d)) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(tile.data.add(j * tile.row_bytes).cast::<u16>().add(d)) }
    }
}

impl Element for Q8_0 {
    const SIZE: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V {
        // SAFETY: the caller's promise; a vector lies within a block, as the lanes divide 16.
        unsafe {
            let x = s.load_i8(tile.data.add(j * tile.row_bytes).cast::<i8>().add(d));
            s.mul(x, s.splat(*tile.scales.add(j * tile.blocks + d / Q8_BLOCK)))
        }
    }
}

/// The part of `positions` that lies in the same page as its start.
pub(super) fn first_page(positions: Range<usize>) -> Range<usize> {
    let page_end = (positions.start / PAGE_LEN + 1).saturating_mul(PAGE_LEN);
    positions.start..positions.end.min(page_end)
}

/// The layer of the cache that attention reads.
#[derive(Clone, Copy)]
pub(super) struct Cache<'a> {
    pub(super) layout: &'a KvLayout,
    pub(super) layer_offset: usize,
    pub(super) span: &'a Span<'a>,
    pub(super) kv_head: usize,
}

impl Cache<'_> {
    /// Room for scales that [`keys`](Self::keys) or [`values`](Self::values) need, in `f32`.
    pub(super) fn scales_len(rows: &Rows) -> usize {
        rows.blocks * PAGE_LEN
    }

    /// The keys of `positions`, which lie in one page.
    ///
    /// # Safety
    /// The page holds the positions (see [`super::AttentionPlan::run_item`]), and `scales` is valid for writes of
    /// [`scales_len`](Self::scales_len) numbers, which stay as they are while the tile is used.
    #[inline(always)]
    pub(super) unsafe fn keys<S: Simd>(&self, s: S, positions: &Range<usize>, scales: *mut f32) -> RowTile {
        // SAFETY: the caller's promise.
        unsafe { self.tile(s, &self.layout.keys, positions, scales) }
    }

    /// The values of `positions`.
    ///
    /// # Safety
    /// As for [`keys`](Self::keys).
    #[inline(always)]
    pub(super) unsafe fn values<S: Simd>(&self, s: S, positions: &Range<usize>, scales: *mut f32) -> RowTile {
        // SAFETY: the caller's promise.
        unsafe { self.tile(s, &self.layout.values, positions, scales) }
    }

    /// Where the keys from the start of `positions` on are, only to prefetch them.
    #[inline(always)]
    pub(super) fn keys_ahead(&self, positions: &Range<usize>) -> *const u8 {
        let offset = self.layer_offset + self.layout.keys.row(self.kv_head, positions.start % PAGE_LEN);
        self.span.pages[positions.start / PAGE_LEN].wrapping_add(offset).cast_const()
    }

    /// # Safety
    /// As for [`keys`](Self::keys); `rows` is of the layout.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, s: S, rows: &Rows, positions: &Range<usize>, scales: *mut f32) -> RowTile {
        let page = self.span.pages[positions.start / PAGE_LEN];
        let slot = positions.start % PAGE_LEN;
        // SAFETY: the row of the slot lies in the page by the caller's promise. The scales of all slots do, which are
        // a multiple of the lanes, so that reading up to the next multiple stays among them and within `scales`.
        unsafe {
            let layer = page.add(self.layer_offset).cast_const();
            if rows.blocks > 0 {
                let stored: *const u16 = layer.add(rows.scales(self.kv_head, 0)).cast();
                let (from, to) = (slot * rows.blocks, (slot + positions.len()) * rows.blocks);
                for i in (from / S::LANES * S::LANES..to).step_by(S::LANES) {
                    s.store(scales.add(i), s.load_f16(stored.add(i)));
                }
            }
            RowTile {
                data: layer.add(rows.row(self.kv_head, slot)),
                row_bytes: rows.row_bytes,
                scales: scales.add(slot * rows.blocks),
                blocks: rows.blocks,
            }
        }
    }
}
