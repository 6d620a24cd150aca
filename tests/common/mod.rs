//! A tiny model with random weights, made when a test runs: 2 layers, a byte vocabulary, no training whatsoever.

#![allow(dead_code)] // each test binary uses a part

pub mod emulator;
pub mod simulator;

use std::io::Write;
use std::path::PathBuf;
use wavelm::gguf::{Gguf, GgufWriter, StringArray, TensorType};
use wavelm::quant;
use wavelm::{LoadOptions, Model, Prompt, Sampler, Session};

/// A small generator of random numbers (SplitMix64), so that tests are the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform from -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
}

/// The shape of a tiny model.
#[derive(Clone, Copy)]
pub struct Tiny {
    pub arch: &'static str,
    pub ty: TensorType,
    pub embed: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub layers: usize,
    pub context: u32,
    /// Sliding window of Gemma 3.
    pub window: Option<u32>,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            arch: "llama",
            ty: TensorType::Q8_0,
            embed: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            feed_forward: 96,
            layers: 2,
            context: 640,
            window: None,
        }
    }
}

/// Tokens of the vocabulary: all bytes, `<s>` and `</s>`.
pub const VOCAB: usize = 258;
/// The token that ends a text.
pub const EOS: u32 = 257;

impl Tiny {
    /// The file. The output rows of the special tokens are zero, so that drawing one is possible but rare.
    pub fn file(&self) -> Vec<u8> {
        let mut random = Random(42);
        let a = self.arch;
        let kv = self.kv_heads * self.head_dim;
        let mut w = GgufWriter::new()
            .metadata("general.architecture", a)
            .metadata("general.name", "tiny")
            .metadata(format!("{a}.block_count"), self.layers as u32)
            .metadata(format!("{a}.context_length"), self.context)
            .metadata(format!("{a}.embedding_length"), self.embed as u32)
            .metadata(format!("{a}.feed_forward_length"), self.feed_forward as u32)
            .metadata(format!("{a}.attention.head_count"), self.heads as u32)
            .metadata(format!("{a}.attention.head_count_kv"), self.kv_heads as u32)
            .metadata(format!("{a}.attention.key_length"), self.head_dim as u32)
            .metadata(format!("{a}.attention.value_length"), self.head_dim as u32)
            .metadata(format!("{a}.attention.layer_norm_rms_epsilon"), 1e-5f32)
            .metadata("tokenizer.ggml.model", "gpt2")
            .metadata("tokenizer.ggml.pre", "default")
            .metadata("tokenizer.ggml.tokens", vocabulary())
            .metadata("tokenizer.ggml.token_type", [vec![1i32; 256], vec![3, 3]].concat())
            .metadata("tokenizer.ggml.merges", StringArray::default())
            .metadata("tokenizer.ggml.bos_token_id", 256u32)
            .metadata("tokenizer.ggml.eos_token_id", EOS)
            .metadata("tokenizer.ggml.add_bos_token", true);
        if let Some(window) = self.window {
            w = w.metadata(format!("{a}.attention.sliding_window"), window);
        }
        let mut matrix = |w: GgufWriter, name: &str, rows: usize, columns: usize, scale: f32| {
            let scale = scale * (3.0 / columns as f32).sqrt();
            let values: Vec<f32> = (0..rows * columns).map(|_| random.float() * scale).collect();
            let data = quant::quantize(self.ty, &values).unwrap();
            w.tensor(name, self.ty, &[columns as u64, rows as u64], data)
        };
        let vector = |w: GgufWriter, name: &str, columns: usize| {
            let values: Vec<u8> = (0..columns).flat_map(|i| (1.0 + 0.01 * (i % 7) as f32).to_le_bytes()).collect();
            w.tensor(name, TensorType::F32, &[columns as u64], values)
        };
        w = matrix(w, "token_embd.weight", VOCAB, self.embed, 8.0);
        for i in 0..self.layers {
            let t = |name: &str| format!("blk.{i}.{name}.weight");
            w = vector(w, &t("attn_norm"), self.embed);
            w = vector(w, &t("ffn_norm"), self.embed);
            w = matrix(w, &t("attn_q"), self.heads * self.head_dim, self.embed, 2.0);
            w = matrix(w, &t("attn_k"), kv, self.embed, 2.0);
            w = matrix(w, &t("attn_v"), kv, self.embed, 1.0);
            w = matrix(w, &t("attn_output"), self.embed, self.heads * self.head_dim, 1.0);
            w = matrix(w, &t("ffn_gate"), self.feed_forward, self.embed, 1.0);
            w = matrix(w, &t("ffn_up"), self.feed_forward, self.embed, 1.0);
            w = matrix(w, &t("ffn_down"), self.embed, self.feed_forward, 1.0);
            if a == "qwen3" || a == "gemma3" {
                w = vector(w, &t("attn_q_norm"), self.head_dim);
                w = vector(w, &t("attn_k_norm"), self.head_dim);
            }
            if a == "gemma3" {
                w = vector(w, &t("post_attention_norm"), self.embed);
                w = vector(w, &t("post_ffw_norm"), self.embed);
            }
        }
        w = vector(w, "output_norm.weight", self.embed);
        w.to_bytes().unwrap()
    }

    pub fn load(&self, options: LoadOptions) -> Model {
        options.load_gguf(Gguf::from_bytes(self.file()).unwrap()).unwrap()
    }
}

/// All bytes as the characters that byte-level BPE uses for them, and the two special tokens.
fn vocabulary() -> StringArray {
    let plain = |b: &u32| (33..127).contains(b) || (161..173).contains(b) || (174..256).contains(b);
    let mut moved = 256u32..;
    let bytes = (0..256)
        .map(|b| if plain(&b) { b } else { moved.next().unwrap() })
        .map(|c| char::from_u32(c).unwrap().to_string());
    bytes.chain(["<s>".to_string(), "</s>".to_string()]).collect()
}

/// Random bytes as tokens.
pub fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.below(256) as u32).collect()
}

/// Appends tokens to a session and collects the logits at each.
pub fn logits(session: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let keep = |_, row: &[f32]| {
        rows.push(row.to_vec());
        Ok(())
    };
    session.logits(tokens, keep).unwrap();
    rows
}

/// The largest difference, relative to the largest logit.
pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).flatten().all(|v| v.is_finite()));
    let max = a.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().flatten().zip(b.iter().flatten()).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / max
}

/// The most likely tokens after a prompt.
pub fn greedy(session: &mut Session, prompt: &[u32], n: usize) -> wavelm::Result<Vec<u32>> {
    let generation = session.generate(&Prompt::from_tokens(prompt.to_vec()), &Sampler::greedy())?.max_tokens(n);
    generation.map(|piece| piece.map(|p| p.token())).filter_map(Result::transpose).collect()
}

/// The path of a real model; where it is missing, says so past the capture of test output.
pub fn real_model(file: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache"))).map(|c| c.join("wavelm"));
    let path = var("WAVELM_TEST_MODELS").or_else(cache).map(|folder| folder.join(file)).filter(|p| p.is_file());
    if path.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: {file} is not here; tests/fixtures/fetch_models.py brings it");
    }
    path
}
