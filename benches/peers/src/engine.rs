//! The programs that are timed: how each one is started, and how its answer is read.

use crate::machine;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every program is asked to do in one round.
#[derive(Debug, Clone)]
pub struct Task {
    /// Tokens of the prompt; 0 leaves the prompt test out.
    pub prompt: u32,
    /// Tokens to generate; 0 leaves the generation test out.
    pub generate: u32,
    /// Tokens already in the context when a test begins.
    pub depth: u32,
    /// Threads to compute with.
    pub threads: u32,
}

/// One speed: the test's name (`pp512`, `tg128`) and tokens per second.
pub type Speed = (String, f64);

/// What a program answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// One for each test.
    pub speeds: Vec<Speed>,
    /// Of the program, where it says so.
    pub version: Option<String>,
    /// Of the file, where the program says so.
    pub weights: Option<Weights>,
}

/// How much a model computes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Bytes that are read to generate a token.
    pub bytes_per_token: f64,
    /// Numbers that each token of a prompt is multiplied with.
    pub layer_parameters: f64,
}

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Wavelm,
    LlamaCpp,
    Candle,
}

/// A program with the options that tell it apart in the table.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Name in the table.
    pub name: String,
    pub kind: Kind,
    program: PathBuf,
    options: Vec<String>,
}

/// The first argument of this program that makes it time candle instead of starting others.
pub const RUN_CANDLE: &str = "run-candle";

impl Engine {
    /// The `bench` example of wavelm.
    pub fn wavelm(program: &Path) -> Self {
        Engine { name: "wavelm".into(), program: program.into(), options: vec!["--json".into()], kind: Kind::Wavelm }
    }

    /// llama-bench, once with and once without flash attention; `no_repack` adds the same two without repacked weights.
    /// llama-bench is asked which options it knows, since older ones have no `--repack`.
    pub fn llama_bench(program: &Path, no_repack: bool) -> Result<Vec<Self>, String> {
        let help = output(Command::new(program).arg("--help"), program)?;
        if no_repack && !help.contains("--repack") {
            return Err(format!("{} has no option --repack, so leave out --no-repack", program.display()));
        }
        let mut engines = Vec::new();
        for repack in [true, false] {
            for flash in ["on", "off"] {
                let mut name = format!("llama.cpp, flash attention {flash}");
                let mut options = ["-o", "jsonl", "-fa", flash].map(String::from).to_vec();
                if !repack {
                    name += ", not repacked";
                    options.extend(["--repack", "0"].map(String::from));
                }
                engines.push(Engine { name, program: program.into(), options, kind: Kind::LlamaCpp });
            }
            if !no_repack {
                break;
            }
        }
        Ok(engines)
    }

    /// This program once more, as the runner of candle.
    pub fn candle() -> Result<Self, String> {
        if !cfg!(feature = "candle") {
            return Err("this program was built without candle; build it with --features candle".into());
        }
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program to start it: {e}"))?;
        // It is several times slower then on some formats, which is not what it can do.
        let name = if machine::compiled_for_it() { "candle" } else { "candle, not compiled for this processor" };
        Ok(Engine { name: name.into(), program, options: Vec::new(), kind: Kind::Candle })
    }

    /// Runs the program once, each test once.
    pub fn run(&self, model: &Path, task: &Task) -> Result<Answer, String> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Wavelm | Kind::LlamaCpp => command.args(["-r", "1"]),
            Kind::Candle => {
                let threads = task.threads.to_string();
                // A panic of candle's becomes a line of the table.
                let variables =
                    [("RAYON_NUM_THREADS", &*threads), ("CANDLE_NUM_THREADS", &threads), ("RUST_BACKTRACE", "0")];
                command.arg(RUN_CANDLE).envs(variables)
            }
        };
        let model_flag = if self.kind == Kind::LlamaCpp { "-m" } else { "--model" };
        command.arg(model_flag).arg(model).args(&self.options);
        let numbers = [("-p", task.prompt), ("-n", task.generate), ("-d", task.depth), ("-t", task.threads)];
        command.args(numbers.iter().flat_map(|(flag, n)| [flag.to_string(), n.to_string()]));
        let answer = self.read(&output(&mut command, &self.program)?)?;
        let wanted = usize::from(task.prompt > 0) + usize::from(task.generate > 0);
        if answer.speeds.len() != wanted {
            return Err(format!("{} answered with {} results instead of {wanted}", self.name, answer.speeds.len()));
        }
        Ok(answer)
    }

    /// Reads one JSON object per line; lines that do not begin with a brace are talk.
    fn read(&self, text: &str) -> Result<Answer, String> {
        let mut answer = Answer::default();
        for line in text.lines().filter(|line| line.trim_start().starts_with('{')) {
            let bad = |what: &str| format!("{}: {what} in this line of its answer: {line}", self.name);
            let value: Value = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
            answer.speeds.push(self.speed(&value).map_err(|what| bad(&what))?);
            answer.version = self.version(&value);
            let weights = value["bytes_per_token"].as_f64().zip(value["layer_parameters"].as_f64());
            answer.weights =
                weights.map(|(bytes_per_token, layer_parameters)| Weights { bytes_per_token, layer_parameters });
        }
        Ok(answer)
    }

    fn speed(&self, value: &Value) -> Result<Speed, String> {
        let (test, speed) = match self.kind {
            Kind::Wavelm | Kind::Candle => {
                let test = value["test"].as_str().ok_or("no string `test`")?;
                // Anything after the number, such as the depth, is the same for all.
                let end = test.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(test.len());
                let speed = &value["tokens_per_second"];
                (test[..end].to_string(), speed.get("median").unwrap_or(speed))
            }
            Kind::LlamaCpp => {
                let count = |key: &str| value[key].as_u64().ok_or_else(|| format!("no number `{key}`"));
                let (prompt, generate) = (count("n_prompt")?, count("n_gen")?);
                (if prompt > 0 { format!("pp{prompt}") } else { format!("tg{generate}") }, &value["avg_ts"])
            }
        };
        let speed = speed.as_f64().filter(|speed| *speed > 0.0).ok_or("no speed above zero")?;
        Ok((test, speed))
    }

    fn version(&self, value: &Value) -> Option<String> {
        match self.kind {
            Kind::Wavelm => Some(format!("wavelm {}", value["version"].as_str()?)),
            Kind::LlamaCpp => {
                Some(format!("llama.cpp {} ({})", value["build_number"].as_u64()?, value["build_commit"].as_str()?))
            }
            // The crate does not know its own version.
            Kind::Candle => {
                let (_, after) = include_str!("../Cargo.lock").split_once("\"candle-core\"\nversion = \"")?;
                Some(format!("candle {}", after.split('"').next()?))
            }
        }
    }
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command, program: &Path) -> Result<String, String> {
    let out = command.output().map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&out.stderr);
    let mut last: Vec<&str> = stderr.lines().rev().take(5).collect();
    last.reverse();
    Err(format!("{} failed ({}): {}", program.display(), out.status, last.join("\n    ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(kind: Kind) -> Engine {
        Engine { kind, ..Engine::wavelm(Path::new("bench")) }
    }

    #[test]
    fn reads_wavelm() {
        let text = "loading\n{\"test\":\"pp512 @ d64\",\"tokens_per_second\":{\"median\":10.5,\"min\":9,\"max\":11}}\n\
                    {\"test\":\"tg128\",\"tokens_per_second\":{\"median\":3,\"min\":3,\"max\":3},\
                    \"bytes_per_token\":7,\"layer_parameters\":9,\"version\":\"1.2.3\"}\n";
        let answer = engine(Kind::Wavelm).read(text).unwrap();
        assert_eq!(answer.speeds, [("pp512".to_string(), 10.5), ("tg128".to_string(), 3.0)]);
        assert_eq!(answer.version.unwrap(), "wavelm 1.2.3");
        assert_eq!(answer.weights.unwrap(), Weights { bytes_per_token: 7.0, layer_parameters: 9.0 });
    }

    #[test]
    fn reads_llama_bench() {
        let text = "{\"n_prompt\": 512, \"n_gen\": 0, \"avg_ts\": 84.8}\n\
                    {\"n_prompt\": 0, \"n_gen\": 128, \"avg_ts\": 15, \"build_number\": 7, \"build_commit\": \"ab\"}\n";
        let answer = engine(Kind::LlamaCpp).read(text).unwrap();
        assert_eq!(answer.speeds, [("pp512".to_string(), 84.8), ("tg128".to_string(), 15.0)]);
        assert_eq!((answer.version.as_deref(), answer.weights), (Some("llama.cpp 7 (ab)"), None));
    }

    #[test]
    fn reads_candle() {
        let answer = engine(Kind::Candle).read("{\"test\":\"tg8\",\"tokens_per_second\":2.5}\n").unwrap();
        assert_eq!(answer.speeds, [("tg8".to_string(), 2.5)]);
        let version = answer.version.unwrap();
        assert!(version.starts_with("candle 0."), "{version}");
        assert_eq!(Engine::candle().is_ok(), cfg!(feature = "candle"));
    }

    #[test]
    fn says_what_is_missing() {
        let engine = engine(Kind::Wavelm);
        assert!(engine.read("{\"speed\": 1}").unwrap_err().contains("no string `test`"));
        assert!(engine.read("{\"test\": \"pp1\"}").unwrap_err().contains("no speed above zero"));
        assert!(engine.read("{\"test\": ").unwrap_err().contains("EOF"));
        assert!(engine.run(Path::new("m"), &Task { prompt: 1, generate: 0, depth: 0, threads: 1 }).is_err());
    }
}
