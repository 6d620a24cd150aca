//! Finds GPUs, and opens one.

#[cfg(target_os = "linux")]
pub(crate) mod faults;
pub(crate) mod health;
mod hints;
mod info;
mod machine;

pub use info::GpuInfo;
pub(crate) use machine::machine;

use super::code::objects;
use super::driver::{Attempt, Attribute, Driver, Handle, LIBRARY_VARIABLE, drivers};
use crate::{Error, ErrorKind, Result};
use health::{Health, PATIENCE, Patience};
use std::ffi::c_int;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// `off` makes each launch wait for the one before it, for comparisons.
const OVERLAP_VARIABLE: &str = "WAVELM_HIP_OVERLAP";

/// A GPU of this machine.
pub(crate) struct Found {
    /// Its name for people.
    pub(crate) name: String,
    /// Why it cannot be used.
    pub(crate) unusable: Option<String>,
    /// The driver's data on it, if a driver knows it.
    pub(crate) info: Option<GpuInfo>,
}

/// All GPUs, in the order of their numbers: first those of AMD's library, then those of NVIDIA's.
/// If no library knows an AMD GPU that the kernel knows, it follows at the end, with the reason.
pub(crate) fn find() -> Vec<Found> {
    let found = places().0.into_iter().map(|place| match place {
        Place::Device(driver, index) => describe(driver, index),
        Place::Without(name, reason) => Found { name, unusable: Some(reason), info: None },
    });
    found.collect()
}

/// Opens GPU number `index` in the order of [`find`]. Waits for the GPU last `patience`, or longer
/// for work that is expected to take long.
pub(crate) fn open(index: usize, patience: Duration) -> Result<Arc<Device>> {
    let (places, why_none) = places();
    let missing = || {
        let text = why_none.unwrap_or_else(|| "this machine has no such GPU, or no driver for it".to_owned());
        Error::new(ErrorKind::Device, text)
    };
    match places.into_iter().nth(index).ok_or_else(missing)? {
        Place::Device(driver, index) => {
            let of_thread = Arc::clone(&driver);
            let opened = health::in_time(patience, move || Device::open(&of_thread, index, patience));
            opened.unwrap_or_else(|| Err(driver.health(index).lose(no_answer(&driver, patience))))
        }
        Place::Without(_, reason) => Err(Error::new(ErrorKind::Device, reason)),
    }
}

/// Why there are no GPUs; `None` if there are some.
pub(crate) fn why_none() -> Option<String> {
    places().1
}

/// A GPU that has a number.
enum Place {
    /// A device of a driver, and its number there.
    Device(Arc<Driver>, usize),
    /// The name of a GPU that no driver knows, and why.
    Without(String, String),
}

/// Why a forked process cannot use what its parent has opened.
const FORKED: &str = "this process was forked from one that used the GPU's driver, which does not survive that; load models \
                      after the fork alone";

/// All GPUs; if there are none, the reason why no library has one.
fn places() -> (Vec<Place>, Option<String>) {
    let drivers = drivers();
    if drivers.are_lost() {
        return (vec![Place::Without("GPU".to_owned(), FORKED.to_owned())], None);
    }
    let (mut places, mut without, mut why) = (Vec::new(), Vec::new(), None);
    let devices = |driver: &Arc<Driver>, count| {
        let driver = Arc::clone(driver);
        (0..count).map(move |index| Place::Device(Arc::clone(&driver), index))
    };
    let mut known = |reason: String| {
        without.extend(kernel_gpus().into_iter().map(|name| Place::Without(name, reason.clone())));
        why = Some(reason);
    };
    match &drivers.hip {
        Some(driver) => match start(driver) {
            Ok(0) => known(format!("{} finds no device{}", driver.name(), hints::of_system())),
            Ok(count) => places.extend(devices(driver, count)),
            Err(e) => known(format!("{e}{}", hints::of_system())),
        },
        // With only an NVIDIA GPU, nobody needs to read about AMD's library.
        None if drivers.cuda.is_some() && kernel_gpus().is_empty() => {}
        None => known(format!("{}{}", no_library(&drivers.attempts), hints::of_system())),
    }
    if let Some(driver) = &drivers.cuda {
        match start(driver) {
            Ok(count) => places.extend(devices(driver, count)),
            Err(e) => why = Some(e.to_string()),
        }
    }
    // At the end, so that they take no number from a GPU that works.
    places.extend(without);
    let why = why.filter(|_| places.is_empty());
    (places, why)
}

/// Starts a driver and counts its devices. A driver that does not answer is not asked again.
pub(crate) fn start(driver: &Arc<Driver>) -> Result<usize> {
    driver.own_health().check()?;
    let of_thread = Arc::clone(driver);
    let started = health::in_time(PATIENCE, move || of_thread.start());
    let count = started.unwrap_or_else(|| Err(driver.own_health().lose(no_answer(driver, PATIENCE))))?;
    #[cfg(target_os = "linux")]
    if count > 0 && driver.is_hip() {
        faults::watch();
    }
    Ok(count)
}

fn no_answer(driver: &Driver, patience: Duration) -> String {
    format!("{} did not answer for {patience:.1?}", driver.name())
}

/// An open GPU.
pub(crate) struct Device {
    driver: Arc<Driver>,
    number: c_int,
    context: Handle,
    health: Arc<Health>,
    patience: Patience,
    pub(crate) name: String,
    pub(crate) arch: String,
    /// Lanes of a wave: 32 or 64.
    pub(crate) wave: u32,
    /// Compute units.
    pub(crate) units: u32,
    /// Whether a launch may begin while the ones before it still run.
    pub(crate) overlaps: bool,
    /// Whether it uses the processor's memory.
    pub(crate) integrated: bool,
}

// SAFETY: the context is only a name for the device, and any thread may use it.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    fn open(driver: &Arc<Driver>, index: usize, patience: Duration) -> Result<Arc<Self>> {
        let health = driver.health(index);
        health.check()?;
        let number = driver.device(index)?;
        let context = driver.context(number)?;
        driver.bind(number, context)?;
        driver.wait_asleep();
        let narrow = |value: usize| u32::try_from(value).unwrap_or(0);
        let arch = driver.arch(number)?;
        let device = Self {
            context,
            integrated: driver.attribute(Attribute::Integrated, number)? != 0 || is_integrated(&arch),
            name: driver.device_name(number)?,
            arch,
            wave: narrow(driver.attribute(Attribute::WaveSize, number)?),
            units: narrow(driver.attribute(Attribute::Units, number)?).max(1),
            overlaps: driver.has_overlap() && std::env::var_os(OVERLAP_VARIABLE).is_none_or(|v| v != "off"),
            driver: Arc::clone(driver),
            number,
            health,
            patience: Patience::new(patience),
        };
        if device.wave != 32 && device.wave != 64 {
            return Err(Error::new(ErrorKind::Device, format!("its waves have {} lanes, not 32 or 64", device.wave)));
        }
        Ok(Arc::new(device))
    }

    /// Whether the driver can capture passes.
    pub(crate) fn has_graphs(&self) -> bool {
        self.driver.graphs().is_some() && !self.health.is_without_graphs.load(Ordering::Relaxed)
    }

    /// The same device with the shorter patience of its self-test.
    pub(crate) fn for_self_test(&self) -> Arc<Self> {
        let Self { driver, number, context, health, patience, name, arch, wave, units, overlaps, integrated } = self;
        Arc::new(Self {
            driver: Arc::clone(driver),
            health: Arc::clone(health),
            patience: patience.short(),
            name: name.clone(),
            arch: arch.clone(),
            number: *number,
            context: *context,
            wave: *wave,
            units: *units,
            overlaps: *overlaps,
            integrated: *integrated,
        })
    }

    /// Its address on the bus, if it is AMD's.
    pub(crate) fn bus_id(&self) -> Option<String> {
        self.driver.bus_id(self.number)
    }

    /// Whether the device still answers.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// How long to wait for work that is expected to take `expected`.
    pub(crate) fn patience(&self, expected: Duration) -> Duration {
        self.patience.limit(expected)
    }

    /// The message after waiting for `limit` in vain.
    pub(crate) fn no_answer(&self, limit: Duration) -> String {
        match self.patience.total() {
            None => format!("{} did not answer for {limit:.1?}", self.name),
            Some(total) => format!("{} did not answer for {total:.1?}, all waits of its self-test together", self.name),
        }
    }

    /// Records time that was spent waiting.
    pub(crate) fn spend(&self, time: Duration) {
        self.patience.spend(time);
    }

    /// The driver, with this device bound to the calling thread.
    ///
    /// # Errors
    /// `Device` where the driver fails. Also in a forked process, which must not call the driver,
    /// not even to free something. Also where the device is lost: it gets no further call.
    pub(crate) fn driver(&self) -> Result<&Driver> {
        if drivers().are_lost() {
            return Err(Error::new(ErrorKind::Device, FORKED));
        }
        self.health.check()?;
        self.driver.bind(self.number, self.context)?;
        Ok(&self.driver)
    }
}

fn describe(driver: Arc<Driver>, index: usize) -> Found {
    let health = driver.health(index);
    let of_thread = Arc::clone(&driver);
    let asked = health.check().and_then(|()| {
        let found = health::in_time(PATIENCE, move || info(&of_thread, index));
        found.unwrap_or_else(|| Err(health.lose(no_answer(&driver, PATIENCE))))
    });
    asked.unwrap_or_else(|e| {
        let name = format!("GPU {index} of {}", driver.name());
        Found { name, unusable: Some(e.to_string()), info: None }
    })
}

fn info(driver: &Driver, index: usize) -> Result<Found> {
    let number = driver.device(index)?;
    let narrow = |value: usize| u32::try_from(value).unwrap_or(0);
    let arch = driver.arch(number)?;
    let kernels = objects::origin(&arch);
    let name = driver.device_name(number)?;
    let name = if name.contains(&arch) { name } else { format!("{name}, {arch}") };
    let info = GpuInfo {
        wave_size: narrow(driver.attribute(Attribute::WaveSize, number)?),
        compute_units: narrow(driver.attribute(Attribute::Units, number)?),
        memory: driver.total_memory(number)?,
        integrated: driver.attribute(Attribute::Integrated, number)? != 0 || is_integrated(&arch),
        library: driver.name().to_owned(),
        version: driver.version(),
        kernels: kernels.as_ref().ok().cloned(),
        arch,
    };
    Ok(Found { name, unusable: kernels.err(), info: Some(info) })
}

/// Whether GPUs of an architecture are parts of processors. HIP reports this only from version 6.2
/// on.
fn is_integrated(arch: &str) -> bool {
    const PARTS: [&str; 12] = [
        "gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1103", "gfx1150", "gfx1151",
        "gfx1152", "gfx1153",
    ];
    PARTS.contains(&arch)
}

/// Why no library was loaded: libraries that exist but do not load with their reasons, missing ones
/// by name.
fn no_library(attempts: &[Attempt]) -> String {
    let missing = |a: &&Attempt| a.reason.contains("No such file") || a.reason.contains("os error 126");
    let broken = attempts.iter().filter(|a| !missing(a)).map(|a| a.reason.clone());
    let broken: Vec<String> = broken.collect();
    if !broken.is_empty() {
        return format!("the GPU driver library cannot be loaded: {}", broken.join("; "));
    }
    let names: Vec<&str> = attempts.iter().map(|a| a.library.as_str()).collect();
    format!("no GPU driver library was found (set {LIBRARY_VARIABLE} if there is one; tried {})", names.join(", "))
}

/// AMD GPUs that the kernel driver knows: each node of its topology with compute units is one.
pub(crate) fn kernel_gpus() -> Vec<String> {
    let Ok(nodes) = std::fs::read_dir("/sys/class/kfd/kfd/topology/nodes") else { return Vec::new() };
    let mut numbers: Vec<u32> = nodes.filter_map(|n| n.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let gpu = |number: &u32| {
        let folder = Path::new("/sys/class/kfd/kfd/topology/nodes").join(number.to_string());
        let properties = std::fs::read_to_string(folder.join("properties")).ok()?;
        let property = |name: &str| {
            properties.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
        };
        property("simd_count").filter(|&n| n > 0)?;
        let version = property("gfx_target_version").unwrap_or(0);
        let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
        Some(format!("AMD GPU gfx{major}{minor:x}{step:x}"))
    };
    numbers.iter().filter_map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(library: &str, reason: &str) -> Attempt {
        Attempt { library: library.to_owned(), reason: reason.to_owned() }
    }

    #[test]
    fn a_missing_library_and_a_broken_one_have_different_reasons() {
        let missing = attempt("libamdhip64.so.7", "libamdhip64.so.7: No such file or directory");
        let broken = attempt("libamdhip64.so.6", "libamdhip64.so.6: invalid ELF header");
        let reason = no_library(std::slice::from_ref(&missing));
        assert!(reason.contains("libamdhip64.so.7") && reason.contains(LIBRARY_VARIABLE), "{reason}");
        let reason = no_library(&[missing, broken]);
        assert!(reason.contains("invalid ELF header") && !reason.contains("so.7"), "{reason}");
    }
}
