//! Command lines, messages on standard error, and the exit status.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;

/// How an example ends: an error becomes one line on standard error and a non-zero exit status.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Runs an example. `help` is its help text, in parts.
pub fn run(help: &'static [&'static str], main: fn(&mut Cli) -> Outcome) -> ExitCode {
    // A process that tries out a GPU's driver goes no further.
    wavelm::probe_child_entry();
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    match main(&mut Cli { help, arguments: lexopt::Parser::from_env(), current: String::new() }) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads standard output, `head` say, has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            // Errors about named files are texts that say so.
            let about = if error.is::<io::Error>() { "cannot write to standard output: " } else { "" };
            eprintln!("error: {about}{}", one_line(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Walks through the arguments of a command line, which are all options.
pub struct Cli {
    help: &'static [&'static str],
    arguments: lexopt::Parser,
    current: String,
}

impl Cli {
    /// The next option, as `-x` or `--name`; `None` at the end. Asked for help, prints it and ends the program.
    pub fn next(&mut self) -> Outcome<Option<String>> {
        self.current = match self.arguments.next()? {
            None => return Ok(None),
            Some(lexopt::Arg::Short('h') | lexopt::Arg::Long("help")) => {
                let shown = io::stdout().write_all(self.help.concat().as_bytes());
                std::process::exit(i32::from(shown.is_err_and(|e| e.kind() != io::ErrorKind::BrokenPipe)));
            }
            Some(lexopt::Arg::Short(name)) => format!("-{name}"),
            Some(lexopt::Arg::Long(name)) => format!("--{name}"),
            Some(lexopt::Arg::Value(value)) => {
                return Err(format!("unexpected argument {value:?}; --help lists the options").into());
            }
        };
        Ok(Some(self.current.clone()))
    }

    /// The error for an option that the example does not have.
    pub fn unknown(&self) -> Box<dyn Error> {
        format!("unknown option {}; --help lists the options", self.current).into()
    }

    /// The value of the option that `next` returned.
    pub fn value(&mut self) -> Outcome<OsString> {
        self.arguments.value().map_err(|_| format!("option {} needs a value; see --help", self.current).into())
    }

    /// The value as text.
    pub fn text(&mut self) -> Outcome<String> {
        let value = self.value()?;
        value.into_string().map_err(|value| format!("option {}: {value:?} is not Unicode", self.current).into())
    }

    /// The value, parsed.
    pub fn parse<T: FromStr<Err: Display>>(&mut self) -> Outcome<T> {
        let text = self.text()?;
        text.parse().map_err(|error| format!("option {}: {text:?}: {error}", self.current).into())
    }

    /// The value as a list of values with commas between them; an empty list is an error.
    pub fn list<T: FromStr<Err: Display>>(&mut self) -> Outcome<Vec<T>> {
        let text = self.text()?;
        let parse = |item: &str| {
            item.trim().parse().map_err(|error| format!("option {}: {item:?}: {error}", self.current).into())
        };
        text.split(',').map(parse).collect()
    }
}

/// Text for one line: line breaks become spaces.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Shows what the library has to say on standard error.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}: {}", record.level().as_str().to_lowercase(), one_line(&record.args().to_string()));
        }
    }

    fn flush(&self) {}
}
