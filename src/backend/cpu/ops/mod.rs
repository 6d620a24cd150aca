//! Kernels of everything between the matrix products and attention. Each works on whole rows of a buffer, any number
//! of them, so that a caller can cut the rows of a batch as it likes: no result depends on how.
//!
//! All panic where the lengths of their arguments do not agree.

mod activation;
mod elementwise;
mod norm;
mod rope;
#[cfg(test)]
mod tests;

pub(crate) use activation::glu;
pub(crate) use elementwise::{add, scale, softcap};
pub(crate) use norm::{rms_norm, rms_norm_in_place};
pub(crate) use rope::rope;
