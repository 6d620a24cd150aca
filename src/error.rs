//! The crate's one error type: an opaque [`Error`] that reads like a sentence, and an [`ErrorKind`]
//! to match on.

use std::fmt;
use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something failed, for programs to match on. The text for people is the [`Error`]'s
/// `Display`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file could not be opened, mapped or read.
    Io,
    /// A file is not valid GGUF, or is damaged: truncated, overlapping, overflowing, …
    InvalidFile,
    /// A valid file asks for something that this version does not implement (an architecture, a tensor type, …).
    Unsupported,
    /// An argument is out of range or inconsistent with the model.
    InvalidInput,
    /// A chat template is broken, raised an error itself, or ran out of fuel.
    Template,
    /// The tokens do not fit the context length of the session.
    ContextFull,
    /// The work was cancelled by the caller.
    Cancelled,
    /// There was not enough memory; the text says how much was asked for and what for.
    OutOfMemory,
    /// A device is missing, unusable or failed.
    Device,
}

/// An opaque error: a [kind](Error::kind), a sentence that names the file, tensor or key and what to do, and, where
/// another error caused it, its [source](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[error("{}", .inner)]
pub struct Error {
    inner: Box<Inner>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    file: Option<PathBuf>,
    message: String,
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}: {}", file.display(), self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { inner: Box::new(Inner { kind, file: None, message: message.into() }), source: None }
    }

    pub(crate) fn invalid_file(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidFile, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// An I/O failure. `what` says what the code was doing, as in "cannot map the file".
    pub(crate) fn io(what: impl fmt::Display, error: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{what}: {error}")).with_source(error)
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Names the file that the error is about. An inner file name is more precise, and is kept.
    pub(crate) fn in_file(mut self, file: &Path) -> Self {
        self.inner.file.get_or_insert_with(|| file.to_path_buf());
        self
    }

    /// A copy of the error for another caller, as text: it does not keep the source.
    pub(crate) fn repeated(&self) -> Self {
        let Inner { kind, file, message } = &*self.inner;
        Self { inner: Box::new(Inner { kind: *kind, file: file.clone(), message: message.clone() }), source: None }
    }

    /// The kind, for programs to match on.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The file that the error is about, if it is about one.
    pub fn file(&self) -> Option<&Path> {
        self.inner.file.as_deref()
    }
}
