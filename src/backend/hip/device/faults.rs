//! Handles faults of an AMD GPU for which its runtime would end the process: page faults, illegal
//! instructions, resets.
//!
//! ROCm's HSA runtime, the base of HIP, reports such an event to handlers, and aborts the process
//! if no handler accepts it. The handler here accepts events while work of this library is on a
//! device: the waiting thread then sees the flag, and the device is lost. At other times it leaves
//! events to the rest of the program. From ROCm 7 on HIP itself does not abort, and its calls
//! return errors.

use crate::backend::hip::driver::Status;
use libloading::os::unix::{Library, RTLD_LAZY};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// How many streams have work that nobody has waited for.
static BUSY: AtomicUsize = AtomicUsize::new(0);
/// Whether an event was accepted, its kind, and its address.
static TAKEN: AtomicBool = AtomicBool::new(false);
static KIND: AtomicUsize = AtomicUsize::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);

/// `HSA_STATUS_SUCCESS`: accepts the event. Any other status leaves it to other handlers.
const SUCCESS: Status = 0;
/// `HSA_STATUS_ERROR`
const NOT_TAKEN: Status = 0x1000;

/// `hsa_amd_event_t`, only the part that all events share.
#[repr(C)]
struct SystemEvent {
    /// `HSA_AMD_GPU_MEMORY_FAULT_EVENT`, `HSA_AMD_GPU_HW_EXCEPTION_EVENT`, `HSA_AMD_GPU_MEMORY_ERROR_EVENT`
    kind: u32,
    agent: u64,
    /// For a memory fault or error.
    address: u64,
}

type Handler = unsafe extern "C" fn(*const SystemEvent, *mut c_void) -> Status;
type Register = unsafe extern "C" fn(Handler, *mut c_void) -> Status;

/// Handles events from now on, if the process has HSA's runtime. Call it after HIP has started,
/// because that loads the runtime.
pub(crate) fn watch() {
    static WATCHING: OnceLock<Result<(), String>> = OnceLock::new();
    WATCHING.get_or_init(|| {
        let watching = register();
        match &watching {
            Ok(()) => log::debug!("faults of AMD GPUs are reported to wavelm"),
            Err(reason) => log::debug!("a fault of an AMD GPU may end the process: {reason}"),
        }
        watching
    });
}

fn register() -> Result<(), String> {
    // SAFETY: this loads nothing, so no constructors run.
    let library = unsafe { Library::open(Some("libhsa-runtime64.so.1"), RTLD_LAZY | libc::RTLD_NOLOAD) };
    let library = ManuallyDrop::new(library.map_err(|_| "libhsa-runtime64 is not loaded".to_owned())?);
    // SAFETY: the function has this signature, by the documented interface of the library.
    let register = unsafe { library.get::<Register>(b"hsa_amd_register_system_event_handler") };
    let register = register.map_err(|_| "its libhsa-runtime64 has no handlers of system events".to_owned())?;
    // SAFETY: the handler may be called from any thread at any time while the process lives, and
    // takes no data.
    match unsafe { register(on_event, std::ptr::null_mut()) } {
        SUCCESS => Ok(()),
        failed => Err(format!("libhsa-runtime64 refuses a handler of system events with the status {failed}")),
    }
}

/// The runtime's callback, on a thread of the runtime.
///
/// # Safety
/// `event` is an event of the runtime, or null.
unsafe extern "C" fn on_event(event: *const SystemEvent, _: *mut c_void) -> Status {
    // SAFETY: the caller's promise; all kinds of events have an agent and 8 bytes after it.
    let Some(event) = (unsafe { event.as_ref() }) else { return NOT_TAKEN };
    if event.kind > 2 || BUSY.load(Ordering::SeqCst) == 0 {
        return NOT_TAKEN;
    }
    KIND.store(event.kind as usize, Ordering::SeqCst);
    ADDRESS.store(event.address, Ordering::SeqCst);
    TAKEN.store(true, Ordering::SeqCst);
    SUCCESS
}

/// The accepted event, if there was one. HIP is unusable in this process from then on.
pub(crate) fn taken() -> Option<String> {
    if !TAKEN.load(Ordering::Relaxed) {
        return None;
    }
    let address = ADDRESS.load(Ordering::SeqCst);
    Some(match KIND.load(Ordering::SeqCst) {
        0 => format!("an AMD GPU reported a memory fault at address {address:#x}"),
        1 => "an AMD GPU reported a hardware exception".to_owned(),
        _ => format!("an AMD GPU reported a memory error at address {address:#x}"),
    })
}

/// Whether a stream has work that nobody has waited for.
#[derive(Default)]
pub(crate) struct Work(AtomicBool);

impl Work {
    pub(crate) fn begins(&self) {
        if !self.0.swap(true, Ordering::SeqCst) {
            BUSY.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn ends(&self) {
        if self.0.swap(false, Ordering::SeqCst) {
            BUSY.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.ends();
    }
}
