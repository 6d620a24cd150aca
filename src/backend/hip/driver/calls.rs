//! Calls that work on a bound device. They only pass on their arguments, so the callers make the
//! promises.

use super::{DevicePtr, Driver, Handle};
use crate::Result;
use std::ffi::{CStr, c_void};

impl Driver {
    pub(crate) fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        let mut memory = 0;
        // SAFETY: the address is written to a variable that lives.
        self.check(unsafe { (self.functions.allocate)(&mut memory, bytes) }, "cannot allocate device memory")?;
        Ok(memory)
    }

    /// # Safety
    /// The memory is from [`allocate`](Self::allocate) and is not used any more.
    pub(crate) unsafe fn free(&self, memory: DevicePtr) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.free)(memory) }, "cannot free device memory")
    }

    /// Memory of the host that the device can copy from and to on its own.
    pub(crate) fn allocate_host(&self, bytes: usize) -> Result<*mut c_void> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: the address is written to a variable that lives.
        let status = unsafe { (self.functions.allocate_host)(&mut memory, bytes, 0) };
        self.check(status, "cannot allocate pinned memory")?;
        Ok(memory)
    }

    /// # Safety
    /// The memory is from [`allocate_host`](Self::allocate_host) and not used any more.
    pub(crate) unsafe fn free_host(&self, memory: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.free_host)(memory) }, "cannot free pinned memory")
    }

    /// # Safety
    /// Both places have `n` bytes, and stay unchanged until the stream has done the copy.
    pub(crate) unsafe fn copy_to_device(&self, to: DevicePtr, from: *const u8, n: usize, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.copy_to_device)(to, from.cast(), n, stream) }, "cannot copy to the device")
    }

    /// # Safety
    /// As [`copy_to_device`](Self::copy_to_device).
    pub(crate) unsafe fn copy_to_host(&self, to: *mut u8, from: DevicePtr, n: usize, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.copy_to_host)(to.cast(), from, n, stream) }, "cannot copy from the device")
    }

    /// # Safety
    /// As [`copy_to_device`](Self::copy_to_device).
    pub(crate) unsafe fn copy_on_device(&self, to: DevicePtr, from: DevicePtr, n: usize, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.copy_on_device)(to, from, n, stream) }, "cannot copy on the device")
    }

    /// Loads a code object, or PTX that ends with a zero byte.
    ///
    /// # Safety
    /// `code` is a complete code object or PTX.
    pub(crate) unsafe fn load_module(&self, code: &[u8]) -> Result<Handle> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the caller's promise; the module is written to a variable that lives.
        let status = unsafe { (self.functions.load_module)(&mut module, code.as_ptr().cast()) };
        self.check(status, "cannot load the code object")?;
        Ok(module)
    }

    /// # Safety
    /// The module is loaded, and its functions are not used any more.
    pub(crate) unsafe fn unload_module(&self, module: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check(unsafe { (self.functions.unload_module)(module) }, "cannot unload a module")
    }

    /// # Safety
    /// The module is loaded.
    pub(crate) unsafe fn function(&self, module: Handle, name: &CStr) -> Result<Handle> {
        let mut function = std::ptr::null_mut();
        // SAFETY: the caller's promise; the function is written to a variable that lives.
        let status = unsafe { (self.functions.function)(&mut function, module, name.as_ptr()) };
        self.check(status, &format!("cannot find the kernel {}", name.to_string_lossy()))?;
        Ok(function)
    }

    /// Queues a launch. Where the driver can, a launch that `overlaps` may begin while earlier work
    /// still runs.
    ///
    /// # Safety
    /// The arguments are those of the function, and the memory that they point to is right for it.
    /// A kernel that overlaps waits for the work queued before it on its own.
    pub(crate) unsafe fn launch(
        &self,
        function: Handle,
        grid: [u32; 3],
        threads: u32,
        stream: Handle,
        arguments: &mut [*mut c_void],
        overlaps: bool,
    ) -> Result<()> {
        let status = match &self.overlap {
            // SAFETY: the caller's promise.
            Some(overlap) if overlaps => unsafe { overlap.launch(function, grid, threads, stream, arguments) },
            _ => {
                let ([x, y, z], none) = (grid, std::ptr::null_mut());
                let arguments = arguments.as_mut_ptr();
                // SAFETY: the caller's promise.
                unsafe { (self.functions.launch)(function, x, y, z, threads, 1, 1, 0, stream, arguments, none) }
            }
        };
        self.check(status, "cannot launch a kernel")
    }
}
