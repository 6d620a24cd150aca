//! From a template's text to tokens, by Jinja's rules for blanks around tags.

use super::fault::{Fault, Res};
use super::text::is_space;
use std::borrow::Cow;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token<'s> {
    Data(&'s str),
    /// `{{`
    PrintBegin,
    /// `}}`
    PrintEnd,
    /// `{%`
    TagBegin,
    /// `%}`
    TagEnd,
    Name(&'s str),
    Text(Cow<'s, str>),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

impl Token<'_> {
    /// The token's name in errors.
    pub fn describe(&self) -> String {
        match self {
            Self::Data(_) => "text of the template".into(),
            Self::PrintBegin => "'{{'".into(),
            Self::PrintEnd => "'}}'".into(),
            Self::TagBegin => "'{%'".into(),
            Self::TagEnd => "'%}'".into(),
            Self::Name(name) => format!("'{}'", name.chars().take(40).collect::<String>()),
            Self::Text(_) => "a string".into(),
            Self::Int(_) | Self::Float(_) => "a number".into(),
            Self::Op(op) => format!("'{op}'"),
            Self::End => "the end of the template".into(),
        }
    }
}

/// Longer operators come first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// The template with `\n` at the end of each line, but without a final one.
pub(super) fn normalize(source: &str) -> Cow<'_, str> {
    let source = if source.contains('\r') {
        Cow::Owned(source.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(source)
    };
    match source {
        Cow::Borrowed(text) => Cow::Borrowed(text.strip_suffix('\n').unwrap_or(text)),
        Cow::Owned(mut text) => {
            if text.ends_with('\n') {
                text.pop();
            }
            Cow::Owned(text)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    /// The text before this tag is done, and the tag begins.
    Tag(Tag),
    /// Inside of `{{ … }}` (`true`) or `{% … %}`.
    Code(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Print,
    Block,
    Comment,
    Raw,
}

/// Reads tokens one by one.
#[derive(Debug)]
pub(super) struct Lexer<'s> {
    rest: &'s str,
    line: u32,
    state: State,
    /// Whether the lexer is at the start of a line, as at the beginning.
    is_line_start: bool,
    /// Brackets that are open.
    open: Vec<&'static str>,
    /// Whether the last token was a dot: `a.1.2` has two integers.
    is_after_dot: bool,
}

impl<'s> Lexer<'s> {
    /// A lexer for a normalized text.
    pub fn new(source: &'s str) -> Self {
        Self { rest: source, line: 1, state: State::Data, is_line_start: true, open: Vec::new(), is_after_dot: false }
    }

    fn advance(&mut self, bytes: usize) -> &'s str {
        let (passed, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.line += passed.bytes().filter(|b| *b == b'\n').count() as u32;
        self.is_line_start = passed.ends_with('\n');
        self.rest = rest;
        passed
    }

    /// The next token, and its line.
    pub fn next(&mut self) -> Res<(u32, Token<'s>)> {
        loop {
            let line = self.line;
            let token = match self.state {
                State::Data => self.data()?,
                State::Tag(tag) => self.tag(tag)?,
                State::Code(is_print) => Some(self.code(is_print)?),
            };
            if let Some(token) = token {
                // Blanks before a token count as part of it.
                let line = if matches!(token, Token::Data(_)) { line } else { self.line };
                return Ok((line, token));
            }
        }
    }

    /// Text up to the next tag.
    fn data(&mut self) -> Res<Option<Token<'s>>> {
        if self.rest.is_empty() {
            return Ok(Some(Token::End));
        }
        let Some((at, tag)) = find_tag(self.rest) else {
            return Ok(Some(Token::Data(self.advance(self.rest.len()))));
        };
        self.state = State::Tag(tag);
        let sign = self.rest.as_bytes().get(at + 2).copied();
        let data = self.text_before(at, sign, tag != Tag::Print);
        Ok((!data.is_empty()).then_some(Token::Data(data)))
    }

    /// Consumes the text before a tag, and returns it without the blanks that the tag strips.
    fn text_before(&mut self, at: usize, sign: Option<u8>, may_strip: bool) -> &'s str {
        let was_line_start = self.is_line_start;
        let text = self.advance(at);
        match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            Some(b'+') => text,
            _ if may_strip => {
                let start = text.rfind('\n').map_or(0, |newline| newline + 1);
                let (before, blanks) = text.split_at(start);
                if (start > 0 || was_line_start) && blanks.chars().all(is_space) { before } else { text }
            }
            _ => text,
        }
    }

    /// Reads the beginning of a tag, or a whole comment.
    fn tag(&mut self, tag: Tag) -> Res<Option<Token<'s>>> {
        if tag == Tag::Raw {
            return self.raw().map(Some);
        }
        self.advance(2);
        if self.rest.starts_with(['-', '+']) {
            self.advance(1);
        }
        match tag {
            Tag::Print => self.state = State::Code(true),
            Tag::Block | Tag::Raw => self.state = State::Code(false),
            // As in Jinja, a comment or raw block needs no end if the template stops right after
            // its beginning.
            Tag::Comment if self.rest.is_empty() => {
                self.state = State::Data;
                return Ok(None);
            }
            Tag::Comment => {
                let end = self.rest.find("#}").ok_or_else(|| self.fail("a comment does not end"))?;
                let sign = end.checked_sub(1).and_then(|at| self.rest.as_bytes().get(at)).copied();
                self.advance(end + 2);
                self.after_tag(sign);
                self.state = State::Data;
                return Ok(None);
            }
        }
        Ok(Some(if tag == Tag::Print { Token::PrintBegin } else { Token::TagBegin }))
    }

    /// Skips the blanks that the end of a tag strips.
    fn after_tag(&mut self, sign: Option<u8>) {
        match sign {
            Some(b'-') => self.skip_blanks(),
            Some(b'+') => {}
            _ if self.rest.starts_with('\n') => {
                self.advance(1);
            }
            _ => {}
        }
    }

    fn skip_blanks(&mut self) {
        let blanks = self.rest.len() - self.rest.trim_start_matches(is_space).len();
        if blanks > 0 {
            self.advance(blanks);
        }
    }

    /// `{% raw %}` to `{% endraw %}`.
    fn raw(&mut self) -> Res<Token<'s>> {
        let (length, sign) = named_tag(self.rest, "raw").unwrap_or((0, None));
        self.advance(length);
        if sign == Some(b'-') {
            self.skip_blanks();
        }
        if self.rest.is_empty() {
            self.state = State::Data;
            return Ok(Token::End);
        }
        let mut from = 0;
        while let Some(at) = self.rest.get(from..).and_then(|rest| rest.find("{%")).map(|at| from + at) {
            let tag = self.rest.get(at..).unwrap_or_default();
            let Some((length, end_sign)) = named_tag(tag, "endraw") else {
                from = at + 2;
                continue;
            };
            let data = self.text_before(at, tag.as_bytes().get(2).copied(), true);
            self.advance(length);
            self.after_tag(end_sign);
            self.state = State::Data;
            return Ok(Token::Data(data));
        }
        Err(self.fail("a raw block does not end"))
    }

    fn fail(&self, message: impl std::fmt::Display) -> Fault {
        Fault::syntax(message).at(self.line)
    }

    /// A token inside of a tag.
    fn code(&mut self, is_print: bool) -> Res<Token<'s>> {
        loop {
            if self.open.is_empty()
                && let Some(end) = self.end_of_tag(is_print)
            {
                self.state = State::Data;
                return Ok(end);
            }
            let Some(first) = self.rest.chars().next() else { return Ok(Token::End) };
            if is_space(first) {
                self.skip_blanks();
                continue;
            }
            let is_after_dot = std::mem::take(&mut self.is_after_dot);
            if first.is_ascii_digit() {
                return self.number(!is_after_dot);
            }
            if first == '_' || first.is_alphabetic() {
                let length = self.rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(self.rest.len());
                return Ok(Token::Name(self.advance(length)));
            }
            if first == '"' || first == '\'' {
                return self.text(first);
            }
            return self.operator(first);
        }
    }

    fn end_of_tag(&mut self, is_print: bool) -> Option<Token<'s>> {
        let end = if is_print { "}}" } else { "%}" };
        let sign = self.rest.bytes().next().filter(|b| *b == b'-' || (*b == b'+' && !is_print));
        let after_sign = self.rest.get(usize::from(sign.is_some())..)?;
        if !after_sign.starts_with(end) {
            return None;
        }
        self.advance(usize::from(sign.is_some()) + 2);
        if !is_print || sign == Some(b'-') {
            self.after_tag(sign);
        }
        Some(if is_print { Token::PrintEnd } else { Token::TagEnd })
    }

    fn operator(&mut self, first: char) -> Res<Token<'s>> {
        let Some(op) = OPERATORS.into_iter().find(|op| self.rest.starts_with(op)) else {
            return Err(self.fail(format_args!("unexpected character {first:?}")));
        };
        match op {
            "(" | "[" | "{" => self.open.push(match op {
                "(" => ")",
                "[" => "]",
                _ => "}",
            }),
            ")" | "]" | "}" if self.open.pop() != Some(op) => {
                return Err(self.fail(format_args!("unexpected '{op}'")));
            }
            _ => {}
        }
        self.is_after_dot = op == ".";
        self.advance(op.len());
        Ok(Token::Op(op))
    }

    /// A number; a float only if `may_be_float`.
    fn number(&mut self, may_be_float: bool) -> Res<Token<'s>> {
        let bytes = self.rest.as_bytes();
        let radix = match bytes.get(1).map(u8::to_ascii_lowercase) {
            Some(b'x') if self.rest.starts_with('0') => 16,
            Some(b'o') if self.rest.starts_with('0') => 8,
            Some(b'b') if self.rest.starts_with('0') => 2,
            _ => 10,
        };
        if radix != 10 {
            let digits = digits_from(bytes, 2, radix, true);
            if digits > 2 {
                return self.integer(digits, 2, radix);
            }
        }
        let whole = digits_from(bytes, 0, 10, false);
        let mut end = whole;
        if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
            end = digits_from(bytes, end + 1, 10, false);
        }
        if bytes.get(end).is_some_and(|b| b.eq_ignore_ascii_case(&b'e')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
                end = digits_from(bytes, end + 1 + sign, 10, false);
            }
        }
        if end > whole && may_be_float {
            let text = self.advance(end).replace('_', "");
            return text.parse().map(Token::Float).map_err(|_| self.fail("a number cannot be read"));
        }
        // A decimal number does not begin with a zero, unless it is zero.
        let length = if self.rest.starts_with('0') {
            let zeros = self.rest.bytes().take(whole).take_while(|b| matches!(b, b'0' | b'_')).count();
            let zeros = self.rest.get(..zeros).unwrap_or_default();
            zeros.trim_end_matches('_').len()
        } else {
            whole
        };
        self.integer(length, 0, 10)
    }

    fn integer(&mut self, length: usize, prefix: usize, radix: u32) -> Res<Token<'s>> {
        let digits = self.advance(length).get(prefix..).unwrap_or_default().replace('_', "");
        i128::from_str_radix(&digits, radix).map(Token::Int).map_err(|_| self.fail("a number is too large"))
    }

    fn text(&mut self, quote: char) -> Res<Token<'s>> {
        let mut is_escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == quote && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            ends
        });
        let Some((end, _)) = end else { return Err(self.fail("a string does not end")) };
        let inside = self.rest.get(1..end).unwrap_or_default();
        let text = if inside.contains('\\') {
            Cow::Owned(unescape(inside).map_err(|message| self.fail(message))?)
        } else {
            Cow::Borrowed(inside)
        };
        self.advance(end + 1);
        Ok(Token::Text(text))
    }
}

/// The end of the digits that begin at `from`, with single `_` between them. A `_` may also come
/// first if `may_begin_with_blank`.
fn digits_from(bytes: &[u8], from: usize, radix: u32, may_begin_with_blank: bool) -> usize {
    let is_digit = |at: usize| bytes.get(at).is_some_and(|b| char::from(*b).is_digit(radix));
    let mut end = from;
    loop {
        if is_digit(end) {
            end += 1;
        } else if bytes.get(end) == Some(&b'_') && is_digit(end + 1) && (end > from || may_begin_with_blank) {
            end += 2;
        } else {
            return end;
        }
    }
}

/// The first tag of a text.
fn find_tag(text: &str) -> Option<(usize, Tag)> {
    let bytes = text.as_bytes();
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|b| *b == b'{')?;
        match bytes.get(at + 1) {
            Some(b'{') => return Some((at, Tag::Print)),
            Some(b'#') => return Some((at, Tag::Comment)),
            Some(b'%') => {
                let is_raw =
                    text.get(at..).is_some_and(|tag| named_tag(tag, "raw").is_some_and(|(_, sign)| sign != Some(b'+')));
                return Some((at, if is_raw { Tag::Raw } else { Tag::Block }));
            }
            _ => from = at + 1,
        }
    }
}

/// The length of a tag that contains only a name, and the sign at its end.
fn named_tag(text: &str, name: &str) -> Option<(usize, Option<u8>)> {
    let inside = text.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start_matches(is_space);
    let inside = inside.strip_prefix(name)?.trim_start_matches(is_space);
    let sign = inside.bytes().next().filter(|b| matches!(b, b'-' | b'+'));
    let end = inside.get(usize::from(sign.is_some())..)?.strip_prefix("%}")?;
    Some((text.len() - end.len(), sign))
}

/// Python's escapes.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(rest.get(..at).unwrap_or_default());
        let mut chars = rest.get(at + 1..).unwrap_or_default().chars();
        let Some(c) = chars.next() else { break };
        let mut after = chars.as_str();
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let digits = after.bytes().take(2).take_while(|b| matches!(b, b'0'..=b'7')).count();
                let octal = rest.get(at + 1..at + 2 + digits).unwrap_or_default();
                out.push(u32::from_str_radix(octal, 8).ok().and_then(char::from_u32).unwrap_or_default());
                after = after.get(digits..).unwrap_or_default();
            }
            'x' | 'u' | 'U' => {
                let length = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let unit = hex(after, length).ok_or_else(|| format!("truncated \\{c} escape"))?;
                after = after.get(length..).unwrap_or_default();
                let second = after.strip_prefix("\\u").and_then(|low| hex(low, 4));
                let code = match (unit, second) {
                    (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                        after = after.get(6..).unwrap_or_default();
                        0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
                    }
                    _ => unit,
                };
                out.push(char::from_u32(code).ok_or("an escape is no character")?);
            }
            'N' => return Err("names of characters are not known".into()),
            c => out.extend(['\\', c]),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn hex(text: &str, length: usize) -> Option<u32> {
    let digits = text.get(..length)?;
    if digits.bytes().all(|b| b.is_ascii_hexdigit()) { u32::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data unchanged, and tags as `<…>`.
    fn lex(source: &str) -> String {
        let source = normalize(source);
        let mut lexer = Lexer::new(&source);
        let mut out = String::new();
        loop {
            match lexer.next() {
                Ok((_, Token::End)) => return out,
                Ok((_, Token::Data(text))) => out.push_str(text),
                Ok((_, Token::TagBegin | Token::PrintBegin)) => out.push('<'),
                Ok((_, Token::TagEnd | Token::PrintEnd)) => out.push('>'),
                Ok((_, Token::Name(name))) => out.push_str(name),
                Ok((_, Token::Op(op))) => out.push_str(op),
                Ok((_, Token::Text(text))) => out.push_str(&text),
                Ok((_, Token::Int(i))) => out.push_str(&i.to_string()),
                Ok((_, Token::Float(f))) => out.push_str(&format!("{f:?}")),
                Err(_) => return out + "!",
            }
        }
    }

    #[test]
    fn blanks_around_tags_go_by_the_rules() {
        let cases = [
            ("a\n  {% x %}\nb\n", "a\n<x>b"),
            ("a\n  {%+ x +%}\nb\n\n", "a\n  <x>\nb\n"),
            ("a \n {%- x -%} \n b", "a<x>b"),
            ("a {% x %} b", "a <x> b"),
            (" {{ x }}\n b", " <x>\n b"),
            (" \n{{- x -}} \n b", "<x>b"),
            ("a\n {# c #}\n b", "a\n b"),
            ("a\n {#- c -#}\n b", "ab"),
            ("a\r\n{% x %}\r\nb\rc\r", "a\n<x>b\nc"),
            ("{% raw %} {{ x }}{% y %}\n {% endraw %}\nb", " {{ x }}{% y %}\nb"),
            ("{%- raw -%} \n z {%- endraw -%} \n b", "zb"),
            ("{% x %}  {% y %}", "<x>  <y>"),
            ("{% x %}\n  {% y %}", "<x><y>"),
            ("{{ {'a': {}} }}", "<{a:{}}>"),
            ("{{ 'a\\n\\x41\\u00e9\\q' '\r\n' }}", "<a\nAé\\q\n>"),
            ("{{ 1_0 0x_f 0b11 0o7 1.5 2e3 1_0.2_5e-1 00 012 }}", "<101537 1.52000.01.0250012>"),
            ("{# x", "!"),
            ("{{ (] }}", "<(!"),
            ("{{ 'x }}", "<!"),
        ];
        for (source, wanted) in cases {
            assert_eq!(lex(source), wanted.replace("101537 ", "101537"), "{source:?}");
        }
    }
}
