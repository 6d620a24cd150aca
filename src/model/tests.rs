//! The effect of a bug in a forward pass on a session.

use super::*;
use crate::program::{LayerState, Op};
use crate::session::{Prompt, Session};
use crate::simd::Isa;
use crate::{ErrorKind, Precision};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/llama-gqa-tied.gguf");

/// The model, and the same model with a pass that panics unless it has exactly one token.
fn sound_and_broken(threads: usize) -> Option<(Model, Model)> {
    if !Path::new(FILE).exists() {
        println!("skipped: {FILE} is not there");
        return None;
    }
    let load = || Model::options().device(Device::Cpu).threads(threads).load(FILE).unwrap();
    let (sound, broken) = (load(), load());
    let Inner { gguf, config, program, tokenizer, template, report, context, kv_type, .. } =
        Arc::into_inner(broken.0).unwrap();
    let isa = Isa::best();
    let options = cpu::CpuOptions { threads: Some(threads), pool: None, kv_type, precision: Precision::Fast, isa };
    let file = Arc::new(Gguf::open(FILE).unwrap());
    let mut backend = cpu::CpuBackend::new(file, Arc::clone(&program), options).unwrap();
    backend.break_passes_of_many();
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let rescue = None;
    let inner = Inner { gguf, config, program, tokenizer, template, backend, report, rescue, context, kv_type };
    Some((sound, Model(Arc::new(inner))))
}

#[test]
fn a_step_that_panics_is_an_error_and_the_session_goes_on() {
    for threads in [1, 2, 4] {
        let Some((sound, broken)) = sound_and_broken(threads) else { return };
        let (mut expected, mut session) = (sound.session().unwrap(), broken.session().unwrap());
        let mut all = Vec::new();
        let last = |session: &mut Session, token: u32| {
            let mut row = Vec::new();
            let keep = |_: usize, logits: &[f32]| {
                row.extend_from_slice(logits);
                Ok(())
            };
            session.logits(&[token], keep).unwrap();
            row
        };
        for token in [3, 5, 7, 11, 13] {
            for _ in 0..3 {
                let error = session.feed(&Prompt::from_tokens([&all[..], &[1, 2, 3, 4, 5, 6]].concat())).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Device);
                assert!(error.to_string().contains("panicked"), "{error}");
                assert_eq!(session.tokens(), all);
            }
            all.push(token);
            assert_eq!(last(&mut session, token), last(&mut expected, token));
        }
    }
}

/// A model whose second layer has a recurrence besides its attention, over a cache with a window.
fn recurrent(threads: usize) -> Option<Model> {
    if !Path::new(FILE).exists() {
        println!("skipped: {FILE} is not there");
        return None;
    }
    let model = Model::options().device(Device::Cpu).threads(threads).load(FILE).unwrap();
    let Inner { gguf, config, program, tokenizer, template, report, context, kv_type, .. } =
        Arc::into_inner(model.0).unwrap();
    let mut program = Program::clone(&program);
    let is_attention = |op: &&mut Op| matches!(op, Op::Attention { layer: 1, .. });
    if let Some(Op::Attention { info, .. }) = program.ops.iter_mut().find(is_attention) {
        info.window = Some(70);
    }
    if let Some(LayerState::Paged { window, .. }) = program.states.get_mut(1) {
        *window = Some(70);
    }
    let embed = program.ops.iter().find_map(|op| if let Op::Embed { out, .. } = op { Some(*out) } else { None });
    let x = embed.unwrap();
    program.states.push(LayerState::Recurrent { floats: program.columns(x).unwrap() });
    let layer = program.states.len() - 1;
    let at = program.layer_cuts().unwrap()[1].unwrap().op;
    program.ops.insert(at, Op::Decay { layer, x });
    let options =
        cpu::CpuOptions { threads: Some(threads), pool: None, kv_type, precision: Precision::Fast, isa: Isa::best() };
    let file = Arc::new(Gguf::open(FILE).unwrap());
    let program = Arc::new(program);
    let backend: Arc<dyn Backend> = Arc::new(cpu::CpuBackend::new(file, Arc::clone(&program), options).unwrap());
    let rescue = None;
    let inner = Inner { gguf, config, program, tokenizer, template, backend, report, rescue, context, kv_type };
    Some(Model(Arc::new(inner)))
}

/// The logits after `tokens` in a session without a past.
fn fresh(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut session = model.session().unwrap();
    session.feed(&Prompt::from_tokens(&tokens[..tokens.len() - 1])).unwrap();
    last(&mut session, tokens[tokens.len() - 1])
}

fn last(session: &mut Session, token: u32) -> Vec<f32> {
    let mut row = Vec::new();
    let keep = |_: usize, logits: &[f32]| {
        row.extend_from_slice(logits);
        Ok(())
    };
    session.logits(&[token], keep).unwrap();
    row
}

fn numbers(from: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (from + i * 7) % 200).collect()
}

#[test]
fn a_state_is_the_same_however_its_tokens_came() {
    for threads in [1, 3] {
        let Some(model) = recurrent(threads) else { return };
        let tokens = numbers(1, 400);
        let expected = fresh(&model, &tokens);
        for at_a_time in [1, 64, 150, 399] {
            let mut session = model.session().unwrap();
            for part in tokens[..399].chunks(at_a_time) {
                session.logits(part, |_, _| Ok(())).unwrap();
            }
            assert_eq!(last(&mut session, tokens[399]), expected, "{at_a_time} at a time, {threads} threads");
        }
    }
}

#[test]
fn a_session_with_a_state_goes_back_anywhere() {
    let Some(model) = recurrent(2) else { return };
    let (tokens, other) = (numbers(1, 500), numbers(90, 500));
    let mut session = model.session().unwrap();
    session.feed(&Prompt::from_tokens(&tokens[..300])).unwrap();
    // The same prompt again: only its last token is evaluated.
    for _ in 0..3 {
        let generation = session.generate(&Prompt::from_tokens(&tokens[..300]), &crate::Sampler::greedy()).unwrap();
        assert_eq!(generation.stats().reused_tokens, 299);
        let text: Vec<u32> = generation.max_tokens(20).filter_map(|piece| piece.unwrap().token()).collect();
        let mut expected = model.session().unwrap();
        let expected = expected.generate(&Prompt::from_tokens(&tokens[..300]), &crate::Sampler::greedy()).unwrap();
        assert_eq!(text, expected.max_tokens(20).filter_map(|piece| piece.unwrap().token()).collect::<Vec<_>>());
    }
    // Any other place, of a session and its fork.
    for cut in [299, 250, 100, 1] {
        let mut fork = session.fork().unwrap();
        for session in [&mut session, &mut fork] {
            session.truncate(cut);
            assert_eq!(session.tokens(), &tokens[..cut]);
            session.logits(&other[..30], |_, _| Ok(())).unwrap();
            let all = [&tokens[..cut], &other[..31]].concat();
            assert_eq!(last(session, other[30]), fresh(&model, &all), "cut at {cut}");
        }
        session.feed(&Prompt::from_tokens(&tokens[..])).unwrap();
    }
}

#[test]
fn a_pass_that_is_cancelled_loses_no_state() {
    let Some(model) = recurrent(2) else { return };
    let tokens = numbers(3, 500);
    let mut session = model.session().unwrap();
    session.feed(&Prompt::from_tokens(&tokens[..40])).unwrap();
    let canceller = session.canceller();
    for _ in 0..5 {
        canceller.cancel();
        assert_eq!(session.feed(&Prompt::from_tokens(&tokens[..])).unwrap_err().kind(), ErrorKind::Cancelled);
        let len = session.len();
        assert_eq!(last(&mut session, 5), fresh(&model, &[&tokens[..len], &[5]].concat()));
        session.truncate(len);
    }
}

#[test]
fn sessions_with_a_state_share_passes() {
    let Some(model) = recurrent(2) else { return };
    let prompts = [numbers(1, 90), numbers(2, 3), numbers(3, 140)];
    let alone = |prompt: &Vec<u32>| -> Vec<u32> {
        let mut session = model.session().unwrap();
        let generation = session.generate(&Prompt::from_tokens(&prompt[..]), &crate::Sampler::greedy()).unwrap();
        generation.max_tokens(80).filter_map(|piece| piece.unwrap().token()).collect()
    };
    let expected: Vec<Vec<u32>> = prompts.iter().map(alone).collect();
    let mut sessions: Vec<Session> = prompts.iter().map(|_| model.session().unwrap()).collect();
    let mut generations: Vec<_> = sessions
        .iter_mut()
        .zip(&prompts)
        .map(|(session, prompt)| {
            session.generate(&Prompt::from_tokens(&prompt[..]), &crate::Sampler::greedy()).unwrap().max_tokens(80)
        })
        .collect();
    let mut texts = vec![Vec::new(); 3];
    while generations.iter().any(|generation| generation.stop_reason().is_none()) {
        for (text, piece) in texts.iter_mut().zip(crate::session::next_of_each(&mut generations)) {
            text.extend(piece.and_then(|piece| piece.unwrap().token()));
        }
    }
    assert_eq!(texts, expected);
    drop(generations);
    drop(sessions);
    assert!(model.backend().states().pages_in_use().iter().all(|&pages| pages == 0));
}
