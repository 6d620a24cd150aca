//! What becomes of sessions when a GPU fails, on a simulated one: they go on on the CPU.
//! Skipped, with the reason printed, where there is no C++ compiler.

#![cfg(unix)]

mod common;

use common::simulator::{self, Faults, GARBAGE, KINDS, NAN, NOTHING, WRONG, simulated};
use common::{Tiny, difference, greedy, logits, tokens};
use std::sync::{Arc, Mutex};
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{Device, ErrorKind, Event, KvType, LoadOptions, Model, Prompt, Result, Sampler, Session};

const COPY: usize = 1;
const LAUNCH: usize = 2;
const SYNC: usize = 4;

/// Nothing is rounded to few bits, so that the CPU and the GPU choose the same tokens.
fn exact() -> Tiny {
    Tiny { ty: TensorType::F32, embed: 32, heads: 2, kv_heads: 1, feed_forward: 32, layers: 1, ..Tiny::default() }
}

fn options(device: Device) -> LoadOptions {
    simulator::options().threads(1).device(device).kv_type(KvType::F32)
}

/// Options that collect the events of the model.
fn watched(device: Device) -> (LoadOptions, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    (options(device).on_event(move |event| sink.lock().unwrap().push(event.clone())), events)
}

/// Text that a sampler draws, and what the session says afterwards: that of a fork, a shorter one and the next turn.
fn conversation(session: &mut Session) -> Result<(Vec<u32>, Vec<Vec<f32>>)> {
    let sampler = Sampler::builder().temperature(0.8).repetition_penalty(1.1).seed(7).build()?;
    let prompt = Prompt::from_tokens(tokens(1, 20));
    let pieces = session.generate(&prompt, &sampler)?.max_tokens(5);
    let mut text: Vec<u32> = pieces.filter_map(|piece| piece.map(|p| p.token()).transpose()).collect::<Result<_>>()?;
    let mut fork = session.fork().unwrap();
    fork.truncate(10);
    let rows = logits(&mut fork, &tokens(2, 3));
    text.extend(greedy(session, &tokens(1, 22), 2)?);
    Ok((text, rows))
}

#[test]
fn a_fault_anywhere_changes_no_text_and_leaks_nothing() {
    simulated("a_fault_anywhere_changes_no_text_and_leaks_nothing", &[], || {
        let faults = Faults::new();
        let file = exact().file();
        // Loading fails with a typed error or on to the CPU; what is loaded never fails.
        let run = |device| -> Result<_> {
            let (options, events) = watched(device);
            let model = options.load_gguf(Gguf::from_bytes(file.clone())?)?;
            let began = model.device();
            let mut session = model.session()?;
            let found = conversation(&mut session).unwrap_or_else(|e| panic!("a session on {began} failed: {e}"));
            let events = events.lock().unwrap().clone();
            assert!(began == session.device() || !events.is_empty(), "a session moved without an event");
            Ok((began, found, events.len(), model.device_report().to_string()))
        };
        let (_, (expected, expected_rows), ..) = run(Device::Cpu).unwrap();
        // The GPU agrees without faults; what is done once in a process is done.
        let (device, (text, rows), events, report) = run(Device::Auto).unwrap();
        assert_eq!((device, &text, events), (Device::Hip(0), &expected, 0), "{report}");
        assert!(difference(&expected_rows, &rows) < 1e-3);
        let nothing = faults.held();
        let mut moved = 0;
        for (kind, name) in KINDS.iter().enumerate() {
            faults.fail(kind, 0);
            run(Device::Auto).unwrap();
            assert_eq!(faults.held(), nothing, "{name}: without a fault");
            let calls = faults.calls(kind);
            assert!(calls > 3, "{name} was called {calls} times");
            // All of the few, and a sample of the many launches.
            for n in (1..=calls).filter(|n| calls < 60 || *n < 10 || n % 19 == 0) {
                for lost in [false, true] {
                    let arm = || if lost { faults.lose(kind, n) } else { faults.fail(kind, n) };
                    let what = format!("{name} {n}{}", if lost { " and all later calls" } else { "" });
                    arm();
                    let (_, (text, rows), events, report) = run(Device::Auto).unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert_eq!(text, expected, "{what}: {report}");
                    assert!(difference(&expected_rows, &rows) < 1e-3, "{what}: {report}");
                    assert_eq!(faults.held(), nothing, "{what} leaks");
                    moved += events;
                    // And where the GPU is asked for, loading is what may fail.
                    arm();
                    match if n <= 20 { run(Device::hip(0)) } else { continue } {
                        Ok((_, (text, _), ..)) => assert_eq!(text, expected, "{what}"),
                        Err(e) => {
                            assert!(matches!(e.kind(), ErrorKind::Device | ErrorKind::OutOfMemory), "{what}: {e}")
                        }
                    }
                    assert_eq!(faults.held(), nothing, "{what} leaks");
                }
            }
        }
        assert!(moved > 50, "only {moved} faults met a session");
        faults.fail(0, 0);
    });
}

/// What a rescue promises exactly: tokens that were given stand, and what follows is what the CPU
/// writes after them. With activations and a cache of few bits, where the GPU's own numbers would
/// be other ones.
#[test]
fn a_moved_session_goes_on_as_one_of_the_cpu_does() {
    simulated("a_moved_session_goes_on_as_one_of_the_cpu_does", &[], || {
        let faults = Faults::new();
        let tiny = Tiny { ty: TensorType::Q4_K, embed: 256, head_dim: 64, feed_forward: 256, ..Tiny::default() };
        let prompt = tokens(1, 20);
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let options = |device| simulator::options().threads(1).device(device).kv_type(kv_type);
            let cpu = tiny.load(options(Device::Cpu));
            for k in [0, 1, 5] {
                let (model, sampler) = (tiny.load(options(Device::Auto)), Sampler::greedy());
                let mut session = model.session().unwrap();
                assert_eq!(session.device(), Device::Hip(0), "{}", model.device_report());
                if k == 0 {
                    faults.lose(LAUNCH, 1);
                }
                let stream = session.generate(&Prompt::from_tokens(prompt.clone()), &sampler).unwrap();
                let mut stream = stream.max_tokens(8);
                let mut next = || stream.next().map(|piece| piece.unwrap()).and_then(|p| p.token().zip(p.logprob()));
                let given: Vec<_> = (0..k).map_while(|_| next()).map(|(token, _)| token).collect();
                faults.lose(LAUNCH, 1);
                let rest: Vec<_> =
                    std::iter::from_fn(next).map(|(token, logprob)| (token, logprob.to_bits())).collect();
                faults.fail(0, 0);
                assert!(given.len() == k && stream.session().device() == Device::Cpu && !rest.is_empty());
                let context = Prompt::from_tokens([&prompt[..], &given].concat());
                let mut fresh = cpu.session().unwrap();
                let pieces = fresh.generate(&context, &sampler).unwrap().max_tokens(8 - k).map(|piece| piece.unwrap());
                let expected: Vec<_> = pieces.filter_map(|p| p.token().zip(p.logprob().map(f32::to_bits))).collect();
                assert_eq!(rest, expected, "{kv_type:?}, after {k} tokens");
            }
        }
    });
}

#[test]
fn a_lost_device_loses_no_session() {
    simulated("a_lost_device_loses_no_session", &[], || {
        let faults = Faults::new();
        let (options, events) = watched(Device::Auto);
        let model = exact().load(options);
        let cpu = exact().load(self::options(Device::Cpu));
        let (first, second) = (tokens(1, 30), tokens(2, 40));
        let mut sessions = [model.session().unwrap(), model.session().unwrap()];
        sessions[0].feed(&Prompt::from_tokens(first.clone())).unwrap();
        sessions[1].feed(&Prompt::from_tokens(second.clone())).unwrap();
        // In the middle of a stream.
        let mut expected = cpu.session().unwrap();
        let expected_text = greedy(&mut expected, &first, 6).unwrap();
        let [one, other] = &mut sessions;
        let sampler = Sampler::greedy();
        let mut stream = one.generate(&Prompt::from_tokens(first.clone()), &sampler).unwrap().max_tokens(6);
        let mut text = vec![stream.next().unwrap().unwrap().token().unwrap()];
        assert_eq!(stream.session().device(), Device::Hip(0));
        faults.lose(LAUNCH, 1);
        text.extend(stream.by_ref().map(|piece| piece.unwrap().token().unwrap()));
        assert_eq!(text, expected_text);
        assert_eq!(stream.session().device(), Device::Cpu);
        assert_eq!(one.tokens(), expected.tokens());
        assert_eq!(model.device(), Device::Cpu);
        let report = model.device_report().to_string();
        assert!(report.contains("not on hip:0") && report.contains("failed in use"), "{report}");
        // The device works again, but nobody goes back to it: the other session moves before it fails.
        faults.fail(0, 0);
        assert_eq!(other.device(), Device::Hip(0));
        let mut fork = other.fork().unwrap();
        fork.truncate(35);
        let mut expected = cpu.session().unwrap();
        expected.feed(&Prompt::from_tokens(second[..35].to_vec())).unwrap();
        let next = tokens(3, 40);
        assert!(difference(&logits(&mut expected, &next), &logits(&mut fork, &next)) < 1e-6);
        expected.truncate(0);
        expected.feed(&Prompt::from_tokens(second.clone())).unwrap();
        assert!(difference(&logits(&mut expected, &next), &logits(other, &next)) < 1e-6);
        assert_eq!((fork.device(), other.device()), (Device::Cpu, Device::Cpu));
        assert_eq!(model.session().unwrap().device(), Device::Cpu);
        assert_eq!(faults.calls(LAUNCH), 0, "the lost device was used");
        let events = events.lock().unwrap();
        assert_eq!(events.len(), 3);
        for event in events.iter() {
            let Event::SessionMoved { from, to, reason, .. } = event else { panic!("{event:?}") };
            assert_eq!((*from, *to), (Device::Hip(0), Device::Cpu));
            assert!(reason.contains("reports error 719"), "{reason}");
        }
    });
}

#[test]
fn a_fault_in_a_shared_pass_moves_each_session() {
    simulated("a_fault_in_a_shared_pass_moves_each_session", &[], || {
        let faults = Faults::new();
        let run = |model: &Model| {
            let mut sessions: Vec<_> = (0..3).map(|_| model.session().unwrap()).collect();
            let start = |(i, session): (usize, _)| {
                let sampler =
                    Sampler::builder().temperature(0.8).repetition_penalty(1.1).seed(i as u64).build().unwrap();
                Session::generate(session, &Prompt::from_tokens(tokens(i as u64, 4 + i)), &sampler)
                    .unwrap()
                    .max_tokens(3)
            };
            let mut generations: Vec<_> = sessions.iter_mut().enumerate().map(start).collect();
            let mut text = Vec::new();
            for _ in 0..3 {
                for piece in wavelm::next_of_each(&mut generations) {
                    text.push(piece.unwrap().unwrap().token());
                }
            }
            text
        };
        let expected = run(&exact().load(options(Device::Cpu)));
        for (kind, name) in [(COPY, "copy"), (LAUNCH, "launch"), (SYNC, "wait")] {
            let model = exact().load(options(Device::Auto));
            faults.fail(kind, 0);
            assert_eq!(run(&model), expected);
            let calls = faults.calls(kind);
            assert_eq!(model.device(), Device::Hip(0));
            // The later half is after the prompts.
            let mut moved = 0;
            for n in (calls / 2..calls).filter(|n| calls < 60 || n % 5 == 0) {
                let (options, events) = watched(Device::Auto);
                let model = exact().load(options);
                faults.fail(kind, n);
                assert_eq!(run(&model), expected, "{name} {n}");
                // All moved, or none where what failed was only the capture of a graph.
                let events = events.lock().unwrap().len();
                assert!([0, 3].contains(&events), "{name} {n}: {events} sessions moved");
                moved += events;
            }
            assert!(moved > 0, "no {name} failed in use");
            faults.fail(0, 0);
        }
    });
}

#[test]
fn a_full_device_moves_the_session_that_grows_and_no_other() {
    simulated("a_full_device_moves_the_session_that_grows_and_no_other", &[], || {
        let faults = Faults::new();
        let tiny = Tiny { context: 2048, ..exact() };
        let model = tiny.load(options(Device::Auto));
        let cpu = tiny.load(options(Device::Cpu));
        let (short, long) = (tokens(1, 30), tokens(2, 1200));
        let (mut small, mut large) = (model.session().unwrap(), model.session().unwrap());
        // What either needs to draw tokens is there.
        let small_text = greedy(&mut small, &short, 4).unwrap();
        greedy(&mut large, &long[..100], 4).unwrap();
        faults.memory(0);
        let text = greedy(&mut large, &long, 4).unwrap();
        assert_eq!(text, greedy(&mut cpu.session().unwrap(), &long, 4).unwrap());
        assert_eq!((large.device(), model.device()), (Device::Cpu, Device::Hip(0)));
        assert_eq!(greedy(&mut small, &short, 4).unwrap(), small_text);
        assert_eq!(small.device(), Device::Hip(0));
    });
}

#[test]
fn errors_of_the_caller_move_nobody_and_moving_can_be_off() {
    simulated("errors_of_the_caller_move_nobody_and_moving_can_be_off", &[], || {
        let faults = Faults::new();
        let (options, events) = watched(Device::Auto);
        let tiny = Tiny { context: 64, ..exact() };
        let model = tiny.load(options);
        let mut session = model.session().unwrap();
        let prompt = tokens(1, 20);
        assert_eq!(greedy(&mut session, &[9999], 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(greedy(&mut session, &tokens(1, 65), 1).unwrap_err().kind(), ErrorKind::ContextFull);
        session.canceller().cancel();
        assert_eq!(greedy(&mut session, &prompt, 1).unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!((session.device(), events.lock().unwrap().len()), (Device::Hip(0), 0));
        // A replay that is cancelled goes on later, with nothing forgotten.
        session.feed(&Prompt::from_tokens(prompt.clone())).unwrap();
        let (canceller, more) = (session.canceller(), tokens(2, 3));
        let watched = session.logits(&more, |row, _| {
            // The row after this one is lost, and the replay is what is cancelled.
            faults.fail(COPY, 1);
            canceller.cancel();
            assert_eq!(row, 0);
            Ok(())
        });
        assert_eq!(watched.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!((session.device(), session.len()), (Device::Cpu, 21));
        let mut cpu = tiny.load(self::options(Device::Cpu)).session().unwrap();
        cpu.feed(&Prompt::from_tokens([&prompt[..], &more[..1]].concat())).unwrap();
        assert!(difference(&logits(&mut cpu, &more), &logits(&mut session, &more)) < 1e-6);
        // With the way out closed the error is returned, and the session is as it was.
        let closed = tiny.load(self::options(Device::Auto).rescue(false));
        let mut session = closed.session().unwrap();
        let text = greedy(&mut session, &prompt, 4).unwrap();
        faults.fail(LAUNCH, 3);
        assert_eq!(greedy(&mut session, &prompt, 4).unwrap_err().kind(), ErrorKind::Device);
        assert_eq!((session.device(), closed.device()), (Device::Hip(0), Device::Hip(0)));
        assert_eq!(greedy(&mut session, &prompt, 4).unwrap(), text);
    });
}

/// The text of a session on the simulated GPU after whose `good` tokens something goes wrong without an error, with what
/// the model reports then; drawn on the device, or by the host from rows that are read.
fn text_with(how: usize, name: &str, good: usize, reads_rows: bool) -> (Vec<u32>, u64, Vec<Event>) {
    let faults = Faults::new();
    faults.corrupt(0, "");
    let (options, events) = watched(Device::Auto);
    let model = exact().load(options);
    assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
    let mut session = model.session().unwrap();
    let text = draw(&mut session, reads_rows, |drawn| {
        if drawn == good {
            faults.corrupt(how, name);
        }
    });
    let met = faults.corrupted();
    faults.corrupt(0, "");
    let events = events.lock().unwrap().clone();
    (text, met, events)
}

/// Twelve tokens that a sampler draws, telling how many there are before each.
fn draw(session: &mut Session, reads_rows: bool, mut before: impl FnMut(usize)) -> Vec<u32> {
    let sampler = Sampler::builder().temperature(0.8).repetition_penalty(1.1).seed(11);
    // The probabilities of other tokens are not computed on the device.
    let sampler = if reads_rows { sampler.top_logprobs(2) } else { sampler }.build().unwrap();
    before(0);
    let mut pieces = session.generate(&Prompt::from_tokens(tokens(4, 20)), &sampler).unwrap().max_tokens(12);
    let mut text = Vec::new();
    loop {
        before(text.len().max(1));
        let Some(piece) = pieces.next() else { return text };
        text.extend(piece.unwrap().token());
    }
}

#[test]
fn results_that_cannot_be_move_the_session_and_change_no_text() {
    simulated("results_that_cannot_be_move_the_session_and_change_no_text", &[], || {
        let mut expected = exact().load(options(Device::Cpu)).session().unwrap();
        let expected = draw(&mut expected, false, |_| ());
        assert_eq!(text_with(0, "", 0, false), (expected.clone(), 0, vec![]));
        let mut found = Vec::new();
        let wrong = [
            // The products are the last that a pass computes; each kernel, all of them and a graph do nothing.
            (NAN, "matvec"),
            (NOTHING, "matvec"),
            (NOTHING, "graph"),
            (NAN, "rms_norm"),
            (NAN, "attend"),
            (NAN, "matmul"),
            // What is drawn.
            (NOTHING, "sample_choose"),
            (NOTHING, "sample"),
            (NAN, "sample_choose"),
            (GARBAGE, "sample_choose"),
            (NAN, "sample_weigh"),
            // What comes back.
            (NOTHING, "to_host"),
        ];
        for (how, name) in wrong {
            for (good, reads_rows) in [(0, false), (1, false), (7, false), (0, true), (1, true), (7, true)] {
                let what = format!("{name}: {} after {good} tokens, rows read: {reads_rows}", WRONG[how]);
                let (text, met, events) = text_with(how, name, good, reads_rows);
                assert_eq!(text, expected, "{what}: {events:?}");
                // Only what runs can go wrong, and what goes wrong is found. Without weights nothing is chosen on the
                // device, and the host chooses from the row, which is right.
                let is_found = met == 0 || events.len() == 1 || name == "sample_weigh";
                assert!(is_found, "{what}: {met} times, {events:?}");
                for event in events {
                    let Event::SessionMoved { reason, .. } = event else { panic!("{event:?}") };
                    assert!(reason.contains("the GPU "), "{what}: {reason}");
                    found.push((name, reason));
                }
            }
        }
        for (_, name) in wrong.iter().filter(|(_, name)| !["matmul", "sample_weigh"].contains(name)) {
            assert!(found.iter().any(|(found, _)| found == name), "{name} never went wrong: {found:?}");
        }
        assert!(found.len() > 35, "{}", found.len());
    });
}

#[test]
fn a_shared_pass_whose_results_cannot_be_moves_each_session() {
    simulated("a_shared_pass_whose_results_cannot_be_moves_each_session", &[], || {
        let faults = Faults::new();
        let run = |model: &Model, how, name| {
            faults.corrupt(0, "");
            let mut sessions: Vec<_> = (0..3).map(|_| model.session().unwrap()).collect();
            let sampler = |i| Sampler::builder().temperature(0.8).seed(i as u64).build().unwrap();
            let start = |(i, session): (usize, _)| {
                let prompt = Prompt::from_tokens(tokens(i as u64, 4 + i));
                Session::generate(session, &prompt, &sampler(i)).unwrap().max_tokens(6)
            };
            let mut generations: Vec<_> = sessions.iter_mut().enumerate().map(start).collect();
            let mut text = Vec::new();
            for step in 0..6 {
                if step == 3 {
                    faults.corrupt(how, name);
                }
                let pieces = wavelm::next_of_each(&mut generations);
                text.extend(pieces.into_iter().map(|piece| piece.unwrap().unwrap().token()));
            }
            faults.corrupt(0, "");
            text
        };
        let expected = run(&exact().load(options(Device::Cpu)), 0, "");
        for (how, name) in [(NAN, "matvec"), (NOTHING, "graph"), (GARBAGE, "sample_choose"), (NOTHING, "sample")] {
            let (options, events) = watched(Device::Auto);
            assert_eq!(run(&exact().load(options), how, name), expected, "{name}: {}", WRONG[how]);
            assert_eq!(events.lock().unwrap().len(), 3, "{name}: {}", WRONG[how]);
        }
    });
}

#[test]
fn without_the_way_out_results_that_cannot_be_are_errors() {
    simulated("without_the_way_out_results_that_cannot_be_are_errors", &[], || {
        let faults = Faults::new();
        let model = exact().load(options(Device::Auto).rescue(false));
        let mut session = model.session().unwrap();
        let prompt = tokens(1, 20);
        let text = greedy(&mut session, &prompt, 4).unwrap();
        for (how, name) in [(NAN, "rms_norm"), (NOTHING, "matvec"), (GARBAGE, "sample_choose")] {
            faults.corrupt(how, name);
            let error = greedy(&mut session, &prompt, 4).unwrap_err();
            assert!(error.kind() == ErrorKind::Device && error.to_string().contains("the GPU "), "{error}");
            let error = session.logits(&prompt[..2], |_, _| Ok(()));
            assert!(name == "sample_choose" || error.unwrap_err().kind() == ErrorKind::Device, "{name}");
            faults.corrupt(0, "");
            session.clear();
            assert_eq!(greedy(&mut session, &prompt, 4).unwrap(), text);
        }
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_forked_process_leaves_the_gpu() {
    simulated("a_forked_process_leaves_the_gpu", &[], || {
        let faults = Faults::new();
        let (first, more) = (tokens(1, 20), tokens(1, 24));
        let expected = greedy(&mut exact().load(options(Device::Cpu)).session().unwrap(), &more, 5).unwrap();
        let model = exact().load(options(Device::Auto));
        let mut session = model.session().unwrap();
        session.feed(&Prompt::from_tokens(first)).unwrap();
        faults.fail(0, 0);
        // SAFETY: the child needs no lock of another thread, and ends without handlers of the parent.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                libc::alarm(60);
                let went_on = greedy(&mut session, &more, 5).unwrap() == expected && session.device() == Device::Cpu;
                let fresh = exact().load(options(Device::Auto));
                let stays = fresh.device() == Device::Cpu && fresh.device_report().to_string().contains("forked");
                drop((session, model, fresh));
                let calls: u64 = (0..KINDS.len()).map(|kind| faults.calls(kind)).sum();
                libc::_exit(if went_on && stays && calls == 0 { 0 } else { 1 });
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            assert_eq!(status, 0, "the child's status");
        }
        assert_eq!(greedy(&mut session, &more, 5).unwrap(), expected);
        assert_eq!(session.device(), Device::Hip(0));
    });
}

#[test]
fn what_blocks_count_with_may_hold_anything() {
    simulated("what_blocks_count_with_may_hold_anything", &[], || {
        // Long enough that several blocks share the attention of a token.
        let tiny = Tiny { context: 2048, ..exact() };
        let expected = greedy(&mut tiny.load(options(Device::Cpu)).session().unwrap(), &tokens(5, 700), 8).unwrap();
        let faults = Faults::new();
        let (options, events) = watched(Device::Auto);
        let model = tiny.load(options);
        let mut session = model.session().unwrap();
        // A pass that leaves garbage everywhere that attention writes, counters among it, ends in an error or in another
        // text; the next one begins with zeros.
        let mut other = model.session().unwrap();
        other.feed(&Prompt::from_tokens(tokens(6, 700))).unwrap();
        faults.corrupt(GARBAGE, "attend_decode");
        let _ = other.feed(&Prompt::from_tokens(tokens(6, 702)));
        faults.corrupt(0, "");
        assert_eq!(greedy(&mut session, &tokens(5, 700), 8).unwrap(), expected);
        assert!(events.lock().unwrap().is_empty(), "{:?}", events.lock().unwrap());
    });
}

/// A device whose kernels of this name compute wrongly is not used, and the reason names them as `blamed` does.
fn assert_blames(corrupt: &str, tiny: &Tiny, kv_type: KvType, blamed: &str) {
    let test = std::thread::current().name().unwrap().to_owned();
    simulated(&test, &[("WAVELM_SIM_CORRUPT", corrupt)], || {
        let gguf = || Gguf::from_bytes(tiny.file()).unwrap();
        let model = simulator::options().threads(1).kv_type(kv_type).load_gguf(gguf()).unwrap();
        let report = model.device_report().to_string();
        assert_eq!(model.device(), Device::Cpu, "{report}");
        let reason = format!("hip:0 failed its self-test: {blamed}");
        assert!(report.contains(&reason), "{report}");
        greedy(&mut model.session().unwrap(), &[1, 2, 3], 2).unwrap();
        // The device is out of use, not only for this model and not only once.
        let error = simulator::options().device(Device::hip(0)).load_gguf(gguf()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains(&reason), "{error}");
    });
}

#[test]
fn a_wrong_product_is_found() {
    let tiny = Tiny { ty: TensorType::Q4_K, embed: 256, heads: 16, feed_forward: 256, layers: 1, ..Tiny::default() };
    assert_blames("matvec_q4_k_2", &tiny, KvType::F16, "matvec q4_k for 2 tokens is off by 0.2");
}

#[test]
fn a_wrong_product_of_many_tokens_is_found() {
    assert_blames("matmul_", &Tiny::default(), KvType::F16, "matmul q8_0 for 12 tokens is off by 0.2");
}

#[test]
fn a_wrong_norm_is_found() {
    assert_blames("rms_norm", &Tiny::default(), KvType::F16, "rms_norm of 64 columns for 1 token is off by 0.2");
}

#[test]
fn a_wrong_attention_is_found() {
    assert_blames("attend_decode", &Tiny::default(), KvType::Q8_0, "attention with heads of 16 columns for 1 token ");
}

#[test]
fn a_wrong_rotation_on_the_way_to_the_cache_is_found() {
    assert_blames("store_kv", &Tiny { window: Some(50), arch: "gemma3", ..Tiny::default() }, KvType::F16, "attention");
}

#[test]
fn a_wrong_draw_is_found() {
    assert_blames("sample_choose", &Tiny::default(), KvType::F16, "sampling with ");
}

#[test]
fn a_self_test_is_done_once() {
    simulated("a_self_test_is_done_once", &[], || {
        let faults = Faults::new();
        // A fault meanwhile says nothing of the kernels: the next model tries again.
        for n in [3, 20] {
            let nothing = faults.held();
            faults.fail(SYNC, n);
            let model = exact().load(options(Device::Auto));
            let report = model.device_report().to_string();
            assert!(model.device() == Device::Cpu && report.contains("reports error 719"), "{report}");
            drop(model);
            assert_eq!(faults.held(), nothing);
        }
        let load = |tiny: Tiny| {
            faults.fail(0, 0);
            let model = tiny.load(options(Device::hip(0)));
            (faults.calls(LAUNCH), model.threads())
        };
        assert!(load(exact()).0 > 100, "nothing was tested");
        assert_eq!(load(exact()).0, 0);
        // What another model needs besides is tested when it comes.
        assert!(load(Tiny { ty: TensorType::Q4_0, ..exact() }).0 > 30);
    });
}
