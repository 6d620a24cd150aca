//! The program of a model: a straight line of operations over numbered buffers. The model's family
//! (`model::arch`) makes it once per model, and a backend interprets it.
//!
//! One table, [`Op::operands`], holds what each operation reads and writes, and how it prints.
//! Liveness, cutting, printing and byte counts follow from it.
//!
//! Every buffer holds `f32` values of the shape `[rows, columns]`; the columns are fixed here, the
//! rows vary from pass to pass. A buffer over *tokens* has one row for each token of the batch; a
//! buffer over *outputs* (see [`Op::Rows`]) has one row for each token whose logits are wanted. To
//! debug a model, print its program (`{program}`).

mod builder;
mod cut;
mod display;
mod liveness;
mod op;
mod precision;
mod rope;
mod state;

pub(crate) use builder::Builder;
pub(crate) use cut::Cut;
pub(crate) use liveness::is_read;
pub(crate) use op::{Activation, AttentionInfo, Op, Operands, Use, WeightUse};
pub use precision::Precision;
pub(crate) use rope::{Rope, RopeScaling, RopeStyle};
pub(crate) use state::{Group, GroupKind, KvShape, LayerState};

use crate::gguf::TensorInfo;
use crate::{Error, ErrorKind, Result};

/// A buffer of a [`Program`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Buf(pub(crate) usize);

/// A weight of a [`Program`]: an index into [`Program::weights`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Weight(pub(crate) usize);

/// Which rows a buffer has in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// One for each token of the batch.
    Tokens,
    /// One for each token whose logits are wanted.
    Outputs,
}

/// A buffer's name (for people) and shape.
#[derive(Debug, Clone)]
pub(crate) struct BufInfo {
    pub(crate) name: &'static str,
    pub(crate) columns: usize,
    pub(crate) rows: RowKind,
}

/// A weight tensor as the program uses it: `rows` x `columns`, or one row for a vector.
#[derive(Debug, Clone)]
pub(crate) struct WeightInfo {
    pub(crate) tensor: TensorInfo,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// A model's forward pass.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) buffers: Vec<BufInfo>,
    pub(crate) weights: Vec<WeightInfo>,
    pub(crate) ropes: Vec<Rope>,
    /// What the layers keep of a sequence.
    pub(crate) states: Vec<LayerState>,
    pub(crate) ops: Vec<Op>,
    /// Tokens in the vocabulary: columns of the logits.
    pub(crate) vocab: usize,
}

impl Program {
    /// The name and shape of a buffer.
    ///
    /// # Errors
    /// A bug: the program has no such buffer.
    pub(crate) fn buffer(&self, buf: Buf) -> Result<&BufInfo> {
        self.buffers.get(buf.0).ok_or_else(|| bug("buffer", buf.0))
    }

    /// The columns of a buffer.
    ///
    /// # Errors
    /// As for [`buffer`](Self::buffer).
    pub(crate) fn columns(&self, buf: Buf) -> Result<usize> {
        Ok(self.buffer(buf)?.columns)
    }

    /// The tensor of a weight, and its shape.
    ///
    /// # Errors
    /// A bug: the program has no such weight.
    pub(crate) fn weight(&self, weight: Weight) -> Result<&WeightInfo> {
        self.weights.get(weight.0).ok_or_else(|| bug("weight", weight.0))
    }

    /// Bytes of weights that one token's pass reads: every matrix once, but only one row of an
    /// embedding table that is not also the output matrix.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        let mut used = std::collections::HashSet::new();
        for op in &self.ops {
            op.each_weight(|weight, usage| {
                if usage == WeightUse::Matrix {
                    used.insert(weight.0);
                }
            });
        }
        used.iter().filter_map(|&w| self.weights.get(w)).map(|w| w.tensor.size()).sum()
    }

    /// The result of a pass: the logits, or the buffer that a part of a program hands on.
    pub(crate) fn result(&self) -> Option<&BufInfo> {
        let logits = self.ops.iter().rev().find_map(|op| if let Op::Logits { x } = op { Some(*x) } else { None });
        self.buffers.get(logits?.0)
    }
}

/// The error for a handle that does not belong to this program. Debug builds panic here, so that
/// tests find it.
fn bug(what: &str, number: usize) -> Error {
    debug_assert!(false, "there is no {what} {number}");
    Error::new(ErrorKind::Device, format!("the program has no {what} {number}: a bug in wavelm"))
}
