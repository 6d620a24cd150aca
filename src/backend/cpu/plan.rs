//! Lowers a program to the steps that a team walks: operations without a barrier between them share
//! a step.

use super::matmul::{InputKind, input_kind};
use crate::program::Precision;
use crate::program::{AttentionInfo, Buf, Op, Program, RowKind, Weight};
use crate::{Result, memory};
use std::collections::HashSet;

/// An operation that computes each row from the same row alone, so that a thread can run a chain of
/// them on its rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RowOp {
    /// An operation of the program, see [`ops`](super::ops).
    Op(Op),
    /// Quantizes a row to int8 for the matrix products after it.
    Quantize { x: Buf },
}

/// One matrix product of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MatMul {
    pub(super) x: Buf,
    pub(super) weight: Weight,
    pub(super) bias: Option<Weight>,
    pub(super) out: Buf,
}

/// The work of a team between two barriers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// A chain of row operations, which runs on each row by itself.
    Rows {
        kind: RowKind,
        ops: Vec<RowOp>,
    },
    /// Matrix products that do not read each other's results.
    MatMuls {
        kind: RowKind,
        products: Vec<MatMul>,
    },
    StoreKv {
        layer: usize,
        k: Buf,
        v: Buf,
    },
    Attention {
        layer: usize,
        q: Buf,
        out: Buf,
        info: AttentionInfo,
    },
    /// See [`Op::Decay`].
    #[cfg(test)]
    Decay {
        layer: usize,
        x: Buf,
    },
}

/// The lowered program.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) logits: Buf,
    /// For each buffer, whether a product reads its int8 form.
    pub(super) quantized: Vec<bool>,
}

impl Plan {
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn new(program: &Program, precision: Precision) -> Result<Self> {
        let mut lowering = Lowering { program, steps: Vec::new(), fresh: HashSet::new() };
        let mut quantized = memory::filled(program.buffers.len(), false, WHAT)?;
        let mut logits = Buf(0);
        for op in &program.ops {
            // Makes room for a step of the operation's own and one before it, in case they are
            // needed.
            memory::reserve(&mut lowering.steps, 2, WHAT)?;
            match op.clone() {
                Op::StoreKv { layer, k, v } => lowering.steps.push(Step::StoreKv { layer, k, v }),
                Op::MatMul { x, weight, bias, out } => {
                    let int8 = precision == Precision::Fast
                        && input_kind(program.weight(weight)?.tensor.tensor_type()) == InputKind::Quant;
                    if int8 && lowering.fresh.insert(x) {
                        lowering.append(RowOp::Quantize { x }, x)?;
                    }
                    if let Some(q) = quantized.get_mut(x.0) {
                        *q |= int8;
                    }
                    lowering.product(MatMul { x, weight, bias, out })?;
                }
                Op::Attention { layer, q, out, info } => {
                    lowering.fresh.remove(&out);
                    lowering.steps.push(Step::Attention { layer, q, out, info });
                }
                Op::Logits { x } => logits = x,
                #[cfg(test)]
                Op::Decay { layer, x } => {
                    lowering.fresh.remove(&x);
                    lowering.steps.push(Step::Decay { layer, x });
                }
                op => {
                    if let Some(out) = op.output() {
                        lowering.fresh.remove(&out);
                        lowering.append(RowOp::Op(op), out)?;
                    }
                }
            }
        }
        Ok(Self { steps: lowering.steps, logits, quantized })
    }
}

/// The purpose of the memory.
const WHAT: &str = "the steps of the model";

struct Lowering<'a> {
    program: &'a Program,
    steps: Vec<Step>,
    /// Buffers whose int8 form is up to date.
    fresh: HashSet<Buf>,
}

impl Lowering<'_> {
    /// Appends a row operation on the rows of `over` to the chain at the end of the plan, or begins
    /// a new chain.
    fn append(&mut self, op: RowOp, over: Buf) -> Result<()> {
        let kind = self.program.buffer(over)?.rows;
        match self.steps.last_mut() {
            Some(Step::Rows { kind: last, ops }) if *last == kind => ops.push(op),
            _ => self.steps.push(Step::Rows { kind, ops: vec![op] }),
        }
        Ok(())
    }

    /// Appends a product to the last step if neither needs the other's result, or begins a new
    /// step.
    fn product(&mut self, product: MatMul) -> Result<()> {
        self.fresh.remove(&product.out);
        let kind = self.program.buffer(product.out)?.rows;
        let independent = |p: &MatMul| p.out != product.x && p.out != product.out && p.x != product.out;
        match self.steps.last_mut() {
            Some(Step::MatMuls { kind: last, products }) if *last == kind && products.iter().all(independent) => {
                products.push(product);
            }
            _ => self.steps.push(Step::MatMuls { kind, products: vec![product] }),
        }
        Ok(())
    }
}
