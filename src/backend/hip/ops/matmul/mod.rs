//! `out = x * weightᵀ + bias`. Products with the same activations are one step; the sum and norm
//! after a product (`residual.rs`) and the gated unit of two (`gated.rs`) are steps of their own. Few
//! rows of activations (`few.rs`) and many (`many.rs`) have different kernels.

mod few;
mod gated;
mod many;
mod residual;
mod three;

use super::lowering::Lowering;
use super::{Finder, GpuOp, Launch, Step};
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::driver::DevicePtr;
use crate::backend::hip::pass::{Pass, Scratch, blocks, bug, narrow};
use crate::backend::hip::selftest::{PRODUCT_COLUMNS, PRODUCT_ROWS, Probe, ROUNDED, Sketch};
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program, RowKind, Weight};
use crate::{Error, Result};
use few::Few;
use many::Many;
use residual::{Deferred, Residual};
use three::Three;

pub(crate) use few::COLUMNS as FEW_COLUMNS;

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::MatMul { x, weight, bias, out }, rest @ ..] = ops else { return None };
        if to.is_quantized(*weight) {
            to.quantize(*x);
        }
        multiply(to, *x, Product { weight: *weight, bias: *bias, out: *out });
        Some(rest)
    },
    fusions: &[residual::FUSION, gated::FUSION],
    probe,
};

/// One to three products with the same activations. If `norm` is set and there are few rows, the
/// activations come from a [`Residual`].
#[derive(Debug)]
struct MatMul {
    x: Buf,
    products: Vec<Product>,
    norm: Option<Deferred>,
}

/// `out = x * weightᵀ + bias`
#[derive(Debug, Clone, Copy, PartialEq)]
struct Product {
    weight: Weight,
    bias: Option<Weight>,
    out: Buf,
}

/// Appends a product. It joins the step before if that has the same activations and there is a
/// kernel for both.
fn multiply(to: &mut Lowering<'_>, x: Buf, product: Product) {
    let joins = to.last::<MatMul>().is_some_and(|MatMul { x: other, products, .. }| {
        let types = products.iter().chain([&product]).map(|p| to.tensor_type(p.weight)).collect::<Option<Vec<_>>>();
        *other == x
            && product.out != x
            && products.iter().all(|p| p.out != product.out)
            && types.is_some_and(|types| have_one_kernel(&types))
    });
    if joins {
        to.extend_last(product.out, |last: &mut MatMul| last.products.push(product));
    } else {
        let norm = to.writer::<Residual>(x).map(|residual| Deferred { eps: residual.eps });
        to.write(product.out, MatMul { x, products: vec![product], norm });
    }
}

/// Whether products with matrices of these types can be one launch (hip/matmul/matvec.hip).
fn have_one_kernel(types: &[TensorType]) -> bool {
    match *types {
        [a, b] => a == b && a.is_quantized(),
        [a, b, c] => {
            let mixed = matches!(a, TensorType::Q4_K | TensorType::Q5_K) && c == TensorType::Q6_K;
            a == b && a.is_quantized() && (c == a || mixed)
        }
        _ => false,
    }
}

/// Whether only products with quantized weights read `buf` before it is overwritten.
fn only_products_read(to: &Lowering<'_>, ops: &[Op], buf: Buf) -> bool {
    for op in ops {
        match *op {
            Op::MatMul { x, weight, out, .. } if x == buf && out != buf && to.is_quantized(weight) => {}
            _ if op.reads(buf) => return false,
            _ if op.overwrites(buf) => return true,
            _ => {}
        }
    }
    true
}

impl Step for MatMul {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        let first = self.products.first().map_or("", |p| find.type_name(p.weight));
        let name = match self.products.last().map(|p| find.type_name(p.weight)) {
            _ if self.products.len() == 1 => first.to_owned(),
            Some(last) if last != first => format!("three_{first}_{last}"),
            _ => format!("three_{first}"),
        };
        let few = Few::find(find, &name, |_| few::ROWS as u32 * find.device.wave)?;
        let many = self.products.iter().map(|p| Many::find(find, p.weight)).collect::<Result<_>>()?;
        Ok(Box::new(Prepared { few, many, step: *self }))
    }

    fn needs(&self, program: &Program, scratch: &mut Scratch) {
        many::needs(program, self.x, &self.products, scratch);
    }
}

/// Products with their kernels.
struct Prepared {
    step: MatMul,
    /// For all of them at once.
    few: Few,
    /// For each of them.
    many: Vec<Many>,
}

impl Launch for Prepared {
    fn launch(&self, pass: &Pass<'_>) -> Result<()> {
        let MatMul { x, products, norm } = &self.step;
        match (self.few.of(pass, *x)?, &products[..]) {
            (None, _) => {
                // Products with weights of one type have the same kernels.
                let ty = |product: &Product| pass.info(product.weight).ok().map(|info| info.tensor.tensor_type());
                let mut many = self.many.iter();
                products.chunk_by(|a, b| ty(a) == ty(b)).try_for_each(|products| {
                    let kernel = many.nth(products.len() - 1).ok_or_else(|| bug("a product has no kernel"))?;
                    kernel.launch(pass, *x, products)
                })
            }
            (Some(kernel), [product]) => {
                let info = pass.info(product.weight)?;
                let grid = [blocks(info.rows, few::ROWS)?, u32::from(pass.rows(*x)? > 0), 1];
                let args = product.args(pass, *x)?;
                let is_quantized = info.tensor.tensor_type().is_quantized();
                let args = if is_quantized { residual::deferred(args, pass, *x, *norm)? } else { args };
                pass.launch(kernel, grid, args)
            }
            (Some(kernel), _) => self.step.launch_few(pass, kernel),
        }
    }

    fn tracks_halves(&self) -> bool {
        true
    }
}

impl MatMul {
    /// Up to three products with few rows of activations, in one launch.
    fn launch_few(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let three = Three::new(pass, &self.products)?;
        let (q, groups) = pass.int8(self.x)?;
        let args = three.results(three.weights(Args::default()).ptr(q).ptr(groups));
        let args = three.shape(args)?.u32(narrow(pass.rows(self.x)?)?);
        let args = residual::deferred(args, pass, self.x, self.norm)?;
        let grid = three.rows.iter().try_fold(0, |sum, &rows| Ok::<_, Error>(sum + blocks(rows, few::ROWS)?))?;
        pass.launch(kernel, [grid, u32::from(pass.rows(self.x)? > 0), 1], args)
    }
}

impl Product {
    fn bias(&self, pass: &Pass<'_>) -> Result<DevicePtr> {
        self.bias.map_or(Ok(0), |b| pass.weight(b))
    }

    /// The arguments of kernels for one product by plain arithmetic.
    fn args(&self, pass: &Pass<'_>, x: Buf) -> Result<Args> {
        let (info, args) = (pass.info(self.weight)?, Args::default().ptr(pass.weight(self.weight)?));
        let args = if info.tensor.tensor_type().is_quantized() {
            let (q, groups) = pass.int8(x)?;
            args.ptr(q).ptr(groups)
        } else {
            args.ptr(pass.float(x)?)
        };
        Ok(args
            .ptr(pass.float(self.out)?)
            .ptr(self.bias(pass)?)
            .ptr(0)
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?)
            .u32(narrow(pass.rows(x)?)?))
    }
}

fn probe(program: &Program, op: &Op) -> Option<Probe> {
    let Op::MatMul { x, weight, bias, .. } = *op else { return None };
    let ty = program.weight(weight).ok()?.tensor.tensor_type();
    let columns = program.columns(x).ok()?.min(PRODUCT_COLUMNS);
    let (f32, mut sketch) = (TensorType::F32, Sketch::new());
    let x = sketch.random(f32, columns);
    let weight = sketch.weight(ty, PRODUCT_ROWS, columns);
    let bias = bias.map(|_| sketch.weight(f32, 1, PRODUCT_ROWS));
    let out = sketch.buffer(PRODUCT_ROWS, RowKind::Tokens);
    sketch.op(Op::MatMul { x, weight, bias, out });
    Some(sketch.finish_product(ty, out, ROUNDED))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{all, product, steps};
    use super::*;

    #[test]
    fn products_of_the_same_activations_are_one_step_where_there_is_a_kernel() {
        use TensorType::{F16, Q4_0, Q4_K, Q6_K};
        let sizes = |types: &[TensorType]| -> Vec<usize> {
            let steps = steps(types, (0..types.len()).map(|i| product(0, i, i + 1)).collect());
            all::<MatMul>(&steps).iter().map(|step| step.products.len()).collect()
        };
        assert_eq!(sizes(&[Q4_K, Q4_K, Q6_K]), [3]);
        assert_eq!(sizes(&[Q4_0, Q4_0, Q4_0]), [3]);
        assert_eq!(sizes(&[Q4_0, Q4_0, Q6_K]), [2, 1]);
        assert_eq!(sizes(&[Q4_K, Q6_K, Q6_K]), [1, 2]);
        assert_eq!(sizes(&[F16, F16]), [1, 1]);
        assert_eq!(sizes(&[Q4_0; 5]), [3, 2]);
    }
}
