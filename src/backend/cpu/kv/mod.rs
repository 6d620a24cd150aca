//! The layout of a layer's keys and values in a page of the cache.

mod store;
#[cfg(test)]
mod tests;

pub(crate) use store::StorePlan;

use crate::backend::KvType;
use crate::{Error, Result};

pub(crate) use crate::backend::state::PAGE_LEN;

/// Numbers per block of [`KvType::Q8_0`]. They share a scale.
pub(crate) const Q8_BLOCK: usize = 32;

/// Keys per group. Their numbers lie side by side. A multiple of the lanes of every instruction
/// set.
pub(crate) const KEY_GROUP: usize = 16;

/// The alignment of each head's keys and values in bytes: a cache line.
const ALIGN: usize = 64;

/// The keys, or the values, of all heads of one layer in a page. Each head has its elements,
/// followed by the half-precision scales for Q8_0.
///
/// The values of a position are a row, and so are their scales. Keys are transposed in
/// [groups](KEY_GROUP): the first numbers of all keys of a group, then the second ones, and so on.
/// Scales come in the order of blocks, each for all keys of the page. So a vector of keys is one
/// load, and each of its lanes sums up one dot product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Numbers in a row of the model.
    pub(crate) dim: usize,
    /// Numbers in a stored row. Values are padded with zeros to a multiple of 16, or of the block
    /// for Q8_0. Keys are not padded.
    pub(crate) padded: usize,
    /// Bytes in a row.
    pub(crate) row_bytes: usize,
    /// Scales per row; zero for types without scales.
    pub(crate) blocks: usize,
    /// Bytes from one head to the next.
    head_bytes: usize,
    /// Offset of the first head in the layer.
    start: usize,
}

impl Rows {
    fn new(kv_type: KvType, heads: usize, dim: usize, padded: usize, start: usize) -> Option<Self> {
        let bytes = match kv_type {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Q8_0 => 1,
        };
        let blocks = if kv_type == KvType::Q8_0 { padded.div_ceil(Q8_BLOCK) } else { 0 };
        let row_bytes = padded.checked_mul(bytes)?;
        let row_bytes_and_scales = row_bytes.checked_add(blocks * 2)?;
        let head_bytes = row_bytes_and_scales.checked_mul(PAGE_LEN)?.checked_next_multiple_of(ALIGN)?;
        // `end` computes the sum of the offset and all heads, so that must not overflow.
        start.checked_add(head_bytes.checked_mul(heads)?)?;
        Some(Self { dim, padded, row_bytes, blocks, head_bytes, start })
    }

    fn end(&self, heads: usize) -> usize {
        self.start + heads * self.head_bytes
    }

    /// Offset in the layer of the values of a position within the page, or of the group of keys
    /// that begins with it.
    pub(crate) fn row(&self, head: usize, slot: usize) -> usize {
        self.start + head * self.head_bytes + slot * self.row_bytes
    }

    /// Offset in the layer of a head's scales.
    pub(crate) fn scales(&self, head: usize) -> usize {
        self.row(head, PAGE_LEN)
    }
}

/// Bytes and offsets of one layer in a page: the keys of all heads, then their values. A page holds
/// [`PAGE_LEN`] consecutive positions of one sequence for all layers of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvLayout {
    pub(crate) kv_type: KvType,
    pub(crate) kv_heads: usize,
    pub(crate) keys: Rows,
    pub(crate) values: Rows,
}

impl KvLayout {
    /// The layout for keys of `k_dim` and values of `v_dim` numbers per head.
    ///
    /// # Errors
    /// `InvalidInput` if a number is zero or the size overflows.
    pub(crate) fn for_layer(kv_type: KvType, kv_heads: usize, k_dim: usize, v_dim: usize) -> Result<Self> {
        let layout = || {
            let keys = Rows::new(kv_type, kv_heads, k_dim, k_dim, 0)?;
            let multiple = if kv_type == KvType::Q8_0 { Q8_BLOCK } else { 16 };
            let padded = v_dim.checked_next_multiple_of(multiple)?;
            let values = Rows::new(kv_type, kv_heads, v_dim, padded, keys.end(kv_heads))?;
            (kv_heads > 0 && k_dim > 0 && v_dim > 0).then_some(Self { kv_type, kv_heads, keys, values })
        };
        layout().ok_or_else(|| {
            Error::invalid_input(format!(
                "a key-value cache cannot have {kv_heads} heads with keys of {k_dim} and values of {v_dim} numbers"
            ))
        })
    }

    /// Bytes of the layer in a page: a multiple of 64.
    pub(crate) fn bytes(&self) -> usize {
        self.values.end(self.kv_heads)
    }
}

/// Consecutive rows of a batch that belong to one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// The first row in the batch.
    pub(crate) first_row: usize,
    /// The number of rows.
    pub(crate) rows: usize,
    /// The first row's position in the sequence. The others follow one by one. A position is also
    /// the place in the cache.
    pub(crate) first_pos: usize,
    /// The block table of the sequence: page `p` holds the positions from `p * PAGE_LEN` on.
    pub(crate) pages: &'a [*mut u8],
}

// SAFETY: a span only names pages. Only unsafe functions access them, and their callers promise
// what makes that sound.
unsafe impl Send for Span<'_> {}
// SAFETY: as above.
unsafe impl Sync for Span<'_> {}

impl Span<'_> {
    /// Checks that the block table reaches the last position, and that the size of a batch with
    /// `heads * dim` numbers per row does not overflow.
    pub(crate) fn check(&self, heads: usize, dim: usize) -> Result<()> {
        let end = self.first_pos.checked_add(self.rows);
        let size = || self.first_row.checked_add(self.rows)?.checked_mul(heads)?.checked_mul(dim);
        match (end, size()) {
            (Some(end), Some(_)) if end <= self.pages.len().saturating_mul(PAGE_LEN) => Ok(()),
            _ => Err(Error::invalid_input(format!(
                "{} rows from position {} on do not fit a cache of {} pages of {PAGE_LEN} positions",
                self.rows,
                self.first_pos,
                self.pages.len()
            ))),
        }
    }
}
