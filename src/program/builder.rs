//! How a model family writes its program.

use super::{Buf, BufInfo, LayerState, Op, Program, Rope, RowKind, Weight, WeightInfo};
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::{Error, Result, memory, quant};

/// Writes a [`Program`], and checks every weight against the file on the way.
pub(crate) struct Builder<'a> {
    gguf: &'a Gguf,
    program: Program,
    /// Remembers that memory for a list ran out; `build` reports it.
    full: Result<()>,
}

/// What the memory is for, in texts of errors.
const WHAT: &str = "the program of the model";

impl<'a> Builder<'a> {
    pub(crate) fn new(gguf: &'a Gguf, name: &str) -> Self {
        let program = Program {
            name: name.to_owned(),
            buffers: Vec::new(),
            weights: Vec::new(),
            ropes: Vec::new(),
            states: Vec::new(),
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
    /// Where the file has no such tensor, or has it in another shape or in a type that cannot be
    /// dequantized.
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
        // Norms and biases are used as stored; every writer of GGUF files stores them as F32 (or
        // F16).
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

    /// Registers a rotary embedding and returns its number, to use in [`Op::Rope`].
    pub(crate) fn rope(&mut self, rope: Rope) -> usize {
        if let Some(known) = self.program.ropes.iter().position(|r| *r == rope) {
            return known;
        }
        self.program.ropes.push(rope);
        self.program.ropes.len() - 1
    }

    /// Adds the state of a layer and returns its number, to use in [`Op::StoreKv`] and
    /// [`Op::Attention`].
    pub(crate) fn state(&mut self, state: LayerState) -> usize {
        let number = self.program.states.len();
        self.keep_full(|program| memory::push(&mut program.states, state, WHAT));
        number
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.keep_full(|program| memory::push(&mut program.ops, op, WHAT));
    }

    /// Adds to the program, unless memory ran out before.
    fn keep_full(&mut self, add: impl FnOnce(&mut Program) -> Result<()>) {
        if self.full.is_ok() {
            self.full = add(&mut self.program);
        }
    }

    /// `out = x * weightᵀ`, plus the bias of that name where the file has one: `<stem>.weight`, `<stem>.bias`.
    pub(crate) fn linear(&mut self, x: Buf, stem: &str, out: Buf) -> Result<()> {
        let (columns, rows) = (self.program.columns(x)?, self.program.columns(out)?);
        let weight = self.matrix(&format!("{stem}.weight"), columns, rows)?;
        let bias = format!("{stem}.bias");
        let bias = if self.has(&bias) { Some(self.vector(&bias, rows)?) } else { None };
        self.op(Op::MatMul { x, weight, bias, out });
        Ok(())
    }

    /// `out = rms_norm(x)` with the weight of that name.
    pub(crate) fn rms_norm(&mut self, x: Buf, tensor: &str, eps: f32, out: Buf) -> Result<()> {
        let weight = self.vector(tensor, self.program.columns(x)?)?;
        self.op(Op::RmsNorm { x, weight, eps, out });
        Ok(())
    }

    /// Norms each head of `head_dim` columns of `x` with the weight of that name.
    pub(crate) fn head_norm(&mut self, x: Buf, tensor: &str, head_dim: usize, eps: f32) -> Result<()> {
        let weight = self.vector(tensor, head_dim)?;
        self.op(Op::HeadNorm { x, weight, eps });
        Ok(())
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
