//! What a program keeps of a sequence from pass to pass.

use super::Program;
use crate::{Result, memory};

/// The keys and values that an attention layer caches for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
}

/// The state of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerState {
    /// Keys and values of each position, in pages. With a window, a query at position `p` reads only
    /// the positions above `p - window`, so older pages can be given back.
    Paged { shape: KvShape, window: Option<usize> },
    /// A state of fixed size, which each token overwrites. It starts as zeros.
    #[cfg_attr(not(test), expect(dead_code, reason = "no model family has such layers yet; tests do"))]
    Recurrent { floats: usize },
}

/// What the states of a [`Group`] have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupKind {
    /// Pages of positions, of which those in the window are kept: all if there is no window.
    Paged { window: Option<usize> },
    /// One slot for each sequence.
    Recurrent,
}

/// Layers of one kind and window. They share pages or a slot: a page holds the positions of all of
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) kind: GroupKind,
    /// The places of their states in [`Program::states`], in order.
    pub(crate) states: Vec<usize>,
}

impl LayerState {
    fn kind(&self) -> GroupKind {
        match self {
            LayerState::Paged { window, .. } => GroupKind::Paged { window: *window },
            LayerState::Recurrent { .. } => GroupKind::Recurrent,
        }
    }
}

impl Program {
    /// The groups of the states, in the order of their first members.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn groups(&self) -> Result<Vec<Group>> {
        const WHAT: &str = "the groups of layers";
        let mut groups: Vec<Group> = Vec::new();
        for (i, state) in self.states.iter().enumerate() {
            let kind = state.kind();
            match groups.iter_mut().find(|group| group.kind == kind) {
                Some(group) => memory::push(&mut group.states, i, WHAT)?,
                None => {
                    let states = memory::filled(1, i, WHAT)?;
                    memory::push(&mut groups, Group { kind, states }, WHAT)?;
                }
            }
        }
        Ok(groups)
    }
}
