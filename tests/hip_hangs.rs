//! A GPU that hangs, on a simulated one: whatever waits for it gives it up in time, and the text is what it would have been.
//! Skipped, with the reason printed, where there is no C++ compiler.

#![cfg(unix)]

mod common;

use common::emulator::{self, emulated};
use common::simulator::{Faults, KINDS, simulated};
use common::{Tiny, greedy, tokens};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{Device, ErrorKind, Event, KvType, LoadOptions, Model, Prompt, Result, Sampler};

/// Where the simulator is told to hang.
const HANG: &str = "WAVELM_SIM_HANG";

/// The self-test has a third of it, in which an emulator must get on.
fn patience() -> Duration {
    Duration::from_secs(if std::env::var_os(emulator::ARCH).is_some() { 30 } else { 3 })
}

fn exact() -> Tiny {
    Tiny {
        ty: TensorType::F32,
        embed: 32,
        heads: 2,
        kv_heads: 1,
        feed_forward: 32,
        layers: 1,
        context: 2048,
        ..Tiny::default()
    }
}

fn options(device: Device) -> LoadOptions {
    Model::options().threads(1).device(device).kv_type(KvType::F32).device_timeout(patience())
}

fn load(options: LoadOptions) -> Result<Model> {
    options.load_gguf(Gguf::from_bytes(exact().file())?)
}

/// A prompt, a text that a sampler draws, one without a sampler on the device, and growth of the cache. `after` hears of
/// each part.
fn talk(model: &Model, mut after: impl FnMut(&str)) -> Result<Vec<u32>> {
    let mut session = model.session()?;
    let prompt = tokens(1, 20);
    session.feed(&Prompt::from_tokens(prompt.clone()))?;
    after("prompt");
    let sampler = Sampler::builder().temperature(0.8).repetition_penalty(1.1).seed(7).build()?;
    let pieces = session.generate(&Prompt::from_tokens(prompt), &sampler)?.max_tokens(4);
    let mut text: Vec<u32> = pieces.filter_map(|piece| piece.map(|p| p.token()).transpose()).collect::<Result<_>>()?;
    after("decode");
    // An emulator takes minutes for it.
    if std::env::var_os(emulator::ARCH).is_some() {
        return Ok(text);
    }
    text.extend(greedy(&mut session.fork()?, &tokens(2, 1200), 2)?);
    after("long");
    Ok(text)
}

/// Runs this test again in a process whose device hangs at the `n`-th call of a kind.
fn hangs_at(test: &str, kind: &str, n: u64) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(HANG, format!("{kind}:{n}")).output().unwrap();
    emulator::assert_passed(&output, &format!("{kind} {n}"));
}

/// What must hold wherever the device hangs.
fn survives() {
    let expected = talk(&load(options(Device::Cpu)).unwrap(), |_| {}).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let began = Instant::now();
    let loaded = load(options(Device::Auto).on_event(move |event| sink.lock().unwrap().push(event.clone()))).unwrap();
    let first = loaded.device();
    assert_eq!(talk(&loaded, |_| {}).unwrap(), expected, "{}", loaded.device_report());
    assert_eq!(loaded.device(), Device::Cpu, "{}", loaded.device_report());
    let report = loaded.device_report().to_string();
    assert!(report.contains("did not answer for"), "{report}");
    assert_eq!(events.lock().unwrap().is_empty(), first == Device::Cpu, "{report}");
    for event in events.lock().unwrap().iter() {
        let Event::SessionMoved { reason, .. } = event else { panic!("{event:?}") };
        assert!(reason.contains(&format!("did not answer for {:.1?}", patience())), "{reason}");
    }
    drop(loaded);
    // One deadline, not one for each buffer.
    assert!(began.elapsed() < 8 * patience(), "it took {:?}", began.elapsed());
    // From now on it is refused without a question.
    let began = Instant::now();
    let error = load(options(Device::hip(0))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.to_string().contains("did not answer for") && began.elapsed() < patience(), "{error}");
    assert_eq!(load(options(Device::Auto)).unwrap().device(), Device::Cpu);
}

#[test]
fn a_device_that_hangs_anywhere_is_given_up_in_time() {
    const TEST: &str = "a_device_that_hangs_anywhere_is_given_up_in_time";
    simulated(TEST, &[], || {
        if std::env::var_os(HANG).is_some() {
            return survives();
        }
        // How many calls of each kind there are until each part ends.
        let faults = Faults::new();
        let mut ends = vec![("start", [0; KINDS.len()])];
        let calls = || std::array::from_fn(|kind| faults.calls(kind));
        let model = load(options(Device::Auto)).unwrap();
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        ends.push(("load", calls()));
        talk(&model, |part| {
            let part = ["prompt", "decode", "long"].into_iter().find(|p| *p == part).unwrap();
            ends.push((part, calls()));
        })
        .unwrap();
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        std::thread::scope(|scope| {
            let mut places = 0;
            for (kind, name) in KINDS.iter().enumerate() {
                for pair in ends.windows(2) {
                    let ((_, from), (part, to)) = (pair[0], pair[1]);
                    let (from, to) = (from[kind], to[kind]);
                    // The first and the last of each part; more of loading, which is mostly self-test.
                    let mut numbers = vec![from + 1, to];
                    if part == "load" {
                        numbers.extend([to / 3, to * 9 / 10]);
                    }
                    numbers.sort_unstable();
                    numbers.dedup();
                    for n in numbers.into_iter().filter(|n| (from + 1..=to).contains(n)) {
                        scope.spawn(move || hangs_at(TEST, name, n));
                        places += 1;
                    }
                }
            }
            assert!(places > 20, "only {places} places to hang at");
        });
    });
}

/// The same with AMD's machine code and the kernels that are embedded; takes minutes of processor time.
#[test]
fn an_emulated_gpu_that_hangs_anywhere_is_given_up_in_time() {
    const TEST: &str = "an_emulated_gpu_that_hangs_anywhere_is_given_up_in_time";
    emulated("gfx1100", TEST, &[], || {
        if ["EMU_HANG_AFTER", "EMU_HANG_COPY"].iter().any(|name| std::env::var_os(name).is_some()) {
            return survives();
        }
        let model = load(options(Device::Auto)).unwrap();
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        let [load, load_copies] = emulator::counts();
        let mut ends = Vec::new();
        talk(&model, |_| ends.push(emulator::counts())).unwrap();
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        let ([prompt, _], [decode, copies]) = (ends[0], ends[1]);
        let launches = [1, load / 2, prompt, prompt + 1, (prompt + decode) / 2, decode];
        let launches = launches.map(|n| ("EMU_HANG_AFTER", n));
        // The last copy of loading is one of the weights.
        let places = launches.into_iter().chain([1, load_copies, copies].map(|n| ("EMU_HANG_COPY", n)));
        for (variable, n) in places {
            let output = emulator::start("gfx1100", TEST, &[(variable, n.to_string())]).unwrap();
            emulator::assert_passed(&output, &format!("{variable} {n}"));
        }
    });
}
