//! Detects devices that do not answer: every wait for a device has a deadline.
//!
//! A kernel that never ends blocks every call that waits for the device, and no function of a
//! driver ends such a wait. So no thread of ours sleeps in a driver. A waiting thread polls whether
//! the work is done, and a call that may wait on its own (freeing memory does) runs on a thread
//! that can be left behind. After the deadline the device is *lost*: it gets no further call, and
//! its memory is leaked, because the device may still write there.

use super::Device;
use crate::backend::hip::driver::Driver;
use crate::{Error, ErrorKind, Result};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long to wait for work that is expected to take less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How many times its expected duration work may take.
const FACTOR: u32 = 20;
/// The most time that counts between two readings of the clock. A process that was stopped
/// meanwhile, or a machine that slept, is no reason to give a device up.
const STEP: Duration = Duration::from_millis(500);
/// How often to check on a call that runs on another thread.
const LOOK: Duration = Duration::from_millis(20);
/// How long a lost device's thread may take to end on its own.
const GRACE: Duration = Duration::from_secs(1);
/// Time to sleep between two polls: this part of the time waited so far, within these bounds.
const SLEEP_PART: u32 = 128;
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(2);

/// The state of a device in the whole process.
#[derive(Default)]
pub(crate) struct Health {
    /// Why the device was given up.
    lost: OnceLock<String>,
    /// Whether ROCm reports its faults.
    is_amd: bool,
    /// Whether captures are ruled out, because graphs computed something else than the launches.
    pub(crate) is_without_graphs: AtomicBool,
}

/// The progress of a thread that another thread watches.
#[derive(Default)]
struct Watched {
    /// Calls so far; a growing number shows progress.
    calls: AtomicU64,
    /// Whether it computes on the host, which may take any time.
    is_on_host: AtomicBool,
}

thread_local! {
    /// The state for the thread that watches this one. If there is one, calls need no threads of
    /// their own.
    static WATCHED: RefCell<Option<Arc<Watched>>> = const { RefCell::new(None) };
}

fn is_watched() -> bool {
    WATCHED.with_borrow(Option::is_some)
}

/// Calls `f`, which uses only the host and may take long.
pub(crate) fn on_host<T>(f: impl FnOnce() -> T) -> T {
    let set = |is_on_host| {
        WATCHED.with_borrow(|watched| {
            if let Some(watched) = watched {
                watched.is_on_host.store(is_on_host, Ordering::Relaxed);
            }
        });
    };
    set(true);
    let done = f();
    set(false);
    done
}

impl Health {
    pub(crate) fn new(is_amd: bool) -> Self {
        Self { is_amd, ..Self::default() }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// # Errors
    /// `Device` where the device is lost.
    pub(crate) fn check(&self) -> Result<()> {
        WATCHED.with_borrow(|watched| {
            if let Some(watched) = watched {
                watched.calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        match self.lost.get() {
            None => self.fault().map_or(Ok(()), |fault| Err(self.lose(fault))),
            Some(reason) => Err(Error::new(ErrorKind::Device, reason.clone())),
        }
    }

    #[cfg(target_os = "linux")]
    fn fault(&self) -> Option<String> {
        super::faults::taken().filter(|_| self.is_amd)
    }

    #[cfg(not(target_os = "linux"))]
    fn fault(&self) -> Option<String> {
        None
    }

    /// Gives the device up. The error has the reason, or the earlier one if it was given up before.
    pub(crate) fn lose(&self, reason: String) -> Error {
        let reason = self.lost.get_or_init(|| {
            log::warn!("{reason}; nothing uses this device any more in this process");
            reason
        });
        Error::new(ErrorKind::Device, reason.clone())
    }
}

/// A clock that stands still while the process does.
struct Clock {
    last: Instant,
    sum: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), sum: Duration::ZERO }
    }

    fn elapsed(&mut self) -> Duration {
        let now = Instant::now();
        self.sum += now.duration_since(self.last).min(STEP);
        self.last = now;
        self.sum
    }
}

/// How to wait for some work.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// How long to sleep before the first poll.
    pub(crate) asleep: Duration,
    /// Until this time, poll without sleeping, but yield the processor to other threads.
    pub(crate) awake_until: Duration,
    /// How long the work may take, at the slowest.
    pub(crate) expected: Duration,
}

/// Polls until `is_done`.
///
/// # Errors
/// Errors of `is_done`; `Device` where the device is lost, or takes too long and is lost from now
/// on.
pub(crate) fn wait(device: &Device, pace: Pace, mut is_done: impl FnMut(&Driver) -> Result<bool>) -> Result<()> {
    let driver = device.driver()?;
    let _relaxed = driver.relaxed();
    let mut clock = Clock::start();
    if !pace.asleep.is_zero() {
        std::thread::sleep(pace.asleep);
    }
    let limit = device.patience(pace.expected);
    loop {
        let elapsed = clock.elapsed();
        if is_done(driver)? {
            device.spend(elapsed);
            return Ok(());
        }
        device.health().check()?;
        if elapsed >= limit {
            return Err(device.health().lose(device.no_answer(limit)));
        }
        if elapsed < pace.awake_until {
            std::thread::yield_now();
        } else {
            std::thread::sleep((elapsed / SLEEP_PART).clamp(SHORTEST, LONGEST));
        }
    }
}

/// Makes calls of the driver that may wait for the device on their own. They run on a thread that
/// is left behind if they do not return.
///
/// # Errors
/// Errors of `call`; `Device` where the device is lost, or is from now on.
pub(crate) fn guarded<T: Send + 'static>(
    device: &Arc<Device>,
    what: &str,
    call: impl FnOnce(&Driver) -> Result<T> + Send + 'static,
) -> Result<T> {
    guarded_for(device, what, Duration::ZERO, call)
}

/// The same, for calls that are expected to take some time.
///
/// # Errors
/// As for [`guarded`].
pub(crate) fn guarded_for<T: Send + 'static>(
    device: &Arc<Device>,
    what: &str,
    expected: Duration,
    call: impl FnOnce(&Driver) -> Result<T> + Send + 'static,
) -> Result<T> {
    let bound = {
        let device = Arc::clone(device);
        move || {
            let driver = device.driver()?;
            let _relaxed = driver.relaxed();
            call(driver)
        }
    };
    if is_watched() {
        return bound();
    }
    let health = device.health();
    health.check()?;
    let limit = device.patience(expected);
    let still_waits = |clock: &mut Clock| clock.elapsed() < limit && health.check().is_ok();
    match on_a_thread(bound, still_waits) {
        Some(called) => called,
        None => Err(health.lose(format!("{} ({what})", device.no_answer(limit)))),
    }
}

/// Does work on a device that is not trusted yet. It runs on a thread that is left behind if one
/// call does not return, so the calls that `work` makes need no guards of their own.
///
/// # Errors
/// Errors of `work`; `Device` as for [`guarded`].
pub(crate) fn watched<T: Send + 'static>(
    device: &Arc<Device>,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let health = device.health();
    let limit = device.patience(Duration::ZERO);
    let watched = Arc::new(Watched::default());
    let (mut calls, mut quiet_since, mut lost_at) = (0, Duration::ZERO, None);
    let still_waits = |clock: &mut Clock| {
        let (now, elapsed) = (watched.calls.load(Ordering::Relaxed), clock.elapsed());
        if now != calls || watched.is_on_host.load(Ordering::Relaxed) {
            (calls, quiet_since) = (now, elapsed);
        }
        // After a loss the thread ends at its next call, if there is one.
        let graced = health.check().is_ok() || elapsed - *lost_at.get_or_insert(elapsed) < GRACE;
        graced && elapsed - quiet_since < limit
    };
    let of_thread = Arc::clone(&watched);
    let marked = move || {
        WATCHED.set(Some(of_thread));
        let done = work();
        WATCHED.set(None);
        done
    };
    match on_a_thread(marked, still_waits) {
        Some(done) => done,
        None => Err(health.lose(format!("{} ({what})", device.no_answer(limit)))),
    }
}

/// Returns the result of `start`, which starts a driver or looks for devices; `None` if it does not
/// return in time.
pub(crate) fn in_time<T: Send + 'static>(limit: Duration, start: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if is_watched() {
        return Some(start());
    }
    on_a_thread(move || Ok(start()), |clock: &mut Clock| clock.elapsed() < limit).and_then(Result::ok)
}

/// Runs `work` on a thread; `None` if the thread was left behind because `still_waits` gave up. If
/// the system has no threads left, `work` runs here.
fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
    mut still_waits: impl FnMut(&mut Clock) -> bool,
) -> Option<Result<T>> {
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (result, done) = mpsc::sync_channel(1);
    let of_thread = Arc::clone(&work);
    let run = move || {
        if let Some(work) = take(&of_thread) {
            // The receiver may have given up by now.
            let _ = result.send(work());
        }
    };
    if std::thread::Builder::new().name("wavelm-driver".to_owned()).spawn(run).is_err() {
        return take(&work).map(|work| work());
    }
    let mut clock = Clock::start();
    loop {
        match done.recv_timeout(LOOK) {
            Ok(done) => return Some(done),
            Err(RecvTimeoutError::Disconnected) => {
                return Some(Err(Error::new(
                    ErrorKind::Device,
                    "a call of the GPU's driver panicked: a bug in wavelm",
                )));
            }
            Err(RecvTimeoutError::Timeout) if still_waits(&mut clock) => {}
            Err(RecvTimeoutError::Timeout) => return None,
        }
    }
}

/// How long to wait for a device.
pub(crate) struct Patience {
    least: Duration,
    /// How much time is left for all waits together, if that is limited.
    left: Option<Mutex<Duration>>,
}

impl Patience {
    pub(crate) fn new(least: Duration) -> Self {
        Self { least, left: None }
    }

    /// The patience for the self-test: a third, for all of its waits together.
    pub(crate) fn short(&self) -> Self {
        let least = self.least / 3;
        Self { least, left: Some(Mutex::new(least)) }
    }

    /// The limit for all waits together, if there is one.
    pub(crate) fn total(&self) -> Option<Duration> {
        self.left.as_ref().map(|_| self.least)
    }

    pub(crate) fn limit(&self, expected: Duration) -> Duration {
        match &self.left {
            Some(left) => *left.lock().unwrap_or_else(PoisonError::into_inner),
            None => self.least.max(expected.saturating_mul(FACTOR)),
        }
    }

    pub(crate) fn spend(&self, time: Duration) {
        if let Some(left) = &self.left {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            *left = left.saturating_sub(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_left_behind() {
        let patient = |limit: u64| move |clock: &mut Clock| clock.elapsed() < Duration::from_millis(limit);
        let sleep = |time: u64| {
            move || {
                std::thread::sleep(Duration::from_millis(time));
                Ok(time)
            }
        };
        assert_eq!(on_a_thread(sleep(0), patient(10_000)).unwrap().unwrap(), 0);
        assert_eq!(on_a_thread(sleep(60), patient(10_000)).unwrap().unwrap(), 60);
        let began = Instant::now();
        assert!(on_a_thread(sleep(30_000), patient(100)).is_none());
        assert!(began.elapsed() < Duration::from_secs(20));
        let panics = on_a_thread(|| -> Result<()> { panic!("expected by this test") }, patient(10_000));
        assert!(panics.unwrap().unwrap_err().to_string().contains("panicked"));
    }

    #[test]
    fn a_process_that_stood_still_lost_half_a_second() {
        let mut clock = Clock::start();
        clock.last -= Duration::from_secs(3600);
        let elapsed = clock.elapsed();
        assert!(elapsed >= STEP && elapsed < 2 * STEP, "{elapsed:?}");
    }

    #[test]
    fn a_deadline_grows_with_what_is_expected_and_the_self_test_has_one_for_all() {
        let patience = Patience::new(PATIENCE);
        assert_eq!(patience.limit(Duration::ZERO), PATIENCE);
        assert_eq!(patience.limit(Duration::from_secs(60)), Duration::from_secs(1200));
        let short = patience.short();
        short.spend(Duration::from_secs(9));
        assert_eq!(short.limit(Duration::from_secs(60)), Duration::from_secs(1));
        short.spend(Duration::from_secs(9));
        assert_eq!(short.limit(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn the_first_reason_stays() {
        let health = Health::default();
        health.check().unwrap();
        assert!(health.lose("one".to_owned()).to_string().contains("one"));
        assert!(health.lose("two".to_owned()).to_string().contains("one"));
        let error = health.check().unwrap_err();
        assert_eq!((error.kind(), health.is_lost()), (ErrorKind::Device, true));
    }
}
