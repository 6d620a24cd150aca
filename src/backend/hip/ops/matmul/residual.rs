//! A product, the sum that adds it to the residual stream, and the norm after that
//! (hip/matmul/matvec.hip, hip/rows/halve.hip).

use super::few::{Few, GROUP_ROWS};
use super::many::{self, Many};
use super::{MatMul, Product, only_products_read};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::ops::norm::{Norm, SumAndNorm};
use crate::backend::hip::ops::{Finder, Fusion, Launch, Single, Step};
use crate::backend::hip::pass::{Pass, Scratch, blocks, narrow};
use crate::program::{Buf, Program, Weight, is_read};

pub(super) const FUSION: Fusion = Fusion {
    name: "a product, the sum with it, and the norm of the sum",
    why: "one launch instead of two; the products that follow apply the norm's factor to their results",
    rule: |ops, to| {
        let SumAndNorm { stream, add, weight, eps, out, rest } = SumAndNorm::first_of(ops)?;
        if !(to.fusing.norms)(to.program.columns(stream).ok()?) || is_read(rest, add) {
            return None;
        }
        // A product that waits for a norm's factor itself cannot apply it before the sum.
        let &MatMul { x, ref products, norm: None } = to.last::<MatMul>()? else { return None };
        let [product] = products[..] else { return None };
        if product.out != add
            || x == out
            || !to.is_quantized(product.weight)
            || to.rows(product.weight)? % 32 != 0
            || !only_products_read(to, rest, out)
        {
            return None;
        }
        to.remove_last(add);
        to.forget(stream);
        to.write_quantized(out, Residual { x, product, stream, weight, eps, out });
        Some(rest)
    },
};

/// `stream += x * weightᵀ + bias`, then `out = norm(stream)` and its int8 form. With few rows it is
/// one launch, which leaves the norm's factor to the products that follow. In that case nothing else
/// reads `out` or `product.out`.
#[derive(Debug)]
pub(super) struct Residual {
    x: Buf,
    product: Product,
    stream: Buf,
    weight: Weight,
    pub(super) eps: f32,
    out: Buf,
}

/// A norm whose factor is still to be applied; the number is the one added under its root.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Deferred {
    pub(super) eps: f32,
}

/// Adds the arguments of a deferred norm of `x`; null if there is none.
pub(super) fn deferred(args: Args, pass: &Pass<'_>, x: Buf, norm: Option<Deferred>) -> Result<Args> {
    Ok(match norm {
        Some(norm) => args.ptr(pass.squares(x)?).f32(norm.eps),
        None => args.ptr(0).f32(0.0),
    })
}

impl Step for Residual {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        let name = format!("residual_{}", find.type_name(self.product.weight));
        Ok(Box::new(Prepared {
            few: Few::find(find, &name, |n| threads(&find.device.arch, n))?,
            many: Many::find(find, self.product.weight)?,
            norm: match find.has_matrix_cores() {
                true => Normed::Halves(find.kernel("halve", "halve_norm", 1024)?),
                false => Normed::Floats(Norm::kernel(find)?),
            },
            step: *self,
        }))
    }

    fn needs(&self, program: &Program, scratch: &mut Scratch) {
        many::needs(program, self.x, [&self.product], scratch);
        scratch.squares(self.out);
    }
}

/// Threads in a block of the kernels that add a product with `n` columns, the same as in
/// hip/matmul/matvec.hip: as many as there are registers for. GCN, and CDNA before gfx90a, have half as
/// many registers for waves of 64.
fn threads(arch: &str, n: usize) -> u32 {
    let few = arch.starts_with("gfx9") && !["gfx90a", "gfx94", "gfx95"].iter().any(|a| arch.starts_with(a));
    match (few, n) {
        (false, 1) => 1024,
        (false, _) | (true, 1) => 512,
        (true, _) => 256,
    }
}

/// A product, its sum and its norm with their kernels.
struct Prepared {
    step: Residual,
    few: Few,
    /// Separate kernels for many rows.
    many: Many,
    norm: Normed,
}

/// The kernel that adds, and makes the norm of the sum.
enum Normed {
    /// In f32 and int8.
    Floats(Kernel),
    /// Only in f16, as products on matrix cores need it: no others read it.
    Halves(Kernel),
}

impl Launch for Prepared {
    fn launch(&self, pass: &Pass<'_>) -> Result<()> {
        let &Residual { x, product, stream, weight, eps, out } = &self.step;
        if let Some(kernel) = self.few.of(pass, x)? {
            return self.step.launch_few(pass, kernel);
        }
        self.many.launch(pass, x, &[product])?;
        match &self.norm {
            Normed::Halves(kernel) => self.step.halve_norm(pass, kernel),
            Normed::Floats(kernel) => {
                Norm { x: stream, add: Some(product.out), weight, eps, out, quantize: true }.launch(pass, kernel)
            }
        }
    }

    fn tracks_halves(&self) -> bool {
        true
    }
}

impl Residual {
    /// A product with few rows of activations. It is added to the residual stream, and prepares the
    /// norm that follows.
    fn launch_few(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let &Self { x, product, stream, weight, out, .. } = self;
        let info = pass.info(product.weight)?;
        let ((q, groups), (out_q, out_groups)) = (pass.int8(x)?, pass.int8(out)?);
        let args = Args::default()
            .ptr(pass.weight(product.weight)?)
            .ptr(q)
            .ptr(groups)
            .ptr(pass.float(stream)?)
            .ptr(product.bias(pass)?)
            .ptr(pass.weight(weight)?)
            .ptr(out_q)
            .ptr(out_groups)
            .ptr(pass.squares(out)?)
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?)
            .u32(narrow(pass.rows(x)?)?);
        pass.launch(kernel, [blocks(info.rows, GROUP_ROWS)?, u32::from(pass.rows(x)? > 0), 1], args)
    }

    /// The norm of the sum, only in f16.
    fn halve_norm(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let (x, add, out) = (self.stream, self.product.out, self.out);
        let (halves, scales) = pass.halves(out)?;
        let args = Args::default().ptr(pass.float(x)?).ptr(pass.float(add)?).ptr(pass.weight(self.weight)?);
        let args = args.ptr(halves).ptr(scales).u32(narrow(pass.columns(x)?)?).f32(self.eps);
        pass.halved.set(Some(out));
        pass.launch(kernel, [narrow(pass.rows(x)?)?, 1, 1], args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::hip::code::objects;
    use crate::backend::hip::ops::lowering::as_step;
    use crate::backend::hip::ops::matmul::few::COLUMNS;
    use crate::backend::hip::ops::tests::{all, product, steps};
    use crate::gguf::TensorType;
    use crate::program::Op;

    #[test]
    fn a_norm_is_deferred_where_only_products_follow() {
        let (attended, stream, y, h) = (0, Buf(1), Buf(2), Buf(3));
        let steps = |ty: TensorType, more: &[Op]| {
            let norm = Op::RmsNorm { x: stream, weight: Weight(3), eps: 1e-5, out: h };
            let mut ops = vec![product(attended, 0, y.0), Op::Add { x: stream, y }, norm];
            ops.extend_from_slice(more);
            ops.extend([product(h.0, 1, 4), product(h.0, 2, 5)]);
            steps(&[TensorType::Q4_K, ty, TensorType::Q4_K, TensorType::F32], ops)
        };
        let deferred = |steps: &[Box<dyn Step>]| !all::<Residual>(steps).is_empty();
        let fused = steps(TensorType::Q4_K, &[]);
        assert!(deferred(&fused), "{fused:?}");
        let last: &MatMul = as_step(&**fused.last().unwrap()).unwrap();
        assert!(last.norm.is_some() && last.products.len() == 2);
        // Another operation needs the norm itself, or the product.
        assert!(!deferred(&steps(TensorType::F16, &[])));
        assert!(!deferred(&steps(TensorType::Q4_K, &[Op::Scale { x: h, by: 2.0 }])));
        assert!(!deferred(&steps(TensorType::Q4_K, &[Op::Add { x: Buf(4), y }])));
    }

    /// The threads for which a kernel was compiled: in an object's notes, a number of two bytes
    /// before the kernel's name.
    fn compiled_threads(code: &[u8], kernel: &str) -> Option<u32> {
        let name = [b"\xa5.name", &[0xa0 | kernel.len() as u8][..], kernel.as_bytes()].concat();
        let at = code.windows(name.len()).position(|window| window == name)?;
        match code.get(at.checked_sub(3)?..at)? {
            [0xcd, high, low] => Some(u32::from(*high) << 8 | u32::from(*low)),
            _ => None,
        }
    }

    #[test]
    fn blocks_have_as_many_threads_as_they_were_compiled_for() {
        const ARCHITECTURES: [&str; 12] = [
            "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1010", "gfx1030", "gfx1031", "gfx1100", "gfx1102",
            "gfx1151", "gfx1201",
        ];
        for arch in ARCHITECTURES {
            // A build without kernels has none.
            let found = objects::find("matvec", arch).ok().and_then(|mut all| all.next());
            let Some(Ok(object)) = found else { continue };
            for n in COLUMNS {
                let kernel = format!("matvec_residual_q4_k_{n}");
                let compiled = compiled_threads(&object.code, &kernel);
                assert_eq!(compiled, Some(threads(arch, n)), "{kernel} for {arch}");
            }
        }
    }
}
