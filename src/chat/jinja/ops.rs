//! Comparison, membership and iteration.

use super::budget::Budget;
use super::dict::{self, check_depth};
use super::fault::{Fault, Res};
use super::text::{By, Text};
use super::value::{Dict, Value, View};
use crate::memory;
use std::cmp::Ordering;
use std::rc::Rc;

/// Python's `==`. It ignores who wrote the values.
pub(super) fn equal(a: &Value, b: &Value, budget: &Budget) -> Res<bool> {
    equal_at(a, b, 0, budget)
}

fn equal_at(a: &Value, b: &Value, depth: u32, budget: &Budget) -> Res<bool> {
    budget.steps(1)?;
    Ok(match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            if a.len() == b.len() {
                budget.bytes(a.len())?;
            }
            a.is_same(b) || a.as_str() == b.as_str()
        }
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None(_), Value::None(_)) => true,
        (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b) || equal_items(&a.items(), &b.items(), depth, budget)?,
        (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b) || equal_items(&a.items, &b.items, depth, budget)?,
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b) || equal_dicts(a, b, depth, budget)?,
        (Value::View(a, View::Keys), Value::View(b, View::Keys)) => {
            let (a, b) = (a.map(), b.map());
            let mut same = a.len() == b.len();
            for (key, _) in a.iter() {
                same = same && b.contains(key, budget)?;
            }
            same
        }
        (Value::View(a, View::Items), Value::View(b, View::Items)) => equal_dicts(a, b, depth, budget)?,
        (Value::Range(a), Value::Range(b)) => {
            a.len == b.len && (a.len == 0 || a.start == b.start) && (a.len < 2 || a.step == b.step)
        }
        _ if is_number(a) && is_number(b) => compare_numbers(a, b) == Some(Ordering::Equal),
        _ => is_same(a, b),
    })
}

fn equal_items(a: &[Value], b: &[Value], depth: u32, budget: &Budget) -> Res<bool> {
    check_depth(depth)?;
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b) {
        budget.steps(1)?;
        if !is_same(a, b) && !equal_at(a, b, depth + 1, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal_dicts(a: &Dict, b: &Dict, depth: u32, budget: &Budget) -> Res<bool> {
    check_depth(depth)?;
    let (a, b) = (a.map(), b.map());
    if a.len() != b.len() {
        return Ok(false);
    }
    for (key, value) in a.iter() {
        budget.steps(1)?;
        match b.get(key, budget)? {
            Some(other) if is_same(value, other) || equal_at(value, other, depth + 1, budget)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether two values are one object, as far as templates can see (`is sameas`).
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Undefined(a), Value::Undefined(b)) => Rc::ptr_eq(a, b),
        (Value::None(_), Value::None(_)) => true,
        (Value::Bool(a, _), Value::Bool(b, _)) => a == b,
        (Value::Int(a, _), Value::Int(b, _)) => a == b,
        (Value::Text(a), Value::Text(b)) => a.is_same(b),
        (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b),
        (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) | (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        (Value::Iter(a), Value::Iter(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Call(a), Value::Call(b)) => Rc::ptr_eq(a, b),
        _ => false,
    }
}

fn is_number(value: &Value) -> bool {
    matches!(value, Value::Bool(..) | Value::Int(..) | Value::Float(..))
}

fn compare_numbers(a: &Value, b: &Value) -> Option<Ordering> {
    match (a.as_int(), b.as_int()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        (Some(a), None) => compare_with_float(a, b.as_float()?),
        (None, Some(b)) => compare_with_float(b, a.as_float()?).map(Ordering::reverse),
        (None, None) => a.as_float()?.partial_cmp(&b.as_float()?),
    }
}

/// Exact even where a float cannot represent the integer.
fn compare_with_float(a: i128, b: f64) -> Option<Ordering> {
    if b.abs() < 1e38 {
        let whole = b.floor();
        let order = a.cmp(&(whole as i128));
        return Some(if order == Ordering::Equal && b > whole { Ordering::Less } else { order });
    }
    0.0.partial_cmp(&b)
}

/// The order of two values; `None` for NaN.
pub(super) fn compare(a: &Value, b: &Value, budget: &Budget) -> Res<Option<Ordering>> {
    compare_at(a, b, 0, budget)
}

fn compare_at(a: &Value, b: &Value, depth: u32, budget: &Budget) -> Res<Option<Ordering>> {
    budget.steps(1)?;
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            budget.bytes(a.len().min(b.len()))?;
            Ok(Some(a.as_str().cmp(b.as_str())))
        }
        (Value::List(a), Value::List(b)) => compare_items(&a.items(), &b.items(), depth, budget),
        (Value::Tuple(a), Value::Tuple(b)) => compare_items(&a.items, &b.items, depth, budget),
        _ if is_number(a) && is_number(b) => Ok(compare_numbers(a, b)),
        _ => Err(a.undefined_fault().or_else(|| b.undefined_fault()).unwrap_or_else(|| {
            let (a, b) = (a.type_name(), b.type_name());
            Fault::invalid(format_args!("order is not defined between instances of '{a}' and '{b}'"))
        })),
    }
}

fn compare_items(a: &[Value], b: &[Value], depth: u32, budget: &Budget) -> Res<Option<Ordering>> {
    check_depth(depth)?;
    for (a, b) in a.iter().zip(b) {
        budget.steps(1)?;
        if !is_same(a, b) && !equal_at(a, b, depth + 1, budget)? {
            return compare_at(a, b, depth + 1, budget);
        }
    }
    Ok(Some(a.len().cmp(&b.len())))
}

/// The order of the filter `sort`. Python's filter compares lists of keys, so equal keys need no
/// order.
pub(super) fn order_of_keys(a: &Value, b: &Value, budget: &Budget) -> Res<Option<Ordering>> {
    match (a, b) {
        (Value::Text(_), Value::Text(_)) => compare(a, b, budget),
        _ if is_same(a, b) || equal(a, b, budget)? => Ok(Some(Ordering::Equal)),
        _ => compare(a, b, budget),
    }
}

/// Sorts items by the keys that come with them, stably. Safe even where keys have no order (NaN).
pub(super) fn sort(items: Vec<(Value, Value)>, reverse: bool, budget: &Budget) -> Res<Vec<(Value, Value)>> {
    sort_by(items, reverse, budget, compare)
}

/// As [`sort`], with a given order.
pub(super) fn sort_by(
    mut items: Vec<(Value, Value)>,
    reverse: bool,
    budget: &Budget,
    compare: impl Fn(&Value, &Value, &Budget) -> Res<Option<Ordering>>,
) -> Res<Vec<(Value, Value)>> {
    let len = items.len();
    budget.memory(len.saturating_mul(2 * size_of::<(Value, Value)>()))?;
    let mut width = 1;
    while width < len {
        let mut merged = memory::with_room(len, "a list of a chat template")?;
        let mut rest = items.into_iter();
        loop {
            let mut left = rest.by_ref().take(width).collect::<std::collections::VecDeque<_>>();
            if left.is_empty() {
                break;
            }
            let mut right = rest.by_ref().take(width).collect::<std::collections::VecDeque<_>>();
            while let (Some((a, _)), Some((b, _))) = (left.front(), right.front()) {
                let order = if reverse { compare(a, b, budget)? } else { compare(b, a, budget)? };
                let from = if order == Some(Ordering::Less) { &mut right } else { &mut left };
                merged.extend(from.pop_front());
            }
            merged.extend(left);
            merged.extend(right);
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}

/// Python's `in`.
pub(super) fn contains(container: &Value, item: &Value, budget: &Budget) -> Res<bool> {
    match container {
        Value::Text(text) => match item {
            Value::Text(part) => {
                budget.bytes(text.len() + part.len())?;
                Ok(text.as_str().contains(part.as_str()))
            }
            _ => Err(item.undefined_fault().unwrap_or_else(|| {
                Fault::invalid(format_args!("'in <string>' requires string as left operand, not {}", item.type_name()))
            })),
        },
        Value::List(list) => find(&list.items(), item, budget).map(|found| found.is_some()),
        Value::Tuple(tuple) => find(&tuple.items, item, budget).map(|found| found.is_some()),
        Value::Dict(dict) | Value::View(dict, View::Keys) => dict.map().contains(item, budget),
        Value::Range(range) => match item.as_int() {
            Some(i) => {
                let distance = i.checked_sub(range.start).unwrap_or(-1);
                let steps = distance.checked_div(range.step).unwrap_or(-1);
                Ok(distance.checked_rem(range.step) == Some(0) && steps >= 0 && steps < range.len as i128)
            }
            None => Ok(false),
        },
        _ => find(&items(container, budget)?, item, budget).map(|found| found.is_some()),
    }
}

/// The place of an item.
pub(super) fn find(items: &[Value], item: &Value, budget: &Budget) -> Res<Option<usize>> {
    for (place, other) in items.iter().enumerate() {
        budget.steps(1)?;
        if is_same(item, other) || equal(item, other, budget)? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// A copy of a list of values.
pub(super) fn copied(items: &[Value], budget: &Budget) -> Res<Vec<Value>> {
    budget.values(items.len())?;
    let mut copy = memory::with_room(items.len(), "a list of a chat template")?;
    copy.extend_from_slice(items);
    Ok(copy)
}

/// The items of a value, as a loop visits them.
pub(super) fn items(value: &Value, budget: &Budget) -> Res<Vec<Value>> {
    Ok(match value {
        Value::List(list) => copied(&list.items(), budget)?,
        Value::Tuple(tuple) => copied(&tuple.items, budget)?,
        Value::Undefined(_) => Vec::new(),
        Value::Text(text) => characters(text, budget)?,
        Value::Dict(dict) => view_items(dict, View::Keys, budget)?,
        Value::View(dict, view) => view_items(dict, *view, budget)?,
        Value::Range(range) => {
            budget.values(range.len)?;
            memory::collected((0..range.len).filter_map(|at| range.get(at)), "a list of a chat template")?
        }
        Value::Iter(iter) => {
            let from = iter.next.replace(iter.items.len());
            copied(iter.items.get(from..).unwrap_or_default(), budget)?
        }
        Value::Loop(state) => {
            let rest = state.rest();
            budget.values(3 * rest.len())?;
            let mut all = memory::with_room(rest.len(), "a list of a chat template")?;
            for item in rest.filter_map(|at| state.item(at)) {
                all.push(Value::tuple(vec![item, value.clone()])?);
            }
            all
        }
        _ => return Err(Fault::invalid(format_args!("'{}' object is not iterable", value.type_name()))),
    })
}

fn characters(text: &Text, budget: &Budget) -> Res<Vec<Value>> {
    budget.values(text.chars())?;
    let mut all = memory::with_room(text.chars(), "the characters of a text")?;
    for (at, c, _) in text.marked_chars() {
        all.push(Value::Text(text.slice(at..at + c.len_utf8(), budget)?));
    }
    Ok(all)
}

fn view_items(dict: &Dict, view: View, budget: &Budget) -> Res<Vec<Value>> {
    let map = dict.map();
    budget.values(map.len())?;
    let mut all = memory::with_room(map.len(), "a list of a chat template")?;
    for (key, value) in map.iter() {
        all.push(match view {
            View::Keys => key.clone(),
            View::Values => value.clone(),
            View::Items => {
                budget.values(2)?;
                Value::tuple(vec![key.clone(), value.clone()])?
            }
        });
    }
    Ok(all)
}

/// Python's `len`; `None` for a value without a length.
pub(super) fn len(value: &Value) -> Option<usize> {
    Some(match value {
        Value::Undefined(_) => 0,
        Value::Text(text) => text.chars(),
        Value::List(list) => list.items().len(),
        Value::Tuple(tuple) => tuple.items.len(),
        Value::Dict(dict) | Value::View(dict, _) => dict.map().len(),
        Value::Range(range) => range.len,
        Value::Loop(state) => state.len(),
        _ => return None,
    })
}

/// Whether a value can be looped over.
pub(super) fn is_iterable(value: &Value) -> bool {
    len(value).is_some() || matches!(value, Value::Iter(_))
}

/// Removes the values whose keys occurred before.
pub(super) fn unique(items: Vec<(Value, Value)>, budget: &Budget) -> Res<Vec<Value>> {
    let mut seen = dict::Map::default();
    let mut all = Vec::new();
    for (key, item) in items {
        if seen.insert(key, Value::None(By::Template), budget)?.is_none() {
            budget.values(1)?;
            memory::push(&mut all, item, "a list of a chat template")?;
        }
    }
    Ok(all)
}
