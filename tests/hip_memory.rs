//! Memory that is damaged, full, or the processor's, on a simulated GPU. Skipped, with the reason printed, where there is no C++
//! compiler.

#![cfg(unix)]

mod common;

use common::simulator::{self, Faults, simulated_once};
use common::{Tiny, difference, greedy, logits, tokens};
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{Device, ErrorKind, KvType, LoadOptions, Model, Placement};

fn tiny() -> Tiny {
    Tiny { ty: TensorType::F32, layers: 1, context: 2048, ..Tiny::default() }
}

/// Matrices of 24 MiB together in each of four layers.
fn large() -> Tiny {
    Tiny { ty: TensorType::F16, feed_forward: 64 << 10, layers: 4, ..Tiny::default() }
}

fn options(device: Device) -> LoadOptions {
    simulator::options().threads(1).device(device).kv_type(KvType::F32)
}

fn load(tiny: &Tiny, options: LoadOptions) -> wavelm::Result<Model> {
    options.load_gguf(Gguf::from_bytes(tiny.file()).unwrap())
}

#[test]
fn weights_that_arrive_damaged_are_found() {
    simulated_once("weights_that_arrive_damaged_are_found", &[], || {
        let faults = Faults::new();
        // What the self-test copies is copied.
        let model = load(&tiny(), options(Device::hip(0)).verify(true)).unwrap();
        let expected = logits(&mut model.session().unwrap(), &tokens(1, 5));
        drop(model);
        faults.damage_copies(1, 0);
        drop(load(&tiny(), options(Device::hip(0)).verify(true)).unwrap());
        let copies = faults.copies_to_device();
        assert!(copies > 8, "{copies} copies");
        let mut found = 0;
        for n in 1..=copies {
            faults.damage_copies(n, 1);
            let verified = load(&tiny(), options(Device::hip(0)).verify(true));
            // What is no weight has another guard, or none is needed.
            match verified {
                Ok(model) => {
                    let rows = logits(&mut model.session().unwrap(), &tokens(1, 5));
                    assert!(difference(&expected, &rows) < 1e-3, "copy {n} was damaged, and nobody noticed");
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Device);
                    assert!(error.to_string().contains("is damaged: "), "{error}");
                    found += 1;
                }
            }
        }
        assert!(found >= 8, "{found} of {copies} were found");
        faults.damage_copies(1, 0);
        // Where nobody asks, they are not read back.
        let before = faults.downloaded();
        load(&tiny(), options(Device::hip(0))).unwrap();
        let without = faults.downloaded() - before;
        load(&tiny(), options(Device::hip(0)).verify(true)).unwrap();
        assert!(faults.downloaded() - before > 2 * without + 10_000);
    });
}

#[test]
fn memory_that_changes_later_is_found() {
    simulated_once("memory_that_changes_later_is_found", &[], || {
        let faults = Faults::new();
        let model = load(&tiny(), options(Device::Auto)).unwrap();
        let mut session = model.session().unwrap();
        greedy(&mut session, &tokens(1, 5), 140).unwrap();
        assert_eq!(session.device(), Device::Hip(0), "{}", model.device_report());
        faults.damage(1 << 10);
        greedy(&mut session, &tokens(1, 5), 140).unwrap();
        assert_eq!((session.device(), model.device()), (Device::Cpu, Device::Cpu));
        let report = model.device_report().to_string();
        assert!(report.contains("is damaged: "), "{report}");
    });
}

#[test]
fn layers_go_back_where_the_devices_memory_is_full_in_silence() {
    // The self-test and the buffers fit, and a part of the weights.
    let spill = [("WAVELM_SIM_SPILL", "500000000")];
    simulated_once("layers_go_back_where_the_devices_memory_is_full_in_silence", &spill, || {
        let model = load(&large(), options(Device::Auto)).unwrap();
        let report = model.device_report().to_string();
        assert!(model.device() == Device::Hip(0) && report.contains("of 4 layers, the others on the CPU"), "{report}");
        // Who asks for all of it gets it.
        let model = load(&large(), options(Device::Auto).placement(Placement::Layers(4))).unwrap();
        assert!(model.device_report().placement().is_none(), "{}", model.device_report());
    });
}

#[cfg(target_os = "linux")]
#[test]
fn what_an_integrated_gpu_has_read_is_not_mapped_twice() {
    let integrated = [("WAVELM_SIM_INTEGRATED", "1")];
    simulated_once("what_an_integrated_gpu_has_read_is_not_mapped_twice", &integrated, || {
        let path = std::env::temp_dir().join(format!("wavelm-mapped-{}.gguf", std::process::id()));
        std::fs::write(&path, Tiny { layers: 1, ..large() }.file()).unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        let model = options(Device::hip(0)).load(&path).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let entry = maps.split_once(name).unwrap().1;
        let rss = entry.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        let rss: u64 = rss.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024;
        assert!(rss < size / 8, "{rss} of {size} bytes are mapped");
        greedy(&mut model.session().unwrap(), &tokens(1, 2), 1).unwrap();
        std::fs::remove_file(&path).unwrap();
    });
}
