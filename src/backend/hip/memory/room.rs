//! How much memory a GPU has left. Its driver and the system may report different amounts.
//!
//! A GPU that is part of a processor has a region of its own (its carve-out), which the system does
//! not count, and takes the rest from the system's memory. Some drivers report all of that as free
//! although the system uses it; some report more than there is, and some none at all.

use crate::Result;
use crate::backend::hip::device::Device;
use crate::memory::available_memory;
use std::fs;
use std::path::Path;

/// The kernel driver's report, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Regions {
    /// Free bytes of the device's own memory.
    own: u64,
    /// Free bytes of the system's memory that the device may take.
    shared: u64,
}

/// Bytes of a device's memory that a model may take.
///
/// # Errors
/// Errors of the driver.
pub(crate) fn usable(device: &Device) -> Result<u64> {
    let (free, total) = device.driver()?.memory()?;
    if !device.integrated {
        return Ok(if total == 0 { free } else { free.min(total) });
    }
    let regions = device.bus_id().and_then(|id| regions(&Path::new("/sys/bus/pci/devices").join(id)));
    let usable = shared(free, total, available_memory(), regions);
    log::debug!("{}: {} MiB of memory are usable, the driver says {}", device.name, usable >> 20, free >> 20);
    Ok(usable)
}

/// The same for a device that takes the system's memory.
fn shared(free: u64, total: u64, available: Option<u64>, regions: Option<Regions>) -> u64 {
    let is_plausible = free > 0 && free <= total;
    let by_driver = match (is_plausible, regions) {
        (true, _) => free,
        (false, Some(Regions { own, shared })) => own.saturating_add(shared),
        (false, None) if free > 0 && total > 0 => free.min(total),
        // Nothing is known: take half of what the system has available.
        (false, None) => available.map_or(free, |available| available / 2),
    };
    // Leaves a tenth for the rest of the system, which ends a process that takes too much.
    let spare = available.map(|available| available - available / 10);
    let own = regions.map_or(0, |regions| regions.own);
    spare.map_or(by_driver, |spare| by_driver.min(spare.saturating_add(own)))
}

/// Reads the amounts from the device's folder.
fn regions(folder: &Path) -> Option<Regions> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let free = |what: &str| {
        let (total, used) = (number(&format!("mem_info_{what}_total"))?, number(&format!("mem_info_{what}_used"))?);
        Some(total.saturating_sub(used))
    };
    Some(Regions { own: free("vram")?, shared: free("gtt")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn no_more_is_usable_than_the_system_can_spare() {
        let regions = |own, shared| Some(Regions { own: own * GIB, shared: shared * GIB });
        // A small carve-out. The driver reports 115 of 120 GiB as free, but the system has only 40
        // GiB.
        assert_eq!(shared(115 * GIB, 120 * GIB, Some(40 * GIB), regions(1, 115)), 36 * GIB + GIB);
        // The driver reports more free memory than there is.
        assert_eq!(shared(120 * GIB, 62 * GIB, Some(100 * GIB), regions(1, 60)), 61 * GIB);
        assert_eq!(shared(120 * GIB, 62 * GIB, Some(100 * GIB), None), 62 * GIB);
        // The driver reports no free memory.
        assert_eq!(shared(0, 16 * GIB, Some(20 * GIB), regions(4, 8)), 12 * GIB);
        assert_eq!(shared(0, 0, Some(20 * GIB), None), 10 * GIB);
        // A large carve-out, which the system does not count.
        assert_eq!(shared(95 * GIB, 96 * GIB, Some(20 * GIB), regions(95, 14)), 95 * GIB);
        // The system does not report its memory.
        assert_eq!(shared(7 * GIB, 8 * GIB, None, None), 7 * GIB);
    }

    #[test]
    fn the_kernels_numbers_are_read() {
        let folder = std::env::temp_dir().join(format!("wavelm-room-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(regions(&folder), None);
        for (name, value) in
            [("vram_total", "512\n"), ("vram_used", "100\n"), ("gtt_total", "4096\n"), ("gtt_used", "5000\n")]
        {
            fs::write(folder.join(format!("mem_info_{name}")), value).unwrap();
        }
        assert_eq!(regions(&folder), Some(Regions { own: 412, shared: 0 }));
        fs::remove_dir_all(&folder).unwrap();
    }
}
