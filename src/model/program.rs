//! The program of a model: a straight line of operations over numbered buffers, made once per model by its family
//! (`model::arch`) and interpreted by a backend.
//!
//! Every buffer holds `f32` values of the shape `[rows, columns]`; the columns are fixed here, the rows vary from pass
//! to pass. A buffer over *tokens* has one row for each token of the batch, one over *outputs* (see [`Op::Rows`]) one
//! row for each token whose logits are wanted. Printing a program (`{program}`) is how one debugs a model.

use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::model::rope::Rope;
use crate::{Error, Result, memory, quant};
use std::fmt;

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
    /// What the scores are multiplied with before the softmax.
    pub(crate) scale: f32,
    /// A query at position `p` sees only the positions above `p - window`.
    pub(crate) window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub(crate) softcap: Option<f32>,
}

/// One operation. `out` is overwritten; operations without an `out` work in place on `x`.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// `out = table[token]`
    Embed { table: Weight, out: Buf },
    /// `x = by * x`
    Scale { x: Buf, by: f32 },
    /// `out = x / rms(x) * weight` (Zhang and Sennrich 2019)
    RmsNorm { x: Buf, weight: Weight, eps: f32, out: Buf },
    /// The same for each head of `weight.columns` columns of `x` by itself.
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
    /// `out = ` the rows of `x` whose logits are wanted: from tokens to outputs.
    Rows { x: Buf, out: Buf },
    /// `x` holds the logits: the end of the program.
    Logits { x: Buf },
}

/// The keys and values that one layer caches for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
}

/// A model's forward pass.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) buffers: Vec<BufInfo>,
    pub(crate) weights: Vec<WeightInfo>,
    pub(crate) ropes: Vec<Rope>,
    /// What each layer caches.
    pub(crate) kv: Vec<KvShape>,
    pub(crate) ops: Vec<Op>,
    /// Tokens in the vocabulary: columns of the logits.
    pub(crate) vocab: usize,
}

/// Writes a [`Program`] while checking every weight against the file.
pub(crate) struct Builder<'a> {
    gguf: &'a Gguf,
    program: Program,
    /// Of lists for which there was no memory; `build` reports it.
    full: Result<()>,
}

/// What memory is for.
const WHAT: &str = "the program of the model";

impl<'a> Builder<'a> {
    pub(crate) fn new(gguf: &'a Gguf, name: &str) -> Self {
        let program = Program {
            name: name.to_owned(),
            buffers: Vec::new(),
            weights: Vec::new(),
            ropes: Vec::new(),
            kv: Vec::new(),
            ops: Vec::new(),
            vocab: 0,
        };
        Self { gguf, program, full: Ok(()) }
    }

    /// A new buffer with a row for each token.
    pub(crate) fn buffer(&mut self, name: &'static str, columns: usize) -> Buf {
        self.program.buffers.push(BufInfo { name, columns, rows: RowKind::Tokens }); // a family has some ten
        Buf(self.program.buffers.len() - 1)
    }

    /// A new buffer with a row for each output.
    pub(crate) fn output_buffer(&mut self, name: &'static str, columns: usize) -> Buf {
        self.program.buffers.push(BufInfo { name, columns, rows: RowKind::Outputs });
        Buf(self.program.buffers.len() - 1)
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.gguf.tensor(tensor).is_some()
    }

    /// The matrix `tensor` with `columns` inputs and `rows` outputs.
    ///
    /// # Errors
    /// Where the file has no such tensor, has it in another shape, or in a type that cannot be dequantized.
    pub(crate) fn matrix(&mut self, tensor: &str, columns: usize, rows: usize) -> Result<Weight> {
        let info = self.gguf.tensor(tensor).ok_or_else(|| {
            Error::invalid_file(format!("tensor {tensor} is missing, but a model of this architecture needs it"))
        })?;
        let dims = info.dims();
        let found = (dims.first().copied().unwrap_or(1), dims.iter().skip(1).product::<u64>());
        if found != (columns as u64, rows as u64) {
            let wanted = if rows == 1 { format!("[{columns}]") } else { format!("[{columns}, {rows}]") };
            return Err(Error::invalid_file(format!("tensor {tensor} has the shape {dims:?}, expected {wanted}")));
        }
        if !quant::is_supported(info.tensor_type()) {
            return Err(Error::unsupported(format!(
                "tensor {tensor} has the type {:?}, which this version cannot compute with; convert the model to \
                 another quantization, such as Q4_K_M or Q8_0",
                info.tensor_type()
            )));
        }
        // Norms and biases are used as they are; every writer of GGUF files stores them as F32 (or F16).
        if rows == 1 && !matches!(info.tensor_type(), TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            return Err(Error::unsupported(format!(
                "tensor {tensor} is a vector of type {:?}; only F32, F16 and BF16 vectors are supported",
                info.tensor_type()
            )));
        }
        if let Some(known) = self.program.weights.iter().position(|w| w.tensor.name() == tensor) {
            return Ok(Weight(known)); // tied weights
        }
        let TensorInfo { ty, part, offset, size, .. } = *info;
        let name = memory::copied_text(info.name(), WHAT)?;
        let tensor = TensorInfo { name, ty, dims: memory::copied(&info.dims, WHAT)?, part, offset, size };
        memory::push(&mut self.program.weights, WeightInfo { tensor, rows, columns }, WHAT)?;
        Ok(Weight(self.program.weights.len() - 1))
    }

    /// The vector `tensor` of `columns` elements.
    pub(crate) fn vector(&mut self, tensor: &str, columns: usize) -> Result<Weight> {
        self.matrix(tensor, columns, 1)
    }

    /// The values of a small vector tensor, if the file has it.
    pub(crate) fn values(&self, tensor: &str, columns: usize) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.gguf.tensor(tensor) else { return Ok(None) };
        if info.dims().iter().product::<u64>() != columns as u64 {
            return Err(Error::invalid_file(format!(
                "tensor {tensor} has the shape {:?}, expected [{columns}]",
                info.dims()
            )));
        }
        let mut out = memory::filled(columns, 0.0, "the values of a tensor")?;
        quant::dequantize(info.tensor_type(), self.gguf.data(info), &mut out)?;
        Ok(Some(out))
    }

    /// Registers a rotary embedding; the result is what [`Op::Rope`] names.
    pub(crate) fn rope(&mut self, rope: Rope) -> usize {
        if let Some(known) = self.program.ropes.iter().position(|r| *r == rope) {
            return known;
        }
        self.program.ropes.push(rope);
        self.program.ropes.len() - 1
    }

    /// Adds a layer to the cache; the result is what [`Op::StoreKv`] and [`Op::Attention`] name.
    pub(crate) fn kv_layer(&mut self, shape: KvShape) -> usize {
        let layer = self.program.kv.len();
        self.keep_full(|program| memory::push(&mut program.kv, shape, WHAT));
        layer
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.keep_full(|program| memory::push(&mut program.ops, op, WHAT));
    }

    /// Adds to the program, unless memory was short before.
    fn keep_full(&mut self, add: impl FnOnce(&mut Program) -> Result<()>) {
        if self.full.is_ok() {
            self.full = add(&mut self.program);
        }
    }

    /// `out = x * weightᵀ`, plus the bias of that name where the file has one: `<stem>.weight`, `<stem>.bias`.
    pub(crate) fn linear(&mut self, x: Buf, stem: &str, out: Buf) -> Result<()> {
        let (columns, rows) = (self.columns(x), self.columns(out));
        let weight = self.matrix(&format!("{stem}.weight"), columns, rows)?;
        let bias = format!("{stem}.bias");
        let bias = if self.has(&bias) { Some(self.vector(&bias, rows)?) } else { None };
        self.op(Op::MatMul { x, weight, bias, out });
        Ok(())
    }

    /// `out = rms_norm(x)` with the weight of that name.
    pub(crate) fn rms_norm(&mut self, x: Buf, tensor: &str, eps: f32, out: Buf) -> Result<()> {
        let weight = self.vector(tensor, self.columns(x))?;
        self.op(Op::RmsNorm { x, weight, eps, out });
        Ok(())
    }

    /// Norms each head of `head_dim` columns of `x` with the weight of that name.
    pub(crate) fn head_norm(&mut self, x: Buf, tensor: &str, head_dim: usize, eps: f32) -> Result<()> {
        let weight = self.vector(tensor, head_dim)?;
        self.op(Op::HeadNorm { x, weight, eps });
        Ok(())
    }

    pub(crate) fn columns(&self, buf: Buf) -> usize {
        self.program.buffers.get(buf.0).map_or(0, |b| b.columns)
    }

    /// The finished program.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn build(mut self, vocab: usize) -> Result<Program> {
        self.full?;
        self.program.vocab = vocab;
        Ok(self.program)
    }
}

impl Program {
    /// Bytes of weights that one token's pass reads: every matrix once, one row of an embedding table that is not also
    /// the output matrix.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        let used: std::collections::HashSet<usize> = self
            .ops
            .iter()
            .filter_map(|op| if let Op::MatMul { weight, .. } = op { Some(weight.0) } else { None })
            .collect();
        used.iter().filter_map(|&w| self.weights.get(w)).map(|w| w.tensor.size()).sum()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buf = |b: &Buf| self.buffers.get(b.0).map_or_else(|| format!("?{}", b.0), |i| i.name.to_owned());
        let weight = |w: &Weight| {
            self.weights.get(w.0).map_or_else(
                || format!("?{}", w.0),
                |i| format!("{}<{:?} {}x{}>", i.tensor.name(), i.tensor.tensor_type(), i.rows, i.columns),
            )
        };
        writeln!(f, "program {}: {} layers cached, {} logits", self.name, self.kv.len(), self.vocab)?;
        for b in &self.buffers {
            let rows = if b.rows == RowKind::Tokens { "tokens" } else { "outputs" };
            writeln!(f, "  buffer {}: [{rows}, {}]", b.name, b.columns)?;
        }
        for (i, r) in self.ropes.iter().enumerate() {
            writeln!(f, "  rope {i}: {r}")?;
        }
        for op in &self.ops {
            match op {
                Op::Embed { table, out } => writeln!(f, "  {} = embed {}", buf(out), weight(table)),
                Op::Scale { x, by } => writeln!(f, "  {} *= {by}", buf(x)),
                Op::RmsNorm { x, weight: w, eps, out } => {
                    writeln!(f, "  {} = rms_norm {} * {}, eps {eps:e}", buf(out), buf(x), weight(w))
                }
                Op::HeadNorm { x, weight: w, eps } => {
                    writeln!(f, "  {} = head_norm {} * {}, eps {eps:e}", buf(x), buf(x), weight(w))
                }
                Op::MatMul { x, weight: w, bias, out } => {
                    write!(f, "  {} = matmul {}, {}", buf(out), buf(x), weight(w))?;
                    bias.as_ref().map_or(Ok(()), |b| write!(f, " + {}", weight(b)))?;
                    writeln!(f)
                }
                Op::Rope { x, rope, head_dim } => {
                    writeln!(f, "  {} = rope {rope} {}, heads of {head_dim}", buf(x), buf(x))
                }
                Op::StoreKv { layer, k, v } => writeln!(f, "  cache {layer} <- {}, {}", buf(k), buf(v)),
                Op::Attention { layer, q, out, info } => {
                    write!(f, "  {} = attention {} over cache {layer}: ", buf(out), buf(q))?;
                    write!(f, "{} heads on {} of {}", info.heads, info.kv_heads, info.head_dim)?;
                    write!(f, ", scale {}", info.scale)?;
                    info.window.map_or(Ok(()), |w| write!(f, ", window {w}"))?;
                    info.softcap.map_or(Ok(()), |c| write!(f, ", softcap {c}"))?;
                    writeln!(f)
                }
                Op::Glu { gate, up, act } => {
                    writeln!(f, "  {} = {act:?}({}) * {}", buf(gate), buf(gate), buf(up))
                }
                Op::Add { x, y } => writeln!(f, "  {} += {}", buf(x), buf(y)),
                Op::Softcap { x, cap } => writeln!(f, "  {} = softcap {}, {cap}", buf(x), buf(x)),
                Op::Rows { x, out } => writeln!(f, "  {} = wanted rows of {}", buf(out), buf(x)),
                Op::Logits { x } => writeln!(f, "  logits {}", buf(x)),
            }?;
        }
        Ok(())
    }
}
