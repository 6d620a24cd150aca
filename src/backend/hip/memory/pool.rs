//! The memory behind the cache pages of a GPU: one allocation for each group of layers, which grows.

use super::{DeviceBuffer, Stream};
use crate::backend::hip::device::Device;
use crate::backend::hip::driver::DevicePtr;
use crate::backend::state::{PageId, PageStore};
use crate::{Error, ErrorKind, Result, memory};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many pages of a group to allocate at first.
pub(crate) const FIRST_PAGES: usize = 16;

/// The pages of all groups.
#[derive(Clone)]
pub(crate) struct Pages(Arc<Mutex<State>>);

struct State {
    device: Arc<Device>,
    /// For copies, in the same queue as passes. It is waited for before the memory changes.
    stream: Stream,
    groups: Vec<GroupPages>,
}

/// Pages of one size. Kernels compute a page's address as its number times the size, so all pages
/// are in one allocation. A full allocation is replaced by a larger one.
pub(crate) struct GroupPages {
    memory: DeviceBuffer,
    page_bytes: usize,
    capacity: usize,
}

impl Pages {
    /// Groups with pages of these sizes.
    pub(crate) fn new(device: &Arc<Device>, passes: &Stream, page_bytes: &[usize]) -> Result<Self> {
        let group = |&page_bytes: &usize| {
            let memory = DeviceBuffer::new(device, FIRST_PAGES.saturating_mul(page_bytes), "cache pages")?;
            Ok(GroupPages { memory, page_bytes, capacity: FIRST_PAGES })
        };
        let groups = memory::try_collected(page_bytes.iter().map(group), "the groups of layers")?;
        let state = State { device: Arc::clone(device), stream: Stream::sharing(passes)?, groups };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the pages of all groups. The memory does not move meanwhile.
    pub(crate) fn with_memory<T>(&self, f: impl FnOnce(&[GroupPages]) -> T) -> T {
        f(&self.lock().groups)
    }

    /// The store for the pages of a group.
    pub(crate) fn store(&self, group: usize) -> Box<dyn PageStore> {
        Box::new(GroupStore { pages: self.clone(), group })
    }
}

impl GroupPages {
    /// Where page 0 lies.
    pub(crate) fn start(&self) -> DevicePtr {
        self.memory.start()
    }

    /// The size of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// How many pages have memory.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Moves the pages to a new allocation for `capacity` pages.
    fn grow(&mut self, device: &Arc<Device>, stream: &Stream, capacity: usize) -> Result<()> {
        let memory = DeviceBuffer::new(device, capacity.saturating_mul(self.page_bytes), "cache pages")?;
        stream.copy((&memory, 0), (&self.memory, 0), self.capacity * self.page_bytes)?;
        self.memory = memory;
        self.capacity = capacity;
        Ok(())
    }

    fn offset(&self, page: PageId) -> Result<usize> {
        let page = usize::try_from(page).ok().filter(|&page| page < self.capacity).ok_or_else(bug)?;
        Ok(page * self.page_bytes)
    }
}

fn bug() -> Error {
    Error::new(ErrorKind::Device, "a cache page that is held has no memory: a bug in wavelm")
}

/// The pages of one group.
struct GroupStore {
    pages: Pages,
    group: usize,
}

impl PageStore for GroupStore {
    fn allocate(&self, page: PageId) -> Result<()> {
        let State { device, stream, groups } = &mut *self.pages.lock();
        let group = groups.get_mut(self.group).ok_or_else(bug)?;
        let needed = page as usize + 1;
        if needed <= group.capacity {
            return Ok(());
        }
        // Doubles the capacity, so that growing costs little in total; if that does not fit, adds
        // only a few.
        let (twice, few) = (group.capacity.saturating_mul(2).max(needed), needed.saturating_add(group.capacity / 8));
        match group.grow(device, stream, twice) {
            Err(e) if e.kind() == ErrorKind::OutOfMemory => group.grow(device, stream, few),
            grown => grown,
        }
    }

    /// Released pages are reused; their memory is not given back.
    fn release(&self, _: PageId) {}

    fn copy(&self, from: PageId, to: PageId) -> Result<()> {
        let State { stream, groups, .. } = &*self.pages.lock();
        let group = groups.get(self.group).ok_or_else(bug)?;
        let (from, to) = (group.offset(from)?, group.offset(to)?);
        stream.copy((&group.memory, to), (&group.memory, from), group.page_bytes)
    }
}
