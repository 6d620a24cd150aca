//! Whether a device still answers: deadlines for everything that waits for it.
//!
//! A kernel that never ends stops every call that waits for the device, and nothing in a driver ends such a wait. So nobody
//! sleeps in a driver: who waits asks again and again whether the work is done, and a call that may wait on its own
//! (freeing memory does) is made on a thread that can be left behind. After the deadline the device is *lost*: it
//! gets no further call, and its memory is leaked, since it may still write there.

use super::device::Device;
use super::driver::Driver;
use crate::{Error, ErrorKind, Result};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long work may take that is expected to take less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Work may take so many times what it is expected to take.
const FACTOR: u32 = 20;
/// What one look at the clock counts for at most: a process that was stopped meanwhile, or a machine that slept, is no
/// reason to give a device up.
const STEP: Duration = Duration::from_millis(500);
/// How often a call is looked at that was made on another thread.
const LOOK: Duration = Duration::from_millis(20);
/// How long a lost device's thread gets to end on its own.
const GRACE: Duration = Duration::from_secs(1);
/// Sleep between two questions: this part of what was waited so far, within these bounds.
const SLEEP_PART: u32 = 128;
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(2);

/// What is known of a device in all of the process.
#[derive(Default)]
pub(super) struct Health {
    /// Why it is given up.
    lost: OnceLock<String>,
    /// Whether ROCm tells of its faults.
    is_amd: bool,
    /// Whether passes may be captured: not where graphs were found to compute something else.
    pub(super) is_without_graphs: AtomicBool,
}

/// What is seen of a thread that somebody watches.
#[derive(Default)]
struct Watched {
    /// Calls so far: it gets on.
    calls: AtomicU64,
    /// Whether it computes on the host, for as long as it likes.
    is_on_host: AtomicBool,
}

thread_local! {
    /// Who watches this thread. Its calls then need no threads of their own.
    static WATCHED: RefCell<Option<Arc<Watched>>> = const { RefCell::new(None) };
}

fn is_watched() -> bool {
    WATCHED.with_borrow(Option::is_some)
}

/// Calls `f`, which uses the host alone and may take long.
pub(super) fn on_host<T>(f: impl FnOnce() -> T) -> T {
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
    pub(super) fn new(is_amd: bool) -> Self {
        Self { is_amd, ..Self::default() }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// # Errors
    /// `Device` where the device is lost.
    pub(super) fn check(&self) -> Result<()> {
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

    /// Gives the device up; the error says why, or why it was given up before.
    pub(super) fn lose(&self, reason: String) -> Error {
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

/// How somebody waits for work.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// To sleep through before the first question.
    pub(super) asleep: Duration,
    /// Until then one asks without sleeping; others may have the processor.
    pub(super) awake_until: Duration,
    /// What the work is expected to take, at the slowest.
    pub(super) expected: Duration,
}

/// Asks until `is_done`.
///
/// # Errors
/// Those of `is_done`; `Device` where the device is lost, or takes too long and is lost from now on.
pub(super) fn wait(device: &Device, pace: Pace, mut is_done: impl FnMut(&Driver) -> Result<bool>) -> Result<()> {
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

/// Makes calls of the driver that may wait for the device on their own: on a thread that is left behind where they do not
/// return.
///
/// # Errors
/// Those of `call`; `Device` where the device is lost, or is from now on.
pub(super) fn guarded<T: Send + 'static>(
    device: &Arc<Device>,
    what: &str,
    call: impl FnOnce(&Driver) -> Result<T> + Send + 'static,
) -> Result<T> {
    guarded_for(device, what, Duration::ZERO, call)
}

/// The same for calls that are expected to take some time.
///
/// # Errors
/// As for [`guarded`].
pub(super) fn guarded_for<T: Send + 'static>(
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

/// Does work on a device that is not trusted yet, on a thread that is left behind where one call of it does not return.
/// The calls that `work` makes need no guards of their own.
///
/// # Errors
/// Those of `work`; `Device` as for [`guarded`].
pub(super) fn watched<T: Send + 'static>(
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
        // It then ends at its next call, if there is one.
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

/// What `start` returns, which starts a driver or looks for devices; `None` where it does not return.
pub(super) fn in_time<T: Send + 'static>(limit: Duration, start: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if is_watched() {
        return Some(start());
    }
    on_a_thread(move || Ok(start()), |clock: &mut Clock| clock.elapsed() < limit).and_then(Result::ok)
}

/// Runs `work` on a thread; `None` where that was left behind because nobody waits any more. Where there are no threads
/// left, it runs here.
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
            // Nobody may be there any more.
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

/// How long one waits for a device.
pub(super) struct Patience {
    least: Duration,
    /// What is left for all waits together.
    left: Option<Mutex<Duration>>,
}

impl Patience {
    pub(super) fn new(least: Duration) -> Self {
        Self { least, left: None }
    }

    /// For the self-test: a third, for all of its waits together.
    pub(super) fn short(&self) -> Self {
        let least = self.least / 3;
        Self { least, left: Some(Mutex::new(least)) }
    }

    /// What all waits together may take, where that is limited.
    pub(super) fn total(&self) -> Option<Duration> {
        self.left.as_ref().map(|_| self.least)
    }

    pub(super) fn limit(&self, expected: Duration) -> Duration {
        match &self.left {
            Some(left) => *left.lock().unwrap_or_else(PoisonError::into_inner),
            None => self.least.max(expected.saturating_mul(FACTOR)),
        }
    }

    pub(super) fn spend(&self, time: Duration) {
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
