//! A conversation in the terminal. The answers go to standard output, everything else to standard error.

mod common;

use common::cli::{Cli, Outcome, one_line, run};
use common::json;
use common::model::{MODEL_OPTIONS, ModelOptions};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use wavelm::{Canceller, Error, ErrorKind, Message, Model, Sampler, Session, Stats};

const HELP: &str = "\
Talks with a model. Ctrl-C stops an answer; the end of the input (Ctrl-D) or /quit ends the program.

Usage: chat [OPTIONS]

      --system TEXT   the system message
  -n N                at most N tokens in an answer [default: no limit]
      --temperature T 0 always takes the most likely token [default: 0.8]
      --top-k K       sample among the K most likely tokens; 0 is off [default: 40]
      --top-p P       sample among the most likely tokens up to probability P; 1 is off [default: 0.95]
      --min-p P       sample among tokens at least P times as likely as the best; 0 is off [default: 0.05]
      --seed S        the same seed gives the same answers [default: a new one each time]
";

const COMMANDS: &str = "\
/system TEXT  set the system message; without TEXT: none
/retry        answer the last message again
/undo         forget the last message and its answer
/clear        forget the conversation
/save FILE    write the conversation as JSON
/stats        how fast the last answer was
/quit         end; so does Ctrl-D, or Ctrl-C twice";

fn main() -> ExitCode {
    run(&[HELP, MODEL_OPTIONS], chat)
}

fn chat(cli: &mut Cli) -> Outcome {
    let mut options = ModelOptions::default();
    let mut sampler = Sampler::builder();
    let (mut system, mut most) = (None, usize::MAX);
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "--system" => system = Some(cli.text()?),
            "-n" => most = cli.parse()?,
            "--temperature" | "--temp" => sampler = sampler.temperature(cli.parse()?),
            "--top-k" => sampler = sampler.top_k(cli.parse()?),
            "--top-p" => sampler = sampler.top_p(cli.parse()?),
            "--min-p" => sampler = sampler.min_p(cli.parse()?),
            "--seed" => sampler = sampler.seed(cli.parse()?),
            name => options.take(name, cli)?,
        }
    }
    let sampler = sampler.build()?;
    let model = options.load()?;
    model.chat_template()?;
    let session = model.session()?;
    let interrupt = Interrupt::install()?;
    let mut chat = Chat { session, model, sampler, most, system, turns: Vec::new(), stats: None, interrupt };

    let interactive = io::stdin().is_terminal();
    if interactive {
        eprintln!("/help lists the commands");
    }
    let mut input = io::stdin().lock();
    loop {
        if interactive {
            eprint!("> ");
        }
        let mut line = String::new();
        if input.read_line(&mut line).map_err(|error| format!("cannot read the input: {error}"))? == 0 {
            if interactive {
                eprintln!();
            }
            return Ok(());
        }
        chat.interrupt.typed();
        match chat.line(line.trim()) {
            Ok(Next::Line) => {}
            Ok(Next::End) => return Ok(()),
            // A person reads the error and goes on; a script must not take the next answer for that of this message.
            Err(error) if interactive && !error.is::<io::Error>() => {
                eprintln!("error: {}", one_line(&error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
}

/// What comes after a line of input.
enum Next {
    Line,
    End,
}

/// A message of the user, and the answer once there is one.
struct Turn {
    user: String,
    answer: Option<String>,
}

struct Chat {
    model: Model,
    session: Session,
    sampler: Sampler,
    most: usize,
    system: Option<String>,
    turns: Vec<Turn>,
    stats: Option<Stats>,
    interrupt: Interrupt,
}

impl Chat {
    fn line(&mut self, line: &str) -> Outcome<Next> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "" => {}
            "/help" => eprintln!("{COMMANDS}"),
            "/quit" | "/exit" => return Ok(Next::End),
            "/clear" => self.turns.clear(),
            "/system" => self.system = (!rest.is_empty()).then(|| rest.to_owned()),
            "/undo" => {
                self.turns.pop().ok_or("there is no message to forget")?;
            }
            "/retry" => {
                let turn = self.turns.pop().ok_or("there is no message to answer again")?;
                self.ask(turn.user)?;
            }
            "/stats" => self.show_stats()?,
            "/save" if rest.is_empty() => return Err("/save needs the name of a file".into()),
            "/save" => self.save(Path::new(rest))?,
            _ if command.starts_with('/') => return Err(format!("{command} is no command; /help lists them").into()),
            _ => self.ask(line.to_owned())?,
        }
        Ok(Next::Line)
    }

    /// Answers a message. One that cannot be answered is forgotten.
    fn ask(&mut self, user: String) -> Outcome {
        self.turns.push(Turn { user, answer: None });
        let mut answer = String::new();
        let outcome = self.answer(&mut answer);
        match self.turns.last_mut() {
            Some(turn) if !answer.is_empty() => turn.answer = Some(answer),
            _ => drop(self.turns.pop()),
        }
        outcome
    }

    fn answer(&mut self, answer: &mut String) -> Outcome {
        let prompt = self.model.chat_prompt(&self.messages())?;
        if self.session.canceller().is_cancelled() {
            // Ctrl-C came too late for the last answer, and must not stop this one: have it reported now.
            let _ = self.session.feed(&prompt);
        }
        let _busy = self.interrupt.watch(&self.session);
        let mut out = io::stdout().lock();
        let mut generation = match self.session.generate(&prompt, &self.sampler) {
            Ok(generation) => generation.max_tokens(self.most),
            Err(error) => return stopped(error),
        };
        let mut failure = None;
        for piece in &mut generation {
            match piece {
                Ok(piece) => {
                    answer.push_str(piece.text());
                    out.write_all(piece.text().as_bytes())?;
                    out.flush()?;
                }
                Err(error) => failure = Some(error),
            }
        }
        self.stats = Some(generation.stats());
        writeln!(out)?;
        failure.map_or(Ok(()), stopped)
    }

    fn messages(&self) -> Vec<Message> {
        let mut messages: Vec<Message> = self.system.iter().map(Message::system).collect();
        for turn in &self.turns {
            messages.push(Message::user(&turn.user));
            messages.extend(turn.answer.iter().map(Message::assistant));
        }
        messages
    }

    fn show_stats(&self) -> Outcome {
        let stats = self.stats.ok_or("there is no answer yet")?;
        let rate = |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        let fresh = stats.prompt_tokens - stats.reused_tokens;
        eprintln!(
            "prompt: {} tokens, {} of them cached, {:.1} tokens/s; answer: {} tokens, {:.1} tokens/s; context: {} of {}",
            stats.prompt_tokens,
            stats.reused_tokens,
            rate(fresh, stats.prompt_time),
            stats.generated_tokens,
            rate(stats.generated_tokens, stats.generation_time),
            self.session.len(),
            self.session.context_len()
        );
        Ok(())
    }

    fn save(&self, path: &Path) -> Outcome {
        let entry = |role, text| format!("  {{\"role\": \"{role}\", \"content\": {}}}", json::string(text));
        let mut entries: Vec<String> = self.system.iter().map(|text| entry("system", text)).collect();
        for turn in &self.turns {
            entries.push(entry("user", &turn.user));
            entries.extend(turn.answer.iter().map(|text| entry("assistant", text)));
        }
        std::fs::write(path, format!("[\n{}\n]\n", entries.join(",\n")))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(())
    }
}

/// An answer that was stopped is no failure.
fn stopped(error: Error) -> Outcome {
    match error.kind() {
        ErrorKind::Cancelled => {
            eprintln!("(stopped)");
            Ok(())
        }
        ErrorKind::ContextFull => Err(format!("{error}; here: /clear or /undo, or start with a larger --ctx").into()),
        _ => Err(error.into()),
    }
}

/// What Ctrl-C does: it stops a running answer; where none is running, the second one in a row ends the program.
#[derive(Clone, Default)]
struct Interrupt(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    running: Option<Canceller>,
    idle_presses: usize,
}

impl Interrupt {
    fn install() -> Outcome<Self> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || handler.pressed()).map_err(|error| format!("cannot watch for Ctrl-C: {error}"))?;
        Ok(interrupt)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pressed(&self) {
        let mut state = self.state();
        match &state.running {
            Some(canceller) => canceller.cancel(),
            None if state.idle_presses > 0 => std::process::exit(130),
            None => {
                state.idle_presses += 1;
                eprint!("\n(Ctrl-C again or /quit ends)\n> ");
            }
        }
    }

    fn typed(&self) {
        self.state().idle_presses = 0;
    }

    /// Has Ctrl-C stop the session until the result is dropped.
    fn watch(&self, session: &Session) -> Busy {
        self.state().running = Some(session.canceller());
        Busy(self.clone())
    }
}

struct Busy(Interrupt);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().running = None;
    }
}
