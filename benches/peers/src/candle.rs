//! The candle runner: this program starts itself again to time candle in a process whose threads are its own.

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::{quantized_gemma3, quantized_llama, quantized_qwen2, quantized_qwen3};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use crate::engine::Task;

/// Logits of the last of some tokens that stand at a position; a position of 0 empties the cache.
type Forward = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor>>;

/// The model's type is chosen by the file's architecture. Returns the size of the vocabulary too.
fn load(path: &Path) -> Result<(Forward, usize)> {
    let mut file = BufReader::new(File::open(path)?);
    let content = Content::read(&mut file)?;
    let Some(architecture) = content.metadata.get("general.architecture") else {
        candle_core::bail!("the file names no architecture");
    };
    let architecture = architecture.to_string()?.clone();
    let Some(embedding) = content.tensor_infos.get("token_embd.weight") else {
        candle_core::bail!("the file has no token_embd.weight");
    };
    let vocabulary = embedding.shape.dims().first().copied().unwrap_or(0).max(1);
    macro_rules! model {
        ($module:ident $(, $clear:ident)?) => {{
            let mut model = $module::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
            Box::new(move |tokens: &Tensor, position| {
                $(if position == 0 {
                    model.$clear();
                })?
                model.forward(tokens, position)
            })
        }};
    }
    let forward: Forward = match architecture.as_str() {
        "llama" => model!(quantized_llama),
        "qwen2" => model!(quantized_qwen2),
        "qwen3" => model!(quantized_qwen3, clear_kv_cache),
        "gemma3" => model!(quantized_gemma3),
        other => candle_core::bail!("no quantized model of candle's is for {other}"),
    };
    Ok((forward, vocabulary))
}

/// The tests that candle runs on one model.
struct Runner {
    forward: Forward,
    tokens: Vec<u32>,
    depth: usize,
}

impl Runner {
    /// Evaluates some of the tokens.
    fn feed(&mut self, from: usize, len: usize) -> Result<Tensor> {
        let tokens = Tensor::new(&self.tokens[from..from + len], &Device::Cpu)?.unsqueeze(0)?;
        (self.forward)(&tokens, from)
    }

    /// Tokens per second of `len` tokens behind the first `depth`: at once, or one by one.
    fn time(&mut self, len: usize, at_once: bool) -> Result<f64> {
        if self.depth > 0 {
            self.feed(0, self.depth)?;
        }
        let step = if at_once { len } else { 1 };
        let began = Instant::now();
        for position in (self.depth..self.depth + len).step_by(step) {
            self.feed(position, step)?;
        }
        Ok(len as f64 / began.elapsed().as_secs_f64())
    }
}

/// Runs each test twice, and prints the second speed as an object a line. Threads come from the environment.
pub fn run(model: &Path, task: &Task) -> std::result::Result<(), String> {
    let sentence = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_string();
    let (forward, vocabulary) = load(model).map_err(|error| format!("cannot load this file: {}", sentence(error)))?;
    let (prompt, generate, depth) = (task.prompt as usize, task.generate as usize, task.depth as usize);
    // Any tokens will do, so long as they differ.
    let tokens = (0..depth + prompt.max(generate)).map(|i| (i * 7919 % vocabulary) as u32).collect();
    let mut runner = Runner { forward, tokens, depth };
    for (test, len, at_once) in [("pp", prompt, true), ("tg", generate, false)] {
        if len > 0 {
            runner.time(len, at_once).map_err(sentence)?;
            let speed = runner.time(len, at_once).map_err(sentence)?;
            println!("{}", serde_json::json!({"test": format!("{test}{len}"), "tokens_per_second": speed}));
        }
    }
    Ok(())
}
