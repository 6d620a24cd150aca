//! How a model is loaded.

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

/// How far loading has come.
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

    /// What a callback returns to let the loading go on.
    pub fn go_on(&self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// What a callback returns to give up; loading then ends with an error of the kind
    /// [`Cancelled`](ErrorKind::Cancelled).
    pub fn cancel(&self) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

/// The memory that a model needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The weights, of which a process holds each once. On the CPU these are pages of the mapped file, which the system may
    /// drop and read again, until they are copied; copies, and files that are [read](LoadOptions::map), stay in memory.
    pub weights: u64,
    /// The cache of one session whose context is full.
    pub kv_cache: u64,
    /// Buffers of a forward pass over a prompt.
    pub buffers: u64,
}

impl MemoryEstimate {
    /// All of it, with one session.
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
    /// On the CPU the logits after some tokens are the same bits however the tokens came into the
    /// context: in one prompt or one by one, alone or in passes with other sequences, the first
    /// time or again after the cache was dropped, on any number of threads. They differ between
    /// instruction sets, as they do between devices. On a GPU, passes of other lengths add up in
    /// other orders, so that a text may depend on how its context was evaluated.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// How many threads compute, the calling one included. Default: `$WAVELM_THREADS`, else the number of physical
    /// cores that this process may use. Where a GPU computes, they read the weights, and are eight at most.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Computes on the caller's pool instead of one that the model owns. [`threads`](Self::threads) is then ignored.
    pub fn pool(mut self, pool: Arc<rayon::ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// The longest context of a session, in tokens. Default: what the model was trained for. Memory for the cache is
    /// taken as sessions grow, not in advance.
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

    /// Calls `callback` while the weights are brought into memory: on a GPU as they arrive there, where they are those
    /// that the model needs; on the CPU as they are read, where without a callback they are only mapped, and read when
    /// first used. A file that is not [mapped](Self::map) is read before, all of it: then these are the bytes of the file. If a
    /// GPU turns out not to be usable, the next device starts again from 0.
    pub fn on_progress(mut self, callback: impl FnMut(Progress) -> ControlFlow<()> + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(callback));
        self
    }

    /// Which layers a GPU runs. Default: [`Placement::Automatic`], which leaves room for a session of the
    /// [context](Self::context) that was asked for, else for one of 4,096 tokens.
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Whether sessions go on on the CPU where a GPU fails in use: their tokens are evaluated again
    /// there. Tokens that were given stand, and what follows is, bit by bit, what a session on the
    /// CPU writes after them, which need not be what the GPU would have written. An
    /// [event](Self::on_event) and a logged warning tell of it. Where it is off, the session
    /// returns the error. Default: on.
    pub fn rescue(mut self, on: bool) -> Self {
        self.rescue = on;
        self
    }

    /// Whether the file is mapped into memory. Default: on.
    ///
    /// Mapped, a model loads in no time, and its weights are read when they are first used. But whoever changes the file
    /// meanwhile changes the weights, and whoever cuts it short ends the process with a bus error (SIGBUS) when a lost part is
    /// used; replacing it by renaming another one over it is harmless. On the CPU the danger is over once all weights are
    /// copied to the order that the kernels are fastest with, which is done between the first tokens (some fifty) where there
    /// is memory for it: the file is then let go of. It stays mapped where nothing is copied: with little memory, on ARM, for
    /// models of floating-point weights, with [`Precision::Reference`] and where `WAVELM_CPU_WEIGHTS=mapped` says so. Where a
    /// GPU runs the model, it stays mapped for a [rescue](Self::rescue).
    ///
    /// Off, the file is read into memory before the model is loaded, which takes as long as reading does. What happens to the
    /// file afterwards does not matter; one that is cut short before all was read is an error of the kind
    /// [`Io`](ErrorKind::Io). A process holds each weight once in either case: on the CPU, the weights are put in the faster
    /// order where they lie, unless `WAVELM_CPU_WEIGHTS=mapped` asks for the file's.
    ///
    /// For [`load_gguf`](Self::load_gguf) the caller has decided, by [`Gguf::open`] or [`Gguf::read`].
    pub fn map(mut self, on: bool) -> Self {
        self.map = on;
        self
    }

    /// Calls `callback` when something happens to the model in use that a program may want to tell of, on the thread
    /// that it happens to.
    pub fn on_event(mut self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Box::new(callback));
        self
    }

    /// How many threads copy weights to a GPU at a time, eight at most. Default: [`threads`](Self::threads). One is slower, and a
    /// way out where a driver loses copies that run beside each other.
    pub fn copy_threads(mut self, threads: usize) -> Self {
        self.copy_threads = Some(threads);
        self
    }

    /// Whether all weights are read back from a GPU once they are there, and compared with what was sent: what lies in damaged
    /// memory, or was lost on the way, is an error of the device. Takes about as long as sending them. Default: off.
    ///
    /// In either case a part of the weights is looked at again now and then while the model runs.
    pub fn verify(mut self, on: bool) -> Self {
        self.verify = on;
        self
    }

    /// How long a GPU may leave a question unanswered before it is given up: it then gets no further call, its memory is
    /// leaked, since it may still write there, and sessions [go on](Self::rescue) on the CPU. Work that is expected to take
    /// long is waited for longer, twenty times that. The self-test of a device, before a model is loaded, has a third of
    /// this time for all of its waits together. Default: 30 seconds.
    ///
    /// Nothing ends a kernel that hangs, and a driver waits for one without end.
    pub fn device_timeout(mut self, time: Duration) -> Self {
        self.device_timeout = time;
        self
    }

    /// Loads the model at `path`; of a split model, any part.
    ///
    /// # Errors
    /// What is wrong with the file, an option or the device.
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

    /// How much memory the model at `path` would take with these options, without loading it. Only the header is read, and the
    /// file mapped for that.
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
                kv_cache: cpu::kv_bytes(&program, self.effective_kv_type(), context),
                buffers: cpu::buffer_bytes(&program),
            })
        };
        estimate().map_err(|e: Error| e.in_file(gguf.path()))
    }

    fn check(&self) -> Result<()> {
        if self.threads == Some(0) {
            return Err(Error::invalid_input("0 threads were asked for; use at least 1"));
        }
        if let (Device::Hip(gpu), Placement::Layers(0)) = (self.device, self.placement) {
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

    /// Tells who watches how far loading has come.
    fn tell(&mut self, bytes: u64, total_bytes: u64) -> Result<()> {
        match self.on_progress.as_mut().map(|callback| callback(Progress { bytes, total_bytes })) {
            Some(ControlFlow::Break(())) => {
                Err(Error::new(ErrorKind::Cancelled, "loading was cancelled by the caller"))
            }
            _ => Ok(()),
        }
    }

    /// Reads all tensors in, if somebody watches.
    fn prefetch(&mut self, gguf: &Gguf) -> Result<()> {
        // What was read was told of.
        if self.on_progress.is_none() || !(self.map || gguf.is_mapped()) {
            return Ok(());
        }
        let total_bytes = gguf.tensors().iter().map(|t| t.size()).sum();
        let mut bytes = 0;
        self.tell(0, total_bytes)?;
        for tensor in gguf.tensors() {
            const STEP: usize = 16 << 20;
            for part in gguf.data(tensor).chunks(STEP) {
                // One byte of each memory page makes the system read the page.
                std::hint::black_box(part.iter().step_by(4096).fold(0u8, |sum, &b| sum.wrapping_add(b)));
                bytes += part.len() as u64;
                self.tell(bytes, total_bytes)?;
            }
        }
        Ok(())
    }

    /// Chooses the device and loads the program there; with where its sessions go when it fails, unless that is not wanted.
    pub(super) fn open_backend(
        &mut self,
        gguf: Gguf,
        program: &Arc<Program>,
        config: &Config,
    ) -> Result<(Arc<dyn Backend>, DeviceReport, Option<Rescue>)> {
        const ROOM: usize = 4096;
        let device = if self.placement == Placement::Layers(0) { Device::Cpu } else { self.device };
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
                cpu: self.cpu_options(),
                context: self.context.unwrap_or(config.context.min(ROOM)),
            };
            match load.place(self.placement, &mut |bytes, total| self.tell(bytes, total)) {
                Ok((backend, part)) => {
                    let rescue = self.rescue.then(|| Rescue::new(gguf, self.cpu_options(), self.on_event.take()));
                    return Ok((backend, report.with_placement(part), rescue));
                }
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                // What the caller forces is no reason to do something else.
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
