//! Attributes and items of values, as Jinja's sandbox gives them.

use super::budget::Budget;
use super::fault::Res;
use super::methods;
use super::value::{Callable, Missing, Value};
use super::{math, ops};
use std::rc::Rc;

/// Jinja's name for the type, in messages.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::None(_) => "None",
        _ => value.type_name(),
    }
}

/// The beginning of a name, as much as messages show.
fn shown(name: &str) -> Rc<str> {
    name.chars().take(100).collect::<String>().into()
}

fn missing(value: &Value, name: &str) -> Value {
    Value::Undefined(Rc::new(Missing::Attribute(type_of(value), shown(name))))
}

/// `value.name`: a method or attribute, or else an item.
pub(super) fn attribute(value: &Value, name: &str, budget: &Budget) -> Res<Value> {
    if let Some(found) = own_attribute(value, name)? {
        return Ok(found);
    }
    match value {
        Value::Undefined(_) => Err(value.undefined_fault().unwrap_or_else(|| super::fault::Fault::undefined(""))),
        Value::Dict(dict) | Value::Namespace(dict) => {
            Ok(dict.map().get_str(name, budget)?.cloned().unwrap_or_else(|| missing(value, name)))
        }
        _ => Ok(missing(value, name)),
    }
}

/// `value[index]`: an item, or else a method or attribute.
pub(super) fn item(value: &Value, index: &Value, budget: &Budget) -> Res<Value> {
    let found = match value {
        Value::Undefined(_) => {
            return Err(value.undefined_fault().unwrap_or_else(|| super::fault::Fault::undefined("")));
        }
        Value::Dict(dict) => match index {
            Value::Text(name) => dict.map().get_str(name.as_str(), budget)?.cloned(),
            Value::List(_) | Value::Dict(_) | Value::View(..) => None,
            _ => dict.map().get(index, budget)?.cloned(),
        },
        Value::Namespace(dict) => match index {
            Value::Text(name) => dict.map().get_str(name.as_str(), budget)?.cloned(),
            _ => None,
        },
        Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => match index.as_int() {
            Some(i) => math::item_at(value, i, budget)?,
            None => None,
        },
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    match index {
        Value::Text(name) => Ok(own_attribute(value, name.as_str())?.unwrap_or_else(|| missing(value, name.as_str()))),
        _ => {
            let index = super::repr::repr_of(index, budget)?;
            Ok(Value::Undefined(Rc::new(Missing::Element(type_of(value), shown(index.as_str())))))
        }
    }
}

/// Attributes that are no items: methods, and the attributes of loops, macros and groups.
fn own_attribute(value: &Value, name: &str) -> Res<Option<Value>> {
    if methods::has(value, name) {
        return Value::method(value.clone(), &Rc::from(name)).map(Some);
    }
    Ok(match value {
        Value::Loop(state) => {
            let (len, index) = (state.len(), state.index());
            Some(match name {
                "index" => Value::count(index + 1),
                "index0" => Value::count(index),
                "revindex" => Value::count(len.saturating_sub(index)),
                "revindex0" => Value::count(len.saturating_sub(index + 1)),
                "first" => Value::bool(index == 0),
                "last" => Value::bool(index + 1 >= len),
                "length" => Value::count(len),
                "depth" => Value::count(state.depth0 + 1),
                "depth0" => Value::count(state.depth0),
                "previtem" => index
                    .checked_sub(1)
                    .and_then(|at| state.item(at))
                    .unwrap_or_else(|| Value::hint("there is no previous item")),
                "nextitem" => state.item(index + 1).unwrap_or_else(|| Value::hint("there is no next item")),
                _ => return Ok(None),
            })
        }
        Value::Tuple(tuple) if tuple.is_group => match name {
            "grouper" => tuple.items.first().cloned(),
            "list" => tuple.items.get(1).cloned(),
            _ => None,
        },
        Value::Call(call) => match &**call {
            Callable::Cycler(items, next) if name == "current" => items.items.get(next.get()).cloned(),
            Callable::Macro(macro_) if name == "arguments" => Some(macro_.arguments.clone()),
            Callable::Macro(macro_) if name == "name" => {
                Some(Value::Text(super::text::Text::from_string(macro_.name.to_string(), super::text::By::Template)))
            }
            _ => None,
        },
        Value::Int(_, by) | Value::Bool(_, by) => match name {
            "real" | "numerator" => value.as_int().map(|i| Value::Int(i, *by)),
            "imag" => Some(Value::Int(0, *by)),
            "denominator" => Some(Value::Int(1, *by)),
            _ => None,
        },
        Value::Float(_, by) => match name {
            "real" => Some(value.clone()),
            "imag" => Some(Value::Float(0.0, *by)),
            _ => None,
        },
        Value::Range(range) => match name {
            "start" => Some(Value::Int(range.start, super::text::By::Template)),
            "stop" => Some(Value::Int(range.stop, super::text::By::Template)),
            "step" => Some(Value::Int(range.step, super::text::By::Template)),
            _ => None,
        },
        _ => None,
    })
}

/// Follows a path like `a.b.0`, as filters take it, to an attribute or item. `default` replaces
/// each missing part.
pub(super) fn path(value: &Value, path: &Value, default: Option<&Value>, budget: &Budget) -> Res<Value> {
    let or_default = |found: Value| match default {
        Some(default) if found.is_undefined() => default.clone(),
        _ => found,
    };
    let Value::Text(text) = path else {
        return if path.is_none() { Ok(value.clone()) } else { item(value, path, budget).map(or_default) };
    };
    budget.bytes(text.len())?;
    let mut at = value.clone();
    let mut start = 0;
    for part in text.as_str().split('.') {
        budget.steps(1)?;
        let end = start + part.len();
        let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let index = match part.parse() {
            Ok(i) if is_number => Value::Int(i, text.by()),
            _ => Value::Text(text.slice(start..end, budget)?),
        };
        at = or_default(item(&at, &index, budget)?);
        start = end + 1;
    }
    Ok(at)
}

/// The length of a value that has one.
pub(super) fn length(value: &Value) -> Res<usize> {
    ops::len(value).ok_or_else(|| {
        super::fault::Fault::invalid(format_args!("object of type '{}' has no len()", value.type_name()))
    })
}
