//! States of queries over segments, and how they become one.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{LOWEST, State};
use crate::simd::{Kernel, Simd, first, load_up_to, math, store_up_to};
use crate::{Result, memory};

/// What two states are multiplied with to become one, and the maximum of both, for each lane.
#[derive(Clone, Copy)]
pub(super) struct Merge<V> {
    pub(super) max: V,
    before: V,
    after: V,
}

impl<V: Copy> Merge<V> {
    /// For states with these maxima, the earlier one first.
    #[inline(always)]
    pub(super) fn new<S: Simd<V = V>>(s: S, before: V, after: V) -> Self {
        let max = s.max(before, after);
        Self { max, before: math::exp2(s, s.sub(before, max)), after: math::exp2(s, s.sub(after, max)) }
    }

    /// One sum of both. Where either state is empty, that is the other's, exactly.
    #[inline(always)]
    pub(super) fn join<S: Simd<V = V>>(self, s: S, before: V, after: V) -> V {
        s.fma(after, self.after, s.mul(before, self.before))
    }
}

/// The state of one query over all segments so far.
#[derive(Clone, Copy)]
pub(super) struct Total {
    pub(super) max: *mut f32,
    pub(super) sum: *mut f32,
    /// Padded as in the cache.
    pub(super) values: *mut f32,
}

impl Total {
    /// Makes it the state over no segment.
    ///
    /// # Safety
    /// All is valid for writes, of `v_padded` values.
    #[inline(always)]
    pub(super) unsafe fn clear(self, v_padded: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.max.write(LOWEST);
            self.sum.write(0.0);
            self.values.write_bytes(0, v_padded);
        }
    }

    /// Adds the state over the next segment.
    ///
    /// # Safety
    /// All is valid for reads and writes, of as many values as the state has, and apart from the state.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(self, s: S, state: State) {
        // SAFETY: the caller's promise; the values are a multiple of the lanes.
        unsafe {
            let merge = Merge::new(s, s.splat(*self.max), s.splat(state.max));
            self.max.write(first(s, merge.max));
            self.sum.write(first(s, merge.join(s, s.splat(*self.sum), s.splat(state.sum))));
            for i in (0..state.values.len()).step_by(S::LANES) {
                let values = self.values.add(i);
                s.store(values, merge.join(s, s.load(values), s.load(state.values.as_ptr().add(i))));
            }
        }
    }

    /// # Safety
    /// All is valid for reads, of `v_padded` values, and nobody writes to it while the state is used.
    #[inline(always)]
    pub(super) unsafe fn state<'a>(self, v_padded: usize) -> State<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            let values = std::slice::from_raw_parts(self.values.cast_const(), v_padded);
            State { max: *self.max, sum: *self.sum, values }
        }
    }
}

/// Shared memory for the states of tiles that several items share: for each query in each segment
/// its maximum, sum and values.
#[derive(Debug)]
pub(super) struct Partials {
    memory: *mut [f32],
}

// SAFETY: the memory is only accessed through unsafe functions, whose callers promise to access different parts.
unsafe impl Send for Partials {}
// SAFETY: as above.
unsafe impl Sync for Partials {}

impl Partials {
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn new(len: usize) -> Result<Self> {
        let memory = memory::filled(len, 0.0, "the parts of attention to a long context")?;
        Ok(Self { memory: Box::into_raw(memory.into_boxed_slice()) })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.memory.len()
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

/// Counts the finished items of a tile.
#[derive(Debug, Default)]
pub(super) struct Countdown(AtomicU32);

impl Countdown {
    /// Whether this was the last of `items`: then all that the others have written can be read, and
    /// the count starts anew for the next layer.
    pub(super) fn finished_last(&self, items: usize) -> bool {
        let last = self.0.fetch_add(1, Ordering::AcqRel) as usize + 1 == items;
        if last {
            self.0.store(0, Ordering::Relaxed);
        }
        last
    }
}

/// Combines the states of one query over all segments, in their order, into its output.
///
/// Only made where all of them were written and nobody writes to them.
pub(super) struct Combine<'a> {
    pub(super) partials: &'a Partials,
    /// Offset of the first segment's state.
    pub(super) offset: usize,
    /// From one segment to the next.
    pub(super) stride: usize,
    pub(super) segments: usize,
    pub(super) v_padded: usize,
    /// Working memory of `v_padded` values.
    pub(super) values: *mut f32,
    pub(super) out: &'a mut [f32],
}

impl<S: Simd> Kernel<S> for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let (mut max, mut sum) = (0.0, 0.0);
        let total = Total { max: &mut max, sum: &mut sum, values: self.values };
        // SAFETY: see the type.
        unsafe {
            total.clear(self.v_padded);
            for segment in 0..self.segments {
                total.add(s, self.partials.read(self.offset + segment * self.stride, self.v_padded));
            }
            finish(s, total.state(self.v_padded), self.out);
        }
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
            // The sign of a zero is all that positions may change that a query does not see:
            // without it, nothing is.
            store_up_to(s, out.as_mut_ptr().add(i), len - i, s.add(s.mul(x, inverse), s.splat(0.0)));
        }
    }
}
