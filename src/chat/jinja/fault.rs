//! Why a rendering, or a template's parsing, ends early.

use super::budget::Limits;
use crate::{Error, ErrorKind};
use std::borrow::Cow;

pub(super) type Res<T> = std::result::Result<T, Fault>;

/// The longest error message in bytes: names and texts in templates may be of any length.
const MAX_MESSAGE: usize = 2000;

/// The reason why a rendering ends. Boxed, so that results stay small.
#[derive(Debug)]
pub(super) struct Fault(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    line: Option<u32>,
    message: Cow<'static, str>,
}

#[derive(Debug)]
enum Kind {
    /// The template is wrong, or does not fit the conversation.
    Wrong,
    /// The template called `raise_exception`.
    Raised,
    /// A limit ended the rendering.
    Stopped,
    /// Memory ran out.
    Memory(Error),
}

impl Fault {
    fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, line: None, message: message.into() }))
    }

    pub fn syntax(message: impl std::fmt::Display) -> Self {
        Self::new(Kind::Wrong, format!("syntax error: {message}"))
    }

    pub fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(Kind::Wrong, format!("invalid operation: {message}"))
    }

    pub fn undefined(message: impl std::fmt::Display) -> Self {
        Self::new(Kind::Wrong, format!("undefined value: {message}"))
    }

    pub fn unknown(kind: &str, name: &str) -> Self {
        Self::new(Kind::Wrong, format!("unknown {kind}: no {kind} is named {name:?}"))
    }

    pub fn not_found(message: impl std::fmt::Display) -> Self {
        Self::new(Kind::Wrong, format!("template not found: {message}"))
    }

    pub fn raised(message: String) -> Self {
        Self::new(Kind::Raised, message)
    }

    pub fn stopped(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Stopped, message)
    }

    /// A value, a template or a call that nests too deeply.
    pub fn too_deep(what: &str) -> Self {
        Self::new(Kind::Wrong, format!("{what} nests too deeply"))
    }

    pub fn too_much_output(limits: &Limits) -> Self {
        Self::stopped(format!("it writes more than {} bytes", limits.max_output))
    }

    /// The same fault with a line, unless it has one already.
    #[cold]
    pub fn at(mut self, line: u32) -> Self {
        self.0.line.get_or_insert(line);
        self
    }

    /// The public error for the fault.
    pub fn into_error(self) -> Error {
        let Inner { kind, line, message } = *self.0;
        let message = shortened(message);
        let line = line.map(|line| format!("line {line} of ")).unwrap_or_default();
        let message = match kind {
            Kind::Memory(error) => return error,
            Kind::Raised => format!("{line}the chat template refuses the conversation: {message}"),
            Kind::Stopped => format!("{line}the chat template was stopped: {message}"),
            Kind::Wrong => format!(
                "{line}the chat template does not work: {message}; give a template of your own with ChatTemplate::parse"
            ),
        };
        Error::new(ErrorKind::Template, message)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::new(Kind::Memory(error), "")
    }
}

fn shortened(mut message: Cow<'static, str>) -> Cow<'static, str> {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        let text = message.to_mut();
        text.truncate(end);
        text.push('…');
    }
    message
}
