//! Filters: the list of all, and those of sequences. The filters of texts are in
//! [`super::text_filters`].

use super::args::{Args, flag, integer, required, whole_flag};
use super::ast::MathOp;
use super::attributes;
use super::eval::Env;
use super::fault::{Fault, Res};
use super::text::{Builder, By};
use super::value::{Value, View};
use super::{checks, json, math, ops, repr, strings, text_filters};
use crate::memory;
use std::cmp::Ordering;

const NAMES: [&str; 26] = [
    "attr",
    "batch",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "groupby",
    "items",
    "join",
    "last",
    "length",
    "list",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
    "random",
];

pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name) || text_filters::NAMES.contains(&name)
}

/// Applies a filter.
pub(super) fn call(env: Env<'_>, name: &str, value: Value, args: Args) -> Res<Value> {
    let budget = env.budget;
    budget.steps(1)?;
    match name {
        "length" | "count" => {
            let [] = args.bind(name, [])?;
            attributes::length(&value).map(Value::count)
        }
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
            let is_missing = value.is_undefined() || (flag(boolean.as_ref(), false) && !value.is_true());
            Ok(if is_missing { default.unwrap_or_else(|| Value::str("")) } else { value })
        }
        "items" => {
            let [] = args.bind(name, [])?;
            Value::iter(json::pairs(env, &value)?)
        }
        "list" => {
            let [] = args.bind(name, [])?;
            Value::list_by(ops::items(&value, budget)?, value.by())
        }
        "first" => {
            let [] = args.bind(name, [])?;
            first(env, &value)
        }
        "last" => {
            let [] = args.bind(name, [])?;
            last(env, &value)
        }
        "reverse" => {
            let [] = args.bind(name, [])?;
            if let Value::Text(_) = value {
                return Ok(math::slice(&value, [None, None, Some(-1)], budget)?.unwrap_or(value));
            }
            let mut items = ops::items(&value, budget)?;
            items.reverse();
            if matches!(value, Value::Iter(_) | Value::Undefined(_)) { Value::list(items) } else { Value::iter(items) }
        }
        "join" => {
            let [separator, attribute] = args.bind(name, ["d", "attribute"])?;
            join(env, &value, separator, attribute)
        }
        "sort" => {
            let [reverse, case, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let items = ops::items(&value, budget)?;
            let keyed = sort_keys(env, items, flag(case.as_ref(), false), attribute.as_ref())?;
            let reverse = whole_flag(reverse.as_ref(), name)?;
            unkeyed(ops::sort_by(keyed, reverse, budget, ops::order_of_keys)?, value.by())
        }
        "dictsort" => dictsort(env, &value, args),
        "unique" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let items = ops::items(&value, budget)?;
            let keyed = keyed(env, items, flag(case.as_ref(), false), attribute.as_ref(), None)?;
            Value::iter(ops::unique(keyed, budget)?)
        }
        "min" | "max" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            extreme(env, &value, name == "max", flag(case.as_ref(), false), attribute.as_ref())
        }
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0, By::Template));
            if matches!(sum, Value::Text(_)) {
                return Err(Fault::invalid("sum() can't sum strings [use ''.join(seq) instead]"));
            }
            for item in ops::items(&value, budget)? {
                let item = attribute_of(env, item, attribute.as_ref(), None)?;
                sum = math::math(MathOp::Add, &sum, &item, budget)?;
            }
            Ok(sum)
        }
        "groupby" => groupby(env, &value, args),
        "batch" | "slice" => {
            let [count, fill] = args.bind(name, [if name == "batch" { "linecount" } else { "slices" }, "fill_with"])?;
            let count = integer(count.as_ref(), name)?.ok_or_else(|| Fault::invalid("a count is missing"))?;
            let items = ops::items(&value, budget)?;
            let fill = fill.filter(|fill| !fill.is_none());
            if name == "batch" { batch(env, items, count, fill) } else { slice(env, &items, count, fill) }
        }
        "map" => map(env, &value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(env, name, &value, args),
        "attr" => {
            let [attribute] = args.bind(name, ["name"])?;
            let attribute = strings::string(required(attribute, name)?, name)?;
            match &value {
                // Items do not count as attributes.
                Value::Dict(_) if !super::methods::has(&value, attribute.as_str()) => {
                    Ok(Value::hint("there is no such attribute"))
                }
                _ => attributes::attribute(&value, attribute.as_str(), budget),
            }
        }
        "random" => Err(Fault::invalid("'random' is not supported: a prompt must not depend on chance")),
        "tojson" => json::tojson(env, &value, args),
        "from_json" | "fromjson" => {
            let [] = args.bind(name, [])?;
            json::from_json(env, &strings::string(value, name)?)
        }
        _ => text_filters::call(env, name, value, args),
    }
}

fn first(env: Env<'_>, value: &Value) -> Res<Value> {
    let item = match value {
        Value::Dict(dict) => dict.map().entry(0).map(|(key, _)| key.clone()),
        Value::View(dict, view) => match (dict.map().entry(0), view) {
            (Some((key, _)), View::Keys) => Some(key.clone()),
            (Some((_, value)), View::Values) => Some(value.clone()),
            (Some((key, value)), View::Items) => Some(Value::tuple(vec![key.clone(), value.clone()])?),
            (None, _) => None,
        },
        Value::Iter(iter) => {
            let at = iter.next.get();
            iter.next.set((at + 1).min(iter.items.len()));
            iter.items.get(at).cloned()
        }
        _ if ops::is_iterable(value) => math::item_at(value, 0, env.budget)?,
        _ => return Err(Fault::invalid(format_args!("'{}' object is not iterable", value.type_name()))),
    };
    Ok(item.unwrap_or_else(|| Value::hint("No first item, sequence was empty.")))
}

fn last(env: Env<'_>, value: &Value) -> Res<Value> {
    let item = match value {
        Value::Dict(_) | Value::View(..) => ops::items(value, env.budget)?.pop(),
        Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => math::item_at(value, -1, env.budget)?,
        Value::Undefined(_) => None,
        _ => return Err(Fault::invalid(format_args!("'{}' object is not reversible", value.type_name()))),
    };
    Ok(item.unwrap_or_else(|| Value::hint("No last item, sequence was empty.")))
}

fn join(env: Env<'_>, value: &Value, separator: Option<Value>, attribute: Option<Value>) -> Res<Value> {
    let separator = separator.map(|separator| repr::text_of(&separator, env.budget)).transpose()?;
    let mut out = Builder::new(env.budget);
    for (i, item) in ops::items(value, env.budget)?.into_iter().enumerate() {
        if let Some(separator) = separator.as_ref().filter(|_| i > 0) {
            out.push_text(separator)?;
        }
        let item = attribute_of(env, item, attribute.as_ref(), None)?;
        repr::write_str(&item, &mut out)?;
    }
    Ok(Value::Text(out.finish()))
}

/// An item's attribute, or the item itself where the filter's argument names none.
fn attribute_of(env: Env<'_>, item: Value, attribute: Option<&Value>, default: Option<&Value>) -> Res<Value> {
    let Some(attribute) = attribute.filter(|attribute| !attribute.is_none()) else { return Ok(item) };
    attributes::path(&item, attribute, default.filter(|default| !default.is_none()), env.budget)
}

/// The key in lower case, unless case counts.
fn without_case(env: Env<'_>, key: Value, is_case_sensitive: bool) -> Res<Value> {
    match &key {
        Value::Text(text) if !is_case_sensitive => strings::change_case(env, text, "lower").map(Value::Text),
        _ => Ok(key),
    }
}

/// Items with their keys for comparison.
fn keyed(
    env: Env<'_>,
    items: Vec<Value>,
    is_case_sensitive: bool,
    attribute: Option<&Value>,
    default: Option<&Value>,
) -> Res<Vec<(Value, Value)>> {
    env.budget.values(2 * items.len())?;
    let mut all = memory::with_room(items.len(), "a list of a chat template")?;
    for item in items {
        let key = attribute_of(env, item.clone(), attribute, default)?;
        all.push((without_case(env, key, is_case_sensitive)?, item));
    }
    Ok(all)
}

/// As [`keyed`], for several attributes separated by commas.
fn sort_keys(
    env: Env<'_>,
    items: Vec<Value>,
    is_case_sensitive: bool,
    attribute: Option<&Value>,
) -> Res<Vec<(Value, Value)>> {
    let Some(Value::Text(attributes)) =
        attribute.filter(|attribute| attribute.as_str().is_some_and(|text| text.contains(',')))
    else {
        let mut all = keyed(env, items, is_case_sensitive, attribute, None)?;
        // As lists of one item, keys need an order only where they differ.
        env.budget.values(2 * all.len())?;
        for (key, _) in &mut all {
            *key = Value::list(vec![std::mem::replace(key, Value::NONE)])?;
        }
        return Ok(all);
    };
    let mut parts = Vec::new();
    let mut start = 0;
    for part in attributes.as_str().split(',') {
        env.budget.values(1)?;
        let part_value = Value::Text(attributes.slice(start..start + part.len(), env.budget)?);
        memory::push(&mut parts, part_value, "the attributes of a filter")?;
        start += part.len() + 1;
    }
    env.budget.values(2 * items.len())?;
    let mut all = memory::with_room(items.len(), "a list of a chat template")?;
    for item in items {
        env.budget.values(parts.len())?;
        let mut key = memory::with_room(parts.len(), "the keys of a list")?;
        for part in &parts {
            key.push(without_case(env, attributes::path(&item, part, None, env.budget)?, is_case_sensitive)?);
        }
        all.push((Value::list(key)?, item));
    }
    Ok(all)
}

fn unkeyed(keyed: Vec<(Value, Value)>, by: By) -> Res<Value> {
    Value::list_by(memory::collected(keyed.into_iter().map(|(_, item)| item), "a list of a chat template")?, by)
}

fn dictsort(env: Env<'_>, value: &Value, args: Args) -> Res<Value> {
    let [case, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let by_value = match by.as_ref().map(|by| by.as_str()) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(Fault::invalid("You can only sort by either \"key\" or \"value\"")),
    };
    let Value::Dict(dict) = value else {
        return Err(value.undefined_fault().unwrap_or_else(|| Fault::invalid("'dictsort' needs a dictionary")));
    };
    let pairs = ops::items(&Value::View(dict.clone(), View::Items), env.budget)?;
    env.budget.values(2 * pairs.len())?;
    let mut all = memory::with_room(pairs.len(), "a list of a chat template")?;
    for pair in pairs {
        let key = math::item_at(&pair, i128::from(by_value), env.budget)?.unwrap_or(Value::NONE);
        all.push((without_case(env, key, flag(case.as_ref(), false))?, pair));
    }
    unkeyed(ops::sort(all, whole_flag(reverse.as_ref(), "dictsort")?, env.budget)?, By::Template)
}

fn extreme(env: Env<'_>, value: &Value, is_max: bool, case: bool, attribute: Option<&Value>) -> Res<Value> {
    let items = ops::items(value, env.budget)?;
    let mut best: Option<(Value, Value)> = None;
    for (key, item) in keyed(env, items, case, attribute, None)? {
        let is_better = match &best {
            None => true,
            Some((other, _)) => {
                let wanted = if is_max { Ordering::Greater } else { Ordering::Less };
                ops::compare(&key, other, env.budget)? == Some(wanted)
            }
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::hint("No aggregated item, sequence was empty."), |(_, item)| item))
}

fn groupby(env: Env<'_>, value: &Value, args: Args) -> Res<Value> {
    let [attribute, default, case] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let attribute = required(attribute, "groupby")?;
    let items = ops::items(value, env.budget)?;
    let keyed = keyed(env, items, flag(case.as_ref(), false), Some(&attribute), default.as_ref())?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in ops::sort(keyed, false, env.budget)? {
        env.budget.values(1)?;
        if let Some((last, group)) = groups.last_mut()
            && ops::equal(last, &key, env.budget)?
        {
            memory::push(group, item, "a list of a chat template")?;
        } else {
            env.budget.values(4)?;
            memory::push(&mut groups, (key, vec![item]), "a list of a chat template")?;
        }
    }
    let mut all = Vec::new();
    for (_, group) in groups {
        // The key as spelled in the group's first item.
        let first = group.first().cloned().unwrap_or(Value::NONE);
        let key = attribute_of(env, first, Some(&attribute), default.as_ref())?;
        memory::push(&mut all, Value::group(key, Value::list(group)?)?, "a list of a chat template")?;
    }
    Value::list(all)
}

/// Rows of `count` items.
fn batch(env: Env<'_>, items: Vec<Value>, count: i128, fill: Option<Value>) -> Res<Value> {
    let mut rows = Vec::new();
    let mut row: Vec<Value> = Vec::new();
    for item in items {
        env.budget.values(2)?;
        if row.len() as i128 == count {
            memory::push(&mut rows, Value::list(std::mem::take(&mut row))?, "a list of a chat template")?;
        }
        memory::push(&mut row, item, "a list of a chat template")?;
    }
    if !row.is_empty() {
        if let Some(fill) = fill {
            let missing = usize::try_from(count - row.len() as i128).unwrap_or(0);
            env.budget.values(missing)?;
            memory::reserve(&mut row, missing, "a list of a chat template")?;
            row.extend(std::iter::repeat_n(fill, missing));
        }
        memory::push(&mut rows, Value::list(row)?, "a list of a chat template")?;
    }
    Value::iter(rows)
}

/// `count` columns.
fn slice(env: Env<'_>, items: &[Value], count: i128, fill: Option<Value>) -> Res<Value> {
    if count == 0 {
        return Err(Fault::invalid("division by zero"));
    }
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    env.budget.values(count)?;
    let mut columns = memory::with_room(count, "a list of a chat template")?;
    let (each, extra) = (items.len() / count.max(1), items.len() % count.max(1));
    let mut start = 0;
    for column in 0..count {
        let end = start + each + usize::from(column < extra);
        let mut part = ops::copied(items.get(start..end).unwrap_or_default(), env.budget)?;
        if column >= extra {
            part.extend(fill.clone());
        }
        columns.push(Value::list(part)?);
        start = end;
    }
    Value::iter(columns)
}

fn copied_args(env: Env<'_>, args: &Args) -> Res<Args> {
    env.budget.values(2 * args.named.len())?;
    Ok(Args { positional: ops::copied(&args.positional, env.budget)?, named: args.named.clone() })
}

fn map(env: Env<'_>, value: &Value, mut args: Args) -> Res<Value> {
    let items = if value.is_true() { ops::items(value, env.budget)? } else { Vec::new() };
    let mut all = Vec::new();
    if args.positional.is_empty() {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let attribute = attribute.ok_or_else(|| Fault::invalid("map requires a filter argument"))?;
        for item in items {
            let item = attribute_of(env, item, Some(&attribute), default.as_ref())?;
            memory::push(&mut all, item, "a list of a chat template")?;
        }
        return Value::iter(all);
    }
    let name = strings::string(args.positional.remove(0), "map")?;
    let inner = env.deeper()?;
    for item in items {
        let item = call(inner, name.as_str(), item, copied_args(env, &args)?)?;
        env.budget.values(1)?;
        memory::push(&mut all, item, "a list of a chat template")?;
    }
    Value::iter(all)
}

fn select(env: Env<'_>, filter: &str, value: &Value, mut args: Args) -> Res<Value> {
    let items = if value.is_true() { ops::items(value, env.budget)? } else { Vec::new() };
    let attribute = match filter.ends_with("attr") {
        true if args.positional.is_empty() => return Err(Fault::invalid("Missing parameter for attribute name")),
        true => Some(args.positional.remove(0)),
        false => None,
    };
    let test =
        if args.positional.is_empty() { None } else { Some(strings::string(args.positional.remove(0), filter)?) };
    let wanted = filter.starts_with("select");
    let mut all = Vec::new();
    for item in items {
        env.budget.values(1)?;
        let tested = attribute_of(env, item.clone(), attribute.as_ref(), None)?;
        let passes = match &test {
            Some(test) => checks::call(env, test.as_str(), &tested, copied_args(env, &args)?)?,
            None => tested.is_true(),
        };
        if passes == wanted {
            memory::push(&mut all, item, "a list of a chat template")?;
        }
    }
    Value::iter(all)
}
