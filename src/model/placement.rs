//! Which layers of a model a GPU runs, and which the CPU.

use crate::backend::hip::Tell;
use crate::backend::split::{self, SplitBackend};
use crate::backend::{Backend, cpu, hip};
use crate::gguf::Gguf;
use crate::program::Program;
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;

/// Which layers of a model a GPU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Placement {
    /// All layers, if they fit in the GPU's memory together with the cache of a session and the
    /// buffers of a pass. Otherwise the GPU runs as many of the first layers as fit, and the CPU
    /// the others.
    #[default]
    Automatic,
    /// The first N layers; the CPU runs the others. A number equal to the model's or larger places
    /// the whole model, with the output matrix. A placement that does not fit is an error of the
    /// kind [`OutOfMemory`](ErrorKind::OutOfMemory).
    Layers(usize),
}

/// A model to place on a GPU.
pub(super) struct Load<'a> {
    pub(super) gguf: &'a Arc<Gguf>,
    pub(super) program: &'a Arc<Program>,
    pub(super) hip: hip::HipOptions,
    pub(super) cpu: cpu::CpuOptions,
    /// The context to leave room for.
    pub(super) context: usize,
}

impl Load<'_> {
    /// Loads the model. If the GPU does not run all of it, the returned text says how much it runs
    /// and why. `tell` hears how many bytes of weights are on the GPU.
    ///
    /// # Errors
    /// `OutOfMemory` where not even one layer fits, or not the requested number; otherwise the
    /// backends' errors.
    pub(super) fn place(
        &self,
        placement: Placement,
        tell: &mut Tell<'_>,
    ) -> Result<(Arc<dyn Backend>, Option<String>)> {
        let layers = self.program.kv.len();
        match placement {
            Placement::Layers(n) if n >= layers => self.whole(tell),
            Placement::Layers(n) => self.split(n, "as the caller asked", tell),
            Placement::Automatic => self.fit(layers, tell),
        }
    }

    fn whole(&self, tell: &mut Tell<'_>) -> Result<(Arc<dyn Backend>, Option<String>)> {
        Ok((Arc::new(hip::HipBackend::new(self.gguf, self.program, &self.hip, tell)?), None))
    }

    fn split(&self, layers: usize, why: &str, tell: &mut Tell<'_>) -> Result<(Arc<dyn Backend>, Option<String>)> {
        let cut = self.program.layer_cuts()?.get(layers).copied().flatten().ok_or_else(|| {
            Error::unsupported(format!("this model cannot be cut before layer {layers}; place all of it on one device"))
        })?;
        let (front, back) = split::parts(self.program, cut)?;
        let front = hip::HipBackend::new(self.gguf, &Arc::new(front), &self.hip, tell)?;
        let back = cpu::CpuBackend::new(Arc::clone(self.gguf), Arc::new(back), self.cpu.clone())?;
        let all = self.program.kv.len();
        let text = format!("the first {layers} of {all} layers, the others on the CPU, {why}");
        Ok((Arc::new(SplitBackend::new(front, back)), Some(text)))
    }

    /// Places as many layers as fit. Starts from the memory that is free now, and tries one layer
    /// fewer at a time if the device has less after all.
    fn fit(&self, layers: usize, tell: &mut Tell<'_>) -> Result<(Arc<dyn Backend>, Option<String>)> {
        let free = hip::free_memory(self.hip.gpu)?;
        // Leaves room for code and for the driver's own memory.
        let usable = free - free / 32;
        let needed = |program: &Arc<Program>| hip::bytes(&self.hip, program, self.context);
        let all = needed(self.program)?;
        if all <= usable {
            match self.whole(tell) {
                Err(e) if e.kind() == ErrorKind::OutOfMemory => log::info!("hip:{}: {e}", self.hip.gpu),
                placed => return placed,
            }
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let why = format!("because all of it needs {} MiB and {} MiB are free", mib(all), free >> 20);
        let cuts = self.program.layer_cuts()?;
        let mut least = all;
        for n in (1..layers).rev() {
            let Some(cut) = cuts.get(n).copied().flatten() else { continue };
            least = needed(&Arc::new(split::parts(self.program, cut)?.0))?;
            if least > usable {
                continue;
            }
            match self.split(n, &why, tell) {
                Err(e) if e.kind() == ErrorKind::OutOfMemory => log::info!("hip:{}: {e}", self.hip.gpu),
                placed => return placed,
            }
        }
        Err(Error::new(
            ErrorKind::OutOfMemory,
            format!(
                "one layer with its buffers and cache needs {} MiB, which do not fit the memory of which {} MiB are free",
                mib(least),
                free >> 20
            ),
        ))
    }
}
