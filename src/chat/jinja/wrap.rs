//! The filter `wordwrap`: Python's `textwrap`.

use super::args::{Args, flag, integer};
use super::eval::Env;
use super::fault::{Fault, Res};
use super::repr;
use super::strings;
use super::text::{Builder, By, Text};
use super::value::Value;
use crate::memory;
use std::ops::Range;

struct Style {
    width: usize,
    break_words: bool,
    break_hyphens: bool,
    newline: Text,
}

pub(super) fn wordwrap(env: Env<'_>, text: &Text, args: Args) -> Res<Text> {
    let [width, break_words, newline, break_hyphens] =
        args.bind("wordwrap", ["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    if text.is_empty() {
        return Ok(text.clone());
    }
    let width = match width {
        Some(Value::None(_)) => return Err(Fault::invalid("'wordwrap' needs a width")),
        width => integer(width.as_ref(), "wordwrap")?.unwrap_or(79),
    };
    let newline = match newline {
        Some(newline) if !newline.is_none() => repr::text_of(&newline, env.budget)?,
        _ => Text::from_string("\n".to_string(), By::Template),
    };
    let style = Style {
        width: usize::try_from(width).ok().filter(|width| *width > 0).ok_or_else(|| Fault::invalid("invalid width"))?,
        break_words: flag(break_words.as_ref(), true),
        break_hyphens: flag(break_hyphens.as_ref(), true),
        newline,
    };
    let mut out = Builder::new(env.budget);
    for (i, line) in strings::lines(env, text, false)?.iter().enumerate() {
        if i > 0 {
            out.push_text(&style.newline)?;
        }
        wrap_line(env, line, &style, &mut out)?;
    }
    Ok(out.finish())
}

fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{b}'
}

/// Splits a line into words and the blanks between them; words also split after hyphens between
/// letters.
fn chunks(env: Env<'_>, line: &Text, break_hyphens: bool) -> Res<Vec<Range<usize>>> {
    env.budget.items(line.chars())?;
    env.budget.memory(line.chars().saturating_mul(2 * size_of::<Range<usize>>()))?;
    let chars = memory::collected(line.as_str().char_indices(), "the characters of a line")?;
    let mut all = Vec::new();
    let mut start = 0;
    let at = |i: usize| chars.get(i).map(|(_, c)| *c);
    let is_word = |c: Option<char>| {
        c.is_some_and(|c| c == '_' || c.is_alphanumeric() || matches!(c, '!' | '"' | '\'' | '&' | '.' | ',' | '?'))
    };
    let is_letter = |c: Option<char>| c.is_some_and(|c| c == '_' || c.is_alphabetic());
    for (i, (offset, c)) in chars.iter().enumerate() {
        let next = at(i + 1);
        let after_letters = i > 1
            && is_word(at(i - 1))
            && (is_word(at(i - 2)) || (i > 2 && at(i - 2) == Some('-') && is_word(at(i - 3))));
        let before_letters =
            is_letter(next) && (is_letter(at(i + 2)) || (at(i + 2) == Some('-') && is_letter(at(i + 3))));
        let ends = next.is_none_or(|next| is_blank(next) != is_blank(*c))
            || (break_hyphens && *c == '-' && after_letters && before_letters);
        if ends {
            let end = offset + c.len_utf8();
            memory::push(&mut all, start..end, "the words of a line")?;
            start = end;
        }
    }
    Ok(all)
}

fn wrap_line(env: Env<'_>, line: &Text, style: &Style, out: &mut Builder<'_>) -> Res<()> {
    let text = line.as_str();
    let part = |range: &Range<usize>| text.get(range.clone()).unwrap_or_default();
    let is_blank_chunk = |range: &Range<usize>| part(range).chars().all(is_blank);
    let mut rest = chunks(env, line, style.break_hyphens)?;
    rest.reverse();
    let mut is_first = true;
    while let Some(next) = rest.last() {
        env.budget.steps(1)?;
        if !is_first && is_blank_chunk(next) {
            rest.pop();
        }
        let mut current: Vec<Range<usize>> = Vec::new();
        let mut length = 0;
        while let Some(next) = rest.last() {
            env.budget.bytes(next.len())?;
            let count = part(next).chars().count();
            if length + count > style.width {
                break;
            }
            length += count;
            memory::push(&mut current, next.clone(), "the words of a line")?;
            rest.pop();
        }
        if let Some(next) = rest.last().cloned().filter(|next| part(next).chars().count() > style.width) {
            if style.break_words {
                rest.pop();
                let middle = next.start + broken(part(&next), style.width - length, style.break_hyphens);
                memory::push(&mut current, next.start..middle, "the words of a line")?;
                if middle < next.end {
                    memory::push(&mut rest, middle..next.end, "the words of a line")?;
                }
            } else if current.is_empty() {
                rest.pop();
                memory::push(&mut current, next, "the words of a line")?;
            }
        }
        if current.last().is_some_and(is_blank_chunk) {
            current.pop();
        }
        if current.is_empty() {
            continue;
        }
        if !is_first {
            out.push_text(&style.newline)?;
        }
        is_first = false;
        for chunk in current {
            out.push_part(line, chunk)?;
        }
    }
    Ok(())
}

/// How many bytes of a word fit on a line with room for `room` characters.
fn broken(word: &str, room: usize, break_hyphens: bool) -> usize {
    let end = word.char_indices().nth(room).map_or(word.len(), |(at, _)| at);
    let before = word.get(..end).unwrap_or_default();
    match before.rfind('-').filter(|_| break_hyphens) {
        Some(at) if before.get(..at).is_some_and(|part| part.contains(|c| c != '-')) => at + 1,
        _ => end,
    }
}
