//! How fast a device copies within its memory: what the bytes that kernels read in a second are compared with.

use super::device;
use super::health::PATIENCE;
use super::memory::{DeviceBuffer, Event, Stream};
use crate::{Error, ErrorKind, Result};

/// Bytes of a copy, where a quarter of the free memory is as much, and the fewest that say something: less fits caches.
const MOST: u64 = 1 << 30;
const LEAST: u64 = 32 << 20;

/// Copies that are timed together, so that queuing them takes no part of the time, and how often.
const COPIES: usize = 4;
const ROUNDS: usize = 7;

/// Bytes that are read and written in a second by copies within the memory of a GPU: the median of some rounds.
///
/// # Errors
/// `OutOfMemory` where too little memory is free for copies that caches do not help, and `Device`.
pub(crate) fn copy_bandwidth(gpu: usize) -> Result<f64> {
    let device = device::open(gpu, PATIENCE)?;
    let driver = device.driver()?;
    driver.timing()?;
    let free = driver.free_memory()?;
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
    // The last, so that it is waited for before the others are dropped.
    let stream = Stream::new(&device)?;
    let round = || -> Result<f64> {
        began.record(&stream)?;
        for _ in 0..COPIES {
            // SAFETY: both buffers have as many bytes, and are freed after the stream was waited for.
            unsafe { driver.copy_on_device(to.start(), from.start(), bytes, stream.handle()) }?;
        }
        ended.record(&stream)?;
        stream.wait()?;
        Ok(ended.since(&began)?.as_secs_f64())
    };
    // The first is to warm up: memory that was never written may not be there yet.
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
