//! The memory that a process needs, by default and with weights copied or mapped: each weight once.
#![cfg(target_os = "linux")] // other systems do not tell

mod common;

use common::Tiny;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Most that a program holds besides weights and cache: itself, the C library, what it works in. Without optimization and
/// with debug information that is about twice as much.
const BESIDES: u64 = 24 << 20;

/// The largest resident memory that a process has had, in bytes; `None` once it has ended.
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[test]
fn no_weight_is_held_twice() {
    let tiny =
        Tiny { embed: 768, heads: 12, kv_heads: 4, head_dim: 64, feed_forward: 3072, layers: 6, ..Tiny::default() };
    let file = std::env::temp_dir().join(format!("wavelm-memory-{}.gguf", std::process::id()));
    let bytes = tiny.file();
    std::fs::write(&file, &bytes).unwrap();
    let tests = std::env::current_exe().unwrap();
    let bench = tests.parent().and_then(Path::parent).unwrap().join("examples/bench");
    assert!(bench.exists(), "{} is not built; run cargo build --examples", bench.display());
    let cached = 128 * tiny.layers * tiny.kv_heads * tiny.head_dim * 2 * 2;
    let most = bytes.len() as u64 + cached as u64 + BESIDES;
    assert!(most < bytes.len() as u64 * 3 / 2, "weights held twice would not be found");
    for weights in ["", "copied", "mapped"] {
        let mut run = Command::new(&bench)
            .args(["--device", "cpu", "--quiet", "-p", "0", "-n", "64", "-r", "4", "--model"])
            .arg(&file)
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
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("tg64"), "{output:?}");
        assert!(largest > bytes.len() as u64 * 9 / 10, "{weights}: {largest} bytes, for a file of {}", bytes.len());
        assert!(largest < most, "{weights}: {largest} bytes, at most {most}, for a file of {}", bytes.len());
    }
    std::fs::remove_file(&file).unwrap();
}
