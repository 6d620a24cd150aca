//! Runs templates: statements. [`super::expr`] has the expressions.

use super::ast::{Block, Const, ForLoop, Name, Post, Stmt, StmtKind, Target, Template};
use super::budget::Budget;
use super::fault::{Fault, Res};
use super::ops;
use super::parser::LOOP;
use super::repr;
use super::strings;
use super::text::{Builder, Text};
use super::value::{Kept, List, Range, Tuple, Value};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::SystemTime;

/// The deepest nesting of statements, expressions and macros together. See [`Machine::enter`].
const MAX_LEVELS: u32 = 1000;
/// The deepest nesting of calls of macros and recursive loops.
const MAX_CALLS: u32 = 100;
/// How deeply `map` may apply itself.
const MAX_FILTERS: u32 = 8;
/// How much stack a rendering may use, in bytes.
const MAX_STACK: usize = if cfg!(debug_assertions) { 1 << 20 } else { 256 << 10 };

/// The environment that all functions of templates get.
#[derive(Clone, Copy)]
pub(super) struct Env<'t> {
    pub budget: &'t Budget,
    pub kept: &'t Kept,
    pub now: SystemTime,
    /// How many filters are applying filters at this point.
    pub filters: u32,
}

impl Env<'_> {
    /// The environment for a filter that another filter applies.
    pub fn deeper(self) -> Res<Self> {
        if self.filters >= MAX_FILTERS {
            return Err(Fault::too_deep("'map'"));
        }
        Ok(Self { filters: self.filters + 1, ..self })
    }
}

/// The variables of a block, and the enclosing scope. The template's own variables are in
/// [`Machine::root`].
#[derive(Debug)]
pub(super) struct Scope {
    vars: RefCell<Vec<(Name, Value)>>,
    parent: Option<Rc<Scope>>,
    is_kept: Cell<bool>,
}

impl Scope {
    /// Removes all variables and returns them.
    pub fn clear(&self) -> Vec<(Name, Value)> {
        self.vars.take()
    }
}

/// A macro with the scope of its definition.
#[derive(Debug)]
pub(super) struct Macro {
    pub name: Rc<str>,
    /// The number of its definition.
    pub def: u32,
    pub scope: Option<Rc<Scope>>,
    /// The names of its parameters.
    pub arguments: Value,
}

/// The values that a loop goes over.
#[derive(Debug)]
enum Items {
    Values(Vec<Value>),
    /// A list, which may change during the loop.
    List(Rc<List>),
    Tuple(Rc<Tuple>),
    Range(Range),
}

/// The variable `loop`.
#[derive(Debug)]
pub(super) struct LoopState {
    items: Items,
    index: Cell<usize>,
    pub depth0: usize,
    nesting: u32,
    /// The number of a recursive loop, and its enclosing scope.
    pub recursive: Option<(u32, Option<Rc<Scope>>)>,
    /// The arguments of the last call of `changed`.
    pub changed: RefCell<Option<Rc<List>>>,
}

impl LoopState {
    pub fn len(&self) -> usize {
        match &self.items {
            Items::Values(values) => values.len(),
            Items::List(list) => list.items().len(),
            Items::Tuple(tuple) => tuple.items.len(),
            Items::Range(range) => range.len,
        }
    }

    pub fn index(&self) -> usize {
        self.index.get()
    }

    pub fn item(&self, at: usize) -> Option<Value> {
        match &self.items {
            Items::Values(values) => values.get(at).cloned(),
            Items::List(list) => list.items().get(at).cloned(),
            Items::Tuple(tuple) => tuple.items.get(at).cloned(),
            Items::Range(range) => range.get(at),
        }
    }

    /// The places of the remaining items; this counts them as passed.
    pub fn rest(&self) -> std::ops::Range<usize> {
        let rest = (self.index.get() + 1).min(self.len())..self.len();
        if !rest.is_empty() {
            self.index.set(self.len() - 1);
        }
        rest
    }

    /// How deeply the loop nests as a value.
    pub fn depth(&self) -> u32 {
        self.nesting
    }
}

/// How execution goes on after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// A running template.
pub(super) struct Machine<'t> {
    pub template: &'t Template,
    pub env: Env<'t>,
    out: Builder<'t>,
    consts: Vec<Option<Value>>,
    names: Vec<Option<Rc<str>>>,
    root: Vec<Option<Value>>,
    pub scope: Option<Rc<Scope>>,
    levels: u32,
    calls: u32,
    stack: usize,
}

/// The approximate position of the stack.
#[inline(never)]
fn stack_position() -> usize {
    let marker = 0u8;
    std::hint::black_box(&raw const marker) as usize
}

impl<'t> Machine<'t> {
    pub fn new(template: &'t Template, env: Env<'t>) -> Res<Self> {
        let (consts, names) = (template.consts.len(), template.names.len());
        env.budget.values(consts.saturating_add(2 * names))?;
        let what = "the variables of a chat template";
        Ok(Self {
            template,
            env,
            out: Builder::new(env.budget),
            consts: crate::memory::filled(consts, None, what)?,
            names: crate::memory::filled(names, None, what)?,
            root: crate::memory::filled(names, None, what)?,
            scope: None,
            levels: 0,
            calls: 0,
            stack: stack_position(),
        })
    }

    /// Sets a variable of the caller, if the template uses its name.
    pub fn set_variable(&mut self, name: &str, value: Value) {
        if let Some(place) = self.template.names.iter().position(|other| **other == *name)
            && let Some(slot) = self.root.get_mut(place)
        {
            *slot = Some(value);
        }
    }

    /// Runs the template, and returns its output.
    pub fn run(mut self) -> Res<Text> {
        self.block(&self.template.body)?;
        Ok(self.out.finish())
    }

    /// Goes one level deeper into the template; [`leave`](Self::leave) goes back.
    #[inline]
    pub fn enter(&mut self) -> Res<()> {
        self.env.budget.steps(1)?;
        self.levels += 1;
        if self.levels > MAX_LEVELS || self.stack.abs_diff(stack_position()) > MAX_STACK {
            return Err(Fault::too_deep("it is in a recursion that"));
        }
        Ok(())
    }

    #[inline]
    pub fn leave(&mut self) {
        self.levels -= 1;
    }

    /// Enters a macro or a recursive loop.
    pub fn enter_call(&mut self) -> Res<()> {
        self.calls += 1;
        if self.calls > MAX_CALLS {
            return Err(Fault::too_deep("a recursion"));
        }
        Ok(())
    }

    pub fn leave_call(&mut self) {
        self.calls -= 1;
    }

    pub fn constant(&mut self, number: u32) -> Res<Value> {
        let (template, budget) = (self.template, self.env.budget);
        let Some(slot) = self.consts.get_mut(number as usize) else { return Ok(Value::NONE) };
        if let Some(value) = slot {
            return Ok(value.clone());
        }
        let by = Const::BY;
        let value = match template.consts.get(number as usize) {
            Some(Const::Text(text)) => Value::Text(Text::new(text, by, budget)?),
            Some(Const::Bool(b)) => Value::Bool(*b, by),
            Some(Const::Int(i)) => Value::Int(*i, by),
            Some(Const::Float(f)) => Value::Float(*f, by),
            Some(Const::None) | None => Value::None(by),
        };
        *slot = Some(value.clone());
        Ok(value)
    }

    /// The text of a constant that is a text.
    pub fn constant_text(&self, number: u32) -> &'t str {
        match self.template.consts.get(number as usize) {
            Some(Const::Text(text)) => text,
            _ => "",
        }
    }

    /// The text of a name.
    pub fn name(&mut self, name: Name) -> Rc<str> {
        let template = self.template;
        let text = || template.names.get(name as usize).map_or_else(|| "".into(), |name| Rc::from(&**name));
        match self.names.get_mut(name as usize) {
            Some(slot) => slot.get_or_insert_with(text).clone(),
            None => text(),
        }
    }

    pub fn lookup(&self, name: Name) -> Option<Value> {
        let mut scope = &self.scope;
        while let Some(inner) = scope {
            if let Some((_, value)) = inner.vars.borrow().iter().find(|(other, _)| *other == name) {
                return Some(value.clone());
            }
            scope = &inner.parent;
        }
        self.root.get(name as usize).cloned().flatten()
    }

    pub fn assign(&mut self, name: Name, value: Value) -> Res<()> {
        match &self.scope {
            Some(scope) => {
                let mut vars = scope.vars.borrow_mut();
                if let Some((_, slot)) = vars.iter_mut().find(|(other, _)| *other == name) {
                    let old = std::mem::replace(slot, value);
                    drop(vars);
                    drop(old);
                } else {
                    if vars.len() == vars.capacity() {
                        self.env.budget.memory((vars.len() + 4) * 2 * size_of::<(Name, Value)>())?;
                    }
                    crate::memory::push(&mut vars, (name, value), "the variables of a chat template")?;
                }
            }
            None => {
                if let Some(slot) = self.root.get_mut(name as usize) {
                    *slot = Some(value);
                }
            }
        }
        Ok(())
    }

    /// Begins a scope inside of `parent`; returns the previous scope.
    pub fn begin_scope(&mut self, parent: Option<Rc<Scope>>) -> Res<Option<Rc<Scope>>> {
        self.env.budget.memory(96)?;
        let scope = Scope { vars: RefCell::default(), parent, is_kept: Cell::new(false) };
        Ok(self.scope.replace(Rc::new(scope)))
    }

    /// Begins the scope of a loop's next item inside of `outer`. It reuses the last item's scope
    /// where nothing refers to that.
    fn next_scope(&mut self, outer: &Option<Rc<Scope>>, is_first: bool) -> Res<()> {
        match self.scope.as_mut().filter(|_| !is_first).and_then(Rc::get_mut) {
            Some(scope) => scope.vars.get_mut().clear(),
            None => drop(self.begin_scope(outer.clone())?),
        }
        Ok(())
    }

    /// The current scope, kept until the rendering ends, because its own variables may refer to it.
    pub fn kept_scope(&self) -> Res<Option<Rc<Scope>>> {
        let mut scope = &self.scope;
        while let Some(inner) = scope {
            if inner.is_kept.replace(true) {
                break;
            }
            self.env.kept.keep_scope(inner, self.env.budget)?;
            scope = &inner.parent;
        }
        Ok(self.scope.clone())
    }

    pub fn block(&mut self, block: &'t Block) -> Res<Flow> {
        for stmt in block {
            let flow = match &stmt.kind {
                StmtKind::Data(number) => self.data(*number),
                _ => self.statement(stmt),
            };
            match flow {
                Ok(Flow::Next) => {}
                Ok(flow) => return Ok(flow),
                Err(fault) => return Err(fault.at(stmt.line)),
            }
        }
        Ok(Flow::Next)
    }

    fn data(&mut self, number: u32) -> Res<Flow> {
        self.env.budget.steps(1)?;
        self.out.push_str(self.constant_text(number), Const::BY)?;
        Ok(Flow::Next)
    }

    /// Writes a value.
    pub fn print(&mut self, value: &Value) -> Res<()> {
        repr::write_str(value, &mut self.out)
    }

    fn statement(&mut self, stmt: &'t Stmt) -> Res<Flow> {
        self.enter()?;
        let flow = match &stmt.kind {
            StmtKind::If(arms, otherwise) => self.if_statement(arms, otherwise)?,
            StmtKind::Scope(body) => self.scoped(body)?,
            StmtKind::Outermost(body) => {
                let outer = self.scope.take();
                let flow = self.scoped(body)?;
                self.scope = outer;
                flow
            }
            StmtKind::With(targets, body) => self.with(targets, body)?,
            StmtKind::For(number, items) => {
                let items = self.eval(items)?;
                self.for_statement(*number, items)?;
                Flow::Next
            }
            StmtKind::Break => Flow::Break,
            StmtKind::Continue => Flow::Continue,
            _ => {
                self.simple(stmt)?;
                Flow::Next
            }
        };
        self.leave();
        Ok(flow)
    }

    /// Runs a statement that always continues with the next one.
    #[inline(never)]
    fn simple(&mut self, stmt: &'t Stmt) -> Res<()> {
        match &stmt.kind {
            StmtKind::Print(expr) => {
                let value = self.eval(expr)?;
                self.print(&value)
            }
            StmtKind::Set(target, expr) => {
                let value = self.eval(expr)?;
                self.assign_target(target, value)
            }
            StmtKind::SetBlock(target, posts, body) => {
                let value = self.captured(posts, body)?;
                self.assign_target(target, value)
            }
            StmtKind::Filter(posts, body) => {
                let value = self.captured(posts, body)?;
                let text = strings::string(value, "a filter block")?;
                self.out.push_text(&text)
            }
            StmtKind::Macro(def, name) => {
                let value = self.define_macro(*def)?;
                self.assign(*name, value)
            }
            StmtKind::Call(def, call) => {
                let caller = self.define_macro(*def)?;
                let value = self.eval_call_with(call, caller)?;
                self.print(&value)
            }
            StmtKind::Other(name) => {
                let name = self.eval(name)?;
                let name = repr::text_of(&name, self.env.budget)?;
                let shown: String = name.as_str().chars().take(80).collect();
                Err(Fault::not_found(format_args!("there is no template {shown:?} to include, import or extend")))
            }
            _ => Ok(()),
        }
    }

    #[inline(never)]
    fn if_statement(&mut self, arms: &'t [(super::ast::Expr, Block)], otherwise: &'t Block) -> Res<Flow> {
        for (test, body) in arms {
            if self.eval(test)?.is_true() {
                return self.block(body);
            }
        }
        self.block(otherwise)
    }

    #[inline(never)]
    fn scoped(&mut self, body: &'t Block) -> Res<Flow> {
        let outer = self.begin_scope(self.scope.clone())?;
        let flow = self.block(body)?;
        self.scope = outer;
        Ok(flow)
    }

    #[inline(never)]
    fn with(&mut self, targets: &'t [(Target, super::ast::Expr)], body: &'t Block) -> Res<Flow> {
        let outer = self.scope.clone();
        self.begin_scope(outer.clone())?;
        for (target, expr) in targets {
            // Values are evaluated in the enclosing scope.
            let inner = std::mem::replace(&mut self.scope, outer.clone());
            let value = self.eval(expr)?;
            self.scope = inner;
            self.assign_target(target, value)?;
        }
        let flow = self.block(body)?;
        self.scope = outer;
        Ok(flow)
    }

    /// The output of a block, after filters.
    #[inline(never)]
    fn captured(&mut self, posts: &'t [Post], body: &'t Block) -> Res<Value> {
        let before = std::mem::replace(&mut self.out, Builder::new(self.env.budget));
        self.scoped(body)?;
        let text = std::mem::replace(&mut self.out, before).finish();
        self.posts(Value::Text(text), posts)
    }

    /// The output of a macro or a recursive loop.
    pub fn capture(&mut self, run: impl FnOnce(&mut Self) -> Res<()>) -> Res<Value> {
        let before = std::mem::replace(&mut self.out, Builder::new(self.env.budget));
        run(self)?;
        Ok(Value::Text(std::mem::replace(&mut self.out, before).finish()))
    }

    #[inline(never)]
    fn for_statement(&mut self, number: u32, items: Value) -> Res<()> {
        let Some(def) = self.template.loops.get(number as usize) else { return Ok(()) };
        self.loop_over(number, def, items, 0)
    }

    /// Runs a loop over `items`.
    pub fn loop_over(&mut self, number: u32, def: &'t ForLoop, items: Value, depth0: usize) -> Res<()> {
        let outer = self.scope.clone();
        let depth = items.depth();
        let items = self.loop_items(def, items)?;
        let nesting = match &items {
            Items::Values(values) => 1 + values.iter().map(Value::depth).max().unwrap_or(0),
            _ => 1 + depth,
        };
        let recursive = if def.is_recursive { Some((number, self.kept_scope()?)) } else { None };
        let (index, changed) = (Cell::new(0), RefCell::default());
        let state = Rc::new(LoopState { items, index, depth0, nesting, recursive, changed });
        // As in Jinja, the else block also runs when no item completed the loop's body.
        let mut is_done = false;
        let mut is_first = true;
        while let Some(item) = state.item(state.index.get()) {
            self.env.budget.steps(1)?;
            self.next_scope(&outer, std::mem::take(&mut is_first))?;
            if def.uses_loop {
                self.assign(LOOP, Value::Loop(state.clone()))?;
            }
            self.assign_target(&def.target, item)?;
            let flow = self.block(&def.body)?;
            if flow == Flow::Break {
                break;
            }
            is_done |= flow == Flow::Next;
            state.index.set(state.index.get() + 1);
        }
        self.scope = outer;
        if !is_done && !def.otherwise.is_empty() {
            self.scoped(&def.otherwise)?;
        }
        Ok(())
    }

    /// The items of a loop that pass its test.
    fn loop_items(&mut self, def: &'t ForLoop, items: Value) -> Res<Items> {
        match &items {
            _ if def.test.is_some() => {}
            Value::List(list) => return Ok(Items::List(list.clone())),
            Value::Tuple(tuple) => return Ok(Items::Tuple(tuple.clone())),
            Value::Range(range) => return Ok(Items::Range(**range)),
            _ => {}
        }
        let values = ops::items(&items, self.env.budget)?;
        let Some(test) = &def.test else { return Ok(Items::Values(values)) };
        let outer = self.scope.clone();
        let mut passed = Vec::new();
        for (i, item) in values.into_iter().enumerate() {
            self.next_scope(&outer, i == 0)?;
            self.assign_target(&def.target, item.clone())?;
            if self.eval(test)?.is_true() {
                crate::memory::push(&mut passed, item, "the items of a loop")?;
            }
        }
        self.scope = outer;
        Ok(Items::Values(passed))
    }

    pub fn assign_target(&mut self, target: &'t Target, value: Value) -> Res<()> {
        match target {
            Target::Name(name) => self.assign(*name, value),
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(namespace)) = self.lookup(*name) else {
                    return Err(Fault::invalid("cannot assign attribute on non-namespace object"));
                };
                let key = self.constant(*attribute)?;
                // From here on, a value that contains others may contain itself.
                let old = namespace.change(self.env.kept, self.env.budget)?.insert(key, value, self.env.budget)?;
                drop(old);
                Ok(())
            }
            Target::Tuple(targets) => self.unpack(targets, value),
        }
    }

    #[inline(never)]
    fn unpack(&mut self, targets: &'t [Target], value: Value) -> Res<()> {
        let values = ops::items(&value, self.env.budget)?;
        if values.len() != targets.len() {
            let (got, wanted) = (values.len(), targets.len());
            return Err(Fault::invalid(format_args!("cannot unpack {got} values into {wanted} names")));
        }
        for (target, value) in targets.iter().zip(values) {
            self.assign_target(target, value)?;
        }
        Ok(())
    }
}
