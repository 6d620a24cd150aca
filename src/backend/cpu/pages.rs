//! The memory of the cache pages on the CPU.

use crate::backend::state::{NO_PAGE, PageId, PageStore};
use crate::{Error, ErrorKind, Result, memory};
use memmap2::MmapMut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The size of large pages of memory, where they exist.
const LARGE: usize = 2 << 20;

/// Cache pages of one size. Each is a mapping of its own: a closed session returns its memory to
/// the system at once, where an allocator would keep it.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    bytes: usize,
    pages: Arc<Mutex<Vec<Option<Page>>>>,
}

/// A mapping with room for [`Pages::bytes`] from `start` on.
#[derive(Debug)]
struct Page {
    map: MmapMut,
    start: usize,
}

impl Page {
    /// A page of zeros. A layer of the model reads some hundred kilobytes of each cache page. With
    /// small pages of memory, that needs an address translation every few kilobytes, and by the
    /// next token caches have forgotten it. So this asks for large pages.
    fn new(bytes: usize) -> Result<Self> {
        const WHAT: &str = "a cache page";
        if bytes < LARGE {
            return Ok(Self { map: memory::mapped(bytes, WHAT)?, start: 0 });
        }
        // Maps more, to start at a boundary of large pages. The rest is never touched.
        let map = memory::mapped(bytes.saturating_add(LARGE), WHAT)?;
        let start = map.as_ptr().align_offset(LARGE).min(LARGE);
        // Failing does no harm: the system may have no large pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes);
        Ok(Self { map, start })
    }

    fn address(&mut self) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(self.start)
    }
}

impl Pages {
    /// Pages of `bytes` bytes, at least 1, aligned for every vector load.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        if bytes > isize::MAX as usize - LARGE {
            return Err(Error::new(ErrorKind::OutOfMemory, format!("a cache page of {bytes} bytes is too large")));
        }
        Ok(Self { bytes: bytes.max(1), pages: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Page>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of `pages`, null for [`NO_PAGE`]. They stay valid while the sequence holds them.
    ///
    /// # Errors
    /// `OutOfMemory`; `Device` if a page is not allocated.
    pub(crate) fn addresses(&self, pages: &[PageId]) -> Result<Vec<*mut u8>> {
        let mut all = self.lock();
        let bug = || Error::new(ErrorKind::Device, "a cache page that is held has no memory: a bug in wavelm");
        let mut address = |&page: &PageId| match page {
            NO_PAGE => Ok(std::ptr::null_mut()),
            page => all.get_mut(page as usize).and_then(Option::as_mut).map(Page::address).ok_or_else(bug),
        };
        memory::try_collected(pages.iter().map(&mut address), "the addresses of cache pages")
    }
}

impl PageStore for Pages {
    fn allocate(&self, page: PageId) -> Result<()> {
        let memory = Page::new(self.bytes).map_err(|e| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("no memory for a cache page of {} bytes; use shorter contexts or fewer sessions", self.bytes),
            )
            .with_source(e)
        })?;
        let mut all = self.lock();
        let slot = page as usize;
        if all.len() <= slot {
            let more = slot + 1 - all.len();
            memory::reserve(&mut all, more, "the table of cache pages")?;
            all.resize_with(slot + 1, || None);
        }
        if let Some(place) = all.get_mut(slot) {
            *place = Some(memory);
        }
        Ok(())
    }

    fn release(&self, page: PageId) {
        let freed = self.lock().get_mut(page as usize).and_then(Option::take);
        drop(freed);
    }

    fn copy(&self, from: PageId, to: PageId) -> Result<()> {
        let addresses = self.addresses(&[from, to])?;
        let [from, to] = *addresses.as_slice() else { return Ok(()) };
        // SAFETY: both pages are allocated with this size, are distinct (one is held, the other was
        // just acquired), and stay so, as the caller holds both. Nobody writes to `from`, which is
        // shared, and nobody knows `to`.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), to, self.bytes) }
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
        assert!(pages.addresses(&[0]).is_err());
        assert!(pages.addresses(&[NO_PAGE]).unwrap()[0].is_null());
        let from = pages.addresses(&[3]).unwrap()[0];
        // SAFETY: the page has 100 bytes, and nobody else uses it.
        unsafe { from.write_bytes(7, 100) };
        pages.copy(3, 1).unwrap();
        let to = pages.addresses(&[1]).unwrap()[0];
        // SAFETY: as above.
        assert_eq!(unsafe { to.add(99).read() }, 7);
        pages.release(3);
        assert!(pages.addresses(&[3]).is_err());
        assert!(pages.copy(3, 1).is_err());
    }

    #[test]
    fn large_pages_begin_where_memory_has_them() {
        for bytes in [LARGE - 1, LARGE, LARGE * 3 + 64] {
            let pages = Pages::new(bytes).unwrap();
            pages.allocate(0).unwrap();
            let start = pages.addresses(&[0]).unwrap()[0];
            assert!(start.addr().is_multiple_of(if bytes < LARGE { 64 } else { LARGE }));
            // SAFETY: the page has `bytes` bytes, and nobody else uses it.
            unsafe {
                assert_eq!((start.read(), start.add(bytes - 1).read()), (0, 0));
                start.add(bytes - 1).write(1);
            }
        }
    }

    #[test]
    fn an_impossible_page_is_an_error() {
        assert_eq!(Pages::new(usize::MAX).unwrap_err().kind(), ErrorKind::OutOfMemory);
        let huge = Pages::new(1 << 50).unwrap();
        assert_eq!(huge.allocate(0).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
}
