//! A forward pass: its inputs, its memory, and what the launches of `ops/` ask it for.

mod buffers;
pub(crate) mod exec;
mod graph;
mod inputs;

pub(crate) use buffers::{Buffers, Scratch};

use super::code::{Args, Kernel};
use super::device::Device;
use super::driver::DevicePtr;
use super::memory::kv::Place;
use super::memory::pool::GroupPages;
use crate::program::{Buf, KvShape, Program, RopeStyle, RowKind, Weight, WeightInfo};
use crate::{Error, ErrorKind, Result};
use exec::Executor;
use inputs::Inputs;
use std::cell::Cell;

/// The launches of a pass whose inputs have been queued.
pub(crate) struct Pass<'a> {
    executor: &'a Executor,
    pub(crate) inputs: &'a Inputs,
    /// The cache pages of each group.
    pub(crate) pages: &'a [GroupPages],
    logits: DevicePtr,
    /// The buffer whose f16 form is current.
    pub(crate) halved: Cell<Option<Buf>>,
}

pub(crate) fn bug(what: &str) -> Error {
    Error::new(ErrorKind::Device, format!("{what}: a bug in wavelm"))
}

/// A number as a kernel's 32-bit parameter.
pub(crate) fn narrow(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::unsupported(format!("{value} is more than a GPU kernel can count")))
}

/// The number of blocks for `items` items.
pub(crate) fn blocks(items: usize, per_block: usize) -> Result<u32> {
    narrow(items.div_ceil(per_block))
}

impl Pass<'_> {
    fn program(&self) -> &Program {
        &self.executor.program
    }

    pub(crate) fn device(&self) -> &Device {
        self.executor.device()
    }

    /// Whether to choose kernels so that all of them are tested, instead of for speed.
    pub(crate) fn tests(&self) -> bool {
        self.executor.tests
    }

    pub(crate) fn columns(&self, buf: Buf) -> Result<usize> {
        self.program().columns(buf)
    }

    pub(crate) fn rows(&self, buf: Buf) -> Result<usize> {
        Ok(match self.program().buffer(buf)?.rows {
            RowKind::Outputs => self.inputs.outputs,
            RowKind::Tokens => self.inputs.tokens,
        })
    }

    pub(crate) fn elements(&self, buf: Buf) -> Result<usize> {
        Ok(self.rows(buf)? * self.columns(buf)?)
    }

    /// The address of something in the memory of the pass, unless it has no place there: `lacks`.
    fn address(&self, offset: Option<usize>, lacks: &str) -> Result<DevicePtr> {
        let offset = offset.ok_or_else(|| bug(lacks))?;
        Ok(self.executor.memory.start() + offset as u64)
    }

    /// The addresses of two such parts.
    fn addresses(&self, offsets: Option<(usize, usize)>, lacks: &str) -> Result<(DevicePtr, DevicePtr)> {
        let (a, b) = offsets.ok_or_else(|| bug(lacks))?;
        let start = self.executor.memory.start();
        Ok((start + a as u64, start + b as u64))
    }

    /// The numbers of a buffer in `f32`.
    pub(crate) fn float(&self, buf: Buf) -> Result<DevicePtr> {
        if buf == self.executor.logits {
            return Ok(self.logits);
        }
        self.address(self.executor.buffers.float(buf), "a buffer is not known")
    }

    /// The int8 form of a buffer: numbers and groups.
    pub(crate) fn int8(&self, buf: Buf) -> Result<(DevicePtr, DevicePtr)> {
        self.addresses(self.executor.buffers.int8(buf), "a buffer has no int8 form")
    }

    /// The int8 form if it is `wanted`, otherwise null.
    pub(crate) fn int8_if(&self, wanted: bool, buf: Buf) -> Result<(DevicePtr, DevicePtr)> {
        if wanted { self.int8(buf) } else { Ok((0, 0)) }
    }

    /// The place of a buffer's f16 form: numbers, and scales of the rows.
    pub(crate) fn halves(&self, buf: Buf) -> Result<(DevicePtr, DevicePtr)> {
        self.addresses(self.executor.buffers.halves(buf), "a buffer has no f16 form")
    }

    /// Records that a buffer was written, so that its f16 form is stale.
    pub(crate) fn overwritten(&self, buf: Buf) {
        if self.halved.get() == Some(buf) {
            self.halved.set(None);
        }
    }

    /// The sums of squares of a deferred norm.
    pub(crate) fn squares(&self, buf: Buf) -> Result<DevicePtr> {
        self.address(self.executor.buffers.squares(buf), "a buffer has no norm that is deferred")
    }

    /// The memory where blocks that share a result keep their partial results, and count.
    pub(crate) fn partials(&self) -> DevicePtr {
        self.executor.memory.start() + self.executor.buffers.partials as u64
    }

    pub(crate) fn counters(&self) -> DevicePtr {
        self.inputs.counters
    }

    pub(crate) fn weight(&self, weight: Weight) -> Result<DevicePtr> {
        self.executor.weights.address(weight.0)
    }

    pub(crate) fn info(&self, weight: Weight) -> Result<&WeightInfo> {
        self.program().weight(weight)
    }

    /// Angles, pairs and style of a rotary embedding, as kernels take them.
    pub(crate) fn rope(&self, rope: usize) -> Result<(DevicePtr, u32, u32)> {
        let info = self.program().ropes.get(rope).ok_or_else(|| bug("a rotary embedding is not known"))?;
        let angles = self.inputs.angles.get(rope).copied().ok_or_else(|| bug("a rotary embedding has no angles"))?;
        Ok((angles, narrow(info.inv_freq.len())?, u32::from(info.style == RopeStyle::Neox)))
    }

    /// The shape of a layer of the cache.
    pub(crate) fn shape(&self, layer: usize) -> Result<&KvShape> {
        Ok(&self.place(layer)?.layout)
    }

    /// Where a layer lies in a page of the cache.
    /// Where the state of a layer lies.
    pub(crate) fn place(&self, layer: usize) -> Result<&Place> {
        self.executor.places.of(layer)
    }

    /// Queues a launch with a thread for each number of `buf`; their count is the last argument.
    pub(crate) fn over_elements(&self, kernel: &Kernel, buf: Buf, args: Args) -> Result<()> {
        let elements = self.elements(buf)?;
        self.launch(kernel, [blocks(elements, 256)?, 1, 1], args.u64(elements))
    }

    /// Queues a launch.
    pub(crate) fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: Args) -> Result<()> {
        // SAFETY: each file of `ops/` passes the arguments that the kernel's file lists, in order.
        // Buffers have room for the most rows of a pass, and `run` checks that limit; weights have
        // the sizes that the program was built with; `run` checks page numbers; all of the memory
        // stays allocated until `run` has waited.
        unsafe { kernel.launch(&self.executor.stream, grid, args) }
    }
}
