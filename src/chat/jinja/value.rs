//! The values of the template language: those of Python, as far as templates can have them.
//!
//! A value that is no container records who wrote it, as a text does: the digits of a number that
//! the caller gave are the caller's. Containers are shared. Each container knows how deeply it
//! nests, and the depth has a limit, so that no code that walks a value (or drops it) recurses
//! deeply. Containers that a template has changed may nest in each other, or in themselves. They
//! are kept until the rendering ends (see [`Kept`]) and then emptied one by one.

use super::budget::Budget;
use super::dict::Map;
use super::eval::{LoopState, Macro, Scope};
use super::fault::{Fault, Res};
use super::text::{By, Text};
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::rc::Rc;

/// How deeply values may nest.
pub(super) const MAX_DEPTH: u32 = 100;

#[derive(Clone, Debug)]
pub(super) enum Value {
    Undefined(Rc<Missing>),
    None(By),
    Bool(bool, By),
    Int(i128, By),
    Float(f64, By),
    Text(Text),
    List(Rc<List>),
    Tuple(Rc<Tuple>),
    Dict(Rc<Dict>),
    View(Rc<Dict>, View),
    Range(Rc<Range>),
    Iter(Rc<Iter>),
    Namespace(Rc<Dict>),
    Loop(Rc<LoopState>),
    Call(Rc<Callable>),
}

/// Why a value is undefined.
#[derive(Debug)]
pub(super) enum Missing {
    Name(Rc<str>),
    Attribute(&'static str, Rc<str>),
    Element(&'static str, Rc<str>),
    Parameter(Rc<str>),
    Hint(&'static str),
}

impl Missing {
    pub fn message(&self) -> String {
        match self {
            Self::Name(name) => format!("'{name}' is undefined"),
            Self::Attribute(of, name) => format!("'{of} object' has no attribute '{name}'"),
            Self::Element(of, index) => format!("{of} object has no element {index}"),
            Self::Parameter(name) => format!("parameter '{name}' was not provided"),
            Self::Hint(hint) => (*hint).to_string(),
        }
    }
}

#[derive(Debug)]
pub(super) struct List {
    items: RefCell<Vec<Value>>,
    depth: u32,
    is_kept: Cell<bool>,
    /// The writer of the brackets.
    pub by: By,
}

#[derive(Debug)]
pub(super) struct Tuple {
    pub items: Vec<Value>,
    depth: u32,
    /// Whether it is a group of `groupby`; the items of a group have names.
    pub is_group: bool,
}

#[derive(Debug)]
pub(super) struct Dict {
    map: RefCell<Map>,
    depth: u32,
    is_kept: Cell<bool>,
    /// The writer of the braces.
    pub by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// Python's `range`. `len` is precomputed, and `stop` is only for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub start: i128,
    pub stop: i128,
    pub step: i128,
    pub len: usize,
}

impl Range {
    pub fn get(&self, index: usize) -> Option<Value> {
        let at = || self.start.checked_add(self.step.checked_mul(i128::try_from(index).ok()?)?);
        (index < self.len).then(at).flatten().map(|at| Value::Int(at, By::Template))
    }
}

/// Values that can be looped over once, like Python's generators.
#[derive(Debug)]
pub(super) struct Iter {
    pub items: Vec<Value>,
    pub next: Cell<usize>,
    depth: u32,
}

#[derive(Debug)]
pub(super) enum Callable {
    /// A method that was looked up but not yet called.
    Method(Value, Rc<str>),
    Global(&'static str),
    Macro(Macro),
    Cycler(Rc<Tuple>, Cell<usize>),
    Joiner(Text, Cell<bool>),
}

/// Changed containers, kept until the rendering ends. Otherwise a container that contains itself
/// would never be freed, and dropping a deeply nested one would recurse deeply.
#[derive(Debug, Default)]
pub(super) struct Kept {
    lists: RefCell<Vec<Rc<List>>>,
    dicts: RefCell<Vec<Rc<Dict>>>,
    scopes: RefCell<Vec<Rc<Scope>>>,
}

impl Kept {
    /// Keeps the variables of a scope. The caller makes sure that this happens only once.
    pub fn keep_scope(&self, scope: &Rc<Scope>, budget: &Budget) -> Res<()> {
        budget.memory(2 * size_of::<Rc<Scope>>())?;
        Ok(crate::memory::push(&mut self.scopes.borrow_mut(), scope.clone(), "the variables of a chat template")?)
    }

    fn keep<T>(kept: &RefCell<Vec<Rc<T>>>, value: &Rc<T>, is_kept: &Cell<bool>, budget: &Budget) -> Res<()> {
        if !is_kept.replace(true) {
            budget.memory(2 * size_of::<Rc<T>>())?;
            crate::memory::push(&mut kept.borrow_mut(), value.clone(), "the lists of a chat template")?;
        }
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for list in self.lists.take() {
            // Drops the items only after the borrow has ended.
            let items = std::mem::take(&mut *list.items.borrow_mut());
            drop(items);
        }
        for dict in self.dicts.take() {
            let map = std::mem::take(&mut *dict.map.borrow_mut());
            drop(map);
        }
        for scope in self.scopes.take() {
            drop(scope.clear());
        }
    }
}

fn depth_around<'v>(values: impl Iterator<Item = &'v Value>) -> Res<u32> {
    let depth = 1 + values.map(Value::depth).max().unwrap_or(0);
    if depth > MAX_DEPTH { Err(Fault::too_deep("a value")) } else { Ok(depth) }
}

impl List {
    pub fn items(&self) -> Ref<'_, Vec<Value>> {
        self.items.borrow()
    }

    /// The items, for changes. Do not drop items while they are borrowed.
    pub fn change(self: &Rc<Self>, kept: &Kept, budget: &Budget) -> Res<RefMut<'_, Vec<Value>>> {
        Kept::keep(&kept.lists, self, &self.is_kept, budget)?;
        Ok(self.items.borrow_mut())
    }
}

impl Dict {
    pub fn map(&self) -> Ref<'_, Map> {
        self.map.borrow()
    }

    pub fn change(self: &Rc<Self>, kept: &Kept, budget: &Budget) -> Res<RefMut<'_, Map>> {
        Kept::keep(&kept.dicts, self, &self.is_kept, budget)?;
        Ok(self.map.borrow_mut())
    }
}

impl Value {
    pub const NONE: Self = Self::None(By::Template);

    pub fn bool(value: bool) -> Self {
        Self::Bool(value, By::Template)
    }

    /// A number that comes from the template.
    pub fn count(value: usize) -> Self {
        Self::Int(value as i128, By::Template)
    }

    pub fn hint(hint: &'static str) -> Self {
        Self::Undefined(Rc::new(Missing::Hint(hint)))
    }

    /// A short text that the template writes.
    pub fn str(text: &'static str) -> Self {
        Self::Text(Text::from_string(text.to_string(), By::Template))
    }

    /// A list. The caller has paid for `items`.
    pub fn list(items: Vec<Self>) -> Res<Self> {
        Self::list_by(items, By::Template)
    }

    pub fn list_by(items: Vec<Self>, by: By) -> Res<Self> {
        let depth = depth_around(items.iter())?;
        Ok(Self::List(Rc::new(List { items: RefCell::new(items), depth, is_kept: Cell::new(false), by })))
    }

    pub fn tuple(items: Vec<Self>) -> Res<Self> {
        let depth = depth_around(items.iter())?;
        Ok(Self::Tuple(Rc::new(Tuple { items, depth, is_group: false })))
    }

    pub fn group(key: Self, list: Self) -> Res<Self> {
        let items = vec![key, list];
        let depth = depth_around(items.iter())?;
        Ok(Self::Tuple(Rc::new(Tuple { items, depth, is_group: true })))
    }

    pub fn dict(map: Map) -> Res<Self> {
        Self::dict_by(map, By::Template)
    }

    pub fn dict_by(map: Map, by: By) -> Res<Self> {
        Ok(Self::Dict(Rc::new(Dict::new(map, by)?)))
    }

    pub fn namespace(map: Map) -> Res<Self> {
        Ok(Self::Namespace(Rc::new(Dict::new(map, By::Template)?)))
    }

    pub fn iter(items: Vec<Self>) -> Res<Self> {
        let depth = depth_around(items.iter())?;
        Ok(Self::Iter(Rc::new(Iter { items, next: Cell::new(0), depth })))
    }

    pub fn cycler(items: Vec<Self>) -> Res<Self> {
        let depth = depth_around(items.iter())?;
        let items = Rc::new(Tuple { items, depth, is_group: false });
        Ok(Self::Call(Rc::new(Callable::Cycler(items, Cell::new(0)))))
    }

    /// A method of `of`.
    pub fn method(of: Self, name: &Rc<str>) -> Res<Self> {
        depth_around([&of].into_iter())?;
        Ok(Self::Call(Rc::new(Callable::Method(of, name.clone()))))
    }

    /// How deeply the value nests, not counting kept containers (see [`Kept`]).
    pub fn depth(&self) -> u32 {
        match self {
            Self::List(list) if !list.is_kept.get() => list.depth,
            Self::Tuple(tuple) => tuple.depth,
            Self::Dict(dict) | Self::View(dict, _) | Self::Namespace(dict) if !dict.is_kept.get() => dict.depth,
            Self::Iter(iter) => iter.depth,
            Self::Loop(state) => state.depth(),
            Self::Call(call) => match &**call {
                Callable::Method(of, _) => 1 + of.depth(),
                Callable::Cycler(items, _) => items.depth,
                _ => 0,
            },
            _ => 0,
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Self::None(_))
    }

    pub fn as_text(&self) -> Option<&Text> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        self.as_text().map(Text::as_str)
    }

    /// The value as an integer; a bool counts as one.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(i, _) => Some(*i),
            Self::Bool(b, _) => Some(i128::from(*b)),
            _ => None,
        }
    }

    /// Any number as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(f, _) => Some(*f),
            _ => self.as_int().map(|i| i as f64),
        }
    }

    /// The writer of a value that is no container.
    pub fn by(&self) -> By {
        match self {
            Self::None(by) | Self::Bool(_, by) | Self::Int(_, by) | Self::Float(_, by) => *by,
            Self::Text(text) => text.by(),
            Self::List(list) => list.by,
            Self::Dict(dict) => dict.by,
            _ => By::Template,
        }
    }

    /// The value's truth in Python.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None(_) => false,
            Self::Bool(b, _) => *b,
            Self::Int(i, _) => *i != 0,
            Self::Float(f, _) => *f != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => !list.items().is_empty(),
            Self::Tuple(tuple) => !tuple.items.is_empty(),
            Self::Dict(dict) | Self::View(dict, _) => !dict.map().is_empty(),
            Self::Range(range) => range.len > 0,
            Self::Loop(state) => state.len() > 0,
            Self::Iter(_) | Self::Namespace(_) | Self::Call(_) => true,
        }
    }

    /// Python's name for the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None(_) => "NoneType",
            Self::Bool(..) => "bool",
            Self::Int(..) => "int",
            Self::Float(..) => "float",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(tuple) if tuple.is_group => "_GroupTuple",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(_, View::Keys) => "dict_keys",
            Self::View(_, View::Values) => "dict_values",
            Self::View(_, View::Items) => "dict_items",
            Self::Range(_) => "range",
            Self::Iter(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Call(call) => match &**call {
                Callable::Method(..) => "builtin_function_or_method",
                Callable::Global(_) => "function",
                Callable::Macro(_) => "Macro",
                Callable::Cycler(..) => "Cycler",
                Callable::Joiner(..) => "Joiner",
            },
        }
    }

    /// The fault for using an undefined value; `None` for a defined one.
    pub fn undefined_fault(&self) -> Option<Fault> {
        match self {
            Self::Undefined(missing) => Some(Fault::undefined(missing.message())),
            _ => None,
        }
    }
}

impl Dict {
    fn new(map: Map, by: By) -> Res<Self> {
        let depth = depth_around(map.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self { map: RefCell::new(map), depth, is_kept: Cell::new(false), by })
    }
}
