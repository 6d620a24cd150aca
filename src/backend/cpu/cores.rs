//! The default number of threads.

/// `$WAVELM_THREADS` if it is a number above 0, else the physical cores that this process may use.
/// Two threads on one core share its vector units, and only get in each other's way.
pub(crate) fn default_threads() -> usize {
    if let Ok(text) = std::env::var("WAVELM_THREADS") {
        match text.trim().parse() {
            Ok(n) if n > 0 => return n,
            _ => log::warn!("WAVELM_THREADS={text} is not a number above 0; ignored"),
        }
    }
    // The number that the scheduler's affinity and quotas allow.
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    match physical_cores() {
        Some(cores) => cores.clamp(1, allowed),
        None => allowed,
    }
}

/// The distinct cores behind the online processors, if the system reports them.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()? {
        let name = entry.ok()?.file_name();
        let is_cpu = name.to_str().and_then(|n| n.strip_prefix("cpu")).is_some_and(|n| n.parse::<u32>().is_ok());
        if !is_cpu {
            continue;
        }
        let folder = std::path::Path::new("/sys/devices/system/cpu").join(&name).join("topology");
        // Offline processors have no topology.
        if let Ok(siblings) = std::fs::read_to_string(folder.join("thread_siblings")) {
            cores.insert(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None // other systems report it only through a system library
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_at_least_one_thread_and_not_more_than_the_machine_has() {
        let n = super::default_threads();
        let most = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(n >= 1 && (n <= most || std::env::var("WAVELM_THREADS").is_ok()), "{n}");
    }
}
