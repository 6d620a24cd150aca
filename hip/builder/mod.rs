//! How the GPU kernels are built: what build.rs and `cargo kernels` (in tool/) have in common.
//!
//! build.rs includes this folder as a module. It has no Cargo.toml of its own, because a package
//! leaves out every folder that has one, and build.rs needs these files wherever the library is
//! built.

pub mod compiler;
pub mod manifest;
pub mod sources;
pub mod targets;
