//! The memory that a process needs, by default and with weights copied, mapped or read: each weight
//! once. Also, truncating a file does not matter once it was read or copied.
#![cfg(target_os = "linux")] // other systems do not tell

mod common;

use common::{Tiny, greedy};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use wavelm::{Device, Model};

/// Bytes that a program may hold besides weights and cache: itself, the C library, buffers.
const BESIDES: u64 = 16 << 20;

/// Names the model for the child process.
const MODEL: &str = "WAVELM_TEST_MEMORY_MODEL";
/// Tells the child process not to map the model.
const READ: &str = "WAVELM_TEST_MEMORY_READ";

/// Loads the model for the child process. Also returns its file.
fn load() -> (Model, String) {
    let file = std::env::var(MODEL).expect("the test that runs this names the model");
    let map = std::env::var_os(READ).is_none();
    (Model::options().device(Device::Cpu).threads(2).map(map).load(&file).unwrap(), file)
}

/// The largest resident memory of a process so far, in bytes; `None` once it has ended.
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[test]
#[ignore = "no_weight_is_held_twice runs it in processes of its own"]
fn runs_a_model() {
    let (model, _) = load();
    // By default, weights are copied after the first tokens. After this many all are copied.
    for _ in 0..4 {
        assert!(!greedy(&mut model.session().unwrap(), &[1], 64).unwrap().is_empty());
    }
}

#[test]
#[ignore = "a_file_that_is_cut_short runs it in processes of its own"]
fn runs_a_model_whose_file_is_cut() {
    let (model, file) = load();
    let long: Vec<u32> = (0..200).collect();
    let run = |prompt: &[u32]| greedy(&mut model.session().unwrap(), prompt, 64).unwrap();
    let expected = (run(&[1]), run(&long));
    // Runs until all weights are copied.
    (0..4).for_each(|_| drop(run(&[1])));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(&file), "the file is still mapped: {maps}");
    assert!(model.gguf().tensors().iter().all(|tensor| model.gguf().data(tensor).is_empty()));
    std::fs::File::options().write(true).open(&file).unwrap().set_len(0).unwrap();
    assert!((run(&[1]), run(&long)) == expected);
}

/// Runs one of the tests above with a model, and returns the most memory that it took.
fn run_with(test: &str, file: &Path, (weights, read): (&str, bool)) -> u64 {
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.args(["--exact", test, "--ignored"]).env(MODEL, file).env("WAVELM_CPU_WEIGHTS", weights);
    if read {
        run.env(READ, "1");
    }
    let mut run = run.stdout(Stdio::piped()).spawn().unwrap();
    let mut largest = 0;
    while run.try_wait().unwrap().is_none() {
        largest = largest.max(peak(run.id()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = run.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{weights} {read}: {output:?}");
    largest
}

#[test]
fn no_weight_is_held_twice() {
    let tiny =
        Tiny { embed: 768, heads: 12, kv_heads: 4, head_dim: 64, feed_forward: 3072, layers: 6, ..Tiny::default() };
    let file = std::env::temp_dir().join(format!("wavelm-memory-{}.gguf", std::process::id()));
    let bytes = tiny.file();
    std::fs::write(&file, &bytes).unwrap();
    let estimate = |map| Model::options().map(map).context(128).estimate(&file).unwrap();
    let most = bytes.len() as u64 + estimate(true).kv_cache + BESIDES;
    assert_eq!(estimate(true), estimate(false));
    assert!(estimate(true).weights <= bytes.len() as u64 && estimate(true).total() + BESIDES >= most);
    assert!(most < bytes.len() as u64 * 3 / 2, "weights held twice would stay below the limit");
    for how in [("", false), ("copied", false), ("mapped", false), ("", true), ("mapped", true)] {
        let largest = run_with("runs_a_model", &file, how);
        assert!(largest > bytes.len() as u64 * 9 / 10, "{how:?}: {largest} bytes, for a file of {}", bytes.len());
        assert!(largest < most, "{how:?}: {largest} bytes, at most {most}, for a file of {}", bytes.len());
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_file_that_is_cut_short() {
    let file = std::env::temp_dir().join(format!("wavelm-cut-{}.gguf", std::process::id()));
    // By default weights are copied where that is faster and the system reports enough memory.
    #[cfg(target_arch = "x86_64")]
    let is_faster = std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let is_faster = false;
    let tells = std::fs::read_to_string("/proc/meminfo").is_ok_and(|info| info.contains("MemAvailable:"));
    let copies = (is_faster && tells).then_some(("", false));
    for how in [("copied", false), ("", true), ("mapped", true)].into_iter().chain(copies) {
        std::fs::write(&file, Tiny { embed: 128, ..Tiny::default() }.file()).unwrap();
        run_with("runs_a_model_whose_file_is_cut", &file, how);
    }
    std::fs::remove_file(&file).unwrap();
}
