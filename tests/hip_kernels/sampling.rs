//! Sampling on the GPU draws what the CPU's sampler draws.

use crate::args;
use crate::common::Random;
use crate::sim::{Buffer, Sim, sims};
use wavelm::Sampler;
use wavelm::sampler::SamplerBuilder;

/// The settings of a row: struct Row of hip/sampling.hip.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Row {
    seed: u64,
    step: u64,
    log_min_p: f64,
    temperature: f32,
    top_p: f32,
    top_k: u32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    first_bias: u32,
    biases: u32,
    window: u32,
    pushed: u32,
}

/// What was chosen: struct Choice of hip/sampling.hip.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Choice {
    token: u32,
    logit: f32,
    best: f32,
    _unused: u32,
    total: u64,
}

impl Choice {
    /// The logarithm of the token's probability.
    fn logprob(&self) -> f32 {
        let total = self.total as f64 / (1_u64 << 40) as f64;
        (f64::from(self.logit) - f64::from(self.best) - total.ln()) as f32
    }
}

/// Settings, for both samplers.
#[derive(Clone, Debug)]
struct Settings {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    /// Repetition, frequency, presence.
    penalties: [f32; 3],
    window: usize,
    biases: Vec<(u32, f32)>,
}

impl Settings {
    fn new(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Self {
        Self { temperature, top_k, top_p, min_p, penalties: [1.0, 0.0, 0.0], window: 0, biases: Vec::new() }
    }

    fn builder(&self) -> SamplerBuilder {
        let [repetition, frequency, presence] = self.penalties;
        let builder = Sampler::builder()
            .temperature(self.temperature)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .min_p(self.min_p)
            .repetition_penalty(repetition)
            .frequency_penalty(frequency)
            .presence_penalty(presence)
            .penalty_window(self.window);
        self.biases.iter().fold(builder, |builder, &(token, bias)| builder.logit_bias(token, bias))
    }
}

fn settings() -> Vec<Settings> {
    let plain = Settings::new;
    let mut all = vec![
        plain(0.0, 40, 0.95, 0.05),
        plain(1.0, 0, 1.0, 0.0),
        plain(0.8, 40, 0.95, 0.05),
        plain(0.7, 1, 1.0, 0.0),
        plain(1.3, 0, 0.9, 0.0),
        plain(1.0, 0, 0.999, 0.0),
        plain(2.0, 0, 1.0, 0.02),
        plain(5.0, 0, 1.0, 0.0),
        plain(40.0, 3000, 1.0, 0.0),
        plain(3.0, 1500, 0.97, 0.0),
        plain(1.0, 1024, 0.99, 1e-4),
        plain(0.9, 300, 1.0, 0.0),
    ];
    let biases: Vec<(u32, f32)> = vec![(0, 1.5), (3, f32::NEG_INFINITY), (17, -2.0), (61, 6.0)];
    for (i, base) in [all[0].clone(), all[2].clone(), all[7].clone()].into_iter().enumerate() {
        all.push(Settings { penalties: [1.3, 0.2, 0.1], window: 3 + i, ..base.clone() });
        all.push(Settings { biases: biases.clone(), ..base.clone() });
        all.push(Settings { biases: biases.clone(), penalties: [1.0, -0.5, 0.7], window: 64, ..base });
    }
    all
}

/// Logits: about normal, with ties where `step` is not 0, and numbers that are not finite where `odd`.
fn logits(random: &mut Random, vocabulary: usize, spread: f32, step: f32, odd: bool) -> Vec<f32> {
    let mut logits: Vec<f32> = random.normals(vocabulary).iter().map(|x| x * spread).collect();
    if step > 0.0 {
        logits.iter_mut().for_each(|x| *x = (*x / step).floor() * step);
    }
    if odd && vocabulary > 70 {
        for _ in 0..vocabulary / 8 {
            logits[random.below(vocabulary)] = [f32::NAN, f32::NEG_INFINITY, -0.0][random.below(3)];
        }
        logits[random.below(vocabulary)] = [f32::INFINITY, 1.0][random.below(2)];
    }
    logits
}

const STEPS: usize = 2;

fn check(sim: &Sim, vocabulary: usize, spread: f32, step: f32, odd: bool) {
    let mut random = Random::new(vocabulary as u64);
    let settings: Vec<Settings> =
        settings().into_iter().filter(|s| s.biases.iter().all(|b| (b.0 as usize) < vocabulary)).collect();
    let count = settings.len();
    let (peaks, spans) = (vocabulary.div_ceil(64), vocabulary.div_ceil(4096));
    let prompt: Vec<u32> = (0..10).map(|_| random.below(vocabulary) as u32).collect();
    let ring_len = 64;
    let mut biases = Vec::new();
    let (mut counts, mut ring) = (vec![0_u32; count * vocabulary], vec![u32::MAX; count * ring_len]);
    let mut states = Vec::new();
    let rows: Vec<Row> = settings
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let seed = random.bits();
            states.push(s.builder().seed(seed).build().unwrap().start(&prompt));
            let first_bias = biases.len() as u32;
            biases.extend(s.biases.iter().map(|&(token, bias)| [token, bias.to_bits()]));
            let kept = &prompt[prompt.len().saturating_sub(s.window)..];
            for (place, &token) in kept.iter().enumerate() {
                counts[i * vocabulary + token as usize] += 1;
                ring[i * ring_len + place] = token;
            }
            Row {
                seed,
                step: 0,
                log_min_p: f64::from(s.min_p).ln(),
                temperature: s.temperature,
                top_p: s.top_p,
                top_k: s.top_k as u32,
                repetition_penalty: s.penalties[0],
                frequency_penalty: s.penalties[1],
                presence_penalty: s.penalties[2],
                first_bias,
                biases: s.biases.len() as u32,
                window: s.window as u32,
                pushed: kept.len() as u32,
            }
        })
        .collect();
    let (rows, biases) = (Buffer::new(&rows), Buffer::new(&biases));
    let (counts, ring) = (Buffer::new(&counts), Buffer::new(&ring));
    for sampled in 0..STEPS {
        let logits: Vec<Vec<f32>> = (0..count).map(|_| logits(&mut random, vocabulary, spread, step, odd)).collect();
        let memory = Buffer::new(&logits.concat());
        let scores = Buffer::unset::<f32>(count * (vocabulary + 2 * peaks));
        let totals = Buffer::unset::<u64>(count * 2 * spans);
        let (tokens, chosen) = (Buffer::unset::<u32>(count), Buffer::unset::<Choice>(count));
        let grid = [vocabulary.div_ceil(1024), count, 1];
        sim.launch("sample_penalize", grid, args![&rows, &memory, &scores, &biases, &counts, vocabulary]);
        sim.launch("sample_weigh", [spans, count, 1], args![&memory, &scores, &totals, vocabulary]);
        let args = args![&rows, &memory, &scores, &totals, &counts, &ring, &tokens, &chosen, vocabulary, ring_len];
        sim.launch("sample_choose", [count, 1, 1], args);
        for (i, (token, chosen)) in tokens.read::<u32>().into_iter().zip(chosen.read::<Choice>()).enumerate() {
            assert_eq!(token, chosen.token);
            let what = format!("wave {}, step {sampled} of {vocabulary} logits, {:?}", sim.wave, settings[i]);
            match states[i].sample(&logits[i]) {
                Ok(choice) => {
                    assert_eq!(token, choice.token, "{what}");
                    assert_eq!(chosen.logprob(), choice.logprob, "{what}");
                }
                Err(error) => assert_eq!(token, u32::MAX, "{what}: {error}"),
            }
        }
        let largest = Buffer::unset::<u32>(count);
        sim.launch("sample_argmax", [count, 1, 1], args![&memory, &largest, vocabulary]);
        for (found, logits) in largest.read::<u32>().into_iter().zip(&logits) {
            let greedy = Sampler::greedy().start(&[]).sample(logits).map(|choice| choice.token);
            assert_eq!(found, greedy.unwrap_or(u32::MAX));
        }
    }
}

#[test]
fn the_same_tokens_are_drawn_as_on_the_cpu() {
    for sim in sims() {
        for vocabulary in [1, 62, 64, 1000, 5003] {
            check(sim, vocabulary, 3.0, 0.0, false);
        }
        check(sim, 20_011, 2.0, 0.0, true);
    }
}

#[test]
fn equal_logits_are_drawn_as_on_the_cpu() {
    for sim in sims() {
        check(sim, 700, 2.0, 0.5, true);
        check(sim, 9000, 1.0, 0.0625, false);
        check(sim, 6000, 1.0, 1000.0, true);
        check(sim, 100, 0.0, 0.0, true);
    }
}

#[test]
fn nothing_to_choose_from_is_said() {
    for sim in sims() {
        let logits = [f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY];
        let chosen = Buffer::unset::<u32>(1);
        sim.launch("sample_argmax", [1, 1, 1], args![&Buffer::new(&logits), &chosen, 3_usize]);
        assert_eq!(chosen.read::<u32>(), [u32::MAX]);
    }
}
