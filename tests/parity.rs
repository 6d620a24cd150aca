//! The same logits as llama.cpp: on tiny random models always, on real models where they are at hand.
//!
//! Real models are looked for in `$WAVELM_TEST_MODELS`, or else where the examples keep the default model;
//! `tests/fixtures/fetch_models.py` brings them. Where one is missing, its tests say so and do nothing.

#[path = "common/reference.rs"]
mod reference;

use reference::{Distributions, ReferenceLogits, continuations, fixture, log_softmax};
use std::io::Write;
use std::path::PathBuf;
use wavelm::{ErrorKind, KvType, Model, Precision};

/// Fixtures of architectures that are refused so far.
const REFUSED: &[&str] = &["llama-moe", "qwen3moe", "gemma2", "phi3", "granite", "olmo2", "starcoder2"];

fn tiny_models() -> Vec<String> {
    let files = std::fs::read_dir(fixture("tiny")).expect("tests/fixtures/tiny");
    let names = files.map(|f| f.expect("a file").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<String> = names.filter_map(|f| Some(f.strip_suffix(".gguf")?.to_string())).collect();
    names.sort();
    names
}

fn load(path: PathBuf, precision: Precision) -> wavelm::Result<Model> {
    Model::options().threads(2).context(1024).precision(precision).load(path)
}

/// The largest relative difference at any position, which is also checked for the order of the best tokens.
fn worst(model: &Model, want: &ReferenceLogits) -> f32 {
    assert_eq!(model.vocab_len(), want.vocab);
    let mut worst = 0.0f32;
    let mut session = model.session().expect("a session");
    let check = |i: usize, row: &[f32]| {
        if let Some(position) = want.positions.iter().find(|p| p.index == i) {
            let difference = want.difference(position, row);
            worst = if difference <= worst { worst } else { difference };
        }
        Ok(())
    };
    session.logits(&want.tokens, check).expect("logits");
    worst
}

#[test]
fn tiny_models_agree_in_reference_precision() {
    let mut failures = Vec::new();
    for name in tiny_models() {
        let result = load(fixture(&format!("tiny/{name}.gguf")), Precision::Reference);
        if REFUSED.contains(&name.as_str()) {
            let error = result.err().unwrap_or_else(|| panic!("{name} loads now: compare its logits"));
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
            continue;
        }
        let model = result.unwrap_or_else(|e| panic!("{name}: {e}"));
        let difference = worst(&model, &ReferenceLogits::open(&fixture(&format!("tiny/{name}.logits"))));
        println!("{name}: {difference:.1e}");
        if difference.is_nan() || difference > 1e-4 {
            failures.push(format!("{name}: {difference:.1e}"));
        }
    }
    assert!(failures.is_empty(), "logits differ by more than 1e-4 of the largest one: {failures:#?}");
}

/// With activations of 8 bits, models of random weights are only roughly right: this catches gross mistakes.
#[test]
fn tiny_models_agree_roughly_in_fast_precision() {
    for name in tiny_models().into_iter().filter(|n| !REFUSED.contains(&n.as_str())) {
        let model = load(fixture(&format!("tiny/{name}.gguf")), Precision::Fast).expect(&name);
        let difference = worst(&model, &ReferenceLogits::open(&fixture(&format!("tiny/{name}.logits"))));
        println!("{name}: {difference:.1e}");
        assert!(difference < 0.2, "{name}: logits differ by {difference} of the largest one");
    }
}

/// The path of a real model; where it is missing, says so past the capture of test output.
fn real_model(file: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache"))).map(|c| c.join("wavelm"));
    let path = var("WAVELM_TEST_MODELS").or_else(cache).map(|folder| folder.join(file)).filter(|p| p.is_file());
    if path.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: {file} is not here; tests/fixtures/fetch_models.py brings it");
    }
    path
}

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA3: &str = "gemma-3-270m-Q4_K_M.gguf";

fn agrees_in_reference_precision(file: &str, logits: &str) {
    let Some(path) = real_model(file) else { return };
    let model = load(path, Precision::Reference).expect(file);
    let difference = worst(&model, &ReferenceLogits::open(&fixture(logits)));
    println!("{logits}: {difference:.1e}");
    assert!(difference < 1e-3, "{logits}: logits differ by {difference} of the largest one");
}

#[test]
fn smollm2_agrees_in_reference_precision() {
    agrees_in_reference_precision(SMOLLM2, "parity/smollm2.logits");
}

#[test]
fn gemma3_agrees_in_reference_precision() {
    agrees_in_reference_precision(GEMMA3, "parity/gemma3.logits");
}

#[test]
fn gemma3_agrees_beyond_its_sliding_window() {
    agrees_in_reference_precision(GEMMA3, "parity/gemma3-long.logits");
}

/// How a model's predictions over the text compare with a recorded run.
struct Agreement {
    /// Share of positions where both have the same best token.
    top1: f64,
    /// Mean of the lower bounds of the divergence.
    divergence: f64,
    /// Perplexity divided by the recorded one.
    perplexity: f64,
}

fn compare(model: &Model, want: &Distributions) -> Agreement {
    assert_eq!(model.vocab_len(), want.vocab);
    let (mut same, mut divergence, mut positions, mut nll, mut scored) = (0, 0.0, 0, 0.0, 0);
    for (tokens, heads) in want.chunks.iter().zip(&want.heads) {
        let each = |i: usize, row: &[f32]| {
            let log_probabilities = log_softmax(row);
            // llama-perplexity scores the second half of a chunk.
            if i >= tokens.len() / 2 && i + 1 < tokens.len() {
                nll -= log_probabilities[tokens[i + 1] as usize];
                scored += 1;
            }
            if i >= want.first {
                let head = &heads[i - want.first];
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as u32);
                same += usize::from(best == Some(head.ids[0]));
                divergence += head.divergence(&log_probabilities);
                positions += 1;
            }
            Ok(())
        };
        model.session().expect("a session").logits(tokens, each).expect("logits");
    }
    Agreement {
        top1: same as f64 / positions as f64,
        divergence: divergence / positions as f64,
        perplexity: (nll / scored as f64).exp() / want.perplexity,
    }
}

/// Bounds: what two sets of kernels of llama.cpp itself differ by is in tests/fixtures/README.md.
fn agrees_over_the_text(file: &str, dist: &str, kv: KvType, top1: f64, divergence: f64) {
    let Some(path) = real_model(file) else { return };
    let model = Model::options().threads(2).context(512).kv_type(kv).load(path).expect(file);
    let agreement = compare(&model, &Distributions::open(&fixture(dist)));
    let Agreement { top1: same, divergence: kl, perplexity } = agreement;
    println!("{dist}: {:.2} % same best token, divergence {kl:.5}, perplexity x {perplexity:.4}", same * 100.0);
    assert!(same >= top1, "{dist}: only {same} of the best tokens are the same");
    assert!(kl <= divergence, "{dist}: the divergence is {kl}");
    assert!((perplexity - 1.0).abs() < 0.005, "{dist}: perplexity is {perplexity} times the recorded one");
}

#[test]
fn smollm2_agrees_over_the_text() {
    agrees_over_the_text(SMOLLM2, "parity/smollm2.dist", KvType::F16, 0.95, 0.004);
    agrees_over_the_text(SMOLLM2, "parity/smollm2-f32.dist", KvType::F16, 0.95, 0.003);
}

#[test]
fn gemma3_agrees_over_the_text() {
    agrees_over_the_text(GEMMA3, "parity/gemma3.dist", KvType::F16, 0.94, 0.006);
    agrees_over_the_text(GEMMA3, "parity/gemma3-f32.dist", KvType::F16, 0.94, 0.005);
}

fn continues_greedily(file: &str, greedy: &str) {
    let Some(path) = real_model(file) else { return };
    let model = Model::options().threads(2).context(512).load(path).expect(file);
    for want in continuations(&fixture(greedy)) {
        let (mut tokens, mut got) = (want.tokens.clone(), Vec::new());
        let mut session = model.session().expect("a session");
        while got.len() < want.greedy.len() {
            let mut best = 0;
            let each = |_: usize, row: &[f32]| {
                best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32);
                Ok(())
            };
            session.logits(&tokens, each).expect("logits");
            got.push(best);
            tokens = vec![best];
        }
        assert_eq!(got, want.greedy, "{:?}, with leads {:?}", want.prompt, want.lead);
    }
}

#[test]
fn smollm2_continues_greedily() {
    continues_greedily(SMOLLM2, "parity/smollm2.greedy");
}

#[test]
fn gemma3_continues_greedily() {
    continues_greedily(GEMMA3, "parity/gemma3.greedy");
}
