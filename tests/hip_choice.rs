//! Which library, which GPU and which object is taken, with simulated GPUs. Skipped, with the reason printed, where there is
//! no C++ compiler.

#![cfg(target_os = "linux")]

mod common;

use common::simulator::{self, WAVE, compiler};
use common::{Tiny, greedy, tokens};
use std::path::{Path, PathBuf};
use std::process::Command;
use wavelm::gguf::Gguf;
use wavelm::{Device, ErrorKind};

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("choice-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("lib")).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Runs this test in a process of its own.
fn apart(test: &str, variables: &[(&str, &Path)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(WAVE, "32").env_remove("WAVELM_HIP_LIBRARY");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{variables:?}:\n{text}");
}

/// A folder of objects: `of` says what each target's hold.
fn objects(folder: &Path, of: &[(&str, &str)]) {
    for family in simulator::families() {
        for (target, code) in of {
            std::fs::write(folder.join(format!("{family}.{target}.hsaco")), code).unwrap();
        }
    }
}

const TAKEN: &str = "wavelm simulator\n";
const REFUSED: &str = "something else\n";

fn assert_runs_on_the_gpu() {
    let model = Tiny::default().load(simulator::options().threads(1));
    assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
    greedy(&mut model.session().unwrap(), &tokens(1, 5), 2).unwrap();
}

#[test]
fn a_refused_object_makes_way_for_the_next_target_and_then_for_the_compiler() {
    const TEST: &str = "a_refused_object_makes_way_for_the_next_target_and_then_for_the_compiler";
    if std::env::var_os(WAVE).is_some() {
        return assert_runs_on_the_gpu();
    }
    let Some((_, library)) = simulator::libraries().first() else { return };
    let folder = Folder::new("objects");
    let variables = [
        ("WAVELM_HIP_LIBRARY", library.as_path()),
        ("WAVELM_HSACO_DIR", folder.0.as_path()),
        ("WAVELM_SIM_ARCH", Path::new("gfx1102")),
        ("XDG_CACHE_HOME", folder.0.as_path()),
        ("WAVELM_HIPRTC_LIBRARY", library.as_path()),
    ];
    objects(&folder.0, &[("gfx1102", REFUSED), ("gfx11-generic", TAKEN)]);
    apart(TEST, &variables[..4]);
    // The embedded ones, which are none of the simulator's, are refused too.
    objects(&folder.0, &[("gfx1102", REFUSED), ("gfx11-generic", REFUSED)]);
    apart(TEST, &variables);
}

#[test]
fn where_all_is_refused_the_first_reason_is_said() {
    const TEST: &str = "where_all_is_refused_the_first_reason_is_said";
    if std::env::var_os(WAVE).is_some() {
        let gguf = || Gguf::from_bytes(Tiny::default().file()).unwrap();
        let error = simulator::options().device(Device::hip(0)).load_gguf(gguf()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        let text = error.to_string();
        assert!(text.contains("gfx1102.hsaco") && text.contains("reports error 200"), "{text}");
        assert_eq!(simulator::options().load_gguf(gguf()).unwrap().device(), Device::Cpu);
        return;
    }
    let Some((_, library)) = simulator::libraries().first() else { return };
    let folder = Folder::new("refused");
    objects(&folder.0, &[("gfx1102", REFUSED)]);
    let none = folder.0.join("no-compiler.so");
    apart(
        TEST,
        &[
            ("WAVELM_HIP_LIBRARY", library),
            ("WAVELM_HSACO_DIR", &folder.0),
            ("WAVELM_SIM_ARCH", Path::new("gfx1102")),
            ("WAVELM_HIPRTC_LIBRARY", &none),
        ],
    );
}

/// A library of HIP that has every function and no device.
fn without_devices(library: &Path) {
    // Whatever the driver's table asks for, by the sources themselves.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/hip");
    let sources = ["driver/mod.rs", "driver/graph.rs", "driver/timing.rs"].map(|file| folder.join(file));
    let text: String = sources.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let mut names: Vec<&str> = words.filter(|w| w.starts_with("hip") && w.len() > 5).collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.contains(&"hipInit") && names.len() > 30);
    let code: String = names.iter().map(|name| format!("int {name}(void) {{ return 100; }}\n")).collect();
    let source = library.with_extension("c");
    std::fs::write(&source, code).unwrap();
    let mut command = Command::new(compiler().unwrap());
    let output = command.args(["-x", "c", "-shared", "-fPIC", "-o"]).arg(library).arg(&source).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The name of the library that is to be taken, and one to load before.
const EXPECTED: &str = "WAVELM_TEST_EXPECTED";
const LOADED: &str = "WAVELM_TEST_LOADED";

#[test]
fn the_newest_library_with_a_device_is_taken_or_one_that_is_loaded() {
    const TEST: &str = "the_newest_library_with_a_device_is_taken_or_one_that_is_loaded";
    if let Some(expected) = std::env::var_os(EXPECTED) {
        let loaded = std::env::var_os(LOADED).map(|path| {
            // SAFETY: the library is the simulator, whose constructors may run at any time.
            unsafe { libloading::Library::new(path) }.unwrap()
        });
        let devices = wavelm::devices();
        let gpu = devices[0].gpu.as_ref().unwrap_or_else(|| panic!("{devices:?}"));
        assert_eq!(Path::new(&gpu.library), expected);
        assert_runs_on_the_gpu();
        drop(loaded);
        return;
    }
    let Some((_, library)) = simulator::libraries().first() else { return };
    let (folder, other) = (Folder::new("libraries"), Folder::new("loaded"));
    let lib = folder.0.join("lib");
    without_devices(&lib.join("libamdhip64.so.9.1.0"));
    for name in ["libamdhip64.so.7.2.1", "libamdhip64.so.6.4.4"] {
        std::fs::copy(library, lib.join(name)).unwrap();
    }
    std::fs::write(lib.join("libamdhip64.so.8.0.0"), "no library").unwrap();
    objects(&other.0, &[("gfxsim", TAKEN)]);
    let variables = [("ROCM_PATH", folder.0.as_path()), ("WAVELM_HSACO_DIR", other.0.as_path())];
    let newest = lib.join("libamdhip64.so.7.2.1");
    apart(TEST, &[&variables[..], &[(EXPECTED, &newest)]].concat());
    let loaded = other.0.join("lib/libamdhip64.so.6.0.1");
    std::fs::copy(library, &loaded).unwrap();
    apart(TEST, &[&variables[..], &[(EXPECTED, &loaded), (LOADED, &loaded)]].concat());
}

#[test]
fn no_gpu_is_listed_that_does_not_exist() {
    const TEST: &str = "no_gpu_is_listed_that_does_not_exist";
    if std::env::var_os(WAVE).is_some() {
        let devices = wavelm::devices();
        let model = Tiny::default().load(simulator::options().threads(1));
        let report = model.device_report().to_string();
        // Where the kernel knows a GPU, it is listed with the reason.
        assert_eq!(wavelm::why_no_gpu().is_some(), devices.len() == 1);
        if devices.len() == 1 {
            assert!(wavelm::why_no_gpu().unwrap().contains("finds no device"));
            assert!(report.contains("; no GPU: ") && report.contains("finds no device"), "{report}");
        }
        assert!(devices.iter().all(|d| d.gpu.is_none()), "{devices:?}");
        return;
    }
    let Some((_, library)) = simulator::libraries().first() else { return };
    apart(TEST, &[("WAVELM_HIP_LIBRARY", library), ("WAVELM_SIM_DEVICES", Path::new("0"))]);
}
