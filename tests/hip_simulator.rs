//! Whole models through the GPU backend, on a simulated GPU: the driver is hip/sim/hip.cpp, the kernels are those of
//! hip/ built for the host. Skipped, with the reason printed, where there is no C++ compiler.
//!
//! The backend loads its driver once in a process, so that each test runs itself again for each wave size.

#![cfg(unix)]

mod common;
#[path = "hip_simulator/loading.rs"]
mod loading;
#[path = "hip_simulator/sampling.rs"]
mod sampling;

use common::{Random, Tiny, simulator};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{Device, ErrorKind, KvType, Model, Prompt, Sampler, Session};

/// Set in the processes that the tests start. By hand, with the name of one test, it runs that test on a real GPU.
const WAVE: &str = "WAVELM_TEST_WAVE";

/// Runs `body` in a process of its own for each wave size, with the simulator for a driver.
fn simulated(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(WAVE).is_some() {
        return body();
    }
    for (wave, library) in simulator::libraries() {
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
fn objects() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hip-simulator-objects");
        std::fs::create_dir_all(&folder).unwrap();
        for source in simulator::files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("hip"), &["hip"]) {
            let family = source.file_stem().unwrap().to_str().unwrap();
            std::fs::write(folder.join(format!("{family}.gfxsim.hsaco")), "wavelm simulator\n").unwrap();
        }
        folder
    })
}

fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.below(256) as u32).collect()
}

fn logits(session: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let keep = |_, row: &[f32]| {
        rows.push(row.to_vec());
        Ok(())
    };
    session.logits(tokens, keep).unwrap();
    rows
}

/// The largest difference, relative to the largest logit.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).flatten().all(|v| v.is_finite()));
    let max = a.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().flatten().zip(b.iter().flatten()).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / max
}

fn greedy(session: &mut Session, prompt: &[u32], n: usize) -> wavelm::Result<Vec<u32>> {
    let generation = session.generate(&Prompt::from_tokens(prompt.to_vec()), &Sampler::greedy())?.max_tokens(n);
    generation.map(|piece| piece.map(|p| p.token())).filter_map(Result::transpose).collect()
}

/// What quantizing activations to 8 bits makes of differences of the last bit, relative to the largest logit.
const INT8: f32 = 2e-2;

/// Prompts of several lengths, which use the kernels for few and for many columns, with and without splits.
fn assert_agrees(tiny: &Tiny, kv_type: KvType, tolerance: f32) {
    let load = |device| tiny.load(Model::options().device(device).kv_type(kv_type).threads(1));
    let (gpu, cpu) = (load(Device::hip(0)), load(Device::Cpu));
    let (mut gpu, mut cpu) = (gpu.session().unwrap(), cpu.session().unwrap());
    for (seed, count) in [(1, 3), (2, 1), (3, 70), (4, 20), (5, 1), (6, 7)] {
        let tokens = tokens(seed, count);
        let found = difference(&logits(&mut cpu, &tokens), &logits(&mut gpu, &tokens));
        assert!(found <= tolerance, "{} {:?} {kv_type:?}: {count} tokens differ by {found}", tiny.arch, tiny.ty);
    }
}

#[test]
fn families_agree_with_the_cpu() {
    simulated("families_agree_with_the_cpu", &[], || {
        for arch in ["llama", "qwen2", "qwen3", "gemma3"] {
            let tiny = Tiny { arch, window: (arch == "gemma3").then_some(50), ..Tiny::default() };
            assert_agrees(&tiny, KvType::F16, INT8);
        }
        for kv_type in [KvType::F32, KvType::Q8_0] {
            assert_agrees(&Tiny::default(), kv_type, INT8);
        }
        // Heads that do not share, one key-value head for all, and heads of an odd number of vectors.
        for (heads, kv_heads, head_dim) in [(2, 2, 24), (9, 1, 8)] {
            let tiny = Tiny { ty: TensorType::F16, heads, kv_heads, head_dim, ..Tiny::default() };
            // Without 8-bit activations there is less that can differ.
            assert_agrees(&tiny, KvType::F32, 1e-5);
        }
    });
}

#[test]
fn tensor_types_agree_with_the_cpu() {
    simulated("tensor_types_agree_with_the_cpu", &[], || {
        for ty in [TensorType::F32, TensorType::F16, TensorType::BF16] {
            assert_agrees(&Tiny { ty, layers: 1, ..Tiny::default() }, KvType::F16, 2e-3);
        }
        for ty in [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q5_0, TensorType::Q5_1] {
            assert_agrees(&Tiny { ty, layers: 1, ..Tiny::default() }, KvType::F16, INT8);
        }
        for ty in [TensorType::Q2_K, TensorType::Q3_K, TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K] {
            let wide = Tiny { ty, embed: 256, heads: 16, feed_forward: 256, layers: 1, ..Tiny::default() };
            assert_agrees(&wide, KvType::F16, INT8);
        }
    });
}

#[test]
fn sessions_share_fork_and_work_at_the_same_time() {
    simulated("sessions_share_fork_and_work_at_the_same_time", &[], || {
        let tiny = Tiny { layers: 1, ..Tiny::default() };
        let model = tiny.load(Model::options());
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        let mut first = model.session().unwrap();
        let prompt = tokens(1, 100);
        first.feed(&Prompt::from_tokens(prompt.clone())).unwrap();
        // Both go on from a page that they share.
        let mut fork = first.fork();
        let (next, other) = (tokens(2, 5), tokens(3, 5));
        let forked = logits(&mut fork, &next);
        logits(&mut first, &other);
        first.truncate(100);
        assert_eq!(logits(&mut first, &next), forked);
        let alone = greedy(&mut model.session().unwrap(), &prompt, 8).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    // Enough pages in sum to make the pool grow.
                    let long: Vec<u32> = tokens(4, 400);
                    let mut session = model.session().unwrap();
                    session.feed(&Prompt::from_tokens(long)).unwrap();
                    assert_eq!(greedy(&mut session, &prompt, 8).unwrap(), alone);
                });
            }
        });
        let stop = first.canceller();
        stop.cancel();
        assert_eq!(greedy(&mut first, &prompt, 2).unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(greedy(&mut first, &prompt, 8).unwrap(), alone);
    });
}

#[test]
fn what_the_driver_says_is_reported() {
    simulated("what_the_driver_says_is_reported", &[("WAVELM_SIM_DEVICES", "2")], || {
        let devices = wavelm::devices();
        assert_eq!(devices.iter().map(|d| d.device).collect::<Vec<_>>(), [Device::Hip(0), Device::Hip(1), Device::Cpu]);
        let gpu = devices[0].gpu.as_ref().unwrap();
        assert_eq!(gpu.arch, "gfxsim");
        assert_eq!(gpu.wave_size.to_string(), std::env::var(WAVE).unwrap());
        assert_eq!(gpu.memory, 1 << 30);
        assert_eq!(gpu.version.as_deref(), Some("HIP 6.0"));
        assert!(gpu.kernels.as_ref().unwrap().ends_with("matvec.gfxsim.hsaco"));
    });
}

#[test]
fn a_library_without_devices_leaves_the_cpu_and_says_so() {
    simulated("a_library_without_devices_leaves_the_cpu_and_says_so", &[("WAVELM_SIM_DEVICES", "0")], || {
        let model = Tiny::default().load(Model::options());
        assert_eq!(model.device(), Device::Cpu);
        let report = model.device_report().to_string();
        assert!(report.contains("finds no device"), "{report}");
        let gguf = Gguf::from_bytes(Tiny::default().file()).unwrap();
        let error = Model::options().device(Device::hip(0)).load_gguf(gguf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("finds no device"), "{error}");
    });
}

#[test]
fn too_little_memory_leaves_the_cpu_and_says_so() {
    simulated("too_little_memory_leaves_the_cpu_and_says_so", &[("WAVELM_SIM_MEMORY", "100000")], || {
        let model = Tiny::default().load(Model::options());
        assert_eq!(model.device(), Device::Cpu);
        let report = model.device_report().to_string();
        assert!(report.contains("do not fit the memory"), "{report}");
        let gguf = Gguf::from_bytes(Tiny::default().file()).unwrap();
        let error = Model::options().device(Device::hip(0)).load_gguf(gguf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    });
}

/// The simulator's own functions.
struct Faults(libloading::Library);

/// What can be made to fail, as hip/sim/hip.cpp numbers it.
const KINDS: [&str; 5] = ["alloc", "copy", "launch", "module", "sync"];

impl Faults {
    fn new() -> Self {
        let path = std::env::var_os("WAVELM_HIP_LIBRARY").unwrap();
        // SAFETY: the library is loaded already, and its constructors have run.
        Self(unsafe { libloading::Library::new(path) }.unwrap())
    }

    /// Makes the `n`-th call of this kind fail; 0 for none.
    fn fail(&self, kind: usize, n: u64) {
        // SAFETY: the signature is that of the simulator's function.
        unsafe { self.0.get::<extern "C" fn(i32, u64)>(b"wavelm_sim_fail").unwrap()(kind as i32, n) }
    }

    /// Calls of this kind since the last [`fail`](Self::fail).
    fn calls(&self, kind: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(i32) -> u64>(b"wavelm_sim_calls").unwrap()(kind as i32) }
    }

    /// Bytes that were copied to the host so far.
    fn downloaded(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_downloaded").unwrap()() }
    }

    /// Copies and launches that nobody has waited for.
    fn queued(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_queued").unwrap()() }
    }

    /// Allocations, modules, streams and events that exist.
    fn held(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn() -> u64>(b"wavelm_sim_held").unwrap()() }
    }
}

#[test]
fn a_fault_anywhere_is_an_error_or_the_cpu_and_leaks_nothing() {
    simulated("a_fault_anywhere_is_an_error_or_the_cpu_and_leaks_nothing", &[], || {
        let faults = Faults::new();
        let tiny = Tiny { layers: 1, context: 128, ..Tiny::default() };
        let prompt = tokens(1, 20);
        let run = |device| -> wavelm::Result<(Device, Vec<u32>, String)> {
            let gguf = Gguf::from_bytes(tiny.file()).unwrap();
            let model = Model::options().threads(1).device(device).load_gguf(gguf)?;
            let mut session = model.session()?;
            let text = greedy(&mut session, &prompt, 3).or_else(|e| {
                // The fault is over: the same session works.
                assert!(matches!(e.kind(), ErrorKind::Device | ErrorKind::OutOfMemory), "{e}");
                greedy(&mut session, &prompt, 3)
            })?;
            Ok((model.device(), text, model.device_report().to_string()))
        };
        let (_, expected, _) = run(Device::Cpu).unwrap();
        let nothing = faults.held();
        for (kind, name) in KINDS.iter().enumerate() {
            faults.fail(kind, 0);
            let (device, text, report) = run(Device::Auto).unwrap();
            assert_eq!((device, &text), (Device::Hip(0), &expected), "before {name}: {report}");
            assert_eq!(faults.held(), nothing, "{name}: without a fault");
            let calls = faults.calls(kind);
            assert!(calls > 3, "{name} was called {calls} times");
            // All of the few, and a sample of the many launches.
            for n in (1..=calls).filter(|n| calls < 60 || *n < 10 || n % 11 == 0) {
                faults.fail(kind, n);
                let (_, text, report) = run(Device::Auto).unwrap_or_else(|e| panic!("{name} {n}: {e}"));
                assert_eq!(text, expected, "{name} {n}: {report}");
                assert_eq!(faults.held(), nothing, "{name} {n} leaks");
                // And where the GPU is asked for, whatever fails is a typed error or nothing.
                faults.fail(kind, if n <= 20 { n } else { continue });
                if let Err(e) = run(Device::hip(0)) {
                    assert!(matches!(e.kind(), ErrorKind::Device | ErrorKind::OutOfMemory), "{name} {n}: {e}");
                }
                assert_eq!(faults.held(), nothing, "{name} {n} leaks");
            }
        }
        faults.fail(0, 0);
    });
}
