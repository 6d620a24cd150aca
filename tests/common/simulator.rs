//! Builds the GPU kernels for the host, with the simulator: libraries that look like the GPU's driver.

#![allow(dead_code)] // each test binary uses a part

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

#[path = "../../hip/builder/sources.rs"]
mod sources;

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

pub fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let candidates = named.into_iter().chain(["c++", "g++", "clang++"].map(String::from));
    candidates.into_iter().find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// The files of a folder that have one of these extensions, in order.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let has = |f: &PathBuf| f.extension().is_some_and(|e| extensions.iter().any(|x| e == *x));
    let mut files: Vec<_> = files.filter(has).collect();
    files.sort();
    files
}

/// The sources of the kernels; the generated ones are among them.
fn kernels() -> &'static sources::Sources {
    static KERNELS: OnceLock<sources::Sources> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let generated = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hip-generated");
        sources::Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("hip"), &generated).unwrap()
    })
}

/// The families of kernels, in order.
pub fn families() -> impl Iterator<Item = &'static str> {
    kernels().families.iter().map(|family| family.name.as_str())
}

fn build(compiler: &str, wave: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("hip");
    let sources: Vec<_> = kernels().families.iter().map(|family| family.path.clone()).collect();
    let simulator = files(&folder.join("sim"), &["cpp"]);
    let headers: Vec<_> = kernels().headers.iter().map(|header| header.path.clone()).collect();
    let headers = [headers, files(&folder.join("sim"), &["h"])].concat();
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
        command.args(flags).arg(format!("-DWAVE={wave}")).arg("-I").arg(&folder).arg("-o").arg(&unfinished);
        let output = command.args(&sources).args(&simulator).output().unwrap();
        assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&unfinished, &library).unwrap();
    }
    library
}

/// Set in the processes that the tests start. By hand, with the name of one test, it runs that test on a real GPU.
pub const WAVE: &str = "WAVELM_TEST_WAVE";

/// Options for simulated devices. On a busy machine these are slow, and no test of theirs is about a device that hangs.
pub fn options() -> wavelm::LoadOptions {
    wavelm::Model::options().device_timeout(std::time::Duration::from_secs(600))
}

/// Runs `body` in a process of its own for each wave size, with the simulator for a driver.
pub fn simulated(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    simulated_with(libraries(), test, variables, body);
}

/// The same for one wave size, where what is tested does not depend on it.
pub fn simulated_once(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    simulated_with(libraries().get(..1).unwrap_or_default(), test, variables, body);
}

fn simulated_with(libraries: &[(u32, PathBuf)], test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(WAVE).is_some() {
        return body();
    }
    for (wave, library) in libraries {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied());
        command.env(WAVE, wave.to_string()).env("WAVELM_HIP_LIBRARY", library).env("WAVELM_HSACO_DIR", objects());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "waves of {wave}:\n{text}");
        assert!(text.contains("1 passed"), "waves of {wave}: no test ran:\n{text}");
    }
}

/// A folder of what the simulator takes for code objects.
pub fn objects() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hip-simulator-objects");
        std::fs::create_dir_all(&folder).unwrap();
        for family in families() {
            std::fs::write(folder.join(format!("{family}.gfxsim.hsaco")), "wavelm simulator\n").unwrap();
        }
        folder
    })
}

/// The simulator's own functions.
pub struct Faults(libloading::Library);

/// What can be made to fail, as hip/sim/hip.cpp numbers it.
pub const KINDS: [&str; 5] = ["alloc", "copy", "launch", "module", "sync"];

/// What can go wrong without an error, as hip/sim/hip.cpp numbers it.
pub const WRONG: [&str; 4] = ["a quarter more", "nothing", "NaN", "garbage"];
pub const NOTHING: usize = 1;
pub const NAN: usize = 2;
pub const GARBAGE: usize = 3;

impl Faults {
    pub fn new() -> Self {
        let path = std::env::var_os("WAVELM_HIP_LIBRARY").unwrap();
        // SAFETY: the library is loaded already, and its constructors have run.
        Self(unsafe { libloading::Library::new(path) }.unwrap())
    }

    /// Makes the `n`-th call of this kind fail; 0 for none.
    pub fn fail(&self, kind: usize, n: u64) {
        // SAFETY: the signature is that of the simulator's function.
        unsafe { self.0.get::<extern "C" fn(i32, u64)>(b"wavelm_sim_fail").unwrap()(kind as i32, n) }
    }

    /// Makes the `n`-th call of this kind fail, and every later one of any kind.
    pub fn lose(&self, kind: usize, n: u64) {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(i32, u64)>(b"wavelm_sim_lose").unwrap()(kind as i32, n) }
    }

    /// Makes the device hang from the `n`-th call of this kind on, for good.
    pub fn hang(&self, kind: usize, n: u64) {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(i32, u64)>(b"wavelm_sim_hang").unwrap()(kind as i32, n) }
    }

    /// Damages the `n`-th copy to the device from now on, if it `damages`.
    pub fn damage_copies(&self, n: u64, damages: i32) {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(u64, i32) -> u64>(b"wavelm_sim_damage_copies").unwrap()(n, damages) };
    }

    /// Copies to the device since then.
    pub fn copies_to_device(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_copies_to_device").unwrap()() }
    }

    /// Flips a bit in every so many bytes of all memory of the device.
    pub fn damage(&self, every: usize) {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(usize)>(b"wavelm_sim_damage").unwrap()(every) }
    }

    /// Whether another thread captures a graph; returns whether a call ended that.
    pub fn capture(&self, captures: bool) -> bool {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(bool) -> bool>(b"wavelm_sim_capture").unwrap()(captures) }
    }

    /// Makes the next `n` launches fail beside a capture.
    pub fn beside(&self, n: u64) {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(u64)>(b"wavelm_sim_beside").unwrap()(n) }
    }

    /// Sets the memory of the device: to what is used now where that is more.
    pub fn memory(&self, bytes: usize) {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(usize)>(b"wavelm_sim_memory").unwrap()(bytes) }
    }

    /// Lets what has a name that begins so go wrong, as [`WRONG`] says; an empty one ends it.
    pub fn corrupt(&self, how: usize, name: &str) {
        let name = std::ffi::CString::new(name).unwrap();
        type Corrupt = extern "C" fn(i32, *const std::ffi::c_char);
        // SAFETY: as above; the name is a string of C that is copied.
        unsafe { self.0.get::<Corrupt>(b"wavelm_sim_corrupt").unwrap()(how as i32, name.as_ptr()) }
    }

    /// How often something went wrong since [`corrupt`](Self::corrupt).
    pub fn corrupted(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_corrupted").unwrap()() }
    }

    /// Calls of this kind since the last [`fail`](Self::fail).
    pub fn calls(&self, kind: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(i32) -> u64>(b"wavelm_sim_calls").unwrap()(kind as i32) }
    }

    /// Bytes that were copied to the host so far.
    pub fn downloaded(&self) -> u64 {
        // SAFETY: the signature is that of the simulator's function.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_downloaded").unwrap()() }
    }

    /// Copies and launches that nobody has waited for.
    pub fn queued(&self) -> u64 {
        // SAFETY: the signature is that of the simulator's function.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_queued").unwrap()() }
    }

    /// Allocations, modules, streams and events that exist.
    pub fn held(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_held").unwrap()() }
    }
}
