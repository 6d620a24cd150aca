//! Methods of strings.

use super::args::{Args, integer, required, whole_flag};
use super::eval::Env;
use super::fault::{Fault, Res};
use super::format;
use super::ops;
use super::text::{Builder, By, Text, is_space};
use super::value::Value;
use crate::memory;
use std::ops::Range;

pub(super) const NAMES: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

pub(super) fn call(env: Env<'_>, text: &Text, name: &str, args: Args) -> Res<Value> {
    let budget = env.budget;
    // Every method reads the text.
    budget.bytes(text.len())?;
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"])?;
            strip(env, text, name, chars.as_ref()).map(Value::Text)
        }
        "split" | "rsplit" => {
            let [separator, limit] = args.bind(name, ["sep", "maxsplit"])?;
            split(env, text, separator, limit, name == "rsplit")
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            let lines = lines(env, text, whole_flag(keep.as_ref(), name)?)?;
            texts(env, lines)
        }
        "startswith" | "endswith" => {
            let [affix, start, stop] = args.bind(name, ["prefix", "start", "end"])?;
            starts_or_ends(env, text, required(affix, name)?, [start, stop], name == "endswith")
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [part, start, stop] = args.bind(name, ["sub", "start", "end"])?;
            find(env, text, name, required(part, name)?, [start, stop])
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (string(required(old, name)?, name)?, string(required(new, name)?, name)?);
            let count = integer(count.as_ref(), name)?.unwrap_or(-1);
            replace(env, text, &old, &new, count).map(Value::Text)
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"])?;
            partition(env, text, &string(required(separator, name)?, name)?, name == "rpartition")
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, ["prefix"])?;
            let affix = string(required(affix, name)?, name)?;
            let all = text.as_str();
            let rest = if name == "removeprefix" {
                all.strip_prefix(affix.as_str())
            } else {
                all.strip_suffix(affix.as_str())
            };
            text.part_of(rest.unwrap_or(all), budget).map(Value::Text)
        }
        "join" => {
            let [items] = args.bind(name, ["iterable"])?;
            join(env, text, &required(items, name)?)
        }
        "format" => format::braces(text, args, budget).map(Value::Text),
        "format_map" => {
            let [map] = args.bind(name, ["mapping"])?;
            let Some(Value::Dict(map)) = map else { return Err(Fault::invalid("format_map needs a dictionary")) };
            let mut args = Args::default();
            for (key, value) in map.map().iter().filter(|(key, _)| key.as_str().is_some()) {
                args.add_named(key.clone(), value.clone(), budget)?;
            }
            format::braces(text, args, budget).map(Value::Text)
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            justify(env, text, name, width, fill)
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            expand_tabs(env, text, integer(size.as_ref(), name)?.unwrap_or(8))
        }
        "upper" | "lower" | "casefold" | "swapcase" | "capitalize" | "title" => {
            let [] = args.bind(name, [])?;
            change_case(env, text, name).map(Value::Text)
        }
        _ if name.starts_with("is") => {
            let [] = args.bind(name, [])?;
            Ok(Value::bool(is(text.as_str(), name)))
        }
        _ => Err(Fault::invalid(format_args!("the method '{name}' of strings is not supported"))),
    }
}

/// An argument that must be a string.
pub(super) fn string(value: Value, what: &str) -> Res<Text> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(value
            .undefined_fault()
            .unwrap_or_else(|| Fault::invalid(format_args!("'{what}' needs a string, not '{}'", value.type_name())))),
    }
}

/// A list of texts.
pub(super) fn texts(env: Env<'_>, texts: Vec<Text>) -> Res<Value> {
    env.budget.values(texts.len())?;
    Value::list(memory::collected(texts.into_iter().map(Value::Text), "a list of a chat template")?)
}

pub(super) fn strip(env: Env<'_>, text: &Text, name: &str, chars: Option<&Value>) -> Res<Text> {
    let all = text.as_str();
    let set = match chars {
        None | Some(Value::None(_)) => None,
        Some(chars) => Some(string(chars.clone(), name)?),
    };
    if let Some(set) = &set {
        // Each character may be compared with the whole set.
        env.budget.steps((set.len() as u64).saturating_mul(1 + text.len() as u64 / 64))?;
    }
    let is_out = |c: char| set.as_ref().map_or(is_space(c), |set| set.as_str().contains(c));
    let part = match name {
        "lstrip" => all.trim_start_matches(is_out),
        "rstrip" => all.trim_end_matches(is_out),
        _ => all.trim_matches(is_out),
    };
    text.part_of(part, env.budget)
}

fn split(env: Env<'_>, text: &Text, separator: Option<Value>, limit: Option<Value>, from_end: bool) -> Res<Value> {
    let budget = env.budget;
    let limit = integer(limit.as_ref(), "split")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let all = text.as_str();
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut add = |part: Range<usize>| -> Res<()> {
        budget.values(1)?;
        Ok(memory::push(&mut parts, part, "the parts of a text")?)
    };
    match separator {
        None | Some(Value::None(_)) => split_at_blanks(all, limit, from_end, &mut add)?,
        Some(separator) => {
            let separator = string(separator, "split")?;
            let separator = separator.as_str();
            if separator.is_empty() {
                return Err(Fault::invalid("empty separator"));
            }
            if from_end {
                let mut end = all.len();
                for (at, _) in all.rmatch_indices(separator).take(limit) {
                    add(at + separator.len()..end)?;
                    end = at;
                }
                add(0..end)?;
            } else {
                let mut start = 0;
                for (at, _) in all.match_indices(separator).take(limit) {
                    add(start..at)?;
                    start = at + separator.len();
                }
                add(start..all.len())?;
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    let mut found = memory::with_room(parts.len(), "the parts of a text")?;
    for part in parts {
        found.push(Value::Text(text.slice(part, budget)?));
    }
    Value::list(found)
}

fn split_at_blanks(all: &str, limit: usize, from_end: bool, add: &mut impl FnMut(Range<usize>) -> Res<()>) -> Res<()> {
    let (mut start, mut end) = (0, all.len());
    let mut count = 0;
    loop {
        let rest = all.get(start..end).unwrap_or_default();
        if from_end {
            let rest = rest.trim_end_matches(is_space);
            if rest.is_empty() {
                return Ok(());
            }
            end = start + rest.len();
            match rest.rfind(is_space).filter(|_| count < limit) {
                Some(at) => {
                    let width = rest.get(at..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
                    add(start + at + width..end)?;
                    end = start + at;
                }
                None => return add(start..end),
            }
        } else {
            let trimmed = rest.trim_start_matches(is_space);
            if trimmed.is_empty() {
                return Ok(());
            }
            start = end - trimmed.len();
            match trimmed.find(is_space).filter(|_| count < limit) {
                Some(at) => {
                    add(start..start + at)?;
                    start += at;
                }
                None => return add(start..end),
            }
        }
        count += 1;
    }
}

/// The lines of a text, split as Python does.
pub(super) fn lines(env: Env<'_>, text: &Text, keep_ends: bool) -> Res<Vec<Text>> {
    let all = text.as_str();
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut found = Vec::new();
    let mut start = 0;
    while let Some(rest) = all.get(start..).filter(|rest| !rest.is_empty()) {
        let length = rest.find(is_end).unwrap_or(rest.len());
        let end = rest.get(length..).unwrap_or_default();
        let end_length = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        let kept = if keep_ends { length + end_length } else { length };
        env.budget.values(1)?;
        memory::push(&mut found, text.slice(start..start + kept, env.budget)?, "the lines of a text")?;
        start += length + end_length;
    }
    Ok(found)
}

/// Byte positions for two places counted in characters, as slices count them; `None` where the end
/// comes before the start.
fn bounds(text: &Text, [start, stop]: [Option<Value>; 2]) -> Res<Option<Range<usize>>> {
    if start.is_none() && stop.is_none() {
        return Ok(Some(0..text.len()));
    }
    let len = text.chars() as i128;
    let clamp = |at: i128| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let start = integer(start.as_ref(), "find")?.map_or(0, clamp);
    let stop = integer(stop.as_ref(), "find")?.map_or(len, clamp).min(len);
    if start > stop {
        return Ok(None);
    }
    Ok(Some(text.offset(start as usize)..text.offset(stop as usize)))
}

fn starts_or_ends(env: Env<'_>, text: &Text, affix: Value, places: [Option<Value>; 2], at_end: bool) -> Res<Value> {
    let affixes = match &affix {
        Value::Tuple(tuple) => ops::copied(&tuple.items, env.budget)?,
        _ => vec![affix],
    };
    let part = bounds(text, places)?.and_then(|range| text.as_str().get(range));
    let mut found = false;
    for affix in affixes {
        let affix = string(affix, if at_end { "endswith" } else { "startswith" })?;
        env.budget.bytes(affix.len())?;
        found |= part
            .is_some_and(|part| if at_end { part.ends_with(affix.as_str()) } else { part.starts_with(affix.as_str()) });
    }
    Ok(Value::bool(found))
}

fn find(env: Env<'_>, text: &Text, name: &str, part: Value, places: [Option<Value>; 2]) -> Res<Value> {
    let part = string(part, name)?;
    env.budget.bytes(part.len())?;
    let range = bounds(text, places)?;
    let inside = range.clone().and_then(|range| text.as_str().get(range));
    if name == "count" {
        let count = inside.map_or(0, |inside| {
            if part.is_empty() { inside.chars().count() + 1 } else { inside.matches(part.as_str()).count() }
        });
        return Ok(Value::count(count));
    }
    let at =
        inside.and_then(
            |inside| {
                if name.starts_with('r') { inside.rfind(part.as_str()) } else { inside.find(part.as_str()) }
            },
        );
    match at.zip(range) {
        Some((at, range)) => {
            let before = text.as_str().get(..range.start + at).unwrap_or_default();
            Ok(Value::count(before.chars().count()))
        }
        None if name.ends_with("find") => Ok(Value::Int(-1, By::Template)),
        None => Err(Fault::invalid("substring not found")),
    }
}

pub(super) fn replace(env: Env<'_>, text: &Text, old: &Text, new: &Text, count: i128) -> Res<Text> {
    let budget = env.budget;
    budget.bytes(text.len() + old.len())?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let all = text.as_str();
    let mut out = Builder::new(budget);
    let mut start = 0;
    if old.is_empty() {
        let ends = all.char_indices().map(|(at, _)| at).chain([all.len()]);
        for at in ends.take(count) {
            out.push_part(text, start..at)?;
            out.push_text(new)?;
            start = at;
        }
    } else {
        if count == 0 || !all.contains(old.as_str()) {
            return Ok(text.clone());
        }
        for (at, _) in all.match_indices(old.as_str()).take(count) {
            out.push_part(text, start..at)?;
            out.push_text(new)?;
            start = at + old.len();
        }
    }
    out.push_part(text, start..all.len())?;
    Ok(out.finish())
}

fn partition(env: Env<'_>, text: &Text, separator: &Text, from_end: bool) -> Res<Value> {
    let budget = env.budget;
    if separator.is_empty() {
        return Err(Fault::invalid("empty separator"));
    }
    let all = text.as_str();
    let at = if from_end { all.rfind(separator.as_str()) } else { all.find(separator.as_str()) };
    let empty = || Text::from_string(String::new(), By::Template);
    budget.values(3)?;
    let parts = match at {
        Some(at) => [
            text.slice(0..at, budget)?,
            // The separator in the result is the text's, not the template's.
            text.slice(at..at + separator.len(), budget)?,
            text.slice(at + separator.len()..all.len(), budget)?,
        ],
        None if from_end => [empty(), empty(), text.clone()],
        None => [text.clone(), empty(), empty()],
    };
    Value::tuple(parts.map(Value::Text).to_vec())
}

fn join(env: Env<'_>, separator: &Text, items: &Value) -> Res<Value> {
    let mut out = Builder::new(env.budget);
    for (i, item) in ops::items(items, env.budget)?.into_iter().enumerate() {
        if i > 0 {
            out.push_text(separator)?;
        }
        let Value::Text(item) = item else {
            let name = item.type_name();
            return Err(Fault::invalid(format_args!("sequence item {i}: expected str instance, {name} found")));
        };
        out.push_text(&item)?;
    }
    Ok(Value::Text(out.finish()))
}

fn justify(env: Env<'_>, text: &Text, name: &str, width: Option<Value>, fill: Option<Value>) -> Res<Value> {
    let width = required(width, name)?;
    let by = width.by();
    let width = integer(Some(&width), name)?.ok_or_else(|| Fault::invalid("a width must be an integer"))?;
    let missing = usize::try_from(width.saturating_sub(text.chars() as i128).max(0)).unwrap_or(usize::MAX);
    let (fill, fill_by) = match fill {
        Some(_) if name == "zfill" => return Err(Fault::invalid("zfill() takes exactly one argument")),
        Some(fill) => {
            let fill = string(fill, name)?;
            let mut chars = fill.as_str().chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => (c, fill.by()),
                _ => return Err(Fault::invalid("the fill character must be exactly one character long")),
            }
        }
        None if name == "zfill" => ('0', by),
        None => (' ', By::Template),
    };
    let left = match name {
        "ljust" => 0,
        // As in Python, the odd blank goes to the left where the width is odd.
        "center" => missing / 2 + (missing & width.max(0) as usize & 1),
        _ => missing,
    };
    let mut out = Builder::new(env.budget);
    let sign = usize::from(name == "zfill" && text.as_str().starts_with(['+', '-']));
    out.push_part(text, 0..sign)?;
    out.fill(fill, left, fill_by)?;
    out.push_part(text, sign..text.len())?;
    out.fill(fill, missing - left, fill_by)?;
    Ok(Value::Text(out.finish()))
}

fn expand_tabs(env: Env<'_>, text: &Text, size: i128) -> Res<Value> {
    let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
    let mut out = Builder::new(env.budget);
    let mut column = 0usize;
    for (_, c, by) in text.marked_chars() {
        match c {
            '\t' => {
                let blanks = column.checked_rem(size).map_or(0, |over| size - over);
                out.fill(' ', blanks, by)?;
                column += blanks;
            }
            _ => {
                out.push(c, by)?;
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(Value::Text(out.finish()))
}

/// Changes the case. The writer of a character counts as the writer of what it becomes.
pub(super) fn change_case(env: Env<'_>, text: &Text, name: &str) -> Res<Text> {
    let mut out = Builder::new(env.budget);
    env.budget.bytes(text.len().saturating_mul(4))?;
    if matches!(name, "upper" | "lower" | "casefold") {
        env.budget.memory(text.len().saturating_mul(3))?;
        for (range, by) in text.runs(0..text.len()) {
            let part = text.as_str().get(range).unwrap_or_default();
            let changed = match name {
                "upper" => part.to_uppercase(),
                "lower" => part.to_lowercase(),
                _ => part.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
            };
            out.push_str(&changed, by)?;
        }
        return Ok(out.finish());
    }
    let mut is_inside = false;
    for (at, c, by) in text.marked_chars() {
        let (is_upper, is_lower) = (c.is_uppercase(), c.is_lowercase());
        let to_upper = match name {
            "swapcase" => is_lower,
            "capitalize" => at == 0,
            _ => !is_inside,
        };
        is_inside = is_cased(c);
        if name == "swapcase" && !is_upper && !is_lower {
            out.push(c, by)?;
        } else if to_upper {
            // Of a character whose upper case has two letters, only the first becomes upper case,
            // except for `swapcase`.
            for (i, upper) in c.to_uppercase().enumerate() {
                if i > 0 && name != "swapcase" {
                    upper.to_lowercase().try_for_each(|lower| out.push(lower, by))?;
                } else {
                    out.push(upper, by)?;
                }
            }
        } else {
            c.to_lowercase().try_for_each(|lower| out.push(lower, by))?;
        }
    }
    Ok(out.finish())
}

fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase() || matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}

pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

fn is(text: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(|c| c.is_ascii_digit() || (c.is_numeric() && is_decimal(c))),
        "isdigit" => all(|c| c.is_ascii_digit() || (c.is_numeric() && (is_decimal(c) || is_superscript(c)))),
        "isnumeric" => all(char::is_numeric),
        "islower" => is_lower(text),
        "isupper" => is_upper(text),
        "isspace" => all(is_space),
        "isprintable" => !text.chars().any(char::is_control),
        "istitle" => is_title(text),
        _ => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c == '_' || c.is_alphabetic())
                && chars.all(|c| c == '_' || c.is_alphanumeric())
        }
    }
}

/// Decimal digits, including the most used other scripts, which have them in tens.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 14] =
        [0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xe50, 0xff10];
    let code = u32::from(c);
    c.is_ascii_digit() || ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}

fn is_superscript(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨')
}

fn is_title(text: &str) -> bool {
    let (mut has_cased, mut is_inside) = (false, false);
    for c in text.chars() {
        if (c.is_uppercase() && is_inside) || (c.is_lowercase() && !is_inside) {
            return false;
        }
        is_inside = is_cased(c);
        has_cased |= is_inside;
    }
    has_cased
}
