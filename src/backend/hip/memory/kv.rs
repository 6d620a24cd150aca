//! Where the keys and values of each layer lie in a page of the cache on a GPU: the host's side of
//! hip/attention/kv.h.
//!
//! On the GPU keys are rows, padded like values. On the CPU keys are transposed in groups, because
//! its kernels must add in the same order for few and for many queries.

use crate::backend::KvType;
use crate::backend::state::PAGE_LEN;
use crate::program::{Group, KvShape, LayerState, Program};
use crate::{Error, ErrorKind, Result, memory};

/// Alignment of each head's place, in bytes.
const ALIGN: usize = 64;
/// Numbers that share a scale, in formats with scales.
const BLOCK: usize = 32;

/// The place of a layer's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of its group.
    pub(crate) group: usize,
    /// Bytes from the start of a page.
    pub(crate) offset: usize,
    pub(crate) shape: KvShape,
}

/// The places of all states of a program.
pub(crate) struct Places {
    pub(crate) groups: Vec<Group>,
    /// Bytes of a page, for each group.
    pub(crate) page_bytes: Vec<usize>,
    /// In the order of the program's states.
    states: Vec<Place>,
}

impl Places {
    /// # Errors
    /// `OutOfMemory` where a page would not fit the address space, `Unsupported` for states without
    /// kernels.
    pub(crate) fn new(program: &Program, kv_type: KvType) -> Result<Self> {
        const WHAT: &str = "the layers of the cache";
        let groups = program.groups()?;
        let mut page_bytes = memory::filled(groups.len(), 0usize, WHAT)?;
        let mut states = memory::with_room(program.states.len(), WHAT)?;
        for (i, state) in program.states.iter().enumerate() {
            let LayerState::Paged { shape, .. } = *state else {
                return Err(Error::unsupported("no GPU kernel computes recurrent layers"));
            };
            let group = groups.iter().position(|group| group.states.contains(&i)).unwrap_or(0);
            let Some(page) = page_bytes.get_mut(group) else { continue };
            states.push(Place { group, offset: *page, shape });
            let layer = || {
                let head = head_bytes(kv_type, shape.head_dim)?.checked_add(head_bytes(kv_type, shape.value_dim)?)?;
                page.checked_add(head.checked_mul(shape.kv_heads)?)
            };
            let too_large =
                || Error::new(ErrorKind::OutOfMemory, "a page of the cache would not fit the address space");
            *page = layer().ok_or_else(too_large)?;
        }
        Ok(Self { groups, page_bytes, states })
    }

    /// The place of a state.
    ///
    /// # Errors
    /// A bug: the program has no such state.
    pub(crate) fn of(&self, state: usize) -> Result<&Place> {
        let bug = || Error::new(ErrorKind::Device, format!("the program has no state {state}: a bug in wavelm"));
        self.states.get(state).ok_or_else(bug)
    }
}

/// Bytes of one head's keys or values in a page.
fn head_bytes(kv_type: KvType, dim: usize) -> Option<usize> {
    let row = match kv_type {
        KvType::F32 => dim.checked_next_multiple_of(16)?.checked_mul(4)?,
        KvType::F16 => dim.checked_next_multiple_of(16)?.checked_mul(2)?,
        KvType::Q8_0 => {
            let padded = dim.checked_next_multiple_of(BLOCK)?;
            padded.checked_add(padded / BLOCK * 2)?
        }
    };
    row.checked_mul(PAGE_LEN)?.checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded() {
        assert_eq!(head_bytes(KvType::F32, 16), Some(64 * 64));
        assert_eq!(head_bytes(KvType::F16, 24), Some(64 * 64));
        assert_eq!(head_bytes(KvType::Q8_0, 16), Some(34 * 64));
        assert_eq!(head_bytes(KvType::Q8_0, 33), Some(68 * 64));
        assert_eq!(head_bytes(KvType::F32, usize::MAX), None);
    }
}
