//! Templates that want to overflow the stack, fill the memory or never end: each is parsed and rendered on a thread with a
//! stack of 2 MB, in a process with 512 MB of addresses, and must end with a text or a typed error within a time.

#[path = "hostile/chains.rs"]
mod chains;
#[path = "hostile/others.rs"]
mod others;
#[path = "hostile/values.rs"]
mod values;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wavelm::ErrorKind;
use wavelm::chat::{ChatOptions, ChatTemplate, Json, Message, SpecialTokens, ToolCall};

const STACK: usize = 2 << 20;
const ADDRESSES: usize = 512 << 20;
/// How long one template may take a processor; tests are built with checks.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 2 });
/// How long the process may say nothing before it counts as hung.
const HUNG: Duration = Duration::from_secs(60);
/// Set in the process that runs the templates: which of the groups.
const GROUP: &str = "WAVELM_HOSTILE_GROUP";

struct Case {
    name: String,
    source: String,
}

impl Case {
    fn new(name: impl Into<String>, source: impl Into<String>) -> Self {
        Self { name: name.into(), source: source.into() }
    }
}

/// Hands out the templates of a group one after the other: all at once they would fill the memory.
fn each(group: &str, visit: &mut dyn FnMut(Case)) {
    match group {
        "chains" => chains::each(visit),
        "products" => values::each_product(visit),
        "values" => values::each(visit),
        _ => panic!("no group {group}"),
    }
}

fn conversation() -> (Vec<Message>, ChatOptions) {
    let arguments: Json = r#"{"a": [1, 2, {"b": null}], "c": "</s>"}"#.parse().unwrap();
    let call = ToolCall::new("f", arguments.clone());
    let messages = vec![Message::system("S"), Message::user("hi <s>"), Message::assistant("x").with_tool_call(call)];
    let long = "long <s> text, ".repeat(20_000);
    let items = Json::Array((0..20_000).map(|i| Json::from(format!("item {i}"))).collect());
    let options = ChatOptions::new().tool(arguments).variable("long", long).variable("items", items);
    (messages, options)
}

/// How long this thread has had a processor, since others may be busy too; on other systems than Linux how long it has
/// run.
fn busy(began: Instant) -> Duration {
    let spent = |text: String| Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?));
    std::fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(spent).unwrap_or_else(|| began.elapsed())
}

/// What became of a template.
fn outcome(source: &str, messages: &[Message], options: &ChatOptions) -> String {
    let tokens = SpecialTokens::new().bos("<s>").eos("</s>").control(["<|im_start|>", "<|im_end|>"]);
    let rendered = ChatTemplate::parse(source, tokens).and_then(|template| template.render(messages, options));
    match rendered {
        Ok(prompt) => format!("{} bytes", prompt.text().len()),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Template | ErrorKind::OutOfMemory), "{error}");
            let text = error.to_string();
            assert!(text.len() < 4096, "an error of {} bytes", text.len());
            text.chars().take(160).collect()
        }
    }
}

/// Runs the templates of the group that the environment names, and says of each when it begins and when it ended.
#[test]
#[ignore = "the other tests start it in processes of their own"]
fn run_group() {
    let Some(name) = std::env::var_os(GROUP) else { return };
    let (messages, options) = conversation();
    let say = |text: String| {
        let mut out = std::io::stderr().lock();
        writeln!(out, "{text}").unwrap();
    };
    let only = std::env::var("WAVELM_HOSTILE_CASE").ok();
    each(name.to_str().unwrap(), &mut |case| {
        if only.as_ref().is_some_and(|only| *only != case.name) {
            return;
        }
        say(format!("begin {}", case.name));
        let (mut took, mut result) = (Duration::ZERO, String::new());
        std::thread::scope(|scope| {
            let run = || {
                let began = Instant::now();
                let result = outcome(&case.source, &messages, &options);
                (result, busy(began))
            };
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run).unwrap();
            (result, took) = thread.join().unwrap_or_else(|_| panic!("{} panics", case.name));
        });
        let verdict = if took < LIMIT { "end" } else { "slow" };
        say(format!("{verdict} {} {} ms: {result}", case.name, took.as_millis()));
    });
    say("all ended".to_string());
}

/// Runs a group in a process of its own.
fn survive(name: &str) {
    if !Command::new("prlimit").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: prlimit (of util-linux) is not there");
        return;
    }
    let mut child = Command::new("prlimit")
        .arg(format!("--as={ADDRESSES}"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "run_group", "--ignored", "--nocapture", "--test-threads=1"])
        .env(GROUP, name)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.for_each(|line| drop(sender.send(line))));
    let (mut log, mut slow, mut ended) = (Vec::new(), Vec::new(), 0);
    loop {
        match receiver.recv_timeout(HUNG) {
            Ok(line) => {
                ended += usize::from(line.starts_with("end "));
                slow.extend(line.starts_with("slow ").then(|| line.clone()));
                if std::env::var_os("WAVELM_HOSTILE_SHOW").is_some() {
                    println!("{line}");
                }
                log.push(line);
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                panic!("hung: {:?}", log.last());
            }
        }
    }
    let status = child.wait().unwrap();
    let tail = log[log.len().saturating_sub(6)..].join("\n");
    assert!(status.success(), "{status} after {ended} templates; the last lines:\n{tail}");
    assert!(slow.is_empty(), "{} of {} take more than {LIMIT:?}:\n{}", slow.len(), ended + slow.len(), slow.join("\n"));
    let mut count = 0;
    each(name, &mut |_| count += 1);
    assert_eq!(ended, count, "{tail}");
    println!("{name}: {ended} templates ended");
}

#[test]
fn chains_and_nests_end() {
    survive("chains");
}

#[test]
fn large_values_in_every_operation_end() {
    survive("products");
}

#[test]
fn growth_cycles_and_recursion_end() {
    survive("values");
}
