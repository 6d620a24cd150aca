//! Backends: what runs programs.

pub(crate) mod cpu;
