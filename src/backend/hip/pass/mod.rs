//! The launches of a pass: each step of the plan with its kernels and the pass's inputs.

use super::code::{Args, Kernel};
use super::driver::DevicePtr;
use super::plan::{Deferred, Fresh, Product, Step};
use super::prepare::{Attention, Halving, Heads, Kernels, MATVEC_COLUMNS, MOST_SPLIT_TOKENS, MOST_SPLITS, Many};
use crate::program::RopeStyle;
use crate::program::{Activation, AttentionInfo, Buf, RowKind, Weight, WeightInfo};
use crate::{Error, ErrorKind, Result};
use exec::Executor;
use inputs::Inputs;
use std::cell::Cell;
use three::Three;

pub(crate) mod exec;
mod graph;
mod inputs;
mod three;

/// Rows per block in the kernels for few columns, in general and where results are quantized in
/// groups.
const MATVEC_ROWS: usize = 4;
const GROUP_ROWS: usize = 32;

/// The launches of a pass whose inputs have been queued.
pub(crate) struct Pass<'a> {
    pub(crate) executor: &'a Executor,
    pub(crate) inputs: &'a Inputs,
    pub(crate) pages: DevicePtr,
    pub(crate) logits: DevicePtr,
    /// The buffer whose f16 form is current.
    pub(crate) halved: Cell<Option<Buf>>,
}

pub(crate) fn bug(what: &str) -> Error {
    Error::new(ErrorKind::Device, format!("{what}: a bug in wavelm"))
}

/// A number as a kernel's 32-bit parameter.
fn narrow(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::unsupported(format!("{value} is more than a GPU kernel can count")))
}

/// The number of blocks for `items` items.
fn blocks(items: usize, per_block: usize) -> Result<u32> {
    narrow(items.div_ceil(per_block))
}

impl Pass<'_> {
    fn columns(&self, buf: Buf) -> Result<usize> {
        self.executor.program.columns(buf)
    }

    fn rows(&self, buf: Buf) -> Result<usize> {
        Ok(match self.executor.program.buffer(buf)?.rows {
            RowKind::Outputs => self.inputs.outputs,
            RowKind::Tokens => self.inputs.tokens,
        })
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

    /// The int8 form if it is `wanted`, otherwise null.
    fn int8_if(&self, wanted: bool, buf: Buf) -> Result<(DevicePtr, DevicePtr)> {
        if wanted { self.int8(buf) } else { Ok((0, 0)) }
    }

    fn weight(&self, weight: Weight) -> Result<DevicePtr> {
        self.executor.weights.address(weight.0)
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: Args) -> Result<()> {
        // SAFETY: each call below passes the arguments that the kernel's file lists, in order.
        // Buffers have room for the most rows of a pass, and `run` checks that limit; weights have
        // the sizes that the program was built with; `run` checks page numbers; all of the memory
        // stays allocated until `run` has waited.
        unsafe { kernel.launch(&self.executor.stream, grid, args) }
    }

    /// Queues the launches of a step.
    pub(crate) fn step(&self, step: &Step, kernels: &Kernels) -> Result<()> {
        if !matches!(step, Step::MatMul { .. } | Step::Residual { .. } | Step::GatedMatMul { .. }) {
            // Only matrix products leave the inputs of other products unchanged.
            self.halved.set(None);
        }
        match (step, kernels) {
            (Step::MatMul { x, products, norm }, Kernels::MatMul { few, many }) => {
                self.matmul(*x, products, *norm, few, many)
            }
            (Step::Residual { x, product, stream, weight, eps, out }, Kernels::Residual { few, many, norm }) => {
                if let Some(kernel) = self.few(*x, few)? {
                    return self.residual(*x, product, *stream, (*weight, *out), kernel);
                }
                self.matmul_many(*x, &[*product], many)?;
                let (add, x, weight, eps, out) = (product.out, *stream, *weight, *eps, *out);
                match norm {
                    Halving::Halves(kernel) => self.halve_norm(x, add, (weight, eps, out), kernel),
                    Halving::Not(kernel) => {
                        self.simple(&Step::Norm { x, add: Some(add), weight, eps, out, quantize: true }, kernel)
                    }
                }
            }
            (Step::GatedMatMul { x, gate, up, act, quantize, norm, .. }, Kernels::GatedMatMul { few, many, glu }) => {
                if let Some(kernel) = self.few(*x, few)? {
                    return self.gated_matmul(*x, [gate, up], *act, *quantize, *norm, kernel);
                }
                self.matmul_many(*x, &[*gate, *up], many)?;
                let (gate, up) = (gate.out, up.out);
                match glu {
                    Halving::Halves(kernel) => self.halve_glu(gate, up, kernel),
                    Halving::Not(kernel) => {
                        self.simple(&Step::Glu { gate, up, act: *act, quantize: *quantize }, kernel)
                    }
                }
            }
            (Step::Attention { layer, q, out, info, quantize, fresh }, Kernels::Attention(kernels)) => {
                self.attention(*layer, [*q, *out], info, *quantize, *fresh, kernels)
            }
            (step, Kernels::One(kernel)) => self.simple(step, kernel),
            _ => Err(bug("a step has the kernels of another")),
        }
    }

    /// Steps that are one launch.
    fn simple(&self, step: &Step, kernel: &Kernel) -> Result<()> {
        let elements = |buf| Ok::<_, Error>(self.rows(buf)? * self.columns(buf)?);
        let over_elements =
            |buf, args: Args| self.launch(kernel, [blocks(elements(buf)?, 256)?, 1, 1], args.u64(elements(buf)?));
        match *step {
            Step::Embed { table, out } => {
                let info = self.executor.program.weight(table)?;
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
                    .u32(narrow(self.columns(x)?)?)
                    .f32(eps);
                self.launch(kernel, [narrow(self.rows(x)?)?, 1, 1], args)
            }
            Step::HeadNorm { x, weight, eps } => {
                let columns = self.executor.program.weights.get(weight.0).map_or(1, |w| w.columns);
                let heads = elements(x)? / columns.max(1);
                let args = Args::default()
                    .ptr(self.float(x)?)
                    .ptr(self.weight(weight)?)
                    .u32(narrow(heads)?)
                    .u32(narrow(columns)?)
                    .f32(eps);
                self.launch(kernel, [blocks(heads, 4)?, 1, 1], args)
            }
            Step::Rope { x, rope, head_dim } => {
                let heads = self.columns(x)? / head_dim.max(1);
                let (angles, pairs, neox) = self.rope(rope)?;
                let args = Args::default()
                    .ptr(self.float(x)?)
                    .ptr(angles)
                    .ptr(0)
                    .u32(narrow(heads)?)
                    .u32(narrow(head_dim)?)
                    .u32(pairs)
                    .u32(neox);
                self.launch(kernel, [narrow(heads)?, narrow(self.rows(x)?)?, 1], args)
            }
            Step::StoreKv { layer, k, v, turn } => self.store_kv(kernel, layer, k, v, turn),
            Step::Gather { x, out } => {
                let columns = self.columns(out)?;
                let args = Args::default()
                    .ptr(self.float(x)?)
                    .ptr(self.inputs.wanted)
                    .ptr(self.float(out)?)
                    .u32(narrow(columns)?);
                self.launch(kernel, [blocks(columns, 256)?, narrow(self.inputs.outputs)?, 1], args)
            }
            Step::MatMul { .. } | Step::Residual { .. } | Step::GatedMatMul { .. } | Step::Attention { .. } => {
                Err(bug("a step has the kernels of another"))
            }
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
            Some((q, rope)) => (self.float(q)?, self.columns(q)? / shape.head_dim.max(1), self.rope(rope)?),
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

    fn info(&self, weight: Weight) -> Result<&WeightInfo> {
        self.executor.program.weight(weight)
    }

    /// The kernel for the number of rows of `x`, if that is small.
    fn few<'k>(&self, x: Buf, kernels: &'k [Kernel]) -> Result<Option<&'k Kernel>> {
        let count = self.rows(x)?;
        Ok(MATVEC_COLUMNS.iter().zip(kernels).find(|(n, _)| count <= **n).map(|(_, kernel)| kernel))
    }

    fn matmul(
        &self,
        x: Buf,
        products: &[Product],
        norm: Option<Deferred>,
        few: &[Kernel],
        many: &[Many],
    ) -> Result<()> {
        match (self.few(x, few)?, products) {
            (None, _) => {
                // Products with weights of one type have the same kernels.
                let ty = |product: &Product| self.info(product.weight).ok().map(|info| info.tensor.tensor_type());
                let mut many = many.iter();
                products.chunk_by(|a, b| ty(a) == ty(b)).try_for_each(|products| {
                    let kernel = many.nth(products.len() - 1).ok_or_else(|| bug("a product has no kernel"))?;
                    self.matmul_many(x, products, kernel)
                })
            }
            (Some(kernel), [product]) => {
                let info = self.info(product.weight)?;
                let grid = [blocks(info.rows, MATVEC_ROWS)?, u32::from(self.rows(x)? > 0), 1];
                let args = self.product_args(x, product)?;
                let is_quantized = info.tensor.tensor_type().is_quantized();
                let args = if is_quantized { self.deferred(args, x, norm)? } else { args };
                self.launch(kernel, grid, args)
            }
            (Some(kernel), _) => self.matmul_few(x, products, norm, kernel),
        }
    }

    /// Up to three products with many rows of activations, whose weights have one type.
    fn matmul_many(&self, x: Buf, products: &[Product], many: &Many) -> Result<()> {
        let count = self.rows(x)?;
        let core = match many {
            Many::Tiles(kernel) => {
                return products.iter().try_for_each(|product| {
                    let grid = [blocks(self.info(product.weight)?.rows, 64)?, blocks(count, 64)?, 1];
                    self.launch(kernel, grid, self.product_args(x, product)?)
                });
            }
            Many::Core(core) => core,
        };
        let three = Three::new(self, products)?;
        let (kernel, [across, down, splits]) =
            core.choose(&three.rows, three.columns, count, self.executor.device().units);
        let (halves, scales) = self.halves(x, &core.halve)?;
        let args = three.weights(Args::default()).ptr(halves).ptr(scales);
        let args = three.shape(three.results(args))?.u32(narrow(count)?);
        let args = args.u32(narrow(splits)?).ptr(self.partials()).ptr(self.counters());
        products.iter().for_each(|product| self.overwritten(product.out));
        self.launch(kernel, [narrow(across)?, narrow(down)?, narrow(splits)?], args)
    }

    /// The norm of `x + add`, only in f16.
    fn halve_norm(&self, x: Buf, add: Buf, (weight, eps, out): (Weight, f32, Buf), kernel: &Kernel) -> Result<()> {
        let (halves, scales) = self.halves_of(out)?;
        let args = Args::default().ptr(self.float(x)?).ptr(self.float(add)?).ptr(self.weight(weight)?);
        let args = args.ptr(halves).ptr(scales).u32(narrow(self.columns(x)?)?).f32(eps);
        self.halved.set(Some(out));
        self.launch(kernel, [narrow(self.rows(x)?)?, 1, 1], args)
    }

    /// A gated unit of two products, only in f16. The result replaces the f16 form of `gate`.
    fn halve_glu(&self, gate: Buf, up: Buf, kernel: &Kernel) -> Result<()> {
        let (halves, scales) = self.halves_of(gate)?;
        let args = Args::default().ptr(self.float(gate)?).ptr(self.float(up)?).ptr(halves).ptr(scales);
        self.halved.set(Some(gate));
        self.launch(kernel, [narrow(self.rows(gate)?)?, 1, 1], args.u32(narrow(self.columns(gate)?)?))
    }

    /// Records that a buffer was written, so that its f16 form is stale.
    fn overwritten(&self, buf: Buf) {
        if self.halved.get() == Some(buf) {
            self.halved.set(None);
        }
    }

    /// The addresses of a buffer's f16 form: numbers, and scales of the rows.
    fn halves_of(&self, x: Buf) -> Result<(DevicePtr, DevicePtr)> {
        let (numbers, scales) = self.executor.buffers.halves(x).ok_or_else(|| bug("a buffer has no f16 form"))?;
        let start = self.executor.memory.start();
        Ok((start + numbers as u64, start + scales as u64))
    }

    /// The f16 form of a buffer, computed if it is stale: numbers, and scales of the rows.
    fn halves(&self, x: Buf, halve: &Kernel) -> Result<(DevicePtr, DevicePtr)> {
        let (numbers, scales) = self.halves_of(x)?;
        if self.halved.get() != Some(x) {
            let args = Args::default().ptr(self.float(x)?).ptr(numbers).ptr(scales).u32(narrow(self.columns(x)?)?);
            self.launch(halve, [narrow(self.rows(x)?)?, 1, 1], args)?;
            self.halved.set(Some(x));
        }
        Ok((numbers, scales))
    }

    /// The arguments of a product by plain arithmetic.
    fn product_args(&self, x: Buf, product: &Product) -> Result<Args> {
        let args = Args::default().ptr(self.weight(product.weight)?);
        let args = if self.info(product.weight)?.tensor.tensor_type().is_quantized() {
            let (q, groups) = self.int8(x)?;
            args.ptr(q).ptr(groups)
        } else {
            args.ptr(self.float(x)?)
        };
        self.result_args(args, x, product)
    }

    /// Adds the arguments after the activations; all products have them in common.
    fn result_args(&self, args: Args, x: Buf, product: &Product) -> Result<Args> {
        let info = self.info(product.weight)?;
        Ok(args
            .ptr(self.float(product.out)?)
            .ptr(self.bias(product)?)
            .ptr(0)
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?)
            .u32(narrow(self.rows(x)?)?))
    }

    /// The memory where blocks that share a result keep their partial results, and count.
    fn partials(&self) -> DevicePtr {
        self.executor.memory.start() + self.executor.buffers.partials as u64
    }

    fn counters(&self) -> DevicePtr {
        self.inputs.counters
    }

    fn bias(&self, product: &Product) -> Result<DevicePtr> {
        product.bias.map_or(Ok(0), |b| self.weight(b))
    }

    /// Up to three products with few rows of activations, in one launch.
    fn matmul_few(&self, x: Buf, products: &[Product], norm: Option<Deferred>, kernel: &Kernel) -> Result<()> {
        let three = Three::new(self, products)?;
        let (q, groups) = self.int8(x)?;
        let args = three.results(three.weights(Args::default()).ptr(q).ptr(groups));
        let args = self.deferred(three.shape(args)?.u32(narrow(self.rows(x)?)?), x, norm)?;
        let grid = three.rows.iter().try_fold(0, |sum, &rows| Ok::<_, Error>(sum + blocks(rows, MATVEC_ROWS)?))?;
        self.launch(kernel, [grid, u32::from(self.rows(x)? > 0), 1], args)
    }

    /// Adds the arguments of a deferred norm; null if there is none.
    fn deferred(&self, args: Args, x: Buf, norm: Option<Deferred>) -> Result<Args> {
        Ok(match norm {
            Some(norm) => args.ptr(self.squares(x)?).f32(norm.eps),
            None => args.ptr(0).f32(0.0),
        })
    }

    fn squares(&self, buf: Buf) -> Result<DevicePtr> {
        let offset = self.executor.buffers.squares(buf).ok_or_else(|| bug("a buffer has no norm that is deferred"))?;
        Ok(self.executor.memory.start() + offset as u64)
    }

    /// A product with few rows of activations. It is added to the residual stream, and prepares the
    /// norm that follows.
    fn residual(
        &self,
        x: Buf,
        product: &Product,
        stream: Buf,
        (weight, out): (Weight, Buf),
        kernel: &Kernel,
    ) -> Result<()> {
        let info = self.info(product.weight)?;
        let ((q, groups), (out_q, out_groups)) = (self.int8(x)?, self.int8(out)?);
        let args = Args::default()
            .ptr(self.weight(product.weight)?)
            .ptr(q)
            .ptr(groups)
            .ptr(self.float(stream)?)
            .ptr(self.bias(product)?)
            .ptr(self.weight(weight)?)
            .ptr(out_q)
            .ptr(out_groups)
            .ptr(self.squares(out)?)
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?)
            .u32(narrow(self.rows(x)?)?);
        self.launch(kernel, [blocks(info.rows, GROUP_ROWS)?, u32::from(self.rows(x)? > 0), 1], args)
    }

    /// A gated unit with few rows of activations.
    fn gated_matmul(
        &self,
        x: Buf,
        [gate, up]: [&Product; 2],
        act: Activation,
        quantize: bool,
        norm: Option<Deferred>,
        kernel: &Kernel,
    ) -> Result<()> {
        let info = self.info(gate.weight)?;
        let ((q, groups), (out_q, out_groups)) = (self.int8(x)?, self.int8_if(quantize, gate.out)?);
        let args = Args::default()
            .ptr(self.weight(gate.weight)?)
            .ptr(self.weight(up.weight)?)
            .ptr(q)
            .ptr(groups)
            .ptr(self.float(gate.out)?)
            .ptr(out_q)
            .ptr(out_groups)
            .u32(u32::from(act == Activation::Gelu))
            .u32(narrow(info.rows)?)
            .u32(narrow(info.columns)?)
            .u32(narrow(self.rows(x)?)?);
        let args = self.deferred(args, x, norm)?;
        self.launch(kernel, [blocks(info.rows, GROUP_ROWS)?, u32::from(self.rows(x)? > 0), 1], args)
    }

    fn attention(
        &self,
        layer: usize,
        [q_buf, out_buf]: [Buf; 2],
        info: &AttentionInfo,
        quantize: bool,
        fresh: Option<Fresh>,
        kernels: &Attention,
    ) -> Result<()> {
        let inputs = self.inputs;
        // If two tokens belong to one sequence, one reads the keys and values that the other
        // stores; they must then be stored before the attention.
        let (fresh, stored) = if inputs.single { (fresh, None) } else { (None, fresh) };
        if let Some(Fresh { k, v, rope }) = stored {
            self.store_kv(&kernels.store, layer, k, v, rope.map(|rope| (q_buf, rope)))?;
        }
        let (q, out, layer) = (self.float(q_buf)?, self.float(out_buf)?, self.layer(layer)?);
        let shape = |args: Args| -> Result<Args> {
            Ok(args
                .u32(narrow(info.heads)?)
                .u32(narrow(info.kv_heads)?)
                .u32(narrow(info.head_dim)?)
                .u32(narrow(info.value_dim)?)
                .f32(info.scale)
                .f32(info.softcap.unwrap_or(0.0)))
        };
        // A window that does not fit in 32 bits is longer than any context, so there is none (0).
        let window = info.window.map_or(0, |w| u32::try_from(w.max(1)).unwrap_or(0));
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
            let args = shape(args)?.u32(window).u32(narrow(inputs.table_len)?);
            let args = args.u64(layer).u64(self.executor.page_bytes);
            let chunks = kernels.group.div_ceil(kernels.heads_in_tile);
            self.launch(prompt, [narrow(count)?, narrow(info.kv_heads * chunks)?, 1], args)?;
        }
        let all = 0..inputs.tokens;
        let runs = if kernels.prompt.is_some() { inputs.decode.as_slice() } else { std::slice::from_ref(&all) };
        // If some tokens attend in tiles, all results are quantized at the end.
        let at_once = quantize && runs.iter().map(ExactSizeIterator::len).sum::<usize>() == inputs.tokens;
        let (k, v, (angles, pairs, neox)) = match fresh {
            Some(Fresh { k, v, rope }) => {
                (self.float(k)?, self.float(v)?, rope.map_or(Ok((0, 0, 0)), |rope| self.rope(rope))?)
            }
            None => (0, 0, (0, 0, 0)),
        };
        let (out_q, groups) = self.int8_if(at_once, out_buf)?;
        for run in runs {
            let tokens = run.len();
            // As many blocks as run at once, but each with at least two pages of work, because
            // combining costs as much.
            let (units, most) = (self.executor.device().units as usize, inputs.pages.div_ceil(2));
            // A block for each head reads keys and values more often. This is good where there are
            // few blocks.
            let are_few = if self.executor.tests { tokens == 1 } else { info.heads * tokens * most <= units * 2 };
            let (decode, chunks, blocks) = match are_few {
                true => (&kernels.one_head, info.heads, units * 2),
                false => {
                    let Heads { kernel, per_block, blocks } = &kernels.heads;
                    (kernel, info.kv_heads * kernels.group.div_ceil(*per_block), units * blocks)
                }
            };
            let splits = match tokens > MOST_SPLIT_TOKENS {
                true => 1,
                false => (blocks / (chunks * tokens).max(1)).min(most).clamp(1, MOST_SPLITS),
            };
            let skip = |address: u64, bytes: usize| if address == 0 { 0 } else { address + (run.start * bytes) as u64 };
            let values = info.heads * info.value_dim;
            let args = Args::default()
                .ptr(skip(q, info.heads * info.head_dim * 4))
                .ptr(skip(k, info.kv_heads * info.head_dim * 4))
                .ptr(skip(v, info.kv_heads * info.value_dim * 4))
                .ptr(skip(angles, pairs as usize * 8))
                .ptr(self.pages)
                .ptr(inputs.table)
                .ptr(skip(inputs.token_tables, 4))
                .ptr(skip(inputs.positions, 4))
                .ptr(skip(out, values * 4))
                .ptr(skip(out_q, values))
                .ptr(skip(groups, values / 32 * 8))
                .ptr(self.partials())
                .ptr(self.counters());
            let args = shape(args)?
                .u32(pairs)
                .u32(neox)
                .u32(window)
                .u32(narrow(inputs.table_len)?)
                .u32(narrow(splits)?)
                .u64(layer)
                .u64(self.executor.page_bytes);
            self.launch(decode, [narrow(chunks)?, narrow(tokens)?, narrow(splits)?], args)?;
        }
        if quantize && !at_once {
            self.simple(&Step::Quantize { x: out_buf }, &kernels.quantize)?;
        }
        Ok(())
    }
}
