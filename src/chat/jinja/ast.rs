//! Parsed templates.
//!
//! Chains (`a.b.c`, `a|f|g`, `a + b - c`, `a and b`, `not not a`, `a if b else c if d else e`,
//! `elif`) are lists. So only real nesting makes a tree deep, and the parser bounds it.

use super::text::By;

/// A parsed template. It holds numbers in place of names and constants, and a rendering looks them
/// up in tables of its own.
#[derive(Debug, Default)]
pub(super) struct Template {
    pub body: Block,
    pub names: Vec<Box<str>>,
    pub consts: Vec<Const>,
    pub macros: Vec<MacroDef>,
    pub loops: Vec<ForLoop>,
}

/// The number of a name.
pub(super) type Name = u32;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Box<str>),
}

impl Const {
    /// The template writes its constants.
    pub const BY: By = By::Template;
}

pub(super) type Block = Vec<Stmt>;

#[derive(Debug)]
pub(super) struct Stmt {
    pub line: u32,
    pub kind: StmtKind,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    /// Text of the template: the number of a constant.
    Data(u32),
    Print(Expr),
    If(Vec<(Expr, Block)>, Block),
    /// The number of a loop, and the expression that it loops over.
    For(u32, Expr),
    Set(Target, Expr),
    SetBlock(Target, Vec<Post>, Block),
    /// The number of a macro, and the name to give it.
    Macro(u32, Name),
    /// A call whose `caller` is a macro.
    Call(u32, Expr),
    Filter(Vec<Post>, Block),
    With(Vec<(Target, Expr)>, Block),
    /// A block with a scope of its own and no other effect.
    Scope(Block),
    /// A block that sees only the variables of the template itself.
    Outermost(Block),
    Break,
    Continue,
    /// Another template, which does not exist.
    Other(Expr),
}

/// The left side of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    /// An attribute (a constant) of a namespace.
    Attribute(Name, u32),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct ForLoop {
    pub target: Target,
    pub test: Option<Expr>,
    pub is_recursive: bool,
    /// Whether the body names `loop`.
    pub uses_loop: bool,
    pub body: Block,
    pub otherwise: Block,
}

#[derive(Debug)]
pub(super) struct MacroDef {
    pub name: Box<str>,
    pub params: Vec<Name>,
    /// Defaults of the last parameters.
    pub defaults: Vec<Expr>,
    pub body: Block,
    /// The names `caller`, `varargs` and `kwargs`, each where the body uses it.
    pub caller: Option<Name>,
    pub varargs: Option<Name>,
    pub kwargs: Option<Name>,
}

#[derive(Debug)]
pub(super) enum Expr {
    Const(u32),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Chain(Box<Expr>, Vec<Post>),
    /// Signs, the outermost first.
    Signs(Vec<Sign>, Box<Expr>),
    /// Operators of one rank, from left to right.
    Math(Box<Expr>, Vec<(MathOp, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// `not`, any number of times: whether the value is false (`true`, an odd number) or true
    /// (`false`, an even number).
    Not(bool, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// `a if b else c if d else e`. The last value may be missing.
    Choice(Vec<Arm>, Option<Box<Expr>>),
}

/// `value if first if second …`: the last test is the outermost.
#[derive(Debug)]
pub(super) struct Arm {
    pub value: Expr,
    pub tests: Vec<Expr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Plus,
    Minus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MathOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Rem,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Anything that follows a value: a filter, a test, an attribute, an item or a call.
#[derive(Debug)]
pub(super) struct Post {
    pub line: u32,
    pub kind: PostKind,
}

#[derive(Debug)]
pub(super) enum PostKind {
    /// The number of a constant.
    Attribute(u32),
    Item(Expr),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Arguments),
    Filter(Box<str>, Arguments),
    Test {
        name: Box<str>,
        arguments: Arguments,
        is_negated: bool,
    },
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub positional: Vec<Expr>,
    /// Named arguments, by the constants of their names.
    pub named: Vec<(u32, Expr)>,
    pub more: Option<Box<Expr>>,
    pub more_named: Option<Box<Expr>>,
}
