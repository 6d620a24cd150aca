//! A gated unit of two products (hip/matmul/matvec.hip, hip/rows/halve.hip).

use super::few::{Few, GROUP_ROWS};
use super::many::{self, Many};
use super::residual::{Deferred, deferred};
use super::{MatMul, Product, only_products_read};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::ops::glu::Glu;
use crate::backend::hip::ops::{Finder, Fusion, Launch, Single, Step};
use crate::backend::hip::pass::{Pass, Scratch, blocks, narrow};
use crate::program::{Activation, Buf, Op, Program, is_read};

pub(super) const FUSION: Fusion = Fusion {
    name: "the two products of a gated unit, and the unit",
    why: "one launch instead of two; nobody reads the products themselves",
    rule: |ops, to| {
        let &[Op::Glu { gate, up, act }, ref rest @ ..] = ops else { return None };
        if !to.fusing.gates || is_read(rest, up) {
            return None;
        }
        let &MatMul { x, ref products, norm } = to.last::<MatMul>()?;
        let [a, b] = products[..] else { return None };
        if (a.out, b.out) != (gate, up)
            || a.bias.is_some()
            || b.bias.is_some()
            || to.tensor_type(a.weight) != to.tensor_type(b.weight)
            || to.rows(a.weight) != to.rows(b.weight)
        {
            return None;
        }
        let only_multiplied = only_products_read(to, rest, gate);
        to.remove_last(up);
        to.write(gate, GatedMatMul { x, gate: a, up: b, act, quantize: false, only_multiplied, norm });
        Some(rest)
    },
};

/// `gate.out = act(gate) * up`, where nothing needs the products themselves; also its int8 form if
/// `quantize` is set. The step may or may not write `up.out`. It may also leave out `gate.out` if
/// only products with quantized weights read it (`only_multiplied`).
#[derive(Debug)]
struct GatedMatMul {
    x: Buf,
    gate: Product,
    up: Product,
    act: Activation,
    quantize: bool,
    only_multiplied: bool,
    norm: Option<Deferred>,
}

impl Step for GatedMatMul {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        let name = format!("glu_{}", find.type_name(self.gate.weight));
        Ok(Box::new(Prepared {
            few: Few::find(find, &name, |_| 256)?,
            many: Many::find(find, self.gate.weight)?,
            glu: match (find.has_matrix_cores() && self.only_multiplied, self.act) {
                (true, Activation::Silu) => Gate::Halves(find.kernel("halve", "halve_silu", 1024)?),
                (true, Activation::Gelu) => Gate::Halves(find.kernel("halve", "halve_gelu", 1024)?),
                (false, act) => Gate::Floats(Glu::kernel(find, act)?),
            },
            step: *self,
        }))
    }

    fn quantize(&mut self) -> bool {
        self.quantize = true;
        true
    }

    fn needs(&self, program: &Program, scratch: &mut Scratch) {
        many::needs(program, self.x, [&self.gate, &self.up], scratch);
    }
}

/// A gated unit with its kernels.
struct Prepared {
    step: GatedMatMul,
    few: Few,
    /// Separate kernels for many rows.
    many: Many,
    glu: Gate,
}

/// The kernel that makes the unit of its products.
enum Gate {
    /// In f32, and int8 if that is needed.
    Floats(Kernel),
    /// Only in f16, as products on matrix cores need it.
    Halves(Kernel),
}

impl Launch for Prepared {
    fn launch(&self, pass: &Pass<'_>) -> Result<()> {
        let &GatedMatMul { x, gate, up, act, quantize, .. } = &self.step;
        if let Some(kernel) = self.few.of(pass, x)? {
            return self.step.launch_few(pass, kernel);
        }
        self.many.launch(pass, x, &[gate, up])?;
        match &self.glu {
            Gate::Halves(kernel) => self.step.halve(pass, kernel),
            Gate::Floats(kernel) => Glu { gate: gate.out, up: up.out, act, quantize }.launch(pass, kernel),
        }
    }

    fn tracks_halves(&self) -> bool {
        true
    }
}

impl GatedMatMul {
    /// A gated unit with few rows of activations.
    fn launch_few(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let &Self { x, gate, up, act, quantize, norm, .. } = self;
        let info = pass.info(gate.weight)?;
        let ((q, groups), (out_q, out_groups)) = (pass.int8(x)?, pass.int8_if(quantize, gate.out)?);
        let args = Args::default()
            .ptr(pass.weight(gate.weight)?)
            .ptr(pass.weight(up.weight)?)
            .ptr(q)
            .ptr(groups)
            .ptr(pass.float(gate.out)?)
            .ptr(out_q)
            .ptr(out_groups)
            .u32(u32::from(act == Activation::Gelu))
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?)
            .u32(narrow(pass.rows(x)?)?);
        let args = deferred(args, pass, x, norm)?;
        pass.launch(kernel, [blocks(info.rows, GROUP_ROWS)?, u32::from(pass.rows(x)? > 0), 1], args)
    }

    /// The unit of two products, only in f16. The result replaces the f16 form of the gate.
    fn halve(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let (gate, up) = (self.gate.out, self.up.out);
        let (halves, scales) = pass.halves(gate)?;
        let args = Args::default().ptr(pass.float(gate)?).ptr(pass.float(up)?).ptr(halves).ptr(scales);
        pass.halved.set(Some(gate));
        pass.launch(kernel, [narrow(pass.rows(gate)?)?, 1, 1], args.u32(narrow(pass.columns(gate)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::hip::ops::lowering::as_step;
    use crate::backend::hip::ops::tests::{all, product, steps};
    use crate::gguf::TensorType;

    #[test]
    fn a_gated_unit_is_one_step_where_nobody_reads_its_products() {
        let ops = |more: Option<Op>| {
            let glu = Op::Glu { gate: Buf(1), up: Buf(2), act: Activation::Silu };
            let ops = [product(0, 0, 1), product(0, 1, 2), glu].into_iter().chain(more).chain([product(1, 2, 3)]);
            steps(&[TensorType::Q4_K; 3], ops.collect())
        };
        let fused = ops(None);
        let unit = |steps: &[Box<dyn Step>]| {
            as_step::<GatedMatMul>(&*steps[1]).map(|unit| (unit.quantize, unit.only_multiplied))
        };
        assert_eq!(unit(&fused), Some((true, true)), "{fused:?}");
        assert_eq!(fused.len(), 3, "{fused:?}");
        let added = ops(Some(Op::Add { x: Buf(4), y: Buf(1) }));
        assert_eq!(unit(&added).map(|(_, only_multiplied)| only_multiplied), Some(false), "{added:?}");
        let read = ops(Some(Op::Add { x: Buf(4), y: Buf(2) }));
        assert!(all::<Glu>(&read).iter().any(|glu| glu.quantize), "{read:?}");
    }
}
