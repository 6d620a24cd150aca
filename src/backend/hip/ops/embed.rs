//! `out = table[token]` (hip/quant/dequant.hip).

use super::{Finder, GpuOp, Launch, Single, Step, type_name};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::{Pass, blocks, narrow};
use crate::backend::hip::selftest::{EXACT, PRODUCT_COLUMNS, Probe, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program, Weight};

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Embed { table, out }, rest @ ..] = ops else { return None };
        to.write(*out, Embed { table: *table, out: *out });
        Some(rest)
    },
    fusions: &[],
    probe,
};

#[derive(Debug)]
struct Embed {
    table: Weight,
    out: Buf,
}

const THREADS: u32 = 128;

impl Step for Embed {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        let name = format!("dequant_rows_{}", find.type_name(self.table));
        find.one(*self, "dequant", &name, THREADS)
    }
}

impl Single for Embed {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let info = pass.info(self.table)?;
        let per_thread = if info.tensor.tensor_type().is_quantized() { 32 } else { 1 };
        let args = Args::default()
            .ptr(pass.weight(self.table)?)
            .ptr(pass.inputs.ids)
            .ptr(pass.float(self.out)?)
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?);
        let across = blocks(info.columns, per_thread * THREADS as usize)?;
        pass.launch(kernel, [across, narrow(pass.inputs.tokens)?, 1], args)
    }
}

fn probe(program: &Program, op: &Op) -> Option<Probe> {
    let Op::Embed { table, out } = *op else { return None };
    let ty = program.weight(table).ok()?.tensor.tensor_type();
    Some(of_type(ty, program.columns(out).ok()?.min(PRODUCT_COLUMNS)))
}

/// The probe of a table in `f32`: all other probes take their numbers from one.
pub(super) fn first_probe() -> Probe {
    of_type(TensorType::F32, PRODUCT_COLUMNS)
}

fn of_type(ty: TensorType, columns: usize) -> Probe {
    let mut sketch = Sketch::new();
    let x = sketch.random(ty, columns);
    sketch.finish(format!("dequant {}", type_name(ty)), x, EXACT)
}
