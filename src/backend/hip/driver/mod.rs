//! The driver of the GPUs: a table of function pointers that is filled when a program runs. So
//! building a program needs no driver, and the same binary works with and without a GPU.
//!
//! AMD's `libamdhip64` and NVIDIA's `libcuda` fill the same table, because HIP's module functions
//! have the same parameters as the CUDA driver's. [`Vendor`] holds the differences.

#[cfg(feature = "link-hip")]
mod link;

use super::device::health::Health;
use crate::{Error, ErrorKind, Result};
use fill::FillFunctions;
use graph::GraphFunctions;
use libloading::Library;
use neighbours::{BesideCapture, BusFunctions, CaptureFunctions, FlagFunctions, OF_CAPTURES};
use overlap::OverlapFunctions;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use timing::TimingFunctions;

/// The result of a driver function; 0 is success.
pub(crate) type Status = c_int;
/// An address in device memory.
pub(crate) type DevicePtr = u64;
/// A module, function, stream, event or context of the driver.
pub(crate) type Handle = *mut c_void;

/// `hipErrorOutOfMemory` and `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: Status = 2;
/// `hipErrorNoDevice` and `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: Status = 100;
/// `hipErrorInvalidDevice` and `CUDA_ERROR_INVALID_DEVICE`. HIP 5 returns it where there is no
/// device.
const INVALID_DEVICE: Status = 101;

/// Declares a table of driver functions, and how to fill it from a library.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident { $($(#[$fdoc:meta])* $field:ident ($($arg:ty),*) = $($symbol:literal)|+;)* }) => {
        $(#[$doc])*
        pub(crate) struct $table {
            $($(#[$fdoc])* pub(crate) $field: unsafe extern "C" fn($($arg),*) -> Status,)*
        }

        impl $table {
            /// Finds every function under the first of its names that the library has.
            ///
            /// # Errors
            /// The names of the first function that is missing.
            pub(crate) fn find(library: &Library) -> Result<Self, String> {
                Ok(Self {
                    $($field: {
                        type Function = unsafe extern "C" fn($($arg),*) -> Status;
                        let names: &[&str] = &[$($symbol),+];
                        // SAFETY: under these names both libraries export functions of this signature, by their
                        // documented and stable interfaces.
                        let found = names.iter().find_map(|n| unsafe { library.get::<Function>(n.as_bytes()) }.ok());
                        *found.ok_or_else(|| format!("it has no function {}", names.join(" or ")))?
                    },)*
                })
            }
        }
    };
}

mod calls;
mod fill;
mod find;
mod graph;
pub(crate) mod neighbours;
pub(crate) mod overlap;
pub(crate) mod places;
mod streams;
pub(crate) mod timing;

pub(crate) use find::{Attempt, LIBRARY_VARIABLE, cuda_candidates, drivers, hip_candidates};
pub(crate) use table;

table! {
    /// Functions that both vendors have, with the name in HIP and the name in CUDA.
    Functions {
        init(c_uint) = "hipInit" | "cuInit";
        device_count(*mut c_int) = "hipGetDeviceCount" | "cuDeviceGetCount";
        device_name(*mut c_char, c_int, c_int) = "hipDeviceGetName" | "cuDeviceGetName";
        attribute(*mut c_int, c_int, c_int) = "hipDeviceGetAttribute" | "cuDeviceGetAttribute";
        version(*mut c_int) = "hipRuntimeGetVersion" | "cuDriverGetVersion";
        total_memory(*mut usize, c_int) = "hipDeviceTotalMem" | "cuDeviceTotalMem_v2";
        memory_info(*mut usize, *mut usize) = "hipMemGetInfo" | "cuMemGetInfo_v2";
        allocate(*mut DevicePtr, usize) = "hipMalloc" | "cuMemAlloc_v2";
        free(DevicePtr) = "hipFree" | "cuMemFree_v2";
        allocate_host(*mut *mut c_void, usize, c_uint) = "hipHostMalloc" | "cuMemHostAlloc";
        free_host(*mut c_void) = "hipHostFree" | "cuMemFreeHost";
        copy_to_device(DevicePtr, *const c_void, usize, Handle) = "hipMemcpyHtoDAsync" | "cuMemcpyHtoDAsync_v2";
        copy_to_host(*mut c_void, DevicePtr, usize, Handle) = "hipMemcpyDtoHAsync" | "cuMemcpyDtoHAsync_v2";
        copy_on_device(DevicePtr, DevicePtr, usize, Handle) = "hipMemcpyDtoDAsync" | "cuMemcpyDtoDAsync_v2";
        load_module(*mut Handle, *const c_void) = "hipModuleLoadData" | "cuModuleLoadData";
        unload_module(Handle) = "hipModuleUnload" | "cuModuleUnload";
        function(*mut Handle, Handle, *const c_char) = "hipModuleGetFunction" | "cuModuleGetFunction";
        launch(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void,
               *mut *mut c_void) = "hipModuleLaunchKernel" | "cuLaunchKernel";
        create_stream(*mut Handle, c_uint) = "hipStreamCreateWithFlags" | "cuStreamCreate";
        destroy_stream(Handle) = "hipStreamDestroy" | "cuStreamDestroy_v2";
        synchronize_stream(Handle) = "hipStreamSynchronize" | "cuStreamSynchronize";
        create_event(*mut Handle, c_uint) = "hipEventCreateWithFlags" | "cuEventCreate";
        destroy_event(Handle) = "hipEventDestroy" | "cuEventDestroy_v2";
        record_event(Handle, Handle) = "hipEventRecord" | "cuEventRecord";
        query_event(Handle) = "hipEventQuery" | "cuEventQuery";
    }
}

table! {
    /// Functions that only HIP has. Up to version 5 the properties have another layout, and the
    /// function's name has no suffix.
    HipFunctions {
        set_device(c_int) = "hipSetDevice";
        properties(*mut c_void, c_int) = "hipGetDevicePropertiesR0600" | "hipGetDeviceProperties";
    }
}

table! {
    /// Functions that only CUDA has. CUDA's device handles are numbers, but not necessarily the
    /// devices' indexes.
    CudaFunctions {
        device(*mut c_int, c_int) = "cuDeviceGet";
        retain_context(*mut Handle, c_int) = "cuDevicePrimaryCtxRetain";
        set_context(Handle) = "cuCtxSetCurrent";
    }
}

enum Vendor {
    Hip(HipFunctions),
    Cuda(CudaFunctions),
}

/// Attributes of a device. The numbers are those of `hipDeviceAttribute_t` (the same in HIP 5, 6 and 7) and
/// `CUdevice_attribute`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attribute {
    /// Whether it shares the memory of the processor.
    Integrated,
    /// Lanes of a wave.
    WaveSize,
    /// Compute units.
    Units,
    /// Of CUDA's compute capability.
    Major,
    /// Of CUDA's compute capability.
    Minor,
}

/// A loaded driver library.
pub(crate) struct Driver {
    functions: Functions,
    vendor: Vendor,
    graphs: Option<GraphFunctions>,
    timing: Option<TimingFunctions>,
    overlap: Option<OverlapFunctions>,
    fill: Option<FillFunctions>,
    capture: Option<CaptureFunctions>,
    flags: Option<FlagFunctions>,
    bus: Option<BusFunctions>,
    /// How it was found.
    name: String,
    /// Whether it starts, and whether its devices answer.
    own_health: Health,
    health: Mutex<Vec<Arc<Health>>>,
    /// Never unloaded: the drivers' threads and exit handlers do not survive that. `None` if it is
    /// linked.
    _library: std::mem::ManuallyDrop<Option<Library>>,
}

// SAFETY: the table holds functions of a library that is never unloaded, and both vendors document their functions as
// callable from any thread.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: loading runs the library's constructors. The names are those of the GPU vendors'
        // libraries, or the user of the program asks for the library with an environment variable.
        let library = unsafe { Library::new(path) }.map_err(|e| innermost(&e))?;
        let functions = Functions::find(&library)?;
        let vendor = match HipFunctions::find(&library) {
            Ok(hip) => Vendor::Hip(hip),
            Err(no_hip) => {
                Vendor::Cuda(CudaFunctions::find(&library).map_err(|no_cuda| format!("{no_hip}; {no_cuda}"))?)
            }
        };
        let name = path.display().to_string();
        let graphs = GraphFunctions::find(&library).inspect_err(|e| log::debug!("{name}: no graphs: {e}")).ok();
        let timing = TimingFunctions::find(&library).inspect_err(|e| log::debug!("{name}: no times: {e}")).ok();
        let overlap = OverlapFunctions::find(&library).ok().filter(|_| matches!(vendor, Vendor::Cuda(_)));
        let fill = FillFunctions::find(&library).inspect_err(|e| log::debug!("{name}: cannot fill memory: {e}")).ok();
        let (capture, flags) = (CaptureFunctions::find(&library).ok(), FlagFunctions::find(&library).ok());
        let bus = BusFunctions::find(&library).ok();
        let _library = std::mem::ManuallyDrop::new(Some(library));
        let (own_health, health) = Default::default();
        Ok(Self {
            functions,
            vendor,
            graphs,
            timing,
            overlap,
            fill,
            capture,
            flags,
            bus,
            name,
            own_health,
            health,
            _library,
        })
    }

    #[cfg(feature = "link-hip")]
    fn linked() -> Self {
        Self {
            functions: link::functions(),
            vendor: Vendor::Hip(link::hip_functions()),
            graphs: Some(link::graph_functions()),
            timing: Some(link::timing_functions()),
            overlap: None,
            fill: Some(link::fill_functions()),
            capture: None,
            flags: None,
            bus: None,
            name: "the linked libamdhip64".to_owned(),
            own_health: Health::default(),
            health: Mutex::default(),
            _library: std::mem::ManuallyDrop::new(None),
        }
    }

    /// Whether the driver as a whole answers.
    pub(crate) fn own_health(&self) -> &Health {
        &self.own_health
    }

    /// The health of device number `index`, shared by all its users.
    pub(crate) fn health(&self, index: usize) -> Arc<Health> {
        let mut known = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        while known.len() <= index {
            known.push(Arc::new(Health::new(self.is_hip())));
        }
        known.get(index).map_or_else(Arc::default, Arc::clone)
    }

    pub(crate) fn is_hip(&self) -> bool {
        matches!(self.vendor, Vendor::Hip(_))
    }

    /// The functions for graphs, where the library has them.
    pub(crate) fn graphs(&self) -> Option<&GraphFunctions> {
        self.graphs.as_ref()
    }

    /// The function that fills memory, where the library has it.
    pub(crate) fn fill(&self) -> Option<&FillFunctions> {
        self.fill.as_ref()
    }

    /// Whether a launch can begin before the launches before it are done.
    pub(crate) fn has_overlap(&self) -> bool {
        self.overlap.is_some()
    }

    /// The functions for measuring time.
    ///
    /// # Errors
    /// `Device`, where the library does not have them.
    pub(crate) fn timing(&self) -> Result<&TimingFunctions> {
        self.timing.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Device, format!("{} has no functions to measure time on the device", self.name))
        })
    }

    /// How the library was found.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Turns the result of a function into an error, unless it is success.
    fn check(&self, status: Status, what: &str) -> Result<()> {
        match status {
            0 => Ok(()),
            OUT_OF_MEMORY => Err(Error::new(ErrorKind::OutOfMemory, format!("{what}: the device is out of memory"))),
            _ => {
                let error = Error::new(ErrorKind::Device, format!("{what}: {} reports error {status}", self.name));
                Err(if OF_CAPTURES.contains(&status) { error.with_source(BesideCapture) } else { error })
            }
        }
    }

    /// Starts the driver and counts its devices; none is not an error.
    pub(crate) fn start(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: 0 is the only valid flag; the count is written to a variable that lives.
        let status = match unsafe { (self.functions.init)(0) } {
            // SAFETY: as above.
            0 => unsafe { (self.functions.device_count)(&mut count) },
            failed => failed,
        };
        if status == NO_DEVICE || status == INVALID_DEVICE {
            return Ok(0);
        }
        self.check(status, "cannot start the GPU driver")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The library's version as it counts: of HIP, or of the CUDA that the driver supports.
    pub(crate) fn version(&self) -> Option<String> {
        let mut version = 0;
        // SAFETY: the version is written to a variable that lives.
        self.check(unsafe { (self.functions.version)(&mut version) }, "cannot read the version").ok()?;
        Some(match &self.vendor {
            // Major * 10^7 + minor * 10^5 + patch, and in CUDA major * 1000 + minor * 10.
            Vendor::Hip(_) => format!("HIP {}.{}", version / 10_000_000, version / 100_000 % 100),
            Vendor::Cuda(_) => format!("CUDA {}.{}", version / 1000, version / 10 % 100),
        })
    }

    /// The handle of device number `index`.
    pub(crate) fn device(&self, index: usize) -> Result<c_int> {
        let index = c_int::try_from(index).map_err(|_| Error::new(ErrorKind::Device, "no such device"))?;
        match &self.vendor {
            Vendor::Hip(_) => Ok(index),
            Vendor::Cuda(cuda) => {
                let mut device = 0;
                // SAFETY: the device is written to a variable that lives.
                self.check(unsafe { (cuda.device)(&mut device, index) }, "cannot find the device")?;
                Ok(device)
            }
        }
    }

    /// The context of a device, for [`bind`](Self::bind). It is never given back, because other
    /// libraries in the process share it.
    pub(crate) fn context(&self, device: c_int) -> Result<Handle> {
        let mut context = std::ptr::null_mut();
        if let Vendor::Cuda(cuda) = &self.vendor {
            // SAFETY: the context is written to a variable that lives.
            self.check(unsafe { (cuda.retain_context)(&mut context, device) }, "cannot open the device")?;
        }
        Ok(context)
    }

    /// Binds the device to the calling thread.
    pub(crate) fn bind(&self, device: c_int, context: Handle) -> Result<()> {
        let status = match &self.vendor {
            // SAFETY: the function takes any number.
            Vendor::Hip(hip) => unsafe { (hip.set_device)(device) },
            // SAFETY: the context is that of `context`, which is never given back.
            Vendor::Cuda(cuda) => unsafe { (cuda.set_context)(context) },
        };
        self.check(status, "cannot use the device")
    }

    pub(crate) fn device_name(&self, device: c_int) -> Result<String> {
        let mut name = [0 as c_char; 256];
        // SAFETY: the function writes at most as many characters as its argument allows.
        let status = unsafe { (self.functions.device_name)(name.as_mut_ptr(), name.len() as c_int - 1, device) };
        self.check(status, "cannot read the name of the device")?;
        // SAFETY: the last character is still zero.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().trim().to_owned())
    }

    pub(crate) fn attribute(&self, attribute: Attribute, device: c_int) -> Result<usize> {
        let number = match (&self.vendor, attribute) {
            (Vendor::Hip(_), Attribute::Integrated) => 16,
            (Vendor::Hip(_), Attribute::Major) => 23,
            (Vendor::Hip(_), Attribute::Minor) => 61,
            (Vendor::Hip(_), Attribute::Units) => 63,
            (Vendor::Hip(_), Attribute::WaveSize) => 87,
            (Vendor::Cuda(_), Attribute::WaveSize) => 10,
            (Vendor::Cuda(_), Attribute::Units) => 16,
            (Vendor::Cuda(_), Attribute::Integrated) => 18,
            (Vendor::Cuda(_), Attribute::Major) => 75,
            (Vendor::Cuda(_), Attribute::Minor) => 76,
        };
        let mut value = 0;
        // SAFETY: the value is written to a variable that lives.
        let status = unsafe { (self.functions.attribute)(&mut value, number, device) };
        self.check(status, &format!("cannot read the attribute {attribute:?} of the device"))?;
        Ok(usize::try_from(value).unwrap_or(0))
    }

    /// The architecture, as compilers name it: `gfx1100`, `sm_90`.
    pub(crate) fn arch(&self, device: c_int) -> Result<String> {
        match &self.vendor {
            Vendor::Hip(hip) => {
                // The structure's size differs between versions; the largest is a tenth of this.
                let mut properties = vec![0u64; 2048];
                // SAFETY: the memory is larger and more aligned than any version of the structure.
                let status = unsafe { (hip.properties)(properties.as_mut_ptr().cast(), device) };
                self.check(status, "cannot read the properties of the device")?;
                find_arch(bytemuck::cast_slice(&properties)).ok_or_else(|| {
                    Error::new(ErrorKind::Device, "the properties of the device do not name its architecture")
                })
            }
            Vendor::Cuda(_) => {
                let major = self.attribute(Attribute::Major, device)?;
                Ok(format!("sm_{major}{}", self.attribute(Attribute::Minor, device)?))
            }
        }
    }

    /// All memory of a device, in bytes.
    pub(crate) fn total_memory(&self, device: c_int) -> Result<u64> {
        let mut total = 0;
        // SAFETY: the number is written to a variable that lives.
        let status = unsafe { (self.functions.total_memory)(&mut total, device) };
        self.check(status, "cannot read how much memory the device has")?;
        Ok(total as u64)
    }

    /// Free memory of the bound device and its total, in bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the numbers are written to variables that live.
        let status = unsafe { (self.functions.memory_info)(&mut free, &mut total) };
        self.check(status, "cannot read how much memory is free")?;
        Ok((free as u64, total as u64))
    }
}

/// Finds the architecture in a device's properties: a separate string that begins with `gfx`,
/// wherever the version of the structure has it. Text after a colon names features of the target,
/// not the processor.
fn find_arch(properties: &[u8]) -> Option<String> {
    properties.split(|&byte| byte == 0).find_map(|text| {
        // Another field may directly precede the string; only a whole run between zeros counts.
        let text = std::str::from_utf8(text).ok()?;
        let name = text.split(':').next()?;
        let version = name.strip_prefix("gfx")?;
        (version.len() >= 3 && version.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| name.to_owned())
    })
}

/// The system's own message about a library that does not load.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_architecture_is_found_wherever_it_is() {
        for at in [1, 256, 1160, 4000] {
            let mut properties = vec![0u8; 16 << 10];
            properties[at..at + 23].copy_from_slice(b"gfx90a:sramecc+:xnack-\0");
            assert_eq!(find_arch(&properties).as_deref(), Some("gfx90a"));
        }
        let mut named = vec![0u8; 2000];
        named[..20].copy_from_slice(b"AMD Radeon gfx stuff");
        assert_eq!(find_arch(&named), None);
        named[1160..1167].copy_from_slice(b"gfx1100");
        assert_eq!(find_arch(&named).as_deref(), Some("gfx1100"));
        assert_eq!(find_arch(&[]), None);
    }

    #[test]
    fn a_library_that_is_not_there_has_a_reason() {
        let reason = Driver::load(Path::new("libwavelm_no_such_driver.so")).err().unwrap();
        assert!(reason.contains("libwavelm_no_such_driver"), "{reason}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_of_something_else_is_not_taken() {
        let reason = Driver::load(Path::new("libc.so.6")).err().unwrap();
        assert!(reason.contains("hipInit or cuInit"), "{reason}");
    }
}
