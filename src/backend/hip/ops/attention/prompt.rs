//! Attention of many queries of one sequence, in tiles of some tokens and heads
//! (hip/attention/attention_prompt.hip; with matrix cores hip/attention/attention_core.hip).

use super::super::Finder;
use super::cache::Cache;
use super::{Attention, core_width};
use crate::Result;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::driver::DevicePtr;
use crate::backend::hip::pass::{Pass, narrow};
use crate::program::AttentionInfo;

/// Queries in a tile, without and with matrix cores.
const QUERIES: usize = 32;
const CORE_QUERIES: usize = 64;

/// The kernel of an attention, for heads that are narrow enough.
pub(super) struct Prompt {
    kernel: Kernel,
    /// How many heads of a group a block takes, and how many blocks a group has.
    chunks: usize,
    /// Tokens in a tile.
    pub(super) tile_tokens: usize,
}

impl Prompt {
    pub(super) fn find(find: &Finder<'_>, info: &AttentionInfo, group: usize) -> Result<Option<Self>> {
        let kv = find.kv_name();
        let wide = [2, 4, 8].into_iter().find(|n| info.value_dim <= 32 * n);
        let (tile, kernel) = match (core_width(find, info), wide) {
            (Some(n), _) => {
                let name = format!("attend_core_{kv}_{n}");
                (CORE_QUERIES, find.kernel("attention_core", &name, 4 * find.device.wave)?)
            }
            (None, Some(n)) => (QUERIES, find.kernel("attention_prompt", &format!("attend_prompt_{kv}_{n}"), 256)?),
            (None, None) => return Ok(None),
        };
        let heads_in_tile = group.clamp(1, tile);
        Ok(Some(Self { kernel, chunks: group.div_ceil(heads_in_tile), tile_tokens: tile / heads_in_tile }))
    }

    /// Launches the tiles of a pass, if it has some.
    pub(super) fn launch(
        &self,
        pass: &Pass<'_>,
        step: &Attention,
        cache: &Cache,
        [q, out]: [DevicePtr; 2],
    ) -> Result<()> {
        let tiles = pass.inputs.tiles.iter().find(|(size, ..)| *size == self.tile_tokens);
        let Some(&(_, tiles, count)) = tiles else { return Ok(()) };
        let args = cache.addresses(Args::default().ptr(q)).ptr(tiles).ptr(out);
        let args = step.shape_args(args)?.u32(step.window());
        let args = cache.place(cache.table_len(args)?);
        pass.launch(&self.kernel, [narrow(count)?, narrow(step.info.kv_heads * self.chunks)?, 1], args)
    }
}
