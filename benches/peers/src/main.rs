//! Times wavelm against its peers on the same files: every program runs once per round, so that whatever else the machine
//! does falls on all of them alike.

#[cfg(feature = "candle")]
mod candle;
mod engine;
mod limits;
mod machine;
mod report;

use engine::{Engine, Kind, RUN_CANDLE, Task};
use lexopt::prelude::*;
use limits::Limits;
use report::{Report, Run};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
Times wavelm against llama.cpp and candle on the same GGUF files, in interleaved rounds, beside what the machine can do.

Usage: peers --wavelm PATH --llama-bench PATH --candle --model FILE [options]

    --wavelm PATH        the built `bench` example of wavelm (target/release/examples/bench)
    --llama-bench PATH   llama-bench of llama.cpp, which is timed with flash attention on and off
    --candle             time candle, in a process of its own; needs a build with --features candle
                         and RUSTFLAGS=-Ctarget-cpu=native
    --model FILE         a GGUF file; may be given several times
    -p, --prompt N       tokens of the prompt [512]; 0 leaves this test out
    -n, --generate N     tokens to generate [128]; 0 leaves this test out
    -d, --depth N        tokens in the context before a test begins [0]
    -r, --rounds N       rounds [5]
    -t, --threads N      threads of every program [all that the machine has]
    --no-repack          also time llama.cpp without repacked weights
    --json               print one JSON object per line instead of a table
    -h, --help           this text

Programs that are left out are not timed. Only wavelm knows how much a file's weights are: without it there are no shares
of the machine's limits. Progress goes to the standard error output.
";

#[derive(Debug)]
struct Options {
    wavelm: Option<PathBuf>,
    llama_bench: Option<PathBuf>,
    candle: bool,
    models: Vec<PathBuf>,
    task: Task,
    rounds: u32,
    no_repack: bool,
    json: bool,
    /// Run candle here, and nothing else.
    run_candle: bool,
}

/// More are a mistake.
const MOST_THREADS: u32 = 1024;

/// `None` when the help was asked for.
fn parse(mut parser: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let task = Task { prompt: 512, generate: 128, depth: 0, threads };
    let mut o = Options {
        wavelm: None,
        llama_bench: None,
        candle: false,
        models: Vec::new(),
        task,
        rounds: 5,
        no_repack: false,
        json: false,
        run_candle: false,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("wavelm") => o.wavelm = Some(parser.value()?.into()),
            Long("llama-bench") => o.llama_bench = Some(parser.value()?.into()),
            Long("candle") => o.candle = true,
            Value(name) if name == RUN_CANDLE => o.run_candle = true,
            Long("model") => o.models.push(parser.value()?.into()),
            Short('p') | Long("prompt") => o.task.prompt = parser.value()?.parse()?,
            Short('n') | Long("generate") => o.task.generate = parser.value()?.parse()?,
            Short('d') | Long("depth") => o.task.depth = parser.value()?.parse()?,
            Short('r') | Long("rounds") => o.rounds = parser.value()?.parse()?,
            Short('t') | Long("threads") => o.task.threads = parser.value()?.parse()?,
            Long("no-repack") => o.no_repack = true,
            Long("json") => o.json = true,
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(o))
}

fn compare(o: &Options) -> Result<Report, String> {
    if o.models.is_empty() {
        return Err("name at least one GGUF file with --model".into());
    }
    if o.rounds == 0 || (o.task.prompt == 0 && o.task.generate == 0) {
        return Err("there must be at least 1 round, and one of --prompt and --generate above 0".into());
    }
    if o.task.threads == 0 || o.task.threads > MOST_THREADS {
        return Err(format!("there must be 1 to {MOST_THREADS} threads"));
    }
    let mut engines: Vec<Engine> = o.wavelm.iter().map(|path| Engine::wavelm(path)).collect();
    if let Some(path) = &o.llama_bench {
        engines.extend(Engine::llama_bench(path, o.no_repack)?);
    }
    if o.candle {
        engines.push(Engine::candle()?);
    }
    if engines.is_empty() {
        return Err("name a program to time with --wavelm, --llama-bench or --candle".into());
    }
    let mut report = Report::new(machine::describe(), o.task.threads);
    for model in &o.models {
        compare_on(model, o, &engines, &mut report)?;
    }
    Ok(report)
}

/// All rounds of one model.
fn compare_on(model: &Path, o: &Options, engines: &[Engine], report: &mut Report) -> Result<(), String> {
    let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned();
    let measure = || Limits::measure(o.task.threads as usize);
    let mut before = measure();
    report.limits.push(before);
    for round in 1..=o.rounds {
        let mut speeds = Vec::new();
        for engine in engines {
            if report.failed(&name, &engine.name) {
                continue;
            }
            eprintln!("{name}: round {round} of {}: {}", o.rounds, engine.name);
            match engine.run(model, &o.task) {
                Ok(answer) => speeds.push((engine, answer)),
                // The others are expected to run all models that they are given.
                Err(error) if engine.kind == Kind::Candle => {
                    // What the runner itself said, if it said anything.
                    let reason = error.rsplit("peers: ").next().unwrap_or(&error);
                    report.add_failure(&name, &engine.name, reason);
                }
                Err(error) => return Err(error),
            }
        }
        let after = measure();
        report.limits.push(after);
        for (engine, answer) in speeds {
            for (test, speed) in answer.speeds {
                let run = Run { speed, limits: before.between(after) };
                report.add(&name, &test, (&engine.name, engine.kind), run);
            }
            answer.weights.into_iter().for_each(|weights| report.add_weights(&name, weights));
            answer.version.into_iter().for_each(|version| report.add_version(version));
        }
        before = after;
    }
    Ok(())
}

#[cfg(feature = "candle")]
fn run_candle(o: &Options) -> Result<(), String> {
    let model = o.models.first().ok_or("there is no model to run")?;
    candle::run(model, &o.task)
}

#[cfg(not(feature = "candle"))]
fn run_candle(_: &Options) -> Result<(), String> {
    Engine::candle().map(drop)
}

fn main() -> ExitCode {
    let result = match parse(lexopt::Parser::from_env()) {
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(Some(options)) if options.run_candle => run_candle(&options).map(|()| String::new()),
        Ok(Some(options)) => {
            compare(&options).map(|report| if options.json { report.json_lines() } else { report.markdown() })
        }
        Err(error) => Err(format!("{error}; see --help")),
    };
    match result {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        parse(lexopt::Parser::from_args(arguments)).unwrap().unwrap()
    }

    #[test]
    fn reads_the_command_line() {
        let o = options(&["--wavelm", "b", "--model", "x.gguf", "--model", "y.gguf", "-p", "0", "-t", "2", "--json"]);
        assert_eq!((o.models.len(), o.task.prompt, o.task.threads, o.json), (2, 0, 2, true));
        assert!(parse(lexopt::Parser::from_args(["--frobnicate"])).is_err());
        assert!(parse(lexopt::Parser::from_args(["--help"])).unwrap().is_none());
    }

    #[test]
    fn refuses_what_cannot_be_timed() {
        assert!(compare(&options(&["--wavelm", "b"])).unwrap_err().contains("--model"));
        assert!(compare(&options(&["--model", "m"])).unwrap_err().contains("--wavelm"));
        assert!(compare(&options(&["--model", "m", "-r", "0"])).unwrap_err().contains("1 round"));
        assert!(compare(&options(&["--model", "m", "-t", "0"])).unwrap_err().contains("1 to 1024 threads"));
        assert!(options(&["run-candle", "--model", "m"]).run_candle);
        assert!(parse(lexopt::Parser::from_args(["run-wavelm"])).is_err());
        let missing = options(&["--model", "m", "--wavelm", "/nowhere/bench"]);
        assert!(compare(&missing).unwrap_err().contains("cannot start /nowhere/bench"));
    }
}
