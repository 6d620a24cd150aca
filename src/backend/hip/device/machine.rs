//! The facts that decide whether a driver can be trusted: GPUs, libraries, kernel and versions.
//! Reading them loads no driver.

use super::kernel_gpus;
use crate::backend::hip::code::code_cache::{CodeCache, Recipe};
use crate::backend::hip::driver::{LIBRARY_VARIABLE, cuda_candidates, hip_candidates};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use std::{env, fs};

/// A machine as a driver sees it.
pub(crate) struct Machine {
    recipe: Recipe,
    cache: Option<CodeCache>,
}

/// This machine; `None` where there is no GPU that a driver could find.
pub(crate) fn machine() -> Option<Machine> {
    let named = env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    // At least one of them exists if there is a kernel driver: AMD's, AMD's in WSL, NVIDIA's.
    const SIGNS: [&str; 3] = ["/dev/kfd", "/dev/dxg", "/proc/driver/nvidia"];
    if cfg!(target_os = "linux") && named.is_none() && SIGNS.iter().all(|path| !Path::new(path).exists()) {
        return None;
    }
    let libraries = match named {
        Some(path) => vec![path],
        None => [hip_candidates(), cuda_candidates()].concat(),
    };
    let mut parts = vec![env!("CARGO_PKG_VERSION").to_owned()];
    parts.extend(libraries.iter().map(|path| identity(path)));
    // The loader finds other libraries by this list of its own, which each installation changes.
    parts.push(identity(Path::new("/etc/ld.so.cache")));
    parts.push(format!("{:?}", env::var_os("LD_LIBRARY_PATH")));
    // The versions on the kernel's side. A module that was built apart from the kernel has its own
    // version.
    const FILES: [&str; 3] =
        ["/proc/sys/kernel/osrelease", "/sys/module/amdgpu/version", "/proc/driver/nvidia/version"];
    parts.extend(FILES.iter().map(|path| fs::read_to_string(path).unwrap_or_default()));
    parts.extend(kernel_gpus());
    let recipe = Recipe::of_probe(parts.iter().map(String::as_str));
    let cache = CodeCache::open().inspect_err(|e| log::debug!("what a GPU's driver does is not kept: {e}")).ok();
    Some(Machine { recipe, cache })
}

/// A file's path, size and time; each installation changes one of them.
fn identity(path: &Path) -> String {
    let data = fs::metadata(path).ok();
    let time = data.as_ref().and_then(|data| data.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    format!("{} {:?} {time:?}", path.display(), data.map(|data| data.len()))
}

impl Machine {
    /// The record that was kept for this machine.
    pub(crate) fn known(&self) -> Option<Vec<u8>> {
        self.cache.as_ref()?.get(&self.recipe)
    }

    pub(crate) fn keep(&self, found: &[u8]) {
        if let Some(Err(e)) = self.cache.as_ref().map(|cache| cache.put(&self.recipe, found)) {
            log::debug!("what a GPU's driver does is not kept: {e}");
        }
    }

    /// The path of the record, for people.
    pub(crate) fn place(&self) -> String {
        self.cache.as_ref().map_or_else(String::new, |cache| cache.path(&self.recipe).display().to_string())
    }
}
