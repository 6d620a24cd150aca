//! Formatting: `'…' % values`, and `'…'.format(values)`.
//!
//! The caller counts as the writer of a formatted field if the caller wrote the field or its value.

use super::args::Args;
use super::attributes;
use super::budget::Budget;
use super::fault::{Fault, Res};
use super::layout::{Layout, float_digits, integer_digits, number, pad_number, pad_text, prefix};
use super::repr;
use super::text::{Builder, By, Text};
use super::value::Value;

fn wrong(message: impl std::fmt::Display) -> Fault {
    Fault::invalid(message)
}

/// `text % values`
pub(super) fn percent(text: &Text, values: &Value, budget: &Budget) -> Res<Text> {
    // This pays for reading flags, which write nothing.
    budget.bytes(text.len())?;
    let all = text.as_str();
    let mut out = Builder::new(budget);
    let mut fields = Fields { values, next: 0, is_mapping: matches!(values, Value::Dict(_)) };
    let mut at = 0;
    while let Some(start) = all.get(at..).and_then(|rest| rest.find('%')).map(|found| at + found) {
        out.push_part(text, at..start)?;
        budget.steps(4)?;
        let mut end = start + 1;
        let mut key = None;
        if all.get(end..).is_some_and(|rest| rest.starts_with('(')) {
            let inside = all.get(end + 1..).unwrap_or_default();
            let close = closing(inside).ok_or_else(|| wrong("incomplete format key"))?;
            key = Some(text.slice(end + 1..end + 1 + close, budget)?);
            end += close + 2;
        }
        let mut layout = Layout::default();
        let flag = |c: u8, end: usize| all.as_bytes().get(end) == Some(&c);
        let mut zero = false;
        loop {
            match all.as_bytes().get(end) {
                Some(b'-') => layout.align = Some('<'),
                Some(b'+') => layout.sign = '+',
                Some(b' ') if layout.sign != '+' => layout.sign = ' ',
                Some(b' ') => {}
                Some(b'#') => layout.alternate = true,
                Some(b'0') => zero = true,
                _ => break,
            }
            end += 1;
        }
        if flag(b'*', end) {
            let width = fields.next(None, budget)?;
            let width = width.as_int().ok_or_else(|| wrong("* wants int"))?;
            if width < 0 {
                layout.align = Some('<');
            }
            layout.width = number(&width.unsigned_abs().to_string())?;
            end += 1;
        } else {
            let digits = digits_at(all, end);
            layout.width = if digits.is_empty() { 0 } else { number(digits)? };
            end += digits.len();
        }
        if flag(b'.', end) {
            end += 1;
            if flag(b'*', end) {
                let precision = fields.next(None, budget)?;
                let precision = precision.as_int().ok_or_else(|| wrong("* wants int"))?.max(0);
                layout.precision = Some(number(&precision.to_string())?);
                end += 1;
            } else {
                let digits = digits_at(all, end);
                layout.precision = Some(if digits.is_empty() { 0 } else { number(digits)? });
                end += digits.len();
            }
        }
        while matches!(all.as_bytes().get(end), Some(b'h' | b'l' | b'L')) {
            end += 1;
        }
        let kind = all.get(end..).and_then(|rest| rest.chars().next()).ok_or_else(|| wrong("incomplete format"))?;
        end += kind.len_utf8();
        let by = text.by_in(start..end);
        if kind == '%' {
            out.push('%', by)?;
        } else {
            let value = fields.next(key.as_ref(), budget)?;
            if zero && layout.align.is_none() && !matches!(kind, 's' | 'r' | 'a' | 'c') {
                (layout.fill, layout.align) = ('0', Some('='));
            }
            percent_field(&value, kind, layout, by, &mut out)?;
        }
        at = end;
    }
    out.push_part(text, at..all.len())?;
    fields.check_all_used()?;
    Ok(out.finish())
}

/// The end of a key in brackets; the key may contain brackets itself.
fn closing(inside: &str) -> Option<usize> {
    let mut open = 0;
    inside.char_indices().find_map(|(at, c)| {
        match c {
            '(' => open += 1,
            ')' if open == 0 => return Some(at),
            ')' => open -= 1,
            _ => {}
        }
        None
    })
}

fn digits_at(text: &str, at: usize) -> &str {
    let rest = text.get(at..).unwrap_or_default();
    rest.get(..rest.bytes().take_while(u8::is_ascii_digit).count()).unwrap_or_default()
}

/// The values of a `%`.
struct Fields<'v> {
    values: &'v Value,
    next: usize,
    is_mapping: bool,
}

impl Fields<'_> {
    fn next(&mut self, key: Option<&Text>, budget: &Budget) -> Res<Value> {
        if let Some(key) = key {
            let Value::Dict(dict) = self.values else { return Err(wrong("format requires a mapping")) };
            let found = dict.map().get_str(key.as_str(), budget)?.cloned();
            return found.ok_or_else(|| wrong(format_args!("the format's key {:?} is missing", shown(key.as_str()))));
        }
        let at = self.next;
        self.next += 1;
        let value = match self.values {
            Value::Tuple(tuple) => tuple.items.get(at).cloned(),
            value => (at == 0).then(|| value.clone()),
        };
        value.ok_or_else(|| wrong("not enough arguments for format string"))
    }

    fn check_all_used(&self) -> Res<()> {
        let is_rest = match self.values {
            Value::Tuple(tuple) => self.next < tuple.items.len(),
            // Python treats these as mappings.
            Value::List(_) | Value::Undefined(_) | Value::Range(_) => false,
            _ => self.next == 0 && !self.is_mapping,
        };
        if is_rest { Err(wrong("not all arguments converted during string formatting")) } else { Ok(()) }
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn percent_field(value: &Value, kind: char, layout: Layout, by: By, out: &mut Builder<'_>) -> Res<()> {
    let budget = out.budget();
    let with_value = by.with(value.by());
    match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' => repr::text_of(value, budget)?,
                'r' => repr::repr_of(value, budget)?,
                _ => repr::ascii_of(value, budget)?,
            };
            pad_text(&text, layout, by, out)
        }
        'c' => {
            let c = match value {
                Value::Text(text) if text.chars() == 1 => text.as_str().chars().next(),
                _ => value.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?)),
            };
            let c = c.ok_or_else(|| wrong("%c requires int or char"))?;
            pad_text(&Text::new(c.encode_utf8(&mut [0; 4]), with_value, budget)?, layout, by, out)
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let whole = match value {
                Value::Float(f, _) if f.is_finite() && f.abs() < 1e38 && matches!(kind, 'd' | 'i' | 'u') => {
                    Some(f.trunc() as i128)
                }
                _ => value.as_int(),
            };
            let i = whole.ok_or_else(|| {
                value.undefined_fault().unwrap_or_else(|| {
                    wrong(format_args!("%{kind} format: a number is required, not {}", value.type_name()))
                })
            })?;
            let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
            let mut digits = integer_digits(i, kind);
            if let Some(precision) = layout.precision {
                digits = format!("{digits:0>precision$}");
            }
            pad_number(i < 0, prefix(kind, layout), &digits, layout, with_value, out)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let f = value
                .as_float()
                .ok_or_else(|| wrong(format_args!("must be real number, not {}", value.type_name())))?;
            let digits = float_digits(f.abs(), kind, layout.precision.unwrap_or(6), layout.alternate);
            let layout = if f.is_finite() { layout } else { Layout { fill: ' ', ..layout } };
            pad_number(f.is_sign_negative() && !f.is_nan(), "", &digits, layout, with_value, out)
        }
        _ => Err(wrong(format_args!("unsupported format character {kind:?}"))),
    }
}

/// `text.format(…)`
pub(super) fn braces(text: &Text, args: Args, budget: &Budget) -> Res<Text> {
    let mut out = Builder::new(budget);
    let mut state = Braces { args: &args, next: Some(0) };
    state.write(text, 0, &mut out)?;
    Ok(out.finish())
}

struct Braces<'a> {
    args: &'a Args,
    /// The number of the next field without a name; `None` once a field had a number.
    next: Option<usize>,
}

impl Braces<'_> {
    fn write(&mut self, text: &Text, depth: u32, out: &mut Builder<'_>) -> Res<()> {
        if depth > 1 {
            return Err(wrong("Max string recursion exceeded"));
        }
        let all = text.as_str();
        let mut at = 0;
        while let Some(start) = all.get(at..).and_then(|rest| rest.find(['{', '}'])).map(|found| at + found) {
            out.push_part(text, at..start)?;
            out.budget().steps(4)?;
            let rest = all.get(start..).unwrap_or_default();
            if rest.starts_with("{{") || rest.starts_with("}}") {
                out.push_part(text, start..start + 1)?;
                at = start + 2;
            } else if rest.starts_with('}') {
                return Err(wrong("Single '}' encountered in format string"));
            } else {
                let end = field_end(rest).ok_or_else(|| wrong("expected '}' before end of string"))?;
                self.field(text, start + 1..start + end, depth, out)?;
                at = start + end + 1;
            }
        }
        out.push_part(text, at..all.len())
    }

    /// A field: `name!conversion:spec`.
    fn field(&mut self, text: &Text, range: std::ops::Range<usize>, depth: u32, out: &mut Builder<'_>) -> Res<()> {
        let budget = out.budget();
        let by = text.by_in(range.start - 1..range.end + 1);
        let field = text.as_str().get(range.clone()).unwrap_or_default();
        let name_end = name_end(field);
        let (name, rest) = field.split_at_checked(name_end).unwrap_or((field, ""));
        let mut value = self.value(name, by, budget)?;
        let mut spec_start = range.start + name_end;
        let mut rest = rest;
        if let Some(after) = rest.strip_prefix('!') {
            let mut chars = after.chars();
            value = match chars.next() {
                Some('s') => Value::Text(repr::text_of(&value, budget)?),
                Some('r') => Value::Text(repr::repr_of(&value, budget)?),
                Some('a') => Value::Text(repr::ascii_of(&value, budget)?),
                _ => return Err(wrong("unknown conversion specifier")),
            };
            rest = chars.as_str();
            spec_start += 2;
        }
        let mut spec = Builder::new(budget);
        if rest.starts_with(':') {
            self.write(&text.slice(spec_start + 1..range.end, budget)?, depth + 1, &mut spec)?;
        } else if !rest.is_empty() {
            return Err(wrong("expected ':' after conversion specifier"));
        }
        let spec = spec.finish();
        format_value(&value, spec.as_str(), by.with(spec.by()), out)
    }

    fn value(&mut self, name: &str, by: By, budget: &Budget) -> Res<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let number = if first.is_empty() {
            let number = self.next.ok_or_else(|| wrong("cannot switch from manual to automatic field numbering"))?;
            self.next = Some(number + 1);
            Some(number)
        } else if first.bytes().all(|b| b.is_ascii_digit()) {
            if self.next.is_some_and(|next| next > 0) {
                return Err(wrong("cannot switch from automatic to manual field numbering"));
            }
            self.next = None;
            Some(first.parse().unwrap_or(usize::MAX))
        } else {
            None
        };
        let value = match number {
            Some(number) => self.args.positional.get(number).cloned(),
            None => {
                budget.items(self.args.named.len())?;
                self.args.named.iter().find(|(other, _)| other.as_str() == Some(first)).map(|(_, value)| value.clone())
            }
        };
        let mut value = value.ok_or_else(|| wrong(format_args!("format has no argument {:?}", shown(first))))?;
        while !rest.is_empty() {
            budget.steps(1)?;
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let (name, after) = after.split_at(end);
                value = attributes::attribute(&value, name, budget)?;
                rest = after;
            } else if let Some((index, after)) = rest.strip_prefix('[').and_then(|after| after.split_once(']')) {
                let index = match index.parse() {
                    Ok(number) if index.bytes().all(|b| b.is_ascii_digit()) => Value::Int(number, by),
                    _ => Value::Text(Text::new(index, by, budget)?),
                };
                value = attributes::item(&value, &index, budget)?;
                rest = after;
            } else {
                return Err(wrong("a format's field is broken"));
            }
        }
        Ok(value)
    }
}

/// The end of a field's name: at `!` or `:` outside of brackets.
fn name_end(field: &str) -> usize {
    let mut in_brackets = false;
    for (at, c) in field.char_indices() {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '!' | ':' if !in_brackets => return at,
            _ => {}
        }
    }
    field.len()
}

/// The position of the bracket that closes the one at the start of `rest`.
fn field_end(rest: &str) -> Option<usize> {
    let mut open = 0;
    rest.char_indices().find_map(|(at, c)| {
        match c {
            '{' => open += 1,
            '}' if open == 1 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
        None
    })
}

/// Python's `format(value, spec)`.
fn format_value(value: &Value, spec: &str, by: By, out: &mut Builder<'_>) -> Res<()> {
    let budget = out.budget();
    if spec.is_empty() {
        return out.push_text_by(&repr::text_of(value, budget)?, by);
    }
    let (layout, kind) = parse_spec(spec)?;
    let with_value = by.with(value.by());
    let unknown =
        || wrong(format_args!("unknown format {:?} for an object of type '{}'", shown(spec), value.type_name()));
    match value {
        Value::Text(text) => {
            if !matches!(kind, None | Some('s'))
                || layout.align == Some('=')
                || layout.grouping.is_some()
                || layout.sign != '-'
            {
                return Err(unknown());
            }
            let align = layout.align.or(Some('<'));
            pad_text(text, Layout { align, ..layout }, by, out)
        }
        Value::Int(..) | Value::Bool(..) if matches!(kind, None | Some('d' | 'n' | 'x' | 'X' | 'o' | 'b' | 'c')) => {
            if layout.precision.is_some() {
                return Err(unknown());
            }
            let i = value.as_int().unwrap_or_default();
            if kind == Some('c') {
                if layout.has_sign || layout.alternate || layout.grouping.is_some() {
                    return Err(wrong("a character has no sign, no alternate form and no groups"));
                }
                let c = u32::try_from(i).ok().and_then(char::from_u32).ok_or_else(unknown)?;
                let align = layout.align.or(Some('<'));
                let text = Text::new(c.encode_utf8(&mut [0; 4]), with_value, budget)?;
                return pad_text(&text, Layout { align, ..layout }, by, out);
            }
            let kind = kind.unwrap_or('d');
            pad_number(i < 0, prefix(kind, layout), &integer_digits(i, kind), layout, with_value, out)
        }
        Value::Int(..) | Value::Bool(..) | Value::Float(..) => {
            let f = value.as_float().unwrap_or_default();
            let digits = match kind {
                None => match layout.precision {
                    None => repr::float_repr(f.abs()),
                    Some(precision) => {
                        let digits = float_digits(f.abs(), 'g', precision, layout.alternate);
                        if digits.contains(['.', 'e', 'n', 'i']) { digits } else { digits + ".0" }
                    }
                },
                Some('%') => float_digits(f.abs() * 100.0, 'f', layout.precision.unwrap_or(6), layout.alternate) + "%",
                Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n')) => {
                    let kind = if kind == 'n' { 'g' } else { kind };
                    float_digits(f.abs(), kind, layout.precision.unwrap_or(6), layout.alternate)
                }
                _ => return Err(unknown()),
            };
            pad_number(f.is_sign_negative() && !f.is_nan(), "", &digits, layout, with_value, out)
        }
        _ => Err(value.undefined_fault().unwrap_or_else(unknown)),
    }
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
fn parse_spec(spec: &str) -> Res<(Layout, Option<char>)> {
    let mut layout = Layout::default();
    let mut rest = spec;
    let is_align = |c: Option<char>| c.filter(|c| matches!(c, '<' | '>' | '^' | '='));
    let mut chars = spec.chars();
    let (first, second) = (chars.next(), chars.next());
    if let (Some(fill), Some(align)) = (first, is_align(second)) {
        (layout.fill, layout.align) = (fill, Some(align));
        rest = chars.as_str();
    } else if let Some(align) = is_align(first) {
        layout.align = Some(align);
        rest = rest.get(1..).unwrap_or_default();
    }
    if let Some(sign) = rest.chars().next().filter(|c| matches!(c, '+' | '-' | ' ')) {
        (layout.sign, layout.has_sign) = (sign, true);
        rest = rest.get(1..).unwrap_or_default();
    }
    if let Some(after) = rest.strip_prefix('#') {
        layout.alternate = true;
        rest = after;
    }
    if rest.starts_with('0') && layout.align.is_none() {
        (layout.fill, layout.align) = ('0', Some('='));
    }
    let digits = digits_at(rest, 0);
    if !digits.is_empty() {
        layout.width = number(digits)?;
        rest = rest.get(digits.len()..).unwrap_or_default();
    }
    if let Some(grouping) = rest.chars().next().filter(|c| matches!(c, ',' | '_')) {
        layout.grouping = Some(grouping);
        rest = rest.get(1..).unwrap_or_default();
    }
    if let Some(after) = rest.strip_prefix('.') {
        let digits = digits_at(after, 0);
        if digits.is_empty() {
            return Err(wrong("Format specifier missing precision"));
        }
        layout.precision = Some(number(digits)?);
        rest = after.get(digits.len()..).unwrap_or_default();
    }
    let mut chars = rest.chars();
    match (chars.next(), chars.next()) {
        (kind, None) => Ok((layout, kind)),
        _ => Err(wrong("Invalid format specifier")),
    }
}
