//! `x = cap * tanh(x / cap)` (hip/rows/elementwise.hip).

use super::{Finder, GpuOp, Launch, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::Pass;
use crate::backend::hip::selftest::{EXACT, LAYER_COLUMNS, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Softcap { x, cap }, rest @ ..] = ops else { return None };
        to.write(*x, Softcap { x: *x, cap: *cap });
        Some(rest)
    },
    fusions: &[],
    probe,
};

#[derive(Debug)]
struct Softcap {
    x: Buf,
    cap: f32,
}

impl Step for Softcap {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        find.one(*self, "elementwise", "softcap", 256)
    }
}

impl Single for Softcap {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        pass.over_elements(kernel, self.x, Args::default().ptr(pass.float(self.x)?).f32(self.cap))
    }
}

fn probe(_: &Program, op: &Op) -> Option<Probe> {
    let Op::Softcap { cap, .. } = *op else { return None };
    let mut sketch = Sketch::new();
    let x = sketch.random(TensorType::F32, LAYER_COLUMNS);
    // A small cap has an effect on numbers of this size.
    sketch.op(Op::Softcap { x, cap: cap.min(2.0) });
    Some(sketch.finish("softcap", x, EXACT))
}
