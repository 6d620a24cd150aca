//! The driver's streams and events.

use super::{Driver, Handle, Status, Vendor};
use crate::Result;
use std::ffi::c_uint;

impl Driver {
    pub(crate) fn create_stream(&self) -> Result<Handle> {
        /// `hipStreamNonBlocking`: does not wait for other libraries' work.
        const NON_BLOCKING: c_uint = 1;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the stream is written to a variable that lives.
        self.check(unsafe { (self.functions.create_stream)(&mut stream, NON_BLOCKING) }, "cannot create a stream")?;
        Ok(stream)
    }

    /// # Safety
    /// The stream is from [`create_stream`](Self::create_stream) and not used any more.
    pub(crate) unsafe fn destroy_stream(&self, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.destroy_stream)(stream) }, "cannot destroy a stream")
    }

    /// Waits until the stream has done all its work.
    ///
    /// # Safety
    /// The stream exists.
    pub(crate) unsafe fn synchronize_stream(&self, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.synchronize_stream)(stream) }, "the GPU failed")
    }

    /// An event. A thread that waits for it sleeps. Only a `timed` event records a time.
    pub(crate) fn create_event(&self, timed: bool) -> Result<Handle> {
        /// `hipEventBlockingSync` and `CU_EVENT_BLOCKING_SYNC`
        const BLOCKING: c_uint = 1;
        /// `CU_EVENT_DISABLE_TIMING`
        const WITHOUT_TIME: c_uint = 2;
        let flags = match &self.vendor {
            // AMD's runtime compares the whole flags with this one. With any other flag besides,
            // waiting may spin.
            Vendor::Hip(_) => BLOCKING,
            Vendor::Cuda(_) if timed => BLOCKING,
            Vendor::Cuda(_) => BLOCKING | WITHOUT_TIME,
        };
        let mut event = std::ptr::null_mut();
        // SAFETY: the event is written to a variable that lives.
        let status = unsafe { (self.functions.create_event)(&mut event, flags) };
        self.check(status, "cannot create an event")?;
        Ok(event)
    }

    /// # Safety
    /// The event is from [`create_event`](Self::create_event) and not used any more.
    pub(crate) unsafe fn destroy_event(&self, event: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.destroy_event)(event) }, "cannot destroy an event")
    }

    /// # Safety
    /// Both exist.
    pub(crate) unsafe fn record_event(&self, event: Handle, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.record_event)(event, stream) }, "cannot record an event")
    }

    /// Whether the stream's work before the event is done.
    ///
    /// # Safety
    /// The event exists.
    pub(crate) unsafe fn query_event(&self, event: Handle) -> Result<bool> {
        /// `hipErrorNotReady` and `CUDA_ERROR_NOT_READY`
        const NOT_READY: Status = 600;
        // SAFETY: the caller's promise.
        match unsafe { (self.functions.query_event)(event) } {
            NOT_READY => Ok(false),
            status => self.check(status, "the GPU failed").map(|()| true),
        }
    }
}
