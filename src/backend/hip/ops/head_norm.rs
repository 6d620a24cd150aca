//! The norm of each head by itself (hip/rows/norm.hip).

use super::{Finder, GpuOp, Launch, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::{Pass, blocks, narrow};
use crate::backend::hip::selftest::{EXACT, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program, Weight};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::HeadNorm { x, weight, eps }, rest @ ..] = ops else { return None };
        to.write(*x, HeadNorm { x: *x, weight: *weight, eps: *eps });
        Some(rest)
    },
    fusions: &[],
    probe,
};

#[derive(Debug)]
struct HeadNorm {
    x: Buf,
    weight: Weight,
    eps: f32,
}

/// A wave has a head to itself.
const WAVES: u32 = 4;

impl Step for HeadNorm {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        find.one(*self, "norm", "head_norm", WAVES * find.device.wave)
    }
}

impl Single for HeadNorm {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let columns = pass.info(self.weight)?.columns;
        let heads = pass.elements(self.x)? / columns.max(1);
        let args = Args::default()
            .ptr(pass.float(self.x)?)
            .ptr(pass.weight(self.weight)?)
            .u32(narrow(heads)?)
            .u32(narrow(columns)?)
            .f32(self.eps);
        pass.launch(kernel, [blocks(heads, WAVES as usize)?, 1, 1], args)
    }
}

fn probe(program: &Program, op: &Op) -> Option<Probe> {
    let Op::HeadNorm { weight, eps, .. } = *op else { return None };
    let columns = program.weight(weight).ok()?.columns;
    let mut sketch = Sketch::new();
    let x = sketch.random(TensorType::F32, columns * 3);
    let weight = sketch.weight(TensorType::F32, 1, columns);
    sketch.op(Op::HeadNorm { x, weight, eps });
    Some(sketch.finish(format!("head_norm of {columns} columns"), x, EXACT))
}
