//! Reads keys and values from a page, as stored.

use std::ops::Range;

use crate::backend::cpu::kv::{KEY_GROUP, KvLayout, PAGE_LEN, Q8_BLOCK, Rows, Span};
use crate::simd::Simd;

/// A type of the cache's numbers.
pub(super) trait Element {
    /// Bytes of a number.
    const SIZE: usize;
    /// Whether blocks of numbers have scales.
    const SCALED: bool;

    /// Loads `LANES` numbers of row `j`, from number `d` on.
    ///
    /// # Safety
    /// `j` is below the number of rows that the tile was made for. `d` is a multiple of the lanes,
    /// below the padded dimension.
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V;

    /// Loads one number of each of `LANES` keys. `scales` holds their scales, if the type has any.
    ///
    /// # Safety
    /// `at` is valid for reads of `LANES` elements.
    unsafe fn load_keys<S: Simd>(s: S, at: *const u8, scales: S::V) -> S::V;
}

/// Consecutive rows of the values of one head in a page.
#[derive(Clone, Copy)]
pub(super) struct RowTile {
    pub(super) data: *const u8,
    row_bytes: usize,
    /// The scales of the blocks, as `f32`. Dangling for types without scales.
    scales: *const f32,
    blocks: usize,
}

/// Consecutive groups of the keys of one head in a page.
#[derive(Clone, Copy)]
pub(super) struct KeyTile {
    data: *const u8,
    /// The scales of the first blocks, in half precision. Those of the next blocks are `PAGE_LEN`
    /// further. Meaningless for types without scales.
    scales: *const u16,
    /// Numbers per key.
    pub(super) dim: usize,
}

impl KeyTile {
    /// The address of the first number of keys `j`, `j + 1` and so on, a key for each lane. `j`
    /// must be a multiple of the lanes.
    #[inline(always)]
    pub(super) fn keys<E: Element>(&self, j: usize) -> *const u8 {
        self.data.wrapping_add((j / KEY_GROUP * KEY_GROUP * self.dim + j % KEY_GROUP) * E::SIZE)
    }

    /// The scales of a block of those keys. Meaningless for types without scales.
    ///
    /// # Safety
    /// The tile was made for these keys and this block.
    #[inline(always)]
    pub(super) unsafe fn block_scales<S: Simd, E: Element>(&self, s: S, block: usize, j: usize) -> S::V {
        if !E::SCALED {
            return s.splat(1.0);
        }
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(self.scales.add(block * PAGE_LEN + j)) }
    }

    /// Numbers that share a scale; all numbers for types without scales.
    #[inline(always)]
    pub(super) fn block_len<E: Element>(&self) -> usize {
        if E::SCALED { Q8_BLOCK } else { self.dim }
    }
}

/// The distance between two numbers of a key, in bytes.
#[inline(always)]
pub(super) const fn next_number<E: Element>() -> usize {
    KEY_GROUP * E::SIZE
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Q8_0;

impl Element for F32 {
    const SIZE: usize = 4;
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(tile.data.add(j * tile.row_bytes).cast::<f32>().add(d)) }
    }

    #[inline(always)]
    unsafe fn load_keys<S: Simd>(s: S, at: *const u8, _: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(at.cast()) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(tile.data.add(j * tile.row_bytes).cast::<u16>().add(d)) }
    }

    #[inline(always)]
    unsafe fn load_keys<S: Simd>(s: S, at: *const u8, _: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(at.cast()) }
    }
}

impl Element for Q8_0 {
    const SIZE: usize = 1;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, tile: &RowTile, j: usize, d: usize) -> S::V {
        // SAFETY: the caller's promise; a vector lies within a block, as the lanes divide 16.
        unsafe {
            let x = s.load_i8(tile.data.add(j * tile.row_bytes).cast::<i8>().add(d));
            s.mul(x, s.splat(*tile.scales.add(j * tile.blocks + d / Q8_BLOCK)))
        }
    }

    #[inline(always)]
    unsafe fn load_keys<S: Simd>(s: S, at: *const u8, scales: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.mul(s.load_i8(at.cast()), scales) }
    }
}

/// The part of `positions` in the same page as its start.
pub(super) fn first_page(positions: &Range<usize>) -> Range<usize> {
    let page_end = (positions.start / PAGE_LEN + 1).saturating_mul(PAGE_LEN);
    positions.start..positions.end.min(page_end)
}

/// The layer of the cache that attention reads, for one span and head.
#[derive(Clone, Copy)]
pub(super) struct Cache<'a> {
    pub(super) layout: &'a KvLayout,
    pub(super) layer_offset: usize,
    pub(super) span: &'a Span<'a>,
    pub(super) kv_head: usize,
}

impl Cache<'_> {
    /// The room for scales that [`values`](Self::values) needs, in `f32`.
    pub(super) fn scales_len(rows: &Rows) -> usize {
        rows.blocks * PAGE_LEN
    }

    /// The keys of `positions`, which must lie in one page and start with a group.
    ///
    /// # Safety
    /// The page is readable (see [`super::AttentionPlan::run_item`]).
    #[inline(always)]
    pub(super) unsafe fn keys(&self, positions: &Range<usize>) -> KeyTile {
        let slot = positions.start % PAGE_LEN;
        debug_assert!(slot.is_multiple_of(KEY_GROUP));
        let keys = &self.layout.keys;
        // SAFETY: head and slot lie in the page by the caller's promise.
        unsafe {
            let layer = self.span.pages[positions.start / PAGE_LEN].add(self.layer_offset).cast_const();
            KeyTile {
                data: layer.add(keys.row(self.kv_head, slot)),
                scales: layer.add(keys.scales(self.kv_head)).cast::<u16>().wrapping_add(slot),
                dim: keys.dim,
            }
        }
    }

    /// The values of `positions`, which must lie in one page.
    ///
    /// # Safety
    /// The page holds the positions (see [`super::AttentionPlan::run_item`]). `scales` is valid for
    /// writes of [`scales_len`](Self::scales_len) numbers, which do not change while the tile is
    /// used.
    #[inline(always)]
    pub(super) unsafe fn values<S: Simd>(&self, s: S, positions: &Range<usize>, scales: *mut f32) -> RowTile {
        let rows = &self.layout.values;
        let page = self.span.pages[positions.start / PAGE_LEN];
        let slot = positions.start % PAGE_LEN;
        // SAFETY: the row of the slot lies in the page by the caller's promise, and so do the
        // scales of all slots. Their number is a multiple of the lanes, so reading up to the next
        // multiple stays among them and within `scales`.
        unsafe {
            let layer = page.add(self.layer_offset).cast_const();
            if rows.blocks > 0 {
                let stored: *const u16 = layer.add(rows.scales(self.kv_head)).cast();
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

    /// The address of the keys from the start of `positions` on, only for prefetching.
    #[inline(always)]
    pub(super) fn keys_ahead(&self, positions: &Range<usize>) -> *const u8 {
        let offset = self.layer_offset + self.layout.keys.row(self.kv_head, positions.start % PAGE_LEN);
        self.span.pages[positions.start / PAGE_LEN].wrapping_add(offset).cast_const()
    }
}
