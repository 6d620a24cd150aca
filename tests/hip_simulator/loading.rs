//! Weights go to a simulated GPU by several threads, while somebody watches.

use super::common::{Random, Tiny};
use crate::common::simulator::{self, Faults, KINDS, simulated_once};
use crate::common::{difference, greedy, logits, tokens};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{Device, ErrorKind, LoadOptions, Model, Progress};

/// A model whose largest matrices take several stages.
fn wide() -> Tiny {
    Tiny { ty: TensorType::F16, feed_forward: 40_000, layers: 1, ..Tiny::default() }
}

fn load(tiny: &Tiny, threads: usize, options: LoadOptions) -> wavelm::Result<Model> {
    options.threads(threads).load_gguf(Gguf::from_bytes(tiny.file()).unwrap())
}

#[test]
fn long_matrices_arrive_whole() {
    simulated_once("loading::long_matrices_arrive_whole", &[], || {
        let rows = [Device::hip(0), Device::Cpu].map(|device| {
            let model = load(&wide(), 3, simulator::options().device(device)).unwrap();
            logits(&mut model.session().unwrap(), &[5])
        });
        assert!(difference(&rows[0], &rows[1]) < 2e-3);
    });
}

#[test]
fn progress_counts_what_is_on_the_device() {
    simulated_once("loading::progress_counts_what_is_on_the_device", &[], || {
        let total = Gguf::from_bytes(wide().file()).unwrap().tensors().iter().map(|t| t.size()).sum();
        for threads in [1, 3] {
            let heard = Arc::new(Mutex::new(Vec::new()));
            let watcher = Arc::clone(&heard);
            let options = simulator::options().on_progress(move |progress| {
                watcher.lock().unwrap().push(progress);
                progress.go_on()
            });
            assert_eq!(load(&wide(), threads, options).unwrap().device(), Device::Hip(0));
            let heard = heard.lock().unwrap();
            assert!(heard.len() > 5 || threads > 1, "{heard:?}");
            assert!(heard.iter().all(|p| p.total_bytes == total), "{heard:?}");
            assert!(heard.is_sorted_by(|a, b| a.bytes < b.bytes), "{heard:?}");
            assert_eq!((heard[0].bytes, heard[heard.len() - 1].bytes), (0, total));
        }
    });
}

#[test]
fn loading_ends_where_the_caller_says() {
    simulated_once("loading::loading_ends_where_the_caller_says", &[], || {
        let faults = Faults::new();
        let nothing = faults.held();
        // With one thread there is a call for each part, with more at least the first and the last.
        for (threads, calls) in [(3, 1), (3, 2), (1, 1), (1, 3), (1, 5)] {
            let mut left = calls;
            let stop = move |_: Progress| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            // The CPU is no way out.
            let error = load(&wide(), threads, simulator::options().on_progress(stop)).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert_eq!(faults.held(), nothing);
        }
        let panics = |progress: Progress| if progress.bytes > 0 { panic!("the caller's") } else { progress.go_on() };
        let caught = catch_unwind(AssertUnwindSafe(|| load(&wide(), 3, simulator::options().on_progress(panics))));
        assert!(caught.is_err());
        assert_eq!(faults.held(), nothing);
    });
}

#[test]
fn a_fault_in_any_thread_leaks_nothing() {
    simulated_once("loading::a_fault_in_any_thread_leaks_nothing", &[], || {
        let faults = Faults::new();
        let tiny = Tiny { layers: 1, context: 128, ..Tiny::default() };
        let prompt = tokens(1, 5);
        let text = |model: Model| greedy(&mut model.session().unwrap(), &prompt, 2).unwrap();
        let expected = text(load(&tiny, 3, simulator::options().device(Device::Cpu)).unwrap());
        let nothing = faults.held();
        let mut random = Random(1);
        for kind in ["alloc", "copy", "sync"].map(|name| KINDS.iter().position(|kind| *kind == name).unwrap()) {
            faults.fail(kind, 0);
            drop(load(&tiny, 3, simulator::options()).unwrap());
            let calls = faults.calls(kind) as usize;
            assert!(calls > 5, "{} was called {calls} times", KINDS[kind]);
            for _ in 0..10 {
                faults.fail(kind, 1 + random.below(calls) as u64);
                assert_eq!(text(load(&tiny, 3, simulator::options()).unwrap()), expected);
                assert_eq!(faults.held(), nothing, "{} leaks", KINDS[kind]);
            }
        }
        faults.fail(0, 0);
    });
}
