//! Programs that use a GPU themselves, beside wavelm on a simulated one. Skipped, with the reason printed, where there is no C++
//! compiler.

#![cfg(unix)]

mod common;

use common::simulator::{self, Faults, simulated_once};
use common::{Tiny, greedy, tokens};
use std::sync::atomic::{AtomicUsize, Ordering};
use wavelm::gguf::TensorType;
use wavelm::{Device, KvType, LoadOptions};

fn tiny() -> Tiny {
    Tiny { ty: TensorType::F32, layers: 1, context: 2048, ..Tiny::default() }
}

fn options(device: Device) -> LoadOptions {
    simulator::options().threads(1).device(device).kv_type(KvType::F32)
}

#[test]
fn a_capture_of_another_thread_is_not_ended_and_ends_nothing() {
    simulated_once("a_capture_of_another_thread_is_not_ended_and_ends_nothing", &[], || {
        let faults = Faults::new();
        let expected = greedy(&mut tiny().load(options(Device::Cpu)).session().unwrap(), &tokens(1, 30), 6).unwrap();
        faults.capture(true);
        let model = tiny().load(options(Device::Auto));
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        let mut session = model.session().unwrap();
        assert_eq!(greedy(&mut session, &tokens(1, 30), 6).unwrap(), expected);
        // Memory is allocated, copied and freed, and everything is dropped.
        greedy(&mut model.session().unwrap(), &tokens(2, 1200), 2).unwrap();
        assert_eq!(session.device(), Device::Hip(0));
        drop((session, model));
        assert!(!faults.capture(false), "a capture was ended");
    });
}

#[test]
fn a_call_that_fails_beside_a_capture_is_made_again() {
    simulated_once("a_call_that_fails_beside_a_capture_is_made_again", &[], || {
        let faults = Faults::new();
        let moved = std::sync::Arc::new(AtomicUsize::new(0));
        let sink = std::sync::Arc::clone(&moved);
        let model = tiny().load(options(Device::Auto).on_event(move |_| {
            sink.fetch_add(1, Ordering::Relaxed);
        }));
        let text = greedy(&mut model.session().unwrap(), &tokens(1, 30), 6).unwrap();
        for n in [1, 2, 5] {
            faults.beside(n);
            let mut session = model.session().unwrap();
            assert_eq!(greedy(&mut session, &tokens(1, 30), 6).unwrap(), text);
            assert_eq!((session.device(), moved.load(Ordering::Relaxed)), (Device::Hip(0), 0), "{n} calls failed");
        }
        // Where it goes on, the session moves, and the device is not given up.
        faults.beside(1000);
        let mut session = model.session().unwrap();
        assert_eq!(greedy(&mut session, &tokens(1, 30), 6).unwrap(), text);
        assert_eq!((session.device(), moved.load(Ordering::Relaxed)), (Device::Cpu, 1));
        assert_eq!(model.device(), Device::Hip(0));
        faults.beside(0);
        let mut session = model.session().unwrap();
        assert_eq!(greedy(&mut session, &tokens(1, 30), 6).unwrap(), text);
        assert_eq!(session.device(), Device::Hip(0));
    });
}

#[test]
fn graphs_that_compute_something_else_are_not_used() {
    simulated_once("graphs_that_compute_something_else_are_not_used", &[("WAVELM_SIM_STALE", "1")], || {
        let expected = greedy(&mut tiny().load(options(Device::Cpu)).session().unwrap(), &tokens(1, 30), 12).unwrap();
        let model = tiny().load(options(Device::Auto));
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        assert_eq!(greedy(&mut model.session().unwrap(), &tokens(1, 30), 12).unwrap(), expected);
    });
}
