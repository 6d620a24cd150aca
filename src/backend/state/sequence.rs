//! The state of one sequence: its pages, and the checkpoints to which it can go back.

use super::{CHECKPOINTS, NO_PAGE, PAGE_LEN, PageId, SLACK, StateGroup, States, WHAT};
use crate::program::GroupKind;
use crate::{Result, memory};
use std::sync::Arc;

/// For each group of a backend the pages of one sequence: page `i` of a paged group holds the
/// positions from `i * PAGE_LEN` on, or is [`NO_PAGE`]; a recurrent group has one page.
pub(crate) type Tables = Vec<Vec<PageId>>;

/// The state of one sequence after some positions.
pub(crate) struct Sequence {
    states: Arc<States>,
    /// How many positions the state has seen.
    len: usize,
    tables: Tables,
    /// In the order of their positions, none behind `len`.
    pub(super) checkpoints: Vec<Checkpoint>,
}

/// The pages of all groups but full caches as they were after `len` positions.
pub(super) struct Checkpoint {
    pub(super) len: usize,
    tables: Tables,
}

impl Sequence {
    /// A sequence without positions.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn new(states: &Arc<States>) -> Result<Self> {
        let tables = memory::collected((0..states.len()).map(|_| Vec::new()), WHAT)?;
        Ok(Self { states: Arc::clone(states), len: 0, tables, checkpoints: Vec::new() })
    }

    /// How many positions the state has seen.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pages, for a pass.
    pub(crate) fn tables(&self) -> &[Vec<PageId>] {
        &self.tables
    }

    /// Whether the state can only go back to checkpoints.
    pub(crate) fn has_slots(&self) -> bool {
        self.states.has_slots()
    }

    /// Makes room for the next positions, up to `to`: adds pages, and copies those that are shared.
    ///
    /// # Errors
    /// `OutOfMemory`, and errors of the device. The sequence is then as before, or has a few more
    /// pages.
    pub(crate) fn prepare(&mut self, to: usize) -> Result<()> {
        for (group, table) in self.states.0.iter().zip(&mut self.tables) {
            let (pages, touched) = match group.kind {
                GroupKind::Paged { .. } => (to.div_ceil(PAGE_LEN), self.len / PAGE_LEN),
                GroupKind::Recurrent => (1, 0),
            };
            while table.len() < pages {
                memory::reserve(table, 1, WHAT)?;
                table.push(group.pool.acquire()?);
            }
            let touched = table.get_mut(touched..pages).into_iter().flatten();
            touched.into_iter().try_for_each(|page| group.pool.make_own(page))?;
        }
        Ok(())
    }

    /// Counts the positions of a pass, up to `to`, and gives back the pages that left a window.
    pub(crate) fn commit(&mut self, to: usize) {
        self.len = to;
        for (group, table) in self.states.0.iter().zip(&mut self.tables) {
            let GroupKind::Paged { window: Some(window) } = group.kind else { continue };
            let left = first_needed(to, window).saturating_sub(SLACK) / PAGE_LEN;
            // Older pages were given back before.
            for page in table.get_mut(..left).into_iter().flatten().rev() {
                if *page == NO_PAGE {
                    break;
                }
                group.pool.let_go(std::mem::replace(page, NO_PAGE));
            }
        }
    }

    /// Goes on after a pass that failed. The content of slots is then unknown, so the state may have
    /// to go back to a checkpoint. Returns how many positions it has.
    pub(crate) fn abort(&mut self) -> usize {
        for (group, table) in self.states.0.iter().zip(&mut self.tables) {
            if group.kind == GroupKind::Recurrent {
                release(group, table, 0);
            }
        }
        self.rewind(self.len)
    }

    /// Forgets positions, so that at most `to` are left. Returns how many are: fewer than `to` where
    /// the state at `to` is not kept any more.
    pub(crate) fn rewind(&mut self, to: usize) -> usize {
        let mut best = (self.reach(&self.tables, self.len, to).unwrap_or(0), None);
        for (i, checkpoint) in self.checkpoints.iter().enumerate().rev() {
            match self.reach(&checkpoint.tables, checkpoint.len, to) {
                Some(len) if len > best.0 => best = (len, Some(i)),
                _ => {}
            }
        }
        let (len, from) = best;
        if let Some(i) = from {
            let checkpoint = self.checkpoints.remove(i);
            for ((group, table), kept) in self.states.0.iter().zip(&mut self.tables).zip(checkpoint.tables) {
                if !is_full(group.kind) {
                    release(group, table, 0);
                    *table = kept;
                }
            }
        }
        for (group, table) in self.states.0.iter().zip(&mut self.tables) {
            let pages = match group.kind {
                GroupKind::Paged { .. } => len.div_ceil(PAGE_LEN),
                GroupKind::Recurrent => len.min(1),
            };
            release(group, table, pages);
        }
        self.len = len;
        while self.checkpoints.last().is_some_and(|checkpoint| checkpoint.len > len) {
            self.drop_checkpoint(self.checkpoints.len() - 1);
        }
        len
    }

    /// The most positions, up to `to`, whose state these tables have, if they held `len` positions.
    fn reach(&self, tables: &[Vec<PageId>], len: usize, to: usize) -> Option<usize> {
        let can_go_back = !self.has_slots();
        let len = if can_go_back { len.min(to) } else { Some(len).filter(|&len| len <= to)? };
        for (group, table) in self.states.0.iter().zip(tables) {
            let has_all = match group.kind {
                GroupKind::Paged { window: None } => true,
                GroupKind::Paged { window: Some(window) } => {
                    let needed = first_needed(len, window) / PAGE_LEN..len.div_ceil(PAGE_LEN);
                    table.get(needed).is_some_and(|pages| !pages.contains(&NO_PAGE))
                }
                GroupKind::Recurrent => len == 0 || !table.is_empty(),
            };
            if !has_all {
                return None;
            }
        }
        Some(len)
    }

    /// Remembers the state as it is, if the sequence could not go back to it otherwise. Without
    /// memory for that, a later rewind goes back further.
    pub(crate) fn checkpoint(&mut self) {
        let is_new = self.checkpoints.last().map_or(0, |last| last.len) < self.len;
        if !is_new || self.states.0.iter().all(|group| is_full(group.kind)) {
            return;
        }
        if self.checkpoints.len() >= CHECKPOINTS {
            // The one that is least missed: it is the closest to the one before it.
            let mut before = 0;
            let gaps = self.checkpoints.iter().map(|checkpoint| {
                let gap = checkpoint.len - before;
                before = checkpoint.len;
                gap
            });
            if let Some((least, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) {
                self.drop_checkpoint(least);
            }
        }
        let tables = self.states.0.iter().zip(&self.tables).map(|(group, table)| match is_full(group.kind) {
            true => Ok(Vec::new()),
            false => memory::copied(table, WHAT),
        });
        let Ok(tables) = memory::try_collected(tables, WHAT) else { return };
        let checkpoint = Checkpoint { len: self.len, tables };
        if memory::reserve(&mut self.checkpoints, 1, WHAT).is_ok() {
            self.share(&checkpoint.tables);
            self.checkpoints.push(checkpoint);
        }
    }

    /// A second sequence with the same past, which shares all pages.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn fork(&self) -> Result<Self> {
        let copied = |tables: &Tables| memory::try_collected(tables.iter().map(|t| memory::copied(t, WHAT)), WHAT);
        let tables = copied(&self.tables)?;
        let checkpoints = self.checkpoints.iter().map(|c| Ok(Checkpoint { len: c.len, tables: copied(&c.tables)? }));
        let checkpoints = memory::try_collected(checkpoints, WHAT)?;
        self.share(&tables);
        checkpoints.iter().for_each(|c| self.share(&c.tables));
        Ok(Self { states: Arc::clone(&self.states), len: self.len, tables, checkpoints })
    }

    /// Adds a holder to all pages of these tables.
    fn share(&self, tables: &[Vec<PageId>]) {
        for (group, table) in self.states.0.iter().zip(tables) {
            table.iter().for_each(|&page| group.pool.share(page));
        }
    }

    fn drop_checkpoint(&mut self, i: usize) {
        let mut checkpoint = self.checkpoints.remove(i);
        for (group, table) in self.states.0.iter().zip(&mut checkpoint.tables) {
            release(group, table, 0);
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.rewind(0);
    }
}

/// Whether a group keeps all positions.
fn is_full(kind: GroupKind) -> bool {
    kind == GroupKind::Paged { window: None }
}

/// The first position that the token at position `len` sees through a window.
fn first_needed(len: usize, window: usize) -> usize {
    (len + 1).saturating_sub(window)
}

/// Gives back all pages of a table behind the first `len`.
fn release(group: &StateGroup, table: &mut Vec<PageId>, len: usize) {
    for page in table.drain(len.min(table.len())..) {
        group.pool.let_go(page);
    }
}
