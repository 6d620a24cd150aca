//! What the CPU keeps of a layer's state.

use super::kv::KvLayout;
use crate::Result;
use crate::backend::{KvType, state};
use crate::program::{LayerState, Program};

pub(crate) type Place = state::Place<Layout>;
pub(crate) type Places = state::Places<Layout>;

/// What lies at a place in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Keys and values.
    Kv(KvLayout),
    /// This many numbers.
    Floats(usize),
}

/// The places of all states of a program.
///
/// # Errors
/// `InvalidInput` for a shape without columns, `OutOfMemory` where a page would not fit the address
/// space.
pub(crate) fn places(program: &Program, kv_type: KvType) -> Result<Places> {
    Places::new(program, |state| {
        Ok(match *state {
            LayerState::Paged { shape, .. } => {
                let layout = KvLayout::for_layer(kv_type, shape.kv_heads, shape.head_dim, shape.value_dim)?;
                (Layout::Kv(layout), Some(layout.bytes()))
            }
            LayerState::Recurrent { floats } => {
                (Layout::Floats(floats), floats.checked_mul(4).and_then(|bytes| bytes.checked_next_multiple_of(64)))
            }
        })
    })
}
