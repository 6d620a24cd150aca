//! Effects on other users of the driver in the same process: captures of graphs, and how threads
//! wait.

use super::{Driver, Status, Vendor};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ops::RangeInclusive;

table! {
    /// How a thread's calls may affect captures of other threads.
    CaptureFunctions {
        exchange_mode(*mut c_uint) = "hipThreadExchangeStreamCaptureMode" | "cuThreadExchangeStreamCaptureMode";
    }
}

table! {
    /// How threads wait for the device. CUDA keeps this in its contexts.
    FlagFunctions {
        flags(*mut c_uint) = "hipGetDeviceFlags";
        set_flags(c_uint) = "hipSetDeviceFlags";
    }
}

table! {
    /// The address of a device on the bus.
    BusFunctions {
        id(*mut c_char, c_int, c_int) = "hipDeviceGetPCIBusId";
    }
}

/// `hipErrorStreamCaptureUnsupported` to `hipErrorStreamCaptureWrongThread`, and CUDA's of the same numbers.
pub(super) const OF_CAPTURES: RangeInclusive<Status> = 900..=908;

/// The cause of a call that failed because another thread captures a graph. Nothing is wrong with
/// the device.
#[derive(Debug, thiserror::Error)]
#[error("another thread captures a graph")]
pub(super) struct BesideCapture;

/// Whether an error is transient.
pub(crate) fn is_transient(error: &crate::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<BesideCapture>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// While this lives, calls of this thread neither fail because of captures of other threads nor end
/// them.
pub(crate) struct Relaxed<'a> {
    driver: &'a Driver,
    before: c_uint,
}

impl Driver {
    /// Makes calls of this thread independent of captures of other threads.
    pub(crate) fn relaxed(&self) -> Option<Relaxed<'_>> {
        /// `hipStreamCaptureModeRelaxed`
        const RELAXED: c_uint = 2;
        let mut mode = RELAXED;
        // SAFETY: the mode is read from and written to a variable that lives.
        let status = unsafe { (self.capture.as_ref()?.exchange_mode)(&mut mode) };
        (status == 0).then_some(Relaxed { driver: self, before: mode })
    }

    /// The address of AMD's device on the bus, as the kernel writes it.
    pub(crate) fn bus_id(&self, device: c_int) -> Option<String> {
        let mut id = [0 as c_char; 64];
        // SAFETY: the function writes at most as many characters as its argument allows.
        let status = unsafe { (self.bus.as_ref()?.id)(id.as_mut_ptr(), id.len() as c_int - 1, device) };
        // SAFETY: the last character is still zero.
        let id = (status == 0).then(|| unsafe { CStr::from_ptr(id.as_ptr()) }.to_string_lossy().to_lowercase())?;
        id.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.').then_some(id)
    }

    /// Lets ROCm sleep while it waits for the bound device, unless the program has chosen another
    /// way.
    pub(crate) fn wait_asleep(&self) {
        /// `hipDeviceScheduleBlockingSync`, and the mask of all flags for waiting.
        const BLOCKING: c_uint = 4;
        const SCHEDULES: c_uint = 7;
        let Some(functions) = self.flags.as_ref().filter(|_| matches!(self.vendor, Vendor::Hip(_))) else { return };
        let mut flags = 0;
        // SAFETY: the flags are written to a variable that lives.
        if unsafe { (functions.flags)(&mut flags) } == 0 && flags & SCHEDULES == 0 {
            // SAFETY: the function takes any number. It refuses while the device is in use, which
            // does no harm.
            unsafe { (functions.set_flags)(flags | BLOCKING) };
        }
    }
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        if let Some(capture) = &self.driver.capture {
            // SAFETY: as above.
            unsafe { (capture.exchange_mode)(&mut self.before) };
        }
    }
}
