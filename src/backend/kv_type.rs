//! How keys and values are stored between passes.

/// The number format of the key-value cache.
///
/// The cache takes `2 · layers · kv_heads · head_dim` numbers for each position of a sequence, and
/// each generated token reads all of it. A smaller format saves memory and, in long contexts, time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum KvType {
    /// 32-bit floating point, 4 bytes a number: for comparisons; no model needs it.
    F32,
    /// IEEE half precision, 2 bytes a number: the usual format.
    #[default]
    F16,
    /// 8-bit integers in blocks of 32 with a half-precision scale, 1.0625 bytes a number, as in GGML's `Q8_0`.
    Q8_0,
}
