//! What a model keeps of its sequences from pass to pass, on any device.
//!
//! The layers of a program form [groups](crate::program::Group): full caches, caches of a window, and
//! recurrent states. Each group of a backend has a [pool](PagePool) of pages of one size; the
//! backend provides their memory. A [`Sequence`] has for each paged group a table of pages, and for
//! each recurrent group one page: its slot. Forks and checkpoints share pages, and a pass copies a
//! shared page before it writes to it.
//!
//! A full cache can be rewound to any position. A window holds only the newest positions, and a slot
//! only the last one. To go back further, a sequence keeps a few *checkpoints*: references to the
//! pages of those groups as they once were. [`Sequence::rewind`] goes to the nearest position that
//! some checkpoint still has, and the caller evaluates the tokens from there again.

mod places;
mod pool;
mod sequence;
#[cfg(test)]
mod tests;

pub(crate) use places::{Place, Places};
pub(crate) use pool::{PageId, PagePool, PageStore};
pub(crate) use sequence::Sequence;

use crate::program::{Group, GroupKind};
use crate::{Result, memory};
use std::sync::Arc;

/// Positions in a page of a cache.
pub(crate) const PAGE_LEN: usize = 64;

/// The entry of a page table whose page was given back, because its positions left the window.
pub(crate) const NO_PAGE: PageId = PageId::MAX;

/// The most checkpoints of a sequence. Each may hold the pages of a window, so they are few.
const CHECKPOINTS: usize = 4;

/// How many positions a windowed cache keeps besides those that the next token needs, so that small
/// steps back need no checkpoint.
const SLACK: usize = PAGE_LEN;

/// The group of some layers' states, and the pages of all sequences.
pub(crate) struct StateGroup {
    kind: GroupKind,
    pool: PagePool,
}

/// The state groups of a backend.
pub(crate) struct States(Vec<Arc<StateGroup>>);

impl States {
    /// One pool for each group, with the memory that `store` provides.
    ///
    /// # Errors
    /// `OutOfMemory`, and errors of `store`.
    pub(crate) fn new(
        groups: &[Group],
        mut store: impl FnMut(usize) -> Result<Box<dyn PageStore>>,
    ) -> Result<Arc<Self>> {
        let group =
            |(i, group): (usize, &Group)| Ok(Arc::new(StateGroup { kind: group.kind, pool: PagePool::new(store(i)?) }));
        Ok(Arc::new(Self(memory::try_collected(groups.iter().enumerate().map(group), WHAT)?)))
    }

    /// The groups of several backends, one after the other.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn joined<'a>(parts: impl Iterator<Item = &'a Arc<Self>>) -> Result<Arc<Self>> {
        let mut groups = Vec::new();
        for part in parts {
            memory::reserve(&mut groups, part.0.len(), WHAT)?;
            groups.extend(part.0.iter().map(Arc::clone));
        }
        Ok(Arc::new(Self(groups)))
    }

    /// How many groups there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether some group has a slot for each sequence.
    fn has_slots(&self) -> bool {
        self.0.iter().any(|group| group.kind == GroupKind::Recurrent)
    }

    /// Pages that at least one sequence holds, for each group.
    #[cfg(test)]
    pub(crate) fn pages_in_use(&self) -> Vec<usize> {
        self.0.iter().map(|group| group.pool.pages_in_use()).collect()
    }
}

/// The most pages of a group that one sequence of `context` tokens holds, in passes of up to
/// `pass_tokens` tokens.
pub(crate) fn most_pages(kind: GroupKind, context: usize, pass_tokens: usize) -> usize {
    let all = context.div_ceil(PAGE_LEN);
    match kind {
        GroupKind::Paged { window: None } => all,
        GroupKind::Paged { window: Some(window) } => {
            // Both ends may be in the middle of a page.
            let kept = |more: usize| (window.saturating_add(SLACK + more)).div_ceil(PAGE_LEN).saturating_add(1);
            let windows = kept(0).saturating_mul(CHECKPOINTS).saturating_add(kept(pass_tokens));
            // Pages are shared unless two of the sequence's futures wrote to them.
            windows.min(all.saturating_add(CHECKPOINTS))
        }
        GroupKind::Recurrent => 1 + CHECKPOINTS,
    }
}

/// What memory is for, in texts of errors.
const WHAT: &str = "the page tables of the cache";
