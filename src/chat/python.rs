//! Where minijinja differs from Python in ways that templates notice: how values read as text, and some methods.
//!
//! The methods of strings, lists and dictionaries come from `minijinja_contrib::pycompat`. Those here go before it:
//! they count in characters as Python does, or are bounded where pycompat is not.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// The longest number that a format may contain, in digits: a width of 10,000 would be an error in any chat template.
const MAX_FORMAT_DIGITS: usize = 4;
/// How deeply texts of values follow containers.
const MAX_DEPTH: usize = 100;
/// How much the text of one container may have, in bytes.
const MAX_TEXT: usize = 64 << 20;

/// Python's `str(value)`.
pub(super) fn text_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_string()),
        ValueKind::Undefined => Ok(String::new()),
        _ => {
            let mut out = String::new();
            write_repr(value, 0, &mut out)?;
            Ok(out)
        }
    }
}

/// Python's `repr(value)`.
fn write_repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH || out.len() > MAX_TEXT {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value nests too deeply or is too large to be printed"));
    }
    match value.kind() {
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(f) if !value.is_integer() => out.push_str(&float_repr(f)),
            _ => out.push_str(&value.to_string()),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(&key, depth + 1, out)?;
                out.push_str(": ");
                write_repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A string in single quotes, unless that would need more escapes.
fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Python's `repr` of a float: the shortest digits that read back as the same number, with an exponent where that is
/// below -4 or above 15.
pub(super) fn float_repr(f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{f:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if f != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{f:?}"),
    }
}

/// Methods that minijinja's values do not have themselves.
pub(super) fn method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(s) = value.as_str() {
        match method {
            "format" => check_format(s)?,
            "find" | "rfind" | "index" | "rindex" => return find(s, method, args),
            "count" => return count(s, args),
            "split" | "rsplit" if args.first().is_some_and(|separator| separator.as_str() == Some("")) => {
                return Err(invalid("split needs a separator that is not empty"));
            }
            "rsplit" => return rsplit(s, args),
            "partition" | "rpartition" => return partition(s, method, args),
            "removeprefix" | "removesuffix" => {
                let (affix,): (&str,) = from_args(args)?;
                let rest = if method == "removeprefix" { s.strip_prefix(affix) } else { s.strip_suffix(affix) };
                return Ok(Value::from(rest.unwrap_or(s)));
            }
            "isdigit" | "isnumeric" | "isalpha" | "isalnum" | "isspace" if s.is_empty() => {
                return Ok(Value::from(false));
            }
            "islower" | "isupper" => {
                let () = from_args(args)?;
                let (lower, upper) = (s.chars().any(char::is_lowercase), s.chars().any(char::is_uppercase));
                return Ok(Value::from(if method == "islower" { lower && !upper } else { upper && !lower }));
            }
            "join" => {
                let (items,): (&Value,) = from_args(args)?;
                let mut out = String::new();
                for (i, item) in items.try_iter()?.enumerate() {
                    out.push_str(if i > 0 { s } else { "" });
                    out.push_str(item.as_str().ok_or_else(|| invalid("join works on strings only"))?);
                    if out.len() > MAX_TEXT {
                        return Err(invalid("join makes too long a text"));
                    }
                }
                return Ok(Value::from(out));
            }
            "replace" => {
                let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
                return replace(s, old, new, count.and_then(|count| usize::try_from(count).ok())).map(Value::from);
            }
            _ => {}
        }
    }
    if method == "copy" && matches!(value.kind(), ValueKind::Map | ValueKind::Seq) {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Jinja's `int`: what cannot be read is `default`.
pub(super) fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Result<Value, Error> {
    let base = base.unwrap_or(10);
    if !(2..=36).contains(&base) {
        return Err(invalid("the base of 'int' must lie between 2 and 36"));
    }
    let exact = match value.as_str() {
        Some(text) => i64::from_str_radix(&text.trim().replace('_', ""), base).ok(),
        None => value.as_i64().filter(|_| value.is_integer() || value.kind() == ValueKind::Bool),
    };
    let truncated = || float_of(value).map(f64::trunc).filter(|f| f.abs() < 9.2e18).map(|f| f as i64);
    Ok(exact.or_else(truncated).map(Value::from).or(default).unwrap_or(Value::from(0)))
}

/// Jinja's `float`: what cannot be read is `default`.
pub(super) fn float(value: &Value, default: Option<Value>) -> Value {
    float_of(value).map(Value::from).or(default).unwrap_or(Value::from(0.0))
}

fn float_of(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    }
}

/// Whether Python could loop over a value: `none` it could not.
pub(super) fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
}

/// Python's `s.replace(old, new, count)`.
pub(super) fn replace(s: &str, old: &str, new: &str, count: Option<usize>) -> Result<String, Error> {
    let found = s.matches(old).take(count.unwrap_or(usize::MAX)).count();
    if s.len().saturating_add(found.saturating_mul(new.len())) > MAX_TEXT {
        return Err(invalid("replace makes too long a text"));
    }
    Ok(s.replacen(old, new, found))
}

/// Refuses formats that ask for giant fields, or leave the width to an argument.
pub(super) fn check_format(format: &str) -> Result<(), Error> {
    let digits = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if digits > MAX_FORMAT_DIGITS || (format.contains('*') && format.contains('%')) {
        return Err(invalid("a format asks for a field that is too wide"));
    }
    Ok(())
}

fn find(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    let at = if method.starts_with('r') { s.rfind(part) } else { s.find(part) };
    match at.and_then(|at| s.get(..at)) {
        Some(before) => Ok(Value::from(before.chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(invalid("the part is not in the string")),
    }
}

fn count(s: &str, args: &[Value]) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    Ok(Value::from(if part.is_empty() { s.chars().count() + 1 } else { s.matches(part).count() }))
}

fn rsplit(s: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match separator {
        Some(separator) => s.rsplitn(limit + 1, separator).collect(),
        None if limit >= s.len() => s.split_whitespace().rev().collect(),
        None => return Err(invalid("rsplit with a limit needs a separator")),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn partition(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("partition needs a separator that is not empty"));
    }
    let from_end = method == "rpartition";
    let halves = if from_end { s.rsplit_once(separator) } else { s.split_once(separator) };
    let parts = match halves {
        Some((before, after)) => [before, separator, after],
        None if from_end => ["", "", s],
        None => [s, "", ""],
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_like_python() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (f64::INFINITY, "inf"),
        ];
        for (f, text) in cases {
            assert_eq!(float_repr(f), text);
        }
    }

    #[test]
    fn containers_read_like_python() {
        let map: Value = [("b", Value::from(true)), ("a", Value::from(()))].into_iter().collect();
        let list = Value::from(vec![Value::from("it's\n"), Value::from("\"'\u{1}"), map, Value::from(1.0)]);
        assert_eq!(text_of(&list).unwrap(), r#"["it's\n", '"\'\x01', {'b': True, 'a': None}, 1.0]"#);
    }
}
