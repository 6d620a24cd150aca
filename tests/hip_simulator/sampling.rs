//! Sessions on a simulated GPU draw their tokens there: the same ones as the CPU's sampler from the same logits, without
//! a row of logits coming back.

use super::common::{EOS, Random, Tiny, VOCAB};
use crate::common::simulator::{self, Faults, simulated};
use std::collections::BTreeSet;
use wavelm::sampler::SamplerBuilder;
use wavelm::{Device, ErrorKind, Prompt, Sampler, Session};

const TOKENS: usize = 6;

/// Evaluates all of a prompt but its last token, so that what follows is evaluated one by one.
fn feed(session: &mut Session, prompt: &[u32]) {
    session.truncate(0);
    session.feed(&Prompt::from_tokens(prompt[..prompt.len() - 1].to_vec())).unwrap();
}

/// Pieces as (token, log-probability).
fn generated(session: &mut Session, prompt: &[u32], sampler: &Sampler) -> wavelm::Result<Vec<(u32, f32)>> {
    feed(session, prompt);
    let generation = session.generate(&Prompt::from_tokens(prompt.to_vec()), sampler)?.max_tokens(TOKENS);
    let pieces = generation.map(|piece| piece.map(|p| p.token().zip(p.logprob())));
    pieces.filter_map(Result::transpose).collect()
}

/// What the CPU's sampler draws from the logits that the same session computes, one token after the other.
fn expected(session: &mut Session, prompt: &[u32], sampler: &Sampler) -> Vec<(u32, f32)> {
    feed(session, prompt);
    let mut state = sampler.start(prompt).unwrap();
    let (mut next, mut drawn) = (prompt[prompt.len() - 1..].to_vec(), Vec::new());
    while drawn.len() < TOKENS {
        let mut last = Vec::new();
        let keep = |_, row: &[f32]| {
            last = row.to_vec();
            Ok(())
        };
        session.logits(&next, keep).unwrap();
        let choice = state.sample(&last).unwrap();
        if choice.token == EOS {
            break;
        }
        drawn.push((choice.token, choice.logprob));
        next = vec![choice.token];
    }
    drawn
}

/// Samplers of all kinds.
fn samplers() -> Vec<SamplerBuilder> {
    let mut random = Random(5);
    let mut pick = |values: &[f32]| values[random.below(values.len())];
    let mut all = vec![
        Sampler::builder(),
        Sampler::builder().temperature(0.0),
        Sampler::builder().temperature(0.0).repetition_penalty(1.5).penalty_window(usize::MAX),
        Sampler::builder().temperature(3.0).top_k(0).top_p(1.0).min_p(0.0),
        Sampler::builder().top_k(20).typical(0.5),
        // Not on the device: the row is read.
        Sampler::builder().top_k(0).typical(0.7),
        Sampler::builder().top_logprobs(3),
    ];
    for _ in 0..14 {
        let mut one = Sampler::builder()
            .temperature(pick(&[0.3, 0.8, 1.0, 2.5]))
            .top_k(pick(&[0.0, 1.0, 5.0, 40.0, 1000.0]) as usize)
            .top_p(pick(&[0.3, 0.9, 1.0]))
            .min_p(pick(&[0.0, 0.05, 0.5]))
            .typical(pick(&[0.4, 1.0, 1.0]))
            .repetition_penalty(pick(&[1.0, 1.0, 1.3]))
            .frequency_penalty(pick(&[0.0, 0.0, 0.4]))
            // The model likes to repeat itself, and would say nothing else.
            .presence_penalty(pick(&[0.0, 30.0, 30.0]))
            .penalty_window(pick(&[0.0, 3.0, 64.0, 64.0]) as usize);
        for token in 0..pick(&[0.0, 2.0, 200.0]) as u32 {
            one = one.logit_bias(token, pick(&[1.0, -1.0, f32::NEG_INFINITY]));
        }
        all.push(one);
    }
    all
}

#[test]
fn sessions_draw_what_the_cpu_sampler_draws() {
    simulated("sampling::sessions_draw_what_the_cpu_sampler_draws", &[], || {
        let model = Tiny { layers: 1, ..Tiny::default() }.load(simulator::options());
        assert_eq!(model.device(), Device::Hip(0), "{}", model.device_report());
        let (mut session, mut other) = (model.session().unwrap(), model.session().unwrap());
        let (mut random, mut different) = (Random(9), BTreeSet::new());
        for builder in samplers() {
            let prompt: Vec<u32> = (0..12).map(|_| random.below(250) as u32).collect();
            let sampler = builder.seed(random.bits()).build().unwrap();
            let found = generated(&mut session, &prompt, &sampler).unwrap();
            assert_eq!(found, expected(&mut other, &prompt, &sampler), "{sampler:?}");
            different.extend(found.into_iter().map(|(token, _)| token));
        }
        assert!(different.len() > 30, "{different:?}");
    });
}

#[test]
fn only_choices_come_back() {
    simulated("sampling::only_choices_come_back", &[], || {
        let driver = Faults::new();
        let model = Tiny { layers: 1, ..Tiny::default() }.load(simulator::options());
        let mut session = model.session().unwrap();
        let prompt: Vec<u32> = (20..40).collect();
        let mut downloaded = |sampler: SamplerBuilder| {
            let before = driver.downloaded();
            let found = generated(&mut session, &prompt, &sampler.seed(3).build().unwrap()).unwrap();
            assert_eq!(found.len(), TOKENS);
            driver.downloaded() - before
        };
        // A token, two logits and a sum.
        const CHOICE: u64 = 24;
        for sampler in [
            Sampler::builder(),
            Sampler::builder().temperature(0.0),
            Sampler::builder().top_k(0).repetition_penalty(1.2).logit_bias(EOS, -3.0),
            Sampler::builder().typical(0.5).ban(EOS),
        ] {
            assert_eq!(downloaded(sampler), TOKENS as u64 * CHOICE);
        }
        let row = 4 * VOCAB as u64;
        assert_eq!(downloaded(Sampler::builder().top_logprobs(2)), TOKENS as u64 * row);
    });
}

#[test]
fn idle_sessions_leave_nothing_queued() {
    simulated("sampling::idle_sessions_leave_nothing_queued", &[], || {
        let driver = Faults::new();
        let model = Tiny { layers: 1, ..Tiny::default() }.load(simulator::options());
        assert_eq!(driver.queued(), 0);
        let mut session = model.session().unwrap();
        session.feed(&Prompt::from_tokens((0..100).collect::<Vec<_>>())).unwrap();
        assert_eq!(driver.queued(), 0);
        // Both write to a page that they share, which copies it.
        let mut fork = session.fork().unwrap();
        for session in [&mut session, &mut fork] {
            let prompt = Prompt::from_tokens((0..101).collect::<Vec<_>>());
            for piece in session.generate(&prompt, &Sampler::default()).unwrap().max_tokens(2) {
                piece.unwrap();
                assert_eq!(driver.queued(), 0);
            }
        }
    });
}

#[test]
fn errors_are_those_of_the_cpu_sampler() {
    simulated("sampling::errors_are_those_of_the_cpu_sampler", &[], || {
        let tiny = Tiny { layers: 1, ..Tiny::default() };
        let texts = [Device::hip(0), Device::Cpu].map(|device| {
            let model = tiny.load(simulator::options().device(device).threads(1));
            let mut session = model.session().unwrap();
            let all_banned = (0..VOCAB as u32).fold(Sampler::builder(), SamplerBuilder::ban);
            let outside = Sampler::builder().logit_bias(VOCAB as u32, 1.0);
            let errors = [all_banned, outside].map(|sampler| {
                let error = generated(&mut session, &[1, 2, 3], &sampler.build().unwrap()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                error.to_string()
            });
            // The session is as it was.
            generated(&mut session, &[1, 2, 3], &Sampler::greedy()).unwrap();
            errors
        });
        assert_eq!(texts[0], texts[1]);
    });
}

#[test]
fn sessions_of_one_model_draw_at_the_same_time() {
    simulated("sampling::sessions_of_one_model_draw_at_the_same_time", &[], || {
        let model = Tiny { layers: 1, ..Tiny::default() }.load(simulator::options());
        let sampler = |seed| Sampler::builder().repetition_penalty(1.1).seed(seed).build().unwrap();
        let run = |seed| generated(&mut model.session().unwrap(), &[3, 1, 4], &sampler(seed)).unwrap();
        let alone: Vec<_> = (0..4).map(run).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || (seed, run(seed)))).collect();
            for thread in threads {
                let (seed, found) = thread.join().unwrap();
                assert_eq!(found, alone[seed as usize]);
            }
        });
    });
}
