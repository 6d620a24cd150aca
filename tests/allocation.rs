//! A failed allocation is an error of the kind `OutOfMemory`, wherever it happens. Each allocation
//! of 64 KB and more fails in turn, from loading a model to dropping it. The program must then end
//! with that error or the right text, and a second try without a failure must give the right text.
//!
//! This is a test binary of its own, because an allocator serves a whole process. The failing work
//! runs in child processes that report their progress, so that the test notices an abort.

mod common;

use common::{Random, Tiny};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use wavelm::gguf::{Gguf, GgufWriter, StringArray, TensorType};
use wavelm::quant;
use wavelm::tokenizer::EncodeOptions;
use wavelm::{ContextPolicy, Device, ErrorKind, Message, Model, Prompt, Result, Sampler, SessionOptions, next_of_each};

/// The smallest allocation that may fail.
const LARGE: usize = 64 << 10;

/// Fails one large allocation.
struct Failing;

/// The number of large allocations so far, and the number of the one that fails; 0 for none.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static FAILS: AtomicUsize = AtomicUsize::new(0);

fn fails(bytes: usize) -> bool {
    bytes >= LARGE && COUNT.fetch_add(1, Ordering::Relaxed) + 1 == FAILS.load(Ordering::Relaxed)
}

// SAFETY: a call fails as the contract allows, or is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        if fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        if fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        if fails(size) { std::ptr::null_mut() } else { unsafe { System.realloc(pointer, layout, size) } }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `work` with the n-th large allocation failing. Also returns the number of large
/// allocations.
fn failing<T>(n: usize, work: impl FnOnce() -> T) -> (T, usize) {
    COUNT.store(0, Ordering::Relaxed);
    FAILS.store(n, Ordering::Relaxed);
    let done = work();
    FAILS.store(0, Ordering::Relaxed);
    (done, COUNT.load(Ordering::Relaxed))
}

/// How tokens are spelled.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Bpe,
    Spm,
}

/// Letters to make pairs of: enough for more than 30,000 pairs.
const LETTERS: usize = 180;

/// A random model with a large vocabulary: single characters and all their pairs.
fn file(kind: Kind) -> Vec<u8> {
    let letters: Vec<char> = match kind {
        // The letters of byte-level vocabularies for printable bytes.
        Kind::Bpe => {
            (33..127).chain(161..173).chain(174..256).chain(256..).filter_map(char::from_u32).take(256).collect()
        }
        Kind::Spm => ('\u{2581}'..='\u{2581}').chain('!'..='~').chain('\u{400}'..).take(LETTERS).collect(),
    };
    let pairs = || letters.iter().take(LETTERS).flat_map(|a| letters.iter().take(LETTERS).map(move |b| (a, b)));
    let mut tokens: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
    let mut types = vec![2i32, 3, 3];
    if kind == Kind::Spm {
        tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        types.extend([6; 256]);
    }
    tokens.extend(letters.iter().map(char::to_string));
    tokens.extend(pairs().map(|(a, b)| format!("{a}{b}")));
    let vocab = tokens.len();
    assert!(vocab > 30_000);
    types.resize(vocab, 1);
    let mut w = GgufWriter::new()
        .metadata("general.architecture", "llama")
        .metadata("llama.block_count", 2u32)
        .metadata("llama.context_length", 8192u32)
        .metadata("llama.embedding_length", 64u32)
        .metadata("llama.feed_forward_length", 128u32)
        .metadata("llama.attention.head_count", 4u32)
        .metadata("llama.attention.head_count_kv", 2u32)
        .metadata("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .metadata("tokenizer.ggml.tokens", tokens.iter().collect::<StringArray>())
        .metadata("tokenizer.ggml.token_type", types)
        .metadata("tokenizer.ggml.bos_token_id", 1u32)
        .metadata("tokenizer.ggml.eos_token_id", 2u32)
        .metadata("tokenizer.ggml.unknown_token_id", 0u32)
        .metadata("tokenizer.ggml.add_bos_token", true);
    w = match kind {
        Kind::Bpe => w
            .metadata("tokenizer.ggml.model", "gpt2")
            .metadata("tokenizer.ggml.pre", "llama-bpe")
            .metadata("tokenizer.ggml.merges", pairs().map(|(a, b)| format!("{a} {b}")).collect::<StringArray>()),
        Kind::Spm => w
            .metadata("tokenizer.ggml.model", "llama")
            .metadata("tokenizer.ggml.scores", (0..vocab).map(|i| -(i as f32)).collect::<Vec<f32>>()),
    };
    let mut random = Random(7);
    let mut matrix = |w: GgufWriter, name: &str, rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|_| random.float() * 0.3).collect();
        let data = quant::quantize(TensorType::Q8_0, &values).unwrap();
        w.tensor(name, TensorType::Q8_0, &[columns as u64, rows as u64], data)
    };
    let ones = |w: GgufWriter, name: &str| w.tensor(name, TensorType::F32, &[64], 1f32.to_le_bytes().repeat(64));
    // A multiple of 32, so that rows can be interleaved. The output has a table of its own.
    let vocab = vocab.next_multiple_of(32);
    w = matrix(w, "token_embd.weight", vocab, 64);
    w = matrix(w, "output.weight", vocab, 64);
    for i in 0..2 {
        let t = |name: &str| format!("blk.{i}.{name}.weight");
        w = ones(w, &t("attn_norm"));
        w = ones(w, &t("ffn_norm"));
        for (name, rows, columns) in
            [("attn_q", 64, 64), ("attn_k", 32, 64), ("attn_v", 32, 64), ("attn_output", 64, 64)]
        {
            w = matrix(w, &t(name), rows, columns);
        }
        for (name, rows, columns) in [("ffn_gate", 128, 64), ("ffn_up", 128, 64), ("ffn_down", 64, 128)] {
            w = matrix(w, &t(name), rows, columns);
        }
    }
    ones(w, "output_norm.weight").to_bytes().unwrap()
}

/// How to load a model.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Map,
    Read,
    Bytes,
}

fn load(how: How, path: &Path, bytes: Option<Vec<u8>>) -> Result<Model> {
    let options = Model::options().device(Device::Cpu).threads(2);
    match how {
        How::Map => options.load(path),
        How::Read => options.map(false).load(path),
        How::Bytes => options.load_gguf(Gguf::from_bytes(bytes.unwrap_or_default())?),
    }
}

/// Uses a model in every way that a program can, and returns a log of the results. `long` is the
/// text to encode, and its first `words` bytes are the beginning of a prompt.
fn life(model: Model, long: &str, words: usize) -> Result<String> {
    let mut log = String::new();
    let tokenizer = model.tokenizer();
    let tokens = tokenizer.encode(long, EncodeOptions::default())?;
    let same = tokenizer.decode(&tokens)? == long;
    let parts = tokenizer.encode_parts([(long, false), (long, true)], false)?.len();
    write!(log, "{} {same} {parts}", tokens.len()).unwrap();

    let prompt = model.prompt(&long[..words])?;
    let mut session = model.session()?;
    let builder = || Sampler::builder().seed(1).penalty_window(usize::MAX);
    let sampler = builder().repetition_penalty(1.1).frequency_penalty(0.1).top_logprobs(3).build()?;
    let mut generation = session.generate(&prompt, &sampler)?.max_tokens(6).stop_at("no such text");
    log += &generation.text()?;
    drop(generation);

    let mut fork = session.fork()?;
    log += &fork.generate(&prompt, &Sampler::greedy())?.max_tokens(3).text()?;
    let flat = builder().temperature(9.0).top_k(0).top_p(0.99).typical(0.9).build()?;
    log += &fork.generate(&prompt, &flat)?.max_tokens(3).text()?;
    {
        let mut generations =
            [session.generate(&prompt, &sampler)?.max_tokens(4), fork.generate(&prompt, &sampler)?.max_tokens(4)];
        while generations.iter().any(|generation| generation.stop_reason().is_none()) {
            for piece in next_of_each(&mut generations) {
                log += piece.transpose()?.as_ref().map_or("", |piece| piece.text());
            }
        }
    }
    session.clear();
    let scored = tokens.get(..tokens.len().min(70)).unwrap_or_default();
    session.logits(scored, |_, row| {
        write!(log, " {:x}", row.iter().fold(0u32, |sum, x| sum.rotate_left(5) ^ x.to_bits())).unwrap();
        Ok(())
    })?;
    let options = SessionOptions::default().context(prompt.len() + 2).when_full(ContextPolicy::Slide { keep: 2 });
    log += &model.session_with(options)?.generate(&prompt, &Sampler::greedy())?.max_tokens(6).text()?;
    Ok(log)
}

/// A text with words, followed by letters without any space.
fn long_text() -> String {
    let mut random = Random(3);
    let mut text = "the quick brown fox jumps over a lazy dog; ".repeat(40);
    text.extend((0..20_000).map(|_| (b'a' + random.below(26) as u8) as char));
    text
}

/// The variable with the task of the process: the scenario, the first allocation to fail, the step
/// and the file.
const TASK: &str = "WAVELM_TEST_ALLOCATION";

/// Begins each line that is for the parent.
const SAYS: &str = "allocation:";

#[test]
#[ignore = "the other tests run it in processes of their own"]
fn fails_one_by_one() {
    let task = std::env::var(TASK).expect("the test that runs this gives the task");
    let mut task = task.splitn(4, ' ');
    let (scenario, first, step) = (task.next().unwrap(), task.next().unwrap(), task.next().unwrap());
    let path = PathBuf::from(task.next().unwrap());
    let (first, step): (usize, usize) = (first.parse().unwrap(), step.parse().unwrap());
    let bytes = std::fs::read(&path).unwrap();
    let long = long_text();
    let short = &long[..400];
    let map = || load(How::Map, &path, None);
    let run = |how| life(load(how, &path, (how == How::Bytes).then(|| bytes.clone()))?, &long, 1500);
    let chat = |model: Model| {
        let messages: Vec<Message> = (0..200).flat_map(|_| [Message::user(short), Message::assistant("yes")]).collect();
        let prompt = model.chat_prompt(&[messages, vec![Message::user("?")]].concat())?;
        // Tells prompts apart: a long text would use memory of the test's own.
        let hash = prompt.tokens().iter().fold(0u64, |hash, &token| hash.wrapping_mul(31).wrapping_add(token.into()));
        Ok(format!("{} {hash}", prompt.len()))
    };
    let whole = |scenario: &str| match scenario {
        "mapped" => run(How::Map),
        "read" => run(How::Read),
        "bytes" => run(How::Bytes),
        "small" => life(map()?, short, 100),
        "chat" => chat(map()?),
        other => panic!("unknown scenario {other}"),
    };
    // A session whose work fails and is tried again, on an unused model.
    let retried = |n: usize| -> (Result<String>, usize, String) {
        let model = map().unwrap();
        let prompt = model.prompt(&long[..1500]).unwrap();
        let mut session = model.session().unwrap();
        let sampler = Sampler::builder().seed(1).repetition_penalty(1.1).penalty_window(usize::MAX).build().unwrap();
        let mut text = |prompt: &Prompt| session.generate(prompt, &sampler)?.max_tokens(5).text();
        let (first, count) = failing(n, || text(&prompt));
        (first, count, text(&prompt).unwrap())
    };
    let attempt = |n: usize| match scenario {
        "session" => retried(n),
        scenario => {
            // The test's own copies are made before.
            let (done, count) = match scenario {
                "bytes" => {
                    let copy = bytes.clone();
                    failing(n, || life(load(How::Bytes, &path, Some(copy))?, &long, 1500))
                }
                scenario => failing(n, || whole(scenario)),
            };
            let again = match &done {
                Ok(text) if n > 0 => text.clone(),
                _ => whole(scenario).unwrap(),
            };
            (done, count, again)
        }
    };
    if scenario == "cold" {
        // The first work of the process: nothing that is made once exists yet.
        let (done, count) = failing(first, || run(How::Map));
        println!("{SAYS} count {count}");
        println!("{SAYS} {}", if done.as_ref().is_ok_and(|_| count < first) { "all" } else { "more" });
        let expected = run(How::Map).unwrap();
        match done {
            Ok(text) => assert_eq!(text, expected),
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}"),
        }
        println!("{SAYS} done");
        return;
    }
    let (expected, count, again) = attempt(0);
    let expected = expected.unwrap();
    assert_eq!(expected, again);
    println!("{SAYS} count {count}");
    let mut n = first;
    loop {
        println!("{SAYS} try {n}");
        let (done, count, again) = attempt(n);
        match done {
            Ok(text) => {
                assert_eq!(text, expected, "allocation {n}");
                println!("{SAYS} text {n}");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "allocation {n}: {error}");
                println!("{SAYS} error {n} {error}");
            }
        }
        assert_eq!(again, expected, "after allocation {n} failed");
        if count < n {
            break;
        }
        n += step;
    }
    println!("{SAYS} done");
}

/// Runs a scenario with every `step`-th large allocation failing, and reports the failures that end
/// the process.
fn sweep(scenario: &str, path: &Path, step: usize) {
    let (mut first, mut ended, mut errors, mut texts) = (1, Vec::new(), 0, 0);
    let mut count = String::new();
    for _ in 0..100 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fails_one_by_one", "--ignored", "--nocapture", "--test-threads", "1"])
            .env(TASK, format!("{scenario} {first} {step} {}", path.display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let said: Vec<&str> =
            said.lines().filter_map(|line| line.split_once(SAYS)).map(|(_, said)| said.trim()).collect();
        let number = |line: &&&str| line.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok());
        count = said.iter().find_map(|line| line.strip_prefix("count ")).unwrap_or("no").to_owned();
        errors += said.iter().filter(|line| line.starts_with("error ")).count();
        texts += said.iter().filter(|line| line.starts_with("text ")).count();
        if said.last() == Some(&"done") && output.status.success() {
            break;
        }
        let Some(last) = said.iter().rev().find(|line| line.starts_with("try ")).as_ref().and_then(number) else {
            panic!("{scenario} does not run at all: {output:?}");
        };
        let stderr = String::from_utf8_lossy(&output.stderr);
        let why = stderr.lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned();
        ended.push(format!(
            "{last} ({:?}): {why} {}",
            output.status,
            stderr.lines().take(6).collect::<Vec<_>>().join(" | ")
        ));
        first = last + step;
    }
    println!("{scenario}: {count} allocations, {errors} errors, {texts} texts, {} ended the process", ended.len());
    assert!(ended.is_empty(), "{scenario}: allocations whose failure ends the process:\n{}", ended.join("\n"));
    assert!(errors > 0, "{scenario}: nothing failed");
}

/// The same for processes that have done nothing before.
fn sweep_cold(path: &Path) {
    let mut ended = Vec::new();
    for n in 1.. {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fails_one_by_one", "--ignored", "--nocapture", "--test-threads", "1"])
            .env(TASK, format!("cold {n} 1 {}", path.display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !said.contains(&format!("{SAYS} done")) {
            ended.push(format!("{n}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        if said.contains(&format!("{SAYS} all")) || ended.len() > 20 {
            println!("cold: {} allocations", n - 1);
            break;
        }
    }
    assert!(ended.is_empty(), "allocations whose failure ends a new process:\n{}", ended.join("\n"));
}

/// A file that is removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("wavelm-allocation-{name}-{}.gguf", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_mapped_model() {
    sweep("mapped", &Temporary::new("mapped", &file(Kind::Bpe)).0, 1);
}

#[test]
fn a_process_that_has_just_begun() {
    sweep_cold(&Temporary::new("cold", &file(Kind::Bpe)).0);
}

#[test]
fn a_model_that_is_read() {
    sweep("read", &Temporary::new("read", &file(Kind::Spm)).0, 1);
}

#[test]
fn a_model_in_memory() {
    sweep("bytes", &Temporary::new("bytes", &file(Kind::Bpe)).0, 1);
}

#[test]
fn a_session_goes_on_after_an_error() {
    sweep("session", &Temporary::new("session", &file(Kind::Spm)).0, 1);
}

#[test]
fn a_tiny_model_with_a_long_context() {
    let tiny = Tiny { context: 1 << 20, ..Tiny::default() };
    sweep("mapped", &Temporary::new("tiny", &tiny.file()).0, 1);
}

#[test]
fn chat_prompts() {
    sweep("chat", &Temporary::new("chat", &file(Kind::Bpe)).0, 1);
}

#[test]
fn a_real_model() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let path = cache.unwrap_or_default().join("wavelm/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return;
    }
    sweep("small", &path, 1);
}
