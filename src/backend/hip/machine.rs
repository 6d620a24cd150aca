//! What decides whether a driver can be trusted: GPUs, libraries, kernel and versions, without loading any of it.

use super::code_cache::{CodeCache, Recipe};
use super::device::kernel_gpus;
use super::driver::{LIBRARY_VARIABLE, cuda_candidates, hip_candidates};
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
    // Each of them is there where a kernel driver is: of AMD, of AMD in WSL, of NVIDIA.
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
    // The loader finds the others, by its own list, which each installation changes.
    parts.push(identity(Path::new("/etc/ld.so.cache")));
    parts.push(format!("{:?}", env::var_os("LD_LIBRARY_PATH")));
    // The versions of the kernel's side: a module that was built apart from it has its own.
    const FILES: [&str; 3] =
        ["/proc/sys/kernel/osrelease", "/sys/module/amdgpu/version", "/proc/driver/nvidia/version"];
    parts.extend(FILES.iter().map(|path| fs::read_to_string(path).unwrap_or_default()));
    parts.extend(kernel_gpus());
    let recipe = Recipe::of_probe(parts.iter().map(String::as_str));
    let cache = CodeCache::open().inspect_err(|e| log::debug!("what a GPU's driver does is not kept: {e}")).ok();
    Some(Machine { recipe, cache })
}

/// A file by where it is, its size and its time: each installation changes one of them.
fn identity(path: &Path) -> String {
    let data = fs::metadata(path).ok();
    let time = data.as_ref().and_then(|data| data.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    format!("{} {:?} {time:?}", path.display(), data.map(|data| data.len()))
}

impl Machine {
    /// What was kept of it.
    pub(crate) fn known(&self) -> Option<Vec<u8>> {
        self.cache.as_ref()?.get(&self.recipe)
    }

    pub(crate) fn keep(&self, found: &[u8]) {
        if let Some(Err(e)) = self.cache.as_ref().map(|cache| cache.put(&self.recipe, found)) {
            log::debug!("what a GPU's driver does is not kept: {e}");
        }
    }

    /// Where it is kept, for people.
    pub(crate) fn place(&self) -> String {
        self.cache.as_ref().map_or_else(String::new, |cache| cache.path(&self.recipe).display().to_string())
    }
}
