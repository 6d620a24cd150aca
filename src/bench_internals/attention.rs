//! Attention, and storing its keys and values.

use super::named;
use crate::backend::cpu::attention::{AttentionPlan, AttentionScratch, AttnParams};
use crate::backend::cpu::kv::{self, KvLayout, PAGE_LEN, Span, StorePlan};
use crate::backend::cpu::pages::Pages;
use crate::backend::state::{PageId, PageStore};
use crate::simd::Isa;
use crate::{Error, KvType, Result};

/// The dimensions of an [`Attention`].
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The type of the cache.
    pub kv_type: KvType,
    /// Query heads: a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub dim: usize,
    /// Positions before the rows.
    pub past: usize,
    /// Queries, at consecutive positions.
    pub rows: usize,
    /// Layers that take turns, each with its own keys and values. If these exceed the caches, each
    /// turn reads memory, as a model does.
    pub layers: usize,
}

/// One sequence on one thread, to attend to its cache and to store into it repeatedly.
pub struct Attention {
    isa: Isa,
    shape: Shape,
    layout: KvLayout,
    /// The memory behind `table`.
    _pages: Pages,
    table: Vec<*mut u8>,
    /// Keys and values of all positions.
    k: Vec<f32>,
    v: Vec<f32>,
    /// Queries of the rows.
    q: Vec<f32>,
    out: Vec<f32>,
    scratch: AttentionScratch,
    /// The layer of the next turn. It is kept between calls because criterion measures in short
    /// pieces.
    turn: usize,
}

impl Attention {
    /// Creates a cache whose layers hold all positions. An unknown `isa` means the best one.
    ///
    /// # Errors
    /// If a number other than `past` is zero, the heads do not agree, or memory for the cache is
    /// lacking.
    pub fn new(isa: &str, shape: Shape) -> Result<Self> {
        let Shape { kv_type, heads, kv_heads, dim, past, rows, layers } = shape;
        let layout = KvLayout::for_layer(kv_type, kv_heads, dim, dim)?;
        let product = |numbers: &[usize]| numbers.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
        let positions = past.checked_add(rows).filter(|_| rows > 0 && layers > 0);
        let sizes = positions.and_then(|positions| {
            let page = product(&[layout.bytes(), layers])?;
            Some((positions, page, product(&[positions, kv_heads, dim])?, product(&[rows, heads, dim])?))
        });
        let (positions, page, stored, queried) =
            sizes.ok_or_else(|| Error::invalid_input(format!("{shape:?} is no shape of an attention")))?;

        let pages = Pages::new(page)?;
        let last =
            PageId::try_from(positions.div_ceil(PAGE_LEN)).map_err(|_| Error::invalid_input("too many pages"))?;
        let ids: Vec<PageId> = (0..last).collect();
        ids.iter().try_for_each(|&id| pages.allocate(id))?;
        let table = pages.addresses(&ids)?;
        let span = Span { first_row: 0, rows, first_pos: past, pages: &table };
        AttentionPlan::new(&shape.params(), &layout, &[span])?;

        let (k, v, q) = (numbers(stored, 1), numbers(stored, 2), numbers(queried, 3));
        let (out, scratch) = (vec![f32::NAN; queried], AttentionScratch::default());
        let all = Self { isa: named(isa), shape, layout, _pages: pages, table, k, v, q, out, scratch, turn: 0 };
        let plan = [Span { first_row: 0, rows: positions, first_pos: 0, pages: &all.table }];
        let plan = StorePlan::new(&layout, &plan)?;
        (0..layers).for_each(|layer| all.store_layer(&plan, layer));
        Ok(all)
    }

    /// Gives `measure` a function that attends in one layer, in the next layer at each call.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn attend(&mut self, measure: impl FnOnce(&mut dyn FnMut())) -> Result<()> {
        let Shape { past, rows, layers, .. } = self.shape;
        let spans = [Span { first_row: 0, rows, first_pos: past, pages: &self.table }];
        let plan = AttentionPlan::new(&self.shape.params(), &self.layout, &spans)?;
        let (q, out, scratch, turn) = (&self.q, &mut self.out, &mut self.scratch, &mut self.turn);
        // NaN until it is computed.
        out.fill(f32::NAN);
        let mut done = Ok(());
        measure(&mut || {
            let layer = next(turn, layers);
            let at = layer * self.layout.bytes();
            for item in 0..plan.items() {
                // SAFETY: `new` stored all positions of all layers. The pages and `out` belong to
                // this value, which is borrowed exclusively. Items run one by one, all of a layer
                // before the next.
                let ran = unsafe { plan.run_item(self.isa, at, item, q, &mut out[..], scratch) };
                done = std::mem::replace(&mut done, Ok(())).and(ran);
            }
        });
        done
    }

    /// Gives `measure` a function that stores keys and values of the rows in one layer, in the next
    /// layer at each call.
    ///
    /// # Errors
    /// None: [`new`](Self::new) has checked the sizes.
    pub fn store(&mut self, measure: impl FnOnce(&mut dyn FnMut())) -> Result<()> {
        let Shape { past, rows, layers, .. } = self.shape;
        let spans = [Span { first_row: past, rows, first_pos: past, pages: &self.table }];
        let plan = StorePlan::new(&self.layout, &spans)?;
        let mut turn = self.turn;
        measure(&mut || self.store_layer(&plan, next(&mut turn, layers)));
        self.turn = turn;
        Ok(())
    }

    /// The last result: the heads of each row.
    pub fn out(&self) -> &[f32] {
        &self.out
    }

    /// Bytes of one layer's keys and values. The last row sees all of them.
    pub fn bytes(&self) -> usize {
        let row = |rows: &kv::Rows| rows.row_bytes + 2 * rows.blocks;
        (self.shape.past + self.shape.rows) * self.shape.kv_heads * (row(&self.layout.keys) + row(&self.layout.values))
    }

    /// `plan` must be over `table`, and `layer` one of the layers.
    fn store_layer(&self, plan: &StorePlan<'_>, layer: usize) {
        for item in 0..plan.items() {
            // SAFETY: the pages belong to this value and have room for that layer. Nothing else
            // accesses them: all readers borrow this value exclusively.
            unsafe { plan.run_item(self.isa, layer * self.layout.bytes(), item, &self.k, &self.v) }
        }
    }
}

impl Shape {
    fn params(&self) -> AttnParams {
        AttnParams {
            heads: self.heads,
            kv_heads: self.kv_heads,
            k_dim: self.dim,
            v_dim: self.dim,
            scale: 1.0 / (self.dim as f32).sqrt(),
            window: None,
            softcap: None,
            causal: true,
        }
    }
}

/// The layer whose turn it is.
fn next(turn: &mut usize, layers: usize) -> usize {
    let layer = *turn;
    *turn = (layer + 1) % layers;
    layer
}

/// Numbers in -1 to 1 (Knuth's multiplicative hash), different ones for each `seed`.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let number = |i: usize| ((i as u32).wrapping_add(seed << 24).wrapping_mul(2_654_435_761) >> 8) as f32;
    (0..len).map(|i| number(i) / (1 << 23) as f32 - 1.0).collect()
}
