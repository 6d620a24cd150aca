//! Runs templates: expressions, calls and macros.

use super::args::Args;
use super::ast::{Arguments, Arm, CompareOp, Expr, ForLoop, MacroDef, MathOp, Post, PostKind, Sign};
use super::attributes;
use super::dict::Map;
use super::eval::{Flow, Machine, Macro, Scope};
use super::fault::{Fault, Res};
use super::text::{Builder, By, Text};
use super::value::{Callable, Missing, Value};
use super::{checks, filters, globals, math, methods, ops, repr};
use crate::memory;
use std::cmp::Ordering;
use std::rc::Rc;

impl<'t> Machine<'t> {
    pub fn eval(&mut self, expr: &'t Expr) -> Res<Value> {
        match expr {
            Expr::Const(number) => {
                self.env.budget.steps(1)?;
                self.constant(*number)
            }
            Expr::Name(name) => self.variable(*name),
            _ => {
                self.enter()?;
                let value = self.eval_inner(expr)?;
                self.leave();
                Ok(value)
            }
        }
    }

    fn variable(&mut self, name: u32) -> Res<Value> {
        self.env.budget.steps(1)?;
        if let Some(value) = self.lookup(name) {
            return Ok(value);
        }
        let name = self.name(name);
        Ok(globals::find(&name).unwrap_or_else(|| Value::Undefined(Rc::new(Missing::Name(name)))))
    }

    #[inline(never)]
    fn eval_inner(&mut self, expr: &'t Expr) -> Res<Value> {
        match expr {
            Expr::Chain(first, posts) => {
                let value = self.eval(first)?;
                self.posts(value, posts)
            }
            Expr::And(all) => self.until(all, false),
            Expr::Or(all) => self.until(all, true),
            Expr::Not(negates, inner) => Ok(Value::bool(self.eval(inner)?.is_true() != *negates)),
            Expr::Choice(arms, otherwise) => self.choice(arms, otherwise.as_deref()),
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::Concat(all) => self.concat(all),
            Expr::Math(first, rest) => self.math(first, rest),
            Expr::Signs(signs, inner) => self.signs(signs, inner),
            Expr::List(items) => Value::list(self.values(items)?),
            Expr::Tuple(items) => Value::tuple(self.values(items)?),
            Expr::Dict(entries) => self.dict(entries),
            Expr::Const(number) => self.constant(*number),
            Expr::Name(name) => self.variable(*name),
        }
    }

    /// The first value whose truth is `truth`, or the last value.
    #[inline(never)]
    fn until(&mut self, all: &'t [Expr], truth: bool) -> Res<Value> {
        let mut value = Value::NONE;
        for expr in all {
            value = self.eval(expr)?;
            if value.is_true() == truth {
                break;
            }
        }
        Ok(value)
    }

    #[inline(never)]
    fn choice(&mut self, arms: &'t [Arm], otherwise: Option<&'t Expr>) -> Res<Value> {
        for arm in arms {
            let mut tests = arm.tests.iter().rev();
            if let Some(test) = tests.next()
                && !self.eval(test)?.is_true()
            {
                continue;
            }
            for test in tests {
                if !self.eval(test)?.is_true() {
                    return Ok(missing_else());
                }
            }
            return self.eval(&arm.value);
        }
        otherwise.map_or_else(|| Ok(missing_else()), |otherwise| self.eval(otherwise))
    }

    #[inline(never)]
    fn compare(&mut self, first: &'t Expr, rest: &'t [(CompareOp, Expr)]) -> Res<Value> {
        let mut left = self.eval(first)?;
        for (op, right) in rest {
            let right = self.eval(right)?;
            if !compare(*op, &left, &right, self)? {
                return Ok(Value::bool(false));
            }
            left = right;
        }
        Ok(Value::bool(true))
    }

    #[inline(never)]
    fn concat(&mut self, all: &'t [Expr]) -> Res<Value> {
        let mut out = Builder::new(self.env.budget);
        for expr in all {
            let value = self.eval(expr)?;
            repr::write_str(&value, &mut out)?;
        }
        Ok(Value::Text(out.finish()))
    }

    #[inline(never)]
    fn math(&mut self, first: &'t Expr, rest: &'t [(MathOp, Expr)]) -> Res<Value> {
        let mut value = self.eval(first)?;
        let mut at = 0;
        while let Some((op, right)) = rest.get(at) {
            at += 1;
            let right = self.eval(right)?;
            let (Value::Text(first), Value::Text(second), MathOp::Add) = (&value, &right, op) else {
                value = math::math(*op, &value, &right, self.env.budget)?;
                continue;
            };
            // A sum of many texts copies each of them only once.
            let mut out = Builder::new(self.env.budget);
            out.push_text(first)?;
            out.push_text(second)?;
            let mut other = None;
            while let Some((MathOp::Add, right)) = rest.get(at) {
                at += 1;
                let right = self.eval(right)?;
                match &right {
                    Value::Text(text) => out.push_text(text)?,
                    _ => {
                        other = Some(right);
                        break;
                    }
                }
            }
            value = Value::Text(out.finish());
            if let Some(right) = other {
                value = math::math(MathOp::Add, &value, &right, self.env.budget)?;
            }
        }
        Ok(value)
    }

    #[inline(never)]
    fn signs(&mut self, signs: &'t [Sign], inner: &'t Expr) -> Res<Value> {
        let mut value = self.eval(inner)?;
        self.env.budget.items(signs.len())?;
        for sign in signs.iter().rev() {
            value = math::signed(&value, *sign == Sign::Minus)?;
        }
        Ok(value)
    }

    #[inline(never)]
    fn values(&mut self, exprs: &'t [Expr]) -> Res<Vec<Value>> {
        self.env.budget.values(exprs.len())?;
        let mut values = memory::with_room(exprs.len(), "a list of a chat template")?;
        for expr in exprs {
            values.push(self.eval(expr)?);
        }
        Ok(values)
    }

    #[inline(never)]
    fn dict(&mut self, entries: &'t [(Expr, Expr)]) -> Res<Value> {
        let mut map = Map::default();
        for (key, value) in entries {
            let key = self.eval(key)?;
            let value = self.eval(value)?;
            map.insert(key, value, self.env.budget)?;
        }
        Value::dict(map)
    }

    /// A value with everything that follows it: filters, attributes, items, calls.
    #[inline(never)]
    pub fn posts(&mut self, mut value: Value, posts: &'t [Post]) -> Res<Value> {
        let mut rest = posts;
        while let Some((post, after)) = rest.split_first() {
            rest = after;
            let result = match (&post.kind, after.split_first()) {
                (PostKind::Attribute(name), Some((Post { kind: PostKind::Call(arguments), .. }, after))) => {
                    rest = after;
                    self.call_attribute(value, *name, arguments)
                }
                (PostKind::Attribute(name), _) => self.attribute(&value, *name),
                _ => self.post(value, &post.kind),
            };
            value = result.map_err(|fault| fault.at(post.line))?;
        }
        Ok(value)
    }

    #[inline(never)]
    fn attribute(&mut self, value: &Value, name: u32) -> Res<Value> {
        self.env.budget.steps(1)?;
        attributes::attribute(value, self.constant_text(name), self.env.budget)
    }

    #[inline(never)]
    fn post(&mut self, value: Value, kind: &'t PostKind) -> Res<Value> {
        match kind {
            PostKind::Attribute(name) => self.attribute(&value, *name),
            PostKind::Item(index) => {
                let index = self.eval(index)?;
                attributes::item(&value, &index, self.env.budget)
            }
            PostKind::Slice(parts) => self.slice(&value, parts),
            PostKind::Call(arguments) => {
                let args = self.arguments(arguments)?;
                self.call(&value, args)
            }
            PostKind::Filter(name, arguments) => {
                let args = self.arguments(arguments)?;
                filters::call(self.env, name, value, args)
            }
            PostKind::Test { name, arguments, is_negated } => {
                let args = self.arguments(arguments)?;
                Ok(Value::bool(checks::call(self.env, name, &value, args)? != *is_negated))
            }
        }
    }

    #[inline(never)]
    fn slice(&mut self, value: &Value, parts: &'t [Option<Expr>; 3]) -> Res<Value> {
        let mut numbers = [None; 3];
        for (number, part) in numbers.iter_mut().zip(parts) {
            let Some(part) = part else { continue };
            let part = self.eval(part)?;
            *number = match &part {
                Value::None(_) => None,
                _ if part.as_int().is_some() => part.as_int(),
                _ => {
                    let fault = value.undefined_fault().or_else(|| part.undefined_fault());
                    return Err(fault.unwrap_or_else(|| Fault::invalid("slice indices must be integers or none")));
                }
            };
        }
        if let Some(fault) = value.undefined_fault() {
            return Err(fault);
        }
        math::slice(value, numbers, self.env.budget)?
            .ok_or_else(|| Fault::invalid(format_args!("'{}' object has no slices", value.type_name())))
    }

    /// Calls `value.name(arguments)` without making the method a value first.
    #[inline(never)]
    fn call_attribute(&mut self, value: Value, name: u32, arguments: &'t Arguments) -> Res<Value> {
        self.env.budget.steps(1)?;
        let name = self.constant_text(name);
        if !methods::has(&value, name) {
            let callee = attributes::attribute(&value, name, self.env.budget)?;
            let args = self.arguments(arguments)?;
            return self.call(&callee, args);
        }
        let args = self.arguments(arguments)?;
        methods::call(self.env, &value, name, args)
    }

    #[inline(never)]
    pub fn arguments(&mut self, arguments: &'t Arguments) -> Res<Args> {
        let mut args = Args::default();
        if !arguments.positional.is_empty() {
            args.positional = self.values(&arguments.positional)?;
        }
        for (name, value) in &arguments.named {
            let name = self.constant(*name)?;
            let value = self.eval(value)?;
            args.add_named(name, value, self.env.budget)?;
        }
        if let Some(more) = &arguments.more {
            let more = self.eval(more)?;
            let more = ops::items(&more, self.env.budget)?;
            self.env.budget.values(more.len())?;
            memory::reserve(&mut args.positional, more.len(), "the arguments of a call")?;
            args.positional.extend(more);
        }
        if let Some(more) = &arguments.more_named {
            let more = self.eval(more)?;
            let Value::Dict(more) = &more else {
                return Err(Fault::invalid("an argument after ** must be a mapping"));
            };
            for (name, value) in more.map().iter() {
                args.add_named(name.clone(), value.clone(), self.env.budget)?;
            }
        }
        Ok(args)
    }

    #[inline(never)]
    fn call(&mut self, callee: &Value, args: Args) -> Res<Value> {
        match callee {
            Value::Call(call) => match &**call {
                Callable::Method(of, name) => methods::call(self.env, of, name, args),
                Callable::Global(name) => globals::call(self.env, name, args),
                Callable::Macro(macro_) => self.call_macro(macro_, args),
                Callable::Cycler(items, next) => {
                    let [] = args.bind("cycler", [])?;
                    Ok(items.items.get(next.get()).cloned().unwrap_or(Value::NONE))
                }
                Callable::Joiner(separator, is_used) => {
                    let [] = args.bind("joiner", [])?;
                    let first = !is_used.replace(true);
                    Ok(if first { Value::str("") } else { Value::Text(separator.clone()) })
                }
            },
            Value::Loop(state) => {
                let Some((number, scope)) = &state.recursive else {
                    return Err(Fault::invalid("the loop must have the 'recursive' marker to be called"));
                };
                let [items] = args.bind("loop", ["iterable"])?;
                let items = items.ok_or_else(|| Fault::invalid("loop expects what to loop over"))?;
                let Some(def) = self.template.loops.get(*number as usize) else { return Ok(Value::NONE) };
                self.call_loop(*number, def, items, state.depth0 + 1, scope.clone())
            }
            _ => Err(callee
                .undefined_fault()
                .unwrap_or_else(|| Fault::invalid(format_args!("'{}' object is not callable", callee.type_name())))),
        }
    }

    /// A call of a recursive loop inside of itself.
    #[inline(never)]
    fn call_loop(
        &mut self,
        number: u32,
        def: &'t ForLoop,
        items: Value,
        depth0: usize,
        scope: Option<Rc<Scope>>,
    ) -> Res<Value> {
        self.enter_call()?;
        let outer = std::mem::replace(&mut self.scope, scope);
        let text = self.capture(|machine| machine.loop_over(number, def, items, depth0))?;
        self.scope = outer;
        self.leave_call();
        Ok(text)
    }

    /// A macro that sees the variables of the current scope.
    #[inline(never)]
    pub fn define_macro(&mut self, def: u32) -> Res<Value> {
        self.env.budget.memory(96)?;
        let (name, params) =
            self.template.macros.get(def as usize).map_or(("", &[][..]), |def| (&def.name, &def.params));
        self.env.budget.values(params.len())?;
        let mut arguments = memory::with_room(params.len(), "the parameters of a macro")?;
        for param in params {
            arguments.push(Value::Text(Text::new(&self.name(*param), By::Template, self.env.budget)?));
        }
        let (scope, arguments) = (self.kept_scope()?, Value::tuple(arguments)?);
        Ok(Value::Call(Rc::new(Callable::Macro(Macro { name: name.into(), def, scope, arguments }))))
    }

    /// The call of a block `{% call %}`: the last call of a chain gets one more argument.
    #[inline(never)]
    pub fn eval_call_with(&mut self, expr: &'t Expr, caller: Value) -> Res<Value> {
        let Expr::Chain(first, posts) = expr else { return Ok(Value::NONE) };
        let Some((Post { kind: PostKind::Call(arguments), line }, before)) = posts.split_last() else {
            return Ok(Value::NONE);
        };
        let callee = self.eval(first)?;
        let callee = self.posts(callee, before)?;
        let mut args = self.arguments(arguments)?;
        args.add_named(Value::str("caller"), caller, self.env.budget)?;
        self.call(&callee, args).map_err(|fault| fault.at(*line))
    }

    #[inline(never)]
    fn call_macro(&mut self, callee: &Macro, args: Args) -> Res<Value> {
        let Some(def) = self.template.macros.get(callee.def as usize) else { return Ok(Value::NONE) };
        self.enter_call()?;
        let outer = self.begin_scope(callee.scope.clone())?;
        self.bind_parameters(def, args)?;
        let text = self.capture(|machine| match machine.block(&def.body)? {
            Flow::Next | Flow::Break | Flow::Continue => Ok(()),
        })?;
        self.scope = outer;
        self.leave_call();
        Ok(text)
    }

    #[inline(never)]
    fn bind_parameters(&mut self, def: &'t MacroDef, mut args: Args) -> Res<()> {
        let count = def.params.len();
        let first_default = count - def.defaults.len().min(count);
        let more = args.positional.split_off(args.positional.len().min(count));
        let mut given: Vec<Option<Value>> = Vec::new();
        let mut positional = std::mem::take(&mut args.positional).into_iter();
        for name in &def.params {
            let value = match positional.next() {
                Some(value) => Some(value),
                None => args.take_named(&self.name(*name)),
            };
            memory::push(&mut given, value, "the arguments of a macro")?;
        }
        for (i, (name, value)) in def.params.iter().zip(given).enumerate() {
            let value = match (value, i.checked_sub(first_default).and_then(|i| def.defaults.get(i))) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default)?,
                (None, None) => Value::Undefined(Rc::new(Missing::Parameter(self.name(*name)))),
            };
            self.assign(*name, value)?;
        }
        if let Some(name) = def.caller {
            let caller = args.take_named("caller").filter(|caller| !caller.is_none());
            self.assign(name, caller.unwrap_or_else(|| Value::hint("No caller defined")))?;
        }
        if let Some(name) = def.kwargs {
            let mut map = Map::default();
            for (name, value) in std::mem::take(&mut args.named) {
                map.insert(name, value, self.env.budget)?;
            }
            self.assign(name, Value::dict(map)?)?;
        } else if let Some((name, _)) = args.named.first() {
            let name = name.as_str().unwrap_or_default();
            return Err(Fault::invalid(format_args!("macro '{}' takes no keyword argument '{name}'", def.name)));
        }
        if let Some(name) = def.varargs {
            self.assign(name, Value::tuple(more)?)?;
        } else if !more.is_empty() {
            return Err(Fault::invalid(format_args!("macro '{}' takes not more than {count} argument(s)", def.name)));
        }
        Ok(())
    }
}

fn missing_else() -> Value {
    Value::hint("the inline if-expression evaluated to false and no else section was defined.")
}

fn compare(op: CompareOp, left: &Value, right: &Value, machine: &Machine<'_>) -> Res<bool> {
    let budget = machine.env.budget;
    let order = |wanted: &[Ordering]| -> Res<bool> {
        Ok(ops::compare(left, right, budget)?.is_some_and(|order| wanted.contains(&order)))
    };
    match op {
        CompareOp::Eq => ops::equal(left, right, budget),
        CompareOp::Ne => ops::equal(left, right, budget).map(|equal| !equal),
        CompareOp::Lt => order(&[Ordering::Less]),
        CompareOp::Le => order(&[Ordering::Less, Ordering::Equal]),
        CompareOp::Gt => order(&[Ordering::Greater]),
        CompareOp::Ge => order(&[Ordering::Greater, Ordering::Equal]),
        CompareOp::In => ops::contains(right, left, budget),
        CompareOp::NotIn => ops::contains(right, left, budget).map(|found| !found),
    }
}

/// The writer of a call's result: the caller, if the value or any argument is the caller's.
pub(super) fn by_all(value: &Value, args: &Args) -> By {
    args.positional.iter().fold(value.by(), |by, arg| by.with(arg.by()))
}
