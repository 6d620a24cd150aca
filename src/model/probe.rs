//! The first use of a GPU on a machine runs in a child process, so that a driver that crashes there
//! ends only that process.
//!
//! The child runs the caller's own program, whose `main` calls [`probe_child_entry`] first. Without
//! that call no process is started, because the program would do its normal work instead.

use super::config::Config;
use super::{LoadOptions, arch};
use crate::backend::hip::{self, HipOptions};
use crate::device::{Device, DeviceReport};
use crate::gguf::Gguf;
use crate::program::Precision;
use crate::{Error, ErrorKind, KvType, Result};
use std::env;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The request to the child: device, precision, type of the cache, seconds of patience.
const REQUEST: &str = "WAVELM_PROBE_CHILD";
/// The path of the model whose kernels the child tests.
const MODEL: &str = "WAVELM_PROBE_MODEL";
/// The child's exit code if nothing crashed. Any other finding does not matter: the parent finds it
/// again.
const SURVIVED: u8 = 86;
/// The record that is kept for a machine whose driver survived.
const WELL: &[u8] = b"survived";

static WAS_ENTERED: AtomicBool = AtomicBool::new(false);

/// Programs that use [`LoadOptions::probe_in_child`] call this first in `main`, before they start
/// threads or read arguments.
///
/// It returns at once, except in the process that wavelm starts to try out a GPU. There it does
/// that, and ends the process.
///
/// ```no_run
/// fn main() -> wavelm::Result<()> {
///     wavelm::probe_child_entry();
///     let model = wavelm::Model::options().probe_in_child(true).load("model.gguf")?;
///     // …
/// #   drop(model);
///     Ok(())
/// }
/// ```
pub fn probe_child_entry() {
    let Some(request) = env::var_os(REQUEST) else {
        WAS_ENTERED.store(true, Ordering::Relaxed);
        return;
    };
    let asked = request.to_str().and_then(Request::parse);
    if let (Some(asked), Some(model)) = (asked, env::var_os(MODEL)) {
        // An error of a known kind is no crash.
        asked.answer(Path::new(&model)).ok();
    }
    // A driver may also crash while a process ends, but that tells nothing about it.
    #[cfg(unix)]
    // SAFETY: nothing of this process is needed any more, and `_exit` runs no handlers.
    unsafe {
        libc::_exit(i32::from(SURVIVED))
    };
    #[cfg(not(unix))]
    std::process::exit(i32::from(SURVIVED));
}

/// The settings to try out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Request {
    pub(super) device: Device,
    pub(super) precision: Precision,
    pub(super) kv_type: KvType,
    pub(super) patience: Duration,
}

impl Request {
    fn text(&self) -> String {
        let precision = if self.precision == Precision::Reference { "reference" } else { "fast" };
        format!("{} {precision} {:?} {}", self.device, self.kv_type, self.patience.as_secs_f64())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let device = words.next()?.parse().ok()?;
        let precision = match words.next()? {
            "reference" => Precision::Reference,
            "fast" => Precision::Fast,
            _ => return None,
        };
        let name = words.next()?;
        let kv_type = [KvType::F16, KvType::Q8_0, KvType::F32].into_iter().find(|ty| format!("{ty:?}") == name)?;
        let patience = Duration::try_from_secs_f64(words.next()?.parse().ok()?).ok()?;
        Some(Self { device, precision, kv_type, patience })
    }

    /// Tests the devices on which the model would be loaded, as loading does.
    fn answer(&self, model: &Path) -> Result<()> {
        let gguf = Gguf::open(model)?;
        let config = Config::read(&gguf)?;
        let program = Arc::new(arch::program(&gguf, &config)?);
        let mut report = DeviceReport::choose(self.device)?;
        let Self { kv_type, precision, patience, .. } = *self;
        let (verify, refuses_spill) = (false, false);
        let options = |gpu| HipOptions { gpu, kv_type, precision, threads: 1, patience, verify, refuses_spill };
        while let Device::Hip(gpu) = report.device() {
            match hip::self_test(&options(gpu), &program) {
                Ok(()) => break,
                Err(e) => report.refuse(e)?,
            }
        }
        Ok(())
    }

    /// Checks that this machine's driver survives; asks the cache first.
    ///
    /// # Errors
    /// `Device` where the driver crashed or did not end, now or in an earlier run.
    pub(super) fn probe(&self, gguf: &Gguf) -> Result<()> {
        let skip = |reason: &str| log::warn!("the GPU is not tried out in a process of its own: {reason}");
        if !WAS_ENTERED.load(Ordering::Relaxed) {
            skip("the program did not call wavelm::probe_child_entry");
            return Ok(());
        }
        if gguf.path().as_os_str().is_empty() {
            skip("the model is no file");
            return Ok(());
        }
        // Finding the machine's identity starts no driver.
        let Some(machine) = hip::machine() else { return Ok(()) };
        let known = match machine.known() {
            Some(known) => known,
            None => {
                let found = match self.run(gguf.path()) {
                    Ok(found) => found,
                    Err(e) => {
                        skip(&e.to_string());
                        return Ok(());
                    }
                };
                machine.keep(&found);
                found
            }
        };
        if known == WELL {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&known);
        let place = machine.place();
        Err(Error::new(
            ErrorKind::Device,
            format!("its driver failed in a process that tried it out: {reason}; remove {place} to try again"),
        ))
    }

    /// Runs the program again as the child; returns the record to keep.
    fn run(&self, model: &Path) -> Result<Vec<u8>> {
        /// Each wait in the child has a deadline of its own, and starting may need several waits.
        const FACTOR: u32 = 4;
        let program = env::current_exe().map_err(|e| Error::io("cannot find the program itself", e))?;
        let mut command = Command::new(program);
        command.env(REQUEST, self.text()).env(MODEL, model);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (began, limit) = (Instant::now(), self.patience.saturating_mul(FACTOR));
        let mut child = command.spawn().map_err(|e| Error::io("cannot start the program again", e))?;
        let ended = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(5)),
                // This also covers the case that nobody can say how it ended.
                _ => break None,
            }
        };
        if ended.is_none() {
            child.kill().ok();
            // A process that hangs in the kernel is not waited for.
        }
        log::debug!("a process that tried the GPU out ended after {:?}: {ended:?}", began.elapsed());
        Ok(outcome(ended, limit))
    }
}

/// The record to keep of how the process ended.
fn outcome(ended: Option<ExitStatus>, limit: Duration) -> Vec<u8> {
    match ended {
        Some(status) if status.code() == Some(i32::from(SURVIVED)) => WELL.to_vec(),
        Some(status) => format!("it ended with {status}").into_bytes(),
        None => format!("it did not end in {limit:.0?}").into_bytes(),
    }
}

impl LoadOptions {
    /// Whether the first use of a GPU with an unknown driver, the self-test, runs in a process of
    /// its own. If the driver crashes there, the CPU runs the model, now and in later runs.
    /// Default: off.
    ///
    /// The process runs this program, whose `main` calls
    /// [`probe_child_entry`](crate::probe_child_entry) first. If `main` did not call it, no process
    /// is started, and a warning says so. The result is kept in the user's cache folder, for this
    /// combination of GPUs, driver library, system and version of wavelm. Models that are not files
    /// are not tried out.
    pub fn probe_in_child(mut self, on: bool) -> Self {
        self.probe_in_child = on;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        for (device, precision, kv_type) in [
            (Device::Auto, Precision::Fast, KvType::F16),
            (Device::Hip(3), Precision::Reference, KvType::F32),
            (Device::Hip(0), Precision::Fast, KvType::Q8_0),
        ] {
            let request = Request { device, precision, kv_type, patience: Duration::from_millis(1500) };
            assert_eq!(Request::parse(&request.text()), Some(request));
        }
        for text in
            ["", "auto", "auto fast F16", "auto fast F16 -1", "auto slow F16 1", "cuda fast F16 1", "auto fast F8 1"]
        {
            assert_eq!(Request::parse(text), None, "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_entry_itself_says_that_all_is_well() {
        use std::os::unix::process::ExitStatusExt;
        let limit = Duration::from_secs(9);
        let code = |code: i32| outcome(Some(ExitStatus::from_raw(code << 8)), limit);
        assert_eq!(code(i32::from(SURVIVED)), WELL);
        // Another program may end with this code.
        assert_eq!(code(0), b"it ended with exit status: 0");
        assert!(outcome(Some(ExitStatus::from_raw(6)), limit).starts_with(b"it ended with signal: 6"));
        assert_eq!(outcome(None, limit), b"it did not end in 9s");
    }
}
