//! One forward pass: the launches of the plan's steps, on one stream.

use super::device::Device;
use super::driver::DevicePtr;
use super::inputs::{InputMemory, Inputs};
use super::memory::{DeviceBuffer, Stream};
use super::modules::{Args, Kernel, Modules};
use super::plan::{Plan, Step};
use super::prepare::{self, Attention, Buffers, Kernels, MATVEC_COLUMNS, MOST_SPLIT_TOKENS, MOST_SPLITS, Many};
use super::weights::Weights;
use super::{MOST_OUTPUTS, MOST_TOKENS};
use crate::backend::cpu;
use crate::backend::{Batch, Canceller, KvType};
use crate::gguf::Gguf;
use crate::model::program::{AttentionInfo, Buf, Program, RowKind, Weight};
use crate::model::rope::RopeStyle;
use crate::{Error, ErrorKind, Result};
use std::cell::Cell;
use std::sync::Arc;

/// A program that is ready to run on a device.
pub(super) struct Executor {
    device: Arc<Device>,
    program: Arc<Program>,
    plan: Plan,
    kernels: Vec<Kernels>,
    /// Tokens in the tiles of the program's attentions.
    tile_sizes: Vec<usize>,
    /// Where each layer's keys and values lie in a page, and the size of one.
    layers: Vec<usize>,
    page_bytes: usize,
    buffers: Buffers,
    // The stream comes before the memory that its work uses: it is waited for when it is dropped.
    stream: Stream,
    memory: DeviceBuffer,
    inputs: InputMemory,
    weights: Weights,
}

impl Executor {
    pub(super) fn new(device: &Arc<Device>, gguf: &Gguf, program: &Arc<Program>, kv_type: KvType) -> Result<Self> {
        let plan = Plan::new(program);
        // Before anything is uploaded: without kernels there is no point.
        let modules = Modules::new(device);
        let kernels = prepare::kernels(program, &plan, kv_type, device, &modules)?;
        let mut tile_sizes: Vec<usize> = kernels
            .iter()
            .filter_map(|k| if let Kernels::Attention(a) = k { a.prompt.as_ref().map(|_| a.tile_tokens) } else { None })
            .collect();
        tile_sizes.sort_unstable();
        tile_sizes.dedup();
        let (layers, page_bytes) = cpu::layers(program, kv_type)?;
        let buffers = Buffers::new(program, &plan, device)?;
        let stream = Stream::new(device)?;
        Ok(Self {
            memory: DeviceBuffer::new(device, buffers.bytes, "buffers of a pass")?,
            inputs: InputMemory::new(device)?,
            weights: Weights::upload(device, &stream, gguf, program)?,
            layers: layers.into_iter().map(|(_, offset)| offset).collect(),
            page_bytes,
            stream,
            buffers,
            tile_sizes,
            kernels,
            plan,
            program: Arc::clone(program),
            device: Arc::clone(device),
        })
    }

    pub(super) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Runs the program and waits for it. The logits go to `logits`, which has room for the batch's outputs.
    pub(super) fn run(
        &mut self,
        batch: &Batch<'_>,
        pages: &DeviceBuffer,
        logits: &DeviceBuffer,
        cancel: &Canceller,
    ) -> Result<()> {
        if batch.tokens() > MOST_TOKENS || batch.outputs() > MOST_OUTPUTS {
            return Err(Error::invalid_input(format!("a pass takes {MOST_TOKENS} tokens, not {}", batch.tokens())));
        }
        let most = pages.bytes() / self.page_bytes.max(1);
        if batch.spans.iter().flat_map(|s| s.pages).any(|&page| page as usize >= most) {
            return Err(Error::new(ErrorKind::Device, "a cache page has no memory: a bug in wavelm"));
        }
        if logits.bytes() < batch.outputs() * self.program.vocab * 4 {
            return Err(Error::new(ErrorKind::Device, "the logits have too little memory: a bug in wavelm"));
        }
        let queued = self.queue(batch, pages, logits, cancel);
        // In any case: what is queued reads and writes memory that the caller may now free or use.
        let waited = self.stream.wait();
        queued.and(waited)
    }

    fn queue(
        &mut self,
        batch: &Batch<'_>,
        pages: &DeviceBuffer,
        logits: &DeviceBuffer,
        cancel: &Canceller,
    ) -> Result<()> {
        // SAFETY: every pass waits for the stream at its end, also where it fails.
        let inputs = unsafe { self.inputs.upload(&self.device, &self.stream, &self.program, batch, &self.tile_sizes) }?;
        let (pages, logits) = (pages.start(), logits.start());
        let pass = Pass { executor: self, inputs, pages, logits, halved: Cell::new(None) };
        for (step, kernels) in self.plan.steps.iter().zip(&self.kernels) {
            if cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the session was cancelled"));
            }
            pass.step(step, kernels)?;
        }
        Ok(())
    }
}

struct Pass<'a> {
    executor: &'a Executor,
    inputs: Inputs,
    pages: DevicePtr,
    logits: DevicePtr,
    /// The buffer whose f16 form is up to date.
    halved: Cell<Option<Buf>>,
}

fn bug(what: &str) -> Error {
    Error::new(ErrorKind::Device, format!("{what}: a bug in wavelm"))
}

/// A number that kernels take as 32 bits.
fn narrow(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::unsupported(format!("{value} is more than a GPU kernel can count")))
}

/// Blocks for so many items.
fn blocks(items: usize, per_block: usize) -> Result<u32> {
    narrow(items.div_ceil(per_block))
}

impl Pass<'_> {
    fn columns(&self, buf: Buf) -> usize {
        self.executor.program.buffers.get(buf.0).map_or(0, |b| b.columns)
    }

    fn rows(&self, buf: Buf) -> usize {
        match self.executor.program.buffers.get(buf.0).map(|b| b.rows) {
            Some(RowKind::Outputs) => self.inputs.outputs,
            _ => self.inputs.tokens,
        }
    }

    fn float(&self, buf: Buf) -> Result<DevicePtr> {
        if buf == self.executor.plan.logits {
            return Ok(self.logits);
        }
        let offset = self.executor.buffers.float(buf).ok_or_else(|| bug("a buffer is not known"))?;
        Ok(self.executor.memory.start() + offset as u64)
    }

    /// The int8 form of a buffer: numbers and groups.
    fn int8(&self, buf: Buf) -> Result<(DevicePtr, DevicePtr)> {
        let (q, groups) = self.executor.buffers.int8(buf).ok_or_else(|| bug("a buffer has no int8 form"))?;
        let start = self.executor.memory.start();
        Ok((start + q as u64, start + groups as u64))
    }

    /// The int8 form where it is wanted, null where not.
    fn int8_if(&self, wanted: bool, buf: Buf) -> Result<(DevicePtr, DevicePtr)> {
        if wanted { self.int8(buf) } else { Ok((0, 0)) }
    }

    fn weight(&self, weight: Weight) -> Result<DevicePtr> {
        self.executor.weights.address(weight.0)
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: Args) -> Result<()> {
        // SAFETY: each call below has the arguments that the kernel's file lists, in order. Buffers have room for the
        // most rows of a pass, which `run` checks; weights have the sizes that the program was built with; page
        // numbers are checked by `run`; all of it is allocated until `run` has waited.
        unsafe { kernel.launch(&self.executor.stream, grid, args) }
    }

    fn step(&self, step: &Step, kernels: &Kernels) -> Result<()> {
        match (step, kernels) {
            (Step::MatMul { x, weight, bias, out }, Kernels::MatMul { few, many }) => {
                self.matmul(*x, *weight, *bias, *out, few, many)
            }
            (Step::Attention { layer, q, out, info }, Kernels::Attention(kernels)) => {
                self.halved.set(None);
                self.attention(*layer, *q, *out, info, kernels)
            }
            (step, Kernels::One(kernel)) => {
                self.halved.set(None);
                self.simple(step, kernel)
            }
            _ => Err(bug("a step has the kernels of another")),
        }
    }

    /// Steps of one launch.
    fn simple(&self, step: &Step, kernel: &Kernel) -> Result<()> {
        let elements = |buf| self.rows(buf) * self.columns(buf);
        let over_elements =
            |buf, args: Args| self.launch(kernel, [blocks(elements(buf), 256)?, 1, 1], args.u64(elements(buf)));
        match *step {
            Step::Embed { table, out } => {
                let info = self.executor.program.weights.get(table.0).ok_or_else(|| bug("a weight is not known"))?;
                let per_thread = if info.tensor.tensor_type().is_quantized() { 32 } else { 1 };
                let args = Args::default()
                    .ptr(self.weight(table)?)
                    .ptr(self.inputs.ids)
                    .ptr(self.float(out)?)
                    .u32(narrow(info.rows)?)
                    .u32(narrow(info.columns)?);
                self.launch(kernel, [blocks(info.columns, per_thread * 128)?, narrow(self.inputs.tokens)?, 1], args)
            }
            Step::Scale { x, by } => over_elements(x, Args::default().ptr(self.float(x)?).f32(by)),
            Step::Softcap { x, cap } => over_elements(x, Args::default().ptr(self.float(x)?).f32(cap)),
            Step::Add { x, y } => over_elements(x, Args::default().ptr(self.float(x)?).ptr(self.float(y)?)),
            Step::Quantize { x } => {
                let (q, groups) = self.int8(x)?;
                over_elements(x, Args::default().ptr(self.float(x)?).ptr(q).ptr(groups))
            }
            Step::Glu { gate, up, quantize, .. } => {
                let (q, groups) = self.int8_if(quantize, gate)?;
                let gate_address = self.float(gate)?;
                let args = Args::default().ptr(gate_address).ptr(self.float(up)?).ptr(gate_address).ptr(q).ptr(groups);
                over_elements(gate, args)
            }
            Step::Norm { x, add, weight, eps, out, quantize } => {
                let (q, groups) = self.int8_if(quantize, out)?;
                let args = Args::default()
                    .ptr(self.float(x)?)
                    .ptr(add.map_or(Ok(0), |y| self.float(y))?)
                    .ptr(self.weight(weight)?)
                    .ptr(self.float(out)?)
                    .ptr(q)
                    .ptr(groups)
                    .u32(narrow(self.columns(x))?)
                    .f32(eps);
                self.launch(kernel, [narrow(self.rows(x))?, 1, 1], args)
            }
            Step::HeadNorm { x, weight, eps } => {
                let columns = self.executor.program.weights.get(weight.0).map_or(1, |w| w.columns);
                let heads = elements(x) / columns.max(1);
                let args = Args::default()
                    .ptr(self.float(x)?)
                    .ptr(self.weight(weight)?)
                    .u32(narrow(heads)?)
                    .u32(narrow(columns)?)
                    .f32(eps);
                self.launch(kernel, [blocks(heads, 4)?, 1, 1], args)
            }
            Step::Rope { x, rope, head_dim } => {
                let heads = self.columns(x) / head_dim.max(1);
                let (angles, pairs, neox) = self.rope(rope)?;
                let args = Args::default()
                    .ptr(self.float(x)?)
                    .ptr(angles)
                    .ptr(0)
                    .u32(narrow(heads)?)
                    .u32(narrow(head_dim)?)
                    .u32(pairs)
                    .u32(neox);
                self.launch(kernel, [narrow(heads)?, narrow(self.rows(x))?, 1], args)
            }
            Step::StoreKv { layer, k, v, turn } => self.store_kv(kernel, layer, k, v, turn),
            Step::Gather { x, out } => {
                let columns = self.columns(out);
                let args = Args::default()
                    .ptr(self.float(x)?)
                    .ptr(self.inputs.wanted)
                    .ptr(self.float(out)?)
                    .u32(narrow(columns)?);
                self.launch(kernel, [blocks(columns, 256)?, narrow(self.inputs.outputs)?, 1], args)
            }
            Step::MatMul { .. } | Step::Attention { .. } => Err(bug("a step has the kernels of another")),
        }
    }

    /// Angles, pairs and style of a rotary embedding, as kernels take them.
    fn rope(&self, rope: usize) -> Result<(DevicePtr, u32, u32)> {
        let info = self.executor.program.ropes.get(rope).ok_or_else(|| bug("a rotary embedding is not known"))?;
        let angles = self.inputs.angles.get(rope).copied().ok_or_else(|| bug("a rotary embedding has no angles"))?;
        Ok((angles, narrow(info.inv_freq.len())?, u32::from(info.style == RopeStyle::Neox)))
    }

    fn layer(&self, layer: usize) -> Result<usize> {
        self.executor.layers.get(layer).copied().ok_or_else(|| bug("a cache layer is not known"))
    }

    fn store_kv(&self, kernel: &Kernel, layer: usize, k: Buf, v: Buf, turn: Option<(Buf, usize)>) -> Result<()> {
        let shape = self.executor.program.kv.get(layer).ok_or_else(|| bug("a cache layer is not known"))?;
        let (q, heads, (angles, pairs, neox)) = match turn {
            Some((q, rope)) => (self.float(q)?, self.columns(q) / shape.head_dim.max(1), self.rope(rope)?),
            None => (0, 0, (0, 0, 0)),
        };
        let args = Args::default()
            .ptr(q)
            .ptr(self.float(k)?)
            .ptr(self.float(v)?)
            .ptr(angles)
            .ptr(0)
            .ptr(self.pages)
            .ptr(self.inputs.table)
            .ptr(self.inputs.token_tables)
            .ptr(self.inputs.positions)
            .u32(narrow(heads)?)
            .u32(narrow(shape.kv_heads)?)
            .u32(narrow(shape.head_dim)?)
            .u32(narrow(shape.value_dim)?)
            .u32(pairs)
            .u32(neox)
            .u32(narrow(self.inputs.table_len)?)
            .u64(self.layer(layer)?)
            .u64(self.executor.page_bytes);
        self.launch(kernel, [narrow(heads + 2 * shape.kv_heads)?, narrow(self.inputs.tokens)?, 1], args)
    }

    fn matmul(
        &self,
        x: Buf,
        weight: Weight,
        bias: Option<Weight>,
        out: Buf,
        few: &[Kernel],
        many: &Many,
    ) -> Result<()> {
        let info = self.executor.program.weights.get(weight.0).ok_or_else(|| bug("a weight is not known"))?;
        let count = self.rows(x);
        let few = MATVEC_COLUMNS.iter().zip(few).find(|(n, _)| count <= **n);
        let (kernel, grid) = match (few, many) {
            (Some((_, kernel)), _) => (kernel, [blocks(info.rows, 4)?, u32::from(count > 0), 1]),
            (None, Many::Tiles(kernel)) => (kernel, [blocks(info.rows, 64)?, blocks(count, 64)?, 1]),
            (None, Many::Core(core)) => {
                let (kernel, [x, y]) = core.choose(info.rows, count, self.executor.device.units);
                (kernel, [narrow(x)?, narrow(y)?, 1])
            }
        };
        let args = Args::default().ptr(self.weight(weight)?);
        let args = match (few, many) {
            (None, Many::Core(core)) => {
                let (halves, scales) = self.halves(x, &core.halve)?;
                args.ptr(halves).ptr(scales)
            }
            _ if info.tensor.tensor_type().is_quantized() => {
                let (q, groups) = self.int8(x)?;
                args.ptr(q).ptr(groups)
            }
            _ => args.ptr(self.float(x)?),
        };
        if self.halved.get() == Some(out) {
            self.halved.set(None);
        }
        let args = args
            .ptr(self.float(out)?)
            .ptr(bias.map_or(Ok(0), |b| self.weight(b))?)
            .ptr(0)
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?)
            .u32(narrow(count)?);
        self.launch(kernel, grid, args)
    }

    /// The f16 form of a buffer, which is made where it is not up to date: numbers, and scales of the rows.
    fn halves(&self, x: Buf, halve: &Kernel) -> Result<(DevicePtr, DevicePtr)> {
        let (numbers, scales) = self.executor.buffers.halves(x).ok_or_else(|| bug("a buffer has no f16 form"))?;
        let start = self.executor.memory.start();
        let (numbers, scales) = (start + numbers as u64, start + scales as u64);
        if self.halved.get() != Some(x) {
            let args = Args::default().ptr(self.float(x)?).ptr(numbers).ptr(scales).u32(narrow(self.columns(x))?);
            self.launch(halve, [narrow(self.rows(x))?, 1, 1], args)?;
            self.halved.set(Some(x));
        }
        Ok((numbers, scales))
    }

    fn attention(&self, layer: usize, q: Buf, out: Buf, info: &AttentionInfo, kernels: &Attention) -> Result<()> {
        let inputs = &self.inputs;
        let (q, out, layer) = (self.float(q)?, self.float(out)?, self.layer(layer)?);
        let shape = |args: Args| -> Result<Args> {
            Ok(args
                .u32(narrow(info.heads)?)
                .u32(narrow(info.kv_heads)?)
                .u32(narrow(info.head_dim)?)
                .u32(narrow(info.value_dim)?)
                .f32(info.scale)
                .f32(info.softcap.unwrap_or(0.0))
                // A window as long as positions can count is none.
                .u32(info.window.map_or(0, |w| u32::try_from(w.max(1)).unwrap_or(0)))
                .u32(narrow(inputs.table_len)?))
        };
        let tiles = inputs.tiles.iter().find(|(size, ..)| *size == kernels.tile_tokens);
        if let (Some(prompt), Some(&(_, tiles, count))) = (&kernels.prompt, tiles) {
            let args = Args::default()
                .ptr(q)
                .ptr(self.pages)
                .ptr(inputs.table)
                .ptr(inputs.token_tables)
                .ptr(inputs.positions)
                .ptr(tiles)
                .ptr(out);
            let args = shape(args)?.u64(layer).u64(self.executor.page_bytes);
            let chunks = kernels.group.div_ceil(kernels.heads_in_tile);
            self.launch(prompt, [narrow(count)?, narrow(info.kv_heads * chunks)?, 1], args)?;
        }
        let all = 0..inputs.tokens;
        let runs = if kernels.prompt.is_some() { inputs.decode.as_slice() } else { std::slice::from_ref(&all) };
        for run in runs {
            let tokens = run.len();
            let chunks = info.kv_heads * kernels.group.div_ceil(kernels.heads_per_block);
            let splits = if tokens > MOST_SPLIT_TOKENS {
                1
            } else {
                // Enough blocks for four on each compute unit, but each with a page of work.
                let wanted = (self.executor.device.units as usize * 4).div_ceil((chunks * tokens).max(1));
                wanted.clamp(1, MOST_SPLITS).min(inputs.pages.max(1))
            };
            let partials = self.executor.memory.start() + self.executor.buffers.partials as u64;
            let skip = |address: u64, words: usize| address + (run.start * words * 4) as u64;
            let run_out = skip(out, info.heads * info.value_dim);
            let args = Args::default()
                .ptr(skip(q, info.heads * info.head_dim))
                .ptr(self.pages)
                .ptr(inputs.table)
                .ptr(skip(inputs.token_tables, 1))
                .ptr(skip(inputs.positions, 1))
                .ptr(run_out)
                .ptr(partials);
            let args = shape(args)?.u32(narrow(splits)?).u64(layer).u64(self.executor.page_bytes);
            self.launch(&kernels.decode, [narrow(chunks)?, narrow(tokens)?, narrow(splits)?], args)?;
            if splits > 1 {
                let args = Args::default()
                    .ptr(partials)
                    .ptr(run_out)
                    .u32(narrow(info.heads)?)
                    .u32(narrow(info.value_dim)?)
                    .u32(narrow(splits)?);
                self.launch(&kernels.combine, [narrow(info.heads)?, narrow(tokens)?, 1], args)?;
            }
        }
        Ok(())
    }
}
