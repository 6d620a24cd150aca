//! A team of threads that walks a list of steps together: the whole forward pass is one entry into the thread pool.
//!
//! Each step is cut into items. A thread claims the next item from the step's counter; when none is left, it waits
//! until all items of the step are done, and goes on to the next step. No thread is ever needed: one that comes late
//! finds the early steps done and joins at the current one, and the calling thread alone could finish the walk. So a
//! busy machine slows a pass down but cannot stall it, and two passes may share a pool without a deadlock.

use rayon::ThreadPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A thread pool as a team; the calling thread works as well.
#[derive(Clone)]
pub(crate) struct Team {
    /// None where the calling thread is the whole team.
    pool: Option<Arc<ThreadPool>>,
    threads: usize,
}

/// Keeps two counters that different threads hammer on apart.
#[repr(align(128))]
#[derive(Default)]
struct Counters {
    /// The next item to claim.
    next: AtomicUsize,
    /// Items that are finished.
    done: AtomicUsize,
}

/// The counters of a walk, kept between walks so that a pass allocates nothing.
#[derive(Default)]
pub(crate) struct Progress {
    steps: Vec<Counters>,
}

impl Team {
    /// A team of `threads`, including the calling one, on a pool of its own.
    pub(crate) fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let threads = threads.max(1);
        let pool = match threads {
            1 => None,
            n => {
                let builder = rayon::ThreadPoolBuilder::new().num_threads(n - 1);
                Some(Arc::new(builder.thread_name(|i| format!("wavelm-{i}")).build()?))
            }
        };
        Ok(Self { pool, threads })
    }

    /// A team as large as the caller's pool.
    pub(crate) fn on_pool(pool: Arc<ThreadPool>) -> Self {
        let threads = pool.current_num_threads().max(1);
        Self { pool: Some(pool), threads }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Walks `items.len()` steps of so many items each: `run(member, step, item)` is called once for every item, with
    /// all items of a step finished before any of the next begins. `member` is below [`threads`](Self::threads) and
    /// unique among the calls that run at one time. Returns false where `stop` was true before the end.
    pub(crate) fn walk<F>(
        &self,
        progress: &mut Progress,
        items: &[usize],
        stop: &(dyn Fn() -> bool + Sync),
        run: F,
    ) -> bool
    where
        F: Fn(usize, usize, usize) + Sync,
    {
        progress.steps.iter_mut().for_each(|c| *c = Counters::default());
        progress.steps.resize_with(items.len().max(progress.steps.len()), Counters::default);
        let steps = &progress.steps;
        let stopped = AtomicBool::new(false);
        let member = AtomicUsize::new(0);
        let join = || {
            // A caller's pool may have one worker more than the team has places, since the caller works too.
            let me = member.fetch_add(1, Ordering::Relaxed);
            if me >= self.threads {
                return;
            }
            for (step, (counters, &count)) in steps.iter().zip(items).enumerate() {
                if counters.next.load(Ordering::Relaxed) < count {
                    loop {
                        let item = counters.next.fetch_add(1, Ordering::Relaxed);
                        if item >= count {
                            break;
                        }
                        if !stopped.load(Ordering::Relaxed) {
                            run(me, step, item);
                        }
                        counters.done.fetch_add(1, Ordering::Release);
                    }
                }
                let mut patience = 0u32;
                while counters.done.load(Ordering::Acquire) < count {
                    // Whoever holds the last items is most likely just finishing; if not, it may need this core.
                    patience += 1;
                    if patience < 2000 { std::hint::spin_loop() } else { std::thread::yield_now() }
                }
                if stop() {
                    stopped.store(true, Ordering::Relaxed);
                }
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
            }
        };
        match &self.pool {
            Some(pool) => pool.in_place_scope(|scope| {
                scope.spawn_broadcast(|_, _| join());
                join();
            }),
            None => join(),
        }
        !stopped.load(Ordering::Relaxed)
    }
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
            let items = [3, 0, 17, 1, 64];
            for _ in 0..50 {
                let log = Mutex::new(Vec::new());
                let busy: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
                let whole = team.walk(&mut progress, &items, &|| false, |member, step, item| {
                    assert!(!busy[member].swap(true, Ordering::SeqCst), "two threads are member {member}");
                    log.lock().unwrap().push((step, item));
                    busy[member].store(false, Ordering::SeqCst);
                });
                assert!(whole);
                let mut log = log.into_inner().unwrap();
                assert!(log.windows(2).all(|w| w[0].0 <= w[1].0), "a step began before the one before was done");
                log.sort_unstable();
                let all: Vec<_> = items.iter().enumerate().flat_map(|(s, &n)| (0..n).map(move |i| (s, i))).collect();
                assert_eq!(log, all);
            }
        }
    }

    #[test]
    fn a_stop_ends_the_walk_between_steps() {
        let team = Team::new(3).unwrap();
        let stop = AtomicBool::new(false);
        let last = AtomicUsize::new(0);
        let whole = team.walk(&mut Progress::default(), &[2; 100], &|| stop.load(Ordering::Relaxed), |_, step, _| {
            last.fetch_max(step, Ordering::Relaxed);
            stop.store(step >= 10, Ordering::Relaxed);
        });
        assert!(!whole);
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
                    team.walk(&mut Progress::default(), &[5; 20], &|| false, |_, _, _| {
                        sum.fetch_add(1, Ordering::Relaxed);
                    });
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 8 * 5 * 20);
    }
}
