//! The paged cache of keys and values: which sequence holds which page. The backend decides where
//! the bytes are.
//!
//! A page holds [`PAGE_LEN`] consecutive positions of one sequence for all layers. A sequence has a table of pages;
//! forking shares them, and writing to a shared page copies it first.

use crate::{Error, ErrorKind, Result, memory};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Positions in a page.
pub(crate) const PAGE_LEN: usize = 64;

/// What the memory is for, in texts of errors.
const WHAT: &str = "the page tables of the cache";

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

/// All pages of a model's sequences on one device.
pub(crate) struct KvPool {
    store: Box<dyn PageStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many sequences hold each page; 0 is free.
    holders: Vec<u32>,
    /// It has capacity for all pages, so that giving one back needs no memory.
    free: Vec<PageId>,
}

impl KvPool {
    pub(crate) fn new(store: Box<dyn PageStore>) -> Arc<Self> {
        Arc::new(Self { store, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acquire(&self) -> Result<PageId> {
        let page = {
            let mut state = self.state();
            match state.free.pop() {
                Some(page) => page,
                None => {
                    let page = PageId::try_from(state.holders.len())
                        .map_err(|_| Error::new(ErrorKind::OutOfMemory, "the cache has no page numbers left"))?;
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

    fn share(&self, page: PageId) {
        if let Some(n) = self.state().holders.get_mut(page as usize) {
            *n += 1;
        }
    }

    fn is_shared(&self, page: PageId) -> bool {
        self.state().holders.get(page as usize).is_some_and(|&n| n > 1)
    }

    fn let_go(&self, page: PageId) {
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

    /// Pages that are held by at least one sequence.
    #[cfg(test)]
    pub(crate) fn pages_in_use(&self) -> usize {
        self.state().holders.iter().filter(|&&n| n > 0).count()
    }
}

/// The page table of one sequence.
pub(crate) struct KvSequence {
    pool: Arc<KvPool>,
    pages: Vec<PageId>,
}

impl KvSequence {
    pub(crate) fn new(pool: &Arc<KvPool>) -> Self {
        Self { pool: Arc::clone(pool), pages: Vec::new() }
    }

    /// Makes the positions `from..to` writable: adds pages, and copies shared ones.
    ///
    /// # Errors
    /// `OutOfMemory`; the sequence is then unchanged, or has a few more pages.
    pub(crate) fn prepare(&mut self, from: usize, to: usize) -> Result<()> {
        while self.pages.len() * PAGE_LEN < to {
            memory::reserve(&mut self.pages, 1, WHAT)?;
            self.pages.push(self.pool.acquire()?);
        }
        let touched = from / PAGE_LEN..to.div_ceil(PAGE_LEN);
        for slot in self.pages.get_mut(touched).into_iter().flatten() {
            if self.pool.is_shared(*slot) {
                let own = self.pool.acquire()?;
                if let Err(e) = self.pool.store.copy(*slot, own) {
                    self.pool.let_go(own);
                    return Err(e);
                }
                self.pool.let_go(std::mem::replace(slot, own));
            }
        }
        Ok(())
    }

    /// Gives back the pages that hold none of the first `len` positions.
    pub(crate) fn truncate(&mut self, len: usize) {
        for page in self.pages.drain(len.div_ceil(PAGE_LEN).min(self.pages.len())..) {
            self.pool.let_go(page);
        }
    }

    /// A sequence that shares the first `len` positions.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn fork(&self, len: usize) -> Result<Self> {
        let shared = self.pages.get(..len.div_ceil(PAGE_LEN)).unwrap_or(&self.pages);
        let pages = memory::copied(shared, WHAT)?;
        pages.iter().for_each(|&p| self.pool.share(p));
        Ok(Self { pool: Arc::clone(&self.pool), pages })
    }

    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }
}

impl Drop for KvSequence {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Remembers a value for each page, and fails after a number of allocations.
    #[derive(Default)]
    struct Fake {
        pages: Arc<Mutex<HashMap<PageId, u32>>>,
        limit: usize,
    }

    impl PageStore for Fake {
        fn allocate(&self, page: PageId) -> Result<()> {
            let mut pages = self.pages.lock().unwrap();
            if pages.len() >= self.limit {
                return Err(Error::new(ErrorKind::OutOfMemory, "full"));
            }
            assert!(pages.insert(page, page).is_none(), "page {page} was allocated twice");
            Ok(())
        }
        fn release(&self, page: PageId) {
            assert!(self.pages.lock().unwrap().remove(&page).is_some(), "page {page} was not allocated");
        }
        fn copy(&self, from: PageId, to: PageId) -> Result<()> {
            let mut pages = self.pages.lock().unwrap();
            let value = pages[&from];
            pages.insert(to, value);
            Ok(())
        }
    }

    #[test]
    fn forks_share_until_one_writes() {
        let fake = Fake { limit: 100, ..Fake::default() };
        let memory = Arc::clone(&fake.pages);
        let pool = KvPool::new(Box::new(fake));
        let mut a = KvSequence::new(&pool);
        a.prepare(0, 3 * PAGE_LEN).unwrap();
        let mut b = a.fork(2 * PAGE_LEN + 1).unwrap();
        assert_eq!(a.pages(), b.pages());
        assert_eq!(pool.pages_in_use(), 3);
        b.prepare(2 * PAGE_LEN + 1, 2 * PAGE_LEN + 2).unwrap();
        assert_eq!(a.pages()[..2], b.pages()[..2]);
        assert_ne!(a.pages()[2], b.pages()[2]);
        assert_eq!(memory.lock().unwrap()[&b.pages()[2]], a.pages()[2], "the page was copied");
        drop(a);
        assert_eq!(pool.pages_in_use(), 3);
        b.truncate(PAGE_LEN + 1);
        assert_eq!(pool.pages_in_use(), 2);
        drop(b);
        assert!(memory.lock().unwrap().is_empty());
    }

    #[test]
    fn a_full_pool_is_an_error_that_loses_nothing() {
        let pool = KvPool::new(Box::new(Fake { limit: 2, ..Fake::default() }));
        let mut a = KvSequence::new(&pool);
        assert_eq!(a.prepare(0, 3 * PAGE_LEN).unwrap_err().kind(), ErrorKind::OutOfMemory);
        let mut b = a.fork(2 * PAGE_LEN).unwrap();
        assert_eq!(b.prepare(0, 1).unwrap_err().kind(), ErrorKind::OutOfMemory);
        drop(a);
        b.prepare(0, 1).unwrap();
        drop(b);
        assert_eq!(pool.pages_in_use(), 0);
    }
}
