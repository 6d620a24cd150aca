//! `gate = act(gate) * up` (hip/rows/elementwise.hip, hip/rows/halve.hip). Where both are products,
//! `matmul/gated.rs` takes it in.

use super::{Finder, GpuOp, Launch, One, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::Pass;
use crate::backend::hip::selftest::{EXACT, LAYER_COLUMNS, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Activation, Buf, Op, Program};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Glu { gate, up, act }, rest @ ..] = ops else { return None };
        to.write(*gate, Glu { gate: *gate, up: *up, act: *act, quantize: false });
        Some(rest)
    },
    fusions: &[],
    probe,
};

/// `gate = act(gate) * up`, and its int8 form if `quantize` is set.
#[derive(Debug)]
pub(super) struct Glu {
    pub(super) gate: Buf,
    pub(super) up: Buf,
    pub(super) act: Activation,
    pub(super) quantize: bool,
}

impl Glu {
    pub(super) fn kernel(find: &Finder<'_>, act: Activation) -> Result<Kernel> {
        find.kernel("elementwise", name(act), 256)
    }
}

fn name(act: Activation) -> &'static str {
    match act {
        Activation::Silu => "glu_silu",
        Activation::Gelu => "glu_gelu",
    }
}

impl Step for Glu {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        Ok(Box::new(One { kernel: Self::kernel(find, self.act)?, step: *self }))
    }

    fn quantize(&mut self) -> bool {
        self.quantize = true;
        true
    }
}

impl Single for Glu {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let (q, groups) = pass.int8_if(self.quantize, self.gate)?;
        let gate = pass.float(self.gate)?;
        let args = Args::default().ptr(gate).ptr(pass.float(self.up)?).ptr(gate).ptr(q).ptr(groups);
        pass.over_elements(kernel, self.gate, args)
    }
}

fn probe(_: &Program, op: &Op) -> Option<Probe> {
    let Op::Glu { act, .. } = *op else { return None };
    let mut sketch = Sketch::new();
    let (gate, up) = (sketch.random(TensorType::F32, LAYER_COLUMNS), sketch.random(TensorType::F32, LAYER_COLUMNS));
    sketch.op(Op::Glu { gate, up, act });
    Some(sketch.finish(name(act), gate, EXACT))
}
