//! One forward pass: the team walks the steps of the plan.

use super::CpuBackend;
use super::attention::{AttentionPlan, AttnParams};
use super::kv::{KvLayout, Span, StorePlan};
use super::matmul::{self, Input, Matrix, OutPtr, QuantRows, ROW_STEP, STREAM_ROWS};
use super::ops;
use super::pages::Pages;
use super::places::{Layout, Place};
use super::plan::{MatMul, RowOp, Step};
use super::team::{Items, Team};
use super::weights::Held;
use super::workspace::{Floats, Member, Workspace};
use crate::backend::{Batch, Canceller, Wanted};
use crate::program::Precision;
use crate::program::{AttentionInfo, Buf, RowKind, Weight};
use crate::tokenizer::TokenId;
use crate::{Error, ErrorKind, Result, memory};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The most rows of a chain of row operations that a thread takes at once: as many as have their
/// scales of a group of activations in one cache line. Fewer rows are cut into one item per thread,
/// since each transfer of that line between threads takes time.
const ROW_ITEM: usize = 16;
/// Bytes of weights that a thread prefetches while it waits. They fit into a second-level cache,
/// and more would not arrive in time.
const ASK_WAITING: usize = 64 << 10;

/// Runs the program of `backend` on `batch`; the logits are then in the workspace.
pub(super) fn run(
    backend: &CpuBackend,
    batch: &Batch<'_>,
    cancel: &Canceller,
    workspace: &mut Workspace,
) -> Result<()> {
    let (rows, outputs) = (batch.tokens(), batch.outputs());
    workspace.reserve(&backend.program, &backend.plan, rows, outputs, backend.team.threads())?;
    workspace.place(backend, batch)?;
    if let Some(first) = workspace.buffers.first_mut() {
        let place = first.as_mut_slice().get_mut(..batch.given.len());
        let place = place.ok_or_else(|| Error::invalid_input("more rows than tokens were given to a pass"))?;
        place.copy_from_slice(batch.given);
    }

    let mut tokens: Vec<TokenId> = memory::with_room(rows, WHAT)?;
    batch.spans.iter().for_each(|span| tokens.extend_from_slice(span.tokens));
    let tables = page_tables(backend, batch)?;
    let spans = memory::try_collected(tables.iter().map(|tables| spans(batch, tables)), WHAT)?;

    let held = backend.weights.hold();
    let Workspace { buffers, quant, angles, wanted, members, progress } = workspace;
    let shared = buffers.iter_mut().zip(&backend.program.buffers).map(|(b, info)| SharedBuf {
        start: b.as_mut_ptr(),
        len: b.as_slice().len(),
        columns: info.columns,
    });
    let pass = Pass {
        backend,
        held: &held,
        rows,
        outputs,
        tokens: &tokens,
        buffers: memory::collected(shared, WHAT)?,
        quant,
        angles,
        wanted,
        kv: KvPlans::new(backend, &spans)?,
        #[cfg(test)]
        spans: &spans,
    };
    let steps = pass.steps()?;
    let items: Vec<Items> = memory::collected(steps.iter().map(Work::items), WHAT)?;
    let mut next = None;
    let mut following = memory::filled(steps.len(), None, WHAT)?;
    for (i, step) in steps.iter().enumerate().rev() {
        following[i] = next;
        if let Work::MatMuls(products) = step
            && products.streams
        {
            next = Some(products);
        }
    }
    // The first error of any item. Later steps do not run.
    let failed = Mutex::new(None);
    let stop = || cancel.is_cancelled() || failed.lock().is_ok_and(|f| f.is_some());
    members.iter_mut().for_each(|m| m.get_mut().unwrap_or_else(PoisonError::into_inner).step = None);
    let run = |member: usize, step: usize, claimed: Range<usize>| {
        let (Some(work), Some(place)) = (steps.get(step), members.get(member)) else { return };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.step.replace(step) != Some(step) {
            place.matmul.forget();
        }
        let following = following.get(step).copied().flatten();
        if let Err(e) = pass.run_items(work, claimed, following, member, &mut place) {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
    };
    // While others work, a waiting member prefetches the weights that come next.
    let idle = |member: usize, step: usize, turn: usize| {
        const LINES: usize = 4;
        if turn < ASK_WAITING / matmul::LINE / LINES
            && let Some(products) = following.get(step).copied().flatten()
            && let Some(weights) = products.first_of(&backend.team, member)
        {
            for line in turn * LINES..(turn + 1) * LINES {
                matmul::ask_for(weights.wrapping_add(line * matmul::LINE));
            }
        }
    };
    let whole = backend.team.walk(progress, &items, &stop, run, idle);
    if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    if whole? { Ok(()) } else { Err(Error::new(ErrorKind::Cancelled, "the session was cancelled")) }
}

/// The purpose of the memory.
const WHAT: &str = "the plan of a pass";

/// For each group of states, the addresses of each sequence's pages.
fn page_tables(backend: &CpuBackend, batch: &Batch<'_>) -> Result<Vec<Vec<Vec<*mut u8>>>> {
    let bug = || Error::new(ErrorKind::Device, "a sequence lacks a page table: a bug in wavelm");
    let group = |(i, pages): (usize, &Pages)| {
        let table = |span: &crate::backend::Span<'_>| pages.addresses(span.tables.get(i).ok_or_else(bug)?);
        memory::try_collected(batch.spans.iter().map(table), WHAT)
    };
    memory::try_collected(backend.pages.iter().enumerate().map(group), WHAT)
}

/// The spans of a batch, with their pages of one group.
fn spans<'t>(batch: &Batch<'_>, tables: &'t [Vec<*mut u8>]) -> Result<Vec<Span<'t>>> {
    let mut first_row = 0;
    let spans = batch.spans.iter().zip(tables).map(|(span, pages)| {
        let rows = span.tokens.len();
        first_row += rows;
        Span { first_row: first_row - rows, rows, first_pos: span.first_pos, pages }
    });
    memory::collected(spans, WHAT)
}

impl Workspace {
    /// Sets what depends on the batch's positions: the angles of all rows, and the rows that are
    /// wanted.
    fn place(&mut self, backend: &CpuBackend, batch: &Batch<'_>) -> Result<()> {
        let positions = || batch.spans.iter().flat_map(|s| s.first_pos..s.first_pos + s.tokens.len());
        for (angles, rope) in self.angles.iter_mut().zip(&backend.program.ropes) {
            let pairs = rope.inv_freq.len();
            for (row, position) in angles.as_mut_slice().chunks_exact_mut(pairs * 2).zip(positions()) {
                let (cos, sin) = row.split_at_mut(pairs);
                rope.angles(position, cos, sin);
            }
        }
        self.wanted.clear();
        memory::reserve(&mut self.wanted, batch.outputs(), WHAT)?;
        let mut row = 0;
        for span in batch.spans {
            let n = span.tokens.len();
            match span.wanted {
                Wanted::None => {}
                Wanted::Last => self.wanted.extend((row..row + n).last()),
                Wanted::All => self.wanted.extend(row..row + n),
            }
            row += n;
        }
        Ok(())
    }
}

/// A buffer that the threads of a pass share.
#[derive(Clone, Copy)]
struct SharedBuf {
    start: *mut f32,
    len: usize,
    columns: usize,
}

/// The data of a pass that its threads share.
pub(super) struct Pass<'a> {
    pub(super) backend: &'a CpuBackend,
    /// The file, for weights that are read from it.
    held: &'a Held,
    /// Rows of buffers over tokens, and of those over outputs.
    rows: usize,
    outputs: usize,
    pub(super) tokens: &'a [TokenId],
    buffers: Vec<SharedBuf>,
    pub(super) quant: &'a [Option<QuantRows>],
    pub(super) angles: &'a [Floats],
    pub(super) wanted: &'a [usize],
    kv: KvPlans<'a>,
    #[cfg(test)]
    spans: &'a [Vec<Span<'a>>],
}

// SAFETY: only the pointers of `buffers` are not `Sync`. The items of a step write to parts of the
// buffers that no other item of the step reads or writes: items of row chains to rows of their own,
// products to weight rows of their own in buffers that none of the step's products reads, attention
// to outputs of its own. A step begins only when all items of the one before are done (see
// `Team::walk`).
unsafe impl Sync for Pass<'_> {}

/// How the batch's spans are stored and attended over. Layers of one group and shape share a plan.
struct KvPlans<'a> {
    stores: Vec<(usize, KvLayout, StorePlan<'a>)>,
    attentions: Vec<(usize, AttnParams, AttentionPlan<'a>)>,
}

impl<'a> KvPlans<'a> {
    /// `spans` has the spans with their pages for each group.
    fn new(backend: &CpuBackend, spans: &'a [Vec<Span<'a>>]) -> Result<Self> {
        let mut plans = Self { stores: Vec::new(), attentions: Vec::new() };
        let spans_of = |group: usize| spans.get(group).map(Vec::as_slice).unwrap_or_default();
        for place in backend.places.all() {
            if let (&Place { group, layout: Layout::Kv(layout), .. }, None) = (place, plans.store(place)) {
                let plan = StorePlan::new(&layout, spans_of(group))?;
                memory::push(&mut plans.stores, (group, layout, plan), WHAT)?;
            }
        }
        for step in &backend.plan.steps {
            let Step::Attention { layer, info, .. } = step else { continue };
            let (place, params) = (backend.places.of(*layer)?, params(info));
            if let (Layout::Kv(layout), None) = (place.layout, plans.attention(place, &params)) {
                let plan = AttentionPlan::new(&params, &layout, spans_of(place.group))?;
                memory::push(&mut plans.attentions, (place.group, params, plan), WHAT)?;
            }
        }
        Ok(plans)
    }

    fn store(&self, place: &Place) -> Option<&StorePlan<'a>> {
        let is_of = |group, layout: &KvLayout| place.group == group && place.layout == Layout::Kv(*layout);
        self.stores.iter().find(|(group, layout, _)| is_of(*group, layout)).map(|(.., plan)| plan)
    }

    fn attention(&self, place: &Place, params: &AttnParams) -> Option<&AttentionPlan<'a>> {
        self.attentions.iter().find(|(group, p, _)| *group == place.group && p == params).map(|(.., plan)| plan)
    }
}

fn params(info: &AttentionInfo) -> AttnParams {
    AttnParams {
        heads: info.heads,
        kv_heads: info.kv_heads,
        k_dim: info.head_dim,
        v_dim: info.value_dim,
        scale: info.scale,
        window: info.window,
        softcap: info.softcap,
        causal: true,
    }
}

/// A step of the plan, cut into items for this pass.
enum Work<'p> {
    Rows {
        ops: &'p [RowOp],
        rows: usize,
        per_item: usize,
    },
    MatMuls(Products<'p>),
    StoreKv {
        plan: &'p StorePlan<'p>,
        offset: usize,
        k: Buf,
        v: Buf,
    },
    Attention {
        plan: &'p AttentionPlan<'p>,
        offset: usize,
        q: Buf,
        out: Buf,
    },
    #[cfg(test)]
    Decay {
        spans: &'p [Span<'p>],
        offset: usize,
        floats: usize,
        x: Buf,
    },
}

/// The products of a step: the rows of their weights, one product after the other, in items of
/// `per_item`.
struct Products<'p> {
    /// Rows of activations.
    rows: usize,
    products: Vec<Product<'p>>,
    per_item: usize,
    /// Whether reading the weights takes most of the time, so that they are prefetched.
    streams: bool,
}

/// A matrix product with its weights.
struct Product<'p> {
    op: &'p MatMul,
    matrix: Matrix<'p>,
    bias: Option<&'p [f32]>,
}

impl Products<'_> {
    fn items(&self) -> usize {
        self.products.iter().map(|p| p.matrix.rows().div_ceil(self.per_item)).sum()
    }

    /// The product of an item and the first of its rows.
    fn item(&self, item: usize) -> Option<(&Product<'_>, usize)> {
        let mut first = 0;
        self.products.iter().find_map(|product| {
            let items = product.matrix.rows().div_ceil(self.per_item);
            first += items;
            (item < first).then(|| (product, (item + items - first) * self.per_item))
        })
    }

    /// The address of an item's weights.
    fn weights(&self, item: usize) -> Option<*const u8> {
        self.item(item).map(|(product, row)| product.matrix.start(row))
    }

    /// The address of the weights that a member begins with.
    fn first_of(&self, team: &Team, member: usize) -> Option<*const u8> {
        self.weights(team.stretch(self.items(), member).start)
    }
}

impl Work<'_> {
    fn items(&self) -> Items {
        let count = match self {
            Work::Rows { rows, per_item, .. } => rows.div_ceil(*per_item),
            Work::MatMuls(Products { rows: 0, .. }) => 0,
            Work::MatMuls(products) => products.items(),
            Work::StoreKv { plan, .. } => plan.items(),
            Work::Attention { plan, .. } => plan.items(),
            #[cfg(test)]
            Work::Decay { spans, .. } => spans.len(),
        };
        Items { count, stretches: matches!(self, Work::MatMuls(_) | Work::Attention { .. }) }
    }
}

impl Pass<'_> {
    fn rows(&self, kind: RowKind) -> usize {
        match kind {
            RowKind::Tokens => self.rows,
            RowKind::Outputs => self.outputs,
        }
    }

    /// Panics for a buffer of another program, a bug. The team turns this into an error of this
    /// session alone.
    fn shared(&self, buf: Buf) -> &SharedBuf {
        self.buffers.get(buf.0).unwrap_or_else(|| panic!("there is no buffer {}", buf.0))
    }

    /// The columns of a buffer.
    pub(super) fn columns(&self, buf: Buf) -> usize {
        self.shared(buf).columns
    }

    /// Cuts the plan's steps into items.
    fn steps(&self) -> Result<Vec<Work<'_>>> {
        memory::try_collected(self.backend.plan.steps.iter().map(|step| self.work(step)), WHAT)
    }

    fn work<'p>(&'p self, step: &'p Step) -> Result<Work<'p>> {
        let threads = self.backend.team.threads();
        let bug = |what: &str| Error::new(ErrorKind::Device, format!("{what}: a bug in wavelm"));
        match step {
            Step::Rows { kind, ops } => {
                let rows = self.rows(*kind);
                let parts = if rows <= ROW_ITEM { threads } else { threads * 2 };
                Ok(Work::Rows { ops, rows, per_item: rows.div_ceil(parts).clamp(1, ROW_ITEM) })
            }
            Step::MatMuls { kind, products } => {
                let products = memory::try_collected(products.iter().map(|p| self.product(p)), WHAT)?;
                let rows = self.rows(*kind);
                let streams = self.backend.precision == Precision::Fast
                    && products.iter().all(|p| matmul::streams(self.backend.isa, &p.matrix, rows));
                let per_item = if streams { STREAM_ROWS } else { ROW_STEP };
                Ok(Work::MatMuls(Products { rows, products, per_item, streams }))
            }
            Step::StoreKv { layer, k, v } => {
                let place = self.backend.places.of(*layer)?;
                let plan = self.kv.store(place).ok_or_else(|| bug("a cache layer has no plan"))?;
                Ok(Work::StoreKv { plan, offset: place.offset, k: *k, v: *v })
            }
            Step::Attention { layer, q, out, info } => {
                let place = self.backend.places.of(*layer)?;
                let plan = self.kv.attention(place, &params(info)).ok_or_else(|| bug("an attention has no plan"))?;
                Ok(Work::Attention { plan, offset: place.offset, q: *q, out: *out })
            }
            #[cfg(test)]
            Step::Decay { layer, x } => {
                let &Place { group, offset, layout } = self.backend.places.of(*layer)?;
                let Layout::Floats(floats) = layout else { return Err(bug("a recurrence has no state")) };
                let spans = self.spans.get(group).ok_or_else(|| bug("a group has no spans"))?;
                Ok(Work::Decay { spans, offset, floats, x: *x })
            }
        }
    }

    fn product<'p>(&'p self, op: &'p MatMul) -> Result<Product<'p>> {
        let bias = op.bias.and_then(|b| self.backend.vectors.get(b.0)).map(Vec::as_slice);
        Ok(Product { op, matrix: self.matrix(op.weight)?, bias })
    }

    /// A weight's copy, or else its data in the file.
    pub(super) fn matrix(&self, weight: Weight) -> Result<Matrix<'_>> {
        self.backend.weights.matrix(self.held, weight)
    }

    pub(super) fn vector(&self, weight: Weight) -> &[f32] {
        self.backend.vectors.get(weight.0).map(Vec::as_slice).unwrap_or_default()
    }

    /// The given rows of a buffer.
    ///
    /// # Safety
    /// No item that runs at the same time writes there.
    pub(super) unsafe fn read(&self, buf: Buf, rows: Range<usize>) -> &[f32] {
        // SAFETY: the caller's promise; `part` checks the bounds.
        unsafe {
            let (start, len) = self.part(buf, rows);
            std::slice::from_raw_parts(start, len)
        }
    }

    /// The same, to write.
    ///
    /// # Safety
    /// No item that runs at the same time reads or writes there, and this item holds no other slice
    /// of it.
    #[allow(clippy::mut_from_ref)] // the buffers are shared through pointers; the caller keeps the parts apart
    pub(super) unsafe fn write(&self, buf: Buf, rows: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise; `part` checks the bounds.
        unsafe {
            let (start, len) = self.part(buf, rows);
            std::slice::from_raw_parts_mut(start, len)
        }
    }

    fn part(&self, buf: Buf, rows: Range<usize>) -> (*mut f32, usize) {
        let shared = self.shared(buf);
        let (start, end) = (rows.start * shared.columns, rows.end * shared.columns);
        assert!(start <= end && end <= shared.len, "rows {rows:?} of a buffer of {} numbers", shared.len);
        (shared.start.wrapping_add(start), end - start)
    }

    /// Runs the items that a member claimed. `following` are the products of the next such step.
    fn run_items(
        &self,
        work: &Work<'_>,
        items: Range<usize>,
        following: Option<&Products<'_>>,
        member: usize,
        place: &mut Member,
    ) -> Result<()> {
        let Work::MatMuls(products) = work else {
            return items.into_iter().try_for_each(|item| self.run_item(work, item, place));
        };
        // The address of the next weights that this member will want.
        let team = &self.backend.team;
        let next = match team.stretch(products.items(), member).contains(&items.end) {
            true => products.weights(items.end),
            false => following.and_then(|following| following.first_of(team, member)),
        };
        let mut item = items.start;
        while item < items.end
            && let Some((product, first)) = products.item(item)
        {
            let left = product.matrix.rows() - first;
            let rows = left.min((items.end - item) * products.per_item);
            item += rows.div_ceil(products.per_item);
            let next = if item < items.end { products.weights(item) } else { next };
            self.multiply(product, products.rows, first..first + rows, next, place)?;
        }
        Ok(())
    }

    fn run_item(&self, work: &Work<'_>, item: usize, member: &mut Member) -> Result<()> {
        match work {
            Work::Rows { ops, rows, per_item } => {
                let rows = item * per_item..((item + 1) * per_item).min(*rows);
                // SAFETY: an item's rows belong to it alone, and its operations run one after the
                // other.
                ops.iter().try_for_each(|op| unsafe { ops::run(self, op, rows.clone()) })
            }
            Work::MatMuls(_) => Ok(()),
            Work::StoreKv { plan, offset, k, v } => {
                // SAFETY: the items of this step only read the buffers. The pages are those of the
                // batch's sequences, which the callers of the backend hold and have made writable;
                // each item writes positions of its own.
                unsafe {
                    let (k, v) = (self.read(*k, 0..self.rows), self.read(*v, 0..self.rows));
                    plan.run_item(self.backend.isa, *offset, item, k, v);
                }
                Ok(())
            }
            Work::Attention { plan, offset, q, out } => {
                let (start, len) = self.part(*out, 0..self.rows);
                // SAFETY: this step only reads `q`, and only its items write `out`, each its own
                // part. All positions that a query sees are stored: those of the batch by the step
                // before, all others by passes before. Sequences that share a page do not write to
                // it.
                unsafe {
                    let q = self.read(*q, 0..self.rows);
                    let out = std::ptr::slice_from_raw_parts_mut(start, len);
                    plan.run_item(self.backend.isa, *offset, item, q, out, &mut member.attention)
                }
            }
            #[cfg(test)]
            Work::Decay { spans, offset, floats, x } => {
                let (Some(span), Some(slot)) = (spans.get(item), spans.get(item).and_then(|span| span.pages.first()))
                else {
                    return Ok(());
                };
                // SAFETY: an item has the rows of its sequence to itself, and its slot, which the pass may write to.
                unsafe {
                    let rows = self.write(*x, span.first_row..span.first_row + span.rows);
                    let state = std::slice::from_raw_parts_mut(slot.add(*offset).cast::<f32>(), *floats);
                    ops::decay::decay(rows, state, span.first_pos == 0);
                }
                Ok(())
            }
        }
    }

    fn multiply(
        &self,
        product: &Product<'_>,
        rows: usize,
        range: Range<usize>,
        next: Option<*const u8>,
        member: &mut Member,
    ) -> Result<()> {
        let Product { op, matrix, bias } = product;
        let (start, len) = self.part(op.out, 0..rows);
        // SAFETY: this step only reads `x`. This item only writes the columns of `range` of `out`,
        // through the pointer.
        unsafe {
            let out = OutPtr::from_raw(start, len, matrix.rows());
            let x = self.read(op.x, 0..rows);
            let mut product = matmul::Product { weights: *matrix, x: Input::F32(x), n: rows, out, bias: *bias };
            if self.backend.precision == Precision::Reference {
                return matmul::matmul_f32(&product, range, &mut member.matmul);
            }
            member.matmul.reserve(rows, matrix.cols())?;
            if matmul::input_kind(matrix.ty()) == matmul::InputKind::Quant {
                product.x = match self.quant.get(op.x.0) {
                    Some(Some(q)) => Input::Quant(q),
                    _ => return Err(Error::new(ErrorKind::Device, "activations are not quantized: a bug in wavelm")),
                };
            }
            matmul::matmul(self.backend.isa, &product, range, next, &mut member.matmul);
        }
        Ok(())
    }
}
