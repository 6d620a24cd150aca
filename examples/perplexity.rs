//! Measures the perplexity of a model on a text, as llama.cpp's `llama-perplexity` defines it.

mod common;

use common::cli::{Cli, Outcome, run};
use common::model::{MODEL_OPTIONS, ModelOptions};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use wavelm::tokenizer::EncodeOptions;
use wavelm::{Prompt, Session};

const HELP: &str = "\
Measures the perplexity of a model on a text. The definition is llama-perplexity's, so that figures compare:
the text is cut into chunks of --ctx tokens, each evaluated on its own, and the second half of each is scored.

Usage: perplexity [OPTIONS] --file TEXT

  -f, --file FILE     the text; one line break at its end is ignored
  -c, --ctx N         tokens in a chunk [default: 512]
      --chunks N      score only the first N chunks [default: all]
";

fn main() -> ExitCode {
    run(&[HELP, MODEL_OPTIONS], perplexity)
}

fn perplexity(cli: &mut Cli) -> Outcome {
    let mut options = ModelOptions::default();
    let (mut file, mut most) = (None, usize::MAX);
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "-f" | "--file" => file = Some(PathBuf::from(cli.value()?)),
            "--chunks" => most = cli.parse()?,
            name => options.take(name, cli)?,
        }
    }
    let file = file.ok_or("no text is given: use --file TEXT, or see --help")?;
    let chunk_len = *options.context.get_or_insert(512);
    if chunk_len < 4 || most == 0 {
        return Err("a chunk needs at least 4 tokens, and there must be at least 1 chunk".into());
    }
    let text = std::fs::read_to_string(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;

    let model = options.load()?;
    let tokenizer = model.tokenizer();
    let tokens = tokenizer.encode(text.strip_suffix('\n').unwrap_or(&text), EncodeOptions::default())?;
    let chunks = (tokens.len() / chunk_len).min(most);
    if chunks == 0 {
        let (name, len) = (file.display(), tokens.len());
        return Err(format!(
            "{name} has {len} tokens, which is less than a chunk of {chunk_len}; use a longer text or a \
                            smaller --ctx"
        )
        .into());
    }
    let bar = if options.quiet { ProgressBar::hidden() } else { ProgressBar::new(chunks as u64) };
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {bar:40} perplexity {msg}, {eta} left")?);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut session = model.session()?;
    let mut sum = Sum::default();
    for chunk in tokens.chunks_exact(chunk_len).take(chunks) {
        score(&mut session, chunk, bos, &mut sum)?;
        bar.set_message(format!("{:.4}", sum.perplexity().0));
        bar.inc(1);
    }
    bar.finish_and_clear();

    let (estimate, error) = sum.perplexity();
    writeln!(io::stdout(), "perplexity {estimate:.4} +/- {error:.5} over {chunks} chunks of {chunk_len} tokens")?;
    Ok(())
}

/// Adds up what the model thinks of the second half of a chunk, whose first token gives way to `bos`.
fn score(session: &mut Session, chunk: &[u32], bos: Option<u32>, sum: &mut Sum) -> Outcome {
    let mut context = chunk.to_vec();
    if let (Some(bos), Some(first)) = (bos, context.first_mut()) {
        *first = bos;
    }
    // The token at position i is predicted by the logits at i - 1; those of the last one predict nothing here.
    context.pop();
    let (unscored, scored) = context.split_at(chunk.len() / 2);
    let targets = &chunk[chunk.len() / 2 + 1..];
    session.clear();
    session.feed(&Prompt::from_tokens(unscored))?;
    session.logits(scored, |i, row| {
        sum.add(-log_probability(row, targets[i]));
        Ok(())
    })?;
    Ok(())
}

/// The logarithm of the probability of a token.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

/// Negative log-likelihoods: how many, their sum, and the sum of their squares.
#[derive(Default)]
struct Sum {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    /// The exponential of the mean, and its standard error.
    fn perplexity(&self) -> (f64, f64) {
        let mean = self.sum / self.count;
        let variance = (self.squares / self.count - mean * mean).max(0.0);
        (mean.exp(), (variance / (self.count - 1.0)).sqrt() * mean.exp())
    }
}
