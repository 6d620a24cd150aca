//! The memory that a process needs, by default and with weights copied or mapped: each weight once.
#![cfg(target_os = "linux")] // other systems do not tell

mod common;

use common::{Tiny, greedy};
use std::process::{Command, Stdio};
use std::time::Duration;
use wavelm::{Device, Model};

/// Most that a program holds besides weights and cache: itself, the C library, what it works in.
const BESIDES: u64 = 16 << 20;

/// Names the model for the process that runs it.
const MODEL: &str = "WAVELM_TEST_MEMORY_MODEL";

/// The largest resident memory that a process has had, in bytes; `None` once it has ended.
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[test]
#[ignore = "no_weight_is_held_twice runs it in processes of its own"]
fn runs_a_model() {
    let file = std::env::var(MODEL).expect("the model is named by the test that runs this");
    let model = Model::options().device(Device::Cpu).threads(2).load(file).unwrap();
    // By default, weights are copied after the first tokens; all are after so many.
    for _ in 0..4 {
        assert!(!greedy(&mut model.session().unwrap(), &[1], 64).unwrap().is_empty());
    }
}

#[test]
fn no_weight_is_held_twice() {
    let tiny =
        Tiny { embed: 768, heads: 12, kv_heads: 4, head_dim: 64, feed_forward: 3072, layers: 6, ..Tiny::default() };
    let file = std::env::temp_dir().join(format!("wavelm-memory-{}.gguf", std::process::id()));
    let bytes = tiny.file();
    std::fs::write(&file, &bytes).unwrap();
    let cached = 128 * tiny.layers * tiny.kv_heads * tiny.head_dim * 2 * 2;
    let most = bytes.len() as u64 + cached as u64 + BESIDES;
    assert!(most < bytes.len() as u64 * 3 / 2, "weights held twice would not be found");
    for weights in ["", "copied", "mapped"] {
        let mut run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "runs_a_model", "--ignored"])
            .env(MODEL, &file)
            .env("WAVELM_CPU_WEIGHTS", weights)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut largest = 0;
        while run.try_wait().unwrap().is_none() {
            largest = largest.max(peak(run.id()).unwrap_or(0));
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = run.wait_with_output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
        assert!(largest > bytes.len() as u64 * 9 / 10, "{weights}: {largest} bytes, for a file of {}", bytes.len());
        assert!(largest < most, "{weights}: {largest} bytes, at most {most}, for a file of {}", bytes.len());
    }
    std::fs::remove_file(&file).unwrap();
}
