//! Results of splits, and their combination.

use std::sync::atomic::{AtomicU32, Ordering};

use super::State;
use crate::backend::cpu::simd::{Kernel, Simd, load_up_to, store_up_to};

/// Shared memory for the results of the splits of all tiles: for each query of each split its state, as maximum, sum
/// and values.
#[derive(Debug)]
pub(super) struct Partials {
    memory: *mut [f32],
}

// SAFETY: the memory is only accessed through unsafe functions, whose callers promise to access different parts.
unsafe impl Send for Partials {}
// SAFETY: as above.
unsafe impl Sync for Partials {}

impl Partials {
    pub(super) fn new(len: usize) -> Self {
        Self { memory: Box::into_raw(vec![0.0; len].into_boxed_slice()) }
    }

    /// Numbers that the state of one query takes.
    pub(super) fn stride(v_padded: usize) -> usize {
        // The values stay aligned to a cache line's quarter at least.
        v_padded + 16
    }

    /// # Safety
    /// Nobody else accesses the memory from `offset` on for the stride meanwhile.
    #[inline(always)]
    pub(super) unsafe fn write(&self, offset: usize, state: State) {
        assert!(offset + Self::stride(state.values.len()) <= self.memory.len());
        let memory = self.memory.cast::<f32>();
        // SAFETY: within the memory, as was just checked, and no one else's by the caller's promise.
        unsafe {
            let memory = memory.add(offset);
            memory.write(state.max);
            memory.add(1).write(state.sum);
            memory.add(16).copy_from_nonoverlapping(state.values.as_ptr(), state.values.len());
        }
    }

    /// # Safety
    /// The state was written, and nobody writes to it while it is used.
    #[inline(always)]
    unsafe fn read(&self, offset: usize, v_padded: usize) -> State<'_> {
        assert!(offset + Self::stride(v_padded) <= self.memory.len());
        let memory = self.memory.cast::<f32>().cast_const();
        // SAFETY: within the memory, as was just checked, and not being written by the caller's promise.
        unsafe {
            let memory = memory.add(offset);
            let values = std::slice::from_raw_parts(memory.add(16), v_padded);
            State { max: memory.read(), sum: memory.add(1).read(), values }
        }
    }
}

impl Drop for Partials {
    fn drop(&mut self) {
        // SAFETY: made by `into_raw` in `new`, and not freed since.
        drop(unsafe { Box::from_raw(self.memory) });
    }
}

/// Counts the finished splits of a tile.
#[derive(Debug, Default)]
pub(super) struct Countdown(AtomicU32);

impl Countdown {
    /// Whether this was the last of `splits`: then all that the others have written can be read, and the count starts
    /// anew for the next layer.
    pub(super) fn finished_last(&self, splits: usize) -> bool {
        let last = self.0.fetch_add(1, Ordering::AcqRel) as usize + 1 == splits;
        if last {
            self.0.store(0, Ordering::Relaxed);
        }
        last
    }
}

/// Combines the states of one query, in the order of the splits, into its output.
///
/// Only made where all of them were written and nobody writes to them.
pub(super) struct Combine<'a> {
    pub(super) partials: &'a Partials,
    /// Offset of the first split's state.
    pub(super) offset: usize,
    /// From one split to the next.
    pub(super) stride: usize,
    pub(super) splits: usize,
    pub(super) v_padded: usize,
    /// Working memory of `v_padded` numbers.
    pub(super) sum: &'a mut [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: see the type.
        let state = |split: usize| unsafe { self.partials.read(self.offset + split * self.stride, self.v_padded) };
        let mut max = f32::NEG_INFINITY;
        for split in 0..self.splits {
            max = max.max(state(split).max);
        }
        let mut sum = 0.0;
        self.sum.fill(0.0);
        for split in 0..self.splits {
            let part = state(split);
            let weight = (part.max - max).exp2();
            sum += weight * part.sum;
            for (i, total) in self.sum.chunks_exact_mut(S::LANES).enumerate() {
                // SAFETY: both have `v_padded` numbers, a multiple of the lanes.
                unsafe {
                    let x = s.load(part.values.as_ptr().add(i * S::LANES));
                    let total = total.as_mut_ptr();
                    s.store(total, s.fma(x, s.splat(weight), s.load(total)));
                }
            }
        }
        finish(s, State { max, sum, values: self.sum }, self.out);
    }
}

/// Writes the output of a query: its values divided by the sum, or zero where it sees no position.
#[inline(always)]
pub(super) fn finish<S: Simd>(s: S, state: State, out: &mut [f32]) {
    let inverse = s.splat(if state.sum > 0.0 || state.sum.is_nan() { 1.0 / state.sum } else { 0.0 });
    let len = out.len().min(state.values.len());
    for i in (0..len).step_by(S::LANES) {
        // SAFETY: no more than what is left of both slices.
        unsafe {
            let x = load_up_to(s, state.values.as_ptr().add(i), len - i);
            store_up_to(s, out.as_mut_ptr().add(i), len - i, s.mul(x, inverse));
        }
    }
}
