//! The feature `link-hip`: takes the functions from the linker, through the bindings of
//! `hip-runtime-sys`. If it compiles, the signatures of the table are those of HIP's headers.
//!
//! A function that is added to a table in driver/mod.rs gets a line here, with the types of the
//! bindings. Some tables are optional where the library is loaded, because not all libraries have
//! their functions (graphs, for example). Such a table gets a function like [`hip_functions`],
//! because linked functions always exist.

use super::fill::FillFunctions;
use super::graph::GraphFunctions;
use super::timing::TimingFunctions;
use super::{Functions, HipFunctions};
use hip_runtime_sys as hip;
use std::ffi::{c_char, c_int, c_uint, c_void};

/// The sizes of a function's result and parameters. A call depends on nothing else, because all of
/// them are numbers and pointers.
trait Signature: Copy {
    const SIZES: &'static [usize];
}

macro_rules! signatures {
    ($(($($arg:ident)*))*) => {$(
        impl<R, $($arg),*> Signature for unsafe extern "C" fn($($arg),*) -> R {
            const SIZES: &'static [usize] = &[size_of::<R>(), $(size_of::<$arg>()),*];
        }
    )*};
}

signatures! { (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F G H I J K) }

/// The same function with the types of the table: plain numbers in place of C enumerations, `u64`
/// for device pointers, and one word for every pointer that is opaque to the host.
fn retype<F: Signature, T: Signature>(function: F) -> T {
    const {
        assert!(size_of::<F>() == size_of::<T>() && F::SIZES.len() == T::SIZES.len(), "another number of parameters");
        let mut i = 0;
        while i < F::SIZES.len() {
            assert!(F::SIZES[i] == T::SIZES[i], "a parameter of another size");
            i += 1;
        }
    }
    // SAFETY: both are functions of the C calling convention, with parameters and results of the same sizes; enumerations
    // and integers, pointers and `u64` are passed alike.
    unsafe { std::mem::transmute_copy(&function) }
}

/// Fills a table. The macro uses the types of the bindings, and the compiler checks them.
macro_rules! linked {
    ($table:ident { $($field:ident: $function:ident($($arg:ty),*);)* }) => {
        $table {
            $($field: {
                let function: unsafe extern "C" fn($($arg),*) -> hip::hipError_t = hip::$function;
                retype(function)
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
        query_event: hipEventQuery(hip::hipEvent_t);
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

pub(super) fn fill_functions() -> FillFunctions {
    linked!(FillFunctions {
        words: hipMemsetD32Async(hip::hipDeviceptr_t, c_int, usize, hip::hipStream_t);
    })
}

pub(super) fn timing_functions() -> TimingFunctions {
    linked!(TimingFunctions {
        elapsed: hipEventElapsedTime(*mut f32, hip::hipEvent_t, hip::hipEvent_t);
        call_host: hipStreamAddCallback(hip::hipStream_t, hip::hipStreamCallback_t, *mut c_void, c_uint);
    })
}
