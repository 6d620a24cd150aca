//! Runs the targets `template_render` and `messages` in one process without libFuzzer, as fast as the processor allows:
//!
//! ```sh
//! cargo run --release --manifest-path fuzz/Cargo.toml --no-default-features --bin templates -- SEED COUNT
//! ```
//!
//! Templates are made of those in `tests/fixtures/chat` by cutting, joining and changing them, and by a small grammar.
//! All executions run on a stack of 2 MB. The input of one that fails or takes more than 2 seconds is written to
//! `fuzz-failure-SEED-NUMBER.bin`. Each execution has a seed of its own, made of SEED and its number, so that one that
//! aborts the process is found by running fewer of them.

use std::io::Write;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(2);
const STACK: usize = 2 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

/// What a change may put in.
const WORDS: &[&str] = &[
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{{-",
    "-}}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "'",
    "\"",
    ".",
    ",",
    ":",
    "|",
    "~",
    "+",
    "-",
    "*",
    "**",
    "/",
    "//",
    "%",
    "=",
    "==",
    "!=",
    "<",
    ">",
    "<=",
    ">=",
    " and ",
    " or ",
    " not ",
    " in ",
    " is ",
    " if ",
    " else ",
    "for ",
    "endfor",
    "if ",
    "elif ",
    "endif",
    "set ",
    "endset",
    "macro ",
    "endmacro",
    "call ",
    "endcall",
    "filter ",
    "endfilter",
    "with ",
    "endwith",
    "raw",
    "endraw",
    "generation",
    "endgeneration",
    "break",
    "continue",
    "loop",
    "loop.index",
    "loop.cycle",
    "caller()",
    "namespace(",
    "ns",
    "x",
    "messages",
    "tools",
    "m.content",
    "m.role",
    "true",
    "none",
    "undefined",
    "range(3)",
    "dict(",
    "|upper",
    "|lower",
    "|trim",
    "|join",
    "|list",
    "|tojson",
    "|from_json",
    "|replace('a', 'b')",
    "|sort",
    "|unique",
    "|batch(2)",
    "|slice(2)",
    "|groupby(0)",
    "|map('upper')",
    "|select",
    "|reject",
    "|first",
    "|last",
    "|length",
    "|sum",
    "|min",
    "|max",
    "|round",
    "|int",
    "|float",
    "|abs",
    "|string",
    "|title",
    "|center(9)",
    "|indent",
    "|truncate(5)",
    "|wordwrap(3)",
    "|urlencode",
    "|escape",
    "|striptags",
    "|xmlattr",
    "|items",
    "|dictsort",
    "|default(1)",
    "|reverse",
    "|format(1)",
    "|attr('a')",
    ".split()",
    ".join(x)",
    ".append(x)",
    ".pop()",
    ".update(a=x)",
    ".items()",
    ".keys()",
    ".format(x)",
    ".strip()",
    ".replace('', 'a')",
    ".count('a')",
    ".find('a')",
    ".partition('a')",
    "[::-1]",
    "[1:]",
    "[0]",
    "0",
    "1",
    "-1",
    "9999",
    "1e300",
    "0.5",
    "'a'",
    "'%s'",
    "'{}'",
    "\n",
    "\r\n",
    " ",
    "é",
    "\\n",
    "<|im_start|>",
    "</think>",
    "**x",
    "*x",
    "is defined",
    "is mapping",
    "is iterable",
    "is string",
];

const ATOMS: &[&str] = &[
    "x",
    "messages",
    "m",
    "messages[0].content",
    "tools",
    "1",
    "2.5",
    "'a b'",
    "'<|'",
    "''",
    "[1, 2]",
    "['b', 'a']",
    "{'a': 1}",
    "(1, 2)",
    "true",
    "none",
    "undef",
    "ns.a",
    "loop.index",
    "range(4)",
    "-3",
    "'%s'",
    "'é'",
];
const BINARY: &[&str] = &[
    " + ", " - ", " * ", " / ", " // ", " % ", " ** ", " ~ ", " and ", " or ", " == ", " != ", " < ", " <= ", " > ",
    " in ", " not in ", " is eq ", " if ",
];

fn expression(random: &mut Random, depth: usize, out: &mut String) {
    match random.below(if depth == 0 { 2 } else { 9 }) {
        0 | 1 => out.push_str(random.pick(ATOMS)),
        2 => {
            out.push('(');
            expression(random, depth - 1, out);
            out.push_str(random.pick(BINARY));
            expression(random, depth - 1, out);
            out.push(')');
        }
        3 => {
            expression(random, depth - 1, out);
            out.push_str(random.pick(BINARY));
            expression(random, depth - 1, out);
        }
        4 => {
            out.push_str(random.pick(&["not ", "-", "+", "["]));
            expression(random, depth - 1, out);
            out.push_str(random.pick(&["", "", "]"]));
        }
        5 => {
            expression(random, depth - 1, out);
            out.push('[');
            expression(random, depth - 1, out);
            out.push_str(random.pick(&["]", ":]", ":2]", "::-1]"]));
        }
        _ => {
            expression(random, depth - 1, out);
            for _ in 0..1 + random.below(2) {
                let word = WORDS[random.below(WORDS.len())];
                out.push_str(if word.starts_with(['|', '.']) && word.len() > 1 { word } else { "|string" });
            }
        }
    }
}

fn statement(random: &mut Random, depth: usize, out: &mut String) {
    let (open, close) = random.pick(&[
        &("{{ ", " }}"),
        &("{{ ", " }}"),
        &("{% if ", " %}a{% endif %}"),
        &("{% for m in ", " %}{{ m }}{% endfor %}"),
        &("{% set x = ", " %}{{ x }}"),
        &("{% for a, b in ", " %}{{ a }}{% endfor %}"),
        &("{% macro f(a=", ") %}{{ a }}{{ caller() }}{% endmacro %}{% call f() %}b{% endcall %}"),
        &("{% with a = ", " %}{{ a }}{% endwith %}"),
        &("{% set ns = namespace(a=", ") %}{% set ns.a = [ns.a] %}{{ ns.a }}"),
        &("{% if ", " %}{% else %}b{% endif %}"),
    ]);
    out.push_str(open);
    expression(random, depth, out);
    out.push_str(close);
}

/// Changes some bytes.
fn change(random: &mut Random, corpus: &[String], text: &mut Vec<u8>) {
    for _ in 0..1 + random.below(3) {
        let at = random.below(text.len() + 1);
        match random.below(10) {
            0..3 => drop(text.splice(at..at, random.pick(WORDS).bytes())),
            3 | 4 => {
                let end = (at + 1 + random.below(8)).min(text.len());
                text.drain(at..end);
            }
            5 => {
                let end = (at + 1 + random.below(20)).min(text.len());
                let copy = text[at..end].to_vec();
                let to = random.below(text.len() + 1);
                text.splice(to..to, copy);
            }
            6 | 7 => {
                let other = corpus[random.below(corpus.len())].as_bytes();
                let from = random.below(other.len());
                let end = (from + 1 + random.below(40)).min(other.len());
                text.splice(at..at, other[from..end].iter().copied());
            }
            8 => {
                let end = (at + 1 + random.below(4)).min(text.len());
                text.splice(at..end, random.pick(WORDS).bytes());
            }
            _ => {
                if let Some(byte) = text.get_mut(at) {
                    *byte = random.bits() as u8;
                }
            }
        }
    }
}

fn corpus() -> Vec<String> {
    let cases = include_str!("../../../tests/fixtures/chat/jinja_cases.jsonl");
    let mut corpus: Vec<String> = Vec::new();
    for line in cases.lines().skip(1) {
        let case: wavelm::chat::Json = line.parse().expect("a line of JSON");
        corpus.extend(case[0].as_str().filter(|text| text.len() <= 160).map(str::to_string));
    }
    corpus
}

/// What an execution runs: whether it is a template, and the input.
fn input(random: &mut Random, corpus: &[String], out: &mut Vec<u8>) -> bool {
    out.clear();
    let is_template = random.below(4) > 0;
    if is_template {
        match random.below(4) {
            0 => {
                let mut text = String::new();
                for _ in 0..1 + random.below(2) {
                    statement(random, 2, &mut text);
                }
                out.extend(text.bytes());
            }
            1 => out.extend(corpus[random.below(corpus.len())].bytes()),
            _ => {
                out.extend(corpus[random.below(corpus.len())].bytes());
                change(random, corpus, out);
            }
        }
        out.push(0);
    }
    // The conversation.
    for _ in 0..random.below(24) {
        out.push((random.bits() as u8).max(1));
    }
    is_template
}

/// How long this thread has had a processor; on other systems than Linux how long it has run.
fn busy(began: Instant) -> Duration {
    let spent = |text: String| Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?));
    std::fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(spent).unwrap_or_else(|| began.elapsed())
}

fn main() {
    let arguments: Vec<u64> = std::env::args().skip(1).map(|text| text.parse().expect("a number")).collect();
    let (seed, count) = (arguments.first().copied().unwrap_or(1), arguments.get(1).copied().unwrap_or(1_000_000));
    let run = move || {
        let corpus = corpus();
        let mut bytes = Vec::new();
        let began = Instant::now();
        let mut slowest = Duration::ZERO;
        for i in 0..count {
            // Each execution can be made again from its own seed.
            let mut random = Random(seed.wrapping_mul(0x1_0000_0000).wrapping_add(i));
            let is_template = input(&mut random, &corpus, &mut bytes);
            let run = || {
                if is_template { wavelm_fuzz::template_render(&bytes) } else { wavelm_fuzz::messages(&bytes) }
            };
            let started = Instant::now();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            let mut took = started.elapsed();
            if took > LIMIT && result.is_ok() {
                // Other programs may have had the processor.
                let started = busy(began);
                run();
                took = busy(began).saturating_sub(started);
            }
            slowest = slowest.max(took);
            if result.is_err() || took > LIMIT {
                let kind = if is_template { "template_render" } else { "messages" };
                eprintln!(
                    "execution {i} of the seed {seed} ({kind}) {} after {took:?}: {:?}",
                    if result.is_err() { "fails" } else { "is slow" },
                    String::from_utf8_lossy(&bytes)
                );
                std::fs::write(format!("fuzz-failure-{seed}-{i}.bin"), &bytes).expect("the file can be written");
            }
            if i % 1_000_000 == 999_999 {
                let rate = (i + 1) as f64 / began.elapsed().as_secs_f64();
                println!("{} executions, {rate:.0} a second, the slowest took {slowest:?}", i + 1);
                std::io::stdout().flush().expect("standard output");
            }
        }
    };
    std::thread::Builder::new().stack_size(STACK).spawn(run).expect("a thread").join().expect("all executions");
}
