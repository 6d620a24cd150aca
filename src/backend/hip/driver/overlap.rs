//! Launches that begin while the one before them still runs: "programmatic dependent launch" of the
//! CUDA driver. HIP has no counterpart.

use super::{Handle, Status};
use libloading::Library;
use std::ffi::{c_uint, c_void};

table! {
    /// A function that only CUDA 12 and later have.
    OverlapFunctions {
        launch(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void) = "cuLaunchKernelEx";
    }
}

/// `CUlaunchConfig`
#[repr(C)]
pub(crate) struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: Handle,
    attributes: *const LaunchAttribute,
    attribute_count: c_uint,
}

/// `CUlaunchAttribute`, whose value is a union of 64 bytes.
#[repr(C)]
struct LaunchAttribute {
    id: c_uint,
    value: [u64; 8],
}

impl OverlapFunctions {
    /// Like [`Driver::launch`](super::Driver::launch), for a kernel that may begin as soon as the
    /// launch before it allows it.
    ///
    /// # Safety
    /// As [`Driver::launch`](super::Driver::launch); and the kernel waits for earlier work on its
    /// own.
    pub(super) unsafe fn launch(
        &self,
        function: Handle,
        grid: [u32; 3],
        threads: u32,
        stream: Handle,
        arguments: &mut [*mut c_void],
    ) -> Status {
        /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`, whose value is an int.
        const ID: c_uint = 6;
        let mut value = [0; 8];
        bytemuck::cast_slice_mut::<u64, i32>(&mut value)[0] = 1;
        let attribute = LaunchAttribute { id: ID, value };
        let config = LaunchConfig {
            grid,
            block: [threads, 1, 1],
            shared_bytes: 0,
            stream,
            attributes: &raw const attribute,
            attribute_count: 1,
        };
        // SAFETY: the caller's promise; the configuration lives until the call returns.
        unsafe { (self.launch)(&raw const config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) }
    }
}

/// The kernels of a module, given as PTX, that may overlap: those with the instruction that waits.
pub(crate) fn waiting_kernels(code: &[u8]) -> Vec<&str> {
    let Ok(text) = std::str::from_utf8(code) else { return Vec::new() };
    let kernels = text.split(".entry ").skip(1).filter(|kernel| kernel.contains("griddepcontrol.wait"));
    kernels.filter_map(|kernel| kernel.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_wait_are_found() {
        let ptx = b".version 7.8\n.visible .entry a_1(\n.param .u64 x)\n{ griddepcontrol.wait; ret; }\n\
                    .visible .entry b(){ ret; }\n// .globl c\n.visible .entry c(){ griddepcontrol.wait; }\n\0";
        assert_eq!(waiting_kernels(ptx), ["a_1", "c"]);
        assert_eq!(waiting_kernels(b"\x7fELF\xff.entry a(griddepcontrol.wait"), [""; 0]);
    }

    #[test]
    fn structures_are_as_large_as_the_drivers() {
        assert_eq!((size_of::<LaunchConfig>(), size_of::<LaunchAttribute>()), (56, 72));
    }
}
