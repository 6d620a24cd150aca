//! The memory behind the cache pages of the CPU.

use crate::backend::kv::{PageId, PageStore};
use crate::{Error, ErrorKind, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pages of one size, each allocated by itself so that a closed session gives its memory back.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    layout: Layout,
    pages: Arc<Mutex<Vec<Option<Page>>>>,
}

/// An allocation of [`Pages::layout`].
#[derive(Debug)]
struct Page {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a page is plain memory that only its owner frees; who may read and write it is the business of `kv`: one
// sequence writes to a page that nobody else holds, and shared pages are only read.
unsafe impl Send for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `memory` came from `alloc_zeroed` with this layout and is freed only here.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

impl Pages {
    /// Pages of `bytes` bytes, at least 1, aligned for every vector load.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let layout = Layout::from_size_align(bytes.max(1), 64)
            .map_err(|_| Error::new(ErrorKind::OutOfMemory, format!("a cache page of {bytes} bytes is too large")))?;
        Ok(Self { layout, pages: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Page>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of `pages`; `None` where one is not allocated. They stay valid while the sequence holds them.
    pub(crate) fn addresses(&self, pages: &[PageId]) -> Option<Vec<*mut u8>> {
        let all = self.lock();
        pages.iter().map(|&p| Some(all.get(p as usize)?.as_ref()?.memory.as_ptr())).collect()
    }
}

impl PageStore for Pages {
    fn allocate(&self, page: PageId) -> Result<()> {
        // SAFETY: the layout has a size above 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(self.layout) }).ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "no memory for a cache page of {} bytes; use shorter contexts or fewer sessions",
                    self.layout.size()
                ),
            )
        })?;
        let mut all = self.lock();
        let slot = page as usize;
        if all.len() <= slot {
            all.resize_with(slot + 1, || None);
        }
        if let Some(place) = all.get_mut(slot) {
            *place = Some(Page { memory, layout: self.layout });
        }
        Ok(())
    }

    fn release(&self, page: PageId) {
        let freed = self.lock().get_mut(page as usize).and_then(Option::take);
        drop(freed);
    }

    fn copy(&self, from: PageId, to: PageId) -> Result<()> {
        let addresses = self.addresses(&[from, to]);
        let Some([from, to]) = addresses.as_deref() else {
            return Err(Error::new(ErrorKind::Device, "a cache page that is held has no memory: a bug in wavelm"));
        };
        // SAFETY: both pages are allocated with this size, are distinct (one is held, the other was just acquired),
        // and stay so: the caller holds both. Nobody writes to `from`, which is shared, nor knows `to`.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), *to, self.layout.size()) }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_copied_and_given_back() {
        let pages = Pages::new(100).unwrap();
        pages.allocate(3).unwrap();
        pages.allocate(1).unwrap();
        assert!(pages.addresses(&[0]).is_none());
        let from = pages.addresses(&[3]).unwrap()[0];
        // SAFETY: the page has 100 bytes and nobody else uses it.
        unsafe { from.write_bytes(7, 100) };
        pages.copy(3, 1).unwrap();
        let to = pages.addresses(&[1]).unwrap()[0];
        // SAFETY: as above.
        assert_eq!(unsafe { to.add(99).read() }, 7);
        pages.release(3);
        assert!(pages.addresses(&[3]).is_none());
        assert!(pages.copy(3, 1).is_err());
    }

    #[test]
    fn an_impossible_page_is_an_error() {
        assert_eq!(Pages::new(usize::MAX).unwrap_err().kind(), ErrorKind::OutOfMemory);
        let huge = Pages::new(1 << 50).unwrap();
        assert_eq!(huge.allocate(0).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
}
