//! One forward pass on one stream: uploads the inputs, then launches the steps, as a graph
//! where that helps.

use super::graph::{Graphs, Key};
use super::inputs::{InputMemory, Inputs};
use super::{Buffers, Pass};
use crate::backend::hip::code::Modules;
use crate::backend::hip::device::Device;
use crate::backend::hip::load::{Loading, Weights};
use crate::backend::hip::memory::kv::{Places, places};
use crate::backend::hip::memory::pool::GroupPages;
use crate::backend::hip::memory::{DeviceBuffer, HostBuffer, Stream};
use crate::backend::hip::ops::{Finder, Launch, Plan};
use crate::backend::hip::{MOST_OUTPUTS, MOST_TOKENS, is_transient};
use crate::backend::state::{NO_PAGE, PageId};
use crate::backend::{Batch, Canceller, KvType, Span};
use crate::gguf::Gguf;
use crate::program::{Buf, Op, Program};
use crate::{Error, ErrorKind, Result, memory};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The content of logits before a pass. No valid logit is +∞.
const UNWRITTEN: f32 = f32::INFINITY;

/// How many operations a pass of the program takes.
struct Operations {
    /// Per token, without attention.
    of_token: f64,
    /// Per pair of a token and a token that it attends to.
    of_attended: f64,
}

impl Operations {
    fn new(program: &Program) -> Self {
        let weights = program.weights.iter().map(|w| w.rows as f64 * w.columns as f64);
        let columns = program.ops.iter().map(|op| match op {
            Op::Attention { info, .. } => info.heads as f64 * (info.head_dim + info.value_dim) as f64,
            _ => 0.0,
        });
        Self { of_token: 2.0 * weights.sum::<f64>(), of_attended: 2.0 * columns.sum::<f64>() }
    }
}

/// A program that is ready to run on a device.
pub(crate) struct Executor {
    device: Arc<Device>,
    pub(crate) program: Arc<Program>,
    /// The lowered program with its kernels.
    steps: Vec<Box<dyn Launch>>,
    /// The buffer of the logits.
    pub(super) logits: Buf,
    /// The tile sizes of the program's attentions, in tokens.
    tile_sizes: Vec<usize>,
    /// Where each layer's state lies.
    pub(crate) places: Places,
    pub(crate) buffers: Buffers,
    graphs: Graphs,
    operations: Operations,
    /// How many tokens the last pass had, and how long it took. The next pass with the same number
    /// should take as long.
    last_pass: (usize, Duration),
    /// How many passes there have been.
    passes: usize,
    /// Whether to choose kernels so that all of them are tested, instead of for speed.
    pub(crate) tests: bool,
    // The stream comes before the memory that its work uses, because dropping it waits for that
    // work.
    pub(crate) stream: Stream,
    pub(crate) memory: DeviceBuffer,
    inputs: InputMemory,
    /// Memory of the host for the rows that a segment before this one computed.
    given: Option<HostBuffer>,
    pub(crate) weights: Weights,
}

impl Executor {
    pub(crate) fn new(
        device: &Arc<Device>,
        modules: &Modules,
        gguf: &Gguf,
        program: &Arc<Program>,
        kv_type: KvType,
        loading: &mut Loading<'_, '_>,
    ) -> Result<Self> {
        let plan = Plan::for_device(program, device)?;
        let buffers = Buffers::new(program, &plan, device)?;
        let places = places(program, kv_type)?;
        // Comes before any upload: without kernels, an upload would be wasted.
        let find = Finder { program, kv_type, device, modules };
        let steps = plan.steps.into_iter().map(|step| step.prepare(&find));
        let steps = memory::try_collected(steps, "the kernels of the model")?;
        let mut tile_sizes: Vec<usize> = steps.iter().filter_map(|step| step.tile_tokens()).collect();
        tile_sizes.sort_unstable();
        tile_sizes.dedup();
        let stream = Stream::new(device)?;
        let memory = DeviceBuffer::new(device, buffers.bytes, "buffers of a pass")?;
        let inputs = InputMemory::new(device)?;
        let weights = Weights::upload(device, &stream, gguf, program, loading)?;
        Ok(Self {
            memory,
            inputs,
            given: None,
            weights,
            places,
            graphs: Graphs::new(device),
            operations: Operations::new(program),
            last_pass: Default::default(),
            passes: 0,
            tests: false,
            stream,
            buffers,
            tile_sizes,
            steps,
            logits: plan.logits,
            program: Arc::clone(program),
            device: Arc::clone(device),
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    pub(crate) fn passes(&self) -> usize {
        self.passes
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Runs the program and the work that `then` queues, and waits for both. The logits go to
    /// `logits`, which has room for the batch's outputs.
    pub(crate) fn run(
        &mut self,
        batch: &Batch<'_>,
        pages: &[GroupPages],
        logits: &DeviceBuffer,
        cancel: &Canceller,
        mut then: impl FnMut(&Stream) -> Result<()>,
    ) -> Result<()> {
        /// How often to queue a pass that conflicts with captures of other threads. Each pause is
        /// twice as long as the one before.
        const TRIES: u32 = 8;
        if batch.tokens() > MOST_TOKENS || batch.outputs() > MOST_OUTPUTS {
            return Err(Error::invalid_input(format!("a pass takes {MOST_TOKENS} tokens, not {}", batch.tokens())));
        }
        let has_memory = |(table, group): (&Vec<PageId>, &GroupPages)| {
            table.iter().all(|&page| page == NO_PAGE || (page as usize) < group.capacity())
        };
        if !batch.spans.iter().all(|span| span.tables.iter().zip(pages).all(has_memory)) {
            return Err(Error::new(ErrorKind::Device, "a cache page has no memory: a bug in wavelm"));
        }
        if logits.bytes() < self.result_len(batch) * 4 {
            return Err(Error::new(ErrorKind::Device, "the logits have too little memory: a bug in wavelm"));
        }
        // A lost device may still read and write the memory, so do not touch it.
        self.device.driver()?;
        let mut queued = self.queue(batch, pages, logits, cancel).and_then(|()| then(&self.stream));
        for again in 0..TRIES {
            match &queued {
                Err(e) if is_transient(e) && !cancel.is_cancelled() => log::debug!("{}: {e}", self.device.name),
                _ => break,
            }
            // The next try writes the same again, so wait for the work that was queued.
            self.stream.wait()?;
            std::thread::sleep(Duration::from_millis(1 << again));
            queued = self.queue(batch, pages, logits, cancel).and_then(|()| then(&self.stream));
        }
        let (began, (tokens, time)) = (Instant::now(), self.last_pass);
        // Waits in any case, because the queued work uses memory that the caller may now free or
        // use.
        let time = if tokens == batch.tokens() { time } else { Duration::ZERO };
        let waited = self.stream.wait_about(time, self.slowest(batch));
        self.last_pass = (batch.tokens(), began.elapsed());
        self.passes = self.passes.wrapping_add(1);
        queued.and(waited)?;
        self.weights.look(&self.stream)
    }

    /// How many numbers the result of a pass has.
    fn result_len(&self, batch: &Batch<'_>) -> usize {
        batch.result_rows(&self.program) * self.program.result().map_or(0, |buffer| buffer.columns)
    }

    /// How long a pass may take on the slowest devices.
    fn slowest(&self, batch: &Batch<'_>) -> Duration {
        /// A tenth of the operations per second of a compute unit on the slowest devices.
        const OPERATIONS: f64 = 2e10;
        let Operations { of_token, of_attended } = self.operations;
        let attended = |span: &Span<'_>| span.tokens.len() as f64 * (span.first_pos + span.tokens.len()) as f64;
        let attended: f64 = batch.spans.iter().map(attended).sum();
        let operations = of_token * batch.tokens() as f64 + of_attended * attended;
        Duration::try_from_secs_f64(operations / OPERATIONS / f64::from(self.device.units)).unwrap_or_default()
    }

    fn queue(
        &mut self,
        batch: &Batch<'_>,
        pages: &[GroupPages],
        logits: &DeviceBuffer,
        cancel: &Canceller,
    ) -> Result<()> {
        // This marks logits that the pass does not write, so that reading them or drawing from them
        // shows it, even if a whole graph does nothing. It comes first, so that the device fills
        // the memory while the host gathers the inputs.
        // SAFETY: every pass waits for the stream at its end, even if it fails, and only the caller
        // has the logits.
        unsafe { self.stream.fill(logits, UNWRITTEN.to_bits(), self.result_len(batch)) }?;
        self.give(batch, logits)?;
        // SAFETY: as above.
        let inputs = unsafe {
            let counters = self.buffers.counters;
            self.inputs.upload(&self.device, &self.stream, &self.program, batch, &self.tile_sizes, counters)
        }?;
        let key = Key::new(&inputs, pages, logits.start());
        // A graph would record the timer's events between the launches.
        let key = key.filter(|_| self.stream.timer().is_none());
        if let Some(graph) = key.as_ref().and_then(|key| self.graphs.find(key)) {
            return if cancel.is_cancelled() { Err(cancelled()) } else { graph.launch(&self.stream) };
        }
        let launch_all = |executor: &Self| executor.launch_all(&inputs, pages, logits, cancel);
        let Some(key) = key.filter(|_| self.graphs.are_on()) else { return launch_all(self) };
        match self.graphs.capture(&self.stream, || launch_all(self)) {
            Ok(graph) => {
                let launched = graph.launch(&self.stream);
                self.graphs.keep(key, graph);
                launched
            }
            Err(e) if e.kind() == ErrorKind::Cancelled || is_transient(&e) => Err(e),
            Err(e) => {
                log::warn!("{}: passes are not captured in graphs any more: {e}", self.device.name);
                self.graphs.turn_off();
                launch_all(self)
            }
        }
    }

    /// Queues the copy of the rows that the batch brings to buffer 0.
    fn give(&mut self, batch: &Batch<'_>, logits: &DeviceBuffer) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(batch.given);
        if bytes.is_empty() {
            return Ok(());
        }
        let bug = || Error::new(ErrorKind::Device, "more rows than tokens were given to a pass: a bug in wavelm");
        let columns = self.program.columns(Buf(0))?;
        if batch.given.len() != batch.tokens() * columns {
            return Err(bug());
        }
        if self.given.as_ref().is_none_or(|memory| memory.as_slice().len() < bytes.len()) {
            self.given = Some(HostBuffer::new(&self.device, bytes.len())?);
        }
        let Some(host) = &mut self.given else { return Ok(()) };
        host.as_mut_slice().get_mut(..bytes.len()).ok_or_else(bug)?.copy_from_slice(bytes);
        // A segment that hands on its buffer 0 has it where its result goes.
        let (to, offset) = match self.logits {
            Buf(0) => (logits, 0),
            _ => (&self.memory, self.buffers.float(Buf(0)).ok_or_else(bug)?),
        };
        // SAFETY: every pass waits for the stream at its end, and before that nobody else touches
        // the host's memory or the buffers.
        unsafe { self.stream.upload(to, offset, host, bytes.len()) }
    }

    fn launch_all(
        &self,
        inputs: &Inputs,
        pages: &[GroupPages],
        logits: &DeviceBuffer,
        cancel: &Canceller,
    ) -> Result<()> {
        let pass = Pass { executor: self, inputs, pages, logits: logits.start(), halved: Cell::new(None) };
        for step in &self.steps {
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            if !step.tracks_halves() {
                pass.halved.set(None);
            }
            step.launch(&pass)?;
        }
        Ok(())
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the session was cancelled")
}
