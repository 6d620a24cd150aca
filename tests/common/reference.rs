//! Reads the reference data of llama.cpp: tests/fixtures/README.md describes the formats.

use std::path::{Path, PathBuf};

/// A file below tests/fixtures.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// Little-endian numbers, one after the other. Panics at the end of the file: the fixtures are our own.
struct Reader(std::vec::IntoIter<u8>);

impl Reader {
    fn open(path: &Path, magic: &[u8; 4]) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let mut reader = Reader(bytes.into_iter());
        assert_eq!(&reader.array::<4>(), magic, "{} has another format", path.display());
        assert_eq!(reader.u32(), 1, "{} has another version", path.display());
        reader
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.0.next().expect("the fixture is too short"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn f32(&mut self) -> f32 {
        f32::from_le_bytes(self.array())
    }

    fn u32s(&mut self, n: u32) -> Vec<u32> {
        (0..n).map(|_| self.u32()).collect()
    }

    fn f32s(&mut self, n: u32) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }

    fn end(self) {
        assert_eq!(self.0.len(), 0, "the fixture is too long");
    }
}

/// A `.logits` file.
pub struct ReferenceLogits {
    pub vocab: usize,
    pub tokens: Vec<u32>,
    /// The vocabulary ids whose logits are kept.
    pub sample: Vec<u32>,
    pub positions: Vec<Position>,
}

pub struct Position {
    /// Index of the token.
    pub index: usize,
    /// The largest absolute logit.
    pub largest: f32,
    /// Logits of the sampled ids.
    pub sampled: Vec<f32>,
    /// Ids of the largest logits, best first.
    pub top_ids: Vec<u32>,
    pub top_logits: Vec<f32>,
}

impl ReferenceLogits {
    pub fn open(path: &Path) -> Self {
        let mut r = Reader::open(path, b"WLLG");
        let [vocab, tokens, positions, sample, top] = std::array::from_fn(|_| r.u32());
        let (tokens, ids) = (r.u32s(tokens), r.u32s(sample));
        let read = |_| Position {
            index: r.u32() as usize,
            largest: r.f32(),
            sampled: r.f32s(sample),
            top_ids: r.u32s(top),
            top_logits: r.f32s(top),
        };
        let positions = (0..positions).map(read).collect();
        r.end();
        ReferenceLogits { vocab: vocab as usize, tokens, sample: ids, positions }
    }

    /// The largest difference at any kept logit of a position, relative to the largest logit there.
    pub fn difference(&self, position: &Position, row: &[f32]) -> f32 {
        let ids = self.sample.iter().chain(&position.top_ids);
        let wanted = position.sampled.iter().chain(&position.top_logits);
        let differences = ids.zip(wanted).map(|(&id, want)| (row[id as usize] - want).abs());
        // `max` of floats would drop a NaN.
        differences.fold(0.0, |worst, d| if d <= worst { worst } else { d }) / position.largest
    }
}

/// A `.dist` file.
pub struct Distributions {
    pub vocab: usize,
    /// The tokens of each chunk of the text.
    pub chunks: Vec<Vec<u32>>,
    /// The first position of each chunk that is kept.
    pub first: usize,
    pub perplexity: f64,
    /// Per chunk, the kept positions.
    pub heads: Vec<Vec<Head>>,
}

/// The most likely tokens at one position, best first, and the probability of all others.
pub struct Head {
    pub ids: Vec<u32>,
    pub log_probabilities: Vec<f64>,
    pub rest: f64,
}

impl Distributions {
    pub fn open(path: &Path) -> Self {
        let mut r = Reader::open(path, b"WLDI");
        let [vocab, chunks, length, first, head] = std::array::from_fn(|_| r.u32());
        let perplexity = f64::from_le_bytes(r.array());
        let tokens = (0..chunks).map(|_| r.u32s(length)).collect();
        let mut position = || Head {
            ids: r.u32s(head),
            log_probabilities: (0..head).map(|_| f64::from(u16::from_le_bytes(r.array())) / -2048.0).collect(),
            rest: f64::from(r.f32()),
        };
        let heads = (0..chunks).map(|_| (first..length).map(|_| position()).collect()).collect();
        r.end();
        Distributions { vocab: vocab as usize, chunks: tokens, first: first as usize, perplexity, heads }
    }
}

impl Head {
    /// The divergence of `log_probabilities` (of the whole vocabulary) from this distribution, over the outcomes "each
    /// token of the head" and "any other": a lower bound of the divergence over the whole vocabulary.
    pub fn divergence(&self, log_probabilities: &[f64]) -> f64 {
        let mut sum = 0.0;
        let mut theirs_rest = 1.0;
        for (&id, &ours) in self.ids.iter().zip(&self.log_probabilities) {
            let theirs = log_probabilities[id as usize];
            sum += ours.exp() * (ours - theirs);
            theirs_rest -= theirs.exp();
        }
        let (ours, theirs) = (self.rest.max(1e-9), f64::max(theirs_rest, 1e-9));
        sum + ours * (ours / theirs).ln()
    }
}

/// log softmax of a row of logits.
pub fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    row.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

/// A block of a `.greedy` file.
pub struct Continuation {
    pub prompt: String,
    pub tokens: Vec<u32>,
    pub greedy: Vec<u32>,
    /// By how much each winner was ahead.
    pub lead: Vec<f32>,
}

pub fn continuations(path: &Path) -> Vec<Continuation> {
    fn numbers<T: std::str::FromStr>(text: &str) -> Vec<T> {
        text.split(' ').map(|n| n.parse().ok().expect("a number")).collect()
    }
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let block = |block: &str| {
        let field = |name: &str| {
            let value = block.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or_else(|| panic!("no line `{name}`")).trim_start().to_string()
        };
        let prompt = field("prompt").replace("\\\\", "\0").replace("\\n", "\n").replace('\0', "\\");
        let (tokens, greedy) = (numbers(&field("tokens")), numbers(&field("greedy")));
        Continuation { prompt, tokens, greedy, lead: numbers(&field("lead")) }
    };
    text.trim_end().split("\n\n").map(block).collect()
}
