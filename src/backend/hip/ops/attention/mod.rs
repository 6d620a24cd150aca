//! Causal attention over the cache, and storing keys and values in it. Few queries (`decode.rs`) and
//! many of one sequence (`prompt.rs`) have different kernels; a pass may have both.

mod cache;
mod decode;
mod prompt;
mod store;

use super::quantize::Quantize;
use super::{Finder, GpuOp, Launch, Single, Step};
use crate::backend::KvType;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::pass::{Pass, Scratch, narrow};
use crate::backend::hip::selftest::{Probe, ROUNDED, Sketch, fewer_heads};
use crate::gguf::TensorType;
use crate::program::{AttentionInfo, Buf, KvShape, Op, Program, RowKind, is_read};
use crate::{Error, Result};
use cache::Cache;
use decode::{Decode, Results};
use prompt::Prompt;
use store::StoreKv;

pub(super) use store::OP as STORE;

pub(super) const OP: GpuOp = GpuOp {
    lower: |ops, to| {
        let [Op::Attention { layer, q, out, info }, rest @ ..] = ops else { return None };
        let (layer, q, out) = (*layer, *q, *out);
        // The step before may leave storing to the attention. That may then leave queries
        // unrotated, so nothing may read them later.
        let fresh = to.last::<StoreKv>().filter(|store| store.layer == layer).and_then(
            |&StoreKv { k, v, turn, .. }| match turn {
                None => Some(Fresh { k, v, rope: None }),
                Some((turned, rope)) if turned == q && !is_read(rest, q) => Some(Fresh { k, v, rope: Some(rope) }),
                Some(_) => None,
            },
        );
        if fresh.is_some() {
            to.remove_last(q);
        }
        to.write(out, Attention { layer, q, out, info: info.clone(), quantize: false, fresh });
        Some(rest)
    },
    fusions: &[],
    probe,
};

/// Attention; also the int8 form of `out` if `quantize` is set. If `fresh` is set, it first stores
/// these keys and values.
#[derive(Debug)]
struct Attention {
    layer: usize,
    q: Buf,
    out: Buf,
    info: AttentionInfo,
    quantize: bool,
    fresh: Option<Fresh>,
}

/// Keys and values that are still to be stored, and the embedding that rotates the keys and the
/// queries, if there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fresh {
    k: Buf,
    v: Buf,
    rope: Option<usize>,
}

/// The width of the kernels on matrix cores for these heads, if there are some.
fn core_width(find: &Finder<'_>, info: &AttentionInfo) -> Option<usize> {
    let width = [64, 128, 256].into_iter().find(|n| info.head_dim.max(info.value_dim) <= *n);
    // A cache of f32 may hold values that f16 cannot.
    width.filter(|_| find.kv_type != KvType::F32 && find.has_matrix_cores())
}

impl Step for Attention {
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>> {
        const WIDEST: usize = 512;
        let info = &self.info;
        if info.head_dim > WIDEST || info.value_dim > WIDEST || info.kv_heads == 0 {
            return Err(Error::unsupported(format!(
                "attention heads of {} and {} columns: no GPU kernel takes more than {WIDEST}",
                info.head_dim, info.value_dim
            )));
        }
        let group = info.heads / info.kv_heads;
        Ok(Box::new(Prepared {
            prompt: Prompt::find(find, info, group)?,
            decode: Decode::find(find, info, group)?,
            store: StoreKv::kernel(find)?,
            quantize: Quantize::kernel(find)?,
            step: *self,
        }))
    }

    fn quantize(&mut self) -> bool {
        // Then no group of 32 crosses two heads.
        self.quantize |= self.info.value_dim.is_multiple_of(32);
        self.quantize
    }

    fn needs(&self, _: &Program, scratch: &mut Scratch) {
        decode::needs(&self.info, scratch);
    }
}

/// An attention with its kernels.
struct Prepared {
    step: Attention,
    decode: Decode,
    prompt: Option<Prompt>,
    /// Stores keys and values where the decode kernel does not.
    store: Kernel,
    /// Quantizes results that are needed as integers and do not come from the decode kernel.
    quantize: Kernel,
}

impl Launch for Prepared {
    fn launch(&self, pass: &Pass<'_>) -> Result<()> {
        let (step, inputs) = (&self.step, pass.inputs);
        // If two tokens belong to one sequence, one reads the keys and values that the other
        // stores; they must then be stored before the attention.
        let (fresh, stored) = if inputs.single { (step.fresh, None) } else { (None, step.fresh) };
        if let Some(Fresh { k, v, rope }) = stored {
            let turn = rope.map(|rope| (step.q, rope));
            StoreKv { layer: step.layer, k, v, turn }.launch(pass, &self.store)?;
        }
        let (q, out, cache) = (pass.float(step.q)?, pass.float(step.out)?, Cache::new(pass, step.layer)?);
        if let Some(prompt) = &self.prompt {
            prompt.launch(pass, step, &cache, [q, out])?;
        }
        let all = 0..inputs.tokens;
        let runs = if self.prompt.is_some() { inputs.decode.as_slice() } else { std::slice::from_ref(&all) };
        // If some tokens attend in tiles, all results are quantized at the end.
        let at_once = step.quantize && runs.iter().map(ExactSizeIterator::len).sum::<usize>() == inputs.tokens;
        let (out_q, groups) = pass.int8_if(at_once, step.out)?;
        let results = Results { out, q: out_q, groups };
        for run in runs {
            self.decode.launch(pass, step, &cache, run, (q, fresh, &results))?;
        }
        if step.quantize && !at_once {
            Quantize { x: step.out }.launch(pass, &self.quantize)?;
        }
        Ok(())
    }

    fn tile_tokens(&self) -> Option<usize> {
        self.prompt.as_ref().map(|prompt| prompt.tile_tokens)
    }
}

impl Attention {
    /// Adds the shape of the heads, and what happens to scores.
    fn shape_args(&self, args: Args) -> Result<Args> {
        let info = &self.info;
        Ok(args
            .u32(narrow(info.heads)?)
            .u32(narrow(info.kv_heads)?)
            .u32(narrow(info.head_dim)?)
            .u32(narrow(info.value_dim)?)
            .f32(info.scale)
            .f32(info.softcap.unwrap_or(0.0)))
    }

    /// The window as kernels take it. One that does not fit in 32 bits is longer than any context,
    /// so there is none (0).
    fn window(&self) -> u32 {
        self.info.window.map_or(0, |w| u32::try_from(w.max(1)).unwrap_or(0))
    }
}

/// Tests storing as well, because attention reads what was stored.
fn probe(_: &Program, op: &Op) -> Option<Probe> {
    let Op::Attention { info, .. } = op else { return None };
    let (info, f32, mut sketch) = (fewer_heads(info, 2), TensorType::F32, Sketch::new());
    let q = sketch.random(f32, info.heads * info.head_dim);
    let k = sketch.random(f32, info.kv_heads * info.head_dim);
    let v = sketch.random(f32, info.kv_heads * info.value_dim);
    let out = sketch.buffer(info.heads * info.value_dim, RowKind::Tokens);
    let AttentionInfo { kv_heads, head_dim, value_dim, .. } = info;
    let layer = sketch.cache(KvShape { kv_heads, head_dim, value_dim });
    sketch.op(Op::StoreKv { layer, k, v });
    sketch.op(Op::Attention { layer, q, out, info });
    Some(sketch.finish(format!("attention with heads of {head_dim} columns"), out, ROUNDED))
}
