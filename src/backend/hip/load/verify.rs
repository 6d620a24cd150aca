//! Checks that the weights on a device are what was sent: keeps a sum of each part, and compares it
//! with the sum of the bytes read back.

use crate::backend::hip::device::Device;
use crate::backend::hip::memory::{DeviceBuffer, HostBuffer, Stream};
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;

/// Check a place after this many passes. The cost is then invisible in their time.
const EVERY: usize = 64;
/// The most bytes of a place.
pub(crate) const LENGTH: usize = 64 << 10;
/// How many places to keep, unless all weights are to be verified.
pub(crate) const FEW: usize = 64;

/// A place among the weights, and the sum of its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) chunk: usize,
    pub(crate) at: usize,
    pub(crate) length: usize,
    pub(crate) sum: u64,
}

/// A sum that changes with every single bit. Four independent parts make it fast.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(PRIME).rotate_left(29);
    let mut sums = [1, 2, 3, 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum = step(*sum, u64::from_le_bytes(*word));
        }
    }
    let all = sums.into_iter().fold(bytes.len() as u64, step);
    rest.iter().fold(all, |sum, &byte| step(sum, u64::from(byte)))
}

/// Compares a place with its current content.
fn compare(
    device: &Device,
    stream: &Stream,
    weights: &[DeviceBuffer],
    place: &Place,
    host: &mut HostBuffer,
) -> Result<()> {
    let bug = || Error::new(ErrorKind::Device, "a place to verify is not among the weights: a bug in wavelm");
    let Place { chunk, at, length, sum: expected } = *place;
    stream.download(weights.get(chunk).ok_or_else(bug)?, at, host, length)?;
    if sum(host.as_slice().get(..length).ok_or_else(bug)?) == expected {
        return Ok(());
    }
    let text = format!("the memory of {} is damaged: {length} bytes of the weights are not what was sent", device.name);
    Err(Error::new(ErrorKind::Device, text))
}

/// Checks the weights while they are in use.
pub(crate) struct Canary {
    device: Arc<Device>,
    places: Vec<Place>,
    /// The next place, and passes since the last check.
    next: usize,
    passes: usize,
    host: HostBuffer,
}

impl Canary {
    /// Compares all places with their current content, if asked to; later checks take one place
    /// after the other.
    ///
    /// # Errors
    /// `Device`, where they differ, and errors of the driver.
    pub(crate) fn new(
        device: &Arc<Device>,
        stream: &Stream,
        weights: &[DeviceBuffer],
        places: Vec<Place>,
        all_now: bool,
    ) -> Result<Self> {
        let mut host = HostBuffer::new(device, LENGTH)?;
        if all_now {
            let began = std::time::Instant::now();
            places.iter().try_for_each(|place| compare(device, stream, weights, place, &mut host))?;
            let bytes: usize = places.iter().map(|place| place.length).sum();
            log::debug!("{}: {} MiB of weights verified in {:?}", device.name, bytes >> 20, began.elapsed());
        }
        Ok(Self { device: Arc::clone(device), places, next: 0, passes: 0, host })
    }

    /// Counts a pass, and checks a place every [`EVERY`] passes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn look(&mut self, stream: &Stream, weights: &[DeviceBuffer]) -> Result<()> {
        self.passes += 1;
        if self.passes < EVERY {
            return Ok(());
        }
        self.passes = 0;
        let Some(place) = self.places.get(self.next % self.places.len().max(1)) else { return Ok(()) };
        self.next = self.next.wrapping_add(1);
        compare(&self.device, stream, weights, place, &mut self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_and_each_exchange_changes_the_sum() {
        let bytes: Vec<u8> = (0..101).map(|i| (i * 7) as u8).collect();
        let whole = sum(&bytes);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sum(&damaged), whole, "bit {bit}");
        }
        for other in [&bytes[..100], &bytes[1..], &[bytes.as_slice(), &[0]].concat()] {
            assert_ne!(sum(other), whole);
        }
        let mut exchanged = bytes.clone();
        exchanged.swap(8, 16);
        assert_ne!(sum(&exchanged), whole);
        assert_ne!(sum(&[]), sum(&[0]));
    }
}
