//! Stores keys and values in the cache, and rotates keys and queries on the way (hip/attention/rope.hip). The
//! attention after it tests it, and takes it in where it can.

use super::super::{Finder, Fusion, GpuOp, Launch, One, Single, Step, no_probe};
use super::cache::Cache;
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::{Pass, narrow};
use crate::program::{Buf, Op, is_read};

pub(in super::super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::StoreKv { layer, k, v }, rest @ ..] = ops else { return None };
        to.push(StoreKv { layer: *layer, k: *k, v: *v, turn: None });
        Some(rest)
    },
    fusions: &[TURNED],
    probe: no_probe,
};

const TURNED: Fusion = Fusion {
    name: "the rotations of queries and keys, and storing the keys",
    why: "one launch instead of three; nobody reads the rotated keys but the cache",
    rule: |ops, to| match *ops {
        [
            Op::Rope { x: q, rope, .. },
            Op::Rope { x: k, rope: other, .. },
            Op::StoreKv { layer, k: stored, v },
            ref rest @ ..,
        ] if rope == other && k == stored && q != k && !is_read(rest, k) => {
            to.write(q, StoreKv { layer, k, v, turn: Some((q, rope)) });
            Some(rest)
        }
        _ => None,
    },
};

/// Stores keys and values. `turn` names queries and an embedding: it rotates these queries, and the
/// keys before they are stored.
#[derive(Debug)]
pub(super) struct StoreKv {
    pub(super) layer: usize,
    pub(super) k: Buf,
    pub(super) v: Buf,
    pub(super) turn: Option<(Buf, usize)>,
}

impl StoreKv {
    pub(super) fn kernel(find: &Finder<'_>) -> Result<Kernel> {
        find.kernel("rope", &format!("store_kv_{}", find.kv_name()), 64)
    }
}

impl Step for StoreKv {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        Ok(Box::new(One { kernel: Self::kernel(find)?, step: *self }))
    }
}

impl Single for StoreKv {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()> {
        let (shape, cache) = (pass.shape(self.layer)?, Cache::new(pass, self.layer)?);
        let (q, heads, (angles, pairs, neox)) = match self.turn {
            Some((q, rope)) => (pass.float(q)?, pass.columns(q)? / shape.head_dim.max(1), pass.rope(rope)?),
            None => (0, 0, (0, 0, 0)),
        };
        let args = Args::default().ptr(q).ptr(pass.float(self.k)?).ptr(pass.float(self.v)?).ptr(angles).ptr(0);
        let args = cache
            .addresses(args)
            .u32(narrow(heads)?)
            .u32(narrow(shape.kv_heads)?)
            .u32(narrow(shape.head_dim)?)
            .u32(narrow(shape.value_dim)?)
            .u32(pairs)
            .u32(neox);
        let args = cache.place(cache.table_len(args)?);
        pass.launch(kernel, [narrow(heads + 2 * shape.kv_heads)?, narrow(pass.inputs.tokens)?, 1], args)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::lowering::as_step;
    use super::super::super::tests::{all, attention, steps};
    use super::super::{Attention, Fresh};
    use super::*;
    use crate::program::Weight;

    #[test]
    fn keys_are_rotated_on_their_way_only_where_nobody_reads_them_later() {
        let (q, k, v) = (Buf(0), Buf(1), Buf(2));
        let rope = |x, rope| Op::Rope { x, rope, head_dim: 8 };
        let store = Op::StoreKv { layer: 0, k, v };
        let turned = |ops: &[Op]| {
            let steps = steps(&[], ops.to_vec());
            as_step::<StoreKv>(&**steps.first().unwrap()).is_some_and(|store| store.turn.is_some())
        };
        let stores = |layer, more: &[Op]| {
            let mut ops = vec![rope(q, 0), rope(k, 0), Op::StoreKv { layer, k, v }, attention(q, Buf(3))];
            ops.extend_from_slice(more);
            let steps = steps(&[], ops);
            all::<Attention>(&steps).iter().any(|s| matches!(s.fresh, Some(Fresh { rope: Some(0), .. })))
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
