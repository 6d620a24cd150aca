//! The operations of a program, and the table of their operands.

use super::{Buf, Weight};
use std::fmt;

/// The gate of a gated linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU.
    Gelu,
}

/// The shape of an attention operation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AttentionInfo {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Columns of a query or key head, and of a value head.
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    /// Factor for the scores before the softmax.
    pub(crate) scale: f32,
    /// A query at position `p` sees only the positions above `p - window`.
    pub(crate) window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub(crate) softcap: Option<f32>,
}

/// One operation. `out` is overwritten; operations without an `out` work in place on `x`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    /// `out = table[token]`
    Embed { table: Weight, out: Buf },
    /// `x = by * x`
    Scale { x: Buf, by: f32 },
    /// `out = x / rms(x) * weight` (Zhang and Sennrich 2019)
    RmsNorm { x: Buf, weight: Weight, eps: f32, out: Buf },
    /// The same for each head of `x` by itself; a head has `weight.columns` columns.
    HeadNorm { x: Buf, weight: Weight, eps: f32 },
    /// `out = x * weightᵀ + bias`
    MatMul { x: Buf, weight: Weight, bias: Option<Weight>, out: Buf },
    /// Rotates each head of `head_dim` columns by its token's position.
    Rope { x: Buf, rope: usize, head_dim: usize },
    /// Appends keys and values to the cache of `layer`.
    StoreKv { layer: usize, k: Buf, v: Buf },
    /// Causal attention of `q` over the cache of `layer`.
    Attention { layer: usize, q: Buf, out: Buf, info: AttentionInfo },
    /// `gate = act(gate) * up`
    Glu { gate: Buf, up: Buf, act: Activation },
    /// `x = x + y`
    Add { x: Buf, y: Buf },
    /// `x = cap * tanh(x / cap)`
    Softcap { x: Buf, cap: f32 },
    /// Copies the rows of `x` whose logits are wanted to `out`: from tokens to outputs.
    Rows { x: Buf, out: Buf },
    /// `x` holds the logits: the end of the program.
    Logits { x: Buf },
    /// `state = state / 2 + x`, token by token, then `x = state`: the simplest recurrence.
    #[cfg(test)]
    Decay { layer: usize, x: Buf },
}

/// How an operation uses a buffer, or the state of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads it.
    Read,
    /// Overwrites all of its rows. An operation that also reads the buffer reads each row before it
    /// writes it.
    Write,
    /// Works in place.
    Update,
}

/// How an operation uses a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightUse {
    /// Multiplies with all of it.
    Matrix,
    /// Takes one row for each token.
    Rows,
    /// Adds the vector to rows, or multiplies rows with it.
    Vector,
}

/// Visits each operand of an operation, and may replace it.
pub(crate) trait Operands {
    /// A buffer.
    fn buffer(&mut self, _: &mut Buf, _: Use) {}
    /// A weight.
    fn weight(&mut self, _: &mut Weight, _: WeightUse) {}
    /// The state of a layer.
    fn layer(&mut self, _: &mut usize, _: Use) {}
}

impl Op {
    /// The table of operands: what each operation reads, writes and multiplies with, in the order
    /// of printing.
    pub(crate) fn operands(&mut self, v: &mut impl Operands) {
        use Use::{Read, Update, Write};
        match self {
            Op::Embed { table, out } => {
                v.weight(table, WeightUse::Rows);
                v.buffer(out, Write);
            }
            Op::Scale { x, .. } | Op::Rope { x, .. } | Op::Softcap { x, .. } => v.buffer(x, Update),
            Op::RmsNorm { x, weight, out, .. } => {
                v.buffer(x, Read);
                v.weight(weight, WeightUse::Vector);
                v.buffer(out, Write);
            }
            Op::HeadNorm { x, weight, .. } => {
                v.buffer(x, Update);
                v.weight(weight, WeightUse::Vector);
            }
            Op::MatMul { x, weight, bias, out } => {
                v.buffer(x, Read);
                v.weight(weight, WeightUse::Matrix);
                bias.iter_mut().for_each(|bias| v.weight(bias, WeightUse::Vector));
                v.buffer(out, Write);
            }
            Op::StoreKv { layer, k, v: values } => {
                v.layer(layer, Use::Write);
                v.buffer(k, Read);
                v.buffer(values, Read);
            }
            Op::Attention { layer, q, out, .. } => {
                v.buffer(q, Read);
                v.layer(layer, Use::Read);
                v.buffer(out, Write);
            }
            Op::Glu { gate: x, up: y, .. } | Op::Add { x, y } => {
                v.buffer(x, Update);
                v.buffer(y, Read);
            }
            Op::Rows { x, out } => {
                v.buffer(x, Read);
                v.buffer(out, Write);
            }
            Op::Logits { x } => v.buffer(x, Read),
            #[cfg(test)]
            Op::Decay { layer, x } => {
                v.layer(layer, Update);
                v.buffer(x, Update);
            }
        }
    }

    /// The name to print.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::Scale { .. } => "scale",
            Op::RmsNorm { .. } => "rms_norm",
            Op::HeadNorm { .. } => "head_norm",
            Op::MatMul { .. } => "matmul",
            Op::Rope { .. } => "rope",
            Op::StoreKv { .. } => "store",
            Op::Attention { .. } => "attention",
            Op::Glu { .. } => "glu",
            Op::Add { .. } => "add",
            Op::Softcap { .. } => "softcap",
            Op::Rows { .. } => "wanted rows of",
            Op::Logits { .. } => "logits",
            #[cfg(test)]
            Op::Decay { .. } => "decay",
        }
    }

    /// Prints the parameters that are no operands.
    pub(super) fn print_parameters(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Scale { by, .. } => write!(f, ", by {by}"),
            Op::RmsNorm { eps, .. } | Op::HeadNorm { eps, .. } => write!(f, ", eps {eps:e}"),
            Op::Rope { rope, head_dim, .. } => write!(f, ", rope {rope}, heads of {head_dim}"),
            Op::Attention { info, .. } => {
                write!(f, ": {} heads on {} of {}, scale {}", info.heads, info.kv_heads, info.head_dim, info.scale)?;
                info.window.map_or(Ok(()), |w| write!(f, ", window {w}"))?;
                info.softcap.map_or(Ok(()), |c| write!(f, ", softcap {c}"))
            }
            Op::Glu { act, .. } => write!(f, ", {act:?}"),
            Op::Softcap { cap, .. } => write!(f, ", cap {cap}"),
            Op::Embed { .. }
            | Op::MatMul { .. }
            | Op::StoreKv { .. }
            | Op::Add { .. }
            | Op::Rows { .. }
            | Op::Logits { .. } => Ok(()),
            #[cfg(test)]
            Op::Decay { .. } => Ok(()),
        }
    }
}
