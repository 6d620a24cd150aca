//! Runs tests on an emulated AMD GPU, whose kernels are executed as machine code: hip/tests/emuhip.

#![allow(dead_code)] // each test binary uses a part

use std::path::Path;
use std::process::{Command, Output};

/// Set in the processes that the tests start.
pub const ARCH: &str = "EMU_ARCH";

/// Runs this test in a process of its own with an emulated GPU for a driver, and `variables`; `None`, with the reason
/// printed, where there is no emulator.
pub fn start(arch: &str, test: &str, variables: &[(&str, String)]) -> Option<Output> {
    if std::env::var_os("TINYGRAD").is_none() {
        println!("skipped: TINYGRAD names no checkout of github.com/tinygrad/tinygrad, whose emulator is needed");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hip/tests/emuhip/emuhip.sh");
    let mut command = Command::new(script);
    command.arg(arch).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    command.env("EMUHIP_BUILD", Path::new(env!("CARGO_TARGET_TMPDIR")).join("emuhip"));
    Some(command.envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap())
}

/// Runs `body` as [`start`] says, and asserts that it succeeds.
pub fn emulated(arch: &str, test: &str, variables: &[(&str, String)], body: impl FnOnce()) {
    if std::env::var_os(ARCH).is_some() {
        return body();
    }
    let Some(output) = start(arch, test, variables) else { return };
    assert_passed(&output, &format!("{arch} {variables:?}"));
}

/// One test ran, passed, and the process ended well.
pub fn assert_passed(output: &Output, what: &str) {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{what}: {}\n{text}", output.status);
}

/// How many launches and copies there were in this process.
pub fn counts() -> [i32; 2] {
    let path = std::env::var_os("WAVELM_HIP_LIBRARY").unwrap();
    // SAFETY: the library is loaded already, and its constructors have run.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    ["emu_launches", "emu_copies"].map(|name| {
        // SAFETY: the signature is that of the emulator's functions.
        unsafe { library.get::<extern "C" fn() -> i32>(name.as_bytes()).unwrap()() }
    })
}
