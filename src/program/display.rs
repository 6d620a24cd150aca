//! Prints programs from the table of operands.

use super::{Buf, Op, Operands, Program, RowKind, Use, Weight, WeightUse};
use std::fmt;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {}: {} layer states, {} logits", self.name, self.states.len(), self.vocab)?;
        for b in &self.buffers {
            let rows = if b.rows == RowKind::Tokens { "tokens" } else { "outputs" };
            writeln!(f, "  buffer {}: [{rows}, {}]", b.name, b.columns)?;
        }
        for (i, r) in self.ropes.iter().enumerate() {
            writeln!(f, "  rope {i}: {r}")?;
        }
        self.ops.iter().try_for_each(|op| print(self, op, f))
    }
}

/// Prints `out = name operand, operand, parameters`.
fn print(program: &Program, op: &Op, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut names = Names { program, written: Vec::new(), read: Vec::new() };
    op.clone().operands(&mut names);
    write!(f, "  ")?;
    if !names.written.is_empty() {
        write!(f, "{} = ", names.written.join(", "))?;
    }
    write!(f, "{} {}", op.name(), names.read.join(", "))?;
    op.print_parameters(f)?;
    writeln!(f)
}

/// The operands as they are printed.
struct Names<'a> {
    program: &'a Program,
    written: Vec<String>,
    read: Vec<String>,
}

impl Names<'_> {
    fn add(&mut self, name: String, usage: Use) {
        if usage != Use::Read {
            self.written.push(name.clone());
        }
        if usage != Use::Write {
            self.read.push(name);
        }
    }
}

impl Operands for Names<'_> {
    fn buffer(&mut self, buf: &mut Buf, usage: Use) {
        let name = self.program.buffers.get(buf.0).map_or_else(|| format!("?{}", buf.0), |i| i.name.to_owned());
        self.add(name, usage);
    }

    fn weight(&mut self, weight: &mut Weight, _: WeightUse) {
        let name = self.program.weights.get(weight.0).map_or_else(
            || format!("?{}", weight.0),
            |i| format!("{}<{:?} {}x{}>", i.tensor.name(), i.tensor.tensor_type(), i.rows, i.columns),
        );
        self.read.push(name);
    }

    fn layer(&mut self, layer: &mut usize, usage: Use) {
        self.add(format!("cache {layer}"), usage);
    }
}
