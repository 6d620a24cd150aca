//! The GPU backend: weights stay quantized in device memory, and a pass is a row of kernel launches on one stream.
//!
//! The kernels are in hip/ and loaded when a model is; see [`objects`] for where from. Everything that can be known in
//! advance is: which kernels a program needs, where its buffers lie, how large they get. A model that does not fit a
//! device, or that it has no kernels for, is refused while it is loaded.

pub(crate) mod device;
mod driver;
mod exec;
mod inputs;
mod memory;
mod modules;
mod objects;
mod plan;
mod pool;
mod prepare;
mod rtc;
mod weights;

use super::kv::KvPool;
use super::{Backend, Batch, Canceller, KvType, Limits, Logits};
use crate::gguf::Gguf;
use crate::model::Precision;
use crate::model::program::Program;
use crate::{Error, ErrorKind, Result};
use device::Device;
use exec::Executor;
use memory::{DeviceBuffer, HostBuffer};
use pool::Pages;
use std::sync::{Arc, Mutex, PoisonError};

/// Tokens in a pass at most.
const MOST_TOKENS: usize = 256;
/// Outputs in a pass at most.
const MOST_OUTPUTS: usize = 32;

/// How the GPU backend is made.
pub(crate) struct HipOptions {
    /// The number of the GPU, as [`device::find`] counts them.
    pub(crate) gpu: usize,
    pub(crate) kv_type: KvType,
    pub(crate) precision: Precision,
}

/// A model on a GPU.
pub(crate) struct HipBackend {
    device: Arc<Device>,
    kv_type: KvType,
    weight_bytes: usize,
    columns: usize,
    pages: Pages,
    pool: Arc<KvPool>,
    executor: Arc<Mutex<Executor>>,
    /// Memory for logits that nobody holds at the moment.
    idle: Arc<Mutex<Vec<Rows>>>,
}

impl HipBackend {
    /// Loads the program's weights and kernels.
    ///
    /// # Errors
    /// `Device` or `OutOfMemory`, with what the device lacks; `Unsupported` for what there are no kernels for.
    pub(crate) fn new(gguf: &Gguf, program: Arc<Program>, options: &HipOptions) -> Result<Self> {
        if options.precision == Precision::Reference {
            return Err(Error::unsupported("the reference precision is computed on the CPU alone"));
        }
        let device = device::open(options.gpu)?;
        let executor = Executor::new(&device, gguf, &program, options.kv_type)?;
        let pages = Pages::new(&device, executor.page_bytes())?;
        Ok(Self {
            kv_type: options.kv_type,
            weight_bytes: executor.weight_bytes(),
            columns: program.vocab,
            pool: KvPool::new(Box::new(pages.clone())),
            pages,
            executor: Arc::new(Mutex::new(executor)),
            idle: Arc::default(),
            device,
        })
    }

    /// Memory for `rows` rows of logits: that of a pass before, where it is large enough.
    fn rows(&self, rows: usize) -> Result<Rows> {
        let bytes = rows.saturating_mul(self.columns).saturating_mul(4);
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(idle) if idle.memory.bytes() >= bytes => Ok(idle),
            _ => Ok(Rows {
                memory: DeviceBuffer::new(&self.device, bytes, "logits")?,
                row: HostBuffer::new(&self.device, self.columns.saturating_mul(4))?,
            }),
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

    fn kv_pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    fn limits(&self) -> Limits {
        Limits { tokens: MOST_TOKENS, outputs: MOST_OUTPUTS }
    }

    fn run(&self, batch: &Batch<'_>, cancel: &Canceller) -> Result<Box<dyn Logits>> {
        let outputs = batch.outputs();
        let rows = self.rows(outputs)?;
        let ran = {
            let mut executor = self.executor.lock().unwrap_or_else(PoisonError::into_inner);
            self.pages.with_memory(|pages| executor.run(batch, pages, &rows.memory, cancel))
        };
        // Returned to the idle ones when dropped, also after an error.
        let logits = HipLogits {
            executor: Arc::clone(&self.executor),
            idle: Arc::clone(&self.idle),
            rows: Some(rows),
            outputs,
            columns: self.columns,
        };
        ran.map(|()| Box::new(logits) as Box<dyn Logits>)
    }
}

/// Rows of logits on the device, and a place on the host for one.
struct Rows {
    memory: DeviceBuffer,
    row: HostBuffer,
}

/// The logits of a pass.
struct HipLogits {
    executor: Arc<Mutex<Executor>>,
    idle: Arc<Mutex<Vec<Rows>>>,
    /// `None` only while it is dropped.
    rows: Option<Rows>,
    outputs: usize,
    columns: usize,
}

impl Logits for HipLogits {
    fn row(&mut self, row: usize) -> Result<&[f32]> {
        let unknown = || Error::invalid_input(format!("row {row} of logits was not asked for"));
        let rows = self.rows.as_mut().filter(|_| row < self.outputs).ok_or_else(unknown)?;
        let bytes = self.columns * 4;
        let executor = self.executor.lock().unwrap_or_else(PoisonError::into_inner);
        executor.stream().download(&rows.memory, row * bytes, &mut rows.row, bytes)?;
        let values = rows.row.as_slice().get(..bytes).and_then(|bytes| bytemuck::try_cast_slice(bytes).ok());
        values.ok_or_else(|| Error::new(ErrorKind::Device, "pinned memory is not aligned"))
    }
}

impl Drop for HipLogits {
    fn drop(&mut self) {
        let rows = self.rows.take();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(rows);
    }
}
