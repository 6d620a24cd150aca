//! Arguments of calls.

use super::budget::Budget;
use super::fault::{Fault, Res};
use super::value::Value;
use crate::memory;

#[derive(Debug, Default)]
pub(super) struct Args {
    pub positional: Vec<Value>,
    /// By name; the names are texts.
    pub named: Vec<(Value, Value)>,
}

impl Args {
    pub fn add_named(&mut self, name: Value, value: Value, budget: &Budget) -> Res<()> {
        let Some(text) = name.as_str() else { return Err(Fault::invalid("keywords must be strings")) };
        budget.items(self.named.len())?;
        if self.named.iter().any(|(other, _)| other.as_str() == Some(text)) {
            return Err(Fault::invalid(format_args!("multiple values for keyword argument {text:?}")));
        }
        budget.values(4)?;
        Ok(memory::push(&mut self.named, (name, value), "the arguments of a call")?)
    }

    pub fn take_named(&mut self, name: &str) -> Option<Value> {
        let place = self.named.iter().position(|(other, _)| other.as_str() == Some(name))?;
        Some(self.named.remove(place).1)
    }

    /// The arguments in the order of the parameters of `what`; `None` for each that the call does
    /// not give.
    pub fn bind<const N: usize>(mut self, what: &str, params: [&str; N]) -> Res<[Option<Value>; N]> {
        if self.positional.len() > N {
            let got = self.positional.len();
            return Err(Fault::invalid(format_args!("'{what}' takes at most {N} arguments ({got} given)")));
        }
        let mut positional = std::mem::take(&mut self.positional).into_iter();
        let mut twice = None;
        let bound = params.map(|param| {
            let value = positional.next();
            match self.take_named(param) {
                Some(_) if value.is_some() => {
                    twice = Some(param);
                    value
                }
                Some(named) => Some(named),
                None => value,
            }
        });
        if let Some(param) = twice {
            return Err(Fault::invalid(format_args!("'{what}' got multiple values for argument '{param}'")));
        }
        if let Some((name, _)) = self.named.first() {
            let name = name.as_str().unwrap_or_default();
            return Err(Fault::invalid(format_args!("'{what}' got an unexpected keyword argument '{name}'")));
        }
        Ok(bound)
    }
}

/// An argument that the call must give.
pub(super) fn required(value: Option<Value>, what: &str) -> Res<Value> {
    value.ok_or_else(|| Fault::invalid(format_args!("'{what}' misses a required argument")))
}

/// An argument as an integer; `None` where the call gives none, or `None`.
pub(super) fn integer(value: Option<&Value>, what: &str) -> Res<Option<i128>> {
    match value {
        None | Some(Value::None(_)) => Ok(None),
        Some(value) => match value.as_int() {
            Some(i) => Ok(Some(i)),
            None => Err(value.undefined_fault().unwrap_or_else(|| {
                Fault::invalid(format_args!("'{what}' needs an integer, not '{}'", value.type_name()))
            })),
        },
    }
}

/// Whether an argument is true; `default` where the call does not give it.
pub(super) fn flag(value: Option<&Value>, default: bool) -> bool {
    value.map_or(default, Value::is_true)
}

/// As [`flag`], for an argument that Python takes as a number: whether it is given and is not 0.
pub(super) fn whole_flag(value: Option<&Value>, what: &str) -> Res<bool> {
    match value {
        Some(Value::None(_)) => Err(Fault::invalid(format_args!("'{what}' needs an integer, not 'NoneType'"))),
        _ => Ok(integer(value, what)?.is_some_and(|number| number != 0)),
    }
}
