//! The feature `link-hip`: the functions that the linker finds, by the bindings of `hip-runtime-sys`. That it compiles
//! proves that the signatures of the table are those of HIP's headers.

use super::graph::GraphFunctions;
use super::{Functions, HipFunctions, Status};
use hip_runtime_sys as hip;
use std::ffi::{c_char, c_int, c_uint, c_void};

/// Fills a table. The types are those of the bindings, and the compiler compares them; a table has plain numbers in the
/// place of C enumerations, and one word for all pointers that mean nothing to the host.
macro_rules! linked {
    ($table:ident { $($field:ident: $function:ident($($arg:ty),*);)* }) => {
        $table {
            $($field: {
                let function: unsafe extern "C" fn($($arg),*) -> hip::hipError_t = hip::$function;
                // SAFETY: the type of the table differs from this one only in enumerations for `int` and in types of
                // pointers, or `u64` for a device pointer, which functions take and return alike.
                unsafe {
                    std::mem::transmute::<unsafe extern "C" fn($($arg),*) -> hip::hipError_t, _>(function)
                }
            },)*
        }
    };
}

pub(super) fn functions() -> Functions {
    linked!(Functions {
        init: hipInit(c_uint);
        device_count: hipGetDeviceCount(*mut c_int);
        device_name: hipDeviceGetName(*mut c_char, c_int, hip::hipDevice_t);
        attribute: hipDeviceGetAttribute(*mut c_int, hip::hipDeviceAttribute_t, c_int);
        version: hipRuntimeGetVersion(*mut c_int);
        total_memory: hipDeviceTotalMem(*mut usize, hip::hipDevice_t);
        memory_info: hipMemGetInfo(*mut usize, *mut usize);
        allocate: hipMalloc(*mut *mut c_void, usize);
        free: hipFree(*mut c_void);
        allocate_host: hipHostMalloc(*mut *mut c_void, usize, c_uint);
        free_host: hipHostFree(*mut c_void);
        copy_to_device: hipMemcpyHtoDAsync(hip::hipDeviceptr_t, *mut c_void, usize, hip::hipStream_t);
        copy_to_host: hipMemcpyDtoHAsync(*mut c_void, hip::hipDeviceptr_t, usize, hip::hipStream_t);
        copy_on_device: hipMemcpyDtoDAsync(hip::hipDeviceptr_t, hip::hipDeviceptr_t, usize, hip::hipStream_t);
        load_module: hipModuleLoadData(*mut hip::hipModule_t, *const c_void);
        unload_module: hipModuleUnload(hip::hipModule_t);
        function: hipModuleGetFunction(*mut hip::hipFunction_t, hip::hipModule_t, *const c_char);
        launch: hipModuleLaunchKernel(
            hip::hipFunction_t, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, hip::hipStream_t,
            *mut *mut c_void, *mut *mut c_void);
        create_stream: hipStreamCreateWithFlags(*mut hip::hipStream_t, c_uint);
        destroy_stream: hipStreamDestroy(hip::hipStream_t);
        synchronize_stream: hipStreamSynchronize(hip::hipStream_t);
        create_event: hipEventCreateWithFlags(*mut hip::hipEvent_t, c_uint);
        destroy_event: hipEventDestroy(hip::hipEvent_t);
        record_event: hipEventRecord(hip::hipEvent_t, hip::hipStream_t);
        synchronize_event: hipEventSynchronize(hip::hipEvent_t);
    })
}

pub(super) fn hip_functions() -> HipFunctions {
    linked!(HipFunctions {
        set_device: hipSetDevice(c_int);
        properties: hipGetDeviceProperties(*mut hip::hipDeviceProp_t, c_int);
    })
}

pub(super) fn graph_functions() -> GraphFunctions {
    linked!(GraphFunctions {
        begin_capture: hipStreamBeginCapture(hip::hipStream_t, hip::hipStreamCaptureMode);
        end_capture: hipStreamEndCapture(hip::hipStream_t, *mut hip::hipGraph_t);
        instantiate: hipGraphInstantiate(
            *mut hip::hipGraphExec_t, hip::hipGraph_t, *mut hip::hipGraphNode_t, *mut c_char, usize);
        launch: hipGraphLaunch(hip::hipGraphExec_t, hip::hipStream_t);
        destroy_executable: hipGraphExecDestroy(hip::hipGraphExec_t);
        destroy: hipGraphDestroy(hip::hipGraph_t);
    })
}

const _: () = assert!(size_of::<hip::hipError_t>() == size_of::<Status>());
const _: () = assert!(size_of::<hip::hipDeviceAttribute_t>() == size_of::<c_int>());
