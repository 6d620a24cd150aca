//! Compares the steps with straightforward implementations in f64.

use super::logits;
use super::math::weight;
use super::ranking::{Buffers, Ranking};
use super::{Sampler, SamplerBuilder, steps};

/// Fixed pseudo-random bits (SplitMix64).
fn bits(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Bell-shaped logits with a standard deviation of about `scale`.
pub(crate) fn random_logits(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut state = seed;
    let mut one = || {
        let sum: u64 = (0..12).map(|_| bits(&mut state) >> 40).sum();
        (sum as f64 / f64::from(1 << 24) - 6.0) as f32 * scale
    };
    (0..len).map(|_| one()).collect()
}

type Distribution = Vec<(u32, f64)>;

fn normalized(mut distribution: Distribution) -> Distribution {
    let total: f64 = distribution.iter().map(|&(_, p)| p).sum();
    distribution.iter_mut().for_each(|(_, p)| *p /= total);
    distribution
}

fn take_mass(sorted: Distribution, mass: f64) -> Distribution {
    let mut sum = 0.0;
    let enough = sorted.iter().position(|&(_, p)| {
        sum += p;
        sum >= mass
    });
    let count = enough.map_or(sorted.len(), |last| last + 1);
    sorted.into_iter().take(count).collect()
}

/// The distribution after all steps, the best token first.
fn naive(logits: &[f32], sampler: &Sampler) -> Distribution {
    let best = logits.iter().fold(f32::MIN, |a, &b| a.max(b));
    let softmax = logits.iter().map(|&logit| (f64::from(logit) - f64::from(best)).exp());
    let mut all: Distribution = normalized((0..).zip(softmax).collect());
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampler.top_k > 0 {
        all.truncate(sampler.top_k);
    }
    all = normalized(all);
    if sampler.typical < 1.0 {
        let entropy: f64 = all.iter().map(|&(_, p)| -p * p.ln()).sum();
        let ranks: Vec<u32> = all.iter().map(|&(token, _)| token).collect();
        all.sort_by(|a, b| (a.1.ln() + entropy).abs().total_cmp(&(b.1.ln() + entropy).abs()));
        all = normalized(take_mass(all, f64::from(sampler.typical)));
        all.sort_by_key(|&(token, _)| ranks.iter().position(|&t| t == token));
    }
    if sampler.top_p < 1.0 {
        all = normalized(take_mass(all, f64::from(sampler.top_p)));
    }
    let floor = all[0].1 * f64::from(sampler.min_p) * (1.0 - 1e-6);
    all.retain(|&(_, p)| p >= floor);
    all.iter_mut().for_each(|(_, p)| *p = p.powf(1.0 / f64::from(sampler.temperature)));
    normalized(all)
}

fn by_the_steps(scores: &[f32], sampler: &Sampler) -> Distribution {
    let mut buffers = Buffers::default();
    logits::peaks(scores, &mut buffers.peaks);
    let mut ranking = Ranking::new(scores, &mut buffers, None);
    steps::narrow(&mut ranking, sampler).unwrap();
    let best = ranking.best().unwrap();
    let total = ranking.total(sampler.temperature).unwrap() as f64;
    let probability = |logit: f32| weight((logit - best) / sampler.temperature) as f64 / total;
    ranking.all().unwrap().iter().map(|c| (c.token(), probability(c.logit()))).collect()
}

#[track_caller]
fn compare(scores: &[f32], sampler: &Sampler) {
    let (expected, found) = (naive(scores, sampler), by_the_steps(scores, sampler));
    let tokens = |distribution: &Distribution| distribution.iter().map(|&(token, _)| token).collect::<Vec<_>>();
    assert_eq!(found.len(), expected.len(), "{sampler:?}");
    assert!(tokens(&found) == tokens(&expected), "{sampler:?}");
    for ((token, found), (_, expected)) in found.into_iter().zip(expected) {
        assert!((found - expected).abs() < 3e-6 * expected + 1e-12, "{token}: {found} {expected} {sampler:?}");
    }
}

fn off() -> SamplerBuilder {
    Sampler::builder().temperature(1.0).top_k(0).top_p(1.0).min_p(0.0)
}

#[test]
fn each_step_alone_agrees_with_the_naive_one() {
    for (seed, len, scale) in [(1, 1, 1.0), (2, 2, 1.0), (3, 50, 2.0), (4, 1000, 3.0), (5, 30_000, 1.5)] {
        let scores = random_logits(seed, len, scale);
        compare(&scores, &off().build().unwrap());
        for k in [1, 2, 40, 999, 50_000] {
            compare(&scores, &off().top_k(k).build().unwrap());
        }
        for share in [0.0, 0.05, 0.5, 0.9, 0.999] {
            compare(&scores, &off().top_p(share).build().unwrap());
            compare(&scores, &off().min_p(share).build().unwrap());
            if len <= 1000 {
                compare(&scores, &off().typical(share).build().unwrap());
            }
        }
        for temperature in [0.1, 0.8, 3.0, 1e30] {
            compare(&scores, &off().temperature(temperature).build().unwrap());
        }
    }
}

#[test]
fn all_steps_together_agree_with_the_naive_chain() {
    let mut state = 77;
    let mut pick = |values: &[f32]| values[bits(&mut state) as usize % values.len()];
    for round in 0..400 {
        let len = [3, 64, 300, 5000][round % 4];
        let scores = random_logits(round as u64, len, pick(&[0.1, 1.0, 3.0]));
        let sampler = Sampler::builder()
            .temperature(pick(&[0.3, 0.8, 1.0, 2.0]))
            .top_k(pick(&[0.0, 1.0, 5.0, 40.0, 400.0]) as usize)
            .top_p(pick(&[0.2, 0.8, 0.95, 1.0]))
            .min_p(pick(&[0.0, 0.02, 0.3]))
            .typical(if len <= 300 { pick(&[0.3, 0.9, 1.0, 1.0]) } else { 1.0 });
        compare(&scores, &sampler.build().unwrap());
    }
}

#[test]
fn min_p_of_1_keeps_the_best_and_its_equals() {
    let sampler = off().min_p(1.0).build().unwrap();
    assert_eq!(by_the_steps(&[1.0, 3.0, 2.999, 3.0], &sampler), [(1, 0.5), (3, 0.5)]);
}

#[test]
fn a_draw_inverts_the_cumulated_distribution() {
    // Long and flat enough that the draw has to search beyond the first candidates
    for (len, scale, temperature) in [(5, 1.0, 0.7), (4000, 0.5, 1.0), (4000, 2.0, 5.0)] {
        let scores = random_logits(len as u64, len, scale);
        let sampler = off().temperature(temperature).build().unwrap();
        let mut cumulated = 0.0;
        let ends: Vec<(u32, f64)> = by_the_steps(&scores, &sampler)
            .into_iter()
            .map(|(token, p)| {
                cumulated += p;
                (token, cumulated)
            })
            .collect();
        let mut state = 5;
        for round in 0..300 {
            let random = match round {
                0 => 0,
                1 => u64::MAX,
                _ => bits(&mut state),
            };
            let u = random as f64 / 2f64.powi(64);
            let expected = ends.iter().find(|&&(_, end)| u < end).unwrap_or(ends.last().unwrap()).0;
            let mut buffers = Buffers::default();
            logits::peaks(&scores, &mut buffers.peaks);
            let mut ranking = Ranking::new(&scores, &mut buffers, None);
            assert_eq!(steps::draw(&mut ranking, temperature, random).unwrap().unwrap().token(), expected, "{u}");
        }
    }
}

#[test]
fn a_draw_is_exact_at_the_boundary() {
    let mut buffers = Buffers::default();
    let scores = [1.5, 1.5];
    logits::peaks(&scores, &mut buffers.peaks);
    for (random, token) in [(0, 0), ((1 << 63) - 1, 0), (1 << 63, 1), (u64::MAX, 1)] {
        let mut ranking = Ranking::new(&scores, &mut buffers, None);
        assert_eq!(steps::draw(&mut ranking, 1.0, random).unwrap().unwrap().token(), token);
    }
}
