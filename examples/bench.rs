//! Measures the speed of prompts and of generation, with the tests of llama.cpp's `llama-bench`.

mod common;

use common::cli::{Cli, Outcome, run};
use common::json;
use common::model::{MODEL_OPTIONS, ModelOptions, title};
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;
use wavelm::{Model, Prompt, Session};

const HELP: &str = "\
Measures how fast a model reads prompts (pp) and generates (tg), with the tests of llama-bench: random tokens,
one run to warm up, then --repetitions runs that count.

Usage: bench [OPTIONS]

  -p LIST             lengths of prompts; 0 for none [default: 512]
  -n LIST             how many tokens to generate; 0 for none [default: 128]
  -d, --depth LIST    tokens that are in the context already, not timed [default: 0]
  -r, --repetitions N [default: 5]
      --json          a JSON object for each test, one a line
";

/// More than any model's context; what is longer is a mistake.
const MOST_TOKENS: usize = 1 << 24;

fn main() -> ExitCode {
    run(&[HELP, MODEL_OPTIONS], bench)
}

fn bench(cli: &mut Cli) -> Outcome {
    let mut options = ModelOptions::default();
    let (mut prompts, mut generations, mut depths) = (vec![512], vec![128], vec![0]);
    let (mut repetitions, mut as_json) = (5, false);
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "-p" => prompts = cli.list()?,
            "-n" => generations = cli.list()?,
            "-d" | "--depth" => depths = cli.list()?,
            "-r" | "--repetitions" => repetitions = cli.parse()?,
            "--json" => as_json = true,
            name => options.take(name, cli)?,
        }
    }
    if repetitions == 0 {
        return Err("there must be at least 1 repetition".into());
    }
    let mut tests = Vec::new();
    for depth in depths {
        let with = |kind| move |&len: &usize| Test { kind, len, depth };
        tests.extend(prompts.iter().filter(|&&len| len > 0).map(with(Kind::Prompt)));
        tests.extend(generations.iter().filter(|&&len| len > 0).map(with(Kind::Generation)));
    }
    let longest =
        tests.iter().map(|test| test.depth.saturating_add(test.len)).max().ok_or("there is nothing to measure")?;
    if longest > MOST_TOKENS {
        return Err(format!("a test of {longest} tokens is too long; the most are {MOST_TOKENS}").into());
    }
    options.context.get_or_insert(longest);

    let model = options.load()?;
    let mut out = io::stdout().lock();
    if !as_json {
        writeln!(out, "{:<16} {:>12} {:>12} {:>12} {:>8}", "test", "tokens/s", "min", "max", "GB/s")?;
    }
    let mut session = model.session()?;
    for test in tests {
        let speed = Speed::measure(&mut session, test, repetitions)?;
        if as_json {
            writeln!(out, "{}", speed.json(&model, &options))?;
        } else {
            let gb = speed.gb_per_second(&model).map_or(String::new(), |gb| format!("{gb:.2}"));
            let (name, [min, median, max]) = (test.to_string(), speed.min_median_max());
            writeln!(out, "{name:<16} {median:>12.2} {min:>12.2} {max:>12.2} {gb:>8}")?;
        }
        out.flush()?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prompt,
    Generation,
}

/// `len` tokens, at once or one by one, after `depth` others.
#[derive(Clone, Copy)]
struct Test {
    kind: Kind,
    len: usize,
    depth: usize,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Prompt => "pp",
            Kind::Generation => "tg",
        };
        write!(f, "{kind}{}", self.len)?;
        if self.depth > 0 { write!(f, " @ d{}", self.depth) } else { Ok(()) }
    }
}

impl Test {
    /// Runs the test once behind the tokens that the session holds: the first `depth` of `tokens`. Returns tokens per
    /// second.
    fn run(&self, session: &mut Session, tokens: &[u32]) -> Outcome<f64> {
        session.truncate(self.depth);
        let whole = Prompt::from_tokens(tokens);
        let began = Instant::now();
        match self.kind {
            // What the session holds is not evaluated again.
            Kind::Prompt => session.feed(&whole)?,
            Kind::Generation => {
                for token in tokens.iter().skip(self.depth) {
                    session.logits(std::slice::from_ref(token), |_, _| Ok(()))?;
                }
            }
        }
        Ok(self.len as f64 / began.elapsed().as_secs_f64())
    }
}

/// Tokens per second of each run of a test.
struct Speed {
    test: Test,
    /// Sorted.
    runs: Vec<f64>,
}

impl Speed {
    fn measure(session: &mut Session, test: Test, repetitions: usize) -> Outcome<Self> {
        let tokens = random_tokens(session.model(), test.depth + test.len);
        session.clear();
        if test.depth > 0 {
            session.feed(&Prompt::from_tokens(&tokens[..test.depth]))?;
        }
        test.run(session, &tokens)?;
        let mut runs: Vec<f64> = (0..repetitions).map(|_| test.run(session, &tokens)).collect::<Outcome<_>>()?;
        runs.sort_by(f64::total_cmp);
        Ok(Self { test, runs })
    }

    fn min_median_max(&self) -> [f64; 3] {
        let (low, high) = ((self.runs.len() - 1) / 2, self.runs.len() / 2);
        [self.runs[0], (self.runs[low] + self.runs[high]) / 2.0, self.runs[self.runs.len() - 1]]
    }

    /// How fast the weights are read, at the median speed. A prompt reads them once for many tokens, so that the figure
    /// says something only for generation.
    fn gb_per_second(&self, model: &Model) -> Option<f64> {
        let [_, median, _] = self.min_median_max();
        (self.test.kind == Kind::Generation).then(|| median * model.bytes_per_token() as f64 / 1e9)
    }

    fn json(&self, model: &Model, options: &ModelOptions) -> String {
        let [min, median, max] = self.min_median_max();
        let number = |n: Option<f64>| n.map_or("null".to_owned(), |n| format!("{n:.3}"));
        let samples: Vec<String> = self.runs.iter().map(|run| format!("{run:.3}")).collect();
        format!(
            "{{\"test\":{},\"tokens_per_second\":{{\"median\":{median:.3},\"min\":{min:.3},\"max\":{max:.3}}},\
             \"gb_per_second\":{},\"bytes_per_token\":{},\"depth\":{},\"samples\":[{}],\"model\":{},\"file\":{},\
             \"threads\":{},\"device\":{},\"precision\":{},\"version\":{}}}",
            json::string(&self.test.to_string()),
            number(self.gb_per_second(model)),
            model.bytes_per_token(),
            self.test.depth,
            samples.join(","),
            json::string(&title(model)),
            json::string(&model.gguf().path().to_string_lossy()),
            model.threads(),
            json::string(&model.device().to_string()),
            json::string(&format!("{:?}", options.precision).to_lowercase()),
            json::string(env!("CARGO_PKG_VERSION")),
        )
    }
}

/// As many tokens, always the same ones, after the one for the beginning of the text where the model wants it.
fn random_tokens(model: &Model, count: usize) -> Vec<u32> {
    let tokenizer = model.tokenizer();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let random = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % tokenizer.vocab_len().max(1) as u64) as u32
    });
    tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().chain(random).take(count).collect()
}
