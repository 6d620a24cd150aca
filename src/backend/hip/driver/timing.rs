//! The driver's functions for measuring time on the device. Old versions do not have them.

use super::{Handle, Status};
use crate::{Error, ErrorKind, Result};
use libloading::Library;
use std::ffi::{c_uint, c_void};

/// A host function that a stream can call, with the stream, the status of earlier work, and data.
pub(crate) type HostFunction = unsafe extern "C" fn(Handle, Status, *mut c_void);

table! {
    /// Times. Both vendors have them under the same conventions.
    TimingFunctions {
        elapsed(*mut f32, Handle, Handle) = "hipEventElapsedTime" | "cuEventElapsedTime";
        call_host(Handle, HostFunction, *mut c_void, c_uint) = "hipStreamAddCallback" | "cuStreamAddCallback";
    }
}

fn check(status: Status, what: &str) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Device, format!("{what}: the driver reports error {status}")))
}

/// These calls only pass on their arguments, so the callers make the promises.
impl TimingFunctions {
    /// Milliseconds from one event to another.
    ///
    /// # Safety
    /// Both exist.
    pub(crate) unsafe fn elapsed(&self, from: Handle, to: Handle) -> Result<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: the caller's promise; the time is written to a variable that lives.
        check(unsafe { (self.elapsed)(&mut milliseconds, from, to) }, "cannot read the time between two events")?;
        Ok(milliseconds)
    }

    /// Queues a call on the host. Later work in the stream waits until the call returns.
    ///
    /// # Safety
    /// The stream exists. The function may be called with `data` from another thread, once, at any
    /// time from now on, and calls no driver.
    pub(crate) unsafe fn call_host(&self, stream: Handle, f: HostFunction, data: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { (self.call_host)(stream, f, data, 0) }, "cannot queue a call on the host")
    }
}
