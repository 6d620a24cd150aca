//! The rescue: the sessions of a device that fails in use go on on the CPU.

use crate::backend::{Backend, cpu, hip};
use crate::device::{Device, DeviceReport};
use crate::gguf::Gguf;
use crate::program::Program;
use crate::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// An event of a running model that a program may want to report; see
/// [`LoadOptions::on_event`](crate::LoadOptions::on_event).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The device of a session failed, or ran out of memory. The session evaluates its tokens again
    /// on another device and goes on there.
    ///
    /// Tokens that were already returned stand. The continuation is the same as that of a session
    /// on the new device after exactly these tokens, bit by bit if that device is the CPU. The
    /// failed device might have continued otherwise: a GPU rounds differently from the CPU, so it
    /// may choose the other one of two tokens that are about equally likely.
    #[non_exhaustive]
    SessionMoved {
        /// The session's previous device.
        from: Device,
        /// The session's new device.
        to: Device,
        /// What failed, as text.
        reason: String,
    },
}

pub(super) type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// The way out of a failing device.
pub(super) struct Rescue {
    gguf: Arc<Gguf>,
    cpu: cpu::CpuOptions,
    on_event: Option<OnEvent>,
    /// Made when a session first needs it, and shared by all sessions that do.
    backend: Mutex<Option<Arc<dyn Backend>>>,
    /// Set once the device is given up, with the facts about the model from then on.
    lost: OnceLock<Lost>,
}

/// A device that was given up.
struct Lost {
    report: DeviceReport,
    reason: String,
    backend: Arc<dyn Backend>,
}

impl Rescue {
    /// Prepares to move sessions to a CPU backend with these options.
    pub(super) fn new(gguf: Arc<Gguf>, cpu: cpu::CpuOptions, on_event: Option<OnEvent>) -> Self {
        Self { gguf, cpu, on_event, backend: Mutex::default(), lost: OnceLock::new() }
    }

    /// The report from the moment the device was given up.
    pub(super) fn report(&self) -> Option<&DeviceReport> {
        self.lost.get().map(|lost| &lost.report)
    }

    /// The backend of sessions from the moment the device was given up.
    pub(super) fn backend(&self) -> Option<&Arc<dyn Backend>> {
        self.lost.get().map(|lost| &lost.backend)
    }

    /// The backend to move to for a session whose device was given up; reports the move.
    pub(super) fn follow(&self, from: Device) -> Option<Arc<dyn Backend>> {
        let lost = self.lost.get()?;
        self.tell(from, &lost.reason);
        Some(Arc::clone(&lost.backend))
    }

    /// The backend to move to for a session whose device failed with `error`; `report` is about
    /// that device. Reports the move. `None` if the device is not to blame for the error, or the
    /// CPU cannot help either. A device is given up after any failure but lack of memory: drivers
    /// do not recover from such failures within a process.
    pub(super) fn rescue(
        &self,
        program: &Arc<Program>,
        report: &DeviceReport,
        error: &Error,
    ) -> Option<Arc<dyn Backend>> {
        let from = report.device();
        // The CPU accepts inputs that a GPU's kernels may refuse.
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
        // A transient error moves only this session.
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
        // The lock is held while the backend is made, so that no two threads make one.
        let mut made = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = &*made {
            return Ok(Arc::clone(backend));
        }
        let backend = cpu::CpuBackend::new(Arc::clone(&self.gguf), Arc::clone(program), self.cpu.clone())?;
        Ok(Arc::clone(made.insert(Arc::new(backend))))
    }
}
