//! From tokens to a template: statements.

use super::ast::{Block, ForLoop, MacroDef, Post, Stmt, StmtKind, Target, Template};
use super::fault::Res;
use super::lexer::{Token, normalize};
use super::parser::{CALLER, KWARGS, LOOP, Parser, VARARGS, push};

/// Parses a template.
pub(super) fn parse(source: &str) -> Res<Template> {
    let source = normalize(source);
    let mut parser = Parser::new(&source)?;
    let mut tags = Tags::default();
    let (body, _) = parser.block(&[], &mut tags)?;
    let mut template = parser.template;
    template.body = body;
    Ok(template)
}

/// The surroundings of a statement.
#[derive(Debug, Default, Clone, Copy)]
struct Tags {
    /// Whether a loop encloses the statement, for `break` and `continue`.
    in_loop: bool,
}

impl<'s> Parser<'s> {
    /// Reads statements up to one of the tags `ends`, skips that tag's name and returns it.
    fn block(&mut self, ends: &[&'static str], tags: &mut Tags) -> Res<(Block, &'static str)> {
        self.enter()?;
        let mut block = Vec::new();
        loop {
            let line = self.line;
            match self.current {
                Token::End if ends.is_empty() => {
                    self.leave();
                    return Ok((block, ""));
                }
                Token::End => return Err(self.fail(format_args!("unexpected end of the template, expected {ends:?}"))),
                Token::Data(text) => {
                    let text = self.text_constant(text)?;
                    push(&mut block, Stmt { line, kind: StmtKind::Data(text) })?;
                    self.advance()?;
                }
                Token::PrintBegin => {
                    self.advance()?;
                    let expr = self.tuple(true, &[])?;
                    if self.current != Token::PrintEnd {
                        return self.unexpected("'}}'");
                    }
                    self.advance()?;
                    push(&mut block, Stmt { line, kind: StmtKind::Print(expr) })?;
                }
                _ => {
                    self.advance()?;
                    if let Token::Name(name) = self.current
                        && let Some(end) = ends.iter().find(|end| **end == name)
                    {
                        self.advance()?;
                        self.leave();
                        return Ok((block, end));
                    }
                    self.statement(line, &mut block, tags)?;
                    self.end_tag()?;
                }
            }
        }
    }

    fn end_tag(&mut self) -> Res<()> {
        if self.current != Token::TagEnd {
            return self.unexpected("'%}'");
        }
        self.advance()?;
        Ok(())
    }

    /// The body of a tag, up to the end tag.
    fn body(&mut self, ends: &[&'static str], tags: &mut Tags) -> Res<(Block, &'static str)> {
        self.skip_op(":")?;
        self.end_tag()?;
        self.block(ends, tags)
    }

    fn statement(&mut self, line: u32, block: &mut Block, tags: &mut Tags) -> Res<()> {
        let Token::Name(name) = self.current else { return self.unexpected("the name of a tag") };
        self.advance()?;
        let kind = match name {
            "if" => self.if_tag(tags)?,
            "for" => self.for_tag(tags)?,
            "set" => self.set_tag(tags)?,
            "macro" => {
                let name = self.expect_name()?;
                let number = self.name_number(name)?;
                let (params, defaults) = self.signature()?;
                StmtKind::Macro(self.macro_body(name, params, defaults, "endmacro")?, number)
            }
            "call" => {
                let (params, defaults) = if self.is_op("(") { self.signature()? } else { Default::default() };
                let call = self.expression(true)?;
                let is_call = matches!(&call, super::ast::Expr::Chain(_, posts)
                    if posts.last().is_some_and(|post| matches!(post.kind, super::ast::PostKind::Call(_))));
                if !is_call {
                    return Err(self.fail("expected a call"));
                }
                StmtKind::Call(self.macro_body("caller", params, defaults, "endcall")?, call)
            }
            "filter" => {
                let mut posts = Vec::new();
                self.filters(&mut posts, true)?;
                StmtKind::Filter(posts, self.body(&["endfilter"], tags)?.0)
            }
            "with" => {
                let mut targets = Vec::new();
                while self.current != Token::TagEnd {
                    if !targets.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = self.target(false)?;
                    self.expect_op("=")?;
                    let value = self.expression(true)?;
                    push(&mut targets, (target, value))?;
                }
                StmtKind::With(targets, self.body(&["endwith"], tags)?.0)
            }
            "generation" => StmtKind::Scope(self.body(&["endgeneration"], &mut Tags::default())?.0),
            "autoescape" => {
                self.expression(true)?;
                StmtKind::Scope(self.body(&["endautoescape"], tags)?.0)
            }
            "block" => self.block_tag()?,
            "print" => {
                // The caller pushes the last one.
                let mut kind = StmtKind::Print(self.expression(true)?);
                while self.skip_op(",")? {
                    push(block, Stmt { line, kind })?;
                    kind = StmtKind::Print(self.expression(true)?);
                }
                kind
            }
            "break" if tags.in_loop => StmtKind::Break,
            "continue" if tags.in_loop => StmtKind::Continue,
            "break" | "continue" => return Err(self.fail(format_args!("'{name}' outside of a loop"))),
            "include" => self.include_tag()?,
            "import" | "from" | "extends" => self.import_tag(name)?,
            _ => {
                return Err(
                    self.fail(format_args!("unknown tag '{}'", Token::Name(name).describe().trim_matches('\'')))
                );
            }
        };
        push(block, Stmt { line, kind })
    }

    fn if_tag(&mut self, tags: &mut Tags) -> Res<StmtKind> {
        let mut arms = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            let (body, end) = self.body(&["elif", "else", "endif"], tags)?;
            push(&mut arms, (test, body))?;
            match end {
                "elif" => {}
                "else" => return Ok(StmtKind::If(arms, self.body(&["endif"], tags)?.0)),
                _ => return Ok(StmtKind::If(arms, Vec::new())),
            }
        }
    }

    fn for_tag(&mut self, tags: &mut Tags) -> Res<StmtKind> {
        let assignments = self.loop_assignments;
        let target = self.target(false)?;
        if !self.skip_name("in")? {
            return self.unexpected("'in'");
        }
        let items = self.tuple(false, &["recursive"])?;
        let test = if self.skip_name("if")? { Some(self.expression(true)?) } else { None };
        let is_recursive = self.skip_name("recursive")?;
        let before = self.reads(LOOP);
        let (body, end) = self.body(&["endfor", "else"], &mut Tags { in_loop: true })?;
        let uses_loop = self.reads(LOOP) > before || is_recursive;
        let otherwise = if end == "else" { self.body(&["endfor"], tags)?.0 } else { Vec::new() };
        if self.loop_assignments > assignments {
            return Err(self.fail("cannot assign to the special variable 'loop' in a loop"));
        }
        let number = self.template.loops.len() as u32;
        push(&mut self.template.loops, ForLoop { target, test, is_recursive, uses_loop, body, otherwise })?;
        Ok(StmtKind::For(number, items))
    }

    fn set_tag(&mut self, tags: &mut Tags) -> Res<StmtKind> {
        let target = self.target(true)?;
        if self.skip_op("=")? {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let mut posts: Vec<Post> = Vec::new();
        self.filters(&mut posts, false)?;
        Ok(StmtKind::SetBlock(target, posts, self.body(&["endset"], tags)?.0))
    }

    /// A name, or several with commas; with `attributes`, also attributes of namespaces.
    fn target(&mut self, attributes: bool) -> Res<Target> {
        let first = self.one_target(attributes)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip_op(",")? {
            // As in Jinja, a comma may end the names only in brackets.
            if self.is_op(")") {
                break;
            }
            let next = self.one_target(attributes)?;
            push(&mut all, next)?;
        }
        Ok(Target::Tuple(all))
    }

    fn one_target(&mut self, attributes: bool) -> Res<Target> {
        if self.skip_op("(")? {
            self.enter()?;
            let target = self.target(attributes)?;
            self.leave();
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if matches!(name, "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(self.fail(format_args!("cannot assign to '{name}'")));
        }
        let number = self.name_number(name)?;
        self.loop_assignments += u32::from(number == LOOP);
        if attributes && self.skip_op(".")? {
            let attribute = self.expect_name()?;
            return Ok(Target::Attribute(number, self.text_constant(attribute)?));
        }
        Ok(Target::Name(number))
    }

    fn signature(&mut self) -> Res<(Vec<u32>, Vec<super::ast::Expr>)> {
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.expect_name()?;
            let name = self.name_number(name)?;
            push(&mut params, name)?;
            if self.skip_op("=")? {
                let default = self.expression(true)?;
                push(&mut defaults, default)?;
            } else if !defaults.is_empty() {
                return Err(self.fail("a parameter without a default follows one with a default"));
            }
        }
        self.expect_op(")")?;
        Ok((params, defaults))
    }

    /// The body of a macro or of a call's block. Returns its number.
    fn macro_body(
        &mut self,
        name: &str,
        params: Vec<u32>,
        defaults: Vec<super::ast::Expr>,
        end: &'static str,
    ) -> Res<u32> {
        let before = [CALLER, VARARGS, KWARGS].map(|name| (name, self.reads(name)));
        let (body, _) = self.body(&[end], &mut Tags::default())?;
        let [caller, varargs, kwargs] =
            before.map(|(name, reads)| (self.reads(name) > reads && !params.contains(&name)).then_some(name));
        let number = self.template.macros.len() as u32;
        let def = MacroDef { name: name.into(), params, defaults, body, caller, varargs, kwargs };
        push(&mut self.template.macros, def)?;
        Ok(number)
    }

    /// A block of Jinja's inheritance. It is rendered in its place.
    fn block_tag(&mut self) -> Res<StmtKind> {
        let name = self.expect_name()?;
        let is_scoped = self.skip_name("scoped")?;
        self.skip_name("required")?;
        let (body, _) = self.body(&["endblock"], &mut Tags::default())?;
        self.skip_name(name)?;
        Ok(if is_scoped { StmtKind::Scope(body) } else { StmtKind::Outermost(body) })
    }

    fn include_tag(&mut self) -> Res<StmtKind> {
        let name = self.expression(true)?;
        if self.skip_name("ignore")? && !self.skip_name("missing")? {
            return self.unexpected("'missing'");
        }
        self.context()?;
        Ok(StmtKind::Other(name))
    }

    fn import_tag(&mut self, tag: &str) -> Res<StmtKind> {
        let name = self.expression(true)?;
        if tag == "import" && !self.skip_name("as")? {
            return self.unexpected("'as'");
        }
        if tag == "from" && !self.skip_name("import")? {
            return self.unexpected("'import'");
        }
        while tag != "extends" && self.current != Token::TagEnd && !self.context()? {
            self.expect_name()?;
            if self.skip_name("as")? {
                self.expect_name()?;
            }
            self.skip_op(",")?;
        }
        Ok(StmtKind::Other(name))
    }

    fn context(&mut self) -> Res<bool> {
        let found = self.skip_name("with")? || self.skip_name("without")?;
        if found && !self.skip_name("context")? {
            return self.unexpected("'context'");
        }
        Ok(found)
    }
}
