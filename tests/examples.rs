//! How the examples behave on the command line: help, mistakes, and missing or broken models.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const EXAMPLES: [&str; 8] = ["bench", "chat", "devices", "generate", "inspect", "logits", "perplexity", "tokenize"];

/// Those that load a model, with the arguments that they need besides it.
const WITH_MODEL: [(&str, &[&str]); 7] = [
    ("bench", &[]),
    ("chat", &[]),
    ("generate", &["--prompt", "x"]),
    ("inspect", &[]),
    ("logits", &["--tokens", "1", "--out", "never-written"]),
    ("perplexity", &["--file", "Cargo.toml"]),
    ("tokenize", &[]),
];

/// The program of an example. Cargo builds examples for `cargo test`, next to the folder of the tests.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let profile = tests.parent().and_then(Path::parent).unwrap();
    let program: PathBuf = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "{} is not built; run cargo build --examples", program.display());
    let mut command = Command::new(program);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).env_remove("WAVELM_MODEL");
    command
}

/// Asserts a failure that is told in one line on standard error; returns the line.
fn one_line_error(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(output.stdout, b"", "{error}");
    assert!(error.starts_with("error: ") && error.ends_with('\n') && error.lines().count() == 1, "{error:?}");
    error
}

#[test]
fn help_goes_to_standard_output() {
    for name in EXAMPLES {
        let output = example(name).arg("--help").output().unwrap();
        assert!(output.status.success(), "{name}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("Usage: {name}")) && text.contains("--help"), "{text}");
        assert_eq!(output.stderr, b"", "{name}");
    }
}

#[test]
fn unknown_options_are_named() {
    for name in EXAMPLES {
        let error = one_line_error(&example(name).arg("--no-such-option").output().unwrap());
        assert!(error.contains("--no-such-option"), "{name}: {error}");
    }
}

#[test]
fn a_missing_model_is_one_line_that_names_it() {
    for (name, arguments) in WITH_MODEL {
        let error = one_line_error(&example(name).args(arguments).args(["--model", "no/such.gguf"]).output().unwrap());
        assert!(error.contains("no/such.gguf"), "{name}: {error}");
    }
    assert!(!Path::new("never-written").exists());
}

#[test]
fn a_file_that_is_no_model_is_one_line_that_names_it() {
    for (name, arguments) in WITH_MODEL {
        let error = one_line_error(&example(name).args(arguments).args(["--model", "Cargo.toml"]).output().unwrap());
        assert!(error.contains("Cargo.toml") && error.contains("GGUF"), "{name}: {error}");
    }
}

#[test]
fn values_out_of_range_are_named() {
    let cases: [(&str, &[&str], &str); 11] = [
        ("generate", &["--prompt", "x", "--temperature", "warm"], "--temperature"),
        ("generate", &["--prompt", "x", "--top-p", "2"], "top_p"),
        ("generate", &["--prompt", "x", "-n", "-1"], "-n"),
        ("generate", &["--prompt", "x", "--device", "toaster"], "toaster"),
        ("generate", &["--prompt"], "--prompt"),
        ("logits", &["--tokens", "1,,2", "--out", "x"], "--tokens"),
        ("bench", &["-r", "0"], "repetition"),
        ("bench", &["-p", "0", "-n", "0"], "nothing"),
        ("bench", &["-s", "0"], "sequences"),
        ("bench", &["-d", "100000000000000"], "100000000000"),
        ("perplexity", &["--file", "no/such.txt"], "no/such.txt"),
    ];
    for (name, arguments, named) in cases {
        let error = one_line_error(&example(name).args(arguments).output().unwrap());
        assert!(error.contains(named), "{name} {arguments:?}: {error}");
    }
}

#[test]
fn without_python_the_default_model_says_what_to_do() {
    let cache = std::env::temp_dir().join(format!("wavelm-test-{}", std::process::id()));
    let variables = ["XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"].map(|name| (name, &cache));
    let mut command = example("inspect");
    let output = command.envs(variables).env("PATH", cache.join("nothing")).output().unwrap();
    let _ = std::fs::remove_dir_all(&cache);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && last.contains("python3") && last.contains("--model"), "{error}");
}

#[test]
fn devices_lists_the_processor_as_usable() {
    let output = example("devices").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("cpu") && line.ends_with("(usable)")), "{text}");
}

#[test]
fn the_readme_shows_the_quickstart_example() {
    let read = |path| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (readme, example) = (read("README.md"), read("examples/quickstart.rs"));
    let (_, program) = example.split_once("\n\n").unwrap();
    assert!(readme.contains(&format!("```rust\n{program}```")), "README.md and examples/quickstart.rs differ");
}
