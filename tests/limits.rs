//! Limits of memory, from the least that starts a program to all that it needs. Each ends in the
//! right text or in an error of one line, and never in a signal.
#![cfg(target_os = "linux")]

mod common;

use common::Tiny;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A model of some 27 MB.
fn model(name: &str) -> PathBuf {
    let tiny =
        Tiny { embed: 512, heads: 8, kv_heads: 4, head_dim: 64, feed_forward: 2048, layers: 6, ..Tiny::default() };
    let file = std::env::temp_dir().join(format!("wavelm-limits-{name}-{}.gguf", std::process::id()));
    std::fs::write(&file, tiny.file()).unwrap();
    file
}

/// From 20 to 300 MB, each a sixth more than the one before.
fn sizes() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(20_000_000u64), |size| Some(size / 6 * 7)).take_while(|size| *size <= 300_000_000)
}

/// Runs the example `generate` under the limit that `script` sets. The script's first argument is
/// the number of bytes.
fn generate(script: &str, limit: u64, file: &Path, arguments: &[&str]) -> Output {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/generate");
    assert!(program.exists(), "{} is not built; run cargo build --examples", program.display());
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{script}; shift; exec \"$@\""), "sh", &limit.to_string()]);
    command.arg(program).arg("--model").arg(file).args(["--device", "cpu", "--threads", "2", "--quiet"]);
    // A panic must not read debug information for its message, because that exceeds the limit.
    command.args(["--prompt", "abc", "-n", "8", "--temperature", "0"]).args(arguments).env("RUST_BACKTRACE", "0");
    command.output().unwrap()
}

/// Tries all sizes, with the file mapped and with the file read.
fn sweep(name: &str, script: &str) {
    let file = model(name);
    for arguments in [&[][..], &["--no-map"]] {
        let expected = generate(":", 0, &file, arguments);
        assert!(expected.status.success() && !expected.stdout.is_empty(), "{expected:?}");
        let (mut texts, mut errors) = (0, 0);
        // With less the system cannot start the program.
        let starts = |size: &u64| generate(script, *size, &file, &["--help"]).status.success();
        for size in sizes().skip_while(|size| !starts(size)) {
            let output = generate(script, size, &file, arguments);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), None, "{size} {arguments:?}: {error}");
            if output.status.success() {
                assert_eq!(output.stdout, expected.stdout, "{size} {arguments:?}");
                texts += 1;
            } else {
                let is_one_line = error.starts_with("error: ") && error.lines().count() == 1;
                assert!(is_one_line && output.status.code() == Some(1), "{size} {arguments:?}: {error}");
                errors += 1;
            }
        }
        println!("{name} {arguments:?}: {texts} texts, {errors} errors");
        assert!(texts > 5, "{texts} texts, {errors} errors");
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn of_addresses() {
    sweep("addresses", "ulimit -v $(($1 / 1024)) || exit 9");
}

/// A control group, version 1 or 2, that this process may create. Removed when dropped.
struct Group {
    folder: PathBuf,
    limit: &'static str,
}

impl Group {
    fn new() -> Option<Self> {
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let folder = Path::new(root).join(format!("wavelm-{}", std::process::id()));
            if std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self { folder, limit };
            let can_limit = std::fs::write(group.folder.join(limit), "100000000").is_ok();
            let can_join = || {
                let script = format!("echo $$ > '{}'", group.folder.join("cgroup.procs").display());
                Command::new("sh").args(["-c", &script]).output().is_ok_and(|output| output.status.success())
            };
            if can_limit && can_join() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.folder);
    }
}

#[test]
fn of_a_control_group() {
    let Some(group) = Group::new() else {
        println!("skipped: no control group can be made here, which takes root and a writable hierarchy");
        return;
    };
    let folder = group.folder.display();
    let swap = format!("echo 0 2>/dev/null > '{folder}/memory.swap.max'");
    sweep(
        "group",
        &format!("echo $1 > '{folder}/{}' && {{ {swap}; echo $$ > '{folder}/cgroup.procs'; }} || exit 9", group.limit),
    );
}
