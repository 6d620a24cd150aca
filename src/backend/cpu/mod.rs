//! The CPU backend: a team of threads walks the lowered program together.

pub(crate) mod attention;
pub(crate) mod cores;
mod exec;
pub(crate) mod kv;
pub(crate) mod matmul;
pub(crate) mod ops;
pub(crate) mod pages;
pub(crate) mod places;
mod plan;
mod team;
mod weights;
mod workspace;

use super::state::{self, PAGE_LEN, PageStore, States};
use super::{Backend, Batch, Canceller, KvType, Limits, Logits};
use crate::gguf::Gguf;
use crate::program::Precision;
use crate::program::{Op, Program, RowKind};
use crate::sampler::{Choice, SamplerState};
use crate::simd::Isa;
use crate::{Error, ErrorKind, Result, memory, quant};
use pages::Pages;
use places::{Layout, Places, places};
use plan::Plan;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use team::{Items, Progress, Team};
use workspace::Workspace;

/// The most tokens of a pass: enough to use each unpacked weight many times, few enough that the
/// buffers stay small.
const MOST_TOKENS: usize = 256;
/// The most outputs of a pass: a row of logits may have 262,144 columns.
const MOST_OUTPUTS: usize = 64;

/// The options of the CPU backend.
#[derive(Clone)]
pub(crate) struct CpuOptions {
    pub(crate) threads: Option<usize>,
    pub(crate) pool: Option<Arc<rayon::ThreadPool>>,
    pub(crate) kv_type: KvType,
    pub(crate) precision: Precision,
    pub(crate) isa: Isa,
}

/// A model on the CPU, with weights straight from the file or interleaved.
pub(crate) struct CpuBackend {
    program: Arc<Program>,
    plan: Plan,
    isa: Isa,
    precision: Precision,
    team: Team,
    kv_type: KvType,
    places: Places,
    /// The pages of each group.
    pages: Vec<Pages>,
    states: Arc<States>,
    weights: weights::Weights,
    /// Nanoseconds that the last pass of few tokens took; 0 before the first one. Such passes take
    /// the time of reading weights.
    last_pass: AtomicU64,
    /// Weights that are vectors, as `f32`; empty for matrices.
    vectors: Vec<Vec<f32>>,
    /// Workspaces that no pass uses at the moment.
    idle: Arc<Mutex<Vec<Workspace>>>,
}

impl CpuBackend {
    pub(crate) fn new(gguf: Arc<Gguf>, program: Arc<Program>, options: CpuOptions) -> Result<Self> {
        let team = match options.pool {
            Some(pool) => Team::on_pool(pool),
            None => {
                let threads = options.threads.unwrap_or_else(cores::default_threads);
                Team::new(threads).map_err(|e| cannot_start(threads, e))?
            }
        };
        let places = places(&program, options.kv_type)?;
        let mut pages = memory::with_room(places.groups.len(), "the groups of layers")?;
        let states = States::new(&places.groups, |group| {
            let group = Pages::new(places.page_bytes.get(group).copied().unwrap_or(0))?;
            pages.push(group.clone());
            Ok(Box::new(group) as Box<dyn PageStore>)
        })?;
        const VECTORS: &str = "weights that are vectors";
        let vectors = program.weights.iter().map(|w| {
            let mut values = Vec::new();
            if w.rows == 1 {
                values = memory::filled(w.columns, 0.0, VECTORS)?;
                quant::dequantize(w.tensor.tensor_type(), gguf.data(&w.tensor), &mut values)?;
            }
            Ok(values)
        });
        let vectors = memory::try_collected(vectors, VECTORS)?;
        let plan = Plan::new(&program, options.precision)?;
        let weights = weights::Weights::new(gguf, &program, options.isa, options.precision, &team)?;
        Ok(Self {
            plan,
            isa: options.isa,
            precision: options.precision,
            team,
            kv_type: options.kv_type,
            places,
            pages,
            states,
            weights,
            last_pass: AtomicU64::new(0),
            vectors,
            idle: Arc::default(),
            program,
        })
    }
}

/// The error if threads do not start.
fn cannot_start(threads: usize, error: rayon::ThreadPoolBuildError) -> Error {
    let message = format!(
        "cannot start {threads} threads for the CPU backend: {error}; ask for fewer (LoadOptions::threads), or allow the \
         process more memory or threads (ulimit -v, ulimit -u)"
    );
    Error::new(ErrorKind::Device, message).with_source(error)
}

/// The most bytes that the states of one sequence of `context` tokens take, checkpoints included.
pub(crate) fn state_bytes(program: &Program, kv_type: KvType, context: usize) -> u64 {
    let Ok(places) = places(program, kv_type) else { return u64::MAX };
    let bytes = places.groups.iter().zip(&places.page_bytes).map(|(group, &page_bytes)| {
        let pages = state::most_pages(group.kind, context, MOST_TOKENS);
        (page_bytes as u64).saturating_mul(pages as u64)
    });
    bytes.fold(0, u64::saturating_add)
}

/// Bytes of the cache that a token's pass reads with `depth` tokens before it: at most the window
/// of each attention.
pub(crate) fn kv_bytes_read(program: &Program, kv_type: KvType, depth: usize) -> u64 {
    let Ok(places) = places(program, kv_type) else { return 0 };
    let read = program.ops.iter().filter_map(|op| match op {
        Op::Attention { layer, info, .. } => {
            let Layout::Kv(layout) = places.of(*layer).ok()?.layout else { return None };
            let positions = depth.saturating_add(1).min(info.window.unwrap_or(usize::MAX)) as u64;
            Some((layout.bytes() / PAGE_LEN) as u64 * positions)
        }
        _ => None,
    });
    read.sum()
}

/// Bytes of buffers for the largest pass of a session: a chunk of a prompt with one output.
pub(crate) fn buffer_bytes(program: &Program) -> u64 {
    let floats = |kind, rows: usize| {
        program.buffers.iter().filter(move |b| b.rows == kind).map(move |b| (b.columns * rows) as u64).sum::<u64>()
    };
    // The int8 form of a buffer takes a good quarter of the buffer's size.
    (floats(RowKind::Tokens, MOST_TOKENS) + floats(RowKind::Outputs, 1)) * 5
}

impl Backend for CpuBackend {
    fn describe(&self) -> String {
        format!("CPU, {} threads, {} kernels, {:?} cache", self.team.threads(), self.isa.name(), self.kv_type)
    }

    fn threads(&self) -> usize {
        self.team.threads()
    }

    fn states(&self) -> &Arc<States> {
        &self.states
    }

    fn limits(&self) -> Limits {
        Limits { tokens: MOST_TOKENS, outputs: MOST_OUTPUTS }
    }

    fn run(&self, batch: &Batch<'_>, cancel: &Canceller) -> Result<Box<dyn Logits>> {
        // No prompt, or a short one.
        let generates = batch.tokens() <= MOST_OUTPUTS;
        if generates {
            // Passes take half as long again until all is copied. Nothing is copied before the
            // first pass.
            let time = Duration::from_nanos(self.last_pass.load(Ordering::Relaxed) / 2);
            self.weights.go_on(&self.team, time)?;
        }
        let began = Instant::now();
        let mut workspace = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let ran = exec::run(self, batch, cancel, &mut workspace);
        if ran.as_ref().is_err_and(|e| e.kind() == ErrorKind::Device) {
            // A panicking thread may have left anything in it.
            workspace = Workspace::default();
        }
        if generates {
            self.last_pass.store(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        // Returned to the idle workspaces when dropped, also after an error.
        let logits = CpuLogits {
            team: self.team.clone(),
            workspace,
            idle: Arc::clone(&self.idle),
            buffer: self.plan.logits.0,
            columns: self.program.result().map_or(0, |buffer| buffer.columns),
            rows: batch.result_rows(&self.program),
        };
        ran.map(|()| Box::new(logits) as Box<dyn Logits>)
    }
}

/// The logits of a pass, in the workspace that computed them.
struct CpuLogits {
    team: Team,
    workspace: Workspace,
    idle: Arc<Mutex<Vec<Workspace>>>,
    buffer: usize,
    columns: usize,
    rows: usize,
}

impl CpuLogits {
    fn values(&self, row: usize) -> Result<&[f32]> {
        let values = self.workspace.buffers.get(self.buffer).map(|b| b.as_slice()).unwrap_or_default();
        values
            .get(row * self.columns..(row + 1) * self.columns)
            .filter(|_| row < self.rows)
            .ok_or_else(|| Error::invalid_input(format!("row {row} of logits was not asked for")))
    }
}

impl Logits for CpuLogits {
    fn row(&mut self, row: usize) -> Result<&[f32]> {
        self.values(row)
    }

    fn sample(&mut self, states: &mut [&mut SamplerState]) -> Vec<Result<Choice>> {
        let logits = &*self;
        if let [state] = states {
            return vec![logits.values(0).and_then(|row| state.sample(row))];
        }
        // A draw reads a whole row. On one thread, sixteen draws took a twentieth of a pass.
        let draws: Vec<_> = states.iter_mut().map(|state| Mutex::new((state, None))).collect();
        let draw = |_, _, rows: Range<usize>| {
            for row in rows {
                let Some(draw) = draws.get(row) else { continue };
                let (state, choice) = &mut *draw.lock().unwrap_or_else(PoisonError::into_inner);
                *choice = Some(logits.values(row).and_then(|row| state.sample(row)));
            }
        };
        let items = [Items { count: draws.len(), stretches: false }];
        let walked = logits.team.walk(&mut Progress::default(), &items, &|| false, draw, |_, _, _| ());
        let choice = |draw: Mutex<(_, Option<_>)>| draw.into_inner().unwrap_or_else(PoisonError::into_inner).1;
        // Completed draws count, even if others failed.
        let none = || match &walked {
            Ok(_) => Err(Error::new(ErrorKind::Device, "a row was not drawn from: a bug in wavelm")),
            Err(e) => Err(e.repeated()),
        };
        draws.into_iter().map(|draw| choice(draw).unwrap_or_else(none)).collect()
    }
}

impl Drop for CpuLogits {
    fn drop(&mut self) {
        let workspace = std::mem::take(&mut self.workspace);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Without memory for the list, the next pass makes a new workspace.
        if idle.try_reserve(1).is_ok() {
            idle.push(workspace);
        }
    }
}

#[cfg(test)]
impl CpuBackend {
    /// Makes every pass panic that has more tokens than outputs.
    pub(crate) fn break_passes_of_many(&mut self) {
        // Too many rows for a buffer with one row per output.
        let ops = vec![plan::RowOp::Op(Op::Scale { x: self.plan.logits, by: 1.0 })];
        self.plan.steps.insert(1, plan::Step::Rows { kind: RowKind::Tokens, ops });
    }
}
