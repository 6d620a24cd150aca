//! Backends: what runs programs.

pub(crate) mod cpu;
mod kv_type;

pub use kv_type::KvType;
