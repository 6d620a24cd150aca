//! Devices: which ones this machine has, which one runs a model, and why others do not.

use crate::backend::hip;
pub use crate::backend::hip::GpuInfo;
use crate::simd::Isa;
use crate::{Error, ErrorKind, Result};
use std::fmt;

/// A device to run models on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The best usable one.
    #[default]
    Auto,
    /// The processor. No driver of a GPU is loaded or started for it.
    Cpu,
    /// The GPU of this number, in the order of [`devices`]: AMD's first, then NVIDIA's, which run
    /// the same kernels.
    Hip(usize),
}

impl Device {
    /// The GPU number `index`.
    pub fn hip(index: usize) -> Self {
        Self::Hip(index)
    }

    /// Measures now how fast this GPU copies within its memory, in bytes read and written per
    /// second: a copy of a gigabyte counts two. Takes a fraction of a second and up to half of the
    /// free memory, 2 GiB at most.
    ///
    /// Compare the result with the bytes that a token needs:
    /// [`bytes_per_token`](crate::Model::bytes_per_token) and
    /// [`kv_bytes_per_token`](crate::Model::kv_bytes_per_token).
    ///
    /// # Errors
    /// `InvalidInput` for a device that is no GPU, `Device` where there is no such GPU or its
    /// driver cannot measure, `OutOfMemory` where less than 128 MiB are free: caches would distort
    /// so small a copy.
    pub fn copy_bandwidth(self) -> Result<f64> {
        match self {
            Device::Hip(gpu) => hip::bandwidth::copy_bandwidth(gpu),
            Device::Auto | Device::Cpu => {
                Err(Error::invalid_input(format!("the copies of a GPU are measured, and device {self} names none")))
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Hip(i) => write!(f, "hip:{i}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// Reads `auto`, `cpu`, `hip` or `hip:N`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "hip" => Ok(Device::Hip(0)),
            _ => text.strip_prefix("hip:").and_then(|n| n.parse().ok()).map(Device::Hip).ok_or_else(|| {
                Error::invalid_input(format!("device \"{text}\" is unknown; use auto, cpu, hip or hip:N"))
            }),
        }
    }
}

/// A device of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The value that selects it.
    pub device: Device,
    /// Its name for people.
    pub name: String,
    /// Why it cannot be used; `None` where it can.
    pub unusable: Option<String>,
    /// The driver's data on it, for a GPU that a driver knows.
    pub gpu: Option<GpuInfo>,
}

impl DeviceInfo {
    /// The measure that orders GPUs: lanes times memory, because larger memory has more bandwidth.
    fn speed(&self) -> f64 {
        self.gpu.as_ref().map_or(0.0, |gpu| gpu.groups() * gpu.memory as f64)
    }

    /// Why `Auto` leaves the device alone. Either it is integrated, and another GPU `has_own`
    /// memory; or it is so small that the processor, which reads the same memory, computes faster.
    fn is_slow(&self, has_own: bool) -> Option<String> {
        /// 512 lanes.
        const FEWEST: f64 = 8.0;
        let gpu = self.gpu.as_ref().filter(|gpu| gpu.integrated)?;
        if has_own {
            return Some("it is integrated, and there is a GPU of its own; ask for it to use it".to_owned());
        }
        let lanes = gpu.groups() * 64.0;
        let reason = || format!("it is integrated and has {lanes} lanes, fewer than pay off; ask for it to use it");
        (gpu.groups() < FEWEST).then(reason)
    }
}

/// Everything on this machine that could run a model, usable or not; the CPU comes last.
pub fn devices() -> Vec<DeviceInfo> {
    let gpus = hip::device::find().into_iter().enumerate();
    let mut found: Vec<DeviceInfo> = gpus
        .map(|(i, gpu)| DeviceInfo { device: Device::Hip(i), name: gpu.name, unusable: gpu.unusable, gpu: gpu.info })
        .collect();
    found.push(processor());
    found
}

/// Why [`devices`] has no GPU, and how to change that; `None` where it has one, usable or not.
///
/// ```
/// for device in wavelm::devices() {
///     println!("{}: {}", device.device, device.unusable.as_deref().unwrap_or("usable"));
/// }
/// if let Some(reason) = wavelm::why_no_gpu() {
///     println!("no GPU: {reason}");
/// }
/// ```
pub fn why_no_gpu() -> Option<String> {
    hip::device::why_none()
}

fn processor() -> DeviceInfo {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name = format!("{} CPU, {cores} threads, {} kernels", std::env::consts::ARCH, Isa::best().name());
    DeviceInfo { device: Device::Cpu, name, unusable: None, gpu: None }
}

/// Which device was chosen for a model, and why others were not. Its `Display` is one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    chosen: DeviceInfo,
    /// Usable devices after the chosen one, best first.
    others: Vec<DeviceInfo>,
    refused: Vec<DeviceInfo>,
    /// How much the chosen device runs, if not the whole model.
    placement: Option<String>,
    /// Why there are no GPUs, if the search ran.
    no_gpus: Option<String>,
}

impl DeviceReport {
    pub(crate) fn choose(wanted: Device) -> Result<Self> {
        // A choice of the CPU should not wait for a driver to start, nor hold the driver's memory.
        if wanted == Device::Cpu {
            return Self::choose_from(wanted, vec![processor()], None);
        }
        let devices = devices();
        let no_gpus = if devices.len() == 1 { why_no_gpu() } else { None };
        Self::choose_from(wanted, devices, no_gpus)
    }

    fn choose_from(wanted: Device, devices: Vec<DeviceInfo>, no_gpus: Option<String>) -> Result<Self> {
        let (mut usable, mut refused): (Vec<_>, Vec<_>) = devices.into_iter().partition(|d| d.unusable.is_none());
        if wanted == Device::Auto {
            let has_own = usable.iter().any(|d| d.gpu.as_ref().is_some_and(|gpu| !gpu.integrated));
            let (slow, rest): (Vec<_>, Vec<_>) = usable.into_iter().partition(|d| d.is_slow(has_own).is_some());
            refused.extend(slow.into_iter().map(|d| DeviceInfo { unusable: d.is_slow(has_own), ..d }));
            usable = rest;
            // The sort keeps the order of equal GPUs. The processor has no speed here, and stays
            // last.
            usable.sort_by(|a, b| b.speed().total_cmp(&a.speed()));
        }
        usable.retain(|d| wanted == Device::Auto || d.device == wanted);
        if usable.is_empty() {
            let reason = refused.iter().find(|d| d.device == wanted).and_then(|d| d.unusable.clone()).or(no_gpus);
            return Err(unusable(
                wanted,
                reason.as_deref().unwrap_or("this machine has no such device, or no driver for it"),
            ));
        }
        let chosen = usable.remove(0);
        Ok(Self { chosen, others: usable, refused, placement: None, no_gpus })
    }

    /// The CPU, because no GPU may be used.
    ///
    /// # Errors
    /// `error`, where the caller asked for a GPU.
    pub(crate) fn without_gpus(wanted: Device, error: Error) -> Result<Self> {
        if wanted != Device::Auto {
            return Err(error);
        }
        log::warn!("no GPU is used: {error}");
        let (device, name) = (Device::Hip(0), "all GPUs".to_owned());
        let refused = vec![DeviceInfo { device, name, unusable: Some(error.to_string()), gpu: None }];
        Ok(Self { chosen: processor(), others: Vec::new(), refused, placement: None, no_gpus: None })
    }

    /// Puts the chosen device aside because of `error`, and chooses the next one.
    ///
    /// # Errors
    /// `error` itself, where there is no other or the caller asked for the device.
    pub(crate) fn refuse(&mut self, error: Error) -> Result<()> {
        if self.others.is_empty() {
            return Err(error);
        }
        let next = self.others.remove(0);
        let failed = std::mem::replace(&mut self.chosen, next);
        self.refused.push(DeviceInfo { unusable: Some(error.to_string()), ..failed });
        Ok(())
    }

    /// The report after the chosen device failed in use: the CPU runs the model.
    pub(crate) fn failed(&self, reason: &str) -> Self {
        let mut refused = self.refused.clone();
        refused.push(DeviceInfo { unusable: Some(format!("it failed in use: {reason}")), ..self.chosen.clone() });
        Self { chosen: processor(), others: Vec::new(), refused, placement: None, no_gpus: None }
    }

    /// The numbers of usable GPUs after the chosen one, best first.
    pub(crate) fn other_gpus(&self) -> Vec<usize> {
        let gpu = |info: &DeviceInfo| if let Device::Hip(gpu) = info.device { Some(gpu) } else { None };
        self.others.iter().filter_map(gpu).collect()
    }

    pub(crate) fn with_placement(self, placement: Option<String>) -> Self {
        Self { placement, ..self }
    }

    /// The device that runs the model.
    pub fn device(&self) -> Device {
        self.chosen.device
    }

    /// Which part of the model the device runs and why, where it does not run all of it.
    pub fn placement(&self) -> Option<&str> {
        self.placement.as_deref()
    }

    /// The devices that were not chosen because they cannot be used, each with the reason. Empty
    /// where the caller asked for the CPU, because no other devices are searched for then.
    pub fn refused(&self) -> &[DeviceInfo] {
        &self.refused
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "runs on {} ({})", self.chosen.device, self.chosen.name)?;
        if let Some(placement) = &self.placement {
            write!(f, ", {placement}")?;
        }
        for d in &self.refused {
            // The first clause of the reason is enough here; `devices` has the whole text.
            let reason = d.unusable.as_deref().unwrap_or("not chosen").split([';', '(']).next().unwrap_or_default();
            write!(f, "; not on {} ({}): {}", d.device, d.name, reason.trim())?;
        }
        if let Some(reason) = &self.no_gpus {
            write!(f, "; no GPU: {}", reason.split([';', '(']).next().unwrap_or_default().trim())?;
        }
        Ok(())
    }
}

fn unusable(device: Device, reason: &str) -> Error {
    Error::new(ErrorKind::Device, format!("device {device} cannot be used: {reason}; use device auto or cpu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(device: Device, integrated: Option<bool>) -> DeviceInfo {
        let gpu = integrated.map(|integrated| GpuInfo {
            arch: "gfx1100".to_owned(),
            wave_size: 32,
            compute_units: 8,
            memory: 1 << 30,
            integrated,
            library: String::new(),
            version: None,
            kernels: None,
        });
        DeviceInfo { device, name: String::new(), unusable: None, gpu }
    }

    #[test]
    fn an_integrated_gpu_is_used_alone_or_when_asked_for() {
        let both =
            vec![device(Device::Hip(0), Some(true)), device(Device::Hip(1), Some(false)), device(Device::Cpu, None)];
        let report = DeviceReport::choose_from(Device::Auto, both.clone(), None).unwrap();
        assert_eq!(report.device(), Device::Hip(1));
        assert!(report.refused()[0].unusable.as_ref().unwrap().contains("integrated"));
        assert_eq!(DeviceReport::choose_from(Device::Hip(0), both.clone(), None).unwrap().device(), Device::Hip(0));
        let alone = [both[0].clone(), both[2].clone()].to_vec();
        assert_eq!(DeviceReport::choose_from(Device::Auto, alone, None).unwrap().device(), Device::Hip(0));
    }

    #[test]
    fn the_fastest_gpu_comes_first_and_the_smallest_ones_make_way_for_the_processor() {
        let gpu = |i, arch: &str, units, gib: u64, integrated| {
            let mut info = device(Device::Hip(i), Some(integrated));
            let gpu = info.gpu.as_mut().unwrap();
            (gpu.arch, gpu.compute_units, gpu.memory) = (arch.to_owned(), units, gib << 30);
            info
        };
        let choose = |mut gpus: Vec<DeviceInfo>| {
            gpus.push(device(Device::Cpu, None));
            DeviceReport::choose_from(Device::Auto, gpus, None).unwrap()
        };
        // An RX 7900 XTX next to the graphics of a Ryzen, an RX 6400 and an old Vega.
        let small = gpu(0, "gfx1036", 1, 32, true);
        let many = vec![
            small.clone(),
            gpu(1, "gfx1034", 6, 4, false),
            gpu(2, "gfx900", 64, 8, false),
            gpu(3, "gfx1100", 48, 24, false),
        ];
        let mut report = choose(many);
        let mut order = vec![report.device()];
        while report.refuse(Error::new(ErrorKind::Device, "x")).is_ok() {
            order.push(report.device());
        }
        assert_eq!(order, [3, 2, 1].map(Device::Hip).into_iter().chain([Device::Cpu]).collect::<Vec<_>>());
        let report = choose(vec![small.clone()]);
        assert_eq!(report.device(), Device::Cpu);
        assert!(report.to_string().contains("not on hip:0 (): it is integrated and has 128 lanes"), "{report}");
        let asked = DeviceReport::choose_from(Device::Hip(0), vec![small, device(Device::Cpu, None)], None).unwrap();
        assert_eq!(asked.device(), Device::Hip(0));
        // A Radeon 780M, and Strix Halo.
        assert_eq!(choose(vec![gpu(0, "gfx1103", 6, 16, true)]).device(), Device::Hip(0));
        assert_eq!(
            choose(vec![gpu(0, "gfx1103", 6, 16, true), gpu(1, "gfx1151", 20, 96, true)]).device(),
            Device::Hip(1)
        );
    }

    #[test]
    fn where_there_are_no_gpus_the_reason_is_said() {
        let none = || Some("no GPU driver library was found (tried a, b)".to_owned());
        let cpu = || vec![device(Device::Cpu, None)];
        let report = DeviceReport::choose_from(Device::Auto, cpu(), none()).unwrap();
        assert!(report.to_string().ends_with("; no GPU: no GPU driver library was found"), "{report}");
        let error = DeviceReport::choose_from(Device::Hip(0), cpu(), none()).unwrap_err();
        assert!(error.to_string().contains("was found (tried a, b)"), "{error}");
    }

    #[test]
    fn a_device_that_fails_makes_way_for_the_next_unless_it_was_asked_for() {
        let both = vec![device(Device::Hip(0), Some(false)), device(Device::Cpu, None)];
        let full = || Error::new(ErrorKind::OutOfMemory, "weights do not fit");
        let mut report = DeviceReport::choose_from(Device::Auto, both.clone(), None).unwrap();
        report.refuse(full()).unwrap();
        assert_eq!(report.device(), Device::Cpu);
        assert!(report.to_string().contains("not on hip:0 (): weights do not fit"), "{report}");
        assert_eq!(report.refuse(full()).unwrap_err().kind(), ErrorKind::OutOfMemory);
        let mut asked = DeviceReport::choose_from(Device::Hip(0), both, None).unwrap();
        assert!(asked.refuse(full()).is_err());
    }

    #[test]
    fn names_round_trip() {
        for device in [Device::Auto, Device::Cpu, Device::Hip(0), Device::Hip(3)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("hip".parse::<Device>().unwrap(), Device::Hip(0));
        assert!("cuda".parse::<Device>().unwrap_err().to_string().contains("cuda"));
    }

    #[test]
    fn a_device_that_is_not_there_is_a_typed_error() {
        let error = DeviceReport::choose(Device::Hip(97)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("hip:97"), "{error}");
        assert_eq!(DeviceReport::choose(Device::Auto).unwrap().device(), Device::Cpu);
    }
}
