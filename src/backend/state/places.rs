//! Where the states of layers lie in the pages of their groups.

use crate::program::{Group, LayerState, Program};
use crate::{Error, ErrorKind, Result, memory};

/// The place of a layer's state. A backend decides what `layout` says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place<L> {
    /// The number of its group.
    pub(crate) group: usize,
    /// Bytes from the start of a page.
    pub(crate) offset: usize,
    pub(crate) layout: L,
}

/// The places of all states of a program.
#[derive(Debug, Clone)]
pub(crate) struct Places<L> {
    pub(crate) groups: Vec<Group>,
    /// Bytes of a page, for each group.
    pub(crate) page_bytes: Vec<usize>,
    /// In the order of the program's states.
    states: Vec<Place<L>>,
}

impl<L> Places<L> {
    /// Puts the states of each group one after the other. `layout` says what a backend keeps of a
    /// state, and how many bytes that takes in a page: `None` where they cannot be counted.
    ///
    /// # Errors
    /// `OutOfMemory` where a page would not fit the address space, and errors of `layout`.
    pub(crate) fn new(
        program: &Program,
        mut layout: impl FnMut(&LayerState) -> Result<(L, Option<usize>)>,
    ) -> Result<Self> {
        const WHAT: &str = "the layers of the cache";
        let groups = program.groups()?;
        let mut page_bytes = memory::filled(groups.len(), 0usize, WHAT)?;
        let mut states = memory::with_room(program.states.len(), WHAT)?;
        for (i, state) in program.states.iter().enumerate() {
            let (layout, bytes) = layout(state)?;
            let group = groups.iter().position(|group| group.states.contains(&i)).unwrap_or(0);
            let Some(page) = page_bytes.get_mut(group) else { continue };
            states.push(Place { group, offset: *page, layout });
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
    pub(crate) fn of(&self, state: usize) -> Result<&Place<L>> {
        let bug = || Error::new(ErrorKind::Device, format!("the program has no state {state}: a bug in wavelm"));
        self.states.get(state).ok_or_else(bug)
    }

    /// All places.
    pub(crate) fn all(&self) -> &[Place<L>] {
        &self.states
    }
}
