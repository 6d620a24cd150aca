//! Rotates heads by their tokens' positions (hip/attention/rope.hip). Where keys are stored right after it,
//! `attention/store.rs` takes it in.

use super::{Finder, GpuOp, Launch, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::{Pass, narrow};
use crate::backend::hip::selftest::{EXACT, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Rope { x, rope, head_dim }, rest @ ..] = ops else { return None };
        to.write(*x, Rope { x: *x, rope: *rope, head_dim: *head_dim });
        Some(rest)
    },
    fusions: &[],
    probe,
};

#[derive(Debug)]
struct Rope {
    x: Buf,
    rope: usize,
    head_dim: usize,
}

impl Step for Rope {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        find.one(*self, "rope", "rope", 64)
    }
}

impl Single for Rope {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let heads = pass.columns(self.x)? / self.head_dim.max(1);
        let (angles, pairs, neox) = pass.rope(self.rope)?;
        let args = Args::default()
            .ptr(pass.float(self.x)?)
            .ptr(angles)
            .ptr(0)
            .u32(narrow(heads)?)
            .u32(narrow(self.head_dim)?)
            .u32(pairs)
            .u32(neox);
        pass.launch(kernel, [narrow(heads)?, narrow(pass.rows(self.x)?)?, 1], args)
    }
}

fn probe(program: &Program, op: &Op) -> Option<Probe> {
    let Op::Rope { rope, head_dim, .. } = *op else { return None };
    let mut sketch = Sketch::new();
    let rope = sketch.rope(program.ropes.get(rope)?.clone());
    let x = sketch.random(TensorType::F32, head_dim * 3);
    sketch.op(Op::Rope { x, rope, head_dim });
    Some(sketch.finish("rope", x, EXACT))
}
