//! What tests of fusions have in common, and that every operation is lowered.

use super::Step;
use super::lowering::{Fusing, Plan, as_step};
use crate::gguf::{TensorInfo, TensorType};
use crate::program::{Activation, AttentionInfo, Buf, BufInfo, Op, Program, RowKind, Weight, WeightInfo};

/// A program over buffers 0 to 5, with square matrices of these types.
pub(super) fn program(types: &[TensorType], ops: Vec<Op>) -> Program {
    let buffer = BufInfo { name: "", columns: 256, rows: RowKind::Tokens };
    let weights = types.iter().map(|&ty| WeightInfo {
        tensor: TensorInfo { name: String::new(), ty, dims: vec![256, 256], part: 0, offset: 0, size: 0 },
        rows: 256,
        columns: 256,
    });
    Program {
        name: String::new(),
        buffers: vec![buffer; 6],
        weights: weights.collect(),
        ropes: Vec::new(),
        states: Vec::new(),
        ops,
        vocab: 0,
    }
}

/// The steps of such a program, with all fusions that are possible.
pub(super) fn steps(types: &[TensorType], ops: Vec<Op>) -> Vec<Box<dyn Step>> {
    Plan::new(&program(types, ops), &Fusing { norms: &|_| true, gates: true }).unwrap().steps
}

/// All steps that are a `T`.
pub(super) fn all<T: Step>(steps: &[Box<dyn Step>]) -> Vec<&T> {
    steps.iter().filter_map(|step| as_step(&**step)).collect()
}

pub(super) fn product(x: usize, weight: usize, out: usize) -> Op {
    Op::MatMul { x: Buf(x), weight: Weight(weight), bias: None, out: Buf(out) }
}

pub(super) fn attention(q: Buf, out: Buf) -> Op {
    let info =
        AttentionInfo { heads: 1, kv_heads: 1, head_dim: 8, value_dim: 8, scale: 1.0, softcap: None, window: None };
    Op::Attention { layer: 0, q, out, info }
}

#[test]
fn every_operation_is_lowered_and_has_a_probe_unless_it_is_tested_with_another() {
    let (x, y, weight) = (Buf(0), Buf(1), Weight(0));
    let ops = [
        (Op::Embed { table: weight, out: x }, "Embed", true),
        (Op::Scale { x, by: 2.0 }, "Scale", true),
        (Op::RmsNorm { x, weight, eps: 1e-5, out: y }, "Norm", true),
        (Op::HeadNorm { x, weight, eps: 1e-5 }, "HeadNorm", true),
        (product(0, 0, 1), "MatMul", true),
        // The program has no embedding for a probe.
        (Op::Rope { x, rope: 0, head_dim: 8 }, "Rope", false),
        (Op::StoreKv { layer: 0, k: x, v: y }, "StoreKv", false),
        (attention(x, y), "Attention", true),
        (Op::Glu { gate: x, up: y, act: Activation::Silu }, "Glu", true),
        (Op::Add { x, y }, "Add", true),
        (Op::Softcap { x, cap: 30.0 }, "Softcap", true),
        (Op::Rows { x, out: y }, "Gather", true),
    ];
    for (op, step, has_probe) in ops {
        let program = program(&[TensorType::F32], vec![op.clone()]);
        let found = format!("{:?}", steps(&[TensorType::F32], vec![op.clone()]));
        assert!(found.starts_with(&format!("[{step} {{")), "{found}");
        assert_eq!(super::probe(&program, &op).is_some(), has_probe, "{op:?}");
    }
}
