//! The CPU backend.

pub(crate) mod isa;
