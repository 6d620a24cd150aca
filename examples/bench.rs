//! Measures the speed of prompts and of generation, with the tests of llama.cpp's `llama-bench`.

mod common;

use common::cli::{Cli, Outcome, run};
use common::json;
use common::model::{MODEL_OPTIONS, ModelOptions, title};
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;
use wavelm::{Model, Prompt, Sampler, Session};

const HELP: &str = "\
Measures how fast a model reads prompts (pp) and generates (tg), with the tests of llama-bench: random tokens,
one run to warm up, then --repetitions runs that count.

Usage: bench [OPTIONS]

  -p LIST             lengths of prompts; 0 for none [default: 512]
  -n LIST             how many tokens to generate; 0 for none [default: 128]
  -d, --depth LIST    tokens that are in the context already, not timed [default: 0]
  -s, --sequences LIST
                      how many sequences generate together; more than one draw their tokens greedily [default: 1]
  -r, --repetitions N [default: 5]
      --json          a JSON object for each test, one a line
";

/// More than any model's context; what is longer is a mistake.
const MOST_TOKENS: usize = 1 << 24;
const MOST_SEQUENCES: usize = 1 << 12;

fn main() -> ExitCode {
    run(&[HELP, MODEL_OPTIONS], bench)
}

fn bench(cli: &mut Cli) -> Outcome {
    let mut options = ModelOptions::default();
    let (mut prompts, mut generations, mut depths, mut sequences) = (vec![512], vec![128], vec![0], vec![1]);
    let (mut repetitions, mut as_json) = (5, false);
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "-p" => prompts = cli.list()?,
            "-n" => generations = cli.list()?,
            "-d" | "--depth" => depths = cli.list()?,
            "-s" | "--sequences" => sequences = cli.list()?,
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
        let with = |kind, sequences| move |&len: &usize| Test { kind, len, depth, sequences };
        tests.extend(prompts.iter().filter(|&&len| len > 0).map(with(Kind::Prompt, 1)));
        for &sequences in &sequences {
            tests.extend(generations.iter().filter(|&&len| len > 0).map(with(Kind::Generation, sequences)));
        }
    }
    if tests.iter().any(|test| test.sequences == 0 || test.sequences > MOST_SEQUENCES) {
        return Err(format!("there must be 1 to {MOST_SEQUENCES} sequences").into());
    }
    let longest = tests.iter().map(Test::context).max().ok_or("there is nothing to measure")?;
    if longest > MOST_TOKENS {
        return Err(format!("a test of {longest} tokens is too long; the most are {MOST_TOKENS}").into());
    }
    options.context.get_or_insert(longest);

    let model = options.load()?;
    let mut out = io::stdout().lock();
    if !as_json {
        writeln!(out, "{:<16} {:>12} {:>12} {:>12} {:>8}", "test", "tokens/s", "min", "max", "GB/s")?;
    }
    for test in tests {
        let speed = Speed::measure(&model, test, repetitions)?;
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

/// `len` tokens, at once or one by one, after `depth` others; in each of `sequences`.
#[derive(Clone, Copy)]
struct Test {
    kind: Kind,
    len: usize,
    depth: usize,
    sequences: usize,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Prompt => "pp",
            Kind::Generation => "tg",
        };
        write!(f, "{kind}{}", self.len)?;
        if self.sequences > 1 {
            write!(f, " x {}", self.sequences)?;
        }
        if self.depth > 0 { write!(f, " @ d{}", self.depth) } else { Ok(()) }
    }
}

impl Test {
    /// Tokens of a sequence. Those that draw their tokens begin with one that is given, and draw one that is not timed.
    fn context(&self) -> usize {
        self.depth.saturating_add(self.len).saturating_add(if self.sequences > 1 { 2 } else { 0 })
    }

    /// Runs the test once behind the tokens that the sessions hold: the first `depth` of `tokens`. Returns tokens per
    /// second, of all sequences together.
    fn run(&self, sessions: &mut [Session], tokens: &[u32]) -> Outcome<f64> {
        sessions.iter_mut().for_each(|session| session.truncate(self.depth));
        let began = match sessions {
            [session] => self.run_one(session, tokens)?,
            sessions => self.run_together(sessions, tokens)?,
        };
        Ok((self.len * self.sequences) as f64 / began.elapsed().as_secs_f64())
    }

    /// Returns when it began.
    fn run_one(&self, session: &mut Session, tokens: &[u32]) -> Outcome<Instant> {
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
        Ok(began)
    }

    /// Returns when it began. The sequences differ in the first token after the common ones.
    fn run_together(&self, sessions: &mut [Session], tokens: &[u32]) -> Outcome<Instant> {
        let Some(model) = sessions.first().map(|session| session.model().clone()) else {
            return Err("there are no sequences".into());
        };
        let ends = (0..model.vocab_len() as u32).filter(|&token| model.tokenizer().is_end_of_generation(token));
        let builder = ends.fold(Sampler::builder().temperature(0.0), |builder, end| builder.ban(end));
        let sampler = builder.build()?;
        let mut generations = Vec::with_capacity(sessions.len());
        for (i, session) in sessions.iter_mut().enumerate() {
            let mut prompt = tokens.get(..self.depth).unwrap_or_default().to_vec();
            prompt.push((i % model.vocab_len()) as u32);
            generations.push(session.generate(&Prompt::from_tokens(prompt), &sampler)?);
        }
        let mut step = || -> Outcome<()> {
            for piece in wavelm::next_of_each(&mut generations) {
                piece.ok_or("a sequence ended")??;
            }
            Ok(())
        };
        step()?;
        let began = Instant::now();
        (0..self.len).try_for_each(|_| step())?;
        Ok(began)
    }
}

/// Tokens per second of each run of a test.
struct Speed {
    test: Test,
    /// Sorted.
    runs: Vec<f64>,
}

impl Speed {
    fn measure(model: &Model, test: Test, repetitions: usize) -> Outcome<Self> {
        let tokens = random_tokens(model, test.depth + test.len);
        let mut session = model.session()?;
        if test.depth > 0 {
            session.feed(&Prompt::from_tokens(&tokens[..test.depth]))?;
        }
        let mut sessions: Vec<Session> = (1..test.sequences).map(|_| session.fork()).collect();
        sessions.push(session);
        test.run(&mut sessions, &tokens)?;
        let mut runs: Vec<f64> = (0..repetitions).map(|_| test.run(&mut sessions, &tokens)).collect::<Outcome<_>>()?;
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
        let passes = median / self.test.sequences as f64;
        (self.test.kind == Kind::Generation).then(|| passes * model.bytes_per_token() as f64 / 1e9)
    }

    fn json(&self, model: &Model, options: &ModelOptions) -> String {
        let [min, median, max] = self.min_median_max();
        let number = |n: Option<f64>| n.map_or("null".to_owned(), |n| format!("{n:.3}"));
        let samples: Vec<String> = self.runs.iter().map(|run| format!("{run:.3}")).collect();
        format!(
            "{{\"test\":{},\"tokens_per_second\":{{\"median\":{median:.3},\"min\":{min:.3},\"max\":{max:.3}}},\
             \"gb_per_second\":{},\"bytes_per_token\":{},\"layer_parameters\":{},\"depth\":{},\"sequences\":{},\"samples\":[{}],\
             \"model\":{},\"file\":{},\"threads\":{},\"device\":{},\"precision\":{},\"version\":{}}}",
            json::string(&self.test.to_string()),
            number(self.gb_per_second(model)),
            model.bytes_per_token(),
            layer_parameters(model),
            self.test.depth,
            self.test.sequences,
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

/// Numbers that each token of a prompt is multiplied with: the matrices of the layers. The output matrix is for the last
/// token alone.
fn layer_parameters(model: &Model) -> usize {
    let matrices = model.gguf().tensors().iter().filter(|tensor| tensor.dims().len() > 1);
    matrices.filter(|tensor| tensor.name().starts_with("blk.")).map(|tensor| tensor.elements()).sum()
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
