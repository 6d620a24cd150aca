//! Lowers a program to the steps that a team walks: operations that need no barrier between them share a step.

use super::matmul::{InputKind, input_kind};
use crate::model::Precision;
use crate::model::program::{Activation, AttentionInfo, Buf, Op, Program, RowKind, Weight};
use crate::{Result, memory};
use std::collections::HashSet;

/// An operation that computes each row from the same row alone, so that a thread can run a chain of them on its rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RowOp {
    Embed {
        table: Weight,
        out: Buf,
    },
    Scale {
        x: Buf,
        by: f32,
    },
    RmsNorm {
        x: Buf,
        weight: Weight,
        eps: f32,
        out: Buf,
    },
    HeadNorm {
        x: Buf,
        weight: Weight,
        eps: f32,
    },
    Rope {
        x: Buf,
        rope: usize,
        head_dim: usize,
    },
    Glu {
        gate: Buf,
        up: Buf,
        act: Activation,
    },
    Add {
        x: Buf,
        y: Buf,
    },
    Softcap {
        x: Buf,
        cap: f32,
    },
    /// The row of `x`, over tokens, that this row of `out`, over outputs, wants.
    Gather {
        x: Buf,
        out: Buf,
    },
    /// Makes the int8 form of a row, which the matrix products after it read.
    Quantize {
        x: Buf,
    },
}

/// One matrix product of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MatMul {
    pub(super) x: Buf,
    pub(super) weight: Weight,
    pub(super) bias: Option<Weight>,
    pub(super) out: Buf,
}

/// What a team does between two barriers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// A chain of row operations, for every row by itself.
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
}

/// The lowered program.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) logits: Buf,
    /// For each buffer, whether its int8 form is used.
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
            // Before it is known whether there will be a step of its own, or one before it.
            memory::reserve(&mut lowering.steps, 2, WHAT)?;
            match op.clone() {
                Op::Embed { table, out } => lowering.row(RowOp::Embed { table, out }, out),
                Op::Scale { x, by } => lowering.row(RowOp::Scale { x, by }, x),
                Op::RmsNorm { x, weight, eps, out } => lowering.row(RowOp::RmsNorm { x, weight, eps, out }, out),
                Op::HeadNorm { x, weight, eps } => lowering.row(RowOp::HeadNorm { x, weight, eps }, x),
                Op::Rope { x, rope, head_dim } => lowering.row(RowOp::Rope { x, rope, head_dim }, x),
                Op::StoreKv { layer, k, v } => lowering.steps.push(Step::StoreKv { layer, k, v }),
                Op::Glu { gate, up, act } => lowering.row(RowOp::Glu { gate, up, act }, gate),
                Op::Add { x, y } => lowering.row(RowOp::Add { x, y }, x),
                Op::Softcap { x, cap } => lowering.row(RowOp::Softcap { x, cap }, x),
                Op::Rows { x, out } => lowering.row(RowOp::Gather { x, out }, out),
                Op::MatMul { x, weight, bias, out } => {
                    let ty = program.weights.get(weight.0).map(|w| w.tensor.tensor_type());
                    let int8 = precision == Precision::Fast && ty.is_some_and(|ty| input_kind(ty) == InputKind::Quant);
                    if int8 && lowering.fresh.insert(x) {
                        lowering.row_without_output(RowOp::Quantize { x }, x);
                    }
                    if let Some(q) = quantized.get_mut(x.0) {
                        *q |= int8;
                    }
                    lowering.product(MatMul { x, weight, bias, out });
                }
                Op::Attention { layer, q, out, info } => {
                    lowering.fresh.remove(&out);
                    lowering.steps.push(Step::Attention { layer, q, out, info });
                }
                Op::Logits { x } => logits = x,
            }
        }
        Ok(Self { steps: lowering.steps, logits, quantized })
    }
}

/// What memory is for.
const WHAT: &str = "the steps of the model";

struct Lowering<'a> {
    program: &'a Program,
    steps: Vec<Step>,
    /// Buffers whose int8 form is up to date.
    fresh: HashSet<Buf>,
}

impl Lowering<'_> {
    fn kind(&self, buf: Buf) -> RowKind {
        self.program.buffers.get(buf.0).map_or(RowKind::Tokens, |b| b.rows)
    }

    /// Appends a row operation that overwrites `out`.
    fn row(&mut self, op: RowOp, out: Buf) {
        self.fresh.remove(&out);
        self.row_without_output(op, out);
    }

    /// Appends a row operation over the rows that `over` has to the chain that ends the plan, or begins a new chain.
    fn row_without_output(&mut self, op: RowOp, over: Buf) {
        let kind = self.kind(over);
        match self.steps.last_mut() {
            Some(Step::Rows { kind: last, ops }) if *last == kind => ops.push(op),
            _ => self.steps.push(Step::Rows { kind, ops: vec![op] }),
        }
    }

    /// Appends a product to the step that ends the plan where neither needs the other's result.
    fn product(&mut self, product: MatMul) {
        self.fresh.remove(&product.out);
        let kind = self.kind(product.out);
        let independent = |p: &MatMul| p.out != product.x && p.out != product.out && p.x != product.out;
        match self.steps.last_mut() {
            Some(Step::MatMuls { kind: last, products }) if *last == kind && products.iter().all(independent) => {
                products.push(product);
            }
            _ => self.steps.push(Step::MatMuls { kind, products: vec![product] }),
        }
    }
}
