//! Models that a GPU runs in part, on a simulated one. Skipped, with the reason printed, where there is no C++ compiler.

#![cfg(unix)]

mod common;

use common::simulator::{self, Faults, simulated};
use common::{Tiny, difference, greedy, logits, tokens};
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{Device, ErrorKind, KvType, LoadOptions, Model, Placement, Prompt};

const LAYERS: usize = 4;
const LAUNCH: usize = 2;

fn tiny(arch: &'static str) -> Tiny {
    let window = (arch == "gemma3").then_some(50);
    Tiny { arch, window, ty: TensorType::F32, layers: LAYERS, ..Tiny::default() }
}

fn options(device: Device) -> LoadOptions {
    simulator::options().threads(1).device(device).kv_type(KvType::F32)
}

/// Prompts of several lengths, on pages that are shared and copied.
fn assert_same(found: &Model, expected: &Model) {
    let report = found.device_report();
    let (mut found, mut expected) = (found.session().unwrap(), expected.session().unwrap());
    for (seed, count) in [(1, 3), (2, 70), (3, 1)] {
        let tokens = tokens(seed, count);
        let (a, b) = (logits(&mut expected, &tokens), logits(&mut found, &tokens));
        let difference = difference(&a, &b);
        assert!(difference <= 1e-4, "{count} tokens differ by {difference}: {report}");
    }
    let (mut found_fork, mut expected_fork) = (found.fork().unwrap(), expected.fork().unwrap());
    for (seed, found, expected) in [(4, &mut found_fork, &mut expected_fork), (5, &mut found, &mut expected)] {
        expected.truncate(70);
        found.truncate(70);
        let tokens = tokens(seed, 5);
        let difference = difference(&logits(expected, &tokens), &logits(found, &tokens));
        assert!(difference <= 1e-4, "a fork differs by {difference}: {report}");
    }
}

#[test]
fn any_number_of_layers_computes_the_same() {
    simulated("any_number_of_layers_computes_the_same", &[], || {
        for arch in ["llama", "gemma3"] {
            let cpu = tiny(arch).load(options(Device::Cpu));
            for n in 0..=LAYERS + 1 {
                let model = tiny(arch).load(options(Device::Auto).placement(Placement::Layers(n)));
                let report = model.device_report();
                assert_eq!(model.device(), if n == 0 { Device::Cpu } else { Device::Hip(0) }, "{report}");
                assert_same(&model, &cpu);
                match report.placement() {
                    None => assert!(n == 0 || n >= LAYERS, "{report}"),
                    Some(part) => assert!(part.contains(&format!("the first {n} of 4 layers")), "{report}"),
                }
            }
        }
    });
}

#[test]
fn as_many_layers_as_fit_are_on_the_device() {
    simulated("as_many_layers_as_fit_are_on_the_device", &[], || {
        let faults = Faults::new();
        let cpu = tiny("llama").load(options(Device::Cpu));
        // The self-test, which needs room of its own, is done.
        drop(tiny("llama").load(options(Device::hip(0))));
        let nothing = faults.held();
        let mut counts = Vec::new();
        for kib in (0..).map(|i| 256 + 320 * i) {
            faults.memory(kib << 10);
            let model = tiny("llama").load(options(Device::Auto));
            let report = model.device_report().to_string();
            let count = (1..LAYERS).find(|n| report.contains(&format!("the first {n} of 4 layers")));
            match (model.device(), count) {
                (Device::Cpu, None) => {
                    assert!(report.contains("do not fit the memory"), "{report}");
                    counts.push(0);
                    // Nothing fits, and that is what was asked for.
                    let gguf = Gguf::from_bytes(tiny("llama").file()).unwrap();
                    let error = options(Device::hip(0)).load_gguf(gguf).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
                }
                (_, Some(count)) => {
                    assert!(report.contains("MiB are free") && !report.contains('\n'), "{report}");
                    if counts.last() != Some(&count) {
                        assert_same(&model, &cpu);
                    }
                    counts.push(count);
                }
                (_, None) => {
                    counts.push(LAYERS);
                    assert_same(&model, &cpu);
                }
            }
            drop(model);
            assert_eq!(faults.held(), nothing, "with {kib} KiB");
            if counts.last() == Some(&LAYERS) {
                break;
            }
        }
        assert!(counts.is_sorted() && (0..=LAYERS).all(|n| counts.contains(&n)), "{counts:?}");
    });
}

#[test]
fn what_is_forced_and_does_not_fit_is_an_error() {
    simulated("what_is_forced_and_does_not_fit_is_an_error", &[], || {
        let faults = Faults::new();
        drop(tiny("llama").load(options(Device::hip(0))));
        faults.memory(1 << 20);
        let load = |device, n| {
            let gguf = Gguf::from_bytes(tiny("llama").file()).unwrap();
            options(device).placement(Placement::Layers(n)).load_gguf(gguf).map(|model| model.device())
        };
        for device in [Device::Auto, Device::hip(0)] {
            for n in [3, LAYERS] {
                let error = load(device, n).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
            }
        }
        assert_eq!(load(Device::hip(0), 0).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(load(Device::Auto, 0).unwrap(), Device::Cpu);
        assert_eq!(load(Device::Cpu, 3).unwrap(), Device::Cpu);
    });
}

#[test]
fn a_fault_of_a_part_moves_the_session() {
    simulated("a_fault_of_a_part_moves_the_session", &[], || {
        let faults = Faults::new();
        let prompt = tokens(1, 80);
        let text = greedy(&mut tiny("llama").load(options(Device::Cpu)).session().unwrap(), &prompt, 4).unwrap();
        for n in [1, 7, 12] {
            let model = tiny("llama").load(options(Device::Auto).placement(Placement::Layers(2)));
            let mut session = model.session().unwrap();
            session.feed(&Prompt::from_tokens(prompt[..70].to_vec())).unwrap();
            let mut fork = session.fork().unwrap();
            faults.fail(LAUNCH, n);
            assert_eq!(greedy(&mut session, &prompt, 4).unwrap(), text, "launch {n}");
            assert_eq!((session.device(), model.device()), (Device::Cpu, Device::Cpu), "launch {n}");
            assert_eq!(greedy(&mut fork, &prompt, 4).unwrap(), text, "launch {n}");
        }
    });
}
