//! Methods of lists, dictionaries, loops and numbers. Those of strings are in [`super::strings`].

use super::args::{Args, integer, required, whole_flag};
use super::dict::Map;
use super::eval::Env;
use super::fault::{Fault, Res};
use super::value::{Callable, Dict, List, Value, View};
use super::{math, ops, strings};
use crate::memory;
use std::cell::Cell;
use std::rc::Rc;

const LIST: [&str; 11] =
    ["append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"];
const DICT: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
const SEQUENCE: [&str; 2] = ["count", "index"];
const LOOP: [&str; 2] = ["cycle", "changed"];
const CYCLER: [&str; 2] = ["next", "reset"];

/// Whether a value has a method.
pub(super) fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Text(_) => strings::NAMES.contains(&name),
        Value::List(_) => LIST.contains(&name),
        Value::Dict(_) => DICT.contains(&name),
        Value::Tuple(_) | Value::Range(_) => SEQUENCE.contains(&name),
        Value::Loop(_) => LOOP.contains(&name),
        Value::Call(call) => matches!(**call, Callable::Cycler(..)) && CYCLER.contains(&name),
        Value::Int(..) | Value::Bool(..) => matches!(name, "bit_length" | "conjugate"),
        Value::Float(..) => matches!(name, "is_integer" | "conjugate"),
        _ => false,
    }
}

/// Calls a method that the value has.
pub(super) fn call(env: Env<'_>, value: &Value, name: &str, args: Args) -> Res<Value> {
    match value {
        Value::Text(text) => strings::call(env, text, name, args),
        Value::List(list) => list_method(env, list, name, args),
        Value::Dict(dict) => dict_method(env, dict, name, args),
        Value::Tuple(tuple) => sequence_method(env, &tuple.items, name, args),
        Value::Range(_) => sequence_method(env, &ops::items(value, env.budget)?, name, args),
        Value::Loop(state) => match name {
            "cycle" => {
                let count = args.positional.len();
                let place = state.index().checked_rem(count);
                place
                    .and_then(|place| args.positional.get(place).cloned())
                    .ok_or_else(|| Fault::invalid("no items for cycling given"))
            }
            _ => {
                let now = Value::list(args.positional)?;
                let Value::List(list) = &now else { return Ok(Value::NONE) };
                // The list of arguments that is kept here may contain the loop.
                drop(list.change(env.kept, env.budget)?);
                let before = state.changed.borrow_mut().replace(list.clone());
                let same =
                    before.is_some_and(|before| ops::equal(&Value::List(before), &now, env.budget).unwrap_or(false));
                Ok(Value::bool(!same))
            }
        },
        Value::Call(call) => match &**call {
            Callable::Cycler(items, next) => {
                let [] = args.bind(name, [])?;
                Ok(cycle(&items.items, next, name))
            }
            _ => Ok(Value::NONE),
        },
        _ => {
            let [] = args.bind(name, [])?;
            Ok(match (value, name) {
                (Value::Float(f, _), "is_integer") => Value::bool(f.is_finite() && f.trunc() == *f),
                (_, "bit_length") => {
                    let bits = value.as_int().map_or(0, |i| 128 - i.unsigned_abs().leading_zeros());
                    Value::Int(i128::from(bits), value.by())
                }
                _ => value.clone(),
            })
        }
    }
}

fn cycle(items: &[Value], next: &Cell<usize>, name: &str) -> Value {
    if name == "reset" {
        next.set(0);
        return Value::NONE;
    }
    let at = next.get();
    next.set((at + 1) % items.len().max(1));
    items.get(at).cloned().unwrap_or(Value::NONE)
}

fn sequence_method(env: Env<'_>, items: &[Value], name: &str, args: Args) -> Res<Value> {
    let [item, start, stop] = args.bind(name, ["value", "start", "stop"])?;
    let item = required(item, name)?;
    if name == "count" {
        let mut count = 0;
        env.budget.items(items.len())?;
        for other in items {
            count += usize::from(ops::is_same(&item, other) || ops::equal(&item, other, env.budget)?);
        }
        return Ok(Value::count(count));
    }
    let bound = |value: Option<&Value>, default: usize| -> Res<usize> {
        Ok(integer(value, name)?.map_or(default, |at| {
            let at = if at < 0 { at.saturating_add(items.len() as i128) } else { at };
            usize::try_from(at.max(0)).unwrap_or(usize::MAX).min(items.len())
        }))
    };
    let (start, stop) = (bound(start.as_ref(), 0)?, bound(stop.as_ref(), items.len())?);
    let found = ops::find(items.get(start..stop).unwrap_or_default(), &item, env.budget)?;
    found.map(|at| Value::count(start + at)).ok_or_else(|| Fault::invalid("the item is not in the list"))
}

fn list_method(env: Env<'_>, list: &Rc<List>, name: &str, args: Args) -> Res<Value> {
    let budget = env.budget;
    match name {
        "count" | "index" => {
            if name == "count" && args.positional.len() > 1 {
                return Err(Fault::invalid("'count' takes exactly one argument"));
            }
            let items = ops::copied(&list.items(), budget)?;
            return sequence_method(env, &items, name, args);
        }
        "copy" => {
            let [] = args.bind(name, [])?;
            return Value::list_by(ops::copied(&list.items(), budget)?, list.by);
        }
        "append" => {
            let [item] = args.bind(name, ["object"])?;
            add(env, list, usize::MAX, vec![required(item, name)?])?;
        }
        "extend" => {
            let [more] = args.bind(name, ["iterable"])?;
            let more = ops::items(&required(more, name)?, budget)?;
            add(env, list, usize::MAX, more)?;
        }
        "insert" => {
            let [index, item] = args.bind(name, ["index", "object"])?;
            let index = integer(index.as_ref(), name)?.ok_or_else(|| Fault::invalid("'insert' needs an index"))?;
            let len = list.items().len() as i128;
            let index = if index < 0 { index.saturating_add(len) } else { index }.clamp(0, len);
            add(env, list, index as usize, vec![required(item, name)?])?;
        }
        "pop" => {
            let [index] = args.bind(name, ["index"])?;
            let len = list.items().len();
            let index = integer(index.as_ref(), name)?.unwrap_or(-1);
            let place = math::place(index, len).ok_or_else(|| Fault::invalid("pop index out of range"))?;
            budget.items(len - place)?;
            return Ok(list.change(env.kept, budget)?.remove(place));
        }
        "remove" => {
            let [item] = args.bind(name, ["value"])?;
            let found = ops::find(&list.items(), &required(item, name)?, budget)?;
            let place = found.ok_or_else(|| Fault::invalid("list.remove(x): x not in list"))?;
            budget.items(list.items().len() - place)?;
            let item = list.change(env.kept, budget)?.remove(place);
            drop(item);
        }
        "clear" => {
            let [] = args.bind(name, [])?;
            let items = std::mem::take(&mut *list.change(env.kept, budget)?);
            drop(items);
        }
        "reverse" => {
            let [] = args.bind(name, [])?;
            budget.items(list.items().len())?;
            list.change(env.kept, budget)?.reverse();
        }
        _ => {
            let [reverse] = args.bind(name, ["reverse"])?;
            let items = ops::copied(&list.items(), budget)?;
            budget.values(2 * items.len())?;
            let keyed = items.into_iter().map(|item| (item.clone(), item)).collect();
            let sorted = ops::sort(keyed, whole_flag(reverse.as_ref(), name)?, budget)?;
            let sorted: Vec<Value> = sorted.into_iter().map(|(_, item)| item).collect();
            *list.change(env.kept, budget)? = sorted;
        }
    }
    Ok(Value::NONE)
}

/// Puts items into a list before `place`.
fn add(env: Env<'_>, list: &Rc<List>, place: usize, more: Vec<Value>) -> Res<()> {
    let mut items = list.change(env.kept, env.budget)?;
    let place = place.min(items.len());
    env.budget.items(items.len() - place + more.len())?;
    if items.len() + more.len() > items.capacity() {
        env.budget.memory((items.len() + more.len()) * 2 * size_of::<Value>())?;
        memory::reserve(&mut items, more.len(), "a list of a chat template")?;
    }
    items.splice(place..place, more);
    Ok(())
}

fn dict_method(env: Env<'_>, dict: &Rc<Dict>, name: &str, args: Args) -> Res<Value> {
    let budget = env.budget;
    match name {
        "get" => {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let key = required(key, name)?;
            Ok(dict.map().get(&key, budget)?.cloned().or(default).unwrap_or(Value::NONE))
        }
        "items" | "keys" | "values" => {
            let [] = args.bind(name, [])?;
            let view = match name {
                "items" => View::Items,
                "keys" => View::Keys,
                _ => View::Values,
            };
            Ok(Value::View(dict.clone(), view))
        }
        "copy" => {
            let [] = args.bind(name, [])?;
            Value::dict_by(dict.map().copy(budget)?, dict.by)
        }
        "pop" => {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let key = required(key, name)?;
            let entry = dict.change(env.kept, budget)?.remove(&key, budget)?;
            entry.map(|(_, value)| value).or(default).ok_or_else(|| Fault::invalid("'pop' does not find the key"))
        }
        "popitem" => {
            let [] = args.bind(name, [])?;
            let entry = dict.change(env.kept, budget)?.pop_last(budget)?;
            let (key, value) = entry.ok_or_else(|| Fault::invalid("popitem(): dictionary is empty"))?;
            budget.values(2)?;
            Value::tuple(vec![key, value])
        }
        "setdefault" => {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let (key, default) = (required(key, name)?, default.unwrap_or(Value::NONE));
            if let Some(value) = dict.map().get(&key, budget)? {
                return Ok(value.clone());
            }
            dict.change(env.kept, budget)?.insert(key, default.clone(), budget)?;
            Ok(default)
        }
        "update" => {
            let mut more = Map::default();
            fill(&mut more, args, env)?;
            let mut old = Vec::new();
            let mut map = dict.change(env.kept, budget)?;
            for (key, value) in more.iter() {
                old.extend(map.insert(key.clone(), value.clone(), budget)?);
            }
            drop(map);
            drop(old);
            Ok(Value::NONE)
        }
        "fromkeys" => {
            let [keys, value] = args.bind(name, ["iterable", "value"])?;
            let value = value.unwrap_or(Value::NONE);
            let mut map = Map::default();
            for key in ops::items(&required(keys, name)?, budget)? {
                map.insert(key, value.clone(), budget)?;
            }
            Value::dict(map)
        }
        _ => {
            let [] = args.bind(name, [])?;
            let map = std::mem::take(&mut *dict.change(env.kept, budget)?);
            drop(map);
            Ok(Value::NONE)
        }
    }
}

/// Fills a dictionary as Python's `dict(…)` does.
pub(super) fn fill(map: &mut Map, args: Args, env: Env<'_>) -> Res<()> {
    let budget = env.budget;
    let Args { positional, named } = args;
    if positional.len() > 1 {
        return Err(Fault::invalid("'dict' takes at most 1 positional argument"));
    }
    for from in positional {
        match &from {
            Value::Dict(dict) => map.add_all(&dict.map(), budget)?,
            Value::Undefined(_) => return Err(from.undefined_fault().unwrap_or_else(|| Fault::undefined(""))),
            _ => {
                for pair in ops::items(&from, budget)? {
                    let mut pair = ops::items(&pair, budget)?.into_iter();
                    let (Some(key), Some(value), None) = (pair.next(), pair.next(), pair.next()) else {
                        return Err(Fault::invalid("a dictionary is made of pairs"));
                    };
                    map.insert(key, value, budget)?;
                }
            }
        }
    }
    for (key, value) in named {
        map.insert(key, value, budget)?;
    }
    Ok(())
}
