//! A caller's pool may work for other sessions, hold a lock that a pass needs, sleep, or wait for
//! its own threads or for the thread that generates. Nothing of this may hang or change a text.

mod common;

use common::{Random, Tiny, greedy, tokens};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier, Mutex, OnceLock, mpsc};
use std::time::Duration;
use wavelm::{Device, ErrorKind, Model, Prompt, Sampler, Session};

const PROMPT: [u32; 7] = [5, 80, 3, 111, 42, 9, 200];
const LENGTH: usize = 6;

/// Runs `body`, and fails if it hangs. Without a hang it takes a second at most.
fn in_time(body: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        body();
        let _ = done.send(());
    });
    if wait.recv_timeout(Duration::from_secs(120)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("it hangs");
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn pool(threads: usize) -> Arc<ThreadPool> {
    Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
}

fn model(pool: &Arc<ThreadPool>) -> Model {
    Tiny::default().load(Model::options().device(Device::Cpu).pool(Arc::clone(pool)))
}

/// The tokens that a cleared session generates.
fn generated(session: &mut Session) -> Vec<u32> {
    session.clear();
    greedy(session, &PROMPT, LENGTH).unwrap()
}

/// The tokens that one thread generates.
fn expected() -> &'static [u32] {
    static EXPECTED: OnceLock<Vec<u32>> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let model = Tiny::default().load(Model::options().device(Device::Cpu).threads(1));
        generated(&mut model.session().unwrap())
    })
}

fn check(model: &Model) {
    assert_eq!(generated(&mut model.session().unwrap()), expected());
}

#[test]
fn passes_run_outside_inside_and_nested() {
    in_time(|| {
        for threads in 1..=8 {
            let pool = pool(threads);
            let model = model(&pool);
            check(&model);
            pool.install(|| check(&model));
            pool.scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|_| {
                        pool.install(|| rayon::join(|| check(&model), || check(&model)));
                    });
                }
            });
            pool.broadcast(|_| check(&model));
        }
    });
}

#[test]
fn tasks_may_share_a_session_behind_a_lock() {
    in_time(|| {
        for threads in 1..=8 {
            let pool = pool(threads);
            let session = Mutex::new(model(&pool).session().unwrap());
            pool.scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|_| assert_eq!(generated(&mut session.lock().unwrap()), expected()));
                }
            });
            // Also from outside the pool, while the workers wait for the lock.
            let mut held = session.lock().unwrap();
            pool.in_place_scope(|scope| {
                for _ in 0..2 * threads {
                    scope.spawn(|_| assert_eq!(generated(&mut session.lock().unwrap()), expected()));
                }
                for _ in 0..20 {
                    assert_eq!(generated(&mut held), expected());
                }
                drop(held);
            });
        }
    });
}

#[test]
fn workers_may_wait_for_the_thread_that_generates() {
    in_time(|| {
        for threads in 1..=8 {
            for blocked in 1..=threads {
                let pool = pool(threads);
                let model = model(&pool);
                let begun = Arc::new(Barrier::new(blocked + 1));
                let given = Arc::new(Barrier::new(blocked + 1));
                for _ in 0..blocked {
                    let (begun, given) = (Arc::clone(&begun), Arc::clone(&given));
                    pool.spawn(move || {
                        begun.wait();
                        given.wait();
                    });
                }
                begun.wait();
                // Enough passes to overflow a queue that grows with each.
                let mut session = model.session().unwrap();
                for _ in 0..10 {
                    assert_eq!(generated(&mut session), expected());
                }
                given.wait();
                assert_eq!(generated(&mut session), expected());
            }
        }
    });
}

#[test]
fn workers_may_wait_for_each_other_between_passes() {
    in_time(|| {
        for threads in 1..=8 {
            let pool = pool(threads);
            let model = model(&pool);
            let all = Barrier::new(threads);
            pool.broadcast(|_| {
                for _ in 0..5 {
                    check(&model);
                    all.wait();
                }
            });
        }
    });
}

#[test]
fn two_pools_may_call_each_other() {
    in_time(|| {
        for threads in 1..=4 {
            let (first, second) = (pool(threads), pool(threads));
            let (on_first, on_second) = (model(&first), model(&second));
            first.scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|_| {
                        check(&on_second);
                        second.install(|| {
                            check(&on_first);
                            first.install(|| check(&on_second));
                        });
                    });
                }
            });
        }
    });
}

#[test]
fn a_pool_may_end_inside_of_itself() {
    in_time(|| {
        for threads in 1..=8 {
            let pool = pool(threads);
            let model = model(&pool);
            let (ended, wait) = mpsc::channel();
            let inner = Arc::clone(&pool);
            pool.spawn(move || {
                let mut session = model.session().unwrap();
                assert_eq!(generated(&mut session), expected());
                // The last owner ends the pool, on one of its threads.
                drop((session, model, inner));
                ended.send(()).unwrap();
            });
            drop(pool);
            wait.recv().unwrap();
        }
        let own = Tiny::default().load(Model::options().device(Device::Cpu).threads(3));
        let mut session = own.session().unwrap();
        drop(own);
        assert_eq!(generated(&mut session), expected());
    });
}

#[test]
fn many_sessions_share_a_team() {
    in_time(|| {
        for threads in [1, 2, 3, 8] {
            let pool = pool(threads);
            let shared = model(&pool);
            let own = Tiny::default().load(Model::options().device(Device::Cpu).threads(threads));
            std::thread::scope(|scope| {
                for caller in 0..8u64 {
                    let model = if caller % 2 == 0 { &shared } else { &own };
                    scope.spawn(move || {
                        let mut random = Random(caller);
                        for _ in 0..10 {
                            check(model);
                            if random.below(2) == 0 {
                                std::thread::yield_now();
                            }
                        }
                        let mut sessions: Vec<_> = (0..16).map(|_| model.session().unwrap()).collect();
                        let (prompt, sampler) = (Prompt::from_tokens(PROMPT.to_vec()), Sampler::greedy());
                        let start = |session| Session::generate(session, &prompt, &sampler).unwrap();
                        let mut generations: Vec<_> = sessions.iter_mut().map(start).collect();
                        let mut texts = vec![Vec::new(); 16];
                        for _ in 0..LENGTH {
                            for (text, piece) in texts.iter_mut().zip(wavelm::next_of_each(&mut generations)) {
                                text.extend(piece.and_then(|piece| piece.unwrap().token()));
                            }
                        }
                        assert!(texts.iter().all(|text| text == expected()), "{texts:?}");
                    });
                }
            });
        }
    });
}

#[test]
fn a_cancel_is_heard_while_workers_are_blocked() {
    in_time(|| {
        let pool = pool(3);
        let model = Tiny { context: 4096, ..Tiny::default() }
            .load(Model::options().device(Device::Cpu).pool(Arc::clone(&pool)));
        let (give, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for _ in 0..3 {
            let wait = Arc::clone(&wait);
            pool.spawn(move || assert!(wait.lock().unwrap().recv().is_err()));
        }
        let mut session = model.session().unwrap();
        let canceller = session.canceller();
        let thread = std::thread::spawn(move || canceller.cancel());
        let mut found = Ok(());
        for _ in 0..1000 {
            session.clear();
            found = session.feed(&Prompt::from_tokens(tokens(1, 600)));
            if found.is_err() {
                break;
            }
        }
        assert_eq!(found.unwrap_err().kind(), ErrorKind::Cancelled);
        thread.join().unwrap();
        assert_eq!(generated(&mut session), expected());
        drop(give);
    });
}

#[test]
fn a_panic_of_the_callers_own_reaches_the_caller_and_harms_nothing() {
    in_time(|| {
        let pool = pool(3);
        let tiny = Tiny::default();
        let options = Model::options().device(Device::Cpu).pool(Arc::clone(&pool));
        let file = tiny.file();
        let gguf = wavelm::gguf::Gguf::from_bytes(file).unwrap();
        let loaded = AssertUnwindSafe(|| options.on_progress(|_| panic!("of the caller")).load_gguf(gguf));
        assert!(catch_unwind(loaded).is_err());
        let model = model(&pool);
        let mut session = model.session().unwrap();
        for at in 0..PROMPT.len() {
            session.clear();
            let each = |row: usize, _: &[f32]| {
                assert!(row < at, "of the caller");
                Ok(())
            };
            assert!(catch_unwind(AssertUnwindSafe(|| session.logits(&PROMPT, each))).is_err());
            // Evaluated tokens stay, and later calls work.
            assert_eq!(session.tokens(), &PROMPT[..session.len()]);
            assert_eq!(greedy(&mut session, &PROMPT, LENGTH).unwrap().len(), LENGTH);
            assert_eq!(generated(&mut session), expected());
        }
        // A task of the pool panics.
        assert!(catch_unwind(AssertUnwindSafe(|| pool.scope(|_| panic!("of the caller")))).is_err());
        pool.install(|| check(&model));
    });
}

/// The result of `body` in a forked process, which an alarm ends if it hangs.
#[cfg(target_os = "linux")]
fn forked(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child only runs `body`, which needs no lock of another thread. It ends without
    // running destructors or handlers of the parent.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "{}", std::io::Error::last_os_error());
        if child == 0 {
            libc::alarm(60);
            let found = catch_unwind(AssertUnwindSafe(body)).unwrap_or(false);
            libc::_exit(if found { 0 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(!libc::WIFSIGNALED(status), "the child hangs: signal {}", libc::WTERMSIG(status));
        libc::WEXITSTATUS(status) == 0
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_forked_process_gets_an_error_that_says_what_to_do() {
    in_time(|| {
        let callers_pool = pool(2);
        for options in [Model::options().threads(4), Model::options().pool(Arc::clone(&callers_pool))] {
            let model = Tiny::default().load(options.device(Device::Cpu));
            let mut session = model.session().unwrap();
            assert_eq!(generated(&mut session), expected());
            let child_session = model.session().unwrap();
            let child_model = model.clone();
            assert!(forked(move || {
                let mut new = child_session;
                let error = greedy(&mut new, &PROMPT, 1).unwrap_err();
                let text = error.to_string();
                let is_right = error.kind() == ErrorKind::Device && text.contains("forked") && text.contains("threads");
                // A session with a past fails as well, and dropping everything does not hang.
                let again = session.generate(&Prompt::from_tokens(tokens(3, 9)), &Sampler::greedy()).is_err();
                drop((new, session, child_model));
                // A model that is loaded after the fork works, also with threads.
                let fresh = Tiny::default().load(Model::options().device(Device::Cpu).threads(2));
                is_right && again && generated(&mut fresh.session().unwrap()) == expected()
            }));
            // The parent still works.
            check(&model);
        }
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_forked_process_goes_on_where_there_is_one_thread() {
    in_time(|| {
        let model = Tiny::default().load(Model::options().device(Device::Cpu).threads(1));
        let mut session = model.session().unwrap();
        assert_eq!(generated(&mut session), expected());
        assert!(forked(move || {
            generated(&mut session) == expected() && generated(&mut model.session().unwrap()) == expected()
        }));
    });
}
