//! JSON: the filter `tojson` as Hugging Face defines it (Python's `json.dumps` without escapes for
//! characters outside ASCII, and without escapes for HTML), and the way back.

use super::args::{Args, flag};
use super::budget::Budget;
use super::dict::{Map, check_depth};
use super::eval::Env;
use super::fault::{Fault, Res};
use super::ops;
use super::repr;
use super::text::{Builder, By, Text};
use super::value::{Value, View};
use crate::chat::Json;
use crate::memory;

/// The widest indent.
const MAX_INDENT: i128 = 64;

/// How to write JSON.
struct Style {
    ascii: bool,
    /// The text that indents one level; `None` writes everything on one line.
    indent: Option<Text>,
    comma: Text,
    colon: Text,
    sort_keys: bool,
}

/// `value|tojson(ensure_ascii=…, indent=…, separators=…, sort_keys=…)`
pub(super) fn tojson(env: Env<'_>, value: &Value, args: Args) -> Res<Value> {
    let budget = env.budget;
    // Known templates use the first argument as the indent, though Hugging Face has another
    // parameter there.
    let mut args = args;
    let first = if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    let (first_flag, first_indent) = match first {
        Some(Value::Bool(b, by)) => (Some(Value::Bool(b, by)), None),
        other => (None, other),
    };
    let [indent, separators, sort_keys, ascii] =
        args.bind("tojson", ["indent", "separators", "sort_keys", "ensure_ascii"])?;
    let indent = match first_indent.or(indent) {
        None | Some(Value::None(_)) => None,
        Some(Value::Text(margin)) => Some(margin),
        // A bad indent does not matter where there is nothing to indent.
        Some(_) if value.as_text().is_some() => None,
        Some(width) => {
            let count = width
                .as_int()
                .ok_or_else(|| Fault::invalid("the indent of 'tojson' must be an integer or a string"))?;
            let mut margin = Builder::new(budget);
            margin.fill(' ', count.clamp(0, MAX_INDENT) as usize, width.by())?;
            Some(margin.finish())
        }
    };
    let text = |text: &'static str| Text::from_string(text.to_string(), By::Template);
    let [comma, colon] = match separators {
        None | Some(Value::None(_)) => [text(if indent.is_some() { "," } else { ", " }), text(": ")],
        Some(separators) => match &*ops::items(&separators, budget)? {
            [Value::Text(comma), Value::Text(colon)] => [comma.clone(), colon.clone()],
            _ => return Err(Fault::invalid("the separators of 'tojson' must be two strings")),
        },
    };
    let ascii = flag(first_flag.or(ascii).as_ref(), false);
    let style = Style { ascii, indent, comma, colon, sort_keys: flag(sort_keys.as_ref(), false) };
    let mut out = Builder::new(budget);
    write(value, &style, 0, &mut out)?;
    Ok(Value::Text(out.finish()))
}

fn write(value: &Value, style: &Style, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    check_depth(depth)?;
    out.budget().steps(1)?;
    match value {
        Value::None(_) | Value::Bool(..) | Value::Int(..) | Value::Float(..) => {
            out.push_str(&scalar(value), value.by())
        }
        Value::Text(text) => write_string(text, style.ascii, out),
        Value::List(list) => write_items(&list.items(), list.by, style, depth, out),
        Value::Tuple(tuple) => write_items(&tuple.items, By::Template, style, depth, out),
        Value::Dict(dict) => write_entries(&dict.map(), dict.by, style, depth, out),
        _ => Err(Fault::invalid(format_args!("Object of type {} is not JSON serializable", value.type_name()))),
    }
}

fn write_items(items: &[Value], by: By, style: &Style, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    out.push('[', by)?;
    for (i, item) in items.iter().enumerate() {
        separate(i, by, style, depth, out)?;
        write(item, style, depth + 1, out)?;
    }
    close(items.len(), style, depth, out)?;
    out.push(']', by)
}

fn write_entries(map: &Map, by: By, style: &Style, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    let budget = out.budget();
    let mut entries = Vec::new();
    budget.memory(map.len().saturating_mul(size_of::<(Value, Value)>()))?;
    memory::reserve(&mut entries, map.len(), "the entries of a dictionary")?;
    entries.extend(map.iter().cloned());
    if style.sort_keys {
        entries = ops::sort(entries, false, budget)?;
    }
    out.push('{', by)?;
    for (i, (key, value)) in entries.iter().enumerate() {
        separate(i, by, style, depth, out)?;
        match key {
            Value::Text(text) => write_string(text, style.ascii, out)?,
            Value::None(_) | Value::Bool(..) | Value::Int(..) | Value::Float(..) => {
                let text = format!("\"{}\"", scalar(key));
                out.push_str(&text, key.by())?;
            }
            _ => {
                let name = key.type_name();
                return Err(Fault::invalid(format_args!("keys must be str, int, float, bool or None, not {name}")));
            }
        }
        out.push_text_by(&style.colon, by)?;
        write(value, style, depth + 1, out)?;
    }
    close(entries.len(), style, depth, out)?;
    out.push('}', by)
}

fn separate(index: usize, by: By, style: &Style, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    if index > 0 {
        out.push_text_by(&style.comma, by)?;
    }
    new_line(style, depth + 1, out)
}

fn close(count: usize, style: &Style, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    if count > 0 { new_line(style, depth, out) } else { Ok(()) }
}

fn new_line(style: &Style, depth: u32, out: &mut Builder<'_>) -> Res<()> {
    if let Some(indent) = &style.indent {
        out.push('\n', By::Template)?;
        for _ in 0..depth {
            out.push_text(indent)?;
        }
    }
    Ok(())
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Bool(true, _) => "true".into(),
        Value::Bool(false, _) => "false".into(),
        Value::Int(i, _) => i.to_string(),
        Value::Float(f, _) if f.is_nan() => "NaN".into(),
        Value::Float(f, _) if f.is_infinite() => if *f > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Value::Float(f, _) => repr::float_repr(*f),
        _ => "null".into(),
    }
}

/// Writes a string. The caller counts as the writer of its quotes if the caller wrote any part of
/// the string.
fn write_string(text: &Text, ascii: bool, out: &mut Builder<'_>) -> Res<()> {
    let quotes = text.by();
    out.push('"', quotes)?;
    for (range, by) in text.runs(0..text.len()) {
        let mut rest = text.as_str().get(range).unwrap_or_default();
        let needs_escape = |c: char| matches!(c, '"' | '\\' | '\0'..='\u{1f}') || (ascii && !matches!(c, ' '..='~'));
        while let Some(at) = rest.find(needs_escape) {
            let (plain, special) = rest.split_at(at);
            out.push_str(plain, by)?;
            let mut chars = special.chars();
            match chars.next() {
                Some('"') => out.push_str("\\\"", by)?,
                Some('\\') => out.push_str("\\\\", by)?,
                Some('\n') => out.push_str("\\n", by)?,
                Some('\r') => out.push_str("\\r", by)?,
                Some('\t') => out.push_str("\\t", by)?,
                Some('\u{8}') => out.push_str("\\b", by)?,
                Some('\u{c}') => out.push_str("\\f", by)?,
                Some(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"), by)?;
                    }
                }
                None => {}
            }
            rest = chars.as_str();
        }
        out.push_str(rest, by)?;
    }
    out.push('"', quotes)
}

/// The caller's JSON as a template value.
pub(in crate::chat) fn value_of(json: &Json, by: By, budget: &Budget) -> Res<Value> {
    value_at(json, by, 0, budget)
}

fn value_at(json: &Json, by: By, depth: u32, budget: &Budget) -> Res<Value> {
    check_depth(depth)?;
    budget.steps(1)?;
    Ok(match json {
        Json::Null => Value::None(by),
        Json::Bool(b) => Value::Bool(*b, by),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(i), _) => Value::Int(i.into(), by),
            (None, Some(u)) => Value::Int(u.into(), by),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN), by),
        },
        Json::String(text) => Value::Text(Text::new(text, by, budget)?),
        Json::Array(items) => {
            budget.values(items.len())?;
            let mut values = memory::with_room(items.len(), "the conversation of a chat template")?;
            for item in items {
                values.push(value_at(item, by, depth + 1, budget)?);
            }
            Value::list_by(values, by)?
        }
        Json::Object(entries) => {
            let mut map = Map::default();
            for (key, value) in entries {
                let key = Value::Text(Text::new(key, by, budget)?);
                map.insert(key, value_at(value, by, depth + 1, budget)?, budget)?;
            }
            Value::dict_by(map, by)?
        }
    })
}

/// `text|from_json`
pub(super) fn from_json(env: Env<'_>, text: &Text) -> Res<Value> {
    env.budget.bytes(text.len().saturating_mul(4))?;
    let mut reader = Reader { text, at: 0, budget: env.budget };
    let value = reader.value(0)?;
    reader.skip_blanks();
    if reader.at < text.len() { Err(reader.fail()) } else { Ok(value) }
}

/// Reads JSON. The values that it returns keep the writers of the text that it read.
struct Reader<'r> {
    text: &'r Text,
    at: usize,
    budget: &'r Budget,
}

impl Reader<'_> {
    fn fail(&self) -> Fault {
        Fault::invalid(format_args!("the text is no JSON at byte {}", self.at))
    }

    fn rest(&self) -> &str {
        self.text.as_str().get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn skip(&mut self, c: char) -> bool {
        let found = self.rest().starts_with(c);
        self.at += usize::from(found);
        found
    }

    fn by_from(&self, start: usize) -> By {
        self.text.by_in(start..self.at)
    }

    fn value(&mut self, depth: u32) -> Res<Value> {
        check_depth(depth)?;
        self.budget.values(1)?;
        self.skip_blanks();
        let start = self.at;
        match self.rest().bytes().next() {
            Some(b'"') => self.string().map(Value::Text),
            Some(b'[') => self.array(depth),
            Some(b'{') => self.object(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                const WORDS: [&str; 5] = ["null", "true", "false", "NaN", "Infinity"];
                let word = WORDS.into_iter().find(|word| self.rest().starts_with(word)).ok_or_else(|| self.fail())?;
                self.at += word.len();
                let by = self.by_from(start);
                Ok(match word {
                    "null" => Value::None(by),
                    "NaN" => Value::Float(f64::NAN, by),
                    "Infinity" => Value::Float(f64::INFINITY, by),
                    _ => Value::Bool(word == "true", by),
                })
            }
        }
    }

    fn array(&mut self, depth: u32) -> Res<Value> {
        let start = self.at;
        self.at += 1;
        let by = self.by_from(start);
        let mut items = Vec::new();
        self.skip_blanks();
        if !self.skip(']') {
            loop {
                let item = self.value(depth + 1)?;
                memory::push(&mut items, item, "a list of a chat template")?;
                self.skip_blanks();
                if self.skip(']') {
                    break;
                }
                if !self.skip(',') {
                    return Err(self.fail());
                }
            }
        }
        Value::list_by(items, by)
    }

    fn object(&mut self, depth: u32) -> Res<Value> {
        let start = self.at;
        self.at += 1;
        let by = self.by_from(start);
        let mut map = Map::default();
        self.skip_blanks();
        if !self.skip('}') {
            loop {
                self.skip_blanks();
                if !self.rest().starts_with('"') {
                    return Err(self.fail());
                }
                let key = self.string()?;
                self.skip_blanks();
                if !self.skip(':') {
                    return Err(self.fail());
                }
                let value = self.value(depth + 1)?;
                drop(map.insert(Value::Text(key), value, self.budget)?);
                self.skip_blanks();
                if self.skip('}') {
                    break;
                }
                if !self.skip(',') {
                    return Err(self.fail());
                }
            }
        }
        Value::dict_by(map, by)
    }

    fn number(&mut self) -> Res<Value> {
        let rest = self.rest();
        let start = self.at;
        if rest.starts_with("-Infinity") {
            self.at += "-Infinity".len();
            return Ok(Value::Float(f64::NEG_INFINITY, self.by_from(start)));
        }
        let length = rest.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        let digits = rest.get(..length).unwrap_or_default();
        let is_whole = !digits.contains(['.', 'e', 'E']);
        let whole = digits.strip_prefix('-').unwrap_or(digits);
        let is_odd =
            (whole.len() > 1 && whole.starts_with('0') && whole.as_bytes().get(1).is_some_and(u8::is_ascii_digit))
                || !whole.starts_with(|c: char| c.is_ascii_digit())
                || whole.ends_with('.')
                || whole.contains(".e")
                || whole.contains(".E");
        let (int, float) = (digits.parse::<i128>(), digits.parse::<f64>());
        if is_odd || float.is_err() || digits.starts_with('+') {
            return Err(self.fail());
        }
        self.at += length;
        let by = self.by_from(start);
        match (is_whole, int, float) {
            (true, Ok(i), _) => Ok(Value::Int(i, by)),
            (true, Err(_), _) => Err(Fault::invalid("a number is too large")),
            (_, _, Ok(f)) => Ok(Value::Float(f, by)),
            _ => Err(self.fail()),
        }
    }

    /// A string in quotes. Each of its characters keeps the writer of its spelling.
    fn string(&mut self) -> Res<Text> {
        self.at += 1;
        let mut out = Builder::new(self.budget);
        loop {
            let rest = self.rest();
            let end = rest.find(|c: char| matches!(c, '"' | '\\') || c < ' ').ok_or_else(|| self.fail())?;
            out.push_part(self.text, self.at..self.at + end)?;
            self.at += end;
            if self.skip('"') {
                return Ok(out.finish());
            }
            let start = self.at;
            if !self.skip('\\') {
                return Err(self.fail());
            }
            let c = self.escape()?;
            out.push(c, self.by_from(start))?;
        }
    }

    fn escape(&mut self) -> Res<char> {
        let c = self.rest().chars().next().ok_or_else(|| self.fail())?;
        self.at += c.len_utf8();
        Ok(match c {
            '"' | '\\' | '/' => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let unit = self.unit()?;
                let code = if (0xd800..0xdc00).contains(&unit) && self.rest().starts_with("\\u") {
                    self.at += 2;
                    let low = self.unit()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.fail());
                    }
                    0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    unit
                };
                char::from_u32(code).ok_or_else(|| self.fail())?
            }
            _ => return Err(self.fail()),
        })
    }

    fn unit(&mut self) -> Res<u32> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or_else(|| self.fail())?;
        self.at += 4;
        Ok(unit)
    }
}

/// The entries of a dictionary as pairs, for filters.
pub(super) fn pairs(env: Env<'_>, value: &Value) -> Res<Vec<Value>> {
    match value {
        Value::Undefined(_) => Ok(Vec::new()),
        Value::Dict(dict) => ops::items(&Value::View(dict.clone(), View::Items), env.budget),
        _ => Err(Fault::invalid("Can only get item pairs from a mapping.")),
    }
}
