//! Sessions as a stranger would use them, on a tiny random model.

mod common;

use common::{Random, Tiny, VOCAB};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wavelm::gguf::{Gguf, TensorType};
use wavelm::{
    ContextPolicy, Device, ErrorKind, KvType, Model, Precision, Prompt, Sampler, Session, SessionOptions, StopReason,
};

fn tiny() -> Model {
    Tiny::default().load(Model::options().threads(2))
}

/// Random tokens, without the special ones.
fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.below(256) as u32).collect()
}

fn prompt(seed: u64, n: usize) -> Prompt {
    Prompt::from_tokens(tokens(seed, n))
}

/// The logits at each of `tokens`.
fn logits(session: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    session
        .logits(tokens, |i, row| {
            assert_eq!(i, rows.len());
            rows.push(row.to_vec());
            Ok(())
        })
        .unwrap();
    assert_eq!(rows.len(), tokens.len());
    rows
}

/// The largest difference between two sets of rows, relative to the largest logit.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let max = a.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
    let diff = a.iter().flatten().zip(b.iter().flatten()).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    diff / max
}

fn greedy(session: &mut Session, prompt: &Prompt, n: usize) -> Vec<u32> {
    let generation = session.generate(prompt, &Sampler::greedy()).unwrap().max_tokens(n);
    generation.filter_map(|p| p.unwrap().token()).collect()
}

#[test]
fn types_are_what_the_documentation_says() {
    fn is_shared<T: Clone + Send + Sync + 'static>() {}
    fn is_send<T: Send + 'static>() {}
    is_shared::<Model>();
    is_shared::<Sampler>();
    is_send::<Session>();
}

/// Weights of files are copied between tokens where that is asked for, to be read in another order; those in memory are
/// not. The variable that asks for it is that of a process, so the test is one of its own.
#[test]
fn copying_weights_does_not_change_a_bit() {
    if std::env::var_os("WAVELM_CPU_WEIGHTS").is_none_or(|v| v != "copied") {
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "copying_weights_does_not_change_a_bit"]).env("WAVELM_CPU_WEIGHTS", "copied");
        let output = test.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    for ty in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1] {
        let tiny = Tiny { ty, ..Tiny::default() };
        let path = std::env::temp_dir().join(format!("wavelm-{}-{ty:?}.gguf", std::process::id()));
        std::fs::write(&path, tiny.file()).unwrap();
        let model = Model::options().threads(2).device(Device::Cpu).load(&path).unwrap();
        let run = |model: Model| {
            let mut session = model.session().unwrap();
            let mut rows = Vec::new();
            for i in 0..40 {
                rows.extend(logits(&mut session, &tokens(i, 1)));
            }
            rows.extend(logits(&mut session, &tokens(100, 30)));
            rows
        };
        let found = run(model);
        std::fs::remove_file(&path).unwrap();
        assert!(found == run(tiny.load(Model::options().threads(2))), "{ty:?}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for arch in ["llama", "qwen2", "qwen3", "gemma3"] {
        let tiny = Tiny { arch, window: (arch == "gemma3").then_some(50), ..Tiny::default() };
        let run = |threads| {
            let mut session = tiny.load(Model::options().threads(threads)).session().unwrap();
            let mut rows = logits(&mut session, &tokens(1, 300));
            // And a single token over a long past.
            rows.extend(logits(&mut session, &tokens(2, 1)));
            rows
        };
        let one = run(1);
        assert!(one.iter().flatten().all(|v| v.is_finite()), "{arch}");
        assert!(one == run(2), "{arch}: 2 threads");
        assert!(one == run(5), "{arch}: 5 threads");
    }
}

#[test]
fn a_prompt_in_chunks_is_the_prompt_token_by_token() {
    for arch in ["llama", "qwen3", "gemma3"] {
        for ty in [TensorType::F32, TensorType::Q8_0, TensorType::Q4_0] {
            let tiny = Tiny { arch, ty, window: (arch == "gemma3").then_some(20), ..Tiny::default() };
            let model = tiny.load(Model::options().threads(2));
            let tokens = tokens(3, 150);
            let whole = logits(&mut model.session().unwrap(), &tokens);
            let mut session = model.session().unwrap();
            let single: Vec<_> = tokens.iter().flat_map(|&t| logits(&mut session, &[t])).collect();
            assert!(whole == single, "{arch} {ty:?}");
        }
    }
}

#[test]
fn fast_and_reference_agree() {
    let tiny = Tiny { ty: TensorType::Q8_0, ..Tiny::default() };
    let fast = logits(&mut tiny.load(Model::options()).session().unwrap(), &tokens(4, 100));
    let exact = Model::options().precision(Precision::Reference);
    let exact = logits(&mut tiny.load(exact).session().unwrap(), &tokens(4, 100));
    let error = difference(&exact, &fast);
    assert!(error > 0.0 && error < 0.03, "{error}");
}

#[test]
fn cache_types_agree() {
    let run = |kv_type| {
        let tiny = Tiny { ty: TensorType::F32, ..Tiny::default() };
        logits(&mut tiny.load(Model::options().kv_type(kv_type)).session().unwrap(), &tokens(5, 200))
    };
    let exact = run(KvType::F32);
    let (half, eight) = (difference(&exact, &run(KvType::F16)), difference(&exact, &run(KvType::Q8_0)));
    assert!(half > 0.0 && half < 3e-3, "{half}");
    assert!(eight > 0.0 && eight < 0.05, "{eight}");
}

#[test]
fn the_cached_prefix_is_reused_and_changes_nothing() {
    let model = tiny();
    let first = tokens(6, 100);
    let mut longer = first.clone();
    longer.extend(tokens(7, 30));
    let mut other = longer.clone();
    other[60] = (other[60] + 1) % 256;

    let fresh = |tokens: &[u32]| greedy(&mut model.session().unwrap(), &Prompt::from_tokens(tokens), 5);
    let mut session = model.session().unwrap();
    session.feed(&Prompt::from_tokens(first.as_slice())).unwrap();
    for (tokens, reused) in [(&longer, 100), (&other, 60), (&other, 129), (&first, 60)] {
        let sampler = Sampler::greedy();
        let mut generation = session.generate(&Prompt::from_tokens(tokens.as_slice()), &sampler).unwrap().max_tokens(5);
        assert_eq!(generation.stats().reused_tokens, reused);
        assert_eq!(generation.stats().prompt_tokens, tokens.len());
        let drawn: Vec<u32> = generation.by_ref().filter_map(|p| p.unwrap().token()).collect();
        assert_eq!(drawn, fresh(tokens));
        drop(generation);
        session.truncate(tokens.len());
    }
}

#[test]
fn forks_go_their_own_ways() {
    let model = tiny();
    let mut a = model.session().unwrap();
    a.feed(&prompt(8, 90)).unwrap();
    let mut b = a.fork().unwrap();
    assert_eq!(a.tokens(), b.tokens());
    let (left, right) = (tokens(9, 20), tokens(10, 20));
    let (of_a, of_b) = (logits(&mut a, &left), logits(&mut b, &right));
    drop(a);
    let whole = |tail: &[u32]| {
        let mut session = model.session().unwrap();
        session.feed(&prompt(8, 90)).unwrap();
        logits(&mut session, tail)
    };
    assert_eq!(of_a, whole(&left));
    assert_eq!(of_b, whole(&right));
}

#[test]
fn cancelling_stops_a_long_prompt_and_the_session_lives_on() {
    let tiny = Tiny { context: 20_000, layers: 4, ..Tiny::default() };
    let model = tiny.load(Model::options().threads(2));
    let long = prompt(11, 20_000);
    let mut session = model.session().unwrap();
    let stop = session.canceller();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        stop.cancel();
        Instant::now()
    });
    let error = session.feed(&long).unwrap_err();
    let waited = canceller.join().unwrap().elapsed();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(session.len() < 20_000);
    assert!(waited < Duration::from_secs(2), "it took {waited:?} to stop");
    // What was evaluated is still good.
    let done = session.len();
    let next = logits(&mut session, &tokens(12, 3));
    let mut again = model.session().unwrap();
    if done > 0 {
        again.feed(&Prompt::from_tokens(&long.tokens()[..done])).unwrap();
    }
    assert_eq!(next, logits(&mut again, &tokens(12, 3)));
}

#[test]
fn cancelling_ends_a_stream_with_one_error() {
    let model = tiny();
    let mut session = model.session().unwrap();
    let stop = session.canceller();
    let mut generation = session.generate(&prompt(13, 5), &Sampler::greedy()).unwrap();
    assert!(generation.next().unwrap().is_ok());
    stop.cancel();
    assert_eq!(generation.next().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(generation.next().is_none());
    assert_eq!(generation.stop_reason(), Some(StopReason::Error));
    drop(generation);
    assert_eq!(greedy(&mut session, &prompt(13, 5), 4), greedy(&mut model.session().unwrap(), &prompt(13, 5), 4));
}

#[test]
fn a_full_context_is_a_typed_error_that_loses_nothing() {
    let model = tiny();
    let mut session = model.session_with(SessionOptions::default().context(40)).unwrap();
    assert_eq!(session.feed(&prompt(14, 41)).unwrap_err().kind(), ErrorKind::ContextFull);
    let mut generation =
        session.generate(&prompt(14, 36), &Sampler::builder().temperature(0.0).ban(257).build().unwrap()).unwrap();
    let mut drawn = 0;
    let error = loop {
        match generation.next().unwrap() {
            Ok(_) => drawn += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ContextFull);
    assert!(error.to_string().contains("40"), "{error}");
    assert_eq!(drawn, 5, "four more fit, and a fifth is drawn from the logits of the last");
    drop(generation);
    assert_eq!(session.len(), 40);
}

#[test]
fn a_sliding_context_goes_on_and_keeps_the_start() {
    let model = tiny();
    let policy = ContextPolicy::Slide { keep: 4 };
    let mut session = model.session_with(SessionOptions::default().context(40).when_full(policy)).unwrap();
    let start = tokens(15, 36);
    let sampler = Sampler::builder().seed(1).ban(257).build().unwrap();
    let generation = session.generate(&Prompt::from_tokens(start.as_slice()), &sampler).unwrap().max_tokens(100);
    assert_eq!(generation.map(|p| p.unwrap()).filter(|p| p.token().is_some()).count(), 100);
    assert_eq!(session.tokens()[..4], start[..4]);
    assert!(session.len() <= 40);
    // A prompt that is too long is shortened by the same rule.
    session.feed(&prompt(16, 500)).unwrap();
    assert_eq!(session.tokens()[..4], tokens(16, 500)[..4]);
    assert_eq!(session.tokens().last(), tokens(16, 500).last());
}

#[test]
fn the_seed_decides_the_text() {
    let model = tiny();
    let draw = |seed| {
        let sampler = Sampler::builder().temperature(1.5).seed(seed).build().unwrap();
        let mut session = model.session().unwrap();
        let mut generation = session.generate(&prompt(17, 8), &sampler).unwrap().max_tokens(30);
        assert_eq!(generation.seed(), seed);
        generation.by_ref().filter_map(|p| p.unwrap().token()).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn pieces_join_to_the_text_and_carry_logprobs() {
    let model = tiny();
    let mut session = model.session().unwrap();
    let sampler = Sampler::builder().temperature(2.0).seed(3).top_logprobs(3).build().unwrap();
    let mut generation = session.generate(&prompt(18, 8), &sampler).unwrap().max_tokens(200);
    let (mut text, mut drawn) = (String::new(), Vec::new());
    for piece in generation.by_ref() {
        let piece = piece.unwrap();
        text.push_str(piece.text());
        if let Some(token) = piece.token() {
            drawn.push(token);
            assert!(piece.logprob().unwrap() <= 0.0);
            assert_eq!(piece.top_logprobs().len(), 3);
            assert!(piece.top_logprobs().is_sorted_by(|a, b| a.logprob >= b.logprob));
        }
    }
    assert_eq!(generation.stats().generated_tokens, drawn.len());
    drop(generation);
    assert_eq!(text, model.tokenizer().decode(&drawn).unwrap());
}

#[test]
fn a_stop_text_ends_the_stream_and_is_not_shown() {
    let model = tiny();
    let sampler = Sampler::builder().temperature(1.0).seed(5).build().unwrap();
    let all = model.session().unwrap().generate(&prompt(19, 8), &sampler).unwrap().max_tokens(60).text().unwrap();
    let (at, _) = all.char_indices().nth(all.chars().count() / 2).unwrap();
    let stop: String = all[at..].chars().take(2).collect();
    let mut session = model.session().unwrap();
    let mut generation = session.generate(&prompt(19, 8), &sampler).unwrap().max_tokens(60).stop_at(stop.as_str());
    let text = generation.text().unwrap();
    assert_eq!(text, all[..all.find(&stop).unwrap()]);
    assert_eq!(generation.stop_reason(), Some(StopReason::StopText));
}

#[test]
fn many_sessions_work_at_once_on_one_pool() {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap());
    let model = Tiny::default().load(Model::options().pool(Arc::clone(&pool)));
    let expected: Vec<_> = (0..6).map(|i| greedy(&mut model.session().unwrap(), &prompt(20 + i, 50), 10)).collect();
    // From threads of their own, and from inside of the pool itself.
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..6)
            .map(|i| {
                let model = model.clone();
                scope.spawn(move || greedy(&mut model.session().unwrap(), &prompt(20 + i, 50), 10))
            })
            .collect();
        for (handle, expected) in handles.into_iter().zip(&expected) {
            assert_eq!(handle.join().unwrap(), *expected);
        }
    });
    pool.scope(|scope| {
        for (i, expected) in expected.iter().enumerate() {
            let model = &model;
            scope.spawn(move |_| {
                assert_eq!(greedy(&mut model.session().unwrap(), &prompt(20 + i as u64, 50), 10), *expected);
            });
        }
    });
}

/// What generations give that advance together: tokens and text, and why each ended.
fn together(mut generations: Vec<wavelm::Generation<'_>>) -> Vec<(Vec<Option<u32>>, String, Option<StopReason>)> {
    let mut found = vec![(Vec::new(), String::new(), None); generations.len()];
    while generations.iter().any(|generation| generation.stop_reason().is_none()) {
        let pieces = wavelm::next_of_each(&mut generations);
        assert_eq!(pieces.len(), found.len());
        for ((tokens, text, _), piece) in found.iter_mut().zip(pieces) {
            let Some(piece) = piece else { continue };
            match piece {
                Ok(piece) => {
                    tokens.push(piece.token());
                    text.push_str(piece.text());
                }
                Err(e) => text.push_str(&format!("{:?}", e.kind())),
            }
        }
    }
    for ((_, _, reason), generation) in found.iter_mut().zip(&generations) {
        *reason = generation.stop_reason();
    }
    found
}

#[test]
fn generations_that_share_passes_give_what_each_would_alone() {
    let (model, other) = (tiny(), Tiny { layers: 1, ..Tiny::default() }.load(Model::options().threads(1)));
    // More than fit a pass, of two models, with samplers and lengths of their own; some end early.
    let one = |i: u64| {
        let model = if i % 5 == 4 { &other } else { &model };
        let options = SessionOptions::default().context(if i % 7 == 3 { 30 } else { 60 });
        let options = if i.is_multiple_of(3) { options.when_full(ContextPolicy::Slide { keep: 2 }) } else { options };
        let sampler = Sampler::builder().temperature((i % 4) as f32 * 0.5).repetition_penalty(1.2).seed(i);
        (model.session_with(options).unwrap(), prompt(40 + i % 3, 3 + i as usize % 20), sampler.build().unwrap())
    };
    const COUNT: u64 = 150;
    let run = |numbers: &[u64], stop: &str| {
        let mut made: Vec<_> = numbers.iter().map(|&i| (i, one(i))).collect();
        let started = made.iter_mut().map(|(i, (session, prompt, sampler))| {
            session.generate(prompt, sampler).unwrap().max_tokens(*i as usize % 9 * 5).stop_at(stop)
        });
        together(started.collect())
    };
    // What stops some of them, but not all.
    let (_, text, _) = &run(&[7], "")[0];
    let stop = text.chars().nth(10).unwrap().to_string();
    let alone: Vec<_> = (0..COUNT).flat_map(|i| run(&[i], &stop)).collect();
    let shared = run(&(0..COUNT).collect::<Vec<_>>(), &stop);
    for (i, (shared, alone)) in shared.iter().zip(&alone).enumerate() {
        assert_eq!(shared, alone, "generation {i}");
    }
    let ended = |wanted| shared.iter().filter(|(_, _, reason)| *reason == Some(wanted)).count();
    for reason in [StopReason::MaxTokens, StopReason::StopText, StopReason::Error] {
        assert!(ended(reason) > 0, "no generation ended by {reason:?}");
    }
}

#[test]
fn a_cancelled_generation_ends_alone() {
    let model = tiny();
    let mut sessions: Vec<_> = (0..3).map(|_| model.session().unwrap()).collect();
    let cancellers: Vec<_> = sessions.iter().map(Session::canceller).collect();
    let start = |session| Session::generate(session, &prompt(3, 5), &Sampler::greedy()).unwrap().max_tokens(6);
    let mut generations: Vec<_> = sessions.iter_mut().map(start).collect();
    for step in 0..6 {
        if step == 3 {
            cancellers[1].cancel();
        }
        let pieces = wavelm::next_of_each(&mut generations);
        for (i, piece) in pieces.into_iter().enumerate() {
            match (i, step) {
                (1, 3) => assert_eq!(piece.unwrap().unwrap_err().kind(), ErrorKind::Cancelled),
                (1, 4..) => assert!(piece.is_none()),
                _ => assert!(piece.unwrap().unwrap().token().is_some()),
            }
        }
    }
    assert!(wavelm::next_of_each(generations.iter_mut().skip(1)).iter().all(Option::is_none));
    assert!(wavelm::next_of_each(&mut []).is_empty());
}

#[test]
fn wrong_arguments_are_typed_errors() {
    let model = tiny();
    let mut session = model.session().unwrap();
    let kind = |r: wavelm::Result<()>| r.unwrap_err().kind();
    assert_eq!(kind(session.feed(&Prompt::default())), ErrorKind::InvalidInput);
    assert_eq!(kind(session.feed(&Prompt::from_tokens([VOCAB as u32]))), ErrorKind::InvalidInput);
    assert_eq!(kind(session.logits(&[], |_, _| Ok(()))), ErrorKind::InvalidInput);
    assert!(model.session_with(SessionOptions::default().context(100_000)).is_err());
    assert!(model.session_with(SessionOptions::default().context(0)).is_err());
    let slide = SessionOptions::default().context(10).when_full(ContextPolicy::Slide { keep: 9 });
    assert!(model.session_with(slide).is_err());
    let file = || Gguf::from_bytes(Tiny::default().file()).unwrap();
    assert_eq!(Model::options().threads(0).load_gguf(file()).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(Model::options().context(0).load_gguf(file()).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(Model::options().device(Device::hip(9)).load_gguf(file()).unwrap_err().kind(), ErrorKind::Device);
    let error = Model::load("/no/such/model.gguf").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("/no/such/model.gguf"), "{error}");
}

#[test]
fn loading_reports_progress_and_can_be_cancelled() {
    let file = || Gguf::from_bytes(Tiny::default().file()).unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let options = Model::options().on_progress(move |p| {
        log.lock().unwrap().push((p.bytes, p.total_bytes));
        p.go_on()
    });
    options.load_gguf(file()).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen[0].0 == 0);
    assert_eq!(seen.last().unwrap().0, seen.last().unwrap().1);
    let cancelled = Model::options().on_progress(|_| ControlFlow::Break(())).load_gguf(file());
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn the_program_can_be_read() {
    let text = tiny().program().to_string();
    for line in ["x = embed token_embd.weight", "rope 0", "attention q, cache 1", "logits"] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
