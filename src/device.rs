//! Devices: what this machine offers, which one runs a model, and why others do not.

use crate::backend::cpu::isa::Isa;
use crate::{Error, ErrorKind, Result};
use std::fmt;
use std::path::Path;

/// A device to run models on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The best usable one.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The AMD GPU of this number, as [`devices`] counts them.
    Hip(usize),
}

impl Device {
    /// The AMD GPU number `index`.
    pub fn hip(index: usize) -> Self {
        Self::Hip(index)
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
    /// What selects it.
    pub device: Device,
    /// What it is.
    pub name: String,
    /// Why it cannot be used; `None` where it can.
    pub unusable: Option<String>,
}

/// Everything on this machine that could run a model, usable or not; the CPU comes last.
pub fn devices() -> Vec<DeviceInfo> {
    let mut found = gpus();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    found.push(DeviceInfo {
        device: Device::Cpu,
        name: format!("{} CPU, {cores} threads, {} kernels", std::env::consts::ARCH, Isa::best().name()),
        unusable: None,
    });
    found
}

/// AMD GPUs that the kernel driver knows: each node of its topology with compute units is one.
fn gpus() -> Vec<DeviceInfo> {
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
    numbers
        .iter()
        .filter_map(gpu)
        .enumerate()
        .map(|(i, name)| DeviceInfo { device: Device::Hip(i), name, unusable: Some(NO_HIP.to_owned()) })
        .collect()
}

const NO_HIP: &str = "this version of wavelm has no HIP backend yet";

/// Which device was chosen for a model, and why others were not. Its `Display` is one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    chosen: DeviceInfo,
    refused: Vec<DeviceInfo>,
}

impl DeviceReport {
    pub(crate) fn choose(wanted: Device) -> Result<Self> {
        let (usable, refused): (Vec<_>, Vec<_>) = devices().into_iter().partition(|d| d.unusable.is_none());
        let fits = |d: &DeviceInfo| wanted == Device::Auto || d.device == wanted;
        match usable.into_iter().find(fits) {
            Some(chosen) => Ok(Self { chosen, refused }),
            None => {
                let reason = refused.iter().find(|d| d.device == wanted).and_then(|d| d.unusable.clone());
                Err(Error::new(
                    ErrorKind::Device,
                    format!(
                        "device {wanted} cannot be used: {}; use device auto or cpu",
                        reason.as_deref().unwrap_or("this machine has no such device, or no driver for it")
                    ),
                ))
            }
        }
    }

    /// The device that runs the model.
    pub fn device(&self) -> Device {
        self.chosen.device
    }

    /// The devices that were not taken because they cannot be used, each with the reason.
    pub fn refused(&self) -> &[DeviceInfo] {
        &self.refused
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "runs on {} ({})", self.chosen.device, self.chosen.name)?;
        for d in &self.refused {
            write!(f, "; not on {} ({}): {}", d.device, d.name, d.unusable.as_deref().unwrap_or("not chosen"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
