//! The GPU backend: weights stay quantized in device memory, and a pass is a sequence of kernel
//! launches on one stream.
//!
//! The kernels are in hip/ and are loaded with a model; see [`code`] for their origin.
//! Everything that can be determined in advance is: which kernels a program needs, where its
//! buffers lie, how large they get. A model is refused while it is loaded if it does not fit the
//! device, or the device has no kernels for it.

mod code;
pub(crate) mod device;
mod driver;
mod load;
mod memory;
mod ops;
mod pass;
mod sampling;
mod selftest;

use super::state::{self, States};
use super::{Backend, Batch, Canceller, KernelTime, KvType, Limits, Logits};
use crate::gguf::{Gguf, TensorType};
use crate::program::Precision;
use crate::program::{Program, RowKind};
use crate::sampler::{Choice, Drawn, Request, SamplerState};
use crate::{Error, ErrorKind, Result, memory as host_memory};
use code::Modules;
use device::Device;
pub use device::GpuInfo;
pub(crate) use device::{health, machine};
pub(crate) use driver::neighbours::is_transient;
use load::Loading;
pub(crate) use load::Tell;
pub(crate) use memory::bandwidth;
use memory::pool::{self, Pages};
use memory::{DeviceBuffer, HostBuffer, Stream, kv, room};
use ops::Plan;
use pass::Buffers;
use pass::exec::Executor;
use sampling::{DrawMemory, Sampling};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The most tokens in a pass.
const MOST_TOKENS: usize = 512;
/// The most outputs in a pass.
const MOST_OUTPUTS: usize = 64;

/// Options of the GPU backend.
#[derive(Clone)]
pub(crate) struct HipOptions {
    /// The number of the GPU, in the order of [`device::find`].
    pub(crate) gpu: usize,
    pub(crate) kv_type: KvType,
    pub(crate) precision: Precision,
    /// Threads that read the weights.
    pub(crate) threads: usize,
    /// How long to wait for the GPU, at least, before giving it up.
    pub(crate) patience: Duration,
    /// Whether to read the weights back and compare them.
    pub(crate) verify: bool,
    /// Whether it is an error if weights lie in slower memory than the GPU's own.
    pub(crate) refuses_spill: bool,
}

/// Bytes of a GPU's memory that a model may take.
pub(crate) fn free_memory(gpu: usize) -> Result<u64> {
    room::usable(&*device::open(gpu, health::PATIENCE)?)
}

/// The program in the form that runs on a GPU: for [`Precision::Reference`] its weights are `f32`.
fn stored(program: &Arc<Program>, precision: Precision) -> Arc<Program> {
    if precision == Precision::Fast {
        return Arc::clone(program);
    }
    let mut stored = Program::clone(program);
    stored.weights.iter_mut().for_each(|weight| weight.tensor.ty = TensorType::F32);
    Arc::new(stored)
}

/// Bytes of memory that a program takes on a GPU, with one session of `context` tokens.
///
/// # Errors
/// `Unsupported` for a tensor type without kernels.
pub(crate) fn bytes(options: &HipOptions, program: &Arc<Program>, context: usize) -> Result<u64> {
    let (program, kv_type) = (&*stored(program, options.precision), options.kv_type);
    let device = device::open(options.gpu, options.patience)?;
    let buffers = Buffers::new(program, &Plan::for_device(program, &device)?, &device)?.bytes;
    let mut bytes = buffers as u64;
    for weight in &program.weights {
        let ty = if weight.rows == 1 { TensorType::F32 } else { weight.tensor.tensor_type() };
        let planar = load::planar_bytes(ty, weight.rows.saturating_mul(weight.columns));
        let planar = planar.ok_or_else(|| Error::unsupported(format!("no GPU kernel reads the type {ty:?}")))?;
        bytes = bytes.saturating_add(planar as u64);
    }
    let result = program.result().map_or(0, |result| match result.rows {
        RowKind::Tokens => result.columns.saturating_mul(MOST_TOKENS * 4),
        RowKind::Outputs => result.columns.saturating_mul(MOST_OUTPUTS * 4),
    });
    let places = kv::places(program, kv_type)?;
    let caches = places.groups.iter().zip(&places.page_bytes).map(|(group, &page_bytes)| {
        let pages = state::most_pages(group.kind, context, MOST_TOKENS);
        // Full pages double, and the old half stays allocated during the copy.
        let pages = pages.next_power_of_two().max(pool::FIRST_PAGES);
        let cache = (page_bytes as u64).saturating_mul(pages as u64);
        cache.saturating_add(cache / 2)
    });
    Ok(caches.fold(bytes.saturating_add(result as u64), u64::saturating_add))
}

/// Compares the kernels that a program needs on a GPU with the CPU's.
///
/// # Errors
/// As [`HipBackend::new`].
pub(crate) fn self_test(options: &HipOptions, program: &Arc<Program>) -> Result<()> {
    let program = stored(program, options.precision);
    let device = device::open(options.gpu, options.patience)?;
    let modules = Arc::new(Modules::new(&device));
    selftest::check(options.gpu, &device, &modules, &program, options.kv_type)
}

/// A model on a GPU.
pub(crate) struct HipBackend {
    device: Arc<Device>,
    kv_type: KvType,
    weight_bytes: usize,
    program: Arc<Program>,
    columns: usize,
    pages: Pages,
    states: Arc<States>,
    executor: Arc<Mutex<Executor>>,
    sampling: Arc<Sampling>,
    /// Whether the last logits that were used were read, instead of drawn from.
    reads_rows: Arc<AtomicBool>,
    /// Whether the kernels were compared with the CPU's. Impossible results are then a fault of the
    /// device.
    tested: bool,
    /// Memory for logits that nobody uses at the moment.
    idle: Arc<Mutex<Vec<Rows>>>,
}

impl HipBackend {
    /// Loads the program's weights and kernels. `tell` hears how many bytes of weights are on the device.
    ///
    /// # Errors
    /// `Device` or `OutOfMemory`, with what the device lacks; `Unsupported` for operations or types
    /// without kernels; errors of `tell`.
    pub(crate) fn new(gguf: &Gguf, program: &Arc<Program>, options: &HipOptions, tell: &mut Tell<'_>) -> Result<Self> {
        let program = stored(program, options.precision);
        let device = device::open(options.gpu, options.patience)?;
        let modules = Arc::new(Modules::new(&device));
        selftest::check(options.gpu, &device, &modules, &program, options.kv_type)?;
        let (verify, refuses_spill) = (options.verify, options.refuses_spill);
        let mut loading = Loading { threads: options.threads, tell, verify, refuses_spill };
        let executor = Executor::new(&device, &modules, gguf, &program, options.kv_type, &mut loading)?;
        Self::with_executor(&device, &modules, program, options.kv_type, executor)
    }

    /// A backend for the self-test: its kernels have not been compared with the CPU's yet.
    fn untested(
        device: &Arc<Device>,
        modules: &Modules,
        gguf: &Gguf,
        program: Arc<Program>,
        kv_type: KvType,
        loading: &mut Loading<'_, '_>,
    ) -> Result<Self> {
        let mut executor = Executor::new(device, modules, gguf, &program, kv_type, loading)?;
        executor.tests = true;
        Self::with_executor(device, modules, program, kv_type, executor)
    }

    fn with_executor(
        device: &Arc<Device>,
        modules: &Modules,
        program: Arc<Program>,
        kv_type: KvType,
        executor: Executor,
    ) -> Result<Self> {
        let columns = program.result().map_or(0, |buffer| buffer.columns);
        let tested = !executor.tests;
        let sampling = Arc::new(Sampling::new(device, modules, columns)?);
        let pages = Pages::new(device, executor.stream(), &executor.places.page_bytes)?;
        Ok(Self {
            kv_type,
            weight_bytes: executor.weight_bytes(),
            columns,
            program,
            states: States::new(&executor.places.groups, |group| Ok(pages.store(group)))?,
            pages,
            executor: Arc::new(Mutex::new(executor)),
            sampling,
            reads_rows: Arc::default(),
            tested,
            idle: Arc::default(),
            device: Arc::clone(device),
        })
    }

    /// Memory for `rows` rows of logits, reused from an earlier pass if it is large enough.
    fn rows(&self, rows: usize) -> Result<Rows> {
        let bytes = rows.saturating_mul(self.columns).saturating_mul(4);
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(idle) if idle.memory.bytes() >= bytes => Ok(idle),
            _ => Ok(Rows { memory: DeviceBuffer::new(&self.device, bytes, "logits")?, row: None, draw: None }),
        }
    }
}

impl Backend for HipBackend {
    fn describe(&self) -> String {
        let Device { name, arch, .. } = &*self.device;
        format!("{name} ({arch}), {} MiB of weights, {:?} cache", self.weight_bytes >> 20, self.kv_type)
    }

    fn threads(&self) -> usize {
        1
    }

    fn states(&self) -> &Arc<States> {
        &self.states
    }

    fn limits(&self) -> Limits {
        Limits { tokens: MOST_TOKENS, outputs: MOST_OUTPUTS }
    }

    fn run(&self, batch: &Batch<'_>, cancel: &Canceller) -> Result<Box<dyn Logits>> {
        let outputs = batch.result_rows(&self.program);
        let mut rows = self.rows(outputs)?;
        let requests = requests(batch.draws.iter().copied(), self.columns)?;
        // If the last logits were read instead of drawn from, these probably will be too, so their
        // copy is queued after the pass.
        let is_single = requests.is_empty() && outputs == 1 && batch.tokens() == 1;
        let copies_row = is_single && self.reads_rows.load(Ordering::Relaxed);
        if copies_row {
            rows.place(&self.device, self.columns)?;
        }
        let ran = {
            let mut executor = self.executor.lock().unwrap_or_else(PoisonError::into_inner);
            let Rows { memory, draw, row } = &mut rows;
            let then = |stream: &Stream| match row {
                // SAFETY: the executor waits for the stream, and this borrows all of them until
                // then.
                Some(row) if copies_row => unsafe { stream.queue_download(memory, 0, row, self.columns * 4) },
                _ if requests.is_empty() => Ok(()),
                // SAFETY: as above.
                _ => unsafe { self.sampling.queue(stream, memory, &requests, draw) },
            };
            self.pages.with_memory(|pages| executor.run(batch, pages, memory, cancel, then))
        };
        let (ran, drawn) = match ran {
            Ok(()) if !requests.is_empty() => {
                let found = self.sampling.drawn(rows.draw.as_ref(), requests.len());
                match by_row(batch.draws.len(), &requests, found) {
                    Ok(drawn) => (Ok(()), Some(drawn)),
                    Err(e) => (Err(e), None),
                }
            }
            ran => (ran, None),
        };
        // Dropping it returns the memory to the idle ones, even after an error.
        let logits = HipLogits {
            device: Arc::clone(&self.device),
            executor: Arc::clone(&self.executor),
            sampling: Arc::clone(&self.sampling),
            idle: Arc::clone(&self.idle),
            rows: Some(rows),
            drawn,
            row_is_here: copies_row,
            reads_rows: Arc::clone(&self.reads_rows),
            outputs,
            columns: self.columns,
            tested: self.tested,
        };
        ran.map(|()| Box::new(logits) as Box<dyn Logits>)
    }

    fn start_profile(&self) -> Result<()> {
        self.executor.lock().unwrap_or_else(PoisonError::into_inner).stream.start_timer()
    }

    fn end_profile(&self) -> Vec<KernelTime> {
        // Each pass has been waited for, so nothing is queued.
        let timer = self.executor.lock().unwrap_or_else(PoisonError::into_inner).stream.take_timer();
        timer.map_or_else(Vec::new, |timer| timer.times())
    }
}

/// Rows of logits on the device, and the memory used so far to draw tokens from them.
struct Rows {
    memory: DeviceBuffer,
    /// A buffer on the host for one row.
    row: Option<HostBuffer>,
    draw: Option<DrawMemory>,
}

impl Rows {
    /// The buffer on the host. It starts with a value that no logit has, so that missing copies
    /// show.
    fn place(&mut self, device: &Arc<Device>, columns: usize) -> Result<&mut HostBuffer> {
        let mut place = match self.row.take() {
            Some(place) => place,
            None => HostBuffer::new(device, columns * 4)?,
        };
        let first = place.as_mut_slice().iter_mut().zip(f32::INFINITY.to_ne_bytes());
        first.for_each(|(byte, unwritten)| *byte = unwritten);
        Ok(self.row.insert(place))
    }
}

/// The logits of a pass.
struct HipLogits {
    device: Arc<Device>,
    executor: Arc<Mutex<Executor>>,
    sampling: Arc<Sampling>,
    idle: Arc<Mutex<Vec<Rows>>>,
    /// `None` only while it is dropped.
    rows: Option<Rows>,
    /// The tokens drawn with the states of the batch, if it had some.
    drawn: Option<Vec<Option<Drawn>>>,
    /// Whether the host already has the only row.
    row_is_here: bool,
    reads_rows: Arc<AtomicBool>,
    outputs: usize,
    columns: usize,
    tested: bool,
}

impl HipLogits {
    /// The memory, if it has row `row`.
    fn rows(&mut self, row: usize) -> Result<&mut Rows> {
        let unknown = || Error::invalid_input(format!("row {row} of logits was not asked for"));
        self.rows.as_mut().filter(|_| row < self.outputs).ok_or_else(unknown)
    }

    /// Draws a token from each of the first rows, all at once; `None` for each row that the device
    /// does not draw from.
    fn draw(&mut self, states: &[&mut SamplerState]) -> Result<Vec<Option<Drawn>>> {
        if let Some(drawn) = self.drawn.take() {
            return Ok(drawn);
        }
        let requests = requests(states.iter().map(|state| &**state), self.columns)?;
        let Some(&(last, _)) = requests.last() else { return Ok(Vec::new()) };
        let (executor, sampling) = (Arc::clone(&self.executor), Arc::clone(&self.sampling));
        let Rows { memory, draw, .. } = self.rows(last)?;
        let executor = executor.lock().unwrap_or_else(PoisonError::into_inner);
        let found = sampling.draw(executor.stream(), memory, &requests, draw)?;
        by_row(states.len(), &requests, found)
    }
}

/// The draws that the device can make, with their rows.
fn requests<'a>(states: impl Iterator<Item = &'a SamplerState>, columns: usize) -> Result<Vec<(usize, Request<'a>)>> {
    let request = |(row, state): (usize, &'a SamplerState)| Ok(state.request(columns)?.map(|request| (row, request)));
    host_memory::try_collected(states.enumerate().filter_map(|state| request(state).transpose()), "the draws of a pass")
}

/// The draws in the order of the rows, for `rows` rows.
///
/// # Errors
/// The first row's error, if any: after one error, the device's other results are worthless.
fn by_row(
    rows: usize,
    requests: &[(usize, Request<'_>)],
    found: Vec<Result<Option<Drawn>>>,
) -> Result<Vec<Option<Drawn>>> {
    let mut drawn = vec![None; rows];
    for ((row, _), found) in requests.iter().zip(found) {
        let found = found?;
        if let Some(place) = drawn.get_mut(*row) {
            *place = found;
        }
    }
    Ok(drawn)
}

/// Which values of a row to check.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Look {
    /// All of them.
    All,
    /// One cache line in 32, a different one in each of 32 passes. For a small model, reading all
    /// lines takes 4 % of the time for a token.
    Some { passes: usize },
}

/// Whether these can be the results of a row. No value may be NaN or +∞, and +∞ is also their
/// content before a pass. At least one value must be finite. The CPU finds other errors in results.
fn are_possible(values: &[f32], look: Look) -> bool {
    const LINE: usize = 64 / size_of::<f32>();
    const LINES: usize = 32;
    // Has no branch per value, so that the compiler vectorizes it.
    let are_impossible = |values: &[f32]| values.iter().fold(false, |found, value| found | !value.lt(&f32::INFINITY));
    let impossible = match look {
        Look::All => are_impossible(values),
        Look::Some { passes } => values.chunks(LINE).skip(passes % LINES).step_by(LINES).any(are_impossible),
    };
    !impossible && values.iter().any(|value| value.is_finite())
}

impl HipLogits {
    /// A row of logits on the host.
    fn read(&mut self, row: usize, all: bool) -> Result<&[f32]> {
        let (columns, row_is_here, tested) = (self.columns, self.row_is_here, self.tested);
        let (device, executor) = (Arc::clone(&self.device), Arc::clone(&self.executor));
        let executor = executor.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.rows(row)?;
        if !row_is_here {
            rows.place(&device, columns)?;
        }
        let bug = || Error::new(ErrorKind::Device, "a row of logits has no place on the host: a bug in wavelm");
        let place = rows.row.as_mut().ok_or_else(bug)?;
        let bytes = columns * 4;
        if !row_is_here {
            executor.stream().download(&rows.memory, row * bytes, place, bytes)?;
        }
        let look = if all { Look::All } else { Look::Some { passes: executor.passes() } };
        drop(executor);
        let values = place.as_slice().get(..bytes).and_then(|bytes| bytemuck::try_cast_slice(bytes).ok());
        let values: &[f32] = values.ok_or_else(|| Error::new(ErrorKind::Device, "pinned memory is not aligned"))?;
        // The self-test compares the values itself, and names the kernel.
        if tested && !are_possible(values, look) {
            let text = "the GPU reports success, but its logits are not written, or not numbers";
            return Err(Error::new(ErrorKind::Device, text));
        }
        Ok(values)
    }
}

impl Logits for HipLogits {
    fn row(&mut self, row: usize) -> Result<&[f32]> {
        self.reads_rows.store(true, Ordering::Relaxed);
        self.read(row, false)
    }

    fn sample(&mut self, states: &mut [&mut SamplerState]) -> Vec<Result<Choice>> {
        self.reads_rows.store(false, Ordering::Relaxed);
        let mut drawn = match self.draw(states) {
            Ok(drawn) => drawn.into_iter(),
            Err(e) => return states.iter().map(|_| Err(e.repeated())).collect(),
        };
        let choose = |(row, state): (usize, &mut &mut SamplerState)| match drawn.next().flatten() {
            Some(drawn) => state.accept(drawn),
            // If the device does not draw, the CPU does, or returns the error that there is nothing
            // to choose from.
            None => state.sample(self.read(row, true)?),
        };
        states.iter_mut().enumerate().map(choose).collect()
    }
}

impl Drop for HipLogits {
    fn drop(&mut self) {
        let rows = self.rows.take();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_result_is_found_within_32_passes() {
        let sound: Vec<f32> = (0..1003).map(|i| if i % 5 == 0 { f32::NEG_INFINITY } else { i as f32 }).collect();
        let found = |values: &[f32]| (0..32).filter(|&passes| !are_possible(values, Look::Some { passes })).count();
        assert!(are_possible(&sound, Look::All) && found(&sound) == 0);
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 15, 16, 500, 1002] {
                let mut values = sound.clone();
                values[at] = bad;
                assert!(!are_possible(&values, Look::All), "{bad} at {at}");
                assert_eq!(found(&values), 1, "{bad} at {at}");
            }
            assert_eq!(found(&[bad; 1003]), 32);
        }
        assert_eq!(found(&[f32::NEG_INFINITY; 1003]), 32);
        assert!(!are_possible(&[f32::NEG_INFINITY; 1003], Look::All));
    }
}
