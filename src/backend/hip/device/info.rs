//! The data on a GPU.

/// A driver's data on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuInfo {
    /// The architecture, as compilers name it: `gfx1100`, `sm_90`.
    pub arch: String,
    /// Lanes that run in lockstep: 32 or 64.
    pub wave_size: u32,
    /// Compute units.
    pub compute_units: u32,
    /// All of its memory, in bytes.
    pub memory: u64,
    /// Whether it shares the processor's memory.
    pub integrated: bool,
    /// The driver library.
    pub library: String,
    /// The version of HIP or CUDA that the library implements.
    pub version: Option<String>,
    /// Where the kernels for it come from; `None` where there are none.
    pub kernels: Option<String>,
}

impl GpuInfo {
    /// Groups of 64 lanes. From gfx10 on, AMD's library counts pairs of them.
    pub(crate) fn groups(&self) -> f64 {
        let pairs = ["gfx10", "gfx11", "gfx12", "sm_"].iter().any(|family| self.arch.starts_with(family));
        f64::from(self.compute_units) * if pairs { 2.0 } else { 1.0 }
    }
}
