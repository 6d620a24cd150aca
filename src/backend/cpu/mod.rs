//! The CPU backend.

pub(crate) mod isa;
pub(crate) mod logits;
