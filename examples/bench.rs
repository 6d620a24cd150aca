//! Measures the speed of prompts and of generation, with the tests of llama.cpp's `llama-bench`.

mod common;

use common::cli::{Cli, Outcome, run};
use common::json;
use common::model::{MODEL_OPTIONS, ModelOptions, title};
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;
use wavelm::{Device, KernelTime, Model, Prompt, Sampler, Session};

const HELP: &str = "\
Measures how fast a model reads prompts (pp) and generates (tg), with the tests of llama-bench: random tokens,
one run to warm up, then --repetitions runs that count.

GB/s are the weights and cached keys and values that generation reads. On a GPU, \"of copy\" is their share of what
copies within its memory read and write, which is measured first.

Usage: bench [OPTIONS]

  -p LIST             lengths of prompts; 0 for none [default: 512]
  -n LIST             how many tokens to generate; 0 for none [default: 128]
  -d, --depth LIST    tokens that are in the context already, not timed [default: 0]
  -s, --sequences LIST
                      how many sequences generate together; more than one draw their tokens greedily [default: 1]
  -r, --repetitions N [default: 5]
      --profile       after each test one more run, in which each kernel of the GPU is timed: a table of their families
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
    let (mut repetitions, mut profile, mut as_json) = (5, false, false);
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "-p" => prompts = cli.list()?,
            "-n" => generations = cli.list()?,
            "-d" | "--depth" => depths = cli.list()?,
            "-s" | "--sequences" => sequences = cli.list()?,
            "-r" | "--repetitions" => repetitions = cli.parse()?,
            "--profile" => profile = true,
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
    if profile && let Err(e) = model.profile(|| ()) {
        eprintln!("there will be no profile: {e}");
        profile = false;
    }
    let copy = copy_bandwidth(&model);
    let mut out = io::stdout().lock();
    if !as_json {
        if let Some(copy) = copy {
            writeln!(out, "copies within the memory of {}: {:.2} GB/s", model.device(), copy / 1e9)?;
        }
        write!(out, "{:<16} {:>12} {:>12} {:>12} {:>8}", "test", "tokens/s", "min", "max", "GB/s")?;
        writeln!(out, "{}", if copy.is_some() { "  of copy" } else { "" })?;
    }
    for test in tests {
        let speed = Speed::measure(&model, test, repetitions, profile)?;
        if as_json {
            writeln!(out, "{}", speed.json(&model, &options, copy))?;
        } else {
            let gb = speed.gb_per_second(&model);
            let share = gb.zip(copy).map_or(String::new(), |(gb, copy)| format!(" {:>6.1} %", gb * 1e11 / copy));
            let gb = gb.map_or(String::new(), |gb| format!("{gb:.2}"));
            let (name, [min, median, max]) = (test.to_string(), speed.min_median_max());
            writeln!(out, "{name:<16} {median:>12.2} {min:>12.2} {max:>12.2} {gb:>8}{share}")?;
            speed.profile.iter().try_for_each(|profile| profile.write(&mut out))?;
        }
        out.flush()?;
    }
    Ok(())
}

/// Bytes per second that a GPU copies, where one runs all of the model.
fn copy_bandwidth(model: &Model) -> Option<f64> {
    let (device, report) = (model.device(), model.device_report());
    if device == Device::Cpu || report.placement().is_some() {
        return None;
    }
    device.copy_bandwidth().inspect_err(|e| eprintln!("copies are not measured: {e}")).ok()
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

    /// What launches are counted by.
    fn unit(&self) -> (&'static str, usize) {
        match self.kind {
            Kind::Prompt => ("prompt", 1),
            Kind::Generation if self.sequences > 1 => ("pass", self.len),
            Kind::Generation => ("token", self.len),
        }
    }

    /// Runs the test once behind the tokens that the sessions hold: the first `depth` of `tokens`. What is to be measured
    /// is handed to `watch`, which calls it.
    fn run(&self, sessions: &mut [Session], tokens: &[u32], watch: Watch<'_>) -> Outcome {
        sessions.iter_mut().for_each(|session| session.truncate(self.depth));
        match sessions {
            [session] => self.run_one(session, tokens, watch),
            sessions => self.run_together(sessions, tokens, watch),
        }
    }

    /// Tokens per second of a run, of all sequences together.
    fn time(&self, sessions: &mut [Session], tokens: &[u32]) -> Outcome<f64> {
        let mut seconds = 0.0;
        self.run(sessions, tokens, &mut |work| {
            let began = Instant::now();
            work()?;
            seconds = began.elapsed().as_secs_f64();
            Ok(())
        })?;
        Ok((self.len * self.sequences) as f64 / seconds)
    }

    /// The kernels of a run.
    fn profile(&self, model: &Model, sessions: &mut [Session], tokens: &[u32]) -> Outcome<Profile> {
        let mut kernels = Vec::new();
        self.run(sessions, tokens, &mut |work| {
            let (done, times) = model.profile(work)?;
            kernels = times;
            done
        })?;
        Ok(Profile::new(*self, kernels))
    }

    fn run_one(&self, session: &mut Session, tokens: &[u32], watch: Watch<'_>) -> Outcome {
        let whole = Prompt::from_tokens(tokens);
        watch(&mut || match self.kind {
            // What the session holds is not evaluated again.
            Kind::Prompt => Ok(session.feed(&whole)?),
            Kind::Generation => {
                for token in tokens.iter().skip(self.depth) {
                    session.logits(std::slice::from_ref(token), |_, _| Ok(()))?;
                }
                Ok(())
            }
        })
    }

    /// The sequences differ in the first token after the common ones.
    fn run_together(&self, sessions: &mut [Session], tokens: &[u32], watch: Watch<'_>) -> Outcome {
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
        let mut step = || -> Outcome {
            for piece in wavelm::next_of_each(&mut generations) {
                piece.ok_or("a sequence ended")??;
            }
            Ok(())
        };
        step()?;
        watch(&mut || (0..self.len).try_for_each(|_| step()))
    }
}

/// Calls what it is given once, and measures it.
type Watch<'a> = &'a mut dyn FnMut(&mut dyn FnMut() -> Outcome) -> Outcome;

/// Tokens per second of each run of a test.
struct Speed {
    test: Test,
    /// Sorted.
    runs: Vec<f64>,
    /// Of one more run, where it is wanted.
    profile: Option<Profile>,
}

impl Speed {
    fn measure(model: &Model, test: Test, repetitions: usize, profile: bool) -> Outcome<Self> {
        let tokens = random_tokens(model, test.depth + test.len);
        let mut session = model.session()?;
        if test.depth > 0 {
            session.feed(&Prompt::from_tokens(&tokens[..test.depth]))?;
        }
        let mut sessions: Vec<Session> = (1..test.sequences).map(|_| session.fork()).collect::<Result<_, _>>()?;
        sessions.push(session);
        test.time(&mut sessions, &tokens)?;
        let mut runs: Vec<f64> = (0..repetitions).map(|_| test.time(&mut sessions, &tokens)).collect::<Outcome<_>>()?;
        runs.sort_by(f64::total_cmp);
        let profile = if profile { Some(test.profile(model, &mut sessions, &tokens)?) } else { None };
        Ok(Self { test, runs, profile })
    }

    fn min_median_max(&self) -> [f64; 3] {
        let (low, high) = ((self.runs.len() - 1) / 2, self.runs.len() / 2);
        [self.runs[0], (self.runs[low] + self.runs[high]) / 2.0, self.runs[self.runs.len() - 1]]
    }

    /// How fast weights and cached keys and values are read, at the median speed. A prompt reads them once for many
    /// tokens, so that the figure says something only for generation.
    fn gb_per_second(&self, model: &Model) -> Option<f64> {
        let [_, median, _] = self.min_median_max();
        let passes = median / self.test.sequences as f64;
        let bytes = model.bytes_per_token() as f64 + self.test.sequences as f64 * self.kv_bytes_per_token(model);
        (self.test.kind == Kind::Generation).then_some(passes * bytes / 1e9)
    }

    /// Bytes of cached keys and values that a token reads, on average.
    fn kv_bytes_per_token(&self, model: &Model) -> f64 {
        let Test { depth, len, .. } = self.test;
        (depth..depth + len).map(|depth| model.kv_bytes_per_token(depth) as f64).sum::<f64>() / len as f64
    }

    fn json(&self, model: &Model, options: &ModelOptions, copy: Option<f64>) -> String {
        let [min, median, max] = self.min_median_max();
        let number = |n: Option<f64>| n.map_or("null".to_owned(), |n| format!("{n:.3}"));
        let (gb, copy) = (self.gb_per_second(model), copy.map(|copy| copy / 1e9));
        let samples: Vec<String> = self.runs.iter().map(|run| format!("{run:.3}")).collect();
        format!(
            "{{\"test\":{},\"tokens_per_second\":{{\"median\":{median:.3},\"min\":{min:.3},\"max\":{max:.3}}},\
             \"gb_per_second\":{},\"bytes_per_token\":{},\"layer_parameters\":{},\"kv_bytes_per_token\":{:.0},\
             \"copy_gb_per_second\":{},\"share_of_copy\":{},\"profile\":{},\"depth\":{},\"sequences\":{},\"samples\":[{}],\
             \"model\":{},\"file\":{},\"threads\":{},\"device\":{},\"precision\":{},\"version\":{}}}",
            json::string(&self.test.to_string()),
            number(gb),
            model.bytes_per_token(),
            layer_parameters(model),
            self.kv_bytes_per_token(model),
            number(copy),
            number(gb.zip(copy).map(|(gb, copy)| gb / copy)),
            self.profile.as_ref().map_or("null".to_owned(), Profile::json),
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

/// The families of kernels that ran, the longest first.
struct Profile {
    unit: &'static str,
    families: Vec<Family>,
}

struct Family {
    name: String,
    /// For each token, pass or prompt.
    launches: f64,
    microseconds: f64,
}

impl Profile {
    fn new(test: Test, kernels: Vec<KernelTime>) -> Self {
        let (unit, units) = test.unit();
        let mut families: Vec<Family> = Vec::new();
        for kernel in kernels {
            let launches = kernel.launches as f64 / units as f64;
            let microseconds = kernel.time.as_secs_f64() * 1e6 / units as f64;
            match families.iter_mut().find(|family| family.name == kernel.family()) {
                Some(family) => {
                    family.launches += launches;
                    family.microseconds += microseconds;
                }
                None => families.push(Family { name: kernel.family().to_owned(), launches, microseconds }),
            }
        }
        families.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
        Self { unit, families }
    }

    fn sum(&self, of: impl Fn(&Family) -> f64) -> f64 {
        self.families.iter().map(of).sum()
    }

    /// The share of a family in the time of all.
    fn share(&self, family: &Family) -> f64 {
        family.microseconds / self.sum(|family| family.microseconds).max(f64::MIN_POSITIVE)
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let head = format!("kernels per {}", self.unit);
        writeln!(out, "  {head:<24} {:>10} {:>12} {:>12} {:>8}", "launches", "µs each", "µs", "share")?;
        for family in &self.families {
            let Family { name, launches, microseconds } = family;
            let (each, share) = (microseconds / launches, self.share(family) * 100.0);
            writeln!(out, "  {name:<24} {launches:>10.2} {each:>12.2} {microseconds:>12.2} {share:>6.1} %")?;
        }
        let (launches, microseconds) = (self.sum(|f| f.launches), self.sum(|f| f.microseconds));
        writeln!(out, "  {:<24} {launches:>10.2} {:>12} {microseconds:>12.2}", "all", "")
    }

    fn json(&self) -> String {
        let family = |family: &Family| {
            let Family { name, launches, microseconds } = family;
            format!(
                "{}:{{\"launches\":{launches:.3},\"microseconds_each\":{:.3},\"microseconds\":{microseconds:.3},\
                 \"share\":{:.4}}}",
                json::string(name),
                microseconds / launches,
                self.share(family),
            )
        };
        let families: Vec<String> = self.families.iter().map(family).collect();
        format!("{{\"per\":{},\"families\":{{{}}}}}", json::string(self.unit), families.join(","))
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
