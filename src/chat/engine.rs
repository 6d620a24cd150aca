//! The template engine, minijinja, set up as Hugging Face sets up Jinja, and fenced in.
//!
//! A template comes from an untrusted file. It runs on fuel, its output is bounded, and it runs on a thread of its own
//! with a large stack: minijinja drops values that nest by recursion, and a template can nest one level with a few
//! instructions. A panic in minijinja ends that thread only.
//!
//! One thing is not bounded: the length of strings that a template builds with `~` and `+` without printing them. Each
//! such operation can double one, and minijinja has no hook there.

use super::{date, python, tojson};
use crate::{Error, ErrorKind, Result};
use minijinja::value::{Kwargs, Object, Rest, Value};
use minijinja::{Environment, FormatStyle, Output, State};
use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Instructions that every rendering may take, and that each message and each byte of the tools add. Templates in use take
/// up to 250 for a message; one looks back from each message over all others, for which the square is there.
const FUEL: u64 = 200_000;
const FUEL_PER_MESSAGE: u64 = 2_000;
const FUEL_PER_MESSAGE_SQUARED: u64 = 2;
const FUEL_PER_TOOL_BYTE: u64 = 20;
const MAX_FUEL: u64 = 4_000_000;
/// Stack of the rendering thread for each instruction, in bytes: a value can nest a level deeper with one instruction, and
/// what recurses most to drop, compare or print it took 550 bytes for a level, or 2200 without optimization. Only what is
/// touched takes memory.
const STACK_PER_INSTRUCTION: u64 = if cfg!(debug_assertions) { 2560 } else { 640 };
/// Bytes of output that every rendering may have, and that each byte of input adds.
const OUTPUT: usize = 4 << 20;
const OUTPUT_PER_BYTE: usize = 16;
/// The longest template that is accepted, in bytes. The longest in use have about 30,000.
const MAX_SOURCE: usize = 1 << 20;
/// The largest number of rows and blanks that a filter may be asked for.
const MAX_COUNT: usize = 10_000;
/// How many bytes `{{ … }}` may write into the output and into variables together.
pub(super) const MAX_WRITTEN: usize = 64 << 20;
/// Where the time for `strftime_now` is kept; no template can spell this name.
const NOW: &str = "now, in seconds";

/// What a rendering may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    fuel: u64,
    max_output: usize,
}

impl Limits {
    /// The limits for an input of so many messages, and so many bytes, of which the tools have `tool_bytes`.
    pub fn new(messages: usize, bytes: usize, tool_bytes: usize) -> Self {
        let (messages, tool_bytes) = (messages as u64, tool_bytes as u64);
        let squared = messages.saturating_mul(messages).saturating_mul(FUEL_PER_MESSAGE_SQUARED);
        let linear =
            messages.saturating_mul(FUEL_PER_MESSAGE).saturating_add(tool_bytes.saturating_mul(FUEL_PER_TOOL_BYTE));
        let fuel = FUEL.saturating_add(squared).saturating_add(linear).min(MAX_FUEL);
        Self { fuel, max_output: OUTPUT.saturating_add(bytes.saturating_mul(OUTPUT_PER_BYTE)) }
    }
}

/// Templates under names, parsed.
#[derive(Debug)]
pub(super) struct Engine {
    env: Environment<'static>,
}

impl Engine {
    /// Parses templates.
    pub fn new(sources: &[(&'static str, &str)]) -> Result<Self> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(python::method);
        env.set_formatter(format);
        env.remove_global("debug");
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_filter("tojson", |value: &Value, indent: Option<Value>, kwargs: Kwargs| {
            tojson::tojson(value, indent, kwargs)
        });
        env.add_filter("from_json", |text: &str| tojson::from_json(text));
        env.add_filter("string", |value: &Value| python::text_of(value));
        env.add_filter("join", join);
        // These take any value in Python, as text.
        env.add_filter("upper", |value: &Value| python::text_of(value).map(|text| text.to_uppercase()));
        env.add_filter("lower", |value: &Value| python::text_of(value).map(|text| text.to_lowercase()));
        env.add_filter("trim", trim);
        env.add_filter("int", |value: &Value, default: Option<Value>, base: Option<u32>| {
            python::int(value, default, base)
        });
        env.add_filter("float", |value: &Value, default: Option<Value>| python::float(value, default));
        env.add_test("iterable", python::is_iterable);
        env.add_test("sequence", python::is_iterable);
        env.add_filter("indent", indent);
        env.add_filter("replace", |text: &Value, old: &Value, new: &Value, count: Option<usize>| {
            python::replace(&python::text_of(text)?, &python::text_of(old)?, &python::text_of(new)?, count)
        });
        env.add_filter("format", |format: &str, args: Rest<Value>| {
            python::check_format(format)?;
            minijinja::format_filter(FormatStyle::Printf, format, &args).map(Value::from)
        });
        env.add_filter("batch", |state: &State, value: Value, count: usize, fill: Option<Value>| {
            minijinja::filters::batch(state, value, count.min(MAX_COUNT), fill)
        });
        env.add_filter("slice", |state: &State, value: Value, count: usize, fill: Option<Value>| {
            minijinja::filters::slice(state, value, count.min(MAX_COUNT), fill)
        });
        for (name, source) in sources {
            if source.len() > MAX_SOURCE {
                let message = format!("the chat template is {} bytes long; {MAX_SOURCE} are accepted", source.len());
                return Err(Error::new(ErrorKind::Template, message));
            }
            let source = without_generation_tags(source);
            env.add_template_owned(*name, source).map_err(|error| describe(&error, Limits::new(0, 0, 0)))?;
        }
        Ok(Self { env })
    }

    /// Renders a template with `variables`.
    pub fn render(
        &self,
        name: &str,
        mut variables: Vec<(String, Value)>,
        now: SystemTime,
        limits: Limits,
    ) -> Result<String> {
        let mut env = self.env.clone();
        env.set_fuel(Some(limits.fuel));
        let seconds = match now.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
        };
        variables.push((NOW.to_string(), Value::from(seconds)));
        let render = move || {
            let template = env.get_template(name).map_err(|error| describe(&error, limits))?;
            let variables: Value = variables.into_iter().collect();
            let mut output = BoundedOutput { bytes: Vec::new(), max: limits.max_output };
            template.render_captured_to(variables, &mut output).map_err(|error| describe(&error, limits))?;
            String::from_utf8(output.bytes)
                .map_err(|_| Error::new(ErrorKind::Template, "the chat template wrote no UTF-8"))
        };
        std::thread::scope(|scope| {
            let stack = usize::try_from(limits.fuel * STACK_PER_INSTRUCTION).unwrap_or(usize::MAX);
            let thread = std::thread::Builder::new().name("chat template".to_string()).stack_size(stack);
            let thread = thread
                .spawn_scoped(scope, render)
                .map_err(|error| Error::io("cannot start a thread for the chat template", error))?;
            thread.join().unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Template,
                    "the chat template made the template engine fail; give one of your own with ChatTemplate::parse",
                ))
            })
        })
    }
}

/// Bytes, up to a bound.
struct BoundedOutput {
    bytes: Vec<u8>,
    max: usize,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max {
            return Err(io::Error::other("too much output"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes `{{ … }}` wrote, also into variables.
#[derive(Debug, Default)]
struct Written(AtomicUsize);

impl Object for Written {}

/// Writes a value as Python would.
fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    let text = match value.as_str() {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(python::text_of(value)?),
    };
    let written = state.get_or_set_temp_object("written", Written::default);
    if written.0.fetch_add(text.len(), Ordering::Relaxed) + text.len() > MAX_WRITTEN {
        return Err(invalid(format!("it writes more than {MAX_WRITTEN} bytes")));
    }
    out.write_str(&text).map_err(|error| minijinja::Error::new(minijinja::ErrorKind::WriteFailure, error.to_string()))
}

fn invalid(message: impl Into<Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message)
}

/// What a template said in `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> Result<Value, minijinja::Error> {
    let message = python::text_of(message)?;
    Err(invalid(message.clone()).with_source(Raised(message)))
}

fn strftime_now(state: &State<'_, '_>, format: &str) -> Result<String, minijinja::Error> {
    let seconds = state.lookup(NOW).and_then(|seconds| seconds.as_i64()).unwrap_or_default();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let now = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    let text = now.and_then(|now| date::strftime(now, format));
    text.ok_or_else(|| invalid(format!("strftime_now does not know a part of the format {format:?}")))
}

fn join(
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, minijinja::Error> {
    let separator = separator.map_or_else(|| kwargs.get::<Option<Value>>("d"), |separator| Ok(Some(separator)))?;
    let attribute = attribute.map_or_else(|| kwargs.get::<Option<Value>>("attribute"), |name| Ok(Some(name)))?;
    kwargs.assert_all_used()?;
    let separator = separator.map_or(Ok(String::new()), |separator| python::text_of(&separator))?;
    let mut out = String::new();
    if value.is_undefined() {
        return Ok(out);
    }
    for (i, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(attribute) => item.get_item(attribute)?,
            None => item,
        };
        out.push_str(if i > 0 { &separator } else { "" });
        out.push_str(&python::text_of(&item)?);
        if out.len() > MAX_WRITTEN {
            return Err(invalid("'join' makes too long a text"));
        }
    }
    Ok(out)
}

fn trim(value: &Value, chars: Option<&str>) -> Result<String, minijinja::Error> {
    let text = python::text_of(value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        None => text.trim().to_string(),
    })
}

/// Jinja's `indent`, whose width may also be the text to indent by.
fn indent(
    text: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, minijinja::Error> {
    let width = match width {
        Some(width) => Some(width),
        None => kwargs.get("width")?,
    };
    let first = first.map_or_else(|| kwargs.get("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| kwargs.get("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let margin = match width.as_ref().map(|width| (width.as_str(), width.as_usize())) {
        None => "    ".to_string(),
        Some((Some(margin), _)) => margin.to_string(),
        Some((None, Some(width))) if width <= MAX_COUNT => " ".repeat(width),
        Some(_) => return Err(invalid("the width of 'indent' is no number, or too large")),
    };
    let mut out = String::new();
    for (i, line) in python::text_of(text)?.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&margin);
        }
        out.push_str(line);
        if out.len() > MAX_WRITTEN {
            return Err(invalid("'indent' makes too long a text"));
        }
    }
    Ok(out)
}

/// The template with `{% generation %}`, Hugging Face's mark for what the assistant wrote, which matters in training
/// only, as a plain block.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let inside = tag.trim_start_matches(['-', '+']).trim_start();
        let blanks = tag.get(..tag.len() - inside.len()).unwrap_or_default();
        rest = tag;
        for (name, plain) in [("generation", "with"), ("endgeneration", "endwith")] {
            if let Some(after) = inside.strip_prefix(name)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(blanks);
                out.push_str(plain);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The error for a caller.
fn describe(error: &minijinja::Error, limits: Limits) -> Error {
    let line = error.line().map(|line| format!("line {line} of ")).unwrap_or_default();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut innermost = error;
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Error::new(
                ErrorKind::Template,
                format!("{line}the chat template refuses the conversation: {message}"),
            );
        }
        innermost = error.downcast_ref().unwrap_or(innermost);
        cause = error.source();
    }
    let message = match innermost.kind() {
        minijinja::ErrorKind::OutOfFuel => {
            format!("{line}the chat template was stopped: it takes more than {} instructions", limits.fuel)
        }
        minijinja::ErrorKind::WriteFailure => {
            format!("the chat template was stopped: it writes more than {} bytes", limits.max_output)
        }
        _ => format!(
            "{line}the chat template does not work: {innermost}; give a template of your own with ChatTemplate::parse"
        ),
    };
    Error::new(ErrorKind::Template, message)
}
