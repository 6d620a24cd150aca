//! Drivers that crash when they are first used, on a simulated GPU: a process of its own finds out. Skipped, with the reason
//! printed, where there is no C++ compiler.

#![cfg(unix)]

mod common;

use common::simulator::{self, simulated};
use common::{Tiny, greedy, tokens};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use wavelm::{Device, Model};

/// A folder for the cache, and a model in it.
struct Place {
    folder: PathBuf,
    library: &'static Path,
}

impl Place {
    fn new(name: &str) -> Option<Self> {
        let (_, library) = simulator::libraries().first()?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tiny.gguf"), Tiny::default().file()).unwrap();
        Some(Self { folder, library })
    }

    /// Runs the example that generates.
    fn run(&self, device: &str, variables: &[(&str, &str)]) -> Output {
        let tests = std::env::current_exe().unwrap();
        let program = tests.parent().and_then(Path::parent).unwrap().join("examples/generate");
        assert!(program.exists(), "{} is not built; run cargo build --examples", program.display());
        let mut command = Command::new(program);
        command.args([
            "--prompt",
            "abc",
            "-n",
            "8",
            "--temperature",
            "0",
            "--reference",
            "--device",
            device,
            "--model",
        ]);
        command.arg(self.folder.join("tiny.gguf")).env("XDG_CACHE_HOME", &self.folder);
        command.env("WAVELM_HIP_LIBRARY", self.library).env("WAVELM_HSACO_DIR", simulator::objects());
        command.envs(variables.iter().copied()).output().unwrap()
    }

    /// What was kept.
    fn kept(&self) -> Vec<PathBuf> {
        let Ok(files) = std::fs::read_dir(self.folder.join("wavelm/kernels")) else { return Vec::new() };
        files.map(|file| file.unwrap().path()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn text(output: &Output) -> (String, String) {
    let [out, error] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{}: {error}", output.status);
    (out, error)
}

#[test]
fn a_driver_that_crashes_is_not_used_here_nor_later() {
    let Some(place) = Place::new("crash") else { return };
    let (expected, _) = text(&place.run("cpu", &[]));
    assert!(place.kept().is_empty(), "a GPU was tried out for the CPU");
    // In the middle of the self-test.
    let (out, error) = text(&place.run("auto", &[("WAVELM_SIM_CRASH", "launch:50")]));
    assert_eq!(out, expected);
    assert!(error.contains("runs on cpu") && error.contains("its driver failed in a process"), "{error}");
    assert_eq!(place.kept().len(), 1);
    // The next time nobody tries.
    let (out, error) = text(&place.run("auto", &[]));
    assert_eq!(out, expected);
    assert!(error.contains("runs on cpu") && error.contains("its driver failed in a process"), "{error}");
    let asked = place.run("hip:0", &[]);
    let error = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.code() == Some(1) && error.contains("signal: 6") && error.contains("remove "), "{error}");
    // Until somebody says so, or the driver is another.
    std::fs::remove_file(&place.kept()[0]).unwrap();
    let (out, error) = text(&place.run("auto", &[]));
    assert_eq!(out, expected);
    assert!(error.contains("runs on hip:0"), "{error}");
}

#[test]
fn a_driver_that_survived_is_not_tried_out_again() {
    let Some(place) = Place::new("well") else { return };
    let (first, error) = text(&place.run("auto", &[]));
    assert!(error.contains("runs on hip:0"), "{error}");
    let kept = place.kept();
    assert!(kept.len() == 1 && std::fs::read(&kept[0]).unwrap().ends_with(b"survived"), "{kept:?}");
    let (second, _) = text(&place.run("auto", &[]));
    assert_eq!(first, second);
    // Another process would have met this in its place.
    use std::os::unix::process::ExitStatusExt;
    let crashed = place.run("auto", &[("WAVELM_SIM_CRASH", "launch:50")]);
    assert_eq!(crashed.status.signal(), Some(6), "{:?}", crashed.status);
    // What is not whole is not believed.
    std::fs::write(&kept[0], b"survived").unwrap();
    let (_, error) = text(&place.run("auto", &[("WAVELM_SIM_CRASH", "launch:50")]));
    assert!(error.contains("runs on cpu"), "{error}");
}

/// This program's `main` is the test harness: to run it again would run all tests.
#[test]
fn no_process_is_started_where_the_entry_was_not_called() {
    simulated("no_process_is_started_where_the_entry_was_not_called", &[], || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-none-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("tiny.gguf");
        std::fs::write(&path, Tiny::default().file()).unwrap();
        let model = Model::options().threads(1).probe_in_child(true).load(&path).unwrap();
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        greedy(&mut model.session().unwrap(), &tokens(1, 5), 2).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    });
}
