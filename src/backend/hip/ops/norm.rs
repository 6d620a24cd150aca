//! `out = x / rms(x) * weight`, with the sum before it (hip/rows/norm.hip).

use super::{Finder, Fusion, GpuOp, Launch, One, Single, Step};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::{Pass, narrow};
use crate::backend::hip::selftest::{EXACT, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program, RowKind, Weight};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::RmsNorm { x, weight, eps, out }, rest @ ..] = ops else { return None };
        to.write(*out, Norm { x: *x, add: None, weight: *weight, eps: *eps, out: *out, quantize: false });
        Some(rest)
    },
    fusions: &[ADDED],
    probe,
};

const ADDED: Fusion = Fusion {
    name: "a sum and its norm",
    why: "the residual stream is read once",
    rule: |ops, to| {
        let sum = SumAndNorm::first_of(ops)?;
        to.forget(sum.stream);
        let SumAndNorm { stream: x, add, weight, eps, out, rest } = sum;
        to.write(out, Norm { x, add: Some(add), weight, eps, out, quantize: false });
        Some(rest)
    },
};

/// A sum and its norm, where the sum and the norm are different buffers.
pub(super) struct SumAndNorm<'o> {
    pub(super) stream: Buf,
    pub(super) add: Buf,
    pub(super) weight: Weight,
    pub(super) eps: f32,
    pub(super) out: Buf,
    /// The operations after it.
    pub(super) rest: &'o [Op],
}

impl<'o> SumAndNorm<'o> {
    /// The first two of these operations, if they are that.
    pub(super) fn first_of(ops: &'o [Op]) -> Option<Self> {
        match *ops {
            [Op::Add { x, y }, Op::RmsNorm { x: normed, weight, eps, out }, ref rest @ ..]
                if x == normed && x != out && y != out =>
            {
                Some(Self { stream: x, add: y, weight, eps, out, rest })
            }
            _ => None,
        }
    }
}

/// `x += add`, then `out = norm(x)`; also the int8 form of `out` if `quantize` is set.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) x: Buf,
    pub(super) add: Option<Buf>,
    pub(super) weight: Weight,
    pub(super) eps: f32,
    pub(super) out: Buf,
    pub(super) quantize: bool,
}

impl Norm {
    pub(super) fn kernel(find: &Finder<'_>) -> Result<Kernel> {
        find.kernel("norm", "rms_norm", 1024)
    }
}

impl Step for Norm {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        Ok(Box::new(One { kernel: Self::kernel(find)?, step: *self }))
    }

    fn quantize(&mut self) -> bool {
        self.quantize = true;
        true
    }
}

impl Single for Norm {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let (q, groups) = pass.int8_if(self.quantize, self.out)?;
        let args = Args::default()
            .ptr(pass.float(self.x)?)
            .ptr(self.add.map_or(Ok(0), |y| pass.float(y))?)
            .ptr(pass.weight(self.weight)?)
            .ptr(pass.float(self.out)?)
            .ptr(q)
            .ptr(groups)
            .u32(narrow(pass.columns(self.x)?)?)
            .f32(self.eps);
        pass.launch(kernel, [narrow(pass.rows(self.x)?)?, 1, 1], args)
    }
}

fn probe(program: &Program, op: &Op) -> Option<Probe> {
    let Op::RmsNorm { x, eps, .. } = *op else { return None };
    let columns = program.columns(x).ok()?;
    let mut sketch = Sketch::new();
    let x = sketch.random(TensorType::F32, columns);
    let (weight, out) = (sketch.weight(TensorType::F32, 1, columns), sketch.buffer(columns, RowKind::Tokens));
    sketch.op(Op::RmsNorm { x, weight, eps, out });
    Some(sketch.finish(format!("rms_norm of {columns} columns"), out, EXACT))
}

#[cfg(test)]
mod tests {
    use super::super::tests::steps;
    use super::*;

    #[test]
    fn a_sum_and_its_norm_are_one_step_where_both_results_survive() {
        let (x, y, h) = (Buf(0), Buf(1), Buf(2));
        let norm = |out| Op::RmsNorm { x, weight: Weight(0), eps: 1e-5, out };
        let steps = |out| steps(&[], vec![Op::Add { x, y }, norm(out)]).len();
        assert_eq!((steps(h), steps(x), steps(y)), (1, 2, 2));
    }
}
