//! Filters for HTML and addresses. No text counts as "safe" here: texts are escaped only where a
//! filter asks for it.

use super::args::{Args, flag};
use super::budget::Budget;
use super::eval::Env;
use super::fault::{Fault, Res};
use super::ops;
use super::repr;
use super::text::{Builder, By, Text, is_space};
use super::value::Value;

/// Replaces the characters that have a meaning in HTML.
pub(super) fn escape(text: &Text, budget: &Budget) -> Res<Text> {
    let mut out = Builder::new(budget);
    write_escaped(text, &mut out)?;
    Ok(out.finish())
}

fn write_escaped(text: &Text, out: &mut Builder<'_>) -> Res<()> {
    for (range, by) in text.runs(0..text.len()) {
        let mut rest = text.as_str().get(range).unwrap_or_default();
        while let Some(at) = rest.find(['&', '<', '>', '\'', '"']) {
            let (plain, special) = rest.split_at(at);
            out.push_str(plain, by)?;
            let (c, after) = special.split_at(1);
            let entity = match c {
                "&" => "&amp;",
                "<" => "&lt;",
                ">" => "&gt;",
                "'" => "&#39;",
                _ => "&#34;",
            };
            out.push_str(entity, by)?;
            rest = after;
        }
        out.push_str(rest, by)?;
    }
    Ok(())
}

/// Removes tags and comments, joins blanks into one, and replaces entities by characters.
pub(super) fn striptags(env: Env<'_>, text: &Text) -> Res<Text> {
    let text = without(env, text, "<!--", "-->")?;
    let text = without(env, &text, "<", ">")?;
    let mut out = Builder::new(env.budget);
    let all = text.as_str();
    for (i, word) in all.split(is_space).filter(|word| !word.is_empty()).enumerate() {
        if i > 0 {
            out.push(' ', By::Template)?;
        }
        let start = word.as_ptr() as usize - all.as_ptr() as usize;
        out.push_part(&text, start..start + word.len())?;
    }
    unescape(env, &out.finish())
}

fn without(env: Env<'_>, text: &Text, open: &str, close: &str) -> Res<Text> {
    // The parts left out are read, too.
    env.budget.bytes(text.len())?;
    let mut out = Builder::new(env.budget);
    let all = text.as_str();
    let mut at = 0;
    while let Some(start) = all.get(at..).and_then(|rest| rest.find(open)).map(|found| at + found) {
        let Some(end) = all.get(start..).and_then(|rest| rest.find(close)) else { break };
        out.push_part(text, at..start)?;
        at = start + end + close.len();
    }
    out.push_part(text, at..all.len())?;
    Ok(out.finish())
}

/// Replaces the most used entities, and numbered ones.
fn unescape(env: Env<'_>, text: &Text) -> Res<Text> {
    const NAMED: [(&str, char); 6] =
        [("amp", '&'), ("lt", '<'), ("gt", '>'), ("quot", '"'), ("apos", '\''), ("nbsp", '\u{a0}')];
    let mut out = Builder::new(env.budget);
    let all = text.as_str();
    let mut at = 0;
    while let Some(start) = all.get(at..).and_then(|rest| rest.find('&')).map(|found| at + found) {
        out.push_part(text, at..start)?;
        let rest = all.get(start + 1..).unwrap_or_default();
        let length = rest.bytes().take(12).take_while(|b| b.is_ascii_alphanumeric() || *b == b'#').count();
        let name = rest.get(..length).unwrap_or_default();
        let c = if !rest.get(length..).is_some_and(|rest| rest.starts_with(';')) {
            None
        } else if let Some(number) = name.strip_prefix('#') {
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            code.ok().and_then(char::from_u32)
        } else {
            NAMED.iter().find(|(other, _)| *other == name).map(|(_, c)| *c)
        };
        let end = if c.is_some() { start + length + 2 } else { start + 1 };
        match c {
            Some(c) => out.push(c, text.by_in(start..end))?,
            None => out.push_part(text, start..end)?,
        }
        at = end;
    }
    out.push_part(text, at..all.len())?;
    Ok(out.finish())
}

/// The entries of a dictionary as HTML attributes.
pub(super) fn xmlattr(env: Env<'_>, value: &Value, args: Args) -> Res<Text> {
    let [autospace] = args.bind("xmlattr", ["autospace"])?;
    let Value::Dict(dict) = value else {
        return Err(value.undefined_fault().unwrap_or_else(|| Fault::invalid("'xmlattr' needs a dictionary")));
    };
    env.budget.items(dict.map().len())?;
    let mut out = Builder::new(env.budget);
    let mut is_first = !flag(autospace.as_ref(), true);
    for (key, value) in dict.map().iter().filter(|(_, value)| !value.is_none() && !value.is_undefined()) {
        let Value::Text(name) = key else { return Err(Fault::invalid("'xmlattr' needs names that are strings")) };
        if name.as_str().contains(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>' | '=' | '\u{b}')) {
            return Err(Fault::invalid("invalid character in attribute name"));
        }
        if !is_first {
            out.push(' ', By::Template)?;
        }
        is_first = false;
        write_escaped(name, &mut out)?;
        out.push_str("=\"", By::Template)?;
        write_escaped(&repr::text_of(value, env.budget)?, &mut out)?;
        out.push('"', By::Template)?;
    }
    Ok(out.finish())
}

/// Encodes a text, or pairs, for an address.
pub(super) fn urlencode(env: Env<'_>, value: &Value) -> Res<Text> {
    let mut out = Builder::new(env.budget);
    let pairs = match value {
        Value::Dict(dict) => ops::items(&Value::View(dict.clone(), super::value::View::Items), env.budget)?,
        Value::Text(_) => return quote(&repr::text_of(value, env.budget)?, false, out),
        _ if ops::is_iterable(value) => ops::items(value, env.budget)?,
        _ => return quote(&repr::text_of(value, env.budget)?, false, out),
    };
    for (i, pair) in pairs.iter().enumerate() {
        let [key, value] = &*ops::items(pair, env.budget)? else {
            return Err(Fault::invalid("'urlencode' needs pairs"));
        };
        if i > 0 {
            out.push('&', By::Template)?;
        }
        for (part, before) in [(key, ""), (value, "=")] {
            out.push_str(before, By::Template)?;
            let quoted = quote(&repr::text_of(part, env.budget)?, true, Builder::new(env.budget))?;
            out.push_text(&quoted)?;
        }
    }
    Ok(out.finish())
}

fn quote(text: &Text, for_query: bool, mut out: Builder<'_>) -> Res<Text> {
    for (_, c, by) in text.marked_chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '~') || (c == '/' && !for_query) {
            out.push(c, by)?;
        } else if c == ' ' && for_query {
            out.push('+', by)?;
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                out.push_str(&format!("%{byte:02X}"), by)?;
            }
        }
    }
    Ok(out.finish())
}
