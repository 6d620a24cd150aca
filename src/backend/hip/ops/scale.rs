//! `x = by * x` (hip/rows/elementwise.hip).

use super::{Finder, GpuOp, Launch, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::Pass;
use crate::backend::hip::selftest::{EXACT, LAYER_COLUMNS, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Scale { x, by }, rest @ ..] = ops else { return None };
        to.write(*x, Scale { x: *x, by: *by });
        Some(rest)
    },
    fusions: &[],
    probe,
};

#[derive(Debug)]
struct Scale {
    x: Buf,
    by: f32,
}

impl Step for Scale {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        find.one(*self, "elementwise", "scale", 256)
    }
}

impl Single for Scale {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        pass.over_elements(kernel, self.x, Args::default().ptr(pass.float(self.x)?).f32(self.by))
    }
}

fn probe(_: &Program, op: &Op) -> Option<Probe> {
    let Op::Scale { by, .. } = *op else { return None };
    let mut sketch = Sketch::new();
    let x = sketch.random(TensorType::F32, LAYER_COLUMNS);
    sketch.op(Op::Scale { x, by });
    Some(sketch.finish("scale", x, EXACT))
}
