//! Looks for the drivers of this machine.

use super::{Driver, places};
use crate::backend::hip::device;
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Names the one library to load, in place of all others.
pub(crate) const LIBRARY_VARIABLE: &str = "WAVELM_HIP_LIBRARY";

/// A library that was tried, and why it was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) library: String,
    pub(crate) reason: String,
}

/// The libraries of this machine.
pub(crate) struct Drivers {
    pub(crate) hip: Option<Arc<Driver>>,
    pub(crate) cuda: Option<Arc<Driver>>,
    /// Other libraries that were tried.
    pub(crate) attempts: Vec<Attempt>,
    /// The process that they were loaded in.
    process: u32,
}

impl Drivers {
    /// Whether this process was forked from the process that loaded the drivers; they do not
    /// survive a fork.
    pub(crate) fn are_lost(&self) -> bool {
        (self.hip.is_some() || self.cuda.is_some()) && self.process != std::process::id()
    }
}

/// The drivers of this machine, loaded at the first call.
pub(crate) fn drivers() -> &'static Drivers {
    static DRIVERS: OnceLock<Drivers> = OnceLock::new();
    DRIVERS.get_or_init(|| {
        let mut attempts = Vec::new();
        let mut load = |candidates: Vec<PathBuf>| {
            let mut without_device = None;
            for path in candidates {
                let reason = match Driver::load(&path).map(Arc::new) {
                    Ok(driver) => match device::start(&driver) {
                        Ok(1..) => return Some(driver),
                        // An older or newer one may know the GPU.
                        Ok(0) => {
                            without_device.get_or_insert(driver);
                            "it finds no device".to_owned()
                        }
                        Err(e) => {
                            without_device.get_or_insert(driver);
                            e.to_string()
                        }
                    },
                    Err(reason) => reason,
                };
                log::debug!("{}: {reason}", path.display());
                attempts.push(Attempt { library: path.display().to_string(), reason });
            }
            without_device
        };
        let (hip, cuda) = match env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()) {
            Some(path) => match load(vec![path.into()]) {
                Some(driver) if driver.is_hip() => (Some(driver), None),
                other => (None, other),
            },
            #[cfg(feature = "link-hip")]
            None => (Some(Arc::new(Driver::linked())), load(cuda_candidates())),
            #[cfg(not(feature = "link-hip"))]
            None => (load(hip_candidates()), load(cuda_candidates())),
        };
        Drivers { hip, cuda, attempts, process: std::process::id() }
    })
}

/// Paths where AMD's library may be, for builds that do not link it.
pub(crate) fn hip_candidates() -> Vec<PathBuf> {
    let windows: Vec<String> = (5..=10).rev().map(|n| format!("amdhip64_{n}.dll")).collect();
    let windows = [windows, vec!["amdhip64.dll".to_owned()]].concat();
    places::candidates(&places::Names { unix: "libamdhip64.so", oldest: 5, plain: true, windows: &windows })
}

pub(crate) fn cuda_candidates() -> Vec<PathBuf> {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    names.iter().map(PathBuf::from).collect()
}
