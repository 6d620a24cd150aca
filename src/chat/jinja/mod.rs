//! An engine for chat templates: Jinja 2 as Hugging Face sets it up. Every text records who wrote
//! each character, and every operation is charged before it does its work.
//!
//! A template comes from an untrusted file. [`parse`](Template::parse) bounds how deeply it nests.
//! A rendering counts its steps, its memory, its output and its stack (see [`budget`]), and ends
//! with an error if it goes on too long. It needs neither a thread nor a large stack of its own.

mod args;
mod ast;
mod attributes;
mod budget;
mod checks;
mod dict;
mod eval;
mod expr;
mod fault;
mod filters;
mod format;
mod globals;
mod html;
mod json;
mod layout;
mod lexer;
mod math;
mod methods;
mod ops;
mod parser;
mod repr;
mod statements;
mod strings;
mod text;
mod text_filters;
mod value;
mod wrap;

pub(super) use budget::Limits;
pub(super) use text::By;

use super::Json;
use crate::{Error, ErrorKind, Result};
use budget::Budget;
use dict::Map;
use fault::{Fault, Res};
use std::time::SystemTime;
use text::Text;
use value::{Kept, Value};

/// The longest accepted template in bytes. The longest known ones have about 30,000.
const MAX_SOURCE: usize = 1 << 20;

/// A parsed template; renderings share it.
#[derive(Debug)]
pub(super) struct Template {
    inner: ast::Template,
}

/// The output of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rendered {
    pub text: String,
    /// The bytes at which the writer changes, ascending. The template comes first, then the caller.
    pub borders: Vec<usize>,
}

impl Template {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            let message = format!("the chat template is {} bytes long; {MAX_SOURCE} are accepted", source.len());
            return Err(Error::new(ErrorKind::Template, message));
        }
        let inner = statements::parse(source).map_err(Fault::into_error)?;
        Ok(Self { inner })
    }

    /// Renders the template with the variables that `fill` sets.
    pub fn render(
        &self,
        now: SystemTime,
        limits: Limits,
        fill: impl FnOnce(&mut Variables<'_>) -> Result<()>,
    ) -> Result<Rendered> {
        let budget = Budget::new(limits);
        let kept = Kept::default();
        let mut variables = Variables { budget: &budget, all: Vec::new() };
        fill(&mut variables)?;
        let all = std::mem::take(&mut variables.all);
        let run = || -> Res<Rendered> {
            let env = eval::Env { budget: &budget, kept: &kept, now, filters: 0 };
            let mut machine = eval::Machine::new(&self.inner, env)?;
            for (name, value) in all {
                machine.set_variable(&name, value);
            }
            let (text, borders) = machine.run()?.into_parts(&budget)?;
            Ok(Rendered { text, borders })
        };
        run().map_err(Fault::into_error)
    }
}

/// The variables of a rendering.
pub(super) struct Variables<'b> {
    budget: &'b Budget,
    all: Vec<(String, Value)>,
}

/// A caller's value for a template.
#[derive(Clone, Debug)]
pub(super) struct Given(Value);

impl<'b> Variables<'b> {
    pub fn set(&mut self, name: impl Into<String>, value: Given) {
        let name = name.into();
        self.all.retain(|(other, _)| *other != name);
        self.all.push((name, value.0));
    }

    fn given(value: Res<Value>) -> Result<Given> {
        value.map(Given).map_err(Fault::into_error)
    }

    pub fn text(&self, text: &str, by: By) -> Result<Given> {
        Self::given(Text::new(text, by, self.budget).map(Value::Text))
    }

    pub fn none(&self) -> Given {
        Given(Value::NONE)
    }

    pub fn bool(&self, value: bool) -> Given {
        Given(Value::bool(value))
    }

    /// The caller's JSON as a value.
    pub fn json(&self, json: &Json) -> Result<Given> {
        Self::given(json::value_of(json, By::Caller, self.budget))
    }

    /// A list whose brackets the template writes.
    pub fn list(&self, items: impl IntoIterator<Item = Result<Given>>) -> Result<Given> {
        let mut values = Vec::new();
        for item in items {
            self.budget.values(2).map_err(Fault::into_error)?;
            crate::memory::push(&mut values, item?.0, "the conversation of a chat template")?;
        }
        Self::given(Value::list(values))
    }

    /// A dictionary whose keys the template writes.
    pub fn dict(&self, entries: impl IntoIterator<Item = (&'static str, Given)>) -> Result<Given> {
        let mut map = Map::default();
        let insert = |map: &mut Map, key: &str, value: Given| -> Res<()> {
            let key = Value::Text(Text::new(key, By::Template, self.budget)?);
            map.insert(key, value.0, self.budget).map(drop)
        };
        for (key, value) in entries {
            insert(&mut map, key, value).map_err(Fault::into_error)?;
        }
        Self::given(Value::dict(map))
    }
}
