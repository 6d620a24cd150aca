//! Stores new keys and values in the cache.

use std::ops::Range;

use super::{KEY_GROUP, KvLayout, PAGE_LEN, Q8_BLOCK, Rows, Span};
use crate::backend::KvType;
use crate::simd::Isa;
use crate::simd::{self, Kernel, Simd, load_up_to, transpose};
use crate::{Result, memory};

/// The largest finite number of half precision. Larger numbers are stored as this.
const F16_MAX: f32 = 65504.0;

/// The places of a batch's keys and values in the cache, cut into items that may run in any order
/// and concurrently. An item is the positions of a group of keys, as far as a span has them.
#[derive(Debug)]
pub(crate) struct StorePlan<'a> {
    layout: KvLayout,
    spans: &'a [Span<'a>],
    /// For each item its span and rows.
    items: Vec<(usize, Range<usize>)>,
    /// Rows that the batch must have.
    rows: usize,
}

impl<'a> StorePlan<'a> {
    /// A plan, for every layer with this layout.
    ///
    /// # Errors
    /// `InvalidInput` if the block table of a span is too short for its positions; `OutOfMemory`.
    pub(crate) fn new(layout: &KvLayout, spans: &'a [Span<'a>]) -> Result<Self> {
        let mut items = Vec::new();
        let mut rows = 0;
        for (index, span) in spans.iter().enumerate() {
            span.check(layout.kv_heads, layout.keys.dim.max(layout.values.dim))?;
            let mut row = 0;
            while row < span.rows {
                let end = (row + KEY_GROUP - (span.first_pos + row) % KEY_GROUP).min(span.rows);
                memory::push(&mut items, (index, row..end), "what a pass stores in the cache")?;
                row = end;
            }
            rows = rows.max(span.first_row + span.rows);
        }
        Ok(Self { layout: *layout, spans, items, rows })
    }

    /// The number of items.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    /// Stores the rows of one item: `k` holds `[rows][kv_heads * k_dim]` numbers and `v`
    /// `[rows][kv_heads * v_dim]`. Magnitudes beyond half precision are stored as its largest
    /// number.
    ///
    /// # Panics
    /// If `k` or `v` is too short, or `item` is not below [`items`](Self::items).
    ///
    /// # Safety
    /// Each page that holds positions of the spans is valid for reads and writes of
    /// `layer_offset + layout.bytes()` bytes. Meanwhile, only other items of this plan access the
    /// slots of these positions.
    pub(crate) unsafe fn run_item(&self, isa: Isa, layer_offset: usize, item: usize, k: &[f32], v: &[f32]) {
        let (span, rows) = &self.items[item];
        let span = &self.spans[*span];
        let KvLayout { kv_type, kv_heads, keys, values } = self.layout;
        assert!(k.len() >= self.rows * kv_heads * keys.dim && v.len() >= self.rows * kv_heads * values.dim);
        let position = span.first_pos + rows.start;
        let (slot, lane) = (position % PAGE_LEN, position % KEY_GROUP);
        let (first, count) = (span.first_row + rows.start, rows.len());
        // SAFETY: `check` ensured that the page exists. The offsets lie in the layer (heads are
        // below `kv_heads`, slots below `PAGE_LEN`), and the layer lies in the page by the caller's
        // promise. No other item has this group of keys.
        unsafe {
            let layer = span.pages[position / PAGE_LEN].add(layer_offset);
            for head in 0..kv_heads {
                let stride = kv_heads * keys.dim;
                let source = &k[first * stride + head * keys.dim..];
                let data = layer.add(keys.row(head, slot - lane));
                let scales = layer.add(keys.scales(head)).cast::<u16>().add(slot);
                simd::run(isa, StoreKeys { kv_type, dim: keys.dim, source, stride, lane, count, data, scales });
            }
            for row in 0..count {
                let source = &v[(first + row) * kv_heads * values.dim..][..kv_heads * values.dim];
                for (head, source) in source.chunks_exact(values.dim).enumerate() {
                    let data = layer.add(values.row(head, slot + row));
                    let scales = layer.add(values.scales(head)).cast::<u16>().add((slot + row) * values.blocks);
                    simd::run(isa, StoreRow { kv_type, rows: &values, source, data, scales });
                }
            }
        }
    }
}

/// Stores some keys of a group. Only constructed if `data` is valid for writes of the group,
/// `scales` for writes of one number for each key in each block, and `source` has `count` rows of
/// `dim` numbers.
struct StoreKeys<'a> {
    kv_type: KvType,
    dim: usize,
    source: &'a [f32],
    /// Numbers from one row to the next.
    stride: usize,
    /// The first key's place in the group, and the number of keys.
    lane: usize,
    count: usize,
    /// The first element of the group.
    data: *mut u8,
    /// The scale of the first key's first block. Those of the next blocks are `PAGE_LEN` numbers
    /// apart.
    scales: *mut u16,
}

impl<S: Simd> Kernel<S> for StoreKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        match self.kv_type {
            KvType::F32 => self.store::<S, f32>(s),
            KvType::F16 => self.store::<S, u16>(s),
            KvType::Q8_0 => self.store::<S, i8>(s),
        }
    }
}

impl StoreKeys<'_> {
    #[inline(always)]
    fn store<S: Simd, E: Element>(self, s: S) {
        // A block of numbers of each key: as given, and transposed.
        let mut rows = [0.0; KEY_GROUP * Q8_BLOCK];
        let mut columns = [0.0; Q8_BLOCK * KEY_GROUP];
        for (block, from) in (0..self.dim).step_by(Q8_BLOCK).enumerate() {
            let len = Q8_BLOCK.min(self.dim - from);
            // SAFETY: see the type; the arrays have room for a block of all keys of a group, whose
            // number the lanes divide.
            unsafe {
                let data = self.data.cast::<E>().add(from * KEY_GROUP);
                for key in 0..self.count {
                    let source = &self.source[key * self.stride + from..][..len];
                    let scale = self.scales.wrapping_add(block * PAGE_LEN + key);
                    let row = rows.as_mut_ptr().add(key * Q8_BLOCK);
                    E::scaled(s, source, scale, row);
                }
                if self.count == KEY_GROUP {
                    for key in (0..KEY_GROUP).step_by(S::LANES) {
                        for d in (0..len).step_by(S::LANES) {
                            let from = rows.as_ptr().add(key * Q8_BLOCK + d);
                            transpose(s, from, Q8_BLOCK, columns.as_mut_ptr().add(d * KEY_GROUP + key), KEY_GROUP);
                        }
                    }
                    for i in (0..len * KEY_GROUP).step_by(S::LANES) {
                        E::store(s, data.add(i), s.load(columns.as_ptr().add(i)));
                    }
                } else {
                    for key in 0..self.count {
                        let mut elements = [E::default(); Q8_BLOCK];
                        for d in (0..Q8_BLOCK).step_by(S::LANES) {
                            E::store(s, elements.as_mut_ptr().add(d), s.load(rows.as_ptr().add(key * Q8_BLOCK + d)));
                        }
                        for (d, element) in elements.into_iter().enumerate().take(len) {
                            data.add(d * KEY_GROUP + self.lane + key).write(element);
                        }
                    }
                }
            }
        }
    }
}

/// Stores one row of one head. Only constructed if `data` and `scales` are valid for writes of a
/// row's elements and scales.
struct StoreRow<'a> {
    kv_type: KvType,
    rows: &'a Rows,
    source: &'a [f32],
    data: *mut u8,
    scales: *mut u16,
}

impl<S: Simd> Kernel<S> for StoreRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        match self.kv_type {
            KvType::F32 => self.store::<S, f32>(s),
            KvType::F16 => self.store::<S, u16>(s),
            KvType::Q8_0 => self.store::<S, i8>(s),
        }
    }
}

impl StoreRow<'_> {
    #[inline(always)]
    fn store<S: Simd, E: Element>(self, s: S) {
        let mut row = [0.0; Q8_BLOCK];
        for (block, from) in (0..self.rows.padded).step_by(Q8_BLOCK).enumerate() {
            let (start, end) = (from.min(self.source.len()), (from + Q8_BLOCK).min(self.source.len()));
            // SAFETY: `data` is valid for writes of `padded` numbers, a multiple of the lanes, and
            // `scales` for one number per block, if there are scales.
            unsafe {
                E::scaled(s, &self.source[start..end], self.scales.wrapping_add(block), row.as_mut_ptr());
                for d in (0..Q8_BLOCK.min(self.rows.padded - from)).step_by(S::LANES) {
                    E::store(s, self.data.cast::<E>().add(from + d), s.load(row.as_ptr().add(d)));
                }
            }
        }
    }
}

/// The stored form of a number.
trait Element: Copy + Default {
    /// Writes a block of numbers in the form to be stored, with zeros beyond the end of `source`,
    /// and their scale, if there is one.
    ///
    /// # Safety
    /// `row` is valid for writes of a block, and `scale` of a number for types with scales.
    unsafe fn scaled<S: Simd>(s: S, source: &[f32], scale: *mut u16, row: *mut f32);

    /// # Safety
    /// `to` is valid for writes of `LANES` elements.
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V);
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn scaled<S: Simd>(s: S, source: &[f32], _: *mut u16, row: *mut f32) {
        for i in (0..Q8_BLOCK).step_by(S::LANES) {
            // SAFETY: the caller's promise.
            unsafe { s.store(row.add(i), load(s, source, i)) }
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store(to, v) }
    }
}

/// Half precision.
impl Element for u16 {
    #[inline(always)]
    unsafe fn scaled<S: Simd>(s: S, source: &[f32], _: *mut u16, row: *mut f32) {
        for i in (0..Q8_BLOCK).step_by(S::LANES) {
            let x = s.max(s.splat(-F16_MAX), s.min(s.splat(F16_MAX), load(s, source, i)));
            // SAFETY: the caller's promise.
            unsafe { s.store(row.add(i), x) }
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f16(to, v) }
    }
}

/// Quantizes a block symmetrically: the largest magnitude becomes 127.
impl Element for i8 {
    #[inline(always)]
    unsafe fn scaled<S: Simd>(s: S, source: &[f32], scale: *mut u16, row: *mut f32) {
        let mut largest = s.splat(0.0);
        for i in (0..Q8_BLOCK).step_by(S::LANES) {
            let x = load(s, source, i);
            largest = s.max(largest, s.max(x, s.sub(s.splat(0.0), x)));
        }
        let step = half::f16::from_f32((s.largest(largest) / 127.0).min(F16_MAX));
        // Divides by the scale as it will be read: rounded.
        let inverse = if step.to_f32() > 0.0 { 1.0 / step.to_f32() } else { 0.0 };
        for i in (0..Q8_BLOCK).step_by(S::LANES) {
            let x = s.mul(load(s, source, i), s.splat(inverse));
            let x = s.max(s.splat(-127.0), s.min(s.splat(127.0), x));
            // SAFETY: the caller's promise.
            unsafe { s.store(row.add(i), x) }
        }
        // SAFETY: the caller's promise.
        unsafe { scale.write_unaligned(step.to_bits()) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_i8(to, v) }
    }
}

/// Loads the numbers from `i` on, and zeros beyond the end.
#[inline(always)]
fn load<S: Simd>(s: S, source: &[f32], i: usize) -> S::V {
    let left = source.len().saturating_sub(i);
    // SAFETY: reads at most the rest of the slice, and nothing beyond its end.
    unsafe { load_up_to(s, source.as_ptr().add(i.min(source.len())), left) }
}
