//! Times each kernel on the device, with an event before each launch and one after it.
//!
//! If the device waits for the host, the time between two events includes the host's time for a
//! launch. So a batch of launches is held back until all of it is queued: the stream waits for a
//! call on the host, which returns only then.

use super::{Event, Stream};
use crate::Result;
use crate::backend::KernelTime;
use crate::backend::hip::device::Device;
use crate::backend::hip::driver::{Handle, Status};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many launches to hold back together. With their events, these are fewer commands than a
/// driver accepts without waiting for the device.
const BATCH: usize = 64;

/// The longest time to hold back a driver that does wait for the device. Its measured times are
/// then too long.
const LONGEST: Duration = Duration::from_millis(50);

/// How many pairs of events with nothing between them to time at first.
const EMPTY_PAIRS: usize = 64;

/// Times the kernels of a stream.
pub(crate) struct Timer {
    device: Arc<Device>,
    gate: Arc<Gate>,
    /// The time between two events with nothing between them.
    empty: Duration,
    state: Mutex<State>,
}

/// The events before and after a launch.
struct Pair(Event, Event);

#[derive(Default)]
struct State {
    idle: Vec<Pair>,
    /// Launches that have not been waited for yet.
    queued: Vec<(Arc<str>, Pair)>,
    /// How many launches the gate holds back.
    held: usize,
    sums: HashMap<Arc<str>, (u64, Duration)>,
}

impl Timer {
    /// Measures the cost of timing a launch. Nothing else may be queued on the stream meanwhile.
    ///
    /// # Errors
    /// `Device`, where the driver cannot measure times.
    pub(crate) fn new(device: &Arc<Device>, stream: &Stream) -> Result<Self> {
        let (device, gate) = (Arc::clone(device), Arc::default());
        let mut timer = Self { device, gate, empty: Duration::ZERO, state: Mutex::default() };
        let none = Arc::from("");
        let queued = (0..EMPTY_PAIRS).try_for_each(|_| timer.time(&none, stream, || Ok(())));
        timer.release();
        stream.wait().and(queued)?;
        let mut state = timer.lock();
        let pairs: Vec<Pair> = state.queued.drain(..).map(|(_, pair)| pair).collect();
        let mut times = pairs.iter().map(|pair| pair.1.since(&pair.0)).collect::<Result<Vec<_>>>()?;
        times.sort_unstable();
        // Clocks are coarse, so the mean of the middle half is better than the median.
        let middle = times.get(EMPTY_PAIRS / 4..EMPTY_PAIRS * 3 / 4).unwrap_or_default();
        let empty = middle.iter().sum::<Duration>().checked_div(middle.len() as u32).unwrap_or_default();
        state.idle = pairs;
        drop(state);
        log::debug!("{}: two events in a row are {empty:?} apart", timer.device.name);
        timer.gate.close();
        timer.empty = empty;
        Ok(timer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a launch of the kernel `name` between two events.
    ///
    /// # Errors
    /// Errors of `launch` and of the driver.
    pub(crate) fn time(&self, name: &Arc<str>, stream: &Stream, launch: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.lock();
        if state.held == 0 {
            self.hold(stream)?;
        }
        state.held += 1;
        let pair = match state.idle.pop() {
            Some(pair) => pair,
            None => Pair(Event::timed(&self.device)?, Event::timed(&self.device)?),
        };
        pair.0.record(stream)?;
        launch()?;
        pair.1.record(stream)?;
        state.queued.push((Arc::clone(name), pair));
        if state.held == BATCH {
            state.held = 0;
            self.gate.open();
        }
        Ok(())
    }

    /// Makes the stream wait at the gate.
    fn hold(&self, stream: &Stream) -> Result<()> {
        let timing = self.device.driver()?.timing()?;
        let gate = Arc::into_raw(Arc::clone(&self.gate));
        // SAFETY: the stream exists, and the call owns a reference to the gate.
        let queued = unsafe { timing.call_host(stream.handle(), pass, gate.cast_mut().cast()) };
        if queued.is_err() {
            // SAFETY: the pointer is that of `into_raw`, and nothing was queued that owns the reference.
            drop(unsafe { Arc::from_raw(gate) });
        }
        queued
    }

    /// Lets the held-back launches run. Call it before waiting for the stream.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.held) > 0 {
            self.gate.open();
        }
    }

    /// Reads the times of the queued launches, after waiting for them with the result `waited`.
    ///
    /// # Errors
    /// The error of `waited`, and errors of the driver.
    pub(crate) fn collect(&self, waited: Result<()>) -> Result<()> {
        self.gate.close();
        let mut state = self.lock();
        let State { idle, queued, sums, .. } = &mut *state;
        let (mut read, is_done) = (Ok(()), waited.is_ok());
        for (name, pair) in queued.drain(..) {
            // A launch that failed has no time.
            if is_done && read.is_ok() {
                read = pair.1.since(&pair.0).map(|time| {
                    let (launches, sum) = sums.entry(name).or_default();
                    *launches += 1;
                    *sum = sum.saturating_add(time);
                });
            }
            idle.push(pair);
        }
        waited.and(read)
    }

    /// All times so far, the longest first.
    pub(crate) fn times(self) -> Vec<KernelTime> {
        let State { sums, .. } = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let nanoseconds = u64::try_from(self.empty.as_nanos()).unwrap_or(u64::MAX);
        let mut times: Vec<KernelTime> = sums
            .into_iter()
            .map(|(kernel, (launches, sum))| {
                let empty = Duration::from_nanos(nanoseconds.saturating_mul(launches));
                KernelTime { kernel: kernel.to_string(), launches, time: sum.saturating_sub(empty) }
            })
            .collect();
        times.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.kernel.cmp(&b.kernel)));
        times
    }
}

/// A gate at which a stream waits. Each opening lets one call through.
#[derive(Default)]
struct Gate {
    openings: Mutex<usize>,
    opened: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) {
        *self.lock() += 1;
        self.opened.notify_one();
    }

    /// Forgets unused openings: a call may have stopped waiting before its opening came.
    fn close(&self) {
        *self.lock() = 0;
    }

    fn pass(&self) {
        let waited = self.opened.wait_timeout_while(self.lock(), LONGEST, |openings| *openings == 0);
        let (mut openings, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *openings = openings.saturating_sub(1);
    }
}

/// The host function that the stream calls.
///
/// # Safety
/// `gate` is from `Arc::into_raw`, and this call owns its reference.
unsafe extern "C" fn pass(_: Handle, _: Status, gate: *mut c_void) {
    // SAFETY: the caller's promise.
    let gate: Arc<Gate> = unsafe { Arc::from_raw(gate.cast_const().cast()) };
    gate.pass();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_one_through_for_each_opening_and_nobody_waits_for_ever() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.pass());
            gate.open();
            waits.join().unwrap();
        });
        gate.open();
        gate.open();
        gate.pass();
        assert_eq!(*gate.lock(), 1);
        gate.close();
        let began = std::time::Instant::now();
        gate.pass();
        assert!(began.elapsed() >= LONGEST && *gate.lock() == 0);
    }
}
