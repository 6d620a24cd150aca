//! The layout of a formatted field: digits, signs, widths.

use super::fault::{Fault, Res};
use super::text::{Builder, By, Text};

/// The widest field.
const MAX_WIDTH: usize = 10_000;

/// The layout of a field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub fill: char,
    /// `<`, `>`, `^` or `=`.
    pub align: Option<char>,
    /// `+`, `-` or a blank.
    pub sign: char,
    pub has_sign: bool,
    pub alternate: bool,
    pub width: usize,
    /// `,` or `_` between thousands.
    pub grouping: Option<char>,
    pub precision: Option<usize>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            fill: ' ',
            align: None,
            sign: '-',
            has_sign: false,
            alternate: false,
            width: 0,
            grouping: None,
            precision: None,
        }
    }
}

pub(super) fn number(digits: &str) -> Res<usize> {
    digits
        .parse()
        .ok()
        .filter(|width| *width <= MAX_WIDTH)
        .ok_or_else(|| Fault::invalid("a format asks for a field that is too wide"))
}

pub(super) fn prefix(kind: char, layout: Layout) -> &'static str {
    match kind {
        _ if !layout.alternate => "",
        'x' => "0x",
        'X' => "0X",
        'o' => "0o",
        'b' => "0b",
        _ => "",
    }
}

pub(super) fn integer_digits(i: i128, kind: char) -> String {
    let i = i.unsigned_abs();
    match kind {
        'x' => format!("{i:x}"),
        'X' => format!("{i:X}"),
        'o' => format!("{i:o}"),
        'b' => format!("{i:b}"),
        _ => i.to_string(),
    }
}

/// The digits of a float that is not negative.
pub(super) fn float_digits(f: f64, kind: char, precision: usize, alternate: bool) -> String {
    if !f.is_finite() {
        let text = if f.is_nan() { "nan" } else { "inf" };
        return if kind.is_uppercase() { text.to_uppercase() } else { text.into() };
    }
    let text = match kind.to_ascii_lowercase() {
        'f' => format!("{f:.precision$}"),
        'e' => scientific(f, precision),
        _ => {
            let precision = precision.max(1);
            let rounded = format!("{f:.*e}", precision - 1);
            let exponent: i32 = rounded.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
            let in_range = exponent >= -4 && i64::from(exponent) < precision as i64;
            let text = if in_range {
                let decimals = usize::try_from(precision as i64 - 1 - i64::from(exponent)).unwrap_or(0);
                format!("{f:.decimals$}")
            } else {
                scientific(f, precision - 1)
            };
            if alternate { text } else { without_zeros(&text) }
        }
    };
    let text = if alternate && precision == 0 && !text.contains('.') { text + "." } else { text };
    if kind.is_uppercase() { text.to_uppercase() } else { text }
}

fn scientific(f: f64, precision: usize) -> String {
    let text = format!("{f:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
}

/// Removes zeros at the end of the decimals.
fn without_zeros(text: &str) -> String {
    let (digits, exponent) = text.find('e').map_or((text, ""), |at| text.split_at(at));
    if !digits.contains('.') {
        return text.into();
    }
    format!("{}{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// Writes a text into a field.
pub(super) fn pad_text(text: &Text, layout: Layout, by: By, out: &mut Builder<'_>) -> Res<()> {
    let count = text.chars();
    let (end, count) = match layout.precision {
        Some(precision) if precision < count => (text.offset(precision), precision),
        _ => (text.len(), count),
    };
    let missing = layout.width.saturating_sub(count);
    let left = match layout.align {
        Some('<') => 0,
        Some('^') => missing / 2,
        _ => missing,
    };
    out.fill(layout.fill, left, by)?;
    match by {
        By::Caller => out.push_str(text.as_str().get(..end).unwrap_or_default(), by)?,
        By::Template => out.push_part(text, 0..end)?,
    }
    out.fill(layout.fill, missing - left, by)
}

/// Writes the digits of a number into a field, with its sign.
pub(super) fn pad_number(
    is_negative: bool,
    prefix: &str,
    digits: &str,
    layout: Layout,
    by: By,
    out: &mut Builder<'_>,
) -> Res<()> {
    let sign = match (is_negative, layout.sign) {
        (true, _) => "-",
        (_, '+') => "+",
        (_, ' ') => " ",
        _ => "",
    };
    let digits = grouped(digits, layout, sign.len() + prefix.len());
    let missing = layout.width.saturating_sub(sign.len() + prefix.len() + digits.len());
    let (left, inside) = match layout.align {
        Some('<') => (0, 0),
        Some('^') => (missing / 2, 0),
        Some('=') => (0, missing),
        _ => (missing, 0),
    };
    out.fill(layout.fill, left, by)?;
    out.push_str(sign, by)?;
    out.push_str(prefix, by)?;
    out.fill(layout.fill, inside, by)?;
    out.push_str(&digits, by)?;
    out.fill(layout.fill, missing - left - inside, by)
}

/// Digits with a mark between thousands. Zeros that fill the field get marks, too.
fn grouped(digits: &str, layout: Layout, before: usize) -> String {
    let Some(mark) = layout.grouping else { return digits.to_string() };
    let whole = digits.bytes().take_while(u8::is_ascii_alphanumeric).take_while(|b| *b != b'e').count();
    let (whole, rest) = digits.split_at_checked(whole).unwrap_or((digits, ""));
    let mut count = whole.len();
    if layout.fill == '0' && layout.align == Some('=') {
        let length = |count: usize| before + count + count.saturating_sub(1) / 3 + rest.len();
        while length(count) < layout.width {
            count += 1;
        }
    }
    let mut text = String::new();
    for (i, c) in std::iter::repeat_n('0', count - whole.len()).chain(whole.chars()).enumerate() {
        if i > 0 && (count - i).is_multiple_of(3) {
            text.push(mark);
        }
        text.push(c);
    }
    text + rest
}
