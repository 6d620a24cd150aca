//! JSON values: what tools and template variables are made of.

use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt;

/// How deeply arrays and objects may nest.
pub(super) const MAX_DEPTH: usize = 90;

/// A JSON value. Objects keep the order of their keys, since chat templates print them in it.
///
/// ```
/// use wavelm::chat::Json;
///
/// let tool = Json::parse(r#"{"name": "weather", "parameters": {"type": "object"}}"#)?;
/// assert_eq!(tool.get("name"), Some(&Json::from("weather")));
/// assert_eq!(tool.to_string(), r#"{"name":"weather","parameters":{"type":"object"}}"#);
/// # Ok::<(), wavelm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Json {
    /// `null`
    #[default]
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number that fits 64 bits.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object: keys, which should be distinct, and values.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Parses a JSON text.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) where the text is not JSON, or nests more than 90 levels deep.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parser = Parser { text, at: 0 };
        parser.blanks();
        let value = parser.value(0)?;
        parser.blanks();
        if parser.at < text.len() {
            return Err(parser.fail("there is something after the end of the value"));
        }
        Ok(value)
    }

    /// The value under `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Self::Object(entries) => entries.iter().find(|(other, _)| other == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// All strings and keys.
    pub(super) fn texts(&self) -> Vec<&str> {
        match self {
            Self::String(text) => vec![text],
            Self::Array(items) => items.iter().flat_map(Json::texts).collect(),
            Self::Object(entries) => {
                entries.iter().flat_map(|(key, value)| std::iter::once(key.as_str()).chain(value.texts())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_string())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Json {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl<T: Into<Json>> From<Vec<T>> for Json {
    fn from(items: Vec<T>) -> Self {
        Self::Array(items.into_iter().map(Into::into).collect())
    }
}

/// Compact JSON. Numbers that JSON lacks (NaN, infinities) become `null`.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(i) => write!(f, "{i}"),
            Self::Float(x) if x.is_finite() => write!(f, "{x:?}"),
            Self::Float(_) => f.write_str("null"),
            Self::String(text) => write_string(text, f),
            Self::Array(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Object(entries) => {
                f.write_str("{")?;
                for (i, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if i > 0 { "," } else { "" })?;
                    write_string(key, f)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_string(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn fail(&self, what: &str) -> Error {
        Error::invalid_input(format!("this is not valid JSON: {what}, at byte {}", self.at))
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn skip(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn value(&mut self, depth: usize) -> Result<Json> {
        if depth > MAX_DEPTH {
            return Err(self.fail("it nests too deeply"));
        }
        let rest = self.rest();
        for (word, value) in [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        match rest.bytes().next() {
            Some(b'"') => self.string().map(Json::String),
            Some(b'[') => self.array(depth),
            Some(b'{') => self.object(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => Err(self.fail("a value was expected")),
            None => Err(self.fail("it ends too early")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json> {
        self.skip('[');
        let mut items = Vec::new();
        self.blanks();
        while !self.skip(']') {
            if !items.is_empty() {
                if !self.skip(',') {
                    return Err(self.fail("',' or ']' was expected"));
                }
                self.blanks();
            }
            items.push(self.value(depth + 1)?);
            self.blanks();
        }
        Ok(Json::Array(items))
    }

    fn object(&mut self, depth: usize) -> Result<Json> {
        self.skip('{');
        let mut entries: Vec<(String, Json)> = Vec::new();
        let mut places = HashMap::new();
        self.blanks();
        while !self.skip('}') {
            if !entries.is_empty() {
                if !self.skip(',') {
                    return Err(self.fail("',' or '}' was expected"));
                }
                self.blanks();
            }
            if !self.rest().starts_with('"') {
                return Err(self.fail("a key was expected"));
            }
            let key = self.string()?;
            self.blanks();
            if !self.skip(':') {
                return Err(self.fail("':' was expected"));
            }
            self.blanks();
            let value = self.value(depth + 1)?;
            self.blanks();
            // As elsewhere, the last of equal keys counts.
            match places.get(&key).and_then(|place: &usize| entries.get_mut(*place)) {
                Some(entry) => entry.1 = value,
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, value));
                }
            }
        }
        Ok(Json::Object(entries))
    }

    fn number(&mut self) -> Result<Json> {
        let rest = self.rest();
        let len = rest.find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E')).unwrap_or(rest.len());
        let text = rest.get(..len).unwrap_or_default();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let fraction = digits.get(whole..).unwrap_or_default().strip_prefix('.');
        let wrong = whole == 0
            || (whole > 1 && digits.starts_with('0'))
            || fraction.is_some_and(|fraction| !fraction.starts_with(|c: char| c.is_ascii_digit()));
        let number = match text.parse() {
            Ok(i) => Some(Json::Int(i)),
            Err(_) => text.parse().ok().filter(|f: &f64| f.is_finite()).map(Json::Float),
        };
        match number {
            Some(number) if !wrong => {
                self.at += len;
                Ok(number)
            }
            _ => Err(self.fail("a number is malformed or too large")),
        }
    }

    fn string(&mut self) -> Result<String> {
        self.skip('"');
        let mut value = String::new();
        loop {
            let rest = self.rest();
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ').unwrap_or(rest.len());
            value.push_str(rest.get(..plain).unwrap_or_default());
            self.at += plain;
            if self.skip('"') {
                return Ok(value);
            }
            if !self.skip('\\') {
                return Err(self.fail("a string is not closed, or holds a control character"));
            }
            let escape = self.rest().chars().next().ok_or_else(|| self.fail("it ends too early"))?;
            self.at += escape.len_utf8();
            value.push(match escape {
                '"' | '\\' | '/' => escape,
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => self.unicode_escape()?,
                _ => return Err(self.fail("a string has an unknown escape")),
            });
        }
    }

    /// The character of `\uXXXX`, perhaps followed by the second half of a surrogate pair. A lone half, which no Rust
    /// string can hold, becomes U+FFFD.
    fn unicode_escape(&mut self) -> Result<char> {
        let first = self.code_unit()?;
        if !(0xd800..0xdc00).contains(&first) || !self.rest().starts_with("\\u") {
            return Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let back = self.at;
        self.at += 2;
        let second = self.code_unit()?;
        if !(0xdc00..0xe000).contains(&second) {
            self.at = back;
            return Ok(char::REPLACEMENT_CHARACTER);
        }
        let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn code_unit(&mut self) -> Result<u32> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let unit = unit.ok_or_else(|| self.fail("\\u needs four hexadecimal digits"))?;
        self.at += 4;
        Ok(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let text = r#"{"b":[1,-2,2.5,1e300,null,true,false],"a":{"é\n\u0001\"\\":"😀"},"":[]}"#;
        assert_eq!(Json::parse(text).unwrap().to_string(), text);
        assert_eq!(Json::parse(" [ ] ").unwrap(), Json::Array(vec![]));
        assert_eq!(Json::parse(r#""\ud83d\ude00\ud83dx\/""#).unwrap(), Json::from("😀\u{fffd}x/"));
        assert_eq!(Json::parse(r#"{"a":1,"b":2,"a":3}"#).unwrap().to_string(), r#"{"a":3,"b":2}"#);
        assert_eq!(Json::parse("12345678901234567890").unwrap(), Json::Float(12345678901234567890.0));
    }

    #[test]
    fn what_is_not_json_is_an_error() {
        for text in [
            "",
            " ",
            "nul",
            "[1,]",
            "[1 2]",
            "{\"a\" 1}",
            "{a:1}",
            "{\"a\":1,}",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "1e",
            "1e999",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"abc",
            "[1] 2",
            "[",
            "{\"a\":",
            "\"\\",
            "\"\\u12",
        ] {
            assert!(Json::parse(text).is_err(), "{text:?}");
        }
        assert!(Json::parse(&"[".repeat(100_000)).unwrap_err().to_string().contains("too deeply"));
    }
}
