//! Tests: the names that follow `is`.

use super::args::{Args, required};
use super::ast::MathOp;
use super::eval::Env;
use super::fault::{Fault, Res};
use super::text::By;
use super::value::Value;
use super::{filters, math, ops, repr, strings};
use std::cmp::Ordering;

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Applies a test.
pub(super) fn call(env: Env<'_>, name: &str, value: &Value, args: Args) -> Res<bool> {
    let budget = env.budget;
    let takes_one = matches!(
        name,
        "divisibleby"
            | "sameas"
            | "in"
            | "=="
            | "eq"
            | "equalto"
            | "!="
            | "ne"
            | ">"
            | "gt"
            | "greaterthan"
            | "ge"
            | ">="
            | "<"
            | "lt"
            | "lessthan"
            | "<="
            | "le"
    );
    let other = if takes_one {
        let [other] = args.bind(name, ["other"])?;
        required(other, name)?
    } else if NAMES.contains(&name) {
        let [] = args.bind(name, [])?;
        Value::NONE
    } else {
        return Err(Fault::unknown("test", name));
    };
    let order = |wanted: &[Ordering]| -> Res<bool> {
        Ok(ops::compare(value, &other, budget)?.is_some_and(|order| wanted.contains(&order)))
    };
    let rest = |by: &Value| math::math(MathOp::Rem, value, by, budget);
    let is_rest = |by: &Value, wanted: i128| -> Res<bool> {
        let wanted = Value::Int(wanted, By::Template);
        ops::equal(&rest(by)?, &wanted, budget)
    };
    let two = Value::Int(2, By::Template);
    Ok(match name {
        "odd" => is_rest(&two, 1)?,
        "even" => is_rest(&two, 0)?,
        "divisibleby" => is_rest(&other, 0)?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => value.as_str().is_some_and(filters::exists),
        "test" => value.as_str().is_some_and(|name| NAMES.contains(&name)),
        "none" => value.is_none(),
        "boolean" => matches!(value, Value::Bool(..)),
        "false" => matches!(value, Value::Bool(false, _)),
        "true" => matches!(value, Value::Bool(true, _)),
        "integer" => matches!(value, Value::Int(..)),
        "float" => matches!(value, Value::Float(..)),
        "number" => matches!(value, Value::Int(..) | Value::Float(..) | Value::Bool(..)),
        "lower" | "upper" => {
            let text = repr::text_of(value, budget)?;
            budget.bytes(text.len())?;
            if name == "lower" { strings::is_lower(text.as_str()) } else { strings::is_upper(text.as_str()) }
        }
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => {
            matches!(
                value,
                Value::Text(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Range(_)
                    | Value::Undefined(_)
            )
        }
        "iterable" => ops::is_iterable(value),
        "callable" => matches!(value, Value::Call(_) | Value::Loop(_) | Value::Undefined(_)),
        "sameas" => ops::is_same(value, &other),
        "escaped" => false,
        "in" => ops::contains(&other, value, budget)?,
        "==" | "eq" | "equalto" => ops::equal(value, &other, budget)?,
        "!=" | "ne" => !ops::equal(value, &other, budget)?,
        ">" | "gt" | "greaterthan" => order(&[Ordering::Greater])?,
        ">=" | "ge" => order(&[Ordering::Greater, Ordering::Equal])?,
        "<" | "lt" | "lessthan" => order(&[Ordering::Less])?,
        _ => order(&[Ordering::Less, Ordering::Equal])?,
    })
}
