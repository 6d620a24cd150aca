//! From tokens to a template: expressions. Statements are in [`super::statements`].

use super::ast::{Arguments, Arm, CompareOp, Const, Expr, MathOp, Name, Post, PostKind, Sign, Template};
use super::fault::{Fault, Res};
use super::lexer::{Lexer, Token};
use crate::memory;
use std::collections::HashMap;

/// The deepest nesting of a template's brackets, blocks and macros together.
pub(super) const MAX_NESTING: u32 = 64;

/// A rank of operators. Each rank parses the rank below it as operands.
type Rank = usize;

/// Adds to a list whose length the template determines.
pub(super) fn push<T>(list: &mut Vec<T>, item: T) -> Res<()> {
    Ok(memory::push(list, item, "a chat template")?)
}

pub(super) struct Parser<'s> {
    lexer: Lexer<'s>,
    pub current: Token<'s>,
    pub line: u32,
    ahead: Option<(u32, Token<'s>)>,
    nesting: u32,
    pub template: Template,
    names: HashMap<Box<str>, Name>,
    texts: HashMap<Box<str>, u32>,
    /// How often each of the watched names has been read.
    watched: [u32; 4],
    /// How often `loop` has been assigned to.
    pub loop_assignments: u32,
}

/// Names with a meaning in macros and loops. They get the first numbers.
const WATCHED: [&str; 4] = ["caller", "varargs", "kwargs", "loop"];
pub(super) const CALLER: Name = 0;
pub(super) const VARARGS: Name = 1;
pub(super) const KWARGS: Name = 2;
pub(super) const LOOP: Name = 3;

impl<'s> Parser<'s> {
    pub fn new(source: &'s str) -> Res<Self> {
        let mut parser = Self {
            lexer: Lexer::new(source),
            current: Token::End,
            line: 1,
            ahead: None,
            nesting: 0,
            template: Template::default(),
            names: HashMap::new(),
            texts: HashMap::new(),
            watched: [0; 4],
            loop_assignments: 0,
        };
        for name in WATCHED {
            parser.name_number(name)?;
        }
        (parser.line, parser.current) = parser.lexer.next()?;
        Ok(parser)
    }

    /// How often a watched name has been read so far.
    pub fn reads(&self, name: Name) -> u32 {
        self.watched.get(name as usize).copied().unwrap_or_default()
    }

    pub fn advance(&mut self) -> Res<Token<'s>> {
        let (line, next) = match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.lexer.next()?,
        };
        self.line = line;
        Ok(std::mem::replace(&mut self.current, next))
    }

    fn look_ahead(&mut self) -> Res<&Token<'s>> {
        if self.ahead.is_none() {
            self.ahead = Some(self.lexer.next()?);
        }
        Ok(self.ahead.as_ref().map_or(&Token::End, |(_, token)| token))
    }

    pub fn fail(&self, message: impl std::fmt::Display) -> Fault {
        Fault::syntax(message).at(self.line)
    }

    pub fn unexpected<T>(&self, wanted: &str) -> Res<T> {
        Err(self.fail(format_args!("unexpected {}, expected {wanted}", self.current.describe())))
    }

    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.current, Token::Op(other) if other == op)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.current, Token::Name(other) if other == name)
    }

    pub fn skip_op(&mut self, op: &str) -> Res<bool> {
        let found = self.is_op(op);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub fn skip_name(&mut self, name: &str) -> Res<bool> {
        let found = self.is_name(name);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub fn expect_op(&mut self, op: &str) -> Res<()> {
        if self.skip_op(op)? { Ok(()) } else { self.unexpected(&format!("'{op}'")) }
    }

    pub fn expect_name(&mut self) -> Res<&'s str> {
        match self.current {
            Token::Name(name) => {
                self.advance()?;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Goes one level deeper; [`leave`](Self::leave) goes back.
    pub fn enter(&mut self) -> Res<()> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Fault::too_deep("it").at(self.line));
        }
        Ok(())
    }

    pub fn leave(&mut self) {
        self.nesting -= 1;
    }

    pub fn name_number(&mut self, name: &str) -> Res<Name> {
        if let Some(number) = self.names.get(name) {
            return Ok(*number);
        }
        let number = self.template.names.len() as Name;
        push(&mut self.template.names, name.into())?;
        self.names.insert(name.into(), number);
        Ok(number)
    }

    pub fn constant(&mut self, value: Const) -> Res<u32> {
        let number = self.template.consts.len() as u32;
        push(&mut self.template.consts, value)?;
        Ok(number)
    }

    pub fn text_constant(&mut self, text: &str) -> Res<u32> {
        if let Some(number) = self.texts.get(text) {
            return Ok(*number);
        }
        let number = self.constant(Const::Text(text.into()))?;
        self.texts.insert(text.into(), number);
        Ok(number)
    }

    /// An expression, alone or as a tuple with commas. `with_choice`: whether `if` may follow a
    /// value.
    pub fn tuple(&mut self, with_choice: bool, ends: &[&str]) -> Res<Expr> {
        if self.at_tuple_end(ends) {
            return self.unexpected("an expression");
        }
        let first = self.expression(with_choice)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_op(",")? {
            if self.at_tuple_end(ends) {
                break;
            }
            let item = self.expression(with_choice)?;
            push(&mut items, item)?;
        }
        Ok(Expr::Tuple(items))
    }

    pub fn at_tuple_end(&self, ends: &[&str]) -> bool {
        matches!(self.current, Token::PrintEnd | Token::TagEnd | Token::Op(")"))
            || ends.iter().any(|end| self.is_name(end))
    }

    pub fn expression(&mut self, with_choice: bool) -> Res<Expr> {
        self.enter()?;
        let expr = if with_choice { self.choice() } else { self.or() };
        self.leave();
        expr
    }

    fn choice(&mut self) -> Res<Expr> {
        let mut value = self.or()?;
        if !self.is_name("if") {
            return Ok(value);
        }
        let mut arms = Vec::new();
        loop {
            let mut tests = Vec::new();
            while self.skip_name("if")? {
                let test = self.or()?;
                push(&mut tests, test)?;
                if self.is_name("else") {
                    break;
                }
            }
            if tests.is_empty() {
                return Ok(Expr::Choice(arms, Some(Box::new(value))));
            }
            push(&mut arms, Arm { value, tests })?;
            if !self.skip_name("else")? {
                return Ok(Expr::Choice(arms, None));
            }
            value = self.or()?;
        }
    }

    fn or(&mut self) -> Res<Expr> {
        let first = self.and()?;
        if !self.is_name("or") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip_name("or")? {
            let next = self.and()?;
            push(&mut all, next)?;
        }
        Ok(Expr::Or(all))
    }

    fn and(&mut self) -> Res<Expr> {
        let first = self.not()?;
        if !self.is_name("and") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip_name("and")? {
            let next = self.not()?;
            push(&mut all, next)?;
        }
        Ok(Expr::And(all))
    }

    fn not(&mut self) -> Res<Expr> {
        if !self.is_name("not") {
            return self.compare();
        }
        let mut negates = false;
        while self.skip_name("not")? {
            negates = !negates;
        }
        Ok(Expr::Not(negates, Box::new(self.compare()?)))
    }

    fn compare(&mut self) -> Res<Expr> {
        let first = self.math(0)?;
        let mut rest = Vec::new();
        while let Some(op) = self.compare_op()? {
            let operand = self.math(0)?;
            push(&mut rest, (op, operand))?;
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn compare_op(&mut self) -> Res<Option<CompareOp>> {
        let is_not_in = self.is_name("not") && *self.look_ahead()? == Token::Name("in");
        let op = match self.current {
            Token::Op("==") => CompareOp::Eq,
            Token::Op("!=") => CompareOp::Ne,
            Token::Op("<") => CompareOp::Lt,
            Token::Op("<=") => CompareOp::Le,
            Token::Op(">") => CompareOp::Gt,
            Token::Op(">=") => CompareOp::Ge,
            Token::Name("in") => CompareOp::In,
            Token::Name("not") if is_not_in => {
                self.advance()?;
                CompareOp::NotIn
            }
            _ => return Ok(None),
        };
        self.advance()?;
        Ok(Some(op))
    }

    /// Sums; their operands are concatenations, then products, then powers.
    fn math(&mut self, rank: Rank) -> Res<Expr> {
        const CONCAT: Rank = 1;
        const OPERATORS: [&[(&str, MathOp)]; 4] = [
            &[("+", MathOp::Add), ("-", MathOp::Sub)],
            &[],
            &[("*", MathOp::Mul), ("/", MathOp::Div), ("//", MathOp::FloorDiv), ("%", MathOp::Rem)],
            &[("**", MathOp::Pow)],
        ];
        let Some(operators) = OPERATORS.get(rank) else { return self.signed() };
        let first = self.math(rank + 1)?;
        if rank == CONCAT {
            if !self.is_op("~") {
                return Ok(first);
            }
            let mut all = vec![first];
            while self.skip_op("~")? {
                let next = self.math(rank + 1)?;
                push(&mut all, next)?;
            }
            return Ok(Expr::Concat(all));
        }
        let mut rest = Vec::new();
        while let Token::Op(op) = self.current
            && let Some((_, op)) = operators.iter().find(|(text, _)| *text == op)
        {
            self.advance()?;
            let operand = self.math(rank + 1)?;
            push(&mut rest, (*op, operand))?;
        }
        Ok(if rest.is_empty() { first } else { Expr::Math(Box::new(first), rest) })
    }

    /// A value with the signs before it and the filters after it.
    fn signed(&mut self) -> Res<Expr> {
        let mut signs = Vec::new();
        while let Token::Op(op @ ("+" | "-")) = self.current {
            self.advance()?;
            push(&mut signs, if op == "-" { Sign::Minus } else { Sign::Plus })?;
        }
        let value = self.primary()?;
        let mut posts = Vec::new();
        self.postfix(&mut posts)?;
        if signs.is_empty() {
            self.filters_and_tests(&mut posts)?;
            return Ok(chain(value, posts));
        }
        let signed = Expr::Signs(signs, Box::new(chain(value, posts)));
        let mut posts = Vec::new();
        self.filters_and_tests(&mut posts)?;
        Ok(chain(signed, posts))
    }

    fn primary(&mut self) -> Res<Expr> {
        let expr = match &self.current {
            Token::Name(name) => {
                let name = *name;
                self.advance()?;
                return self.word(name);
            }
            Token::Text(_) => return self.texts(),
            Token::Int(i) => Const::Int(*i),
            Token::Float(f) => Const::Float(*f),
            Token::Op("(") => {
                self.advance()?;
                let expr = if self.is_op(")") { Expr::Tuple(Vec::new()) } else { self.tuple(true, &[])? };
                self.expect_op(")")?;
                return Ok(expr);
            }
            Token::Op("[") => return self.list(),
            Token::Op("{") => return self.dict(),
            _ => return self.unexpected("an expression"),
        };
        self.advance()?;
        Ok(Expr::Const(self.constant(expr)?))
    }

    fn word(&mut self, name: &str) -> Res<Expr> {
        let value = match name {
            "true" | "True" => Const::Bool(true),
            "false" | "False" => Const::Bool(false),
            "none" | "None" => Const::None,
            _ => {
                let number = self.name_number(name)?;
                if let Some(reads) = self.watched.get_mut(number as usize) {
                    *reads += 1;
                }
                return Ok(Expr::Name(number));
            }
        };
        Ok(Expr::Const(self.constant(value)?))
    }

    /// Consecutive strings, which form one string.
    fn texts(&mut self) -> Res<Expr> {
        let mut text = String::new();
        while let Token::Text(part) = &self.current {
            memory::reserve_text(&mut text, part.len(), "a chat template")?;
            text.push_str(part);
            self.advance()?;
        }
        Ok(Expr::Const(self.text_constant(&text)?))
    }

    fn list(&mut self) -> Res<Expr> {
        self.advance()?;
        let mut items = Vec::new();
        while !self.is_op("]") {
            let item = self.expression(true)?;
            push(&mut items, item)?;
            if !self.skip_op(",")? {
                break;
            }
        }
        self.expect_op("]")?;
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Res<Expr> {
        self.advance()?;
        let mut entries = Vec::new();
        while !self.is_op("}") {
            let key = self.expression(true)?;
            self.expect_op(":")?;
            let value = self.expression(true)?;
            push(&mut entries, (key, value))?;
            if !self.skip_op(",")? {
                break;
            }
        }
        self.expect_op("}")?;
        Ok(Expr::Dict(entries))
    }

    /// Attributes, items and calls.
    fn postfix(&mut self, posts: &mut Vec<Post>) -> Res<()> {
        loop {
            let line = self.line;
            let kind = match self.current {
                Token::Op(".") => {
                    self.advance()?;
                    match self.current {
                        Token::Name(name) => {
                            self.advance()?;
                            PostKind::Attribute(self.text_constant(name)?)
                        }
                        Token::Int(i) => {
                            self.advance()?;
                            PostKind::Item(Expr::Const(self.constant(Const::Int(i))?))
                        }
                        _ => return self.unexpected("a name or a number"),
                    }
                }
                Token::Op("[") => self.subscript()?,
                Token::Op("(") => PostKind::Call(self.arguments()?),
                _ => return Ok(()),
            };
            push(posts, Post { line, kind })?;
        }
    }

    fn subscript(&mut self) -> Res<PostKind> {
        self.advance()?;
        let first = self.subscribed()?;
        if self.skip_op("]")? {
            return Ok(match first {
                Subscribed::Item(item) => PostKind::Item(item),
                Subscribed::Slice(parts) => PostKind::Slice(Box::new(parts)),
            });
        }
        let mut items = Vec::new();
        let mut next = first;
        loop {
            match next {
                Subscribed::Item(item) => push(&mut items, item)?,
                Subscribed::Slice(_) => return Err(self.fail("a slice cannot be a part of a tuple")),
            }
            if !self.skip_op(",")? || self.is_op("]") {
                break;
            }
            next = self.subscribed()?;
        }
        self.expect_op("]")?;
        Ok(PostKind::Item(Expr::Tuple(items)))
    }

    fn subscribed(&mut self) -> Res<Subscribed> {
        let mut parts = [None, None, None];
        if !self.is_op(":") {
            let item = self.expression(true)?;
            if !self.is_op(":") {
                return Ok(Subscribed::Item(item));
            }
            parts[0] = Some(item);
        }
        for part in parts.iter_mut().skip(1) {
            if !self.skip_op(":")? {
                break;
            }
            if !(self.is_op(":") || self.is_op("]") || self.is_op(",")) {
                *part = Some(self.expression(true)?);
            }
        }
        Ok(Subscribed::Slice(parts))
    }

    fn arguments(&mut self) -> Res<Arguments> {
        self.expect_op("(")?;
        let mut arguments = Arguments::default();
        while !self.is_op(")") {
            let Arguments { named, more, more_named, .. } = &arguments;
            let (no_more, no_named) = (more.is_none() && more_named.is_none(), named.is_empty());
            let is_named = matches!(self.current, Token::Name(_)) && *self.look_ahead()? == Token::Op("=");
            let wrong = match self.current {
                Token::Op("*") => !no_more,
                Token::Op("**") => arguments.more_named.is_some(),
                _ if is_named => arguments.more_named.is_some(),
                _ => !no_more || !no_named,
            };
            if wrong {
                return Err(self.fail("invalid syntax for function call expression"));
            }
            if self.skip_op("*")? {
                arguments.more = Some(Box::new(self.expression(true)?));
            } else if self.skip_op("**")? {
                arguments.more_named = Some(Box::new(self.expression(true)?));
            } else if is_named && let Token::Name(name) = self.current {
                self.advance()?;
                self.advance()?;
                let name = self.text_constant(name)?;
                let value = self.expression(true)?;
                push(&mut arguments.named, (name, value))?;
            } else {
                let value = self.expression(true)?;
                push(&mut arguments.positional, value)?;
            }
            if !self.skip_op(",")? {
                break;
            }
        }
        self.expect_op(")")?;
        Ok(arguments)
    }

    fn filters_and_tests(&mut self, posts: &mut Vec<Post>) -> Res<()> {
        loop {
            match self.current {
                Token::Op("|") => self.filters(posts, false)?,
                Token::Name("is") => self.test(posts)?,
                Token::Op("(") => {
                    let line = self.line;
                    let arguments = self.arguments()?;
                    push(posts, Post { line, kind: PostKind::Call(arguments) })?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Filters. If `inline`, the first one has no `|`.
    pub fn filters(&mut self, posts: &mut Vec<Post>, mut inline: bool) -> Res<()> {
        while inline || self.is_op("|") {
            if !inline {
                self.advance()?;
            }
            inline = false;
            let line = self.line;
            let name = self.dotted_name()?;
            let arguments = if self.is_op("(") { self.arguments()? } else { Arguments::default() };
            push(posts, Post { line, kind: PostKind::Filter(name, arguments) })?;
        }
        Ok(())
    }

    fn dotted_name(&mut self) -> Res<Box<str>> {
        let first = self.expect_name()?;
        if !self.is_op(".") {
            return Ok(first.into());
        }
        let mut name = first.to_string();
        while self.skip_op(".")? {
            name.push('.');
            name.push_str(self.expect_name()?);
        }
        Ok(name.into())
    }

    fn test(&mut self, posts: &mut Vec<Post>) -> Res<()> {
        let line = self.line;
        self.advance()?;
        let is_negated = self.skip_name("not")?;
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        match self.current {
            Token::Op("(") => arguments = self.arguments()?,
            Token::Name("else" | "or" | "and") => {}
            Token::Name("is") => return Err(self.fail("tests cannot be chained with 'is'")),
            Token::Name(_) | Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => {
                self.enter()?;
                let value = self.primary()?;
                let mut inner = Vec::new();
                self.postfix(&mut inner)?;
                self.leave();
                arguments.positional.push(chain(value, inner));
            }
            _ => {}
        }
        push(posts, Post { line, kind: PostKind::Test { name, arguments, is_negated } })
    }
}

enum Subscribed {
    Item(Expr),
    Slice([Option<Expr>; 3]),
}

fn chain(value: Expr, posts: Vec<Post>) -> Expr {
    if posts.is_empty() { value } else { Expr::Chain(Box::new(value), posts) }
}
