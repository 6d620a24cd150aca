//! Where the states of layers lie in the pages of their groups.

use super::kv::KvLayout;
use crate::backend::KvType;
use crate::program::{Group, LayerState, Program};
use crate::{Error, ErrorKind, Result, memory};

/// The place of a layer's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of its group.
    pub(crate) group: usize,
    /// Bytes from the start of a page.
    pub(crate) offset: usize,
    pub(crate) kind: PlaceKind,
}

/// What lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlaceKind {
    /// Keys and values.
    Kv(KvLayout),
    /// This many numbers.
    Floats(usize),
}

/// The places of all states of a program.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) groups: Vec<Group>,
    /// Bytes of a page, for each group.
    pub(crate) page_bytes: Vec<usize>,
    /// In the order of the program's states.
    states: Vec<Place>,
}

impl Places {
    /// # Errors
    /// `InvalidInput` for a shape without columns, `OutOfMemory` where a page would not fit the
    /// address space.
    pub(crate) fn new(program: &Program, kv_type: KvType) -> Result<Self> {
        const WHAT: &str = "the layers of the cache";
        let groups = program.groups()?;
        let mut page_bytes = memory::filled(groups.len(), 0usize, WHAT)?;
        let mut states = memory::with_room(program.states.len(), WHAT)?;
        for (i, state) in program.states.iter().enumerate() {
            let (kind, bytes) = match *state {
                LayerState::Paged { shape, .. } => {
                    let layout = KvLayout::for_layer(kv_type, shape.kv_heads, shape.head_dim, shape.value_dim)?;
                    (PlaceKind::Kv(layout), Some(layout.bytes()))
                }
                LayerState::Recurrent { floats } => {
                    (PlaceKind::Floats(floats), floats.checked_mul(4).and_then(|b| b.checked_next_multiple_of(64)))
                }
            };
            let group = groups.iter().position(|group| group.states.contains(&i)).unwrap_or(0);
            let Some(page) = page_bytes.get_mut(group) else { continue };
            states.push(Place { group, offset: *page, kind });
            let too_large =
                || Error::new(ErrorKind::OutOfMemory, "a page of the cache would not fit the address space");
            *page = bytes.and_then(|bytes| page.checked_add(bytes)).ok_or_else(too_large)?;
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

    /// All places.
    pub(crate) fn all(&self) -> &[Place] {
        &self.states
    }
}
