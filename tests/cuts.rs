//! On the CPU a text does not depend on how its context was cut: neither on the lengths of the
//! passes that evaluated it, nor on what else they evaluated, nor on whether the cache was there or
//! made again. Logits are compared bit by bit, for every type of weights and of cache, and on every
//! instruction set of the processor.

mod common;

use common::{Tiny, logits, real_model, tokens};
use std::path::Path;
use wavelm::bench_internals::tensor_types;
use wavelm::gguf::TensorType;
use wavelm::{Device, KvType, LoadOptions, Model, Precision, Prompt, Sampler, Session};

const PASSES: [usize; 8] = [1, 2, 3, 5, 8, 9, 16, 48];
const CACHES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

fn options(kv_type: KvType, precision: Precision) -> LoadOptions {
    Model::options().device(Device::Cpu).threads(1).kv_type(kv_type).precision(precision)
}

/// The bits of the logits at each of `tokens`, which are evaluated in passes of so many.
fn in_passes(session: &mut Session, tokens: &[u32], pass: usize) -> Vec<u32> {
    let rows = tokens.chunks(pass).flat_map(|pass| logits(session, pass));
    rows.flatten().map(f32::to_bits).collect()
}

/// Asserts that the logits of 48 tokens are the same in passes of any length, in a session and in
/// those that share its past.
fn check(session: &Session, what: &str) {
    let tokens = tokens(5, 48);
    let vocabulary = session.model().vocab_len() as u32;
    let tokens: Vec<u32> = tokens.into_iter().map(|token| token % vocabulary).collect();
    let expected = in_passes(&mut session.fork().unwrap(), &tokens, 1);
    assert!(expected.iter().all(|&x| f32::from_bits(x).is_finite()), "{what}");
    assert_eq!(expected.len(), 48 * vocabulary as usize);
    for pass in PASSES {
        assert!(in_passes(&mut session.fork().unwrap(), &tokens, pass) == expected, "{what}: passes of {pass}");
        // And where it is a part of a prompt, whose logits are those of its last token.
        let mut fork = session.fork().unwrap();
        let context = [session.tokens(), &tokens[..pass]].concat();
        let (fed, last) = context.split_at(context.len() - 1);
        if !fed.is_empty() {
            fork.feed(&Prompt::from_tokens(fed.to_vec())).unwrap();
        }
        let expected = &expected[(pass - 1) * vocabulary as usize..][..vocabulary as usize];
        assert!(in_passes(&mut fork, last, 1) == expected, "{what}: {pass} fed");
    }
}

/// Runs `body` in a process of its own for each instruction set that the kernels are written for
/// and the processor has; the library takes one for another that it has not.
fn on_each_instruction_set(test: &str, body: impl FnOnce()) {
    const CHOICE: &str = "WAVELM_CPU";
    if std::env::var_os(CHOICE).is_some() {
        return body();
    }
    let all: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["scalar", "avx2", "avxvnni", "avx512"],
        "aarch64" => &["scalar", "neon", "dotprod", "i8mm"],
        _ => &["scalar"],
    };
    for name in all {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", test, "--nocapture"]).env(CHOICE, name).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
    }
}

#[test]
fn for_every_type_of_weights_and_cache() {
    on_each_instruction_set("for_every_type_of_weights_and_cache", || {
        for ty in tensor_types() {
            let tiny = Tiny { ty, embed: 256, head_dim: 64, feed_forward: 256, ..Tiny::default() };
            for kv_type in CACHES {
                let session = tiny.load(options(kv_type, Precision::Fast)).session().unwrap();
                check(&session, &format!("{ty:?} {kv_type:?}"));
            }
            let session = tiny.load(options(KvType::F32, Precision::Reference)).session().unwrap();
            check(&session, &format!("{ty:?} reference"));
        }
    });
}

#[test]
fn for_heads_of_every_shape() {
    on_each_instruction_set("for_heads_of_every_shape", || {
        let shapes = [(1, 1, 4), (2, 1, 20), (3, 1, 36), (4, 1, 16), (8, 1, 8), (6, 6, 10), (9, 3, 16)];
        let kinds = [("llama", None), ("qwen3", None), ("gemma3", Some(21)), ("gemma3", Some(70))];
        for (i, (heads, kv_heads, head_dim)) in shapes.into_iter().enumerate() {
            for (j, (arch, window)) in kinds.into_iter().enumerate() {
                // One layer of six has no window.
                let layers = if window.is_some() { 6 } else { 2 };
                let (ty, kv_type) = (TensorType::F16, CACHES[(i + j) % CACHES.len()]);
                let tiny = Tiny { arch, ty, window, heads, kv_heads, head_dim, layers, ..Tiny::default() };
                let mut session = tiny.load(options(kv_type, Precision::Fast)).session().unwrap();
                session.feed(&Prompt::from_tokens(tokens(6, 77))).unwrap();
                check(&session, &format!("{arch} {window:?} {heads} {kv_heads} {head_dim} {kv_type:?}"));
            }
        }
    });
}

/// Models with biases, softcaps, other rotations and heads, as far as they load.
#[test]
fn for_the_fixtures_of_all_families() {
    on_each_instruction_set("for_the_fixtures_of_all_families", || {
        let mut checked = 0;
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny")).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|e| e != "gguf") {
                continue;
            }
            for (kv_type, precision) in [(KvType::F16, Precision::Fast), (KvType::F32, Precision::Reference)] {
                let Ok(model) = options(kv_type, precision).load(&path) else { continue };
                check(&model.session().unwrap(), &path.display().to_string());
                checked += 1;
            }
        }
        assert!(checked >= 2 * 10, "{checked} were checked");
    });
}

#[test]
fn behind_a_long_context() {
    on_each_instruction_set("behind_a_long_context", || {
        for (arch, window, kv_type) in [
            ("llama", None, KvType::F32),
            ("llama", None, KvType::F16),
            ("llama", None, KvType::Q8_0),
            ("gemma3", Some(1000), KvType::F16),
        ] {
            let tiny = Tiny { arch, window, heads: 6, embed: 32, feed_forward: 32, context: 5100, ..Tiny::default() };
            let model = tiny.load(options(kv_type, Precision::Fast).threads(2));
            let past = tokens(7, 5000);
            let mut session = model.session().unwrap();
            session.feed(&Prompt::from_tokens(past.clone())).unwrap();
            check(&session, &format!("{arch} {window:?} {kv_type:?}"));
            // Behind a past that was evaluated in other passes.
            let expected = in_passes(&mut session, &tokens(8, 3), 3);
            let mut other = model.session().unwrap();
            for end in (0..5000).step_by(37).skip(1).chain([5000]) {
                other.feed(&Prompt::from_tokens(past[..end].to_vec())).unwrap();
            }
            assert!(in_passes(&mut other, &tokens(8, 3), 1) == expected, "{arch} {window:?} {kv_type:?}");
        }
    });
}

/// What a sampler draws, with the bits of its probability.
fn drawn(session: &mut Session, prompt: &[u32], seed: u64, n: usize) -> Vec<(u32, u32)> {
    let sampler = Sampler::builder().temperature(0.9).seed(seed).build().unwrap();
    let generation = session.generate(&Prompt::from_tokens(prompt.to_vec()), &sampler).unwrap().max_tokens(n);
    generation
        .filter_map(|piece| {
            let piece = piece.unwrap();
            Some((piece.token()?, piece.logprob()?.to_bits()))
        })
        .collect()
}

fn quantized() -> Tiny {
    let (ty, context) = (TensorType::Q4_K, 2000);
    Tiny { ty, embed: 256, head_dim: 64, heads: 12, kv_heads: 4, feed_forward: 256, context, ..Tiny::default() }
}

#[test]
fn beside_other_sequences() {
    on_each_instruction_set("beside_other_sequences", || {
        for kv_type in CACHES {
            let model = quantized().load(options(kv_type, Precision::Fast));
            let prompts: Vec<Vec<u32>> =
                [1, 3, 63, 64, 65, 90, 120, 300].iter().enumerate().map(|(i, &n)| tokens(i as u64, n)).collect();
            let alone: Vec<_> =
                (0..8).map(|i| drawn(&mut model.session().unwrap(), &prompts[i], i as u64, 20)).collect();
            let mut sessions: Vec<Session> = (0..8).map(|_| model.session().unwrap()).collect();
            let mut generations = Vec::new();
            for (i, session) in sessions.iter_mut().enumerate() {
                let sampler = Sampler::builder().temperature(0.9).seed(i as u64).build().unwrap();
                let prompt = Prompt::from_tokens(prompts[i].clone());
                generations.push(session.generate(&prompt, &sampler).unwrap().max_tokens(20));
            }
            let mut together = vec![Vec::new(); 8];
            while generations.iter().any(|g| g.stop_reason().is_none()) {
                for (found, piece) in together.iter_mut().zip(wavelm::next_of_each(&mut generations)) {
                    let Some(piece) = piece.transpose().unwrap() else { continue };
                    found.extend(piece.token().zip(piece.logprob().map(f32::to_bits)));
                }
            }
            assert!(alone == together, "{kv_type:?}");
        }
    });
}

/// A seeded text is the same whatever the session held before: nothing, another text, a longer or a
/// shorter beginning.
#[test]
fn after_whatever_the_session_held() {
    on_each_instruction_set("after_whatever_the_session_held", || {
        for arch in ["llama", "gemma3"] {
            let tiny = Tiny { arch, window: (arch == "gemma3").then_some(50), ..quantized() };
            let model = tiny.load(options(KvType::F16, Precision::Fast));
            for seed in 0..4 {
                let prompt = tokens(seed, 40 + 31 * seed as usize);
                let expected = drawn(&mut model.session().unwrap(), &prompt, seed, 30);
                let other: Vec<u32> = [&prompt[..prompt.len() / 2], &tokens(99, 50)].concat();
                for held in
                    [&other[..], &other[..prompt.len() / 2 + 1], &prompt[..1], &prompt[..prompt.len() - 1], &prompt]
                {
                    let mut session = model.session().unwrap();
                    session.feed(&Prompt::from_tokens(held.to_vec())).unwrap();
                    assert!(drawn(&mut session, &prompt, seed, 30) == expected, "{arch} {seed} {}", held.len());
                    // It holds the text now.
                    assert!(drawn(&mut session, &prompt, seed, 30) == expected, "{arch} {seed} again");
                }
            }
        }
    });
}

/// What a rescue does, without a device that fails: all tokens so far are evaluated again, in as
/// few passes as there can be, and the text goes on as it would have.
fn goes_on_alike(model: &Model, prompts: &[Vec<u32>], n: usize) {
    let greedy = |context: &[u32], n| common::greedy(&mut model.session().unwrap(), context, n).unwrap();
    let mut cuts = 0;
    for prompt in prompts {
        let expected = greedy(prompt, n);
        for k in [1, 2, 5, 10, 20, 30].into_iter().filter(|&k| k < expected.len()) {
            let context = [prompt, &expected[..k]].concat();
            assert_eq!(greedy(&context, expected.len() - k), expected[k..], "{} tokens, then {k}", prompt.len());
            cuts += 1;
        }
    }
    assert!(cuts > 0);
}

#[test]
fn after_the_cache_was_made_again() {
    on_each_instruction_set("after_the_cache_was_made_again", || {
        for (arch, kv_type) in [("llama", KvType::F16), ("gemma3", KvType::F32), ("qwen2", KvType::Q8_0)] {
            let tiny = Tiny { arch, window: (arch == "gemma3").then_some(50), ..quantized() };
            let prompts: Vec<_> = (0..3).map(|i| tokens(i, 5 + 90 * i as usize)).collect();
            goes_on_alike(&tiny.load(options(kv_type, Precision::Fast)), &prompts, 32);
        }
    });
}

#[test]
fn of_real_models() {
    for file in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-Q4_K_M.gguf"] {
        let Some(path) = real_model(file) else { continue };
        let model = options(KvType::F16, Precision::Fast).threads(2).load(path).unwrap();
        let subjects = ["the moon", "cats", "Peru"];
        let prompt = |subject| model.prompt(&format!("Tell me about {subject}.")).unwrap().tokens().to_vec();
        goes_on_alike(&model, &subjects.map(prompt), 32);
        let mut session = model.session().unwrap();
        session.feed(&Prompt::from_tokens(prompt("rain"))).unwrap();
        let text =
            prompt("a river by a small town, and how it began and ended in a long decline of its trade and arts");
        let expected = in_passes(&mut session.fork().unwrap(), &text, 1);
        for pass in PASSES {
            assert!(in_passes(&mut session.fork().unwrap(), &text, pass) == expected, "{file}: passes of {pass}");
        }
    }
}
