//! Options for loading a model.

use super::config::Config;
use super::placement::{Load, Placement};
use super::probe::Request;
use super::rescue::{Event, OnEvent, Rescue};
use super::{Model, arch};
use crate::backend::{Backend, cpu, hip};
use crate::device::{Device, DeviceReport};
use crate::gguf::Gguf;
use crate::program::{Precision, Program};
use crate::simd::Isa;
use crate::{Error, ErrorKind, KvType, Result};
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How far loading has progressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of tensors that are ready.
    pub bytes: u64,
    /// Bytes of all tensors.
    pub total_bytes: u64,
}

impl Progress {
    /// Between 0 and 1.
    pub fn fraction(&self) -> f64 {
        if self.total_bytes == 0 { 1.0 } else { self.bytes as f64 / self.total_bytes as f64 }
    }

    /// Return this from a callback to continue loading.
    pub fn go_on(&self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Return this from a callback to give up. Loading then ends with an error of the kind
    /// [`Cancelled`](ErrorKind::Cancelled).
    pub fn cancel(&self) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

/// The memory that a model needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The weights; a process holds each once. On the CPU they are pages of the mapped file, which
    /// the system may drop and read again, until they are copied. Copies, and files that are
    /// [read](LoadOptions::map), stay in memory.
    pub weights: u64,
    /// The cache of one session whose context is full.
    pub kv_cache: u64,
    /// Buffers of a forward pass over a prompt.
    pub buffers: u64,
}

impl MemoryEstimate {
    /// The sum of all, with one session.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.buffers)
    }
}

type OnProgress = Box<dyn FnMut(Progress) -> ControlFlow<()> + Send>;

/// Options for loading a [`Model`]; made by [`Model::options`].
///
/// ```no_run
/// # fn main() -> wavelm::Result<()> {
/// use wavelm::{Device, KvType, Model};
/// let model = Model::options().device(Device::Cpu).threads(4).context(8192).kv_type(KvType::Q8_0).load("model.gguf")?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct LoadOptions {
    device: Device,
    threads: Option<usize>,
    pool: Option<Arc<rayon::ThreadPool>>,
    pub(super) context: Option<usize>,
    kv_type: KvType,
    precision: Precision,
    on_progress: Option<OnProgress>,
    placement: Placement,
    rescue: bool,
    map: bool,
    on_event: Option<OnEvent>,
    device_timeout: Duration,
    pub(super) probe_in_child: bool,
    copy_threads: Option<usize>,
    verify: bool,
}

impl LoadOptions {
    pub(super) fn new() -> Self {
        Self {
            device: Device::Auto,
            threads: None,
            pool: None,
            context: None,
            kv_type: KvType::default(),
            precision: Precision::default(),
            on_progress: None,
            placement: Placement::default(),
            rescue: true,
            map: true,
            on_event: None,
            device_timeout: hip::health::PATIENCE,
            probe_in_child: false,
            copy_threads: None,
            verify: false,
        }
    }

    /// Which device runs the model. Default: [`Device::Auto`].
    ///
    /// On the CPU the logits after some tokens have the same bits however the tokens came into the
    /// context: in one prompt or one by one, alone or in passes with other sequences, the first
    /// time or again after the cache was dropped, on any number of threads. They differ between
    /// instruction sets and between devices. A GPU adds up in another order when a pass has another
    /// length, so a text may depend on how its context was evaluated.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// How many threads compute, including the calling one. Default: `$WAVELM_THREADS`, else the
    /// number of physical cores that this process may use. If a GPU computes, the threads read the
    /// weights, and there are at most eight.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Computes on the caller's pool instead of the model's own one. [`threads`](Self::threads) is
    /// then ignored.
    pub fn pool(mut self, pool: Arc<rayon::ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// The longest context of a session, in tokens. Default: the length that the model was trained
    /// for. The cache takes memory as sessions grow, not in advance.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// How keys and values are cached. Default: [`KvType::F16`].
    pub fn kv_type(mut self, kv_type: KvType) -> Self {
        self.kv_type = kv_type;
        self
    }

    /// How exactly the forward pass is computed. Default: [`Precision::Fast`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Calls `callback` while the weights come into memory. With a GPU it counts the weights that
    /// the model needs, as they arrive there. With the CPU it counts bytes as they are read;
    /// without a callback the weights are only mapped, and read when first used. A file that is not
    /// [mapped](Self::map) is read completely before that, and the callback counts the bytes of the
    /// file. If a GPU turns out to be unusable, the next device starts again from 0.
    pub fn on_progress(mut self, callback: impl FnMut(Progress) -> ControlFlow<()> + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(callback));
        self
    }

    /// Which layers run on which device. Default: [`Placement::Automatic`], which leaves room for one
    /// session of the [context](Self::context) set here, or of 4,096 tokens if none is set.
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Whether sessions go on on the CPU when a GPU fails in use: the CPU evaluates their tokens
    /// again. Tokens that were already returned stand. The continuation is, bit by bit, the same as
    /// that of a session on the CPU after these tokens; the GPU might have continued otherwise. An
    /// [event](Self::on_event) and a logged warning report the move. If this is off, the session
    /// returns the error. Default: on.
    pub fn rescue(mut self, on: bool) -> Self {
        self.rescue = on;
        self
    }

    /// Whether the file is mapped into memory. Default: on.
    ///
    /// A mapped model loads in no time, and its weights are read when they are first used. But a
    /// change of the file changes the weights, and cutting it short ends the process with a bus
    /// error (SIGBUS) when a lost part is used. Replacing it by renaming another file over it is
    /// harmless. On the CPU the danger is over once all weights are copied to the order that the
    /// kernels read fastest. This happens between the first tokens (some fifty) where there is
    /// memory for it; afterwards the file is let go of. It stays mapped where nothing is copied:
    /// with little memory, on ARM, for models of floating-point weights, with
    /// [`Precision::Reference`] and with `WAVELM_CPU_WEIGHTS=mapped`. If a GPU runs the model, the
    /// file stays mapped for a [rescue](Self::rescue).
    ///
    /// If this is off, the file is read into memory before the model is loaded, which takes as long
    /// as reading does. Later changes of the file do not matter; a file that is cut short before
    /// all was read gives an error of the kind [`Io`](ErrorKind::Io). In either case a process
    /// holds each weight once: on the CPU, the weights are put in the faster order in place, unless
    /// `WAVELM_CPU_WEIGHTS=mapped` asks for the file's order.
    ///
    /// With [`load_gguf`](Self::load_gguf) the caller has decided already, by [`Gguf::open`] or
    /// [`Gguf::read`].
    pub fn map(mut self, on: bool) -> Self {
        self.map = on;
        self
    }

    /// Calls `callback` when something happens to the running model that a program may want to
    /// report. The call comes on the thread on which the event happens.
    pub fn on_event(mut self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Box::new(callback));
        self
    }

    /// How many threads copy weights to a GPU at a time, at most eight. Default:
    /// [`threads`](Self::threads). One thread is slower, but helps if a driver loses concurrent
    /// copies.
    pub fn copy_threads(mut self, threads: usize) -> Self {
        self.copy_threads = Some(threads);
        self
    }

    /// Whether to read all weights back from a GPU after sending them, and compare. Weights in
    /// damaged memory, or lost on the way, are then an error of the device. Takes about as long as
    /// sending them. Default: off.
    ///
    /// In either case, a part of the weights is checked again now and then while the model runs.
    pub fn verify(mut self, on: bool) -> Self {
        self.verify = on;
        self
    }

    /// How long to wait for a GPU's answer before giving the GPU up. A GPU that was given up gets
    /// no further call; its memory is leaked, because it may still write there, and sessions [go
    /// on](Self::rescue) on the CPU. Work that is expected to take long gets twenty times as long.
    /// The self-test of a device, before a model is loaded, has a third of this time for all its
    /// waits together. Default: 30 seconds.
    ///
    /// Nothing can end a kernel that hangs, and a driver waits for it forever.
    pub fn device_timeout(mut self, time: Duration) -> Self {
        self.device_timeout = time;
        self
    }

    /// Loads the model at `path`; for a split model, the path of any part.
    ///
    /// # Errors
    /// The error says what is wrong with the file, an option or the device.
    pub fn load(mut self, path: impl AsRef<Path>) -> Result<Model> {
        self.check()?;
        let gguf = match self.map {
            true => Gguf::open(path)?,
            false => Gguf::read_and_tell(path.as_ref(), &mut |bytes, total| self.tell(bytes, total))?,
        };
        self.load_gguf(gguf)
    }

    /// Loads a model that is already parsed, for example from memory.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_gguf(mut self, gguf: Gguf) -> Result<Model> {
        self.check()?;
        Model::load_with(&mut self, gguf)
    }

    /// How much memory the model at `path` would take with these options, without loading it. This
    /// maps the file and reads only the header.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn estimate(&self, path: impl AsRef<Path>) -> Result<MemoryEstimate> {
        self.check()?;
        let gguf = Gguf::open(path)?;
        let estimate = || {
            let config = Config::read(&gguf)?;
            let program = arch::program(&gguf, &config)?;
            let context = self.context.unwrap_or(config.context);
            Ok(MemoryEstimate {
                weights: gguf.tensors().iter().map(|t| t.size()).sum(),
                kv_cache: cpu::state_bytes(&program, self.effective_kv_type(), context),
                buffers: cpu::buffer_bytes(&program),
            })
        };
        estimate().map_err(|e: Error| e.in_file(gguf.path()))
    }

    fn check(&self) -> Result<()> {
        if self.threads == Some(0) {
            return Err(Error::invalid_input("0 threads were asked for; use at least 1"));
        }
        self.placement.check()?;
        if let (Device::Hip(gpu), Placement::Layers(0)) = (self.device, &self.placement) {
            return Err(Error::invalid_input(format!("0 layers were asked for on hip:{gpu}; use the device cpu")));
        }
        if self.copy_threads == Some(0) {
            return Err(Error::invalid_input("0 threads were asked for to copy; use at least 1"));
        }
        if self.device_timeout.is_zero() {
            return Err(Error::invalid_input("a device timeout of 0 was asked for: every device would be given up"));
        }
        if self.context == Some(0) {
            return Err(Error::invalid_input("a context of 0 tokens was asked for; use at least 1"));
        }
        Ok(())
    }

    pub(super) fn effective_kv_type(&self) -> KvType {
        match self.precision {
            Precision::Reference => KvType::F32,
            Precision::Fast => self.kv_type,
        }
    }

    /// Reports loading progress to the callback.
    fn tell(&mut self, bytes: u64, total_bytes: u64) -> Result<()> {
        match self.on_progress.as_mut().map(|callback| callback(Progress { bytes, total_bytes })) {
            Some(ControlFlow::Break(())) => {
                Err(Error::new(ErrorKind::Cancelled, "loading was cancelled by the caller"))
            }
            _ => Ok(()),
        }
    }

    /// Reads in all tensors, if there is a callback.
    fn prefetch(&mut self, gguf: &Gguf) -> Result<()> {
        // The callback has already heard of a file that was read.
        if self.on_progress.is_none() || !(self.map || gguf.is_mapped()) {
            return Ok(());
        }
        let total_bytes = gguf.tensors().iter().map(|t| t.size()).sum();
        let mut bytes = 0;
        self.tell(0, total_bytes)?;
        for tensor in gguf.tensors() {
            const STEP: usize = 16 << 20;
            for part in gguf.data(tensor).chunks(STEP) {
                // Reading one byte of a memory page makes the system load that page.
                std::hint::black_box(part.iter().step_by(4096).fold(0u8, |sum, &b| sum.wrapping_add(b)));
                bytes += part.len() as u64;
                self.tell(bytes, total_bytes)?;
            }
        }
        Ok(())
    }

    /// Chooses the device and loads the program there. Also returns the backend to move sessions to
    /// when the device fails, unless the options rule that out.
    pub(super) fn open_backend(
        &mut self,
        gguf: Gguf,
        program: &Arc<Program>,
        config: &Config,
    ) -> Result<(Arc<dyn Backend>, DeviceReport, Option<Rescue>)> {
        const ROOM: usize = 4096;
        let device = self.placement.device(self.device);
        let kv_type = self.effective_kv_type();
        let request = Request { device, precision: self.precision, kv_type, patience: self.device_timeout };
        let probed = if self.probe_in_child && device != Device::Cpu { request.probe(&gguf) } else { Ok(()) };
        let mut report = match probed {
            Ok(()) => DeviceReport::choose(device)?,
            Err(e) => DeviceReport::without_gpus(device, e)?,
        };
        let gguf = Arc::new(gguf);
        while let Device::Hip(gpu) = report.device() {
            let threads = self.copy_threads.or(self.threads).unwrap_or_else(cpu::cores::default_threads);
            let load = Load {
                gguf: &gguf,
                program,
                hip: hip::HipOptions {
                    gpu,
                    kv_type,
                    precision: self.precision,
                    threads,
                    patience: self.device_timeout,
                    verify: self.verify,
                    refuses_spill: self.placement == Placement::Automatic,
                },
                others: report.other_gpus(),
                cpu: self.cpu_options(),
                context: self.context.unwrap_or(config.context.min(ROOM)),
            };
            match load.place(&self.placement.clone(), &mut |bytes, total| self.tell(bytes, total)) {
                Ok((backend, part)) => {
                    let rescue = self.rescue.then(|| Rescue::new(gguf, self.cpu_options(), self.on_event.take()));
                    return Ok((backend, report.with_placement(part), rescue));
                }
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                // A forced placement is an error where it does not fit, instead of a fallback.
                Err(e) if self.placement != Placement::Automatic && e.kind() == ErrorKind::OutOfMemory => {
                    return Err(e);
                }
                Err(e) => {
                    log::warn!("device hip:{gpu} is not used: {e}");
                    report.refuse(e)?;
                }
            }
        }
        self.prefetch(&gguf)?;
        let backend = cpu::CpuBackend::new(gguf, Arc::clone(program), self.cpu_options())?;
        Ok((Arc::new(backend), report, None))
    }

    fn cpu_options(&self) -> cpu::CpuOptions {
        let kv_type = self.effective_kv_type();
        let (threads, pool, isa) = (self.threads, self.pool.clone(), Isa::best());
        cpu::CpuOptions { threads, pool, kv_type, precision: self.precision, isa }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("device", &self.device)
            .field("threads", &self.threads)
            .field("context", &self.context)
            .field("kv_type", &self.kv_type)
            .field("precision", &self.precision)
            .field("placement", &self.placement)
            .field("rescue", &self.rescue)
            .field("map", &self.map)
            .finish_non_exhaustive()
    }
}
