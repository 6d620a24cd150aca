//! Which buffers are read later, from the table of operands.

use super::{Buf, Op, Operands, Use, Weight, WeightUse};

/// The buffers that an operation reads, and those that it overwrites without having read them.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) reads: Vec<Buf>,
    pub(super) overwrites: Vec<Buf>,
}

impl Operands for Effects {
    fn buffer(&mut self, buf: &mut Buf, usage: Use) {
        if usage == Use::Write { self.overwrites.push(*buf) } else { self.reads.push(*buf) }
    }
}

impl Op {
    /// The operation's effects on buffers.
    pub(super) fn effects(&self) -> Effects {
        let mut effects = Effects::default();
        self.clone().operands(&mut effects);
        let Effects { reads, overwrites } = &mut effects;
        overwrites.retain(|buf| !reads.contains(buf));
        effects
    }

    /// Whether the operation reads this buffer.
    pub(crate) fn reads(&self, buf: Buf) -> bool {
        self.effects().reads.contains(&buf)
    }

    /// Whether the operation overwrites this buffer, without having read it.
    pub(crate) fn overwrites(&self, buf: Buf) -> bool {
        self.effects().overwrites.contains(&buf)
    }

    /// The buffer that the operation writes or updates in place; `None` where it writes to the
    /// cache or ends the program.
    pub(crate) fn output(&self) -> Option<Buf> {
        struct Output(Option<Buf>);
        impl Operands for Output {
            fn buffer(&mut self, buf: &mut Buf, usage: Use) {
                if usage != Use::Read {
                    self.0 = Some(*buf);
                }
            }
        }
        let mut output = Output(None);
        self.clone().operands(&mut output);
        output.0
    }

    /// Calls `each` with every weight that the operation uses.
    pub(crate) fn each_weight(&self, each: impl FnMut(Weight, WeightUse)) {
        struct Weights<F>(F);
        impl<F: FnMut(Weight, WeightUse)> Operands for Weights<F> {
            fn weight(&mut self, weight: &mut Weight, usage: WeightUse) {
                (self.0)(*weight, usage);
            }
        }
        self.clone().operands(&mut Weights(each));
    }
}

/// Whether the operations read `buf` before they overwrite it.
pub(crate) fn is_read(ops: &[Op], buf: Buf) -> bool {
    ops.iter().find_map(|op| if op.reads(buf) { Some(true) } else { op.overwrites(buf).then_some(false) }) == Some(true)
}
