//! What becomes of the sessions of a device that fails while it is in use: they go on on the CPU.

use crate::backend::{Backend, cpu, hip};
use crate::device::{Device, DeviceReport};
use crate::gguf::Gguf;
use crate::program::Program;
use crate::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What happened to a model in use that a program may want to tell of; see
/// [`LoadOptions::on_event`](crate::LoadOptions::on_event).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The device of a session failed, or has no memory left. The session evaluates its tokens again on another device
    /// and goes on there.
    ///
    /// Tokens that were given already stand. What follows is what a session on the new device
    /// writes after exactly these tokens, bit by bit where that is the CPU. It need not be what the
    /// device that failed would have written: a GPU rounds other numbers than the CPU, so that of
    /// two tokens that are about as likely it may choose the other one.
    #[non_exhaustive]
    SessionMoved {
        /// Where the session was.
        from: Device,
        /// Where it is now.
        to: Device,
        /// What failed.
        reason: String,
    },
}

pub(super) type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// The way out of a device that fails.
pub(super) struct Rescue {
    gguf: Arc<Gguf>,
    cpu: cpu::CpuOptions,
    on_event: Option<OnEvent>,
    /// Made when a session first needs it, and shared by all that do.
    backend: Mutex<Option<Arc<dyn Backend>>>,
    /// Set once the device is given up: what is true of the model since.
    lost: OnceLock<Lost>,
}

/// A device that is given up.
struct Lost {
    report: DeviceReport,
    reason: String,
    backend: Arc<dyn Backend>,
}

impl Rescue {
    /// Sessions go to a CPU backend with these options.
    pub(super) fn new(gguf: Arc<Gguf>, cpu: cpu::CpuOptions, on_event: Option<OnEvent>) -> Self {
        Self { gguf, cpu, on_event, backend: Mutex::default(), lost: OnceLock::new() }
    }

    /// The report since the device was given up.
    pub(super) fn report(&self) -> Option<&DeviceReport> {
        self.lost.get().map(|lost| &lost.report)
    }

    /// What runs sessions since the device was given up.
    pub(super) fn backend(&self) -> Option<&Arc<dyn Backend>> {
        self.lost.get().map(|lost| &lost.backend)
    }

    /// Where a session of a device goes that was given up; tells of it.
    pub(super) fn follow(&self, from: Device) -> Option<Arc<dyn Backend>> {
        let lost = self.lost.get()?;
        self.tell(from, &lost.reason);
        Some(Arc::clone(&lost.backend))
    }

    /// Where a session goes whose device, which `report` is about, failed with `error`; tells of it. Nowhere, if the
    /// error is none of the device's, or the CPU cannot help either. A device that failed in any other way than for
    /// want of memory is given up: drivers do not recover from that within a process.
    pub(super) fn rescue(
        &self,
        program: &Arc<Program>,
        report: &DeviceReport,
        error: &Error,
    ) -> Option<Arc<dyn Backend>> {
        let from = report.device();
        // A GPU's kernels may not take what the CPU takes.
        let is_fault = matches!(error.kind(), ErrorKind::Device | ErrorKind::OutOfMemory | ErrorKind::Unsupported);
        if !is_fault || from == Device::Cpu {
            return None;
        }
        let backend = match self.cpu(program) {
            Ok(backend) => backend,
            Err(e) => {
                log::warn!("device {from} failed ({error}), and the CPU cannot go on: {e}");
                return None;
            }
        };
        // What passes by itself moves the session alone.
        if error.kind() == ErrorKind::Device && !hip::is_transient(error) {
            self.lost.get_or_init(|| {
                let reason = error.to_string();
                Lost { report: report.failed(&reason), reason, backend: Arc::clone(&backend) }
            });
        }
        self.tell(from, &error.to_string());
        Some(backend)
    }

    fn tell(&self, from: Device, reason: &str) {
        log::warn!("device {from} failed: {reason}; the session goes on on the CPU");
        if let Some(on_event) = &self.on_event {
            on_event(&Event::SessionMoved { from, to: Device::Cpu, reason: reason.to_owned() });
        }
    }

    fn cpu(&self, program: &Arc<Program>) -> Result<Arc<dyn Backend>> {
        // Held while the backend is made, so that no two threads make one.
        let mut made = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = &*made {
            return Ok(Arc::clone(backend));
        }
        let backend = cpu::CpuBackend::new(Arc::clone(&self.gguf), Arc::clone(program), self.cpu.clone())?;
        Ok(Arc::clone(made.insert(Arc::new(backend))))
    }
}
