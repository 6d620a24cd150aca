//! How exactly a program is computed.

/// How exactly the forward pass is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// Quantized weights are multiplied with activations quantized to 8 bits: fast, and as exact as the weights.
    #[default]
    Fast,
    /// Weights are dequantized, and everything is computed in `f32`: slow, for tests and comparisons. The cache is kept
    /// in `f32` as well.
    Reference,
}
