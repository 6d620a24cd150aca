//! Arithmetic, signs, items and slices.

use super::ast::MathOp;
use super::budget::Budget;
use super::fault::{Fault, Res};
use super::format;
use super::ops;
use super::text::{Builder, By, Text};
use super::value::{Range, Value};
use crate::memory;

/// An operator between two values.
pub(super) fn math(op: MathOp, a: &Value, b: &Value, budget: &Budget) -> Res<Value> {
    if let Some(fault) = b.undefined_fault() {
        // Formatting with a string on the left turns an undefined value into nothing.
        if !(op == MathOp::Rem && matches!(a, Value::Text(_))) {
            return Err(a.undefined_fault().unwrap_or(fault));
        }
    }
    if let Some(fault) = a.undefined_fault() {
        return Err(fault);
    }
    let by = || a.by().with(b.by());
    match (op, a, b) {
        (MathOp::Rem, Value::Text(text), _) => return format::percent(text, b, budget).map(Value::Text),
        (MathOp::Add, Value::Text(a), Value::Text(b)) => {
            let mut out = Builder::new(budget);
            out.push_text(a)?;
            out.push_text(b)?;
            return Ok(Value::Text(out.finish()));
        }
        (MathOp::Add, Value::List(a), Value::List(b)) => {
            return Value::list_by(joined(&a.items(), &b.items(), budget)?, a.by.with(b.by));
        }
        (MathOp::Add, Value::Tuple(a), Value::Tuple(b)) => return Value::tuple(joined(&a.items, &b.items, budget)?),
        (MathOp::Mul, Value::Text(text), _) if b.as_int().is_some() => return repeat_text(text, b, budget),
        (MathOp::Mul, _, Value::Text(text)) if a.as_int().is_some() => return repeat_text(text, a, budget),
        (MathOp::Mul, Value::List(list), times) | (MathOp::Mul, times, Value::List(list))
            if times.as_int().is_some() =>
        {
            return Value::list_by(repeated(&list.items(), times, budget)?, list.by);
        }
        (MathOp::Mul, Value::Tuple(tuple), times) | (MathOp::Mul, times, Value::Tuple(tuple))
            if times.as_int().is_some() =>
        {
            return Value::tuple(repeated(&tuple.items, times, budget)?);
        }
        _ => {}
    }
    match (a.as_int(), b.as_int(), a.as_float(), b.as_float()) {
        (Some(a), Some(b), ..) if op != MathOp::Div && !(op == MathOp::Pow && b < 0) => {
            integers(op, a, b).map(|i| Value::Int(i, by()))
        }
        (_, _, Some(a), Some(b)) => floats(op, a, b).map(|f| Value::Float(f, by())),
        _ => {
            let sign = match op {
                MathOp::Add => "+",
                MathOp::Sub => "-",
                MathOp::Mul => "*",
                MathOp::Div => "/",
                MathOp::FloorDiv => "//",
                MathOp::Rem => "%",
                MathOp::Pow => "**",
            };
            let (a, b) = (a.type_name(), b.type_name());
            Err(Fault::invalid(format_args!("unsupported operand types for {sign}: '{a}' and '{b}'")))
        }
    }
}

fn too_large() -> Fault {
    Fault::invalid("a number is too large")
}

fn division_by_zero() -> Fault {
    Fault::invalid("division by zero")
}

fn integers(op: MathOp, a: i128, b: i128) -> Res<i128> {
    let result = match op {
        MathOp::Add => a.checked_add(b),
        MathOp::Sub => a.checked_sub(b),
        MathOp::Mul => a.checked_mul(b),
        MathOp::FloorDiv | MathOp::Rem | MathOp::Div => {
            let (quotient, rest) = match (a.checked_div(b), a.checked_rem(b)) {
                _ if b == 0 => return Err(division_by_zero()),
                (Some(quotient), Some(rest)) => (quotient, rest),
                _ => return Err(too_large()),
            };
            // Python rounds down, and gives the remainder the divisor's sign.
            let is_off = rest != 0 && (rest < 0) != (b < 0);
            Some(match op {
                MathOp::Rem if is_off => rest + b,
                MathOp::Rem => rest,
                _ if is_off => quotient - 1,
                _ => quotient,
            })
        }
        MathOp::Pow => match a {
            0 | 1 => Some(if b == 0 { 1 } else { a }),
            -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        },
    };
    result.ok_or_else(too_large)
}

fn floats(op: MathOp, a: f64, b: f64) -> Res<f64> {
    if b == 0.0 && matches!(op, MathOp::Div | MathOp::FloorDiv | MathOp::Rem) {
        return Err(division_by_zero());
    }
    Ok(match op {
        MathOp::Add => a + b,
        MathOp::Sub => a - b,
        MathOp::Mul => a * b,
        MathOp::Div => a / b,
        MathOp::FloorDiv => divided(a, b).0,
        MathOp::Rem => divided(a, b).1,
        MathOp::Pow => {
            if a == 0.0 && b < 0.0 {
                return Err(division_by_zero());
            }
            let power = a.powf(b);
            if power.is_nan() && !a.is_nan() && !b.is_nan() {
                return Err(Fault::invalid("a root of a negative number"));
            }
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(too_large());
            }
            power
        }
    })
}

/// Python's `divmod` of floats.
fn divided(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0f64.copysign(b);
    } else if (b < 0.0) != (rest < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0f64.copysign(a / b), rest);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

fn joined(a: &[Value], b: &[Value], budget: &Budget) -> Res<Vec<Value>> {
    let len = a.len().saturating_add(b.len());
    budget.values(len)?;
    let mut all = memory::with_room(len, "a list of a chat template")?;
    all.extend_from_slice(a);
    all.extend_from_slice(b);
    Ok(all)
}

/// How often to repeat something: zero times for negative numbers.
fn times(value: &Value) -> usize {
    value.as_int().map_or(0, |times| usize::try_from(times.max(0)).unwrap_or(usize::MAX))
}

fn repeated(items: &[Value], count: &Value, budget: &Budget) -> Res<Vec<Value>> {
    let len = items.len().saturating_mul(times(count));
    budget.values(len)?;
    let mut all = memory::with_room(len, "a list of a chat template")?;
    while all.len() < len {
        all.extend_from_slice(items);
    }
    Ok(all)
}

fn repeat_text(text: &Text, count: &Value, budget: &Budget) -> Res<Value> {
    let mut out = Builder::new(budget);
    out.repeat(text, if text.is_empty() { 0 } else { times(count) })?;
    Ok(Value::Text(out.finish()))
}

/// A value with a sign.
pub(super) fn signed(value: &Value, is_minus: bool) -> Res<Value> {
    let by = value.by();
    match value {
        Value::Float(f, _) => Ok(Value::Float(if is_minus { -f } else { *f }, by)),
        _ => match value.as_int() {
            Some(i) if is_minus => i.checked_neg().map(|i| Value::Int(i, by)).ok_or_else(too_large),
            Some(i) => Ok(Value::Int(i, by)),
            None => Err(value.undefined_fault().unwrap_or_else(|| {
                Fault::invalid(format_args!("bad operand type for a sign: '{}'", value.type_name()))
            })),
        },
    }
}

/// The place for an index; negative indexes count from the end.
pub(super) fn place(index: i128, len: usize) -> Option<usize> {
    let place = if index < 0 { index.checked_add(len as i128)? } else { index };
    usize::try_from(place).ok().filter(|place| *place < len)
}

/// The item of a sequence at a place.
pub(super) fn item_at(value: &Value, index: i128, budget: &Budget) -> Res<Option<Value>> {
    let Some(len) = ops::len(value) else { return Ok(None) };
    let Some(at) = place(index, len) else { return Ok(None) };
    Ok(match value {
        Value::List(list) => list.items().get(at).cloned(),
        Value::Tuple(tuple) => tuple.items.get(at).cloned(),
        Value::Range(range) => range.get(at),
        Value::Text(text) => {
            if text.len() != len {
                budget.bytes(text.len())?;
            }
            let start = text.offset(at);
            let length = text.as_str().get(start..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
            Some(Value::Text(text.slice(start..start + length, budget)?))
        }
        _ => None,
    })
}

/// The places of a slice: the first, the end, the step, and the count.
fn slice_places(len: usize, parts: [Option<i128>; 3]) -> Res<(i128, i128, i128, usize)> {
    let [start, stop, step] = parts;
    let len = len as i128;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Fault::invalid("slice step cannot be zero"));
    }
    let (low, high) = if step < 0 { (-1, len - 1) } else { (0, len) };
    let clamp = |at: i128| (if at < 0 { at.saturating_add(len) } else { at }).clamp(low, high);
    let start = start.map_or(if step < 0 { high } else { low }, clamp);
    let stop = stop.map_or(if step < 0 { low } else { high }, clamp);
    let distance = if step < 0 { start - stop } else { stop - start };
    let count = if distance <= 0 { 0 } else { (distance - 1) / step.saturating_abs() + 1 };
    Ok((start, stop, step, usize::try_from(count).unwrap_or(0)))
}

/// `value[a:b:c]`; `None` for values that cannot be sliced.
pub(super) fn slice(value: &Value, parts: [Option<i128>; 3], budget: &Budget) -> Res<Option<Value>> {
    let Some(len) = ops::len(value) else { return Ok(None) };
    let (start, stop, step, count) = slice_places(len, parts)?;
    let place = |i: usize| usize::try_from(start + step.saturating_mul(i as i128)).unwrap_or(usize::MAX);
    let pick = |items: &[Value]| -> Res<Vec<Value>> {
        budget.values(count)?;
        Ok(memory::collected((0..count).filter_map(|i| items.get(place(i)).cloned()), "a list of a chat template")?)
    };
    Ok(Some(match value {
        Value::List(list) => Value::list_by(pick(&list.items())?, list.by)?,
        Value::Tuple(tuple) => Value::tuple(pick(&tuple.items)?)?,
        Value::Range(range) => {
            let at = |place: i128| range.step.saturating_mul(place).saturating_add(range.start);
            let (start, stop) = (at(start), at(stop));
            let range = Range { start, stop, step: range.step.saturating_mul(step), len: count };
            Value::Range(std::rc::Rc::new(range))
        }
        Value::Text(text) => Value::Text(slice_text(text, start, step, count, budget)?),
        _ => return Ok(None),
    }))
}

fn slice_text(text: &Text, start: i128, step: i128, count: usize, budget: &Budget) -> Res<Text> {
    budget.bytes(text.len())?;
    let first = usize::try_from(start).unwrap_or(0);
    if step == 1 {
        let from = text.offset(first);
        let to = if text.chars() == text.len() { from + count } else { text.offset(first + count) };
        return text.slice(from..to, budget);
    }
    budget.items(text.chars())?;
    budget.memory(text.chars().saturating_mul(24))?;
    let chars = memory::collected(text.marked_chars(), "the characters of a text")?;
    let mut out = Builder::new(budget);
    for i in 0..count {
        let place = usize::try_from(start + step.saturating_mul(i as i128)).unwrap_or(usize::MAX);
        if let Some((_, c, by)) = chars.get(place) {
            out.push(*c, *by)?;
        }
    }
    Ok(out.finish())
}

/// `range(a, b, c)`.
pub(super) fn range(parts: &[Value]) -> Res<Value> {
    /// As in Jinja's sandbox.
    const MAX: i128 = 100_000;
    let mut numbers = [0, 0, 1];
    for (i, part) in parts.iter().enumerate() {
        let number = part.as_int().ok_or_else(|| {
            part.undefined_fault().unwrap_or_else(|| {
                Fault::invalid(format_args!("'{}' object cannot be interpreted as an integer", part.type_name()))
            })
        })?;
        *numbers.get_mut(i).ok_or_else(|| Fault::invalid("range expects at most 3 arguments"))? = number;
    }
    let [start, stop, step] = match parts.len() {
        0 => return Err(Fault::invalid("range expects at least 1 argument")),
        1 => [0, numbers[0], 1],
        _ => numbers,
    };
    if step == 0 {
        return Err(Fault::invalid("range() arg 3 must not be zero"));
    }
    let distance = if step < 0 { start.checked_sub(stop) } else { stop.checked_sub(start) };
    let distance = distance.and_then(|distance| distance.checked_sub(1)).ok_or_else(too_large)?;
    let len = if distance < 0 { 0 } else { distance / step.saturating_abs() + 1 };
    if len > MAX {
        return Err(Fault::invalid(format_args!("Range too big. The sandbox blocks ranges larger than {MAX}")));
    }
    Ok(Value::Range(std::rc::Rc::new(Range { start, stop, step, len: len as usize })))
}

/// An integer converted from a float.
pub(super) fn int_of_float(f: f64, by: By) -> Option<Value> {
    (f.abs() < 1e38).then(|| Value::Int(f.trunc() as i128, by))
}
