//! How weights come to a GPU, and whether they arrived.

mod verify;
mod weights;

pub(crate) use weights::{Loading, Tell, Weights, planar_bytes};
