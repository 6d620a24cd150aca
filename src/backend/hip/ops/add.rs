//! `x = x + y` (hip/rows/elementwise.hip).

use super::{Finder, GpuOp, Launch, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::Pass;
use crate::backend::hip::selftest::{EXACT, LAYER_COLUMNS, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Add { x, y }, rest @ ..] = ops else { return None };
        to.write(*x, Add { x: *x, y: *y });
        Some(rest)
    },
    fusions: &[],
    probe,
};

#[derive(Debug)]
struct Add {
    x: Buf,
    y: Buf,
}

impl Step for Add {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        find.one(*self, "elementwise", "add", 256)
    }
}

impl Single for Add {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        pass.over_elements(kernel, self.x, Args::default().ptr(pass.float(self.x)?).ptr(pass.float(self.y)?))
    }
}

fn probe(_: &Program, op: &Op) -> Option<Probe> {
    let Op::Add { .. } = *op else { return None };
    let mut sketch = Sketch::new();
    let (x, y) = (sketch.random(TensorType::F32, LAYER_COLUMNS), sketch.random(TensorType::F32, LAYER_COLUMNS));
    sketch.op(Op::Add { x, y });
    Some(sketch.finish("add", x, EXACT))
}
