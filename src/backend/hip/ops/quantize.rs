//! The int8 form of activations, which products with quantized weights read (hip/quant/quantize.hip).
//! [`Lowering::quantize`](super::lowering::Lowering::quantize) says where it comes from.

use super::{Finder, Launch, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::Pass;
use crate::program::Buf;

/// Makes the int8 form of `x`, where the step that writes `x` does not.
#[derive(Debug)]
pub(super) struct Quantize {
    pub(super) x: Buf,
}

impl Quantize {
    pub(super) fn kernel(find: &Finder<'_>) -> Result<Kernel> {
        find.kernel("quantize", "quantize_q8", 256)
    }
}

impl Step for Quantize {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        Ok(Box::new(super::One { kernel: Self::kernel(find)?, step: *self }))
    }
}

impl Single for Quantize {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let (q, groups) = pass.int8(self.x)?;
        pass.over_elements(kernel, self.x, Args::default().ptr(pass.float(self.x)?).ptr(q).ptr(groups))
    }
}
