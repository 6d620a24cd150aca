//! Elementwise kernels.
