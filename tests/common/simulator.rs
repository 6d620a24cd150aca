//! Builds the GPU kernels for the host, with the simulator: libraries that look like the GPU's driver.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The simulators of both wave sizes; none, with the reason printed, where there is no C++ compiler.
pub fn libraries() -> &'static [(u32, PathBuf)] {
    static LIBRARIES: OnceLock<Vec<(u32, PathBuf)>> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let Some(compiler) = compiler() else {
            println!("skipped: no C++ compiler; set CXX, or install one that is called c++, g++ or clang++");
            return Vec::new();
        };
        std::thread::scope(|scope| {
            let builds = [32, 64].map(|wave| {
                let compiler = &compiler;
                scope.spawn(move || (wave, build(compiler, wave)))
            });
            builds.into_iter().map(|build| build.join().unwrap()).collect()
        })
    })
}

fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let candidates = named.into_iter().chain(["c++", "g++", "clang++"].map(String::from));
    candidates.into_iter().find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// The files of a folder that have one of these extensions, in order.
pub fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let has = |f: &PathBuf| f.extension().is_some_and(|e| extensions.iter().any(|x| e == *x));
    let mut files: Vec<_> = files.filter(has).collect();
    files.sort();
    files
}

fn build(compiler: &str, wave: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("hip");
    let sources = files(&folder, &["hip"]);
    let simulator = files(&folder.join("sim"), &["cpp"]);
    let headers = [files(&folder, &["h"]), files(&folder.join("sim"), &["h"])].concat();
    let flags = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing"];
    let mut hasher = DefaultHasher::new();
    (compiler, flags, wave).hash(&mut hasher);
    for file in sources.iter().chain(&simulator).chain(&headers) {
        (file, std::fs::read(file).unwrap()).hash(&mut hasher);
    }
    // Unchanged sources are not built again.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = target.join(format!("hip-wave{wave}-{:016x}.so", hasher.finish()));
    if !library.exists() {
        let unfinished = target.join(format!("hip-wave{wave}-{}.so", std::process::id()));
        let mut command = Command::new(compiler);
        command.args(flags).arg(format!("-DWAVE={wave}")).arg("-o").arg(&unfinished);
        let output = command.args(&sources).args(&simulator).output().unwrap();
        assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&unfinished, &library).unwrap();
    }
    library
}
