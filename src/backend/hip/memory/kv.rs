//! Where the keys and values of each layer lie in a page of the cache on a GPU: the host's side of
//! hip/attention/kv.h.
//!
//! On the GPU keys are rows, padded like values. On the CPU keys are transposed in groups, because
//! its kernels must add in the same order for few and for many queries.

use crate::backend::KvType;
use crate::backend::state::{self, PAGE_LEN};
use crate::program::{KvShape, LayerState, Program};
use crate::{Error, Result};

/// Alignment of each head's place, in bytes.
const ALIGN: usize = 64;
/// Numbers that share a scale, in formats with scales.
const BLOCK: usize = 32;

pub(crate) type Place = state::Place<KvShape>;
pub(crate) type Places = state::Places<KvShape>;

/// The places of all states of a program.
///
/// # Errors
/// `OutOfMemory` where a page would not fit the address space, `Unsupported` for states without
/// kernels.
pub(crate) fn places(program: &Program, kv_type: KvType) -> Result<Places> {
    Places::new(program, |state| {
        let LayerState::Paged { shape, .. } = *state else {
            return Err(Error::unsupported("no GPU kernel computes recurrent layers"));
        };
        let bytes = || {
            let head = head_bytes(kv_type, shape.head_dim)?.checked_add(head_bytes(kv_type, shape.value_dim)?)?;
            head.checked_mul(shape.kv_heads)
        };
        Ok((shape, bytes()))
    })
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
