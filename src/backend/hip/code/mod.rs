//! The kernel cache: a module for each family of kernels, loaded when its first kernel is
//! requested.

pub(crate) mod code_cache;
pub(crate) mod objects;
mod rtc;

pub(crate) use objects::has_matrix_cores;

use super::device::Device;
use super::device::health::{self, guarded, guarded_for};
use super::driver::{Driver, Handle, overlap};
use super::memory::{Sent, Stream, end};
use crate::{Error, ErrorKind, Result};
use objects::Object;
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a driver may reasonably take to compile a family.
const COMPILING: Duration = Duration::from_secs(15);

/// The kernels of a device.
pub(crate) struct Modules {
    device: Arc<Device>,
    loaded: Mutex<HashMap<&'static str, Arc<Module>>>,
}

/// A loaded family.
struct Module {
    device: Arc<Device>,
    module: Handle,
    /// The kernels that wait for earlier launches on their own.
    waiting: HashSet<String>,
    _object: Arc<Object>,
}

// SAFETY: the handle is only a name, and any thread may use it.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        let module = Sent::new(self.module);
        // SAFETY: the module is unloaded only here; each of its kernels holds a reference to it, so
        // none is in use any more.
        end(&self.device, "unloading a module", move |driver| unsafe { driver.unload_module(module.get()) });
    }
}

/// A function of a module, and the number of threads in its blocks.
#[derive(Clone)]
pub(crate) struct Kernel {
    module: Arc<Module>,
    function: Handle,
    threads: u32,
    name: Arc<str>,
    /// Whether it may begin while the launch before it still runs.
    overlaps: bool,
}

// SAFETY: the handle is only a name, and any thread may use it.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Modules {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), loaded: Mutex::default() }
    }

    /// The kernel `name` of `family`, which runs in blocks of `threads` threads.
    ///
    /// # Errors
    /// `Device` where there is no code for this device, or the driver refuses it.
    pub(crate) fn kernel(&self, family: &'static str, name: &str, threads: u32) -> Result<Kernel> {
        let module = self.module(family)?;
        let symbol = CString::new(name).map_err(|_| Error::new(ErrorKind::Device, "a kernel name with a zero byte"))?;
        // SAFETY: the module is loaded.
        let function = unsafe { self.device.driver()?.function(module.module, &symbol) }?;
        let overlaps = module.waiting.contains(name);
        Ok(Kernel { module, function, threads, name: name.into(), overlaps })
    }

    fn module(&self, family: &'static str) -> Result<Arc<Module>> {
        // The lock is held while loading, so that no two threads load the same family.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(family) {
            return Ok(Arc::clone(module));
        }
        let (module, object) = self.load(family)?;
        log::debug!("{}: {family} kernels, {}", self.device.name, object.origin);
        let waiting = match self.device.overlaps {
            true => overlap::waiting_kernels(&object.code).into_iter().map(str::to_owned).collect(),
            false => HashSet::new(),
        };
        // Debuggers and some runtimes read the code later, at its original address.
        let module = Arc::new(Module { device: Arc::clone(&self.device), module, waiting, _object: object });
        loaded.insert(family, Arc::clone(&module));
        Ok(module)
    }
}

impl Modules {
    /// Loads the first object of a family that the driver accepts.
    fn load(&self, family: &'static str) -> Result<(Handle, Arc<Object>)> {
        let device = &self.device;
        let mut objects = health::on_host(|| objects::find(family, &device.arch))
            .map_err(|reason| Error::new(ErrorKind::Device, reason))?;
        let mut refused: Option<Error> = None;
        while let Some(object) = health::on_host(|| objects.next()) {
            let object = match (object, refused) {
                (Ok(object), before) => {
                    refused = before;
                    Arc::new(object)
                }
                // The driver's reason is more useful than the absence of further objects.
                (Err(reason), Some(before)) => {
                    log::debug!("{}: no other {family} kernels: {reason}", device.name);
                    return Err(before);
                }
                (Err(reason), None) => return Err(Error::new(ErrorKind::Device, reason)),
            };
            let of_call = Arc::clone(&object);
            // SAFETY: the code is embedded and was checked on unpacking, or it is the user's, who
            // vouches for it.
            let load = move |driver: &Driver| unsafe { driver.load_module(&of_call.code) }.map(Sent::new);
            // A driver compiles PTX, which may keep the processor busy for any time.
            let called = match device.arch.starts_with("sm_") {
                true => health::on_host(|| guarded_for(device, "loading a module", COMPILING, load)),
                false => guarded(device, "loading a module", load),
            };
            let e = match called {
                Ok(module) => return Ok((module.get(), object)),
                Err(e) => e,
            };
            let origin = &object.origin;
            let text = format!("the {family} kernels ({origin}) cannot be used: {e}");
            let error = Error::new(e.kind(), text).with_source(e);
            if error.kind() != ErrorKind::Device || device.health().is_lost() {
                return Err(error);
            }
            log::info!("{}: {error}", device.name);
            refused.get_or_insert(error);
        }
        Err(refused.unwrap_or_else(|| Error::new(ErrorKind::Device, format!("there are no {family} kernels"))))
    }
}

/// Arguments of a launch, in the order of the kernel's parameters.
#[derive(Default)]
pub(crate) struct Args {
    /// Each lies in the first bytes of a word: all parameters are pointers or numbers of 4 or 8
    /// bytes.
    words: Vec<u64>,
}

impl Args {
    /// A pointer: 0 is null.
    pub(crate) fn ptr(mut self, address: u64) -> Self {
        self.words.push(address);
        self
    }

    pub(crate) fn u64(mut self, value: usize) -> Self {
        self.words.push(value as u64);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.push_4(value.to_ne_bytes());
        self
    }

    pub(crate) fn f32(mut self, value: f32) -> Self {
        self.push_4(value.to_ne_bytes());
        self
    }

    fn push_4(&mut self, [a, b, c, d]: [u8; 4]) {
        self.words.push(u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]));
    }
}

impl Kernel {
    /// Queues a launch. An empty grid launches nothing.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and the memory that they point to is as large as the kernel expects for
    /// this grid and stays allocated until the stream was waited for.
    pub(crate) unsafe fn launch(&self, stream: &Stream, grid: [u32; 3], mut args: Args) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut pointers: Vec<*mut c_void> = args.words.iter_mut().map(|w| std::ptr::from_mut(w).cast()).collect();
        let driver = self.module.device.driver()?;
        // A launch that is timed must run alone.
        let overlaps = self.overlaps && stream.timer().is_none();
        let mut launch = || {
            // SAFETY: the caller's promise; the function belongs to a loaded module, and waits on
            // its own if it overlaps.
            unsafe { driver.launch(self.function, grid, self.threads, stream.handle(), &mut pointers, overlaps) }
                .map_err(|e| Error::new(e.kind(), format!("kernel {}: {e}", self.name)).with_source(e))
        };
        match stream.timer() {
            None => launch(),
            Some(timer) => timer.time(&self.name, stream, launch),
        }
    }
}
