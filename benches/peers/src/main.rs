//! Times wavelm against its peers on the same files: every program runs once per round, so that whatever else the machine
//! does falls on all of them alike.

mod engine;
mod report;

use engine::{Engine, Task};
use lexopt::prelude::*;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
Times wavelm against llama.cpp on the same GGUF files, in interleaved rounds.

Usage: peers --wavelm PATH --llama-bench PATH --model FILE [options]

    --wavelm PATH        the built `bench` example of wavelm (target/release/examples/bench)
    --llama-bench PATH   llama-bench of llama.cpp, which is timed with flash attention on and off
    --model FILE         a GGUF file; may be given several times
    -p, --prompt N       tokens of the prompt [512]; 0 leaves this test out
    -n, --generate N     tokens to generate [128]; 0 leaves this test out
    -d, --depth N        tokens in the context before a test begins [0]
    -r, --rounds N       rounds [5]
    -t, --threads N      threads of every program [all that the machine has]
    --no-repack          also time llama.cpp without repacked weights
    --json               print one JSON object per line instead of a table
    -h, --help           this text

Leave --wavelm or --llama-bench out to time the other alone. Progress goes to the standard error output.
";

#[derive(Debug)]
struct Options {
    wavelm: Option<PathBuf>,
    llama_bench: Option<PathBuf>,
    models: Vec<PathBuf>,
    task: Task,
    rounds: u32,
    no_repack: bool,
    json: bool,
}

/// `None` when the help was asked for.
fn parse(mut parser: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let task = Task { prompt: 512, generate: 128, depth: 0, threads };
    let (wavelm, llama_bench, models) = (None, None, Vec::new());
    let mut o = Options { wavelm, llama_bench, models, task, rounds: 5, no_repack: false, json: false };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("wavelm") => o.wavelm = Some(parser.value()?.into()),
            Long("llama-bench") => o.llama_bench = Some(parser.value()?.into()),
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
    if o.rounds == 0 || o.task.threads == 0 || (o.task.prompt == 0 && o.task.generate == 0) {
        return Err("rounds and threads must be at least 1, and one of --prompt and --generate above 0".into());
    }
    let mut engines: Vec<Engine> = o.wavelm.iter().map(|path| Engine::wavelm(path)).collect();
    if let Some(path) = &o.llama_bench {
        engines.extend(Engine::llama_bench(path, o.no_repack)?);
    }
    if engines.is_empty() {
        return Err("name a program to time with --wavelm or --llama-bench".into());
    }
    let mut report = Report::default();
    for model in &o.models {
        let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned();
        for round in 1..=o.rounds {
            for engine in &engines {
                eprintln!("{name}: round {round} of {}: {}", o.rounds, engine.name);
                for (test, speed) in engine.run(model, &o.task)? {
                    report.add(&name, &test, &engine.name, speed);
                }
            }
        }
    }
    Ok(report)
}

fn main() -> ExitCode {
    let result = match parse(lexopt::Parser::from_env()) {
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
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
        assert!(compare(&options(&["--model", "m", "-r", "0"])).unwrap_err().contains("rounds"));
        let missing = options(&["--model", "m", "--wavelm", "/nowhere/bench"]);
        assert!(compare(&missing).unwrap_err().contains("cannot start /nowhere/bench"));
    }
}
