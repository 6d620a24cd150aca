//! The programs that are timed: how each one is started, and how its answer is read.

use serde_json::Value;
use std::ffi::OsString;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Wavelm,
    LlamaBench,
}

/// A program with the options that tell it apart in the table.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Name in the table.
    pub name: String,
    program: PathBuf,
    options: Vec<String>,
    kind: Kind,
}

impl Engine {
    /// The `bench` example of wavelm.
    pub fn wavelm(program: &Path) -> Self {
        Engine { name: "wavelm".into(), program: program.into(), options: Vec::new(), kind: Kind::Wavelm }
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
                let mut options = vec!["-fa".to_string(), flash.to_string()];
                if !repack {
                    name += ", not repacked";
                    options.extend(["--repack".to_string(), "0".to_string()]);
                }
                engines.push(Engine { name, program: program.into(), options, kind: Kind::LlamaBench });
            }
            if !no_repack {
                break;
            }
        }
        Ok(engines)
    }

    /// Runs the program once, each test once, and returns one speed per test.
    pub fn run(&self, model: &Path, task: &Task) -> Result<Vec<Speed>, String> {
        let mut command = Command::new(&self.program);
        let model_flag = if self.kind == Kind::Wavelm { "--model" } else { "-m" };
        let threads_flag = if self.kind == Kind::Wavelm { "--threads" } else { "-t" };
        command.arg(model_flag).arg(model).args(["-r", "1"]);
        let numbers = [("-p", task.prompt), ("-n", task.generate), ("-d", task.depth), (threads_flag, task.threads)];
        command.args(numbers.iter().flat_map(|(flag, n)| [OsString::from(flag), n.to_string().into()]));
        command.args(&self.options);
        match self.kind {
            Kind::Wavelm => command.arg("--json"),
            Kind::LlamaBench => command.args(["-o", "jsonl"]),
        };
        let speeds = self.read(&output(&mut command, &self.program)?)?;
        let wanted = usize::from(task.prompt > 0) + usize::from(task.generate > 0);
        if speeds.len() != wanted {
            return Err(format!("{} answered with {} results instead of {wanted}", self.name, speeds.len()));
        }
        Ok(speeds)
    }

    /// Reads one JSON object per line; lines that do not begin with a brace are talk.
    fn read(&self, text: &str) -> Result<Vec<Speed>, String> {
        let lines = text.lines().filter(|line| line.trim_start().starts_with('{'));
        lines.map(|line| self.read_line(line)).collect()
    }

    fn read_line(&self, line: &str) -> Result<Speed, String> {
        let bad = |what: &str| format!("{}: {what} in this line of its answer: {line}", self.name);
        let value: Value = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
        let (test, speed) = match self.kind {
            Kind::Wavelm => {
                let test = value["test"].as_str().ok_or_else(|| bad("no string `test`"))?;
                // Anything after the number, such as the depth, is the same for all.
                let end = test.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(test.len());
                (test[..end].to_string(), &value["tokens_per_second"]["median"])
            }
            Kind::LlamaBench => {
                let count = |key: &str| value[key].as_u64().ok_or_else(|| bad(&format!("no number `{key}`")));
                let (prompt, generate) = (count("n_prompt")?, count("n_gen")?);
                (if prompt > 0 { format!("pp{prompt}") } else { format!("tg{generate}") }, &value["avg_ts"])
            }
        };
        let speed = speed.as_f64().filter(|s| *s > 0.0).ok_or_else(|| bad("no speed above zero"))?;
        Ok((test, speed))
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

    #[test]
    fn reads_wavelm() {
        let text = "loading\n{\"test\":\"pp512 @ d64\",\"tokens_per_second\":{\"median\":10.5,\"min\":9,\"max\":11},\"gb_per_second\":1}\n\
                    {\"test\":\"tg128\",\"tokens_per_second\":{\"median\":3,\"min\":3,\"max\":3},\"gb_per_second\":2}\n";
        let speeds = Engine::wavelm(Path::new("bench")).read(text).unwrap();
        assert_eq!(speeds, [("pp512".to_string(), 10.5), ("tg128".to_string(), 3.0)]);
    }

    #[test]
    fn reads_llama_bench() {
        let engine = Engine { kind: Kind::LlamaBench, ..Engine::wavelm(Path::new("llama-bench")) };
        let text =
            "{\"n_prompt\": 512, \"n_gen\": 0, \"avg_ts\": 84.8}\n{\"n_prompt\": 0, \"n_gen\": 128, \"avg_ts\": 15}\n";
        assert_eq!(engine.read(text).unwrap(), [("pp512".to_string(), 84.8), ("tg128".to_string(), 15.0)]);
    }

    #[test]
    fn says_what_is_missing() {
        let engine = Engine::wavelm(Path::new("bench"));
        assert!(engine.read("{\"speed\": 1}").unwrap_err().contains("no string `test`"));
        assert!(engine.read("{\"test\": \"pp1\"}").unwrap_err().contains("no speed above zero"));
        assert!(engine.read("{\"test\": ").unwrap_err().contains("EOF"));
        assert!(engine.run(Path::new("m"), &Task { prompt: 1, generate: 0, depth: 0, threads: 1 }).is_err());
    }
}
