//! The filter `tojson`, as Hugging Face defines it: Python's `json.dumps` without escapes for what is not ASCII, and
//! without escapes for HTML. And the way back, [`from_json`].

use super::Json;
use super::python;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// How deeply the filter follows containers.
const MAX_DEPTH: usize = 100;
/// How much one call may write, in bytes.
const MAX_LENGTH: usize = 64 << 20;

/// How to write JSON.
struct Style {
    ascii: bool,
    /// What one level is indented by; `None` for one line.
    indent: Option<String>,
    comma: String,
    colon: String,
    sort_keys: bool,
}

/// `value|tojson(indent, ensure_ascii=…, separators=…, sort_keys=…)`
pub(super) fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match (indent.as_str(), indent.as_i64()) {
            (Some(margin), _) => Some(margin.to_string()),
            (None, Some(width)) => Some(" ".repeat(width.clamp(0, 64) as usize)),
            (None, None) => return Err(fail("the indent of 'tojson' must be an integer or a string")),
        },
    };
    let separators = match kwargs.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => [if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()],
        Some([comma, colon]) => [comma.clone(), colon.clone()],
        Some(_) => return Err(fail("the separators of 'tojson' must be two strings")),
    };
    let [comma, colon] = separators;
    let ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write(value, &Style { ascii, indent, comma, colon, sort_keys }, 0, &mut out)?;
    Ok(Value::from(out))
}

fn fail(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn write(value: &Value, style: &Style, level: usize, out: &mut String) -> Result<(), Error> {
    if level > MAX_DEPTH || out.len() > MAX_LENGTH {
        return Err(fail("a value nests too deeply or is too large to be written as JSON"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), style.ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut count = 0;
            for item in value.try_iter()? {
                separate(style, count, level, out);
                write(&item, style, level + 1, out)?;
                count += 1;
            }
            close(style, count, level, ']', out);
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in value.try_iter()? {
                entries.push((key_text(&key)?, value.get_item(&key)?));
            }
            if style.sort_keys {
                entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            out.push('{');
            for (count, (key, item)) in entries.iter().enumerate() {
                separate(style, count, level, out);
                write_string(key, style.ascii, out);
                out.push_str(&style.colon);
                write(item, style, level + 1, out)?;
            }
            close(style, entries.len(), level, '}', out);
        }
        kind => return Err(fail(format!("a value of type {kind} cannot be written as JSON"))),
    }
    Ok(())
}

fn separate(style: &Style, index: usize, level: usize, out: &mut String) {
    if index > 0 {
        out.push_str(&style.comma);
    }
    new_line(style, level + 1, out);
}

fn close(style: &Style, count: usize, level: usize, bracket: char, out: &mut String) {
    if count > 0 {
        new_line(style, level, out);
    }
    out.push(bracket);
}

fn new_line(style: &Style, level: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..level).for_each(|_| out.push_str(indent));
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(f) if !value.is_integer() => match f {
            f if f.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            f => python::float_repr(f),
        },
        _ => value.to_string(),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_string()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(fail(format!("a key of type {kind} cannot be written as JSON"))),
    }
}

fn write_string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            // A noncharacter may be a mark of ours (see `marks`), which an escape would make permanent.
            c if c < ' ' || (ascii && !c.is_ascii() && !super::marks::is_noncharacter(c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `text|from_json`, which some templates expect.
pub(super) fn from_json(text: &str) -> Result<Value, Error> {
    let json = text.parse::<Json>().map_err(|error| fail(error.to_string()))?;
    Ok(to_value(&json, &mut str::to_string))
}

/// All strings and keys of a value.
pub(super) fn texts(json: &Json) -> Vec<&str> {
    match json {
        Json::String(text) => vec![text],
        Json::Array(items) => items.iter().flat_map(texts).collect(),
        Json::Object(entries) => {
            entries.into_iter().flat_map(|(key, value)| std::iter::once(key.as_str()).chain(texts(value))).collect()
        }
        _ => Vec::new(),
    }
}

/// A value of the template language; all its texts, keys too, go through `map`.
pub(super) fn to_value(json: &Json, map: &mut dyn FnMut(&str) -> String) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            (None, None) => Value::from(n.as_f64()),
        },
        Json::String(text) => Value::from(map(text)),
        Json::Array(items) => items.iter().map(|item| to_value(item, map)).collect::<Vec<_>>().into(),
        Json::Object(entries) => entries
            .into_iter()
            .map(|(key, value)| (map(key), to_value(value, map)))
            .collect::<Vec<_>>()
            .into_iter()
            .collect(),
    }
}
