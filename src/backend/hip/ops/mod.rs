//! What the GPU backend makes of each operation. Everything about one is in its file: the step, the
//! fusions, which kernels it takes, their arguments in order, and the probe of the self-test.
//!
//! A program becomes launches in two phases. *Lowering* needs no device: it goes through the
//! operations and writes steps (`lowering.rs`). *Preparing* finds the kernels of a step, which then
//! owns them, so that no step can have the kernels of another.

mod add;
mod attention;
mod embed;
mod finder;
mod glu;
mod head_norm;
mod lowering;
mod matmul;
mod norm;
mod quantize;
mod rope;
mod rows;
mod scale;
mod softcap;
#[cfg(test)]
mod tests;

pub(crate) use finder::{Finder, type_name};
pub(crate) use lowering::Plan;
pub(crate) use matmul::FEW_COLUMNS;

use super::code::Kernel;
use super::pass::{Pass, Scratch};
use super::selftest::Probe;
use crate::Result;
use crate::program::{Op, Program};
use lowering::Lowering;
use std::any::Any;
use std::fmt::Debug;

/// All operations that have kernels. Fusions are tried in this order: a product takes in the norm
/// after it before that norm takes in the sum.
const OPS: [&GpuOp; 12] = [
    &embed::OP,
    &scale::OP,
    &matmul::OP,
    &norm::OP,
    &head_norm::OP,
    &rope::OP,
    &attention::STORE,
    &attention::OP,
    &glu::OP,
    &add::OP,
    &softcap::OP,
    &rows::OP,
];

/// How the backend computes one operation.
pub(crate) struct GpuOp {
    /// Lowers the operation by itself.
    lower: Rule,
    /// Lowers it together with its neighbours.
    fusions: &'static [Fusion],
    /// The probe that compares it with the CPU. Operations that are tested with others have none.
    probe: fn(&Program, &Op) -> Option<Probe>,
}

/// Lowers the first of these operations, and maybe some after it. Returns those that are left to
/// lower, or `None`, without having changed anything, if the rule does not apply.
type Rule = for<'o> fn(&'o [Op], &mut Lowering<'_>) -> Option<&'o [Op]>;

/// One step for what would otherwise be several.
struct Fusion {
    name: &'static str,
    /// What it saves.
    why: &'static str,
    rule: Rule,
}

/// A part of a lowered program: one or a few launches whose kernels are still to be found.
pub(crate) trait Step: Any + Debug {
    /// Finds the kernels, and loads those that are not loaded yet.
    fn prepare(self: Box<Self>, find: &Finder<'_>) -> Result<Box<dyn Launch>>;

    /// Makes the step also write the int8 form of its result. Returns whether it can.
    fn quantize(&mut self) -> bool {
        false
    }

    /// Adds the memory that the step needs besides its buffers.
    fn needs(&self, _: &Program, _: &mut Scratch) {}
}

/// A step with its kernels.
pub(crate) trait Launch: Send {
    /// Queues the launches.
    fn launch(&self, pass: &Pass<'_>) -> Result<()>;

    /// Whether the step keeps account of the buffer whose f16 form is current. Otherwise no f16
    /// form is current after it.
    fn tracks_halves(&self) -> bool {
        false
    }

    /// How many tokens attend together, if the step is an attention that works in tiles.
    fn tile_tokens(&self) -> Option<usize> {
        None
    }
}

/// A step that is one launch of one kernel.
trait Single: Send + 'static {
    fn launch(&self, pass: &Pass<'_>, kernel: &Kernel) -> Result<()>;
}

/// Such a step with its kernel.
struct One<S> {
    step: S,
    kernel: Kernel,
}

impl<S: Single> Launch for One<S> {
    fn launch(&self, pass: &Pass<'_>) -> Result<()> {
        self.step.launch(pass, &self.kernel)
    }
}

/// The probe of an operation, if it has one.
pub(crate) fn probe(program: &Program, op: &Op) -> Option<Probe> {
    OPS.iter().find_map(|kind| (kind.probe)(program, op))
}

/// The probe with which a self-test begins, because all others contain this operation.
pub(crate) fn first_probe() -> Probe {
    embed::first_probe()
}

/// For operations that are tested together with others.
fn no_probe(_: &Program, _: &Op) -> Option<Probe> {
    None
}
