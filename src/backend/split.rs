//! A model on two devices: a GPU runs the first layers and the CPU the others. One row for each
//! token crosses between them. Each layer's part of a cache page lies on the device that runs the
//! layer.

use super::cpu::CpuBackend;
use super::hip::HipBackend;
use super::kv::{KvPool, PageId, PageStore};
use super::{Backend, Batch, Canceller, KernelTime, Limits, Logits, Span, Wanted};
use crate::program::Cut;
use crate::program::Program;
use crate::{Result, memory};
use std::sync::Arc;

/// The parts of a program before and after a cut. The result of the first is the buffer that
/// crosses; it is buffer 0 of both.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn parts(program: &Program, cut: Cut) -> Result<(Program, Program)> {
    let (front, back) = program.ops.split_at_checked(cut.op).unwrap_or((&program.ops, &[]));
    Ok((program.part(front, Some(cut.buf))?, program.part(back, Some(cut.buf))?))
}

/// A model on a GPU and the CPU.
pub(crate) struct SplitBackend {
    front: HipBackend,
    back: CpuBackend,
    pool: Arc<KvPool>,
}

impl SplitBackend {
    /// A backend from both parts of a program: see [parts].
    pub(crate) fn new(front: HipBackend, back: CpuBackend) -> Self {
        let pool = KvPool::new(Box::new(Stores { front: front.page_store(), back: back.page_store() }));
        Self { front, back, pool }
    }
}

impl Backend for SplitBackend {
    fn describe(&self) -> String {
        format!("{}; then {}", self.front.describe(), self.back.describe())
    }

    fn threads(&self) -> usize {
        self.back.threads()
    }

    fn kv_pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    fn limits(&self) -> Limits {
        let (front, back) = (self.front.limits(), self.back.limits());
        Limits { tokens: front.tokens.min(back.tokens), outputs: back.outputs }
    }

    fn run(&self, batch: &Batch<'_>, cancel: &Canceller) -> Result<Box<dyn Logits>> {
        let spans = batch.spans.iter().map(|span| Span { wanted: Wanted::None, ..*span });
        let spans: Vec<Span<'_>> = memory::collected(spans, "the plan of a pass")?;
        let mut between = self.front.run(&Batch { spans: &spans, draws: &[] }, cancel)?;
        let mut rows = Vec::new();
        for row in 0..batch.tokens() {
            memory::extend(&mut rows, between.row(row)?, "what one device hands to the other")?;
        }
        drop(between);
        self.back.run_from(batch, Some(&rows), cancel)
    }

    fn start_profile(&self) -> Result<()> {
        self.front.start_profile()
    }

    fn end_profile(&self) -> Vec<KernelTime> {
        self.front.end_profile()
    }
}

/// The same pages on both devices.
struct Stores {
    front: Box<dyn PageStore>,
    back: Box<dyn PageStore>,
}

impl PageStore for Stores {
    fn allocate(&self, page: PageId) -> Result<()> {
        self.front.allocate(page)?;
        self.back.allocate(page).inspect_err(|_| self.front.release(page))
    }

    fn release(&self, page: PageId) {
        self.front.release(page);
        self.back.release(page);
    }

    fn copy(&self, from: PageId, to: PageId) -> Result<()> {
        self.front.copy(from, to)?;
        self.back.copy(from, to)
    }
}
