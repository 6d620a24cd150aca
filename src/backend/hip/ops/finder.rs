//! How steps find their kernels.

use super::{Launch, One, Single};
use crate::Result;
use crate::backend::KvType;
use crate::backend::hip::code::{Kernel, Modules, has_matrix_cores};
use crate::backend::hip::device::Device;
use crate::gguf::TensorType;
use crate::program::{Program, Weight};
use crate::quant;

/// The name of a tensor type, as names of kernels have it.
pub(crate) fn type_name(ty: TensorType) -> &'static str {
    quant::kernel_name(ty).unwrap_or("?")
}

/// What the choice of kernels depends on.
pub(crate) struct Finder<'a> {
    pub(crate) program: &'a Program,
    pub(crate) kv_type: KvType,
    pub(crate) device: &'a Device,
    pub(crate) modules: &'a Modules,
}

impl Finder<'_> {
    /// The kernel `name` of a family, in blocks of `threads` threads.
    pub(super) fn kernel(&self, family: &'static str, name: &str, threads: u32) -> Result<Kernel> {
        self.modules.kernel(family, name, threads)
    }

    /// A step of one launch with its kernel.
    pub(super) fn one<S: Single>(
        &self,
        step: S,
        family: &'static str,
        name: &str,
        threads: u32,
    ) -> Result<Box<dyn Launch>> {
        Ok(Box::new(One { kernel: self.kernel(family, name, threads)?, step }))
    }

    pub(super) fn has_matrix_cores(&self) -> bool {
        has_matrix_cores(&self.device.arch)
    }

    /// The type of a weight, as names of kernels have it.
    pub(super) fn type_name(&self, weight: Weight) -> &'static str {
        let info = self.program.weights.get(weight.0);
        info.map_or("", |w| type_name(w.tensor.tensor_type()))
    }

    /// The type of the cache, as names of kernels have it.
    pub(super) fn kv_name(&self) -> &'static str {
        match self.kv_type {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }
}
