//! The limits of a rendering's cost. Every operation is charged before it does its work.

use super::fault::{Fault, Res};
use std::cell::Cell;

/// Steps that every rendering may take, and more for each message and each byte. A step is an
/// expression or statement, an item that is visited, or [`BYTES_PER_STEP`] bytes that are read or
/// written. Known templates take up to 400 steps for a message. Some look back from each message
/// over all others; the quadratic term is for them.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 4_000;
const FUEL_PER_MESSAGE_SQUARED: u64 = 8;
const FUEL_PER_BYTE: u64 = 2;
const FUEL_PER_TOOL_BYTE: u64 = 40;
/// This many steps take about a second.
const MAX_FUEL: u64 = 20_000_000;
const BYTES_PER_STEP: u64 = 16;
/// Bytes of output that every rendering may write, and more for each byte of input. No single text
/// may be longer.
const OUTPUT: usize = 4 << 20;
const OUTPUT_PER_BYTE: usize = 16;
/// Bytes that a rendering may ask for in all, even if it gives them back, and more for each byte of
/// input.
const MEMORY: usize = 160 << 20;
const MEMORY_PER_BYTE: usize = 64;

/// The limits of one rendering.
#[derive(Debug, Clone, Copy)]
pub(in crate::chat) struct Limits {
    pub(super) fuel: u64,
    pub(super) max_output: usize,
    pub(super) memory: usize,
}

impl Limits {
    /// The limits for an input of `messages` messages and `bytes` bytes, `tool_bytes` of them from
    /// the tools.
    pub fn new(messages: usize, bytes: usize, tool_bytes: usize) -> Self {
        let count = messages as u64;
        let fuel = FUEL
            .saturating_add(count.saturating_mul(FUEL_PER_MESSAGE))
            .saturating_add(count.saturating_mul(count).saturating_mul(FUEL_PER_MESSAGE_SQUARED))
            .saturating_add((bytes as u64).saturating_mul(FUEL_PER_BYTE))
            .saturating_add((tool_bytes as u64).saturating_mul(FUEL_PER_TOOL_BYTE));
        Self {
            fuel: fuel.min(MAX_FUEL),
            max_output: OUTPUT.saturating_add(bytes.saturating_mul(OUTPUT_PER_BYTE)),
            memory: MEMORY.saturating_add(bytes.saturating_mul(MEMORY_PER_BYTE)),
        }
    }
}

/// How much of the limits is left.
#[derive(Debug)]
pub(super) struct Budget {
    fuel: Cell<u64>,
    memory: Cell<usize>,
    limits: Limits,
}

impl Budget {
    pub fn new(limits: Limits) -> Self {
        Self { fuel: Cell::new(limits.fuel), memory: Cell::new(limits.memory), limits }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Pays for `steps` steps.
    #[inline]
    pub fn steps(&self, steps: u64) -> Res<()> {
        match self.fuel.get().checked_sub(steps) {
            Some(rest) => {
                self.fuel.set(rest);
                Ok(())
            }
            None => Err(self.out_of_fuel()),
        }
    }

    #[cold]
    fn out_of_fuel(&self) -> Fault {
        Fault::stopped(format!("it takes more than {} steps", self.limits.fuel))
    }

    /// Pays for reading or writing `bytes` bytes.
    #[inline]
    pub fn bytes(&self, bytes: usize) -> Res<()> {
        self.steps(1 + bytes as u64 / BYTES_PER_STEP)
    }

    /// Pays for visiting `count` values.
    #[inline]
    pub fn items(&self, count: usize) -> Res<()> {
        self.steps(count as u64)
    }

    /// Pays for `bytes` bytes of memory.
    #[inline]
    pub fn memory(&self, bytes: usize) -> Res<()> {
        match self.memory.get().checked_sub(bytes) {
            Some(rest) => {
                self.memory.set(rest);
                Ok(())
            }
            None => Err(Fault::stopped(format!("it takes more than {} bytes of memory", self.limits.memory))),
        }
    }

    /// Pays for room for `count` values and for visiting them.
    pub fn values(&self, count: usize) -> Res<()> {
        self.items(count)?;
        self.memory(count.saturating_mul(size_of::<super::value::Value>()).saturating_add(64))
    }
}
