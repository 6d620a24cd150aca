//! Models that a GPU runs in part, on a simulated one. Skipped, with the reason printed, where there is no C++ compiler.

#![cfg(unix)]

mod common;

use common::simulator::{self, Faults, simulated, simulated_once};
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
fn layers_run_on_several_devices_in_any_order() {
    let two = [("WAVELM_SIM_DEVICES", "2")];
    simulated("layers_run_on_several_devices_in_any_order", &two, || {
        let (cpu, a, b) = (Device::Cpu, Device::hip(0), Device::hip(1));
        let lists = [
            (vec![(a, 2), (b, 2)], "2 layers on hip:0, 2 layers on hip:1 of 4"),
            (vec![(b, 1), (a, 3)], "1 layer on hip:1, 3 layers on hip:0 of 4"),
            (vec![(a, 1), (b, 2)], "1 layer on hip:0, 2 layers on hip:1, 1 layer on cpu of 4"),
            (vec![(cpu, 1), (b, 9)], "1 layer on cpu, 3 layers on hip:1 of 4"),
            (vec![(cpu, 1), (a, 1), (cpu, 1), (b, 1)], "1 layer on hip:1 of 4, as the caller asked"),
            (vec![(a, 3), (b, 0)], "the first 3 of 4 layers, the others on the CPU"),
            (vec![(b, 4)], ""),
        ];
        for arch in ["llama", "gemma3"] {
            let expected = tiny(arch).load(options(Device::Cpu));
            for (list, text) in &lists {
                let model = tiny(arch).load(options(Device::Auto).placement(Placement::Devices(list.clone())));
                let report = model.device_report();
                assert_eq!(model.device(), list.iter().find(|(device, _)| *device != cpu).unwrap().0, "{report}");
                assert_same(&model, &expected);
                assert!(report.placement().unwrap_or_default().contains(text), "{report}");
            }
        }
    });
}

#[test]
fn a_second_device_takes_what_the_first_one_cannot() {
    let two = [("WAVELM_SIM_DEVICES", "2")];
    simulated_once("a_second_device_takes_what_the_first_one_cannot", &two, || {
        let faults = Faults::new();
        let cpu = tiny("llama").load(options(Device::Cpu));
        let list = Placement::Devices(vec![(Device::hip(0), 2), (Device::hip(1), 2)]);
        drop(tiny("llama").load(options(Device::Auto).placement(list)));
        let mut reports = Vec::new();
        for kib in (0..60).map(|i| 256 + 320 * i) {
            faults.memory(kib << 10);
            let mut heard = 0;
            let listener = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
            let told = std::sync::Arc::clone(&listener);
            let options = options(Device::Auto).on_progress(move |progress| {
                told.lock().unwrap().push(progress);
                progress.go_on()
            });
            let model = tiny("llama").load(options);
            let report = model.device_report().to_string();
            for progress in listener.lock().unwrap().iter() {
                assert!(progress.bytes <= progress.total_bytes, "{progress:?}");
                heard += 1;
            }
            assert!(heard > 0);
            if report.contains(" on hip:1") {
                assert_same(&model, &cpu);
                reports.push(report);
            }
        }
        assert!(reports.iter().any(|r| r.contains(" on cpu")), "{reports:?}");
        assert!(reports.iter().any(|r| !r.contains(" on cpu")), "{reports:?}");
    });
}

#[test]
fn a_placement_that_names_no_device_is_an_error() {
    let load = |list: Vec<(Device, usize)>| {
        let gguf = Gguf::from_bytes(tiny("llama").file()).unwrap();
        options(Device::Auto).placement(Placement::Devices(list)).load_gguf(gguf)
    };
    for list in [vec![], vec![(Device::Cpu, 0)], vec![(Device::Auto, 2)], vec![(Device::hip(0), 0)]] {
        assert_eq!(load(list.clone()).unwrap_err().kind(), ErrorKind::InvalidInput, "{list:?}");
    }
    assert_eq!(load(vec![(Device::hip(97), 1)]).unwrap_err().kind(), ErrorKind::Device);
    assert_eq!(load(vec![(Device::Cpu, 1)]).unwrap().device(), Device::Cpu);
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
        let halves = Placement::Devices(vec![(Device::Cpu, 2), (Device::hip(0), 2)]);
        for (n, placement) in [1, 7, 12].iter().flat_map(|&n| [(n, Placement::Layers(2)), (n, halves.clone())]) {
            let model = tiny("llama").load(options(Device::Auto).placement(placement));
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
