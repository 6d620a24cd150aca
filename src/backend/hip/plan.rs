//! Lowers a program to the launches of a pass. It fuses neighbours that one kernel can compute, and
//! quantizes activations where they are produced.

use crate::gguf::TensorType;
use crate::program::{Activation, AttentionInfo, Buf, Op, Program, Weight, is_read};
use crate::{Result, memory};
use std::collections::HashMap;

/// One or a few launches.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Embed {
        table: Weight,
        out: Buf,
    },
    Scale {
        x: Buf,
        by: f32,
    },
    /// `x += add`, then `out = norm(x)`; also the int8 form of `out` if `quantize` is set.
    Norm {
        x: Buf,
        add: Option<Buf>,
        weight: Weight,
        eps: f32,
        out: Buf,
        quantize: bool,
    },
    HeadNorm {
        x: Buf,
        weight: Weight,
        eps: f32,
    },
    /// Makes the int8 form of `x`.
    Quantize {
        x: Buf,
    },
    /// One to three products with the same activations. If `norm` is set and there are few rows,
    /// the activations come from a [`Step::Residual`].
    MatMul {
        x: Buf,
        products: Vec<Product>,
        norm: Option<Deferred>,
    },
    /// `stream += x * weightᵀ + bias`, then `out = norm(stream)` and its int8 form. With few rows
    /// it is one launch, which leaves the norm's factor to the products that follow. In that case
    /// nothing else reads `out` or `product.out`.
    Residual {
        x: Buf,
        product: Product,
        stream: Buf,
        weight: Weight,
        eps: f32,
        out: Buf,
    },
    /// `gate.out = act(gate) * up`, where nothing needs the products themselves; also its int8 form
    /// if `quantize` is set. The step may or may not write `up.out`. It may also leave out
    /// `gate.out` if only products with quantized weights read it (`only_multiplied`).
    GatedMatMul {
        x: Buf,
        gate: Product,
        up: Product,
        act: Activation,
        quantize: bool,
        only_multiplied: bool,
        norm: Option<Deferred>,
    },
    Rope {
        x: Buf,
        rope: usize,
        head_dim: usize,
    },
    /// Stores keys and values. `turn` names queries and an embedding: it rotates these queries, and
    /// the keys before they are stored.
    StoreKv {
        layer: usize,
        k: Buf,
        v: Buf,
        turn: Option<(Buf, usize)>,
    },
    /// Attention; also the int8 form of `out` if `quantize` is set. If `fresh` is set, it first
    /// stores these keys and values.
    Attention {
        layer: usize,
        q: Buf,
        out: Buf,
        info: AttentionInfo,
        quantize: bool,
        fresh: Option<Fresh>,
    },
    /// `gate = act(gate) * up`, and its int8 form if `quantize` is set.
    Glu {
        gate: Buf,
        up: Buf,
        act: Activation,
        quantize: bool,
    },
    Add {
        x: Buf,
        y: Buf,
    },
    Softcap {
        x: Buf,
        cap: f32,
    },
    Gather {
        x: Buf,
        out: Buf,
    },
}

/// A norm whose factor is still to be applied; the number is the one added under its root.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Deferred {
    pub(super) eps: f32,
}

/// Keys and values that are still to be stored, and the embedding that rotates the keys and the
/// queries, if there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fresh {
    pub(super) k: Buf,
    pub(super) v: Buf,
    pub(super) rope: Option<usize>,
}

/// `out = x * weightᵀ + bias`
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Product {
    pub(super) weight: Weight,
    pub(super) bias: Option<Weight>,
    pub(super) out: Buf,
}

/// Fusions that are possible everywhere but pay only on some devices.
pub(super) struct Fusing<'a> {
    /// Whether to leave a norm over this many columns to the products around it.
    pub(super) norms: &'a dyn Fn(usize) -> bool,
    /// Whether a gated unit is one launch.
    pub(super) gates: bool,
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
    pub(super) fn new(program: &Program, fusing: &Fusing<'_>) -> Result<Self> {
        const WHAT: &str = "the steps of the model";
        let mut lowering = Lowering { program, steps: Vec::new(), fresh: HashMap::new() };
        let mut quantized = memory::filled(program.buffers.len(), false, WHAT)?;
        let mut logits = Buf(0);
        let mut ops = program.ops.as_slice();
        while let Some((op, rest)) = ops.split_first() {
            ops = rest;
            // One operation makes at most four steps.
            memory::reserve(&mut lowering.steps, 4, WHAT)?;
            match (op.clone(), rest) {
                (
                    Op::Rope { x: q, rope, .. },
                    [Op::Rope { x: k, rope: other, .. }, Op::StoreKv { layer, k: stored, v }, rest @ ..],
                ) if rope == *other && k == stored && q != *k && !is_read(rest, *k) => {
                    lowering.write(q, Step::StoreKv { layer: *layer, k: *k, v: *v, turn: Some((q, rope)) });
                    ops = rest;
                }
                (Op::Add { x, y }, [Op::RmsNorm { x: normed, weight, eps, out }, rest @ ..])
                    if x == *normed && x != *out && y != *out =>
                {
                    lowering.fresh.remove(&x);
                    let (weight, eps, out) = (*weight, *eps, *out);
                    let columns = program.columns(x)?;
                    if !(fusing.norms)(columns)
                        || is_read(rest, y)
                        || !lowering.defer_norm(rest, x, y, (weight, eps, out))
                    {
                        lowering.write(out, Step::Norm { x, add: Some(y), weight, eps, out, quantize: false });
                    } else if let Some(used) = quantized.get_mut(out.0) {
                        *used = true;
                    }
                    ops = rest;
                }
                (Op::Embed { table, out }, _) => lowering.write(out, Step::Embed { table, out }),
                (Op::Scale { x, by }, _) => lowering.write(x, Step::Scale { x, by }),
                (Op::RmsNorm { x, weight, eps, out }, _) => {
                    lowering.write(out, Step::Norm { x, add: None, weight, eps, out, quantize: false });
                }
                (Op::HeadNorm { x, weight, eps }, _) => lowering.write(x, Step::HeadNorm { x, weight, eps }),
                (Op::Rope { x, rope, head_dim }, _) => lowering.write(x, Step::Rope { x, rope, head_dim }),
                (Op::StoreKv { layer, k, v }, _) => lowering.steps.push(Step::StoreKv { layer, k, v, turn: None }),
                (Op::Attention { layer, q, out, info }, rest) => {
                    let fresh = lowering.take_fresh(layer, q, rest);
                    lowering.write(out, Step::Attention { layer, q, out, info, quantize: false, fresh });
                }
                (Op::Glu { gate, up, act }, _) => {
                    if !fusing.gates || is_read(rest, up) || !lowering.gate_products(rest, gate, up, act) {
                        lowering.write(gate, Step::Glu { gate, up, act, quantize: false });
                    }
                }
                (Op::Add { x, y }, _) => lowering.write(x, Step::Add { x, y }),
                (Op::Softcap { x, cap }, _) => lowering.write(x, Step::Softcap { x, cap }),
                (Op::Rows { x, out }, _) => lowering.write(out, Step::Gather { x, out }),
                (Op::MatMul { x, weight, bias, out }, _) => {
                    if program.weights.get(weight.0).is_some_and(|w| w.tensor.tensor_type().is_quantized()) {
                        lowering.quantize(x);
                        if let Some(used) = quantized.get_mut(x.0) {
                            *used = true;
                        }
                    }
                    lowering.multiply(x, Product { weight, bias, out });
                }
                (Op::Logits { x }, _) => logits = x,
            }
        }
        Ok(Self { steps: lowering.steps, logits, quantized })
    }
}

/// Whether only products with weights for which `is_quantized` holds read `buf` before it is
/// overwritten.
fn only_products_read(ops: &[Op], buf: Buf, is_quantized: impl Fn(Weight) -> bool) -> bool {
    for op in ops {
        match *op {
            Op::MatMul { x, weight, out, .. } if x == buf && out != buf && is_quantized(weight) => {}
            _ if op.reads(buf) => return false,
            _ if op.overwrites(buf) => return true,
            _ => {}
        }
    }
    true
}

struct Lowering<'a> {
    program: &'a Program,
    steps: Vec<Step>,
    /// For each buffer the step that wrote it last, and whether its int8 form is current.
    fresh: HashMap<Buf, (usize, bool)>,
}

impl Lowering<'_> {
    /// Appends a step that writes `out`.
    fn write(&mut self, out: Buf, step: Step) {
        self.fresh.insert(out, (self.steps.len(), false));
        self.steps.push(step);
    }

    /// Provides the int8 form of `x`: from the step that wrote `x` if that step can, otherwise from
    /// a separate step.
    fn quantize(&mut self, x: Buf) {
        let (writer, done) = self.fresh.get(&x).copied().unwrap_or((usize::MAX, false));
        if done {
            return;
        }
        match self.steps.get_mut(writer) {
            Some(Step::Norm { quantize, .. } | Step::Glu { quantize, .. } | Step::GatedMatMul { quantize, .. }) => {
                *quantize = true;
            }
            // Then no group of 32 crosses two heads.
            Some(Step::Attention { quantize, info, .. }) if info.value_dim % 32 == 0 => *quantize = true,
            _ => self.steps.push(Step::Quantize { x }),
        }
        self.fresh.insert(x, (writer, true));
    }

    fn tensor_type(&self, weight: Weight) -> Option<TensorType> {
        self.program.weights.get(weight.0).map(|w| w.tensor.tensor_type())
    }

    /// Appends a product. It joins the step before if that has the same activations and there is a
    /// kernel for both.
    fn multiply(&mut self, x: Buf, product: Product) {
        let last = self.steps.len().wrapping_sub(1);
        let types =
            |products: &[Product]| products.iter().map(|p| self.tensor_type(p.weight)).collect::<Option<Vec<_>>>();
        if let Some(Step::MatMul { x: other, products, .. }) = self.steps.get(last)
            && *other == x
            && product.out != x
            && products.iter().all(|p| p.out != product.out)
            && types(&[products, &[product][..]].concat()).is_some_and(|types| have_one_kernel(&types))
        {
            if let Some(Step::MatMul { products, .. }) = self.steps.get_mut(last) {
                products.push(product);
            }
            self.fresh.insert(product.out, (last, false));
            return;
        }
        let norm = match self.fresh.get(&x).and_then(|(writer, _)| self.steps.get(*writer)) {
            Some(Step::Residual { eps, .. }) => Some(Deferred { eps: *eps }),
            _ => None,
        };
        self.write(product.out, Step::MatMul { x, products: vec![product], norm });
    }

    /// Fuses the step before with this sum and the norm after it, if the step is a product that the
    /// sum adds to `stream`.
    fn defer_norm(&mut self, rest: &[Op], stream: Buf, y: Buf, (weight, eps, out): (Weight, f32, Buf)) -> bool {
        let is_quantized = |weight| self.tensor_type(weight).is_some_and(TensorType::is_quantized);
        let residual = match self.steps.last() {
            // A product that waits for a norm's factor itself cannot apply it before the sum.
            Some(Step::MatMul { x, products, norm: None }) => match products[..] {
                [product]
                    if product.out == y
                        && *x != out
                        && is_quantized(product.weight)
                        && self.rows(product.weight).is_some_and(|rows| rows % 32 == 0)
                        && only_products_read(rest, out, is_quantized) =>
                {
                    Step::Residual { x: *x, product, stream, weight, eps, out }
                }
                _ => return false,
            },
            _ => return false,
        };
        self.steps.pop();
        self.fresh.remove(&y);
        self.fresh.insert(out, (self.steps.len(), true));
        self.steps.push(residual);
        true
    }

    /// Removes the step before, if it stores keys and values of this layer, so that the attention
    /// stores them itself. The attention may then leave queries unrotated, so nothing may read them
    /// later.
    fn take_fresh(&mut self, layer: usize, q: Buf, rest: &[Op]) -> Option<Fresh> {
        let fresh = match self.steps.last() {
            Some(&Step::StoreKv { layer: stored, k, v, turn }) if stored == layer => match turn {
                None => Fresh { k, v, rope: None },
                Some((turned, rope)) if turned == q && !is_read(rest, q) => Fresh { k, v, rope: Some(rope) },
                Some(_) => return None,
            },
            _ => return None,
        };
        self.steps.pop();
        self.fresh.remove(&q);
        Some(fresh)
    }

    /// Fuses the step before into a gated unit, if it is the unit's two products.
    fn gate_products(&mut self, rest: &[Op], gate: Buf, up: Buf, act: Activation) -> bool {
        let is_quantized = |weight| self.tensor_type(weight).is_some_and(TensorType::is_quantized);
        let only_multiplied = only_products_read(rest, gate, is_quantized);
        let fused = match self.steps.last() {
            Some(Step::MatMul { x, products, norm }) => match products[..] {
                [a, b]
                    if (a.out, b.out) == (gate, up)
                        && a.bias.is_none()
                        && b.bias.is_none()
                        && self.tensor_type(a.weight) == self.tensor_type(b.weight)
                        && self.rows(a.weight) == self.rows(b.weight) =>
                {
                    let norm = *norm;
                    Step::GatedMatMul { x: *x, gate: a, up: b, act, quantize: false, only_multiplied, norm }
                }
                _ => return false,
            },
            _ => return false,
        };
        self.steps.pop();
        self.fresh.remove(&up);
        self.write(gate, fused);
        true
    }

    fn rows(&self, weight: Weight) -> Option<usize> {
        self.program.weights.get(weight.0).map(|w| w.rows)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorInfo;
    use crate::program::{BufInfo, RowKind, WeightInfo};

    const ALL: Fusing<'_> = Fusing { norms: &|_| true, gates: true };

    /// A program over buffers 0 to 5.
    fn program(ops: Vec<Op>) -> Program {
        let buffer = BufInfo { name: "", columns: 256, rows: RowKind::Tokens };
        Program {
            name: String::new(),
            buffers: vec![buffer; 6],
            weights: Vec::new(),
            ropes: Vec::new(),
            kv: Vec::new(),
            ops,
            vocab: 0,
        }
    }

    #[test]
    fn a_sum_and_its_norm_are_one_step_where_both_results_survive() {
        let (x, y, h) = (Buf(0), Buf(1), Buf(2));
        let norm = |out| Op::RmsNorm { x, weight: Weight(0), eps: 1e-5, out };
        let steps = |out| Plan::new(&program(vec![Op::Add { x, y }, norm(out)]), &ALL).unwrap().steps.len();
        assert_eq!((steps(h), steps(x), steps(y)), (1, 2, 2));
    }

    /// The same, with square matrices of these types.
    fn with_weights(types: &[TensorType], ops: Vec<Op>) -> Program {
        let weights = types.iter().map(|&ty| WeightInfo {
            tensor: TensorInfo { name: String::new(), ty, dims: vec![256, 256], part: 0, offset: 0, size: 0 },
            rows: 256,
            columns: 256,
        });
        Program { weights: weights.collect(), ..program(ops) }
    }

    fn info() -> AttentionInfo {
        AttentionInfo { heads: 1, kv_heads: 1, head_dim: 8, value_dim: 8, scale: 1.0, softcap: None, window: None }
    }

    fn product(weight: usize, out: usize) -> Op {
        Op::MatMul { x: Buf(0), weight: Weight(weight), bias: None, out: Buf(out) }
    }

    #[test]
    fn products_of_the_same_activations_are_one_step_where_there_is_a_kernel() {
        use TensorType::{F16, Q4_0, Q4_K, Q6_K};
        let sizes = |types: &[TensorType]| -> Vec<usize> {
            let ops = (0..types.len()).map(|i| product(i, i + 1)).collect();
            let steps = Plan::new(&with_weights(types, ops), &ALL).unwrap().steps;
            let sizes =
                steps.iter().filter_map(|s| if let Step::MatMul { products, .. } = s { Some(products) } else { None });
            sizes.map(Vec::len).collect()
        };
        assert_eq!(sizes(&[Q4_K, Q4_K, Q6_K]), [3]);
        assert_eq!(sizes(&[Q4_0, Q4_0, Q4_0]), [3]);
        assert_eq!(sizes(&[Q4_0, Q4_0, Q6_K]), [2, 1]);
        assert_eq!(sizes(&[Q4_K, Q6_K, Q6_K]), [1, 2]);
        assert_eq!(sizes(&[F16, F16]), [1, 1]);
        assert_eq!(sizes(&[Q4_0; 5]), [3, 2]);
    }

    #[test]
    fn a_norm_is_deferred_where_only_products_follow() {
        let (attended, stream, y, h) = (Buf(0), Buf(1), Buf(2), Buf(3));
        let ops = |ty: TensorType, more: &[Op]| {
            let product = |x, weight, out| Op::MatMul { x, weight: Weight(weight), bias: None, out };
            let norm = Op::RmsNorm { x: stream, weight: Weight(3), eps: 1e-5, out: h };
            let mut ops = vec![product(attended, 0, y), Op::Add { x: stream, y }, norm];
            ops.extend_from_slice(more);
            ops.extend([product(h, 1, Buf(4)), product(h, 2, Buf(5))]);
            Plan::new(&with_weights(&[TensorType::Q4_K, ty, TensorType::Q4_K, TensorType::F32], ops), &ALL)
                .unwrap()
                .steps
        };
        let deferred = |steps: &[Step]| steps.iter().any(|s| matches!(s, Step::Residual { .. }));
        let fused = ops(TensorType::Q4_K, &[]);
        assert!(deferred(&fused), "{fused:?}");
        assert!(
            matches!(fused.last(), Some(Step::MatMul { norm: Some(Deferred { .. }), products, .. }) if products.len() == 2)
        );
        // Another operation needs the norm itself, or the product.
        assert!(!deferred(&ops(TensorType::F16, &[])));
        assert!(!deferred(&ops(TensorType::Q4_K, &[Op::Scale { x: h, by: 2.0 }])));
        assert!(!deferred(&ops(TensorType::Q4_K, &[Op::Add { x: Buf(4), y }])));
    }

    #[test]
    fn a_gated_unit_is_one_step_where_nobody_reads_its_products() {
        let ops = |more: Option<Op>| {
            let glu = Op::Glu { gate: Buf(1), up: Buf(2), act: Activation::Silu };
            let down = Op::MatMul { x: Buf(1), weight: Weight(2), bias: None, out: Buf(3) };
            let ops = [product(0, 1), product(1, 2), glu].into_iter().chain(more).chain([down]);
            Plan::new(&with_weights(&[TensorType::Q4_K; 3], ops.collect()), &ALL).unwrap().steps
        };
        let fused = ops(None);
        assert!(matches!(fused[1], Step::GatedMatMul { quantize: true, only_multiplied: true, .. }), "{fused:?}");
        assert_eq!(fused.len(), 3, "{fused:?}");
        let added = ops(Some(Op::Add { x: Buf(4), y: Buf(1) }));
        assert!(matches!(added[1], Step::GatedMatMul { only_multiplied: false, .. }), "{added:?}");
        let read = ops(Some(Op::Add { x: Buf(4), y: Buf(2) }));
        assert!(read.iter().any(|s| matches!(s, Step::Glu { quantize: true, .. })), "{read:?}");
    }

    #[test]
    fn keys_are_rotated_on_their_way_only_where_nobody_reads_them_later() {
        let (q, k, v) = (Buf(0), Buf(1), Buf(2));
        let rope = |x, rope| Op::Rope { x, rope, head_dim: 8 };
        let store = Op::StoreKv { layer: 0, k, v };
        let turned = |ops: &[Op]| {
            let steps = Plan::new(&program(ops.to_vec()), &ALL).unwrap().steps;
            matches!(steps.first(), Some(Step::StoreKv { turn: Some(_), .. }))
        };
        let attention = Op::Attention { layer: 0, q, out: Buf(3), info: info() };
        let stores = |layer, more: &[Op]| {
            let mut ops = vec![rope(q, 0), rope(k, 0), Op::StoreKv { layer, k, v }, attention.clone()];
            ops.extend_from_slice(more);
            let steps = Plan::new(&program(ops), &ALL).unwrap().steps;
            steps.iter().any(|s| matches!(s, Step::Attention { fresh: Some(Fresh { rope: Some(0), .. }), .. }))
        };
        assert!(stores(0, &[]));
        assert!(!stores(1, &[]));
        assert!(!stores(0, &[Op::Add { x: v, y: q }]));
        assert!(turned(&[rope(q, 0), rope(k, 0), store.clone()]));
        assert!(!turned(&[rope(q, 0), rope(k, 1), store.clone()]));
        assert!(!turned(&[rope(q, 0), rope(k, 0), store.clone(), Op::Add { x: v, y: k }]));
        let overwrite = Op::Embed { table: Weight(0), out: k };
        assert!(turned(&[rope(q, 0), rope(k, 0), store, overwrite, Op::Add { x: v, y: k }]));
    }
}
