//! The first use of a GPU on a machine, in a process of its own: a driver that crashes there ends that one.
//!
//! The process runs the caller's own program, whose `main` calls [`probe_child_entry`] first. Where that was not called no
//! process is started: the program would do whatever else it does.

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

/// What is asked of the process: device, precision, type of the cache, seconds of patience.
const REQUEST: &str = "WAVELM_PROBE_CHILD";
/// The model whose kernels it tests.
const MODEL: &str = "WAVELM_PROBE_MODEL";
/// How it ends where nothing crashed, whatever else was found: that is found here again.
const SURVIVED: u8 = 86;
/// What is kept for a machine whose driver survived.
const WELL: &[u8] = b"survived";

static WAS_ENTERED: AtomicBool = AtomicBool::new(false);

/// To be called first in `main`, before threads are started and arguments are read, by programs that use
/// [`LoadOptions::probe_in_child`].
///
/// It returns at once, but in the process that wavelm starts to try a GPU out: there it does that, and ends the process.
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
        // A typed error is no crash.
        asked.answer(Path::new(&model)).ok();
    }
    // What a driver does when a process ends may crash too, but says nothing.
    #[cfg(unix)]
    // SAFETY: nothing of this process is needed any more.
    unsafe {
        libc::_exit(i32::from(SURVIVED))
    };
    #[cfg(not(unix))]
    std::process::exit(i32::from(SURVIVED));
}

/// What is to be tried.
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

    /// Tests the devices that the model would be loaded on, as loading does.
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

    /// Whether the driver of this machine survives; asks the cache first.
    ///
    /// # Errors
    /// `Device` where it crashed or did not end, now or before.
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
        // No driver is started for that.
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

    /// Runs the program again; what is to be kept of it.
    fn run(&self, model: &Path) -> Result<Vec<u8>> {
        /// Each wait in the process has a deadline of its own; starting may have several.
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
                // Also where nobody can say how it ended.
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

/// What is kept of how the process ended.
fn outcome(ended: Option<ExitStatus>, limit: Duration) -> Vec<u8> {
    match ended {
        Some(status) if status.code() == Some(i32::from(SURVIVED)) => WELL.to_vec(),
        Some(status) => format!("it ended with {status}").into_bytes(),
        None => format!("it did not end in {limit:.0?}").into_bytes(),
    }
}

impl LoadOptions {
    /// Whether the first use of a GPU by an unknown driver, that of the self-test, is in a process of its own: where the
    /// driver crashes, the CPU runs the model, here and in later runs. Default: off.
    ///
    /// The process runs this program, whose `main` calls [`probe_child_entry`](crate::probe_child_entry) first; where it did
    /// not, nothing is started, and a warning says so. What was found is kept in the user's cache folder, for this
    /// combination of GPUs, driver library, system and version of wavelm. Models that are no files are not tried out.
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
        // Another program may end so.
        assert_eq!(code(0), b"it ended with exit status: 0");
        assert!(outcome(Some(ExitStatus::from_raw(6)), limit).starts_with(b"it ended with signal: 6"));
        assert_eq!(outcome(None, limit), b"it did not end in 9s");
    }
}
