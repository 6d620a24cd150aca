//! Filters of texts and numbers.

use super::args::{Args, flag, integer, required};
use super::budget::Budget;
use super::eval::Env;
use super::expr::by_all;
use super::fault::{Fault, Res};
use super::text::{Builder, By, Text, is_space};
use super::value::Value;
use super::{format, html, math, repr, strings, wrap};

pub(super) const NAMES: [&str; 29] = [
    "abs",
    "capitalize",
    "center",
    "e",
    "escape",
    "filesizeformat",
    "float",
    "forceescape",
    "format",
    "from_json",
    "fromjson",
    "indent",
    "int",
    "lower",
    "pprint",
    "replace",
    "round",
    "safe",
    "string",
    "striptags",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// Applies a filter.
pub(super) fn call(env: Env<'_>, name: &str, value: Value, args: Args) -> Res<Value> {
    let budget = env.budget;
    let text = || repr::text_of(&value, budget);
    let found = match name {
        "string" | "safe" => {
            let [] = args.bind(name, [])?;
            text()?
        }
        "upper" | "lower" | "capitalize" => {
            let [] = args.bind(name, [])?;
            strings::change_case(env, &text()?, name)?
        }
        "title" => {
            let [] = args.bind(name, [])?;
            title(env, &text()?)?
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            let text = text()?;
            budget.bytes(text.len())?;
            strings::strip(env, &text, "strip", chars.as_ref())?
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let old = repr::text_of(&required(old, name)?, budget)?;
            let new = repr::text_of(&required(new, name)?, budget)?;
            let count = integer(count.as_ref(), name)?.unwrap_or(-1);
            strings::replace(env, &text()?, &old, &new, count)?
        }
        "format" => return format_filter(env, &text()?, args),
        "indent" => indent(env, value, args)?,
        "truncate" => return truncate(env, value, args),
        "wordwrap" => wrap::wordwrap(env, &strings::string(value, name)?, args)?,
        "wordcount" => {
            let [] = args.bind(name, [])?;
            let text = text()?;
            budget.bytes(text.len())?;
            let is_word = |c: char| c == '_' || c.is_alphanumeric();
            let words = text.as_str().split(|c| !is_word(c)).filter(|word| !word.is_empty());
            return Ok(Value::count(words.count()));
        }
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            let width = width.unwrap_or(Value::Int(80, By::Template));
            let args = Args { positional: vec![width], named: Vec::new() };
            return strings::call(env, &text()?, name, args);
        }
        "escape" | "e" | "forceescape" => {
            let [] = args.bind(name, [])?;
            html::escape(&text()?, budget)?
        }
        "striptags" => {
            let [] = args.bind(name, [])?;
            html::striptags(env, &text()?)?
        }
        "xmlattr" => html::xmlattr(env, &value, args)?,
        "urlencode" => {
            let [] = args.bind(name, [])?;
            html::urlencode(env, &value)?
        }
        "pprint" => {
            let [] = args.bind(name, [])?;
            repr::repr_of(&value, budget)?
        }
        "filesizeformat" => filesizeformat(env, &value, args)?,
        "int" => return int(env, &value, args),
        "float" => return float(env, &value, args),
        "abs" => {
            let [] = args.bind(name, [])?;
            let is_negative = value.as_int().map_or(value.as_float().is_some_and(f64::is_sign_negative), |i| i < 0);
            return math::signed(&value, is_negative);
        }
        "round" => return round(&value, args),
        _ => return Err(Fault::unknown("filter", name)),
    };
    Ok(Value::Text(found))
}

fn format_filter(env: Env<'_>, text: &Text, args: Args) -> Res<Value> {
    let values = match (args.positional.is_empty(), args.named.is_empty()) {
        (_, true) => Value::tuple(args.positional)?,
        (true, false) => {
            let mut map = super::dict::Map::default();
            for (name, value) in args.named {
                map.insert(name, value, env.budget)?;
            }
            Value::dict(map)?
        }
        (false, false) => {
            return Err(Fault::invalid("can't handle positional and keyword arguments at the same time"));
        }
    };
    format::percent(text, &values, env.budget).map(Value::Text)
}

/// Capitalizes words: the first letter large, the others small.
fn title(env: Env<'_>, text: &Text) -> Res<Text> {
    let mut out = Builder::new(env.budget);
    env.budget.bytes(text.len().saturating_mul(4))?;
    let is_border = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut is_start = true;
    for (_, c, by) in text.marked_chars() {
        if is_start && !is_border(c) {
            c.to_uppercase().try_for_each(|c| out.push(c, by))?;
        } else {
            c.to_lowercase().try_for_each(|c| out.push(c, by))?;
        }
        is_start = is_border(c);
    }
    Ok(out.finish())
}

fn indent(env: Env<'_>, value: Value, args: Args) -> Res<Text> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let (first, blank) = (flag(first.as_ref(), false), flag(blank.as_ref(), false));
    let mut margin = Builder::new(env.budget);
    match width {
        Some(Value::Text(text)) => margin.push_text(&text)?,
        Some(Value::None(_)) => return Err(Fault::invalid("'indent' needs a width")),
        width => {
            let by = width.as_ref().map_or(By::Template, Value::by);
            let width = integer(width.as_ref(), "indent")?.unwrap_or(4);
            margin.fill(' ', usize::try_from(width.max(0)).unwrap_or(usize::MAX), by)?;
        }
    }
    let margin = margin.finish();
    let text = strings::string(value, "indent")?;
    let mut out = Builder::new(env.budget);
    let mut lines = strings::lines(env, &text, false)?;
    // Acts as if the text ended with one more newline.
    let is_open = !text.as_str().ends_with('\n');
    if !is_open || lines.is_empty() {
        lines.push(Text::from_string(String::new(), By::Template));
    }
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n', By::Template)?;
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_text(&margin)?;
        }
        out.push_text(line)?;
    }
    Ok(out.finish())
}

fn truncate(env: Env<'_>, value: Value, args: Args) -> Res<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let end = match end {
        Some(end) => strings::string(end, "truncate")?,
        None => Text::from_string("...".to_string(), By::Template),
    };
    let length = match length {
        Some(Value::None(_)) => return Err(Fault::invalid("'truncate' needs a length")),
        length => integer(length.as_ref(), "truncate")?.unwrap_or(255),
    };
    let leeway = integer(leeway.as_ref(), "truncate")?.unwrap_or(5);
    if length < end.chars() as i128 || leeway < 0 {
        return Err(Fault::invalid(
            "'truncate' needs a length that its end fits into, and a leeway that is not negative",
        ));
    }
    if super::attributes::length(&value)? as i128 <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let text = strings::string(value, "truncate")?;
    env.budget.bytes(text.len())?;
    let kept = usize::try_from(length - end.chars() as i128).unwrap_or(0);
    let part = text.as_str().get(..text.offset(kept)).unwrap_or_default();
    let part = if flag(kill.as_ref(), false) { part } else { part.rsplit_once(' ').map_or(part, |(before, _)| before) };
    let mut out = Builder::new(env.budget);
    out.push_part(&text, 0..part.len())?;
    out.push_text(&end)?;
    Ok(Value::Text(out.finish()))
}

fn filesizeformat(env: Env<'_>, value: &Value, args: Args) -> Res<Text> {
    const DECIMAL: [&str; 8] = ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    const BINARY: [&str; 8] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];
    let by = by_all(value, &args);
    let [binary] = args.bind("filesizeformat", ["binary"])?;
    let bytes = parse_float(value, env.budget)?;
    let bytes = bytes.ok_or_else(|| Fault::invalid("'filesizeformat' needs a number"))?;
    let (base, units) = if flag(binary.as_ref(), false) { (1024.0, BINARY) } else { (1000.0, DECIMAL) };
    let text = if bytes == 1.0 {
        "1 Byte".to_string()
    } else if bytes < base {
        format!("{} Bytes", bytes.trunc() + 0.0)
    } else {
        let mut unit = base;
        let mut name = "";
        for prefix in units {
            unit *= base;
            name = prefix;
            if bytes < unit {
                break;
            }
        }
        format!("{:.1} {name}", base * bytes / unit)
    };
    Text::new(&text, by, env.budget)
}

/// Digits without the `_` that may separate them.
fn plain_digits(text: &str) -> Option<String> {
    let text = text.trim_matches(is_space);
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let is_right =
        bytes.iter().enumerate().all(|(at, b)| *b != b'_' || (is_digit(at.checked_sub(1)) && is_digit(Some(at + 1))));
    (is_right && bytes.len() <= 400).then(|| text.replace('_', ""))
}

fn parse_float(value: &Value, budget: &Budget) -> Res<Option<f64>> {
    let Value::Text(text) = value else { return Ok(value.as_float()) };
    budget.bytes(text.len())?;
    // Rust accepts no spelling of "inf" and "nan" that Python refuses.
    Ok(plain_digits(text.as_str()).and_then(|digits| digits.parse().ok()))
}

/// The caller has paid for reading the text.
fn parse_int(text: &str, base: u32) -> Option<Result<i128, ()>> {
    let digits = plain_digits(text)?;
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let lower = digits.to_ascii_lowercase();
    let (prefix, base) = match (lower.get(..2), base) {
        (Some("0x"), 16 | 0) => (2, 16),
        (Some("0o"), 8 | 0) => (2, 8),
        (Some("0b"), 2 | 0) => (2, 2),
        (_, 0) => (0, 10),
        (_, base) => (0, base),
    };
    let digits = lower.get(prefix..)?;
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    Some(i128::from_str_radix(&format!("{sign}{digits}"), base).map_err(drop))
}

fn int(env: Env<'_>, value: &Value, args: Args) -> Res<Value> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let by = value.by();
    // An invalid base makes every text invalid.
    let base = base.map_or(10, |base| base.as_int().unwrap_or(-1));
    if let Some(fault) = value.undefined_fault() {
        return Err(fault);
    }
    if let Value::Text(text) = value {
        env.budget.bytes(text.len())?;
        let base = u32::try_from(base).ok().filter(|base| *base == 0 || (2..=36).contains(base));
        match base.map(|base| parse_int(text.as_str(), base)) {
            Some(Some(Ok(i))) => return Ok(Value::Int(i, by)),
            Some(Some(Err(()))) => return Err(Fault::invalid("a number is too large")),
            _ => {}
        }
    } else if let Some(i) = value.as_int() {
        return Ok(Value::Int(i, by));
    }
    match parse_float(value, env.budget)? {
        Some(f) if f.is_finite() => math::int_of_float(f, by).ok_or_else(|| Fault::invalid("a number is too large")),
        _ => Ok(default.unwrap_or(Value::Int(0, By::Template))),
    }
}

fn float(env: Env<'_>, value: &Value, args: Args) -> Res<Value> {
    let [default] = args.bind("float", ["default"])?;
    if let Some(fault) = value.undefined_fault() {
        return Err(fault);
    }
    Ok(match parse_float(value, env.budget)? {
        Some(f) => Value::Float(f, value.by()),
        None => default.unwrap_or(Value::Float(0.0, By::Template)),
    })
}

fn round(value: &Value, args: Args) -> Res<Value> {
    let by = by_all(value, &args);
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let is_whole = precision.as_ref().is_some_and(Value::is_none);
    let method = method.map(|method| strings::string(method, "round")).transpose()?;
    let is_common = method.as_ref().is_none_or(|method| method.as_str() == "common");
    let exponent = match &precision {
        Some(Value::Float(f, _)) if !is_common => *f,
        Some(Value::None(_)) if !is_common => return Err(Fault::invalid("'round' needs a precision")),
        _ => integer(precision.as_ref(), "round")?.unwrap_or(0).clamp(-400, 400) as f64,
    };
    let precision = exponent as i128;
    let number = || {
        value.as_float().ok_or_else(|| {
            value
                .undefined_fault()
                .unwrap_or_else(|| Fault::invalid(format_args!("type {} doesn't define a rounding", value.type_name())))
        })
    };
    match method.as_ref().map_or("common", Text::as_str) {
        "common" => match value.as_int() {
            Some(i) => round_int(i, precision).map(|i| Value::Int(i, by)),
            // Without a precision, Python's `round` returns an integer.
            None if is_whole => math::int_of_float(number()?.round_ties_even(), by)
                .ok_or_else(|| Fault::invalid("a number is too large")),
            None => Ok(Value::Float(round_float(number()?, precision), by)),
        },
        method @ ("ceil" | "floor") => {
            let scale = if exponent.fract() == 0.0 { 10f64.powi(precision as i32) } else { 10f64.powf(exponent) };
            let scaled = number()? * scale;
            if !scaled.is_finite() {
                return Err(Fault::invalid("a number is too large"));
            }
            let whole = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
            // In Python the result is an integer here, and integers have no -0.
            Ok(Value::Float((whole + 0.0) / scale, by))
        }
        _ => Err(Fault::invalid("method must be common, ceil or floor")),
    }
}

/// Rounds halves to the even side.
fn round_int(i: i128, precision: i128) -> Res<i128> {
    let Some(digits) = u32::try_from(-precision).ok().filter(|digits| *digits > 0) else { return Ok(i) };
    let Some(unit) = 10i128.checked_pow(digits) else { return Ok(0) };
    let (below, rest) = (i.div_euclid(unit), i.rem_euclid(unit));
    let up = rest > unit / 2 || (rest == unit / 2 && below % 2 != 0);
    let rounded = (below + i128::from(up)).checked_mul(unit);
    rounded.ok_or_else(|| Fault::invalid("a number is too large"))
}

fn round_float(f: f64, precision: i128) -> f64 {
    if !f.is_finite() || precision > 323 {
        return f;
    }
    if let Ok(decimals) = usize::try_from(precision) {
        return format!("{f:.decimals$}").parse().unwrap_or(f);
    }
    let scale = 10f64.powi((-precision) as i32);
    if scale.is_infinite() { 0f64.copysign(f) } else { (f / scale).round_ties_even() * scale }
}
