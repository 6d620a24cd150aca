//! How values are written: Python's `str` and `repr`.

use super::budget::Budget;
use super::dict::check_depth;
use super::fault::Res;
use super::text::{Builder, By, Text};
use super::value::{Callable, Value, View};

/// Python's `str(value)`.
pub(super) fn text_of(value: &Value, budget: &Budget) -> Res<Text> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        _ => {
            let mut out = Builder::new(budget);
            write_str(value, &mut out)?;
            Ok(out.finish())
        }
    }
}

/// Python's `repr(value)`.
pub(super) fn repr_of(value: &Value, budget: &Budget) -> Res<Text> {
    let mut out = Builder::new(budget);
    write_repr(value, 0, &mut out)?;
    Ok(out.finish())
}

/// Python's `ascii(value)`: `repr(value)` with escapes for all characters outside ASCII.
pub(super) fn ascii_of(value: &Value, budget: &Budget) -> Res<Text> {
    let text = repr_of(value, budget)?;
    if text.as_str().is_ascii() {
        return Ok(text);
    }
    let mut out = Builder::new(budget);
    for (_, c, by) in text.marked_chars() {
        match u32::from(c) {
            0..0x80 => out.push(c, by)?,
            code @ 0x80..0x100 => out.push_str(&format!("\\x{code:02x}"), by)?,
            code @ 0x100..0x1_0000 => out.push_str(&format!("\\u{code:04x}"), by)?,
            code => out.push_str(&format!("\\U{code:08x}"), by)?,
        }
    }
    Ok(out.finish())
}

/// Writes `str(value)`.
pub(super) fn write_str(value: &Value, out: &mut Builder<'_>) -> Res<()> {
    match value {
        Value::Text(text) => out.push_text(text),
        Value::Undefined(_) => Ok(()),
        _ => write_repr(value, 0, out),
    }
}

fn write_repr(value: &Value, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    use By::Template;
    check_depth(depth)?;
    out.budget().steps(1)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined", Template),
        Value::None(by) => out.push_str("None", *by),
        Value::Bool(b, by) => out.push_str(if *b { "True" } else { "False" }, *by),
        Value::Int(i, by) => out.push_str(&i.to_string(), *by),
        Value::Float(f, by) => out.push_str(&float_repr(*f), *by),
        Value::Text(text) => write_quoted(text, out),
        Value::List(list) => {
            out.push('[', list.by)?;
            write_items(list.items().iter(), list.by, depth, out)?;
            out.push(']', list.by)
        }
        Value::Tuple(tuple) => {
            out.push('(', Template)?;
            write_items(tuple.items.iter(), Template, depth, out)?;
            out.push_str(if tuple.items.len() == 1 { ",)" } else { ")" }, Template)
        }
        Value::Dict(dict) => {
            out.push('{', dict.by)?;
            for (i, (key, value)) in dict.map().iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" }, dict.by)?;
                write_repr(key, depth + 1, out)?;
                out.push_str(": ", dict.by)?;
                write_repr(value, depth + 1, out)?;
            }
            out.push('}', dict.by)
        }
        Value::View(dict, view) => {
            out.push_str(value.type_name(), Template)?;
            out.push_str("([", dict.by)?;
            for (i, (key, value)) in dict.map().iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" }, dict.by)?;
                match view {
                    View::Keys => write_repr(key, depth + 1, out)?,
                    View::Values => write_repr(value, depth + 1, out)?,
                    View::Items => {
                        out.push('(', dict.by)?;
                        write_items([key, value].into_iter(), dict.by, depth, out)?;
                        out.push(')', dict.by)?;
                    }
                }
            }
            out.push_str("])", dict.by)
        }
        Value::Range(range) => {
            let step = if range.step == 1 { String::new() } else { format!(", {}", range.step) };
            out.push_str(&format!("range({}, {}{step})", range.start, range.stop), Template)
        }
        Value::Namespace(dict) => {
            out.push_str("<Namespace {", Template)?;
            for (i, (key, value)) in dict.map().iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" }, Template)?;
                write_repr(key, depth + 1, out)?;
                out.push_str(": ", Template)?;
                write_repr(value, depth + 1, out)?;
            }
            out.push_str("}>", Template)
        }
        Value::Loop(state) => out.push_str(&format!("<LoopContext {}/{}>", state.index() + 1, state.len()), Template),
        Value::Iter(_) => out.push_str("<generator object>", Template),
        Value::Call(call) => {
            let text = match &**call {
                Callable::Method(of, name) => format!("<built-in method {name} of {} object>", of.type_name()),
                Callable::Global(name) => format!("<function {name}>"),
                Callable::Macro(macro_) => format!("<Macro '{}'>", macro_.name),
                Callable::Cycler(..) => "<jinja2.utils.Cycler object>".into(),
                Callable::Joiner(..) => "<jinja2.utils.Joiner object>".into(),
            };
            out.push_str(&text, Template)
        }
    }
}

fn write_items<'v>(items: impl Iterator<Item = &'v Value>, by: By, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    for (i, item) in items.enumerate() {
        out.push_str(if i > 0 { ", " } else { "" }, by)?;
        write_repr(item, depth + 1, out)?;
    }
    Ok(())
}

/// Writes a string in single quotes, unless double quotes need fewer escapes.
fn write_quoted(text: &Text, out: &mut Builder<'_>) -> Res<()> {
    let quote = if text.as_str().contains('\'') && !text.as_str().contains('"') { '"' } else { '\'' };
    let by = text.by();
    out.push(quote, by)?;
    for (range, by) in text.runs(0..text.len()) {
        let mut rest = text.as_str().get(range).unwrap_or_default();
        let needs_escape = |c: char| c == '\\' || c == quote || !is_printable(c);
        while let Some(at) = rest.find(needs_escape) {
            let (plain, special) = rest.split_at(at);
            out.push_str(plain, by)?;
            let mut chars = special.chars();
            if let Some(c) = chars.next() {
                out.push_str(&escape(c), by)?;
            }
            rest = chars.as_str();
        }
        out.push_str(rest, by)?;
    }
    out.push(quote, by)
}

fn escape(c: char) -> String {
    match c {
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        '\\' | '\'' | '"' => format!("\\{c}"),
        _ => match u32::from(c) {
            code @ 0..=0xff => format!("\\x{code:02x}"),
            code @ 0..=0xffff => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        },
    }
}

/// Whether Python prints a character as it is: no control, format or separator character except the
/// blank. Rust's `Debug` escapes the same characters.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    c.escape_debug().next() == Some(c) || is_mark(c)
}

/// Whether a character is a combining mark. Rust escapes these only at the start of a text.
fn is_mark(c: char) -> bool {
    let text = String::from_iter(['a', c]);
    text.escape_debug().nth(1) == Some(c)
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

#[cfg(test)]
mod tests {
    use super::super::budget::Limits;
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
    fn strings_read_like_python() {
        let budget = Budget::new(Limits::new(0, 0, 0));
        for (text, wanted) in [
            ("it's\n", r#""it's\n""#),
            ("\"'\u{1}", r#"'"\'\x01'"#),
            ("é\u{a0}\u{ad}\u{200b}\u{301}\u{e000}日", "'é\\xa0\\xad\\u200b\u{301}\\ue000日'"),
        ] {
            let text = Value::Text(Text::new(text, By::Caller, &budget).unwrap());
            assert_eq!(repr_of(&text, &budget).unwrap().as_str(), wanted);
        }
    }
}
