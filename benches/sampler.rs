//! The sampler on large vocabularies: `cargo bench --bench sampler`.

#![allow(missing_docs)] // of what criterion's macros make

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use wavelm::sampler::{Sampler, SamplerBuilder};

/// Logits as of a language model: bell-shaped, with a few tokens that stand out by up to `lead`.
fn logits(len: usize, lead: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0
    };
    let mut logits: Vec<f32> = (0..len).map(|_| ((0..4).map(|_| uniform()).sum::<f32>() - 2.0) * 4.0).collect();
    for rank in 0..30 {
        let token = (uniform() * len as f32) as usize;
        logits[token] = 8.0 + lead * 0.8f32.powi(rank);
    }
    logits
}

fn sampler(c: &mut Criterion) {
    let off = || Sampler::builder().top_k(0).top_p(1.0).min_p(0.0).seed(1);
    let samplers: [(&str, SamplerBuilder); 8] = [
        ("greedy", off().temperature(0.0)),
        ("default", Sampler::builder().seed(1)),
        ("default+penalties", Sampler::builder().repetition_penalty(1.1).seed(1)),
        ("default+typical", Sampler::builder().typical(0.95).seed(1)),
        ("top-p", off().top_p(0.95)),
        ("min-p", off().min_p(0.05)),
        ("temperature", off().temperature(0.8)),
        ("top-p, flat", off().top_p(0.95)),
    ];
    for len in [32_000, 151_936, 262_144] {
        let mut group = c.benchmark_group(format!("sampler/{len}"));
        for (name, sampler) in &samplers {
            let logits = if name.ends_with("flat") { flat_logits(len) } else { logits(len, 12.0) };
            let prompt: Vec<u32> = (0..64).collect();
            let mut state = sampler.clone().build().expect("valid settings").start(&prompt).unwrap();
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| state.sample(black_box(&logits)).expect("finite logits"));
            });
        }
        group.finish();
    }
}

/// The worst case for top-p: logits so close to each other that most of the vocabulary is kept.
fn flat_logits(len: usize) -> Vec<f32> {
    logits(len, 0.0).iter().map(|logit| logit * 0.1).collect()
}

criterion_group!(benches, sampler);
criterion_main!(benches);
