//! The CPU backend.

pub(crate) mod attention;
pub(crate) mod isa;
pub(crate) mod kv;
pub(crate) mod ops;
pub(crate) mod simd;
