//! The sampler as a caller sees it: what it draws, how often, and what it refuses.

use std::collections::HashSet;

use wavelm::ErrorKind;
use wavelm::sampler::{Sampler, SamplerBuilder, SamplerState};

/// Fixed pseudo-random bits (SplitMix64).
fn bits(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Bell-shaped logits made of integers alone, so that they are the same on every machine: multiples of 2^-13 with a
/// mean of 0 and a standard deviation of 4.6.
fn integer_logits(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut one = || {
        let word = bits(&mut state);
        let sum: i32 = (0..4).map(|i| (word >> (16 * i)) as u16).map(i32::from).sum();
        (sum - 2 * 65_535) as f32 / 8192.0
    };
    (0..len).map(|_| one()).collect()
}

/// Nothing but the temperature.
fn plain() -> SamplerBuilder {
    Sampler::builder().temperature(1.0).top_k(0).top_p(1.0).min_p(0.0).seed(1)
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let best = logits.iter().fold(f32::MIN, |a, &b| a.max(b));
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - f64::from(best)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

fn draw(sampler: SamplerBuilder, logits: &[f32], count: usize) -> Vec<u32> {
    let mut state = sampler.build().unwrap().start(&[]).unwrap();
    (0..count).map(|_| state.sample(logits).unwrap().token).collect()
}

/// Pearson's statistic of draws against probabilities, and how many standard deviations it is from its mean.
fn chi_square_deviation(draws: &[u32], probabilities: &[f64]) -> f64 {
    let mut counts = vec![0.0; probabilities.len()];
    draws.iter().for_each(|&token| counts[token as usize] += 1.0);
    let mut statistic = 0.0;
    let mut cells = 0.0;
    for (count, p) in counts.iter().zip(probabilities) {
        let expected = p * draws.len() as f64;
        if expected == 0.0 {
            assert_eq!(*count, 0.0);
        } else {
            assert!(expected >= 5.0, "the test needs more draws");
            statistic += (count - expected) * (count - expected) / expected;
            cells += 1.0;
        }
    }
    let freedom: f64 = cells - 1.0;
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn draws_have_the_probabilities_of_the_distribution() {
    let logits: Vec<f32> = integer_logits(3, 40).iter().map(|logit| logit * 0.25).collect();
    let tempered = |temperature: f32| softmax(&logits.iter().map(|logit| logit / temperature).collect::<Vec<_>>());

    let deviation = chi_square_deviation(&draw(plain(), &logits, 100_000), &softmax(&logits));
    assert!(deviation.abs() < 4.0, "{deviation}");
    let deviation = chi_square_deviation(&draw(plain().temperature(1.7), &logits, 100_000), &tempered(1.7));
    assert!(deviation.abs() < 4.0, "{deviation}");

    let mut best: Vec<usize> = (0..logits.len()).collect();
    best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let mut top_8 = tempered(0.8);
    best[8..].iter().for_each(|&token| top_8[token] = 0.0);
    let total: f64 = top_8.iter().sum();
    top_8.iter_mut().for_each(|p| *p /= total);
    let deviation = chi_square_deviation(&draw(plain().temperature(0.8).top_k(8), &logits, 100_000), &top_8);
    assert!(deviation.abs() < 4.0, "{deviation}");

    // The test itself notices a wrong distribution.
    let deviation = chi_square_deviation(&draw(plain(), &logits, 100_000), &tempered(1.1));
    assert!(deviation.abs() > 4.0, "{deviation}");
}

#[test]
fn successive_draws_are_independent() {
    let draws = draw(plain(), &[0.0; 4], 100_001);
    let pairs: Vec<u32> = draws.windows(2).map(|pair| pair[0] * 4 + pair[1]).collect();
    let deviation = chi_square_deviation(&pairs, &[1.0 / 16.0; 16]);
    assert!(deviation.abs() < 5.0, "{deviation}");
}

/// The expected tokens come from a straightforward implementation of the documented steps in another language.
#[test]
fn the_same_seed_gives_these_tokens_on_every_machine() {
    fn text(sampler: SamplerBuilder) -> Vec<u32> {
        let mut state = sampler.seed(42).build().unwrap().start(&[1, 2, 3]).unwrap();
        (0..24).map(|step| state.sample(&integer_logits(step, 32_000)).unwrap().token).collect()
    }
    let default = Sampler::builder();
    let all = || {
        let sampler = Sampler::builder().temperature(1.3).top_k(500).typical(0.95).top_p(0.98).min_p(0.001);
        sampler.repetition_penalty(1.2).frequency_penalty(0.1).presence_penalty(0.2).logit_bias(7, 12.0).ban(31_999)
    };
    assert_eq!(
        text(default),
        [
            12297, 1473, 433, 25028, 20571, 16410, 14157, 21576, 21290, 13963, 7065, 17111, 3920, 5349, 21707, 20999,
            29345, 2545, 25246, 1040, 8651, 26873, 20437, 2107
        ]
    );
    assert_eq!(
        text(all()),
        [
            6031, 3820, 7, 26395, 18172, 24665, 8893, 21921, 22192, 12316, 21763, 855, 3353, 25355, 30167, 24583,
            22420, 11701, 13170, 9170, 14855, 5006, 4635, 22470
        ]
    );
    assert_eq!(
        text(plain()),
        [
            19667, 17218, 15262, 12392, 5637, 29387, 12078, 18568, 5294, 8464, 3778, 14295, 27730, 9923, 20347, 7445,
            29792, 11701, 22771, 24348, 22927, 27353, 27819, 3691
        ]
    );
}

#[test]
fn a_seed_repeats_a_generation_and_none_gives_each_its_own() {
    let logits = integer_logits(1, 1000);
    let run = |state: &mut SamplerState| (0..20).map(|_| state.sample(&logits).unwrap().token).collect::<Vec<_>>();
    let seeded = plain().seed(7).build().unwrap();
    assert_eq!(run(&mut seeded.start(&[]).unwrap()), run(&mut seeded.start(&[]).unwrap()));

    let unseeded = Sampler::default();
    let (mut one, mut other) = (unseeded.start(&[]).unwrap(), unseeded.start(&[]).unwrap());
    assert_ne!(one.seed(), other.seed());
    let text = run(&mut one);
    assert_ne!(text, run(&mut other));
    let repeated = Sampler::builder().seed(one.seed()).build().unwrap();
    assert_eq!(text, run(&mut repeated.start(&[]).unwrap()));

    let mut fork = one.clone();
    assert_eq!(run(&mut fork), run(&mut one));
}

#[test]
fn logprobs_are_the_log_softmax_of_the_raw_logits() {
    let logits = integer_logits(9, 5000);
    let expected = softmax(&logits);
    let sampler = plain().temperature(3.0).top_k(100).logit_bias(5, 30.0).repetition_penalty(1.5).top_logprobs(7);
    let mut state = sampler.build().unwrap().start(&[5, 6, 7]).unwrap();
    for _ in 0..50 {
        let choice = state.sample(&logits).unwrap();
        assert!((f64::from(choice.logprob) - expected[choice.token as usize].ln()).abs() < 1e-6 * 40.0);
        assert_eq!(choice.top_logprobs.len(), 7);
        assert!(choice.top_logprobs.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
        for top in &choice.top_logprobs {
            assert!((f64::from(top.logprob) - expected[top.token as usize].ln()).abs() < 2e-6);
        }
        let better = expected.iter().filter(|&&p| p > expected[choice.top_logprobs[6].token as usize]);
        assert_eq!(better.count(), 6);
    }
    let mut state = plain().top_logprobs(9).build().unwrap().start(&[]).unwrap();
    let choice = state.sample(&[f32::NAN, 2.0, f32::NEG_INFINITY, 2.0]).unwrap();
    assert_eq!(choice.logprob, 0.5f32.ln());
    assert_eq!(choice.top_logprobs.iter().map(|top| top.token).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn greedy_takes_the_best_token_and_of_equals_the_first() {
    let pick = |logits: &[f32]| Sampler::greedy().start(&[]).unwrap().sample(logits).unwrap().token;
    for len in [1, 2, 63, 64, 65, 129, 1000, 40_000] {
        let mut logits = integer_logits(len as u64, len);
        let best = logits.iter().fold(f32::MIN, |a, &b| a.max(b));
        let first = logits.iter().position(|&logit| logit == best).unwrap();
        assert_eq!(pick(&logits), first as u32);
        logits[len - 1] = 100.0;
        assert_eq!(pick(&logits), len as u32 - 1);
        logits[len / 2] = 100.0;
        assert_eq!(pick(&logits), len as u32 / 2);
    }
    assert_eq!(pick(&[-0.0, 0.0]), 0);
    assert_eq!(pick(&[f32::NAN, -5.0, f32::NAN, -4.0]), 3);
    // A temperature so low that it decides like greedy
    assert!(draw(plain().temperature(1e-30), &[1.0, 2.0, 1.5], 100).iter().all(|&token| token == 1));
    assert!(draw(plain().temperature(f32::from_bits(1)), &[1.0, 2.0, 1.5], 100).iter().all(|&token| token == 1));
    assert_eq!(draw(plain().temperature(f32::MAX), &[-9.0, 9.0], 100).iter().collect::<HashSet<_>>().len(), 2);
}

#[test]
fn penalties_look_at_the_prompt_and_the_answer_within_the_window() {
    let logits = [3.0, 2.9, 2.8, 2.7, -1.0];
    let greedy = || Sampler::builder().temperature(0.0);
    let text = |sampler: SamplerBuilder, prompt: &[u32]| {
        let mut state = sampler.build().unwrap().start(prompt).unwrap();
        (0..6).map(|_| state.sample(&logits).unwrap().token).collect::<Vec<_>>()
    };
    assert_eq!(text(greedy(), &[0, 1]), [0; 6]);
    assert_eq!(text(greedy().presence_penalty(1.0), &[0, 1]), [2, 3, 0, 0, 0, 0]);
    assert_eq!(text(greedy().frequency_penalty(1.0), &[0, 1]), [2, 3, 0, 1, 2, 3]);
    assert_eq!(text(greedy().repetition_penalty(2.0), &[]), [0, 1, 2, 3, 0, 0]);
    assert_eq!(text(greedy().presence_penalty(1.0).penalty_window(1), &[7, 7, 0]), [1, 0, 1, 0, 1, 0]);
    assert_eq!(text(greedy().presence_penalty(1.0).penalty_window(0), &[0, 1]), [0; 6]);
    assert_eq!(text(greedy().presence_penalty(1.0).penalty_window(usize::MAX), &[0, 1]), [2, 3, 0, 0, 0, 0]);
    // Prompts may hold tokens that have no logit.
    assert_eq!(text(greedy().presence_penalty(1.0), &[u32::MAX, 99]), [0, 1, 2, 3, 0, 0]);
}

#[test]
fn a_banned_token_is_never_drawn_and_a_bias_shifts_the_odds() {
    let logits = [5.0, 1.0, 1.0, 0.0];
    let drawn: HashSet<u32> = draw(plain().ban(0).ban(2), &logits, 2000).into_iter().collect();
    assert_eq!(drawn, HashSet::from([1, 3]));
    let shifted: Vec<f32> = vec![5.0, 3.5, 1.0, 5.0];
    let draws = draw(plain().logit_bias(1, 2.5).logit_bias(3, 5.0), &logits, 100_000);
    let deviation = chi_square_deviation(&draws, &softmax(&shifted));
    assert!(deviation.abs() < 4.0, "{deviation}");
}

#[test]
fn infinite_and_overflowing_logits_are_the_largest_finite_ones() {
    let inf = f32::INFINITY;
    let drawn: HashSet<u32> = draw(plain(), &[0.0, inf, 3e38, inf], 200).into_iter().collect();
    assert_eq!(drawn, HashSet::from([1, 3]));
    let mut state = Sampler::greedy().start(&[]).unwrap();
    let choice = state.sample(&[inf, inf, -inf]).unwrap();
    assert_eq!((choice.token, choice.logprob), (0, 0.5f32.ln()));
    assert!(draw(plain().logit_bias(1, f32::MAX), &[0.0, f32::MAX], 50).iter().all(|&token| token == 1));
    assert!(draw(plain(), &[f32::MIN, f32::MAX], 50).iter().all(|&token| token == 1));
    assert!(draw(plain().typical(0.5), &[f32::MIN, f32::MAX], 50).iter().all(|&token| token == 1));
    // A negative penalty that overflows
    let rewarded = plain().frequency_penalty(f32::MIN).repetition_penalty(f32::from_bits(1));
    let mut state = rewarded.build().unwrap().start(&[2, 2, 2]).unwrap();
    assert_eq!(state.sample(&[1.0, 2.0, 3.0]).unwrap().token, 2);
}

#[test]
fn extreme_settings_leave_at_least_one_token() {
    let logits = integer_logits(4, 3000);
    let best = Sampler::greedy().start(&[]).unwrap().sample(&logits).unwrap().token;
    for sampler in [plain().top_p(0.0), plain().min_p(1.0), plain().top_k(1), plain().top_p(f32::from_bits(1))] {
        assert!(draw(sampler, &logits, 20).iter().all(|&token| token == best));
    }
    for sampler in [plain().typical(0.0), plain().typical(f32::from_bits(1)), plain().min_p(f32::from_bits(1))] {
        draw(sampler, &logits, 5);
    }
    // Equal logits are cut by their ids.
    assert!(draw(plain().top_k(2), &[1.0; 300], 100).iter().all(|&token| token < 2));
    assert!(draw(plain().top_p(0.01), &[1.0; 300], 100).iter().all(|&token| token < 3));
}

#[test]
fn nothing_to_choose_from_is_an_error_that_changes_nothing() {
    let refuse = |sampler: SamplerBuilder, logits: &[f32], about: &str| {
        let error = sampler.build().unwrap().start(&[]).unwrap().sample(logits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(about), "{error}");
    };
    let inf = f32::INFINITY;
    for temperature in [0.0, 1.0] {
        let sampler = || plain().temperature(temperature);
        refuse(sampler(), &[], "no logits");
        refuse(sampler(), &[f32::NAN, f32::NAN], "none of the 2 logits");
        refuse(sampler(), &[-inf, f32::NAN], "none of the 2 logits");
        refuse(sampler().ban(0).ban(1), &[1.0, 2.0], "banned");
        refuse(sampler().ban(1), &[-inf, 2.0], "banned");
        refuse(sampler().ban(0).typical(0.5).top_k(3).top_p(0.5).min_p(0.5), &[2.0], "banned");
        refuse(sampler().ban(2), &[1.0, 2.0], "token 2, but the model has only the tokens 0 to 1");
        refuse(sampler().logit_bias(u32::MAX, 1.0), &[1.0, 2.0], "token 4294967295");
        refuse(sampler(), &vec![0.0; (1 << 23) + 1], "8388609 logits");
    }
    let logits = integer_logits(2, 100);
    let sampler = plain().frequency_penalty(0.5).build().unwrap();
    let (mut disturbed, mut calm) = (sampler.start(&[]).unwrap(), sampler.start(&[]).unwrap());
    for _ in 0..10 {
        assert!(disturbed.sample(&[f32::NAN]).is_err());
        assert_eq!(disturbed.sample(&logits).unwrap(), calm.sample(&logits).unwrap());
    }
}

#[test]
fn no_logits_and_no_settings_make_it_panic_or_choose_what_it_must_not() {
    let mut state = 2024;
    let mut pick = |values: &[f32]| values[bits(&mut state) as usize % values.len()];
    let (inf, tiny) = (f32::INFINITY, f32::from_bits(1));
    let logit = [f32::NAN, -f32::NAN, inf, -inf, -inf, f32::MAX, f32::MIN, tiny, 0.0, -0.0, 1.0, 1.0, -3.0, 90.0, 1e30];
    for round in 0..4000 {
        let logits: Vec<f32> = match round % 3 {
            0 => (0..[1, 2, 5, 70, 700][round % 5]).map(|_| pick(&logit)).collect(),
            1 => vec![pick(&logit); 600],
            _ => (0..600).map(|_| pick(&[-inf, 0.0, 1.0, 1.5, f32::NAN, 2.0])).collect(),
        };
        let share = [0.0, tiny, 0.3, 0.999, 1.0, 1.0];
        let penalty = [0.0, 0.0, 0.5, -0.5, f32::MAX, f32::MIN];
        let sampler = Sampler::builder()
            .temperature(pick(&[0.0, tiny, 1e-30, 0.8, 1.0, 1.0, 1e30, f32::MAX]))
            .top_k(pick(&[0.0, 0.0, 1.0, 3.0, 300.0, 1e9]) as usize)
            .typical(pick(&share))
            .top_p(pick(&share))
            .min_p(pick(&share))
            .repetition_penalty(pick(&[1.0, 1.0, tiny, 1.3, f32::MAX]))
            .frequency_penalty(pick(&penalty))
            .presence_penalty(pick(&penalty))
            .penalty_window(pick(&[0.0, 1.0, 64.0, f32::MAX]) as usize)
            .logit_bias(0, pick(&[0.0, 1.0, f32::MAX, f32::MIN, -inf]))
            .top_logprobs(pick(&[0.0, 1.0, 1e4]) as usize)
            .seed(round as u64)
            .build()
            .unwrap();
        let mut state = sampler.start(&[0, 0, 1, 9999]).unwrap();
        for _ in 0..4 {
            match state.sample(&logits) {
                Ok(choice) => {
                    let logit = logits[choice.token as usize];
                    assert!(logit > -inf, "{logit} {sampler:?}");
                    assert!(choice.logprob <= 0.0, "{} {sampler:?}", choice.logprob);
                    assert!(choice.top_logprobs.iter().all(|top| top.logprob <= 0.0));
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput),
            }
        }
    }
}

#[test]
fn samplers_and_states_go_between_threads() {
    fn shared<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    shared::<Sampler>();
    shared::<SamplerState>();
}
