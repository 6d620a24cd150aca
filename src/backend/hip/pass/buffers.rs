//! The memory of a pass, which is laid out when a model is loaded.

use crate::Result;
use crate::backend::hip::code::has_matrix_cores;
use crate::backend::hip::device::Device;
use crate::backend::hip::memory::Layout;
use crate::backend::hip::ops::{FEW_COLUMNS, Plan};
use crate::backend::hip::{MOST_OUTPUTS, MOST_TOKENS};
use crate::program::{Buf, Program, RowKind};
use std::collections::HashSet;

/// What steps need besides the numbers of buffers and their int8 forms.
pub(crate) struct Scratch {
    units: usize,
    halves: HashSet<Buf>,
    squares: HashSet<Buf>,
    partials: usize,
    counters: usize,
}

impl Scratch {
    /// Compute units of the device.
    pub(crate) fn units(&self) -> usize {
        self.units
    }

    /// The f16 form of a buffer.
    pub(crate) fn halves(&mut self, buf: Buf) {
        self.halves.insert(buf);
    }

    /// The sums of squares of a buffer whose norm is deferred.
    pub(crate) fn squares(&mut self, buf: Buf) {
        self.squares.insert(buf);
    }

    /// At least this many numbers, as partial results of blocks that share a result.
    pub(crate) fn partials(&mut self, count: usize) {
        self.partials = self.partials.max(count);
    }

    /// At least this many counters of such blocks.
    pub(crate) fn counters(&mut self, count: usize) {
        self.counters = self.counters.max(count);
    }
}

/// The offsets of the largest pass's buffers in their memory.
pub(crate) struct Buffers {
    floats: Vec<usize>,
    /// For each buffer whose int8 form is used: the numbers, and the words of their groups.
    int8: Vec<Option<(usize, usize)>>,
    /// For each buffer whose f16 form is used: the numbers, and the scales of the rows.
    halves: Vec<Option<(usize, usize)>>,
    /// For each buffer whose norm is deferred: the sums of squares.
    squares: Vec<Option<usize>>,
    /// Partial results of blocks that share a result.
    pub(super) partials: usize,
    /// Counters of these blocks.
    pub(super) counters: usize,
    pub(crate) bytes: usize,
}

impl Buffers {
    /// The logits' buffer is not among them: each pass brings its own.
    pub(crate) fn new(program: &Program, plan: &Plan, device: &Device) -> Result<Self> {
        let (halves, squares) = Default::default();
        let mut scratch = Scratch { units: device.units as usize, halves, squares, partials: 0, counters: 0 };
        plan.steps.iter().for_each(|step| step.needs(program, &mut scratch));
        let has_halves = has_matrix_cores(&device.arch);
        let mut layout = Layout::default();
        let (mut floats, mut int8, mut halves, mut squares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, buffer) in program.buffers.iter().enumerate() {
            let rows = match buffer.rows {
                RowKind::Tokens => MOST_TOKENS,
                RowKind::Outputs => MOST_OUTPUTS,
            };
            let elements = buffer.columns.saturating_mul(rows);
            let bytes = if plan.logits == Buf(i) { 0 } else { elements.saturating_mul(4) };
            floats.push(layout.part(bytes)?);
            int8.push(match plan.quantized.get(i) {
                Some(true) => Some((layout.part(elements)?, layout.part(elements / 32 * 8)?)),
                _ => None,
            });
            halves.push(match has_halves && scratch.halves.contains(&Buf(i)) {
                true => Some((layout.part(elements.saturating_mul(2))?, layout.part(rows * 4)?)),
                false => None,
            });
        }
        let most = FEW_COLUMNS.into_iter().max().unwrap_or(0);
        for (i, buffer) in program.buffers.iter().enumerate() {
            squares.push(match scratch.squares.contains(&Buf(i)) {
                true => Some(layout.part(most.saturating_mul(buffer.columns / 32 * 4))?),
                false => None,
            });
        }
        let partials = layout.part(scratch.partials.saturating_mul(4))?;
        Ok(Self { floats, int8, halves, squares, partials, counters: scratch.counters, bytes: layout.bytes() })
    }

    pub(super) fn float(&self, buf: Buf) -> Option<usize> {
        self.floats.get(buf.0).copied()
    }

    pub(super) fn int8(&self, buf: Buf) -> Option<(usize, usize)> {
        self.int8.get(buf.0).copied().flatten()
    }

    pub(super) fn squares(&self, buf: Buf) -> Option<usize> {
        self.squares.get(buf.0).copied().flatten()
    }

    pub(super) fn halves(&self, buf: Buf) -> Option<(usize, usize)> {
        self.halves.get(buf.0).copied().flatten()
    }
}
