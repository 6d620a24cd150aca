//! What the examples share: command lines, loading a model, the default model, and how they end.

#![allow(dead_code, reason = "each example uses a part of this")]

pub mod cli;
pub mod default_model;
pub mod json;
pub mod model;
