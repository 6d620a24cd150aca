//! Copies the rows whose logits are wanted from `x` to `out` (hip/rows/elementwise.hip).

use super::{Finder, GpuOp, Launch, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::{Pass, blocks, narrow};
use crate::backend::hip::selftest::{EXACT, LAYER_COLUMNS, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program, RowKind};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Rows { x, out }, rest @ ..] = ops else { return None };
        to.write(*out, Gather { x: *x, out: *out });
        Some(rest)
    },
    fusions: &[],
    probe,
};

#[derive(Debug)]
struct Gather {
    x: Buf,
    out: Buf,
}

impl Step for Gather {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        find.one(*self, "elementwise", "gather_rows", 256)
    }
}

impl Single for Gather {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let columns = pass.columns(self.out)?;
        let args = Args::default()
            .ptr(pass.float(self.x)?)
            .ptr(pass.inputs.wanted)
            .ptr(pass.float(self.out)?)
            .u32(narrow(columns)?);
        pass.launch(kernel, [blocks(columns, 256)?, narrow(pass.inputs.outputs)?, 1], args)
    }
}

fn probe(_: &Program, op: &Op) -> Option<Probe> {
    let Op::Rows { .. } = *op else { return None };
    let mut sketch = Sketch::new();
    let x = sketch.random(TensorType::F32, LAYER_COLUMNS);
    let out = sketch.buffer(LAYER_COLUMNS, RowKind::Outputs);
    sketch.op(Op::Rows { x, out });
    Some(sketch.finish("gather_rows", out, EXACT))
}
