//! Continues a prompt: the generated text on standard output, everything else on standard error.

mod common;

use common::cli::{Cli, Outcome, run};
use common::model::{MODEL_OPTIONS, ModelOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;
use wavelm::{Message, Model, Sampler, Stats, StopReason};

const HELP: &str = "\
Continues a prompt with a language model. Only the generated text goes to standard output.

Usage: generate [OPTIONS] --prompt TEXT

  -p, --prompt TEXT   the prompt, taken as it is [default: standard input]
      --chat          the prompt is a message, put into the model's chat template
      --system TEXT   with --chat: the system message
  -n N                generate at most N tokens [default: 128]
      --temperature T 0 always takes the most likely token [default: 0.8]
      --top-k K       sample among the K most likely tokens; 0 is off [default: 40]
      --top-p P       sample among the most likely tokens up to probability P; 1 is off [default: 0.95]
      --min-p P       sample among tokens at least P times as likely as the best; 0 is off [default: 0.05]
      --seed S        the same seed gives the same text [default: a new one each time]
";

fn main() -> ExitCode {
    run(&[HELP, MODEL_OPTIONS], generate)
}

fn generate(cli: &mut Cli) -> Outcome {
    let mut options = ModelOptions::default();
    let mut sampler = Sampler::builder();
    let (mut prompt, mut system, mut chat, mut n) = (None, None, false, 128);
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "-p" | "--prompt" => prompt = Some(cli.text()?),
            "--chat" => chat = true,
            "--system" => system = Some(cli.text()?),
            "-n" => n = cli.parse()?,
            "--temperature" | "--temp" => sampler = sampler.temperature(cli.parse()?),
            "--top-k" => sampler = sampler.top_k(cli.parse()?),
            "--top-p" => sampler = sampler.top_p(cli.parse()?),
            "--min-p" => sampler = sampler.min_p(cli.parse()?),
            "--seed" => sampler = sampler.seed(cli.parse()?),
            name => options.take(name, cli)?,
        }
    }
    let sampler = sampler.build()?;
    if system.is_some() && !chat {
        return Err("--system needs --chat".into());
    }
    let prompt = match prompt {
        Some(prompt) => prompt,
        None => read_prompt()?,
    };

    let model = options.load()?;
    let prompt = if chat {
        let messages: Vec<Message> = system.map(Message::system).into_iter().chain([Message::user(prompt)]).collect();
        model.chat_prompt(&messages)?
    } else {
        model.prompt(&prompt)?
    };
    let mut session = model.session()?;
    let mut generation = session.generate(&prompt, &sampler)?.max_tokens(n);
    let mut out = io::stdout().lock();
    let written = (|| {
        for piece in &mut generation {
            out.write_all(piece?.text().as_bytes())?;
            out.flush()?;
        }
        Ok(())
    })();
    writeln!(out)?;
    if !options.quiet {
        report(&model, generation.stats(), generation.stop_reason(), generation.seed());
    }
    written
}

fn read_prompt() -> Outcome<String> {
    if io::stdin().is_terminal() {
        return Err("no prompt is given: use --prompt TEXT, or see --help".into());
    }
    let mut prompt = String::new();
    io::stdin().read_to_string(&mut prompt).map_err(|error| format!("cannot read the prompt: {error}"))?;
    Ok(prompt)
}

fn report(model: &Model, stats: Stats, reason: Option<StopReason>, seed: u64) {
    let prompt_time = stats.prompt_time.as_secs_f64();
    let mut line =
        format!("prompt: {} tokens, {:.1} tokens/s", stats.prompt_tokens, stats.prompt_tokens as f64 / prompt_time);
    // The first token comes from the logits of the prompt, without a pass of its own.
    let passes = stats.generated_tokens.saturating_sub(usize::from(reason == Some(StopReason::MaxTokens)));
    line += &format!("; generated: {} tokens", stats.generated_tokens);
    if passes > 0 {
        let rate = passes as f64 / stats.generation_time.as_secs_f64();
        line += &format!(", {rate:.1} tokens/s, {:.1} GB/s", rate * model.bytes_per_token() as f64 / 1e9);
    }
    eprintln!("{line}; seed {seed}");
}
