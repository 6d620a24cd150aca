//! Which pages of a group are in use, and by how many holders. The backend decides where their bytes
//! are.

use super::{NO_PAGE, WHAT};
use crate::{Error, ErrorKind, Result, memory};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The number of a page in its pool.
pub(crate) type PageId = u32;

/// The memory behind the pages.
pub(crate) trait PageStore: Send + Sync {
    /// Provides memory for the page.
    fn allocate(&self, page: PageId) -> Result<()>;
    /// Gives the memory of the page back.
    fn release(&self, page: PageId);
    /// Copies a whole page.
    fn copy(&self, from: PageId, to: PageId) -> Result<()>;
}

/// The pages of a group, for all sequences on one device.
pub(crate) struct PagePool {
    store: Box<dyn PageStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many sequences and checkpoints hold each page; 0 is free.
    holders: Vec<u32>,
    /// It has capacity for all pages, so that giving one back needs no memory.
    free: Vec<PageId>,
}

impl PagePool {
    pub(super) fn new(store: Box<dyn PageStore>) -> Self {
        Self { store, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page that nobody else holds. Its content is undefined.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn acquire(&self) -> Result<PageId> {
        let page = {
            let mut state = self.state();
            match state.free.pop() {
                Some(page) => page,
                None => {
                    let page = PageId::try_from(state.holders.len()).ok().filter(|&page| page != NO_PAGE);
                    let none = || Error::new(ErrorKind::OutOfMemory, "the cache has no page numbers left");
                    let page = page.ok_or_else(none)?;
                    let pages = state.holders.len() + 1;
                    let free = pages - state.free.len();
                    memory::reserve(&mut state.free, free, WHAT)?;
                    memory::push(&mut state.holders, 0, WHAT)?;
                    page
                }
            }
        };
        let allocated = self.store.allocate(page);
        let mut state = self.state();
        match allocated {
            Ok(()) => {
                if let Some(n) = state.holders.get_mut(page as usize) {
                    *n = 1;
                }
                Ok(page)
            }
            Err(e) => {
                state.free.push(page);
                Err(e)
            }
        }
    }

    /// Adds a holder of the page.
    pub(super) fn share(&self, page: PageId) {
        if let Some(n) = self.state().holders.get_mut(page as usize) {
            *n += 1;
        }
    }

    /// Makes `page` one that nobody else holds, by copying it if it is shared.
    ///
    /// # Errors
    /// `OutOfMemory`, and errors of the device. The page is then as before.
    pub(super) fn make_own(&self, page: &mut PageId) -> Result<()> {
        if self.is_shared(*page) {
            let own = self.acquire()?;
            if let Err(e) = self.store.copy(*page, own) {
                self.let_go(own);
                return Err(e);
            }
            self.let_go(std::mem::replace(page, own));
        }
        Ok(())
    }

    fn is_shared(&self, page: PageId) -> bool {
        self.state().holders.get(page as usize).is_some_and(|&n| n > 1)
    }

    /// Removes a holder of the page; the last one's page is free.
    pub(super) fn let_go(&self, page: PageId) {
        let last = match self.state().holders.get_mut(page as usize) {
            Some(n) => {
                *n = n.saturating_sub(1);
                *n == 0
            }
            None => false,
        };
        if last {
            // Only this thread knows the page now: it is in no table, and not yet free.
            self.store.release(page);
            self.state().free.push(page);
        }
    }

    /// Pages that have a holder.
    #[cfg(test)]
    pub(super) fn pages_in_use(&self) -> usize {
        self.state().holders.iter().filter(|&&n| n > 0).count()
    }
}
