//! The buffers of one forward pass, kept between passes.

use super::matmul::{QuantRows, Scratch};
use super::plan::Plan;
use super::team::Progress;
use crate::program::{Program, RowKind};
use crate::{Result, memory};
use std::sync::Mutex;

/// A growable buffer of `f32`.
#[derive(Default)]
pub(super) struct Floats(Vec<f32>);

impl Floats {
    /// Makes room for `len` values; existing values stay.
    pub(super) fn reserve(&mut self, len: usize) -> Result<()> {
        if let Some(more) = len.checked_sub(self.0.len()) {
            memory::reserve_exact(&mut self.0, more, "a buffer of a pass")?;
            self.0.resize(len, 0.0);
        }
        Ok(())
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        &self.0
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.0
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr()
    }
}

/// A thread's own state.
pub(super) struct Member {
    pub(super) matmul: Scratch,
    pub(super) attention: super::attention::AttentionScratch,
    /// The current step.
    pub(super) step: Option<usize>,
}

/// All memory that a pass writes to, except the cache.
#[derive(Default)]
pub(super) struct Workspace {
    /// The buffers of the program.
    pub(super) buffers: Vec<Floats>,
    /// Their int8 forms, where the plan uses them.
    pub(super) quant: Vec<Option<QuantRows>>,
    /// For each rotary embedding, the cosines and then the sines of each row of tokens.
    pub(super) angles: Vec<Floats>,
    /// The row of tokens of each row of outputs.
    pub(super) wanted: Vec<usize>,
    pub(super) members: Vec<Mutex<Member>>,
    pub(super) progress: Progress,
}

impl Workspace {
    /// Makes room for a pass of `tokens` rows of tokens and `outputs` rows of outputs on `threads`
    /// threads.
    pub(super) fn reserve(
        &mut self,
        program: &Program,
        plan: &Plan,
        tokens: usize,
        outputs: usize,
        threads: usize,
    ) -> Result<()> {
        const WHAT: &str = "the list of buffers";
        let count = program.buffers.len();
        let more = count.saturating_sub(self.buffers.len());
        memory::reserve(&mut self.buffers, more, WHAT)?;
        self.buffers.resize_with(count, Floats::default);
        let more = count.saturating_sub(self.quant.len());
        memory::reserve(&mut self.quant, more, WHAT)?;
        self.quant.resize_with(count, || None);
        for (i, info) in program.buffers.iter().enumerate() {
            let rows = match info.rows {
                RowKind::Tokens => tokens,
                RowKind::Outputs => outputs,
            };
            if let Some(buffer) = self.buffers.get_mut(i) {
                buffer.reserve(rows * info.columns)?;
            }
            if plan.quantized.get(i).copied().unwrap_or(false)
                && let Some(quant) = self.quant.get_mut(i)
            {
                quant.get_or_insert_with(QuantRows::new).reserve(rows, info.columns)?;
            }
        }
        self.angles.resize_with(program.ropes.len(), Floats::default);
        for (angles, rope) in self.angles.iter_mut().zip(&program.ropes) {
            angles.reserve(tokens * rope.inv_freq.len() * 2)?;
        }
        while self.members.len() < threads {
            let (matmul, attention) = (Scratch::new()?, super::attention::AttentionScratch::default());
            memory::push(&mut self.members, Mutex::new(Member { matmul, attention, step: None }), WHAT)?;
        }
        Ok(())
    }
}
