//! Kernels are timed on a simulated GPU, and its copies.

use super::common::Tiny;
use crate::common::simulator::{self, Faults, simulated_once};
use crate::common::{greedy, logits, tokens};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Output};
use wavelm::{Device, ErrorKind, KernelTime, Prompt};

const LAUNCH: usize = 2;
const SYNC: usize = 4;

/// Launches of each family.
fn launches(kernels: &[KernelTime]) -> BTreeMap<&str, u64> {
    let mut launches = BTreeMap::new();
    for kernel in kernels {
        *launches.entry(kernel.family()).or_default() += kernel.launches;
    }
    launches
}

#[test]
fn each_launch_is_counted_and_nothing_else_changes() {
    simulated_once("profile::each_launch_is_counted_and_nothing_else_changes", &[], || {
        let faults = Faults::new();
        let model = Tiny::default().load(simulator::options().device(Device::hip(0)));
        let prompt = tokens(1, 200);
        let run = || {
            let mut session = model.session().unwrap();
            session.feed(&Prompt::from_tokens(prompt.clone())).unwrap();
            let rows: Vec<_> = tokens(2, 3).iter().map(|token| logits(&mut session, &[*token])).collect();
            (rows, greedy(&mut session, &tokens(1, 20), 3).unwrap())
        };
        let expected = run();
        faults.fail(0, 0);
        let (found, kernels) = model.profile(run).unwrap();
        assert_eq!(found, expected);
        // Without graphs, each launch is a call.
        assert_eq!(kernels.iter().map(|kernel| kernel.launches).sum::<u64>(), faults.calls(LAUNCH));
        assert!(kernels.is_sorted_by(|a, b| a.time >= b.time) && !kernels[0].time.is_zero(), "{kernels:?}");
        let names: std::collections::HashSet<&str> = kernels.iter().map(|kernel| kernel.kernel.as_str()).collect();
        assert_eq!(names.len(), kernels.len(), "a kernel has two entries");
        let families = launches(&kernels);
        // Six passes with two layers; three draws. All but the prompt of 200 are of one token, three behind it and three
        // behind 20 tokens, which have kernels of their own for attention.
        let counts = [("attend_decode", 6), ("attend_waves", 6), ("sample_weigh", 3), ("sample_choose", 3)];
        for (family, count) in counts.into_iter().chain([("dequant_rows", 7)]) {
            assert_eq!(families.get(family), Some(&count), "{family} of {families:?}");
        }
        // What is queued in one go is more than what is held back together.
        let (_, kernels) = model.profile(|| logits(&mut model.session().unwrap(), &tokens(3, 500))).unwrap();
        assert!(kernels.iter().map(|kernel| kernel.launches).sum::<u64>() > 64, "{kernels:?}");
        // Each profile is one of its own work, and graphs are used again.
        assert_eq!(model.profile(|| ()).unwrap().1, []);
        faults.fail(0, 0);
        assert_eq!(run(), expected);
        assert!(faults.calls(LAUNCH) < families.values().sum(), "graphs are not used any more");
    });
}

#[test]
fn a_profile_ends_with_its_work_and_has_none_beside_it() {
    simulated_once("profile::a_profile_ends_with_its_work_and_has_none_beside_it", &[], || {
        let faults = Faults::new();
        let model = Tiny::default().load(simulator::options());
        greedy(&mut model.session().unwrap(), &tokens(1, 20), 3).unwrap();
        let held = faults.held();
        let (inner, _) = model.profile(|| model.profile(|| ()).unwrap_err().kind()).unwrap();
        assert_eq!(inner, ErrorKind::InvalidInput);
        assert!(catch_unwind(AssertUnwindSafe(|| model.profile(|| panic!("the caller's")))).is_err());
        assert_eq!(faults.held(), held);
        let cpu = Tiny::default().load(simulator::options().device(Device::Cpu));
        let error = cpu.profile(|| panic!("there is nothing to run")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        // What is split is timed where the GPU runs it: one of two layers.
        let split = Tiny::default().load(simulator::options().placement(wavelm::Placement::Layers(1)));
        let (_, kernels) = split.profile(|| logits(&mut split.session().unwrap(), &[1])).unwrap();
        assert_eq!(launches(&kernels).get("attend_decode"), Some(&1), "{kernels:?}");
    });
}

#[test]
fn a_fault_during_a_profile_is_what_it_is_without_one() {
    simulated_once("profile::a_fault_during_a_profile_is_what_it_is_without_one", &[], || {
        let faults = Faults::new();
        let tiny = Tiny { layers: 1, ..Tiny::default() };
        let load = |device| tiny.load(simulator::options().threads(1).device(device));
        drop(load(Device::hip(0)));
        let nothing = faults.held();
        let text = greedy(&mut load(Device::Cpu).session().unwrap(), &tokens(1, 20), 3).unwrap();
        for (kind, n, lost) in
            [(LAUNCH, 1, true), (LAUNCH, 9, false), (LAUNCH, 30, true), (SYNC, 2, false), (SYNC, 3, true)]
        {
            let model = load(Device::hip(0));
            let mut session = model.session().unwrap();
            let work = || {
                if lost {
                    faults.lose(kind, n)
                } else {
                    faults.fail(kind, n)
                }
                greedy(&mut session, &tokens(1, 20), 3)
            };
            let (found, kernels) = model.profile(work).unwrap();
            assert_eq!(found.unwrap().len(), text.len());
            assert_eq!(session.device(), Device::Cpu);
            // What did not end has no time.
            assert!(kernels.iter().map(|kernel| kernel.launches).sum::<u64>() < 100, "{kernels:?}");
            assert_eq!(model.profile(|| ()).unwrap_err().kind(), ErrorKind::Unsupported);
            faults.fail(0, 0);
            drop((session, model));
            assert_eq!(faults.held(), nothing);
            // Where the profile does not begin, its work does not run.
            let model = load(Device::hip(0));
            faults.lose(SYNC, 1);
            let error = model.profile(|| panic!("this is not timed")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device);
            faults.fail(0, 0);
            drop(model);
            assert_eq!(faults.held(), nothing);
        }
    });
}

#[test]
fn copies_are_measured_where_caches_do_not_help() {
    simulated_once(
        "profile::copies_are_measured_where_caches_do_not_help",
        &[("WAVELM_SIM_MEMORY", "150000000")],
        || {
            let faults = Faults::new();
            let bandwidth = Device::hip(0).copy_bandwidth().unwrap();
            assert!(bandwidth.is_finite() && bandwidth > 1e6, "{bandwidth}");
            assert_eq!(faults.held(), 0);
            for (device, kind) in [
                (Device::hip(9), ErrorKind::Device),
                (Device::Auto, ErrorKind::InvalidInput),
                (Device::Cpu, ErrorKind::InvalidInput),
            ] {
                assert_eq!(device.copy_bandwidth().unwrap_err().kind(), kind);
            }
            for (kind, expected) in [(0, ErrorKind::OutOfMemory), (1, ErrorKind::Device), (4, ErrorKind::Device)] {
                faults.fail(kind, 2);
                assert_eq!(Device::hip(0).copy_bandwidth().unwrap_err().kind(), expected);
                assert_eq!(faults.held(), 0);
            }
            faults.fail(0, 0);
            faults.memory(100_000_000);
            let error = Device::hip(0).copy_bandwidth().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            assert!(error.to_string().contains("95 MiB"), "{error}");
        },
    );
}

/// Runs the example, which cargo builds next to the folder of the tests.
fn bench(arguments: &[&str]) -> Output {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples").join("bench");
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("profile-{}.gguf", std::process::id()));
    std::fs::write(&file, Tiny::default().file()).unwrap();
    let output = Command::new(program).args(["--quiet", "-r", "1", "-m"]).arg(&file).args(arguments).output();
    std::fs::remove_file(file).unwrap();
    let output = output.expect("a whole `cargo test` builds bench, as `cargo build --examples` does");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn bench_shows_shares_and_families() {
    simulated_once("profile::bench_shows_shares_and_families", &[("WAVELM_SIM_MEMORY", "200000000")], || {
        let tests = ["-p", "20", "-n", "4", "-s", "1,2", "--profile"];
        let output = bench(&[&tests[..], &["--device", "hip"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        println!("{text}");
        for shown in
            ["copies within the memory of hip:0: ", " of copy\n", "  kernels per prompt ", "  kernels per token "]
        {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let row = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(row("tg4 ").ends_with(" %") && !row("pp20 ").contains('%'), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("  dequant_rows ")).count(), 3, "{text}");

        let output = bench(&[&tests[..], &["--device", "hip", "--json"]].concat());
        let rows: Vec<serde_json::Value> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let units: Vec<&str> = rows.iter().map(|row| row["profile"]["per"].as_str().unwrap()).collect();
        assert_eq!(units, ["prompt", "token", "pass"]);
        for row in &rows {
            let families = row["profile"]["families"].as_object().unwrap();
            assert_eq!(families["dequant_rows"]["launches"].as_f64(), Some(1.0), "{row}");
            let sum = |key: &str| families.values().map(|family| family[key].as_f64().unwrap()).sum::<f64>();
            assert!((sum("share") - 1.0).abs() < 0.01 && sum("microseconds") > 0.0, "{row}");
            assert!(families.values().all(|family| family["microseconds_each"].as_f64().unwrap() >= 0.0), "{row}");
            assert!(row["copy_gb_per_second"].as_f64().unwrap() > 0.0, "{row}");
            assert_eq!(row["share_of_copy"].is_null(), row["profile"]["per"] == "prompt", "{row}");
            // Two layers of two heads of 16 keys and values in f16, at depths of 0 to 3.
            let expected = if row["profile"]["per"] == "prompt" { 256.0 * 10.5 } else { 256.0 * 2.5 };
            assert_eq!(row["kv_bytes_per_token"].as_f64(), Some(expected), "{row}");
        }
        assert_eq!(rows[2]["profile"]["families"]["sample_choose"]["launches"].as_f64(), Some(1.0));

        let output = bench(&[&tests[..], &["--device", "cpu"]].concat());
        let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(error.contains("no profile: the CPU runs this model"), "{error}");
        assert!(!text.contains("copy") && !text.contains("kernels") && !text.contains('%'), "{text}");
    });
}
