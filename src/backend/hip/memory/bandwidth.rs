//! Measures how fast a device copies within its memory, to compare kernels' reading speed with.

use super::{DeviceBuffer, Event, Stream};
use crate::backend::hip::device::health::PATIENCE;
use crate::backend::hip::device::{self, Device};
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a copy: at most, where a quarter of the free memory allows it, and at least. Smaller
/// copies fit in caches and tell nothing.
const MOST: u64 = 1 << 30;
const LEAST: u64 = 32 << 20;

/// Copies that are timed together, so that queuing them does not count, and the number of rounds.
const COPIES: usize = 4;
const ROUNDS: usize = 7;

/// Bytes to read when checking whether memory is slow, and the smallest chunk worth checking.
const SAMPLE: usize = 32 << 20;
const SMALL: usize = 16 << 20;
/// How much slower counts as slow: the bus to the system's memory is more than ten times slower
/// than a card's own memory.
const SLOW: f64 = 4.0;

/// Checks whether weights lie in the device's own memory. Some systems silently give a full device
/// the system's memory, which is ten times slower or more.
pub(crate) struct Spill {
    device: Arc<Device>,
    /// Memory that is certainly the device's own.
    from: DeviceBuffer,
    to: DeviceBuffer,
}

impl Spill {
    /// Make this before the weights get memory. `None` where there is nothing to check: all memory
    /// is the system's, the chunks of these sizes are small, or there is no room.
    pub(crate) fn new(device: &Arc<Device>, chunks: &[usize]) -> Option<Self> {
        let bytes = SAMPLE.min(chunks.iter().copied().max()?);
        if device.integrated || bytes < SMALL {
            return None;
        }
        let buffer = || DeviceBuffer::new(device, bytes, "a copy to measure");
        let (from, to) = (buffer().ok()?, buffer().ok()?);
        Some(Self { device: Arc::clone(device), from, to })
    }

    /// Compares copies from the ends of the chunks with copies from the device's own memory.
    ///
    /// # Errors
    /// `OutOfMemory`, where a chunk is slow and `refuses` is set; errors of the driver.
    pub(crate) fn check(self, stream: &Stream, chunks: &[DeviceBuffer], refuses: bool) -> Result<()> {
        let own = self.time(stream, &self.from, self.to.bytes())?;
        for chunk in chunks.iter().filter(|chunk| chunk.bytes() >= SMALL) {
            let bytes = chunk.bytes().min(self.to.bytes());
            let slower = self.time(stream, chunk, bytes)? / own * (self.to.bytes() as f64 / bytes as f64);
            if slower < SLOW {
                continue;
            }
            let name = &self.device.name;
            let text = format!(
                "{name} reads weights {slower:.0} times slower than other memory: it is full, and uses the system's"
            );
            if refuses {
                return Err(Error::new(ErrorKind::OutOfMemory, text));
            }
            log::warn!("{text}");
            break;
        }
        Ok(())
    }

    /// Seconds to copy the last bytes of a buffer: the shortest of some tries, as others may use
    /// the device.
    fn time(&self, stream: &Stream, from: &DeviceBuffer, bytes: usize) -> Result<f64> {
        const TRIES: usize = 4;
        let mut least = f64::INFINITY;
        for _ in 0..TRIES {
            let began = Instant::now();
            stream.copy((&self.to, 0), (from, from.bytes() - bytes), bytes)?;
            least = least.min(began.elapsed().as_secs_f64());
        }
        Ok(least.max(1e-9))
    }
}

/// Bytes read and written per second by copies within the memory of a GPU: the median of some
/// rounds.
///
/// # Errors
/// `OutOfMemory` where too little memory is free for copies that exceed caches, and `Device`.
pub(crate) fn copy_bandwidth(gpu: usize) -> Result<f64> {
    let device = device::open(gpu, PATIENCE)?;
    let driver = device.driver()?;
    driver.timing()?;
    let (free, _) = driver.memory()?;
    let wanted = (free / 4).min(MOST);
    if wanted < LEAST {
        return Err(Error::new(
            ErrorKind::OutOfMemory,
            format!("{} MiB of memory are free on {}, too little to measure copies", free >> 20, device.name),
        ));
    }
    let bytes = usize::try_from(wanted >> 20 << 20).unwrap_or(LEAST as usize);
    let buffer = || DeviceBuffer::new(&device, bytes, "a copy to measure");
    let (from, to) = (buffer()?, buffer()?);
    let (began, ended) = (Event::timed(&device)?, Event::timed(&device)?);
    // The stream comes last, so that its work is waited for before the buffers are dropped.
    let stream = Stream::new(&device)?;
    let round = || -> Result<f64> {
        began.record(&stream)?;
        for _ in 0..COPIES {
            // SAFETY: both buffers have at least `bytes` bytes, and are freed only after the stream
            // was waited for.
            unsafe { driver.copy_on_device(to.start(), from.start(), bytes, stream.handle()) }?;
        }
        ended.record(&stream)?;
        stream.wait()?;
        Ok(ended.since(&began)?.as_secs_f64())
    };
    // The first round warms up: memory that was never written may not exist yet.
    round()?;
    let mut seconds = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(ROUNDS / 2).copied().unwrap_or_default();
    let bandwidth = (2 * COPIES) as f64 * bytes as f64 / median;
    if !bandwidth.is_finite() {
        return Err(Error::new(ErrorKind::Device, format!("{} says that copies take no time", device.name)));
    }
    Ok(bandwidth)
}
