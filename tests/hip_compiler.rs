//! Kernels that are compiled when a program runs, and the cache of what was compiled: by the simulator's hipRTC, for its
//! GPU. Skipped, with the reason printed, where there is no C++ compiler.
//!
//! Libraries are loaded once in a process, so that each test runs itself again in one of its own.

#![cfg(unix)]

mod common;

use common::{Random, Tiny, simulator};
use std::path::{Path, PathBuf};
use std::process::Command;
use wavelm::gguf::Gguf;
use wavelm::{Device, ErrorKind, Model, Prompt, Result, Sampler};

/// Set in the processes that the tests start.
const CHILD: &str = "WAVELM_TEST_COMPILER";

/// Runs `body` in a process of its own, with the simulator for a driver and a compiler, and `cache` for a cache.
fn simulated(test: &str, cache: &Path, variables: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    for (_, library) in simulator::libraries() {
        if cache.is_dir() {
            std::fs::remove_dir_all(cache).unwrap();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied()).env(CHILD, "1");
        command.env("WAVELM_HIP_LIBRARY", library).env("WAVELM_HIPRTC_LIBRARY", library);
        command.env("XDG_CACHE_HOME", cache).env_remove("WAVELM_HSACO_DIR");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success() && text.contains("1 passed"), "{}:\n{text}", library.display());
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Sources of kernels that the simulator has compiled so far.
fn compiled() -> u64 {
    let path = std::env::var_os("WAVELM_HIPRTC_LIBRARY").unwrap();
    // SAFETY: the library is the simulator, whose constructors may run at any time; the signature is that of its function.
    unsafe {
        let library = libloading::Library::new(path).unwrap();
        library.get::<extern "C" fn() -> u64>(b"wavelm_sim_compiled").unwrap()()
    }
}

/// Loads a model and has it write: the device, the text and the report.
fn run(device: Device) -> Result<(Device, Vec<u32>, String)> {
    let tiny = Tiny { layers: 1, context: 128, ..Tiny::default() };
    let model = Model::options().threads(1).device(device).load_gguf(Gguf::from_bytes(tiny.file()).unwrap())?;
    let mut random = Random(1);
    let prompt: Vec<u32> = (0..20).map(|_| random.below(256) as u32).collect();
    let mut session = model.session()?;
    let generation = session.generate(&Prompt::from_tokens(prompt), &Sampler::greedy())?.max_tokens(3);
    let text = generation.map(|piece| piece.map(|p| p.token())).filter_map(Result::transpose).collect::<Result<_>>()?;
    Ok((model.device(), text, model.device_report().to_string()))
}

/// The files of the cache.
fn files(cache: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(cache.join("wavelm/kernels")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn compiled_kernels_are_kept_and_damaged_ones_replaced() {
    let cache = folder("compiled-kernels");
    simulated("compiled_kernels_are_kept_and_damaged_ones_replaced", &cache, &[], || {
        let kernels = wavelm::devices()[0].gpu.clone().unwrap().kernels.unwrap();
        assert!(kernels.starts_with("compiled by") && kernels.ends_with("(clang 99.0 simulated)"), "{kernels}");
        let expected = run(Device::Cpu).unwrap().1;
        let check = || {
            let (device, text, report) = run(Device::Auto).unwrap();
            assert_eq!((device, &text), (Device::Hip(0), &expected), "{report}");
            compiled()
        };
        let families = check();
        assert!(families > 4, "{families} families are compiled");
        let whole: Vec<Vec<u8>> = files(&cache).iter().map(|f| std::fs::read(f).unwrap()).collect();
        assert_eq!(whole.len() as u64, families);
        assert_eq!(check(), families, "the second time all are found");

        let damage: [fn(&mut Vec<u8>); 3] = [Vec::clear, |f| f.truncate(f.len() - 1), |f| *f.last_mut().unwrap() ^= 1];
        for (i, file) in files(&cache).iter().enumerate() {
            let mut bytes = whole[i].clone();
            damage[i % damage.len()](&mut bytes);
            std::fs::write(file, bytes).unwrap();
        }
        assert_eq!(check(), 2 * families, "damaged ones are compiled again");
        let replaced: Vec<Vec<u8>> = files(&cache).iter().map(|f| std::fs::read(f).unwrap()).collect();
        assert_eq!(replaced, whole);
        assert_eq!(check(), 2 * families);
    });
}

#[test]
fn a_cache_that_cannot_be_written_is_no_failure() {
    let cache = folder("compiled-kernels-no-folder");
    std::fs::write(&cache, "a file where a folder should be").unwrap();
    simulated("a_cache_that_cannot_be_written_is_no_failure", &cache, &[], || {
        let expected = run(Device::Cpu).unwrap().1;
        for _ in 0..2 {
            let before = compiled();
            let (device, text, report) = run(Device::Auto).unwrap();
            assert_eq!((device, &text), (Device::Hip(0), &expected), "{report}");
            assert!(compiled() > before + 4);
        }
    });
}

#[test]
fn a_failure_to_compile_has_the_compilers_reason() {
    let cache = folder("compiled-kernels-failure");
    let fails = [("WAVELM_SIM_RTC_FAIL", "matvec")];
    simulated("a_failure_to_compile_has_the_compilers_reason", &cache, &fails, || {
        let error = run(Device::hip(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("matvec.hip:1:1: error: simulated"), "{error}");
        let (device, _, report) = run(Device::Auto).unwrap();
        assert_eq!(device, Device::Cpu);
        assert!(report.contains("cannot compile matvec.hip for gfxsim"), "{report}");
    });
}

#[test]
fn an_architecture_that_the_compiler_does_not_know_is_unusable() {
    let cache = folder("compiled-kernels-unknown");
    // What is compiled to ask for the compiler's version.
    let fails = [("WAVELM_SIM_RTC_FAIL", "nothing")];
    simulated("an_architecture_that_the_compiler_does_not_know_is_unusable", &cache, &fails, || {
        let reason = wavelm::devices()[0].unusable.clone().unwrap();
        assert!(reason.contains("no matvec kernels for gfxsim"), "{reason}");
        assert!(reason.contains("cannot compile nothing.hip for gfxsim: error 6"), "{reason}");
        assert_eq!(run(Device::hip(0)).unwrap_err().kind(), ErrorKind::Device);
        assert_eq!(run(Device::Auto).unwrap().0, Device::Cpu);
        assert_eq!(compiled(), 0);
    });
}
