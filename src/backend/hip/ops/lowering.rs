//! Lowers a program to steps: neighbours that one kernel can compute are fused, and activations are
//! quantized where they are produced.

use super::quantize::Quantize;
use super::{OPS, Step};
use crate::backend::hip::device::Device;
use crate::gguf::TensorType;
use crate::program::{Buf, Op, Program, Weight};
use crate::{Error, Result, memory};
use std::any::Any;
use std::collections::HashMap;

/// Whether to leave norms to the products around them: `fused`, `apart`, or, by default, depending
/// on their width.
const NORMS_VARIABLE: &str = "WAVELM_HIP_NORMS";
/// Whether a gated unit is one launch: `fused`, otherwise `apart`.
const GATES_VARIABLE: &str = "WAVELM_HIP_GATES";

/// Fusions that are possible everywhere but pay only on some devices.
pub(super) struct Fusing<'a> {
    /// Whether to leave a norm over this many columns to the products around it.
    pub(super) norms: &'a dyn Fn(usize) -> bool,
    /// Whether a gated unit is one launch.
    pub(super) gates: bool,
}

/// The lowered program.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Box<dyn Step>>,
    pub(crate) logits: Buf,
    /// For each buffer, whether its int8 form is used.
    pub(crate) quantized: Vec<bool>,
}

impl Plan {
    /// Lowers a program for a device.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn for_device(program: &Program, device: &Device) -> Result<Self> {
        let asked = std::env::var(NORMS_VARIABLE).unwrap_or_default();
        // A product that prepares the norm after it has a block for every 32 rows. Too few blocks
        // leave compute units idle. On an H100 (132 units) 64 blocks gain a tenth, 48 nothing.
        let fills = |columns: usize| columns / 32 * 5 >= device.units as usize * 2;
        let norms = |columns: usize| asked == "fused" || (asked != "apart" && fills(columns));
        let gates = std::env::var(GATES_VARIABLE).map_or(true, |asked| asked != "apart");
        Self::new(program, &Fusing { norms: &norms, gates })
    }

    /// # Errors
    /// `OutOfMemory`; `Unsupported` for an operation without kernels.
    pub(super) fn new(program: &Program, fusing: &Fusing<'_>) -> Result<Self> {
        const WHAT: &str = "the steps of the model";
        let quantized = memory::filled(program.buffers.len(), false, WHAT)?;
        let mut lowering = Lowering { program, fusing, steps: Vec::new(), fresh: HashMap::new(), quantized };
        let mut logits = Buf(0);
        let mut ops = program.ops.as_slice();
        while let Some((op, rest)) = ops.split_first() {
            // One rule makes at most four steps.
            memory::reserve(&mut lowering.steps, 4, WHAT)?;
            ops = if let Op::Logits { x } = op {
                logits = *x;
                rest
            } else {
                let rest = lowering.fuse(ops).or_else(|| OPS.iter().find_map(|kind| (kind.lower)(ops, &mut lowering)));
                rest.ok_or_else(|| Error::unsupported(format!("no GPU kernel computes the operation {op:?}")))?
            };
        }
        let Lowering { steps, quantized, .. } = lowering;
        Ok(Self { steps, logits, quantized })
    }
}

/// A program that is being lowered, as rules see it.
pub(super) struct Lowering<'a> {
    pub(super) program: &'a Program,
    pub(super) fusing: &'a Fusing<'a>,
    steps: Vec<Box<dyn Step>>,
    /// For each buffer the step that wrote it last, and whether its int8 form is current.
    fresh: HashMap<Buf, (usize, bool)>,
    /// For each buffer, whether its int8 form is used.
    quantized: Vec<bool>,
}

impl Lowering<'_> {
    /// Lowers the next operations by the first fusion that applies. Returns those that are left.
    fn fuse<'o>(&mut self, ops: &'o [Op]) -> Option<&'o [Op]> {
        OPS.iter().flat_map(|kind| kind.fusions).find_map(|fusion| {
            let rest = (fusion.rule)(ops, self)?;
            log::trace!("{}: {}", fusion.name, fusion.why);
            Some(rest)
        })
    }

    /// Appends a step that writes no buffer.
    pub(super) fn push(&mut self, step: impl Step) {
        self.steps.push(Box::new(step));
    }

    /// Appends a step that writes `out`.
    pub(super) fn write(&mut self, out: Buf, step: impl Step) {
        self.fresh.insert(out, (self.steps.len(), false));
        self.push(step);
    }

    /// Appends a step that writes `out` only as int8.
    pub(super) fn write_quantized(&mut self, out: Buf, step: impl Step) {
        self.fresh.insert(out, (self.steps.len(), true));
        self.mark_quantized(out);
        self.push(step);
    }

    /// The last step, if it is a `T`.
    pub(super) fn last<T: Step>(&self) -> Option<&T> {
        self.steps.last().and_then(|step| as_step(&**step))
    }

    /// Lets `change` add a write of `out` to the last step, if that is a `T`.
    pub(super) fn extend_last<T: Step>(&mut self, out: Buf, change: impl FnOnce(&mut T)) {
        let last = self.steps.len().wrapping_sub(1);
        let step = self.steps.last_mut().and_then(|step| (&mut **step as &mut dyn Any).downcast_mut());
        if let Some(step) = step {
            change(step);
            self.fresh.insert(out, (last, false));
        }
    }

    /// Removes the last step, which a fusion replaces and which wrote `out`.
    pub(super) fn remove_last(&mut self, out: Buf) {
        self.steps.pop();
        self.forget(out);
    }

    /// Records that `buf` changes within a step, so that no step can quantize it any more.
    pub(super) fn forget(&mut self, buf: Buf) {
        self.fresh.remove(&buf);
    }

    /// The step that wrote `buf` last, if it is a `T`.
    pub(super) fn writer<T: Step>(&self, buf: Buf) -> Option<&T> {
        let (writer, _) = self.fresh.get(&buf)?;
        self.steps.get(*writer).and_then(|step| as_step(&**step))
    }

    /// Provides the int8 form of `x`: from the step that wrote `x` if that step can, otherwise from
    /// a separate step.
    pub(super) fn quantize(&mut self, x: Buf) {
        self.mark_quantized(x);
        let (writer, done) = self.fresh.get(&x).copied().unwrap_or((usize::MAX, false));
        if done {
            return;
        }
        if !self.steps.get_mut(writer).is_some_and(|step| step.quantize()) {
            self.push(Quantize { x });
        }
        self.fresh.insert(x, (writer, true));
    }

    fn mark_quantized(&mut self, buf: Buf) {
        if let Some(used) = self.quantized.get_mut(buf.0) {
            *used = true;
        }
    }

    pub(super) fn tensor_type(&self, weight: Weight) -> Option<TensorType> {
        self.program.weights.get(weight.0).map(|w| w.tensor.tensor_type())
    }

    pub(super) fn is_quantized(&self, weight: Weight) -> bool {
        self.tensor_type(weight).is_some_and(TensorType::is_quantized)
    }

    /// The rows of a weight.
    pub(super) fn rows(&self, weight: Weight) -> Option<usize> {
        self.program.weights.get(weight.0).map(|w| w.rows)
    }
}

/// The step, if it is a `T`.
pub(super) fn as_step<T: Step>(step: &dyn Step) -> Option<&T> {
    (step as &dyn Any).downcast_ref()
}
