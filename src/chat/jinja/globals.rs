//! Global functions of templates.

use super::args::{Args, required};
use super::dict::Map;
use super::eval::Env;
use super::fault::{Fault, Res};
use super::text::{By, Text};
use super::value::{Callable, Value};
use super::{math, methods, repr};
use crate::chat::date;
use std::cell::Cell;
use std::rc::Rc;

const NAMES: [&str; 8] =
    ["range", "dict", "namespace", "cycler", "joiner", "lipsum", "raise_exception", "strftime_now"];

/// The function called `name`.
pub(super) fn find(name: &str) -> Option<Value> {
    let name = NAMES.into_iter().find(|other| *other == name)?;
    Some(Value::Call(Rc::new(Callable::Global(name))))
}

pub(super) fn call(env: Env<'_>, name: &str, args: Args) -> Res<Value> {
    match name {
        "range" => {
            if !args.named.is_empty() {
                return Err(Fault::invalid("range() takes no keyword arguments"));
            }
            math::range(&args.positional)
        }
        "dict" | "namespace" => {
            let mut map = Map::default();
            methods::fill(&mut map, args, env)?;
            if name == "dict" { Value::dict(map) } else { Value::namespace(map) }
        }
        "cycler" => {
            if args.positional.is_empty() || !args.named.is_empty() {
                return Err(Fault::invalid("at least one item has to be provided"));
            }
            Value::cycler(args.positional)
        }
        "joiner" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = match separator {
                Some(separator) => repr::text_of(&separator, env.budget)?,
                None => Text::new(", ", By::Template, env.budget)?,
            };
            Ok(Value::Call(Rc::new(Callable::Joiner(separator, Cell::new(false)))))
        }
        "raise_exception" => {
            let [message] = args.bind(name, ["message"])?;
            let message = repr::text_of(&required(message, name)?, env.budget)?;
            Err(Fault::raised(crate::memory::copied_text(message.as_str(), "a message of a chat template")?))
        }
        "strftime_now" => {
            let [format] = args.bind(name, ["format"])?;
            let format = required(format, name)?;
            let Some(format) = format.as_text() else {
                return Err(Fault::invalid("strftime_now needs a string"));
            };
            // Each part of the format becomes at most 30 characters.
            env.budget.bytes(format.len().saturating_mul(40))?;
            env.budget.memory(format.len().saturating_mul(40))?;
            let text = date::strftime(env.now, format.as_str()).ok_or_else(|| {
                let shown: String = format.as_str().chars().take(80).collect();
                Fault::invalid(format_args!("strftime_now does not know a part of the format {shown:?}"))
            })?;
            Text::new(&text, format.by(), env.budget).map(Value::Text)
        }
        _ => Err(Fault::invalid(format_args!("'{name}' is not supported"))),
    }
}
