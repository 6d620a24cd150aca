//! Device memory, pinned host memory and the stream that works on them.

pub(crate) mod bandwidth;
pub(crate) mod kv;
pub(crate) mod pool;
pub(crate) mod room;
pub(crate) mod timer;

use super::device::Device;
#[cfg(target_os = "linux")]
use super::device::faults::Work;
use super::device::health::{self, Pace, guarded};
use super::driver::{DevicePtr, Driver, Handle};
use crate::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use timer::Timer;

/// The alignment of every part of a buffer that kernels get: enough for all vector loads.
pub(crate) const ALIGN: usize = 256;

/// How long to poll for work of unknown duration before sleeping. Sampling, for example, takes
/// less.
const SHORT: Duration = Duration::from_micros(100);
/// How long to poll before the expected end of work, and how much longer after it, at most.
const LONGEST_AWAKE: Duration = Duration::from_millis(1);
/// A sleep takes about this much longer than asked for.
const SHORTEST_SLEEP: Duration = Duration::from_micros(100);

/// How long to sleep during work of about this duration, and when to stop polling for its end.
fn asleep_and_awake(time: Duration) -> (Duration, Duration) {
    let awake = (time / 4).min(LONGEST_AWAKE);
    (if awake > SHORTEST_SLEEP { time - awake } else { Duration::ZERO }, time + awake + SHORT)
}

/// Memory of a device; dropping it frees the memory.
pub(crate) struct DeviceBuffer {
    device: Arc<Device>,
    start: DevicePtr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Allocates memory with any content.
    ///
    /// # Errors
    /// `OutOfMemory`, naming `what` it is for.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Self> {
        let allocated = guarded(device, "allocating memory", move |driver| driver.allocate(bytes.max(1)));
        let start = allocated.map_err(|e| match e.kind() {
            ErrorKind::OutOfMemory => {
                let free = device.driver().and_then(Driver::memory);
                let free = free.map_or(String::new(), |(free, _)| format!(" of which {} MiB are free", free >> 20));
                let wanted = (bytes >> 20).max(1);
                let text = format!("{what} of {wanted} MiB do not fit the memory of {}{free}", device.name);
                Error::new(ErrorKind::OutOfMemory, text)
            }
            _ => e,
        })?;
        Ok(Self { device: Arc::clone(device), start, bytes })
    }

    pub(crate) fn start(&self) -> DevicePtr {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let start = self.start;
        // SAFETY: the memory came from `allocate` and is freed only here. All users wait for the
        // work that they queue on it before the buffer is dropped; if such a wait failed, the
        // device is lost, and this leaks.
        end(&self.device, "freeing memory", move |driver| unsafe { driver.free(start) });
    }
}

/// Gives something back to the driver. Leaks it if a lost device may still use it.
pub(crate) fn end(device: &Arc<Device>, what: &str, call: impl FnOnce(&Driver) -> Result<()> + Send + 'static) {
    if device.health().is_lost() {
        return;
    }
    if let Err(e) = guarded(device, what, call) {
        log::warn!("{e}");
    }
}

/// A pointer or handle on its way to the thread that passes it to a call.
#[derive(Clone, Copy)]
pub(crate) struct Sent<T>(T);

// SAFETY: the pointer is only a name for the driver, whose functions accept it from any thread.
unsafe impl<T> Send for Sent<*mut T> {}

impl<T: Copy> Sent<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    pub(crate) fn get(self) -> T {
        self.0
    }
}

/// Pinned memory of the host. The device reads and writes it by itself.
pub(crate) struct HostBuffer {
    device: Arc<Device>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1);
        let allocate = move |driver: &Driver| driver.allocate_host(bytes).map(Sent);
        let start: *mut u8 = guarded(device, "allocating pinned memory", allocate)?.get().cast();
        if start.is_null() {
            return Err(Error::new(ErrorKind::OutOfMemory, "the driver has no pinned memory left"));
        }
        // SAFETY: the memory has this many bytes; from here on all of it is initialized.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { device: Arc::clone(device), start, bytes })
    }

    /// The memory. No copy from or to it may be in progress.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `start` is valid for this many initialized bytes, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let start = Sent(self.start);
        // SAFETY: the memory came from `allocate_host` and is freed only here. Code that queues a
        // copy waits for it; if such a wait failed, the device is lost, and this leaks.
        end(&self.device, "freeing pinned memory", move |driver| unsafe { driver.free_host(start.get().cast()) });
    }
}

/// A queue of work on a device, and the event that marks its end for waiting.
pub(crate) struct Stream {
    device: Arc<Device>,
    /// Other streams that [share](Self::sharing) this queue use it too.
    queue: Arc<Queue>,
    event: Handle,
    /// Times each kernel, if a profile runs.
    timer: Option<Timer>,
    #[cfg(target_os = "linux")]
    work: Work,
}

// SAFETY: the handles are only names, and any thread may use them.
unsafe impl Send for Stream {}
// SAFETY: as above; the drivers serialize calls for one stream by themselves.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self> {
        let stream = guarded(device, "creating a stream", |driver| driver.create_stream().map(Sent))?.get();
        Self::on(Arc::new(Queue { device: Arc::clone(device), stream }))
    }

    /// A stream that uses the same queue of the device, and waits for all work in it. With several
    /// queues, GPUs of AMD were seen to be busy forever.
    pub(crate) fn sharing(other: &Self) -> Result<Self> {
        Self::on(Arc::clone(&other.queue))
    }

    fn on(queue: Arc<Queue>) -> Result<Self> {
        let device = Arc::clone(&queue.device);
        let mut new = Self {
            queue,
            event: std::ptr::null_mut(),
            timer: None,
            #[cfg(target_os = "linux")]
            work: Work::default(),
            device: Arc::clone(&device),
        };
        new.event = device.driver()?.create_event(false)?;
        Ok(new)
    }

    /// Times each kernel that is queued from now on.
    ///
    /// # Errors
    /// `InvalidInput` where kernels are timed already, `Device` where the driver cannot time them.
    pub(crate) fn start_timer(&mut self) -> Result<()> {
        if self.timer.is_some() {
            return Err(Error::invalid_input("the kernels of this device are timed already"));
        }
        let timer = Timer::new(&self.device, self)?;
        self.timer = Some(timer);
        Ok(())
    }

    /// Ends the timing that [`start_timer`](Self::start_timer) began.
    pub(crate) fn take_timer(&mut self) -> Option<Timer> {
        self.timer.take()
    }

    /// The timer of kernels, if there is one now.
    pub(crate) fn timer(&self) -> Option<&Timer> {
        self.timer.as_ref()
    }

    /// The handle for queuing work, which must be waited for.
    pub(crate) fn handle(&self) -> Handle {
        #[cfg(target_os = "linux")]
        self.work.begins();
        self.queue.stream
    }

    fn has_no_work(&self) {
        #[cfg(target_os = "linux")]
        self.work.ends();
    }

    /// Queues a copy of the first `bytes` bytes of `from`.
    ///
    /// # Errors
    /// `Device` where the copy cannot be queued, or the parts do not fit.
    ///
    /// # Safety
    /// `from` is unchanged, and both stay allocated, until the stream was [waited](Self::wait) for.
    pub(crate) unsafe fn upload(
        &self,
        to: &DeviceBuffer,
        offset: usize,
        from: &HostBuffer,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.upload_range(to, offset, from, 0..bytes) }
    }

    /// Queues a copy of some bytes of `from`.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    ///
    /// # Safety
    /// These bytes are unchanged, and both buffers stay allocated, until the stream or an event
    /// after the copy was waited for.
    pub(crate) unsafe fn upload_range(
        &self,
        to: &DeviceBuffer,
        offset: usize,
        from: &HostBuffer,
        range: Range<usize>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if offset.checked_add(range.len()).is_none_or(|end| end > to.bytes) || range.end > from.bytes {
            return Err(Error::new(ErrorKind::Device, "a copy exceeds its buffer: a bug in wavelm"));
        }
        let start = from.start.wrapping_add(range.start);
        // SAFETY: both parts are inside of their buffers; the rest is the caller's promise.
        unsafe { self.device.driver()?.copy_to_device(to.start + offset as u64, start, range.len(), self.handle()) }
    }

    /// Queues filling the first `words` words of four bytes, if the driver can do that.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    ///
    /// # Safety
    /// Nobody else uses these words, and the buffer stays allocated, until the stream was
    /// [waited](Self::wait) for.
    pub(crate) unsafe fn fill(&self, to: &DeviceBuffer, word: u32, words: usize) -> Result<()> {
        if words.checked_mul(4).is_none_or(|bytes| bytes > to.bytes) {
            return Err(Error::new(ErrorKind::Device, "more than a buffer is filled: a bug in wavelm"));
        }
        match self.device.driver()?.fill() {
            // SAFETY: the buffer has this many words; the rest is the caller's promise.
            Some(fill) if words > 0 => unsafe { fill.words(to.start, word, words, self.handle()) },
            _ => Ok(()),
        }
    }

    /// Copies to the host and waits for the copy.
    pub(crate) fn download(&self, from: &DeviceBuffer, offset: usize, to: &mut HostBuffer, bytes: usize) -> Result<()> {
        // SAFETY: the copy is waited for before anybody can use either buffer.
        let queued = unsafe { self.queue_download(from, offset, to, bytes) };
        queued.and(self.wait())
    }

    /// Queues a copy to the host.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    ///
    /// # Safety
    /// Nobody uses the host's memory, and both stay allocated, until the stream was [waited](Self::wait) for.
    pub(crate) unsafe fn queue_download(
        &self,
        from: &DeviceBuffer,
        offset: usize,
        to: &mut HostBuffer,
        bytes: usize,
    ) -> Result<()> {
        if offset.checked_add(bytes).is_none_or(|end| end > from.bytes) || bytes > to.bytes {
            return Err(Error::new(ErrorKind::Device, "a copy exceeds its buffer: a bug in wavelm"));
        }
        // SAFETY: both parts are inside of their buffers; the rest is the caller's promise.
        unsafe { self.device.driver()?.copy_to_host(to.start, from.start + offset as u64, bytes, self.handle()) }
    }

    /// Copies between parts of device memory and waits for the copy.
    pub(crate) fn copy(&self, to: (&DeviceBuffer, usize), from: (&DeviceBuffer, usize), bytes: usize) -> Result<()> {
        let outside =
            |(buffer, offset): (&DeviceBuffer, usize)| offset.checked_add(bytes).is_none_or(|end| end > buffer.bytes);
        if outside(to) || outside(from) {
            return Err(Error::new(ErrorKind::Device, "a copy exceeds its buffer: a bug in wavelm"));
        }
        let (to, from) = (to.0.start + to.1 as u64, from.0.start + from.1 as u64);
        // SAFETY: both parts are inside of their buffers, which nobody frees before the wait is over.
        let queued = unsafe { self.device.driver()?.copy_on_device(to, from, bytes, self.handle()) };
        queued.and(self.wait())
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// `Device`, where any of the work failed, or takes so long that the device is lost.
    pub(crate) fn wait(&self) -> Result<()> {
        self.wait_about(Duration::ZERO, Duration::ZERO)
    }

    /// Like [`wait`](Self::wait), for work of about this `time`. It ends with a little polling, as
    /// waits of unknown duration do. `slowest` is how long the work may reasonably take.
    ///
    /// A driver wakes a sleeping thread 50 microseconds late or more, which is much of the time for
    /// a token. So this sleeps for most of the time and polls for the rest; other threads may have
    /// the processor meanwhile.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub(crate) fn wait_about(&self, time: Duration, slowest: Duration) -> Result<()> {
        let driver = self.device.driver()?;
        let expected = time.max(slowest);
        let pace = match &self.timer {
            Some(timer) => {
                timer.release();
                Pace { expected, ..Pace::default() }
            }
            None => {
                let (asleep, awake_until) = asleep_and_awake(time);
                Pace { asleep, awake_until, expected }
            }
        };
        // SAFETY: stream and event exist as long as `self`.
        let waited = unsafe { driver.record_event(self.event, self.queue.stream) }.and_then(|()| {
            // SAFETY: as above.
            health::wait(&self.device, pace, |driver| unsafe { driver.query_event(self.event) })
        });
        let waited = waited.inspect_err(|_| {
            // The queued work may still run, with buffers that the caller drops after an error.
            if !self.device.health().is_lost() {
                let stream = Sent(self.queue.stream);
                // SAFETY: the stream is destroyed only after this returns, or never, if the device
                // is lost.
                let wait = move |driver: &Driver| unsafe { driver.synchronize_stream(stream.get()) };
                guarded(&self.device, "waiting after an error", wait).ok();
            }
        });
        self.has_no_work();
        match &self.timer {
            Some(timer) => timer.collect(waited),
            None => waited,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let (stream, event) = (Sent(self.queue.stream), Sent(self.event));
        // SAFETY: the event came from the driver and is destroyed only here, after the work is
        // done; the queue exists.
        end(&self.device, "ending work", move |driver| unsafe {
            let waited = driver.synchronize_stream(stream.get());
            let event = if event.get().is_null() { Ok(()) } else { driver.destroy_event(event.get()) };
            waited.and(event)
        });
    }
}

/// A stream of the driver.
struct Queue {
    device: Arc<Device>,
    stream: Handle,
}

// SAFETY: the handle is only a name, and any thread may use it.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        let stream = Sent(self.stream);
        // SAFETY: the stream came from the driver and is destroyed only here; each user waited for
        // its own work.
        end(&self.device, "ending a stream", move |driver| unsafe { driver.destroy_stream(stream.get()) });
    }
}

/// A place in a stream, for waiting.
pub(crate) struct Event {
    device: Arc<Device>,
    event: Handle,
}

// SAFETY: the handle is only a name, and any thread may use it.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self> {
        Ok(Self { device: Arc::clone(device), event: device.driver()?.create_event(false)? })
    }

    /// An event that records a time.
    pub(crate) fn timed(device: &Arc<Device>) -> Result<Self> {
        Ok(Self { device: Arc::clone(device), event: device.driver()?.create_event(true)? })
    }

    /// The time from `earlier` to this one. Both are timed, recorded and waited for.
    pub(crate) fn since(&self, earlier: &Event) -> Result<Duration> {
        // SAFETY: both exist.
        let milliseconds = unsafe { self.device.driver()?.timing()?.elapsed(earlier.event, self.event) }?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }

    /// Moves the event to the end of all work that is queued now.
    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both exist.
        unsafe { self.device.driver()?.record_event(self.event, stream.queue.stream) }
    }

    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// As [`Stream::wait`].
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: the event exists.
        health::wait(&self.device, Pace::default(), |driver| unsafe { driver.query_event(self.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let event = Sent(self.event);
        // SAFETY: the event came from the driver and is destroyed only here.
        end(&self.device, "ending an event", move |driver| unsafe { driver.destroy_event(event.get()) });
    }
}

/// Cuts a buffer into aligned parts: first all parts are planned, then the buffer is allocated.
#[derive(Default)]
pub(crate) struct Layout {
    bytes: usize,
}

impl Layout {
    /// The offset of a new part.
    ///
    /// # Errors
    /// `OutOfMemory` where the sum would overflow.
    pub(crate) fn part(&mut self, bytes: usize) -> Result<usize> {
        let offset = self.bytes;
        let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGN));
        self.bytes =
            end.ok_or_else(|| Error::new(ErrorKind::OutOfMemory, "buffers would not fit the address space"))?;
        Ok(offset)
    }

    /// Bytes of all parts.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_known_time_is_slept_through() {
        let plan = |micros| {
            let (asleep, end) = asleep_and_awake(Duration::from_micros(micros));
            (asleep.as_micros(), end.as_micros())
        };
        assert_eq!(plan(0), (0, 100));
        assert_eq!(plan(400), (0, 600));
        assert_eq!(plan(2_000), (1_500, 2_600));
        assert_eq!(plan(100_000), (99_000, 101_100));
    }

    #[test]
    fn parts_are_aligned_and_an_overflow_is_an_error() {
        let mut layout = Layout::default();
        assert_eq!(layout.part(1).unwrap(), 0);
        assert_eq!(layout.part(257).unwrap(), 256);
        assert_eq!(layout.part(0).unwrap(), 768);
        assert_eq!(layout.bytes(), 768);
        assert_eq!(layout.part(usize::MAX).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
}
