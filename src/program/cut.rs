//! Cutting a program into parts. Between layers only one buffer, the residual stream, is alive, so
//! a program can be cut there.

use super::liveness::Effects;
use super::{Buf, Op, Operands, Program, RowKind, Use, Weight, WeightUse};
use crate::{Result, memory};
use std::collections::HashMap;

/// Gives operands new numbers.
struct Renumber<'a> {
    buf: &'a mut Numbers,
    weight: &'a mut Numbers,
    layer: &'a mut Numbers,
}

impl Operands for Renumber<'_> {
    fn buffer(&mut self, buf: &mut Buf, _: Use) {
        buf.0 = self.buf.number(buf.0);
    }

    fn weight(&mut self, weight: &mut Weight, _: WeightUse) {
        weight.0 = self.weight.number(weight.0);
    }

    fn layer(&mut self, layer: &mut usize, _: Use) {
        *layer = self.layer.number(*layer);
    }
}

/// A place between two operations where only one buffer is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The first operation after it.
    pub(crate) op: usize,
    /// The buffer, which has a row for each token.
    pub(crate) buf: Buf,
}

impl Program {
    /// For each layer of the cache, the place where it begins: after everything that earlier layers
    /// compute, and before anything that it computes itself. `None` where more than one buffer
    /// crosses.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn layer_cuts(&self) -> Result<Vec<Option<Cut>>> {
        let mut alive = memory::filled(self.buffers.len(), false, WHAT)?;
        // For each operation, the only buffer that is alive before it.
        let mut single = memory::filled(self.ops.len(), None, WHAT)?;
        for (at, op) in self.ops.iter().enumerate().rev() {
            let Effects { reads, overwrites } = op.effects();
            let mut set = |buf: Buf, value| {
                if let Some(alive) = alive.get_mut(buf.0) {
                    *alive = value;
                }
            };
            overwrites.into_iter().for_each(|buf| set(buf, false));
            reads.into_iter().for_each(|buf| set(buf, true));
            let mut all = alive.iter().enumerate().filter(|(_, alive)| **alive).map(|(i, _)| i);
            let over_tokens = |i: &usize| self.buffers.get(*i).is_some_and(|b| b.rows == RowKind::Tokens);
            if let (Some(only), None) = (all.next().filter(over_tokens), all.next())
                && let Some(place) = single.get_mut(at)
            {
                *place = Some(Buf(only));
            }
        }
        let place = |of: usize, store: bool| {
            self.ops.iter().position(|op| match op {
                Op::StoreKv { layer, .. } => store && *layer == of,
                Op::Attention { layer, .. } => !store && *layer == of,
                _ => false,
            })
        };
        let cut = |layer: usize| {
            let first = layer.checked_sub(1).map_or(Some(0), |before| place(before, false))?;
            let candidates = single.iter().enumerate().take(place(layer, true)?).skip(first);
            candidates.rev().find_map(|(op, buf)| buf.map(|buf| Cut { op, buf }))
        };
        memory::collected((0..self.states.len()).map(cut), WHAT)
    }

    /// A program of these operations alone, with the buffers, weights and layers that they use.
    /// `seam` becomes buffer number 0. It is the result where the operations do not end with the
    /// logits.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn part(&self, ops: &[Op], seam: Option<Buf>) -> Result<Program> {
        let (mut bufs, mut weights, mut layers) =
            (Numbers::new(self.buffers.len())?, Numbers::new(self.weights.len())?, Numbers::new(self.states.len())?);
        seam.into_iter().for_each(|buf| {
            bufs.number(buf.0);
        });
        let mut renumber = |op: &Op| {
            let mut op = op.clone();
            op.operands(&mut Renumber { buf: &mut bufs, weight: &mut weights, layer: &mut layers });
            op
        };
        // Room for one more: the logits.
        let mut part = memory::with_room(ops.len() + 1, WHAT)?;
        part.extend(ops.iter().map(&mut renumber));
        let mut ops: Vec<Op> = part;
        if seam.is_some() && !matches!(ops.last(), Some(Op::Logits { .. })) {
            ops.push(Op::Logits { x: Buf(0) });
        }
        Ok(Program {
            name: self.name.clone(),
            buffers: bufs.pick(&self.buffers)?,
            weights: weights.pick(&self.weights)?,
            ropes: self.ropes.clone(),
            states: layers.pick(&self.states)?,
            ops,
            vocab: self.vocab,
        })
    }
}

/// What the memory is for, in texts of errors.
const WHAT: &str = "the parts of a model on two devices";

/// New numbers in the order of first use.
struct Numbers {
    new: HashMap<usize, usize>,
    old: Vec<usize>,
}

impl Numbers {
    /// Makes room for `count` numbers.
    fn new(count: usize) -> Result<Self> {
        let mut new = HashMap::new();
        memory::reserve_in_map(&mut new, count, WHAT)?;
        Ok(Self { new, old: memory::with_room(count, WHAT)? })
    }

    fn number(&mut self, old: usize) -> usize {
        *self.new.entry(old).or_insert_with(|| {
            self.old.push(old);
            self.old.len() - 1
        })
    }

    fn pick<T: Clone>(&self, all: &[T]) -> Result<Vec<T>> {
        memory::collected(self.old.iter().filter_map(|&i| all.get(i)).cloned(), WHAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{AttentionInfo, BufInfo, KvShape, LayerState};

    /// Two layers: `x = embed; [q = norm x; store q, q; a = attention q; x += a; h = norm x; x += h] * 2; logits x`.
    fn program() -> Program {
        let (x, q, a, h) = (Buf(0), Buf(1), Buf(2), Buf(3));
        let buffer = |name| BufInfo { name, columns: 8, rows: RowKind::Tokens };
        let info =
            AttentionInfo { heads: 1, kv_heads: 1, head_dim: 8, value_dim: 8, scale: 1.0, window: None, softcap: None };
        let norm = |out| Op::RmsNorm { x, weight: Weight(0), eps: 1e-5, out };
        let mut ops = vec![Op::Embed { table: Weight(1), out: x }, Op::Scale { x, by: 2.0 }];
        for layer in 0..2 {
            ops.extend([
                norm(q),
                Op::StoreKv { layer, k: q, v: q },
                Op::Attention { layer, q, out: a, info: info.clone() },
                Op::Add { x, y: a },
                norm(h),
                Op::Add { x, y: h },
            ]);
        }
        ops.push(Op::Logits { x });
        let shape = KvShape { kv_heads: 1, head_dim: 8, value_dim: 8 };
        let states = vec![LayerState::Paged { shape, window: None }; 2];
        let buffers = ["x", "q", "a", "h"].map(buffer).to_vec();
        Program { name: String::new(), buffers, weights: Vec::new(), ropes: Vec::new(), states, ops, vocab: 8 }
    }

    #[test]
    fn layers_begin_where_the_residual_stream_alone_is_alive() {
        let x = Buf(0);
        assert_eq!(program().layer_cuts().unwrap(), [Some(Cut { op: 2, buf: x }), Some(Cut { op: 8, buf: x })]);
        let mut crossing = program();
        // The last layer reads a result of the first one.
        crossing.ops.insert(13, Op::Add { x, y: Buf(2) });
        crossing.ops.swap(13, 10);
        crossing.ops[10] = Op::Add { x: Buf(1), y: Buf(3) };
        assert_eq!(crossing.layer_cuts().unwrap()[1], None, "{:?}", crossing.ops);
    }

    #[test]
    fn parts_have_numbers_of_their_own() {
        let program = program();
        let cut = program.layer_cuts().unwrap()[1].unwrap();
        let (front, back) = program.ops.split_at(cut.op);
        let front = program.part(front, Some(cut.buf)).unwrap();
        assert_eq!((front.states.len(), front.ops.len()), (1, 9));
        assert!(matches!(front.ops.last(), Some(Op::Logits { x: Buf(0) })));
        let back = program.part(back, Some(cut.buf)).unwrap();
        assert_eq!((back.states.len(), back.ops.len()), (1, 7));
        assert!(matches!(back.ops.first(), Some(Op::RmsNorm { x: Buf(0), out: Buf(1), .. })));
        assert!(matches!(back.ops.get(1), Some(Op::StoreKv { layer: 0, .. })));
        assert_eq!(back.result().unwrap().name, "x");
    }
}
