//! The memory behind the cache pages of a GPU: one allocation, which grows.

use super::{DeviceBuffer, Stream};
use crate::backend::hip::device::Device;
use crate::backend::kv::{PageId, PageStore};
use crate::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many pages to allocate at first.
pub(crate) const FIRST_PAGES: usize = 16;

/// Pages of one size. Kernels compute a page's address as its number times the size, so all pages
/// are in one allocation. A full allocation is replaced by a larger one.
#[derive(Clone)]
pub(crate) struct Pages(Arc<Mutex<State>>);

struct State {
    device: Arc<Device>,
    /// For copies, in the same queue as passes. It is waited for before the memory changes.
    stream: Stream,
    memory: DeviceBuffer,
    page_bytes: usize,
    capacity: usize,
}

impl Pages {
    pub(crate) fn new(device: &Arc<Device>, passes: &Stream, page_bytes: usize) -> Result<Self> {
        let memory = DeviceBuffer::new(device, FIRST_PAGES.saturating_mul(page_bytes), "cache pages")?;
        let stream = Stream::sharing(passes)?;
        let state = State { device: Arc::clone(device), stream, memory, page_bytes, capacity: FIRST_PAGES };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the memory of all pages. The memory does not move meanwhile.
    pub(crate) fn with_memory<T>(&self, f: impl FnOnce(&DeviceBuffer) -> T) -> T {
        f(&self.lock().memory)
    }
}

impl State {
    /// Moves the pages to a new allocation for `capacity` pages.
    fn grow(&mut self, capacity: usize) -> Result<()> {
        let memory = DeviceBuffer::new(&self.device, capacity.saturating_mul(self.page_bytes), "cache pages")?;
        self.stream.copy((&memory, 0), (&self.memory, 0), self.capacity * self.page_bytes)?;
        self.memory = memory;
        self.capacity = capacity;
        Ok(())
    }

    fn offset(&self, page: PageId) -> Result<usize> {
        let bug = || Error::new(ErrorKind::Device, "a cache page that is held has no memory: a bug in wavelm");
        let page = usize::try_from(page).ok().filter(|&page| page < self.capacity).ok_or_else(bug)?;
        Ok(page * self.page_bytes)
    }
}

impl PageStore for Pages {
    fn allocate(&self, page: PageId) -> Result<()> {
        let mut state = self.lock();
        let needed = page as usize + 1;
        if needed <= state.capacity {
            return Ok(());
        }
        // Doubles the capacity, so that growing costs little in total; if that does not fit, adds
        // only a few.
        let (twice, few) = (state.capacity.saturating_mul(2).max(needed), needed.saturating_add(state.capacity / 8));
        match state.grow(twice) {
            Err(e) if e.kind() == ErrorKind::OutOfMemory => state.grow(few),
            grown => grown,
        }
    }

    /// Released pages are reused; their memory is not given back.
    fn release(&self, _: PageId) {}

    fn copy(&self, from: PageId, to: PageId) -> Result<()> {
        let state = self.lock();
        let (from, to) = (state.offset(from)?, state.offset(to)?);
        state.stream.copy((&state.memory, to), (&state.memory, from), state.page_bytes)
    }
}
