//! Sampling on the GPU draws what the CPU's sampler draws.

use crate::args;
use crate::common::Random;
use crate::sim::{Buffer, Sim, sims};
use wavelm::Sampler;
use wavelm::sampler::SamplerBuilder;

/// The settings of a row: struct Row of hip/sampling/sampling.hip.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Row {
    seed: u64,
    step: u64,
    log_min_p: f64,
    temperature: f32,
    top_p: f32,
    typical: f32,
    top_k: u32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    logits: u32,
    first_edit: u32,
    biases: u32,
    counts: u32,
    unused: u32,
}

/// What was chosen: struct Choice of hip/sampling/sampling.hip.
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
    typical: f32,
    /// Repetition, frequency, presence.
    penalties: [f32; 3],
    window: usize,
    biases: Vec<(u32, f32)>,
}

impl Settings {
    fn new(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Self {
        Self {
            temperature,
            top_k,
            top_p,
            min_p,
            typical: 1.0,
            penalties: [1.0, 0.0, 0.0],
            window: 0,
            biases: Vec::new(),
        }
    }

    fn builder(&self) -> SamplerBuilder {
        let [repetition, frequency, presence] = self.penalties;
        let builder = Sampler::builder()
            .temperature(self.temperature)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .min_p(self.min_p)
            .typical(self.typical)
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
        plain(1.0, 1025, 0.5, 0.0),
        plain(30.0, 0, 0.9, 1e-6),
        plain(1e30, 0, 1.0, 0.0),
        plain(1e-30, 0, 1.0, 0.0),
        plain(1.0, 0, 0.0, 1.0),
    ];
    for (typical, top_k) in [(0.0, 40), (0.3, 40), (0.9, 1024), (0.99, 700), (0.5, 1)] {
        all.push(Settings { typical, ..plain(1.5, top_k, 0.95, 0.01) });
    }
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

/// Draws a token with each of the settings, each from logits of its own, in one launch.
fn check(sim: &Sim, settings: &[Settings], logits: impl Fn(&mut Random) -> Vec<f32>) {
    let mut random = Random::new(3);
    let vocabulary = logits(&mut random).len();
    let mut random = Random::new(vocabulary as u64);
    let settings: Vec<&Settings> =
        settings.iter().filter(|s| s.biases.iter().all(|b| (b.0 as usize) < vocabulary)).collect();
    let count = settings.len();
    let (peaks, spans) = (vocabulary.div_ceil(64), vocabulary.div_ceil(2048));
    // Twice the same token, and one that the model does not have.
    let mut prompt: Vec<u32> = (0..10).map(|_| random.below(vocabulary) as u32).collect();
    prompt.extend([prompt[9], vocabulary as u32 + 3]);
    let seeds: Vec<u64> = (0..count).map(|_| random.bits()).collect();
    let start = |(s, &seed): (&&Settings, &u64)| s.builder().seed(seed).build().unwrap().start(&prompt).unwrap();
    let mut states: Vec<_> = settings.iter().zip(&seeds).map(start).collect();
    let mut texts: Vec<Vec<u32>> = vec![prompt.clone(); count];
    for step in 0..STEPS {
        let mut edits: Vec<[u32; 2]> = Vec::new();
        let row = |(i, s): (usize, &&Settings)| {
            let first_edit = edits.len() as u32;
            edits.extend(s.biases.iter().map(|&(token, bias)| [token, bias.to_bits()]));
            let mut window = texts[i][texts[i].len().saturating_sub(s.window)..].to_vec();
            window.sort_unstable();
            let counts = window.chunk_by(|a, b| a == b).map(|run| [run[0], run.len() as u32]);
            let counts: Vec<[u32; 2]> = counts.filter(|_| s.penalties != [1.0, 0.0, 0.0]).collect();
            edits.extend(&counts);
            Row {
                seed: seeds[i],
                step: (texts[i].len() - prompt.len()) as u64,
                log_min_p: f64::from(s.min_p).ln(),
                temperature: s.temperature,
                top_p: s.top_p,
                typical: s.typical,
                top_k: s.top_k as u32,
                repetition_penalty: s.penalties[0],
                frequency_penalty: s.penalties[1],
                presence_penalty: s.penalties[2],
                // The rows of logits are in another order.
                logits: (count - 1 - i) as u32,
                first_edit,
                biases: s.biases.len() as u32,
                counts: counts.len() as u32,
                unused: 0,
            }
        };
        let rows: Vec<Row> = settings.iter().enumerate().map(row).collect();
        let (rows, edits) = (Buffer::new(&rows), Buffer::new(&edits));
        let logits: Vec<Vec<f32>> = (0..count).map(|_| logits(&mut random)).collect();
        let memory = Buffer::new(&logits.iter().rev().flatten().copied().collect::<Vec<f32>>());
        let scores = Buffer::unset::<f32>(count * 66 * peaks);
        let totals = Buffer::unset::<u64>(count * (3 * spans + 1));
        let chosen = Buffer::unset::<Choice>(count);
        let grid = [vocabulary.div_ceil(1024), count, 1];
        sim.launch("sample_penalize", grid, args![&rows, &edits, &memory, &scores, vocabulary]);
        sim.launch("sample_weigh", [spans, count, 1], args![&rows, &memory, &scores, &totals, vocabulary]);
        let args = args![&rows, &memory, &scores, &totals, &chosen, vocabulary];
        sim.launch("sample_choose", [count, 1, 1], args);
        for (i, chosen) in chosen.read::<Choice>().into_iter().enumerate() {
            let what = format!("wave {}, step {step} of {vocabulary} logits, {:?}", sim.wave, settings[i]);
            match states[i].sample(&logits[i]) {
                Ok(choice) => {
                    assert_eq!(chosen.token, choice.token, "{what}");
                    assert_eq!(chosen.logprob(), choice.logprob, "{what}");
                    texts[i].push(choice.token);
                }
                Err(error) => assert_eq!(chosen.token, u32::MAX, "{what}: {error}"),
            }
        }
    }
}

/// All settings, on random logits.
fn check_all(sim: &Sim, vocabulary: usize, spread: f32, step: f32, odd: bool) {
    check(sim, &settings(), |random| logits(random, vocabulary, spread, step, odd));
}

#[test]
fn the_same_tokens_are_drawn_as_on_the_cpu() {
    for sim in sims() {
        for vocabulary in [1, 62, 64, 1000, 5003] {
            check_all(sim, vocabulary, 3.0, 0.0, false);
        }
        check_all(sim, 20_011, 2.0, 0.0, true);
    }
}

#[test]
fn the_largest_vocabularies_are_drawn_from_as_on_the_cpu() {
    let plain = Settings::new;
    let settings = [
        plain(0.0, 0, 1.0, 0.0),
        Settings { penalties: [1.3, 0.2, 0.1], window: 8, ..plain(0.8, 40, 0.95, 0.05) },
        plain(1.0, 0, 0.95, 0.0),
        plain(1.5, 0, 1.0, 0.0),
    ];
    for sim in sims() {
        check(sim, &settings, |random| logits(random, 262_144, 2.5, 0.0, false));
        check(sim, &settings[2..], |random| logits(random, 300_001, 0.5, 0.0, false));
    }
}

#[test]
fn equal_logits_are_drawn_as_on_the_cpu() {
    for sim in sims() {
        check_all(sim, 700, 2.0, 0.5, true);
        check_all(sim, 9000, 1.0, 0.0625, false);
        check_all(sim, 6000, 1.0, 1000.0, true);
        check_all(sim, 100, 0.0, 0.0, true);
    }
}

#[test]
fn far_apart_and_overflowing_logits_are_drawn_as_on_the_cpu() {
    for sim in sims() {
        check_all(sim, 3000, 1e37, 0.0, true);
        check_all(sim, 3000, 1e6, 0.0, false);
        check_all(sim, 3000, 1e-30, 0.0, false);
        check_all(sim, 5000, 200.0, 0.0, true);
    }
}

#[test]
fn nothing_to_choose_from_is_said() {
    let banned = Settings { biases: vec![(1, f32::NEG_INFINITY)], ..Settings::new(0.0, 0, 1.0, 0.0) };
    let settings = [Settings::new(0.0, 0, 1.0, 0.0), Settings::new(1.0, 40, 0.9, 0.1), banned.clone()];
    for sim in sims() {
        check(sim, &settings, |_| vec![f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        check(sim, std::slice::from_ref(&banned), |_| vec![f32::NAN, 3.0, f32::NEG_INFINITY]);
    }
}
