//! A team of threads that walks a list of steps together. The whole forward pass enters the thread
//! pool once.
//!
//! Each step is cut into items, which threads claim. When none are left, a thread waits until all
//! items of the step are done, and goes on to the next step. No thread but the caller is needed: a
//! late one finds the early steps done and joins at the current one, and one that comes too late
//! finds a closed door ([`door`]). So a busy machine slows a pass down but cannot stall it,
//! whatever the threads of a caller's pool do or wait for. Two passes may share a pool without a
//! deadlock.
//!
//! Where items read memory in order, as products read weights, each thread has its own stretch of
//! items, so that it reads without a break. A thread that finishes its stretch takes items from the
//! ends of the others' stretches.

mod door;

use crate::memory::reserve;
use crate::{Error, ErrorKind, Result};
use door::Hall;
use rayon::ThreadPool;
use std::any::Any;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// A thread pool as a team; the calling thread works as well.
#[derive(Clone)]
pub(crate) struct Team {
    /// `None` if the calling thread is the whole team.
    workers: Option<Arc<Workers>>,
    threads: usize,
}

/// The other threads of a team.
struct Workers {
    pool: ManuallyDrop<Arc<ThreadPool>>,
    hall: Arc<Hall>,
    /// The process that has the threads. A process forked from it has the pool without them.
    process: u32,
}

impl Workers {
    fn new(pool: Arc<ThreadPool>) -> Arc<Self> {
        Arc::new(Self { pool: ManuallyDrop::new(pool), hall: Arc::default(), process: std::process::id() })
    }

    fn are_lost(&self) -> bool {
        self.process != std::process::id()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Ending a pool takes locks that its threads may have held when this process was forked.
        if !self.are_lost() {
            // SAFETY: nothing uses the pool after this.
            unsafe { ManuallyDrop::drop(&mut self.pool) }
        }
    }
}

/// The items of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Items {
    pub(crate) count: usize,
    /// Whether each member begins with a [`stretch`](Team::stretch) of its own.
    pub(crate) stretches: bool,
}

/// The unclaimed items of a stretch: the first in the upper half, the end in the lower one.
struct Stretch(AtomicU64);

impl Stretch {
    fn new(items: Range<usize>) -> Self {
        Self(AtomicU64::new((items.start as u64) << 32 | items.end as u64))
    }

    /// Claims the items that `part` selects from those that are left, if any.
    fn claim(&self, part: impl Fn(Range<usize>) -> Part) -> Option<Range<usize>> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let left = (seen >> 32) as usize..(seen & 0xffff_ffff) as usize;
            if left.is_empty() {
                return None;
            }
            let Part { claimed, rest } = part(left);
            let rest = (rest.start as u64) << 32 | rest.end as u64;
            match self.0.compare_exchange_weak(seen, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(claimed),
                Err(now) => seen = now,
            }
        }
    }

    /// The next item.
    fn one(&self) -> Option<Range<usize>> {
        self.claim(|left| Part { claimed: left.start..left.start + 1, rest: left.start + 1..left.end })
    }

    /// The next items of the member's own stretch: many while many are left, to read memory without
    /// a break.
    fn next(&self) -> Option<Range<usize>> {
        self.claim(|left| {
            let to = left.start + left.len().div_ceil(4);
            Part { claimed: left.start..to, rest: to..left.end }
        })
    }

    /// Items from the end of another member's stretch.
    fn last(&self) -> Option<Range<usize>> {
        self.claim(|left| {
            let from = left.end - left.len().div_ceil(8);
            Part { claimed: from..left.end, rest: left.start..from }
        })
    }
}

struct Part {
    claimed: Range<usize>,
    rest: Range<usize>,
}

/// The number of finished items of a step, on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Done(AtomicUsize);

/// The counters of a walk. They are kept between walks, so that a pass allocates nothing.
#[derive(Default)]
pub(crate) struct Progress {
    done: Vec<Done>,
    /// Each member's stretches for all steps. Those of the first member hold all items of steps
    /// without stretches.
    stretches: Vec<Stretch>,
}

impl Progress {
    fn reset(&mut self, items: &[Items], threads: usize) -> Result<()> {
        // Each half of a stretch's number must hold any item.
        if let Some(Items { count, .. }) = items.iter().find(|items| u32::try_from(items.count).is_err()) {
            return Err(Error::unsupported(format!("a step of the forward pass has {count} parts")));
        }
        self.done.clear();
        reserve(&mut self.done, items.len(), "counters of a pass")?;
        self.done.resize_with(items.len(), Done::default);
        self.stretches.clear();
        reserve(&mut self.stretches, items.len().saturating_mul(threads), "counters of a pass")?;
        for member in 0..threads {
            self.stretches.extend(items.iter().map(|items| {
                Stretch::new(match items.stretches {
                    true => stretch(items.count, member, threads),
                    false if member == 0 => 0..items.count,
                    false => 0..0,
                })
            }));
        }
        Ok(())
    }
}

/// The items that a member begins with.
fn stretch(count: usize, member: usize, threads: usize) -> Range<usize> {
    count * member / threads..count * (member + 1) / threads
}

impl Team {
    /// A team of `threads`, including the calling one, on a pool of its own.
    pub(crate) fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        if threads <= 1 {
            return Ok(Self { workers: None, threads: 1 });
        }
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads - 1);
        let pool = builder.thread_name(|i| format!("wavelm-{i}")).build()?;
        // The pool may have fewer threads, because their number is limited.
        let threads = pool.current_num_threads() + 1;
        Ok(Self { workers: Some(Workers::new(Arc::new(pool))), threads })
    }

    /// A team as large as the caller's pool.
    pub(crate) fn on_pool(pool: Arc<ThreadPool>) -> Self {
        let threads = pool.current_num_threads().max(1);
        Self { workers: Some(Workers::new(pool)), threads }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// The items that a member begins with in a step of `count` items with stretches.
    pub(crate) fn stretch(&self, count: usize, member: usize) -> Range<usize> {
        stretch(count, member, self.threads)
    }

    /// Walks the steps, and calls `run(member, step, range)` with ranges that cover all items. All
    /// items of a step finish before any of the next begins. `member` is below
    /// [`threads`](Self::threads) and unique among concurrent calls. A member that waits calls
    /// `idle(member, step, turn)` repeatedly, for a while. Returns false if `stop` was true before
    /// the end.
    ///
    /// # Errors
    /// `Device` if one of the functions panicked. Also, before anything is run, in a process that
    /// was forked from the one that has the threads. `OutOfMemory`.
    pub(crate) fn walk<F, I>(
        &self,
        progress: &mut Progress,
        items: &[Items],
        stop: &(dyn Fn() -> bool + Sync),
        run: F,
        idle: I,
    ) -> Result<bool>
    where
        F: Fn(usize, usize, Range<usize>) + Sync,
        I: Fn(usize, usize, usize) + Sync,
    {
        let workers = self.workers.as_deref().filter(|_| self.threads > 1);
        if workers.is_some_and(Workers::are_lost) {
            return Err(Error::new(
                ErrorKind::Device,
                "this process was forked from the one that loaded the model, and has none of its threads; load the model \
                 after the fork, or with one thread (LoadOptions::threads)",
            ));
        }
        progress.reset(items, self.threads)?;
        let Progress { done, stretches } = &*progress;
        let walk = Walk { threads: self.threads, items, done, stretches, stopped: AtomicBool::new(false), stop };
        let panicked = OnceLock::new();
        let join = |me: usize| {
            // Nothing is left half done: items that a panicking member had claimed count as done,
            // and the walk stops.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| walk.join(me, &run, &idle))) {
                walk.stopped.store(true, Ordering::Relaxed);
                panicked.get_or_init(|| message(panic));
            }
        };
        // A pass without parallel work wakes no threads.
        let places = items.iter().map(|items| items.count).fold(1, usize::max).min(self.threads);
        match workers.filter(|_| places > 1) {
            Some(Workers { pool, hall, .. }) => hall.walk(places, &join, |missing| {
                for _ in 0..missing {
                    let hall = Arc::clone(hall);
                    pool.spawn(move || hall.answer());
                }
            }),
            None => join(0),
        }
        match panicked.into_inner() {
            Some(message) => {
                Err(Error::new(ErrorKind::Device, format!("a thread panicked, which is a bug in wavelm: {message}")))
            }
            None => Ok(!walk.stopped.into_inner()),
        }
    }
}

/// The state that the members of a walk share.
struct Walk<'a> {
    threads: usize,
    items: &'a [Items],
    done: &'a [Done],
    stretches: &'a [Stretch],
    stopped: AtomicBool,
    stop: &'a (dyn Fn() -> bool + Sync),
}

/// Claimed items, which count as done when this is dropped. If the work on them panics, the walk is
/// stopped first, so that nobody goes on to the next step.
struct Claimed<'a> {
    count: usize,
    panics: bool,
    done: &'a AtomicUsize,
    stopped: &'a AtomicBool,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if self.panics {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.done.fetch_add(self.count, Ordering::Release);
    }
}

impl Walk<'_> {
    /// Walks as member `me`.
    fn join(
        &self,
        me: usize,
        run: &(impl Fn(usize, usize, Range<usize>) + Sync),
        idle: &(impl Fn(usize, usize, usize) + Sync),
    ) {
        let Self { threads, stopped, .. } = self;
        let steps = self.items.len();
        for (step, (Done(done), items)) in self.done.iter().zip(self.items).enumerate() {
            let work = |claimed: Range<usize>| {
                let mut items = Claimed { count: claimed.len(), panics: true, done, stopped };
                if !stopped.load(Ordering::Relaxed) {
                    run(me, step, claimed);
                }
                items.panics = false;
            };
            let of = |member: usize| self.stretches.get(member * steps + step);
            if done.load(Ordering::Relaxed) < items.count {
                if items.stretches {
                    std::iter::from_fn(|| of(me)?.next()).for_each(work);
                    let others = (1..*threads).map(|i| (me + i) % threads);
                    others.for_each(|other| std::iter::from_fn(|| of(other)?.last()).for_each(work));
                } else {
                    std::iter::from_fn(|| of(0)?.one()).for_each(work);
                }
            }
            let mut patience = 0;
            while done.load(Ordering::Acquire) < items.count {
                // The members with the last items are most likely just finishing. If not, they may
                // need this core.
                if patience < 2000 {
                    idle(me, step, patience);
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
                patience += 1;
            }
            if (self.stop)() {
                stopped.store(true, Ordering::Relaxed);
            }
            if stopped.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// The message of a panic.
fn message(panic: Box<dyn Any + Send>) -> String {
    let text = match panic.downcast_ref::<&str>() {
        Some(text) => Some((*text).to_owned()),
        None => panic.downcast_ref::<String>().cloned(),
    };
    // Dropping another type of payload might panic once more.
    if text.is_none() {
        std::mem::forget(panic);
    }
    text.unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_item_runs_once_and_steps_in_order() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).unwrap();
            let mut progress = Progress::default();
            let items = [3, 0, 17, 1, 64].map(|count| Items { count, stretches: count > 3 });
            for _ in 0..50 {
                let log = Mutex::new(Vec::new());
                let busy: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
                let run = |member: usize, step, range: Range<usize>| {
                    assert!(!busy[member].swap(true, Ordering::SeqCst), "two threads are member {member}");
                    log.lock().unwrap().extend(range.map(|item| (step, item)));
                    busy[member].store(false, Ordering::SeqCst);
                };
                let whole = team.walk(&mut progress, &items, &|| false, run, |_, _, _| ());
                assert!(whole.unwrap());
                let mut log = log.into_inner().unwrap();
                assert!(log.windows(2).all(|w| w[0].0 <= w[1].0), "a step began before the previous one was done");
                log.sort_unstable();
                let all: Vec<_> =
                    items.iter().enumerate().flat_map(|(s, n)| (0..n.count).map(move |i| (s, i))).collect();
                assert_eq!(log, all);
            }
        }
    }

    #[test]
    fn a_stop_ends_the_walk_between_steps() {
        let team = Team::new(3).unwrap();
        let stop = AtomicBool::new(false);
        let last = AtomicUsize::new(0);
        let items = [Items { count: 2, stretches: false }; 100];
        let run = |_, step, _| {
            last.fetch_max(step, Ordering::Relaxed);
            stop.store(step >= 10, Ordering::Relaxed);
        };
        let stopped = || stop.load(Ordering::Relaxed);
        let whole = team.walk(&mut Progress::default(), &items, &stopped, run, |_, _, _| ());
        assert!(!whole.unwrap());
        assert!(last.load(Ordering::Relaxed) <= 11);
    }

    #[test]
    fn walks_from_inside_the_pool_do_not_deadlock() {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        let team = Team::on_pool(Arc::clone(&pool));
        let sum = AtomicUsize::new(0);
        pool.scope(|s| {
            for _ in 0..8 {
                s.spawn(|_| {
                    let items = [Items { count: 5, stretches: true }; 20];
                    let run = |_, _, range: Range<usize>| {
                        sum.fetch_add(range.len(), Ordering::Relaxed);
                    };
                    team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ()).unwrap();
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 8 * 5 * 20);
    }

    #[test]
    fn a_panic_ends_the_walk_with_an_error_for_all_and_the_team_goes_on() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).unwrap();
            let mut progress = Progress::default();
            let items = [Items { count: 40, stretches: true }, Items { count: 40, stretches: false }];
            for (bad_step, bad_item) in [(0, 0), (0, 39), (1, 0), (1, 20)] {
                let late = AtomicUsize::new(0);
                let run = |_, step, range: Range<usize>| {
                    assert!(step != bad_step || !range.contains(&bad_item), "item {bad_item}");
                    late.fetch_add((step > bad_step) as usize, Ordering::Relaxed);
                };
                let error = team.walk(&mut progress, &items, &|| false, run, |_, _, _| ()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Device);
                assert!(error.to_string().ends_with(&format!("item {bad_item}")), "{error}");
                assert_eq!(late.into_inner(), 0, "a step began after the one that panicked");
            }
            let run = |_, step, _: Range<usize>| {
                if step == 1 {
                    std::panic::panic_any(7);
                }
            };
            assert!(team.walk(&mut progress, &items, &|| false, run, |_, _, _| ()).is_err());
            let stop = || -> bool { panic!("the check whether to stop") };
            assert!(team.walk(&mut progress, &items, &stop, |_, _, _| (), |_, _, _| ()).is_err());
            let sum = AtomicUsize::new(0);
            let run = |_, _, range: Range<usize>| {
                sum.fetch_add(range.len(), Ordering::Relaxed);
            };
            assert!(team.walk(&mut progress, &items, &|| false, run, |_, _, _| ()).unwrap());
            assert_eq!(sum.into_inner(), 80);
        }
    }

    #[test]
    fn blocked_workers_hold_nobody_up_and_get_one_invitation_each() {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap());
        let team = Team::on_pool(Arc::clone(&pool));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let blocked = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let (wait, blocked) = (Arc::clone(&wait), Arc::clone(&blocked));
            pool.spawn(move || {
                blocked.fetch_add(1, Ordering::SeqCst);
                let _ = wait.lock().unwrap().recv();
            });
        }
        while blocked.load(Ordering::SeqCst) < 3 {
            std::thread::yield_now();
        }
        let items = [Items { count: 9, stretches: true }; 5];
        let hall = &team.workers.as_ref().unwrap().hall;
        for _ in 0..5000 {
            let sum = AtomicUsize::new(0);
            let run = |member, _, range: Range<usize>| {
                assert_eq!(member, 0);
                sum.fetch_add(range.len(), Ordering::Relaxed);
            };
            assert!(team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ()).unwrap());
            assert_eq!(sum.into_inner(), 45);
            assert_eq!(hall.invited(), 2);
        }
        drop(go);
        // Once the workers are back, they come again.
        let both = AtomicUsize::new(0);
        let run = |_, _, _: Range<usize>| {
            both.fetch_add(1, Ordering::SeqCst);
            while both.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        };
        let items = [Items { count: 2, stretches: false }];
        assert!(team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ()).unwrap());
        while hall.invited() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn whoever_is_done_takes_over_from_the_others_ends() {
        let stretch = Stretch::new(10..50);
        assert_eq!(stretch.next(), Some(10..20));
        assert_eq!(stretch.last(), Some(46..50));
        assert_eq!(stretch.one(), Some(20..21));
        let rest: Vec<_> = std::iter::from_fn(|| stretch.last()).collect();
        assert_eq!((rest.first(), rest.last()), (Some(&(42..46)), Some(&(21..22))));
        assert_eq!(rest.iter().map(Range::len).sum::<usize>(), 25);
        assert!(stretch.next().is_none() && stretch.one().is_none());

        // One thread takes over all other items: the range with item 0 ends only after them.
        let team = Team::new(2).unwrap();
        let others = AtomicUsize::new(0);
        let run = |_, _, range: Range<usize>| {
            if range.contains(&0) {
                while others.load(Ordering::Relaxed) < 100 - range.len() {
                    std::thread::yield_now();
                }
            } else {
                others.fetch_add(range.len(), Ordering::Relaxed);
            }
        };
        let items = [Items { count: 100, stretches: true }];
        assert!(team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ()).unwrap());
    }
}
