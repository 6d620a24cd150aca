//! wavelm runs GGUF language models.

mod backend;
#[doc(hidden)]
pub mod bench_internals;
pub mod chat;
mod error;
pub mod gguf;
pub mod quant;
pub mod sampler;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
