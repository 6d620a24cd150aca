//! The driver's function that fills memory. The backend works without it.

use super::{DevicePtr, Handle, Status};
use crate::{Error, ErrorKind, Result};
use libloading::Library;
use std::ffi::c_uint;

table! {
    /// Filling. Both vendors have it under the same conventions.
    FillFunctions {
        words(DevicePtr, c_uint, usize, Handle) = "hipMemsetD32Async" | "cuMemsetD32Async";
    }
}

impl FillFunctions {
    /// Queues filling `count` words of four bytes.
    ///
    /// # Safety
    /// `count` words are allocated at `to`, and stay so until the stream was waited for.
    pub(crate) unsafe fn words(&self, to: DevicePtr, word: u32, count: usize, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        match unsafe { (self.words)(to, word, count, stream) } {
            0 => Ok(()),
            status => {
                let text = format!("cannot fill device memory: the driver reports error {status}");
                Err(Error::new(ErrorKind::Device, text))
            }
        }
    }
}
