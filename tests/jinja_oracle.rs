//! Random templates against Python's Jinja: `tests/fixtures/make_jinja_cases.py` writes templates and what Python makes of
//! them. Both give the same text, or both refuse.

#[path = "common/templates.rs"]
mod templates;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};
use wavelm::chat::{ChatOptions, ChatTemplate, Json, Message, SpecialTokens};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Compares all cases: how many there are, and how many of them Python refuses.
fn compare(mut lines: impl Iterator<Item = String>) -> (usize, usize) {
    let head: Json = lines.next().expect("the first line has the variables").parse().unwrap();
    let Some(Json::Object(variables)) = head.get("variables") else { panic!("no variables") };
    let now = UNIX_EPOCH + Duration::from_secs(head["now"].as_u64().unwrap());
    let options = variables
        .iter()
        .fold(ChatOptions::new().now(now), |options, (name, value)| options.variable(name, value.clone()));
    let tokens = SpecialTokens::new().bos("<s>").eos("</s>");
    let messages = [Message::user("Hi <there>")];
    let (mut count, mut refused, mut differences) = (0, 0, Vec::new());
    for line in lines {
        let case: Json = line.parse().unwrap();
        let (source, wanted) = (case[0].as_str().unwrap(), case[1].as_str());
        let got = ChatTemplate::parse(source, tokens.clone()).and_then(|template| template.render(&messages, &options));
        let got = got.map(|prompt| prompt.text());
        count += 1;
        refused += usize::from(wanted.is_none());
        if got.as_deref().ok() != wanted {
            let got = got.map_err(|error| error.to_string());
            differences.push(format!("{source:?}\n  got    {got:?}\n  wanted {wanted:?}"));
        }
    }
    let shown = differences.iter().take(show()).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{} of {count} differ\n{shown}", differences.len());
    (count, refused)
}

fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

fn show() -> usize {
    variable("WAVELM_JINJA_SHOW").unwrap_or(20)
}

#[test]
fn sampled_templates_render_as_in_python() {
    let sample = std::fs::read_to_string(fixtures().join("chat/jinja_cases.jsonl")).unwrap();
    let (count, refused) = compare(sample.lines().map(str::to_string));
    assert!(count >= 2000 && refused < count / 2, "{count} cases, {refused} refused");
}

/// Cases made now: 10,000 in CI and 1,000 elsewhere. `WAVELM_JINJA_CASES` and `WAVELM_JINJA_SEED` choose others.
#[test]
fn fresh_templates_render_as_in_python() {
    if !templates::has_jinja() {
        return;
    }
    let default = if std::env::var_os("CI").is_some() { 10_000 } else { 1_000 };
    let wanted = variable("WAVELM_JINJA_CASES").unwrap_or(default);
    let seed = variable("WAVELM_JINJA_SEED").unwrap_or(15).to_string();
    let script = fixtures().join("make_jinja_cases.py").display().to_string();
    let mut child =
        Command::new("python3").args([&script, &wanted.to_string(), &seed]).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (count, refused) = compare(output.lines().map(Result::unwrap));
    assert!(child.wait().unwrap().success());
    assert_eq!(count, wanted);
    println!("{count} cases of the seed {seed}, of which Python refuses {refused}");
}
