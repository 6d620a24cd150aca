//! The driver's functions for graphs. Old versions do not have them.

use super::neighbours::{BesideCapture, OF_CAPTURES};
use super::{Handle, Status};
use crate::{Error, ErrorKind, Result};
use libloading::Library;
use std::ffi::{c_char, c_uint};

table! {
    /// Graphs. Both vendors have them under the same conventions.
    GraphFunctions {
        begin_capture(Handle, c_uint) = "hipStreamBeginCapture" | "cuStreamBeginCapture_v2";
        end_capture(Handle, *mut Handle) = "hipStreamEndCapture" | "cuStreamEndCapture";
        instantiate(*mut Handle, Handle, *mut Handle, *mut c_char, usize) = "hipGraphInstantiate" | "cuGraphInstantiate_v2";
        launch(Handle, Handle) = "hipGraphLaunch" | "cuGraphLaunch";
        destroy_executable(Handle) = "hipGraphExecDestroy" | "cuGraphExecDestroy";
        destroy(Handle) = "hipGraphDestroy" | "cuGraphDestroy";
    }
}

fn check(status: Status, what: &str) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let error = Error::new(ErrorKind::Device, format!("{what}: the driver reports error {status}"));
    Err(if OF_CAPTURES.contains(&status) { error.with_source(BesideCapture) } else { error })
}

/// These calls only pass on their arguments, so the callers make the promises.
impl GraphFunctions {
    /// # Safety
    /// The stream exists, and this thread ends the capture.
    pub(crate) unsafe fn begin_capture(&self, stream: Handle) -> Result<()> {
        /// `hipStreamCaptureModeThreadLocal`: does not restrict the calls of other threads
        /// meanwhile.
        const THREAD_LOCAL: c_uint = 1;
        // SAFETY: the caller's promise.
        check(unsafe { (self.begin_capture)(stream, THREAD_LOCAL) }, "cannot capture a stream")
    }

    /// # Safety
    /// The stream is being captured by this thread.
    pub(crate) unsafe fn end_capture(&self, stream: Handle) -> Result<Handle> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the caller's promise; the graph is written to a variable that lives.
        check(unsafe { (self.end_capture)(stream, &mut graph) }, "cannot end capturing a stream")?;
        Ok(graph)
    }

    /// # Safety
    /// The graph exists.
    pub(crate) unsafe fn instantiate(&self, graph: Handle) -> Result<Handle> {
        let (mut made, none) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the caller's promise; no log is asked for.
        check(unsafe { (self.instantiate)(&mut made, graph, none, std::ptr::null_mut(), 0) }, "cannot make a graph")?;
        Ok(made)
    }

    /// # Safety
    /// Both exist, and the memory that the launches of the graph use stays allocated until the stream was waited for.
    pub(crate) unsafe fn launch(&self, executable: Handle, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { (self.launch)(executable, stream) }, "cannot launch a graph")
    }

    /// # Safety
    /// The graph exists, does not run, and is not used any more.
    pub(crate) unsafe fn destroy_executable(&self, executable: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { (self.destroy_executable)(executable) }, "cannot free a graph")
    }

    /// # Safety
    /// The graph exists and is not used any more.
    pub(crate) unsafe fn destroy(&self, graph: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { (self.destroy)(graph) }, "cannot free a captured graph")
    }
}
