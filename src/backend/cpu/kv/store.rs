//! Storing new keys and values in the cache.

use super::{KvLayout, PAGE_LEN, Q8_BLOCK, Rows, Span};
use crate::Result;
use crate::backend::KvType;
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::simd::{self, Kernel, Simd, load_up_to};

/// Rows of a batch that one work item stores.
const ITEM_ROWS: usize = 16;

/// The largest finite number of half precision: what larger ones are stored as.
const F16_MAX: f32 = 65504.0;

/// Where the keys and values of the rows of a batch are to be stored, cut into items that may run in any order and at
/// the same time.
#[derive(Debug)]
pub(crate) struct StorePlan<'a> {
    layout: KvLayout,
    spans: &'a [Span<'a>],
    /// For each item its span and the first of its rows in the span.
    items: Vec<(usize, usize)>,
    /// Rows that the batch must have.
    rows: usize,
}

impl<'a> StorePlan<'a> {
    /// A plan, which holds for every layer with this layout.
    ///
    /// # Errors
    /// `InvalidInput` where the block table of a span is too short for its positions.
    pub(crate) fn new(layout: &KvLayout, spans: &'a [Span<'a>]) -> Result<Self> {
        let mut items = Vec::new();
        let mut rows = 0;
        for (index, span) in spans.iter().enumerate() {
            span.check(layout.kv_heads, layout.keys.dim.max(layout.values.dim))?;
            items.extend((0..span.rows).step_by(ITEM_ROWS).map(|row| (index, row)));
            rows = rows.max(span.first_row + span.rows);
        }
        Ok(Self { layout: *layout, spans, items, rows })
    }

    /// How many items there are.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    /// Stores the rows of one item: `k` holds `[rows][kv_heads * k_dim]` numbers and `v` `[rows][kv_heads * v_dim]`.
    /// Magnitudes that half precision cannot hold are stored as the largest that it can.
    ///
    /// # Panics
    /// Where `k` or `v` is too short, or `item` is not below [`items`](Self::items).
    ///
    /// # Safety
    /// Each page that holds positions of the spans is valid for reads and writes of `layer_offset + layout.bytes()`
    /// bytes; nothing else accesses the slots of these positions meanwhile, but for other items of this plan.
    pub(crate) unsafe fn run_item(&self, isa: Isa, layer_offset: usize, item: usize, k: &[f32], v: &[f32]) {
        let (span, row) = self.items[item];
        let span = &self.spans[span];
        let KvLayout { kv_type, kv_heads, keys, values } = self.layout;
        assert!(k.len() >= self.rows * kv_heads * keys.dim && v.len() >= self.rows * kv_heads * values.dim);
        for row in row..(row + ITEM_ROWS).min(span.rows) {
            let position = span.first_pos + row;
            // `check` has made sure that the page exists.
            let page = span.pages[position / PAGE_LEN];
            for (source, rows) in [(k, &keys), (v, &values)] {
                let columns = kv_heads * rows.dim;
                let source = &source[(span.first_row + row) * columns..][..columns];
                for (head, source) in source.chunks_exact(rows.dim).enumerate() {
                    let slot = position % PAGE_LEN;
                    // SAFETY: the offsets lie in the layer (`head` < `kv_heads`, `slot` < `PAGE_LEN`), and the layer
                    // in the page by the caller's promise.
                    unsafe {
                        let layer = page.add(layer_offset);
                        let (data, scales) = (layer.add(rows.row(head, slot)), layer.add(rows.scales(head, slot)));
                        simd::run(isa, StoreRow { kv_type, rows, source, data, scales: scales.cast() });
                    }
                }
            }
        }
    }
}

/// Stores one row of one head. Only made where `data` and `scales` are valid for writes of a row's elements and scales.
struct StoreRow<'a> {
    kv_type: KvType,
    rows: &'a Rows,
    source: &'a [f32],
    data: *mut u8,
    scales: *mut u16,
}

impl Kernel for StoreRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.kv_type {
            KvType::F32 => {
                for i in (0..self.rows.padded).step_by(S::LANES) {
                    // SAFETY: `data` is valid for writes of `padded` numbers, a multiple of the lanes.
                    unsafe { s.store(self.data.cast::<f32>().add(i), load(s, self.source, i)) }
                }
            }
            KvType::F16 => {
                for i in (0..self.rows.padded).step_by(S::LANES) {
                    let x = s.max(s.splat(-F16_MAX), s.min(s.splat(F16_MAX), load(s, self.source, i)));
                    // SAFETY: as above.
                    unsafe { s.store_f16(self.data.cast::<u16>().add(i), x) }
                }
            }
            KvType::Q8_0 => {
                for block in 0..self.rows.blocks {
                    // SAFETY: `data` is valid for writes of `blocks` blocks, and `scales` of as many numbers.
                    unsafe { store_block(s, self.source, block * Q8_BLOCK, self.data, self.scales.add(block)) }
                }
            }
        }
    }
}

/// The numbers from `i` on; zero beyond the end.
#[inline(always)]
fn load<S: Simd>(s: S, source: &[f32], i: usize) -> S::V {
    let left = source.len().saturating_sub(i);
    // SAFETY: no more than the numbers left of the slice are read, and nothing beyond its end.
    unsafe { load_up_to(s, source.as_ptr().add(i.min(source.len())), left) }
}

/// Quantizes the block that starts at number `i`, symmetrically: the largest magnitude becomes 127.
///
/// # Safety
/// `data.add(i)` is valid for writes of a block and `scale` of one number.
#[inline(always)]
unsafe fn store_block<S: Simd>(s: S, source: &[f32], i: usize, data: *mut u8, scale: *mut u16) {
    let mut largest = s.splat(0.0);
    for j in (i..i + Q8_BLOCK).step_by(S::LANES) {
        let x = load(s, source, j);
        largest = s.max(largest, s.max(x, s.sub(s.splat(0.0), x)));
    }
    let step = half::f16::from_f32((s.largest(largest) / 127.0).min(F16_MAX));
    // The numbers are divided by the scale as it will be read: rounded.
    let inverse = if step.to_f32() > 0.0 { 1.0 / step.to_f32() } else { 0.0 };
    for j in (i..i + Q8_BLOCK).step_by(S::LANES) {
        let x = s.mul(load(s, source, j), s.splat(inverse));
        let x = s.max(s.splat(-127.0), s.min(s.splat(127.0), x));
        // SAFETY: the caller's promise.
        unsafe { s.store_i8(data.add(j).cast(), x) }
    }
    // SAFETY: the caller's promise.
    unsafe { scale.write_unaligned(step.to_bits()) }
}
