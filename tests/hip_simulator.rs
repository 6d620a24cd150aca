//! Whole models through the GPU backend, on a simulated GPU: the driver is hip/sim/hip.cpp, the kernels are those of
//! hip/ built for the host. Skipped, with the reason printed, where there is no C++ compiler.
//!
//! The backend loads its driver once in a process, so that each test runs itself again for each wave size.

#![cfg(unix)]

mod common;
#[path = "hip_simulator/loading.rs"]
mod loading;
#[path = "hip_simulator/profile.rs"]
mod profile;
#[path = "hip_simulator/sampling.rs"]
mod sampling;

use common::simulator::{self, WAVE, simulated};
use common::{Tiny, difference, greedy, logits, tokens};
use wavelm::bench_internals::tensor_types;
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{Device, ErrorKind, KvType, Model, Precision, Prompt};

/// What 8-bit activations differ by, relative to the largest logit: from f16 (products with many columns), and among
/// each other, where differences of the last bit tip them to the next value.
const INT8: f32 = 4e-2;

/// Prompts of several lengths, which use the kernels for few and for many columns, with and without splits.
fn assert_agrees(tiny: &Tiny, kv_type: KvType, tolerance: f32) {
    let load = |device| tiny.load(simulator::options().device(device).kv_type(kv_type).threads(1));
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
            let tiny = Tiny { ty: TensorType::F32, heads, kv_heads, head_dim, ..Tiny::default() };
            // Weights in f32 are multiplied in f32.
            assert_agrees(&tiny, KvType::F32, 1e-5);
        }
    });
}

#[test]
fn tensor_types_agree_with_the_cpu() {
    simulated("tensor_types_agree_with_the_cpu", &[], || {
        for ty in tensor_types() {
            let wide = Tiny { embed: 256, heads: 16, feed_forward: 256, ..Tiny::default() };
            let tiny = if ty.block_len() > 32 { wide } else { Tiny::default() };
            let tolerance = if ty.is_quantized() { INT8 } else { 2e-3 };
            assert_agrees(&Tiny { ty, layers: 1, ..tiny }, KvType::F16, tolerance);
        }
    });
}

#[test]
fn prompts_on_matrix_cores_are_near_the_reference() {
    simulated("prompts_on_matrix_cores_are_near_the_reference", &[], || {
        for ty in [TensorType::Q4_0, TensorType::Q8_0, TensorType::BF16] {
            let tiny = Tiny { ty, ..Tiny::default() };
            let options = || simulator::options().kv_type(KvType::F32).threads(1);
            let gpu = tiny.load(options().device(Device::hip(0)));
            let cpu = tiny.load(options().device(Device::Cpu).precision(Precision::Reference));
            // One for each tile, and more than a pass takes. The last nine are too many for 8-bit activations, too.
            for count in [12, 30, 64, 600] {
                let (first, last) = (tokens(7, count), tokens(8, 9));
                let logits = |model: &Model| {
                    let mut session = model.session().unwrap();
                    session.feed(&Prompt::from_tokens(first.clone())).unwrap();
                    logits(&mut session, &last)
                };
                let found = difference(&logits(&cpu), &logits(&gpu));
                assert!(found <= 2e-3, "{ty:?}: {count} tokens differ by {found}");
            }
        }
    });
}

#[test]
fn the_reference_precision_is_that_of_the_cpu() {
    simulated("the_reference_precision_is_that_of_the_cpu", &[], || {
        for ty in [TensorType::Q4_0, TensorType::Q8_0] {
            let tiny = Tiny { ty, ..Tiny::default() };
            let load =
                |device| tiny.load(simulator::options().device(device).precision(Precision::Reference).threads(1));
            let (gpu, cpu) = (load(Device::hip(0)), load(Device::Cpu));
            for count in [1, 5, 70] {
                let logits = |model: &Model| logits(&mut model.session().unwrap(), &tokens(9, count));
                let found = difference(&logits(&cpu), &logits(&gpu));
                assert!(found <= 1e-5, "{ty:?}: {count} tokens differ by {found}");
            }
            let texts = [&cpu, &gpu].map(|model| greedy(&mut model.session().unwrap(), &tokens(1, 20), 20).unwrap());
            assert_eq!(texts[0], texts[1]);
        }
    });
}

#[test]
fn sessions_share_fork_and_work_at_the_same_time() {
    simulated("sessions_share_fork_and_work_at_the_same_time", &[], || {
        let tiny = Tiny { layers: 1, ..Tiny::default() };
        let model = tiny.load(simulator::options());
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        let mut first = model.session().unwrap();
        let prompt = tokens(1, 100);
        first.feed(&Prompt::from_tokens(prompt.clone())).unwrap();
        // Both go on from a page that they share.
        let mut fork = first.fork().unwrap();
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
        let model = Tiny::default().load(simulator::options());
        assert_eq!(model.device(), Device::Cpu);
        let report = model.device_report().to_string();
        assert!(report.contains("finds no device"), "{report}");
        let gguf = Gguf::from_bytes(Tiny::default().file()).unwrap();
        let error = simulator::options().device(Device::hip(0)).load_gguf(gguf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("finds no device"), "{error}");
    });
}

#[test]
fn too_little_memory_leaves_the_cpu_and_says_so() {
    simulated("too_little_memory_leaves_the_cpu_and_says_so", &[("WAVELM_SIM_MEMORY", "100000")], || {
        let model = Tiny::default().load(simulator::options());
        assert_eq!(model.device(), Device::Cpu);
        let report = model.device_report().to_string();
        assert!(report.contains("do not fit the memory"), "{report}");
        let gguf = Gguf::from_bytes(Tiny::default().file()).unwrap();
        let error = simulator::options().device(Device::hip(0)).load_gguf(gguf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    });
}
