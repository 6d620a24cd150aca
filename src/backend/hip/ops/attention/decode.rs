//! Attention of few queries, which blocks share by positions (hip/attention/attention.hip; with matrix cores
//! hip/attention/attention_waves.hip).

use super::super::Finder;
use super::cache::Cache;
use super::{Attention, Fresh, core_width};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::driver::DevicePtr;
use crate::backend::hip::pass::{Pass, Scratch, narrow};
use crate::program::AttentionInfo;
use std::ops::Range;

/// The most parts into which attention cuts the positions, and the most tokens for which it does
/// so.
const MOST_SPLITS: usize = 64;
const MOST_SPLIT_TOKENS: usize = 16;

/// The kernels of an attention: one with a block for each head, and one with a block for several
/// heads of a group.
pub(super) struct Decode {
    one_head: Kernel,
    heads: Heads,
    /// Query heads that share a key-value head.
    group: usize,
}

/// Each block takes several heads.
struct Heads {
    kernel: Kernel,
    /// How many heads of a group a block takes.
    per_block: usize,
    /// How many blocks a compute unit holds.
    blocks: usize,
}

/// Where the results go: as numbers, and as int8 with the groups' factors, or null.
pub(super) struct Results {
    pub(super) out: DevicePtr,
    pub(super) q: DevicePtr,
    pub(super) groups: DevicePtr,
}

/// The memory for the results of blocks that share one.
pub(super) fn needs(info: &AttentionInfo, scratch: &mut Scratch) {
    let of_token = info.heads * (info.value_dim.next_multiple_of(4) + 4);
    scratch.partials(of_token.saturating_mul(MOST_SPLITS * MOST_SPLIT_TOKENS));
    scratch.counters(MOST_SPLIT_TOKENS * info.heads);
}

impl Decode {
    pub(super) fn find(find: &Finder<'_>, info: &AttentionInfo, group: usize) -> Result<Self> {
        let kv = find.kv_name();
        let decode = |n| find.kernel("attention", &format!("attend_decode_{kv}_{n}"), 256);
        // Matrix cores have heads as rows, so they need several heads, and a cache whose values fit
        // f16.
        let waves = core_width(find, info).filter(|n| *n <= 128 && group > 1);
        let heads = match (waves, group) {
            (Some(n), _) => {
                let kernel = find.kernel("attention_waves", &format!("attend_waves_{kv}_{n}"), 256)?;
                Heads { kernel, per_block: 8, blocks: 1 }
            }
            (None, 5..) => Heads { kernel: decode(8)?, per_block: 8, blocks: 2 },
            (None, 2..) => Heads { kernel: decode(4)?, per_block: 4, blocks: 2 },
            (None, _) => Heads { kernel: decode(1)?, per_block: 1, blocks: 2 },
        };
        Ok(Self { one_head: decode(1)?, heads, group })
    }

    /// Launches a run of tokens. If `fresh` is set, it first stores these keys and values.
    pub(super) fn launch(
        &self,
        pass: &Pass<'_>,
        step: &Attention,
        cache: &Cache,
        run: &Range<usize>,
        (q, fresh, results): (DevicePtr, Option<Fresh>, &Results),
    ) -> Result<()> {
        let (info, tokens) = (&step.info, run.len());
        let (k, v, (angles, pairs, neox)) = match fresh {
            Some(Fresh { k, v, rope }) => {
                (pass.float(k)?, pass.float(v)?, rope.map_or(Ok((0, 0, 0)), |rope| pass.rope(rope))?)
            }
            None => (0, 0, (0, 0, 0)),
        };
        let (kernel, [chunks, splits]) = self.choose(pass, info, tokens);
        let skip = |address: u64, bytes: usize| if address == 0 { 0 } else { address + (run.start * bytes) as u64 };
        let values = info.heads * info.value_dim;
        let args = Args::default()
            .ptr(skip(q, info.heads * info.head_dim * 4))
            .ptr(skip(k, info.kv_heads * info.head_dim * 4))
            .ptr(skip(v, info.kv_heads * info.value_dim * 4))
            .ptr(skip(angles, pairs as usize * 8));
        let cache = cache.after(run.start);
        let args = cache
            .addresses(args)
            .ptr(skip(results.out, values * 4))
            .ptr(skip(results.q, values))
            .ptr(skip(results.groups, values / 32 * 8))
            .ptr(pass.partials())
            .ptr(pass.counters());
        let args = step.shape_args(args)?.u32(pairs).u32(neox).u32(step.window());
        let args = cache.place(cache.table_len(args)?.u32(narrow(splits)?));
        pass.launch(kernel, [narrow(chunks)?, narrow(tokens)?, narrow(splits)?], args)
    }

    /// The kernel for this many tokens, and how many blocks take the heads and the positions.
    fn choose(&self, pass: &Pass<'_>, info: &AttentionInfo, tokens: usize) -> (&Kernel, [usize; 2]) {
        // As many blocks as run at once, but each with at least two pages of work, because
        // combining costs as much.
        let (units, most) = (pass.device().units as usize, pass.inputs.pages.div_ceil(2));
        // A block for each head reads keys and values more often. This is good where there are few
        // blocks.
        let are_few = if pass.tests() { tokens == 1 } else { info.heads * tokens * most <= units * 2 };
        let (kernel, chunks, blocks) = match are_few {
            true => (&self.one_head, info.heads, units * 2),
            false => {
                let Heads { kernel, per_block, blocks } = &self.heads;
                (kernel, info.kv_heads * self.group.div_ceil(*per_block), units * blocks)
            }
        };
        let splits = match tokens > MOST_SPLIT_TOKENS {
            true => 1,
            false => (blocks / (chunks * tokens).max(1)).min(most).clamp(1, MOST_SPLITS),
        };
        (kernel, [chunks, splits])
    }
}
