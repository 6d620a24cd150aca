//! States of queries over segments, and how to join them.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{LOWEST, State};
use crate::simd::{Kernel, Simd, first, load_up_to, math, store_up_to};
use crate::{Result, memory};

/// The factors that join two states, and the maximum of both, for each lane.
#[derive(Clone, Copy)]
pub(super) struct Merge<V> {
    pub(super) max: V,
    before: V,
    after: V,
}

impl<V: Copy> Merge<V> {
    /// Joins states with these maxima, the earlier one first.
    #[inline(always)]
    pub(super) fn new<S: Simd<V = V>>(s: S, before: V, after: V) -> Self {
        let max = s.max(before, after);
        Self { max, before: math::exp2(s, s.sub(before, max)), after: math::exp2(s, s.sub(after, max)) }
    }

    /// Joins one sum of both. If either state is empty, the result is exactly the other's.
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
    /// All pointers are valid for writes, of `v_padded` values.
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
    /// All pointers are valid for reads and writes, of as many values as `state` has, and do not
    /// overlap `state`.
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
    /// All pointers are valid for reads, of `v_padded` values, and nothing writes to them while the
    /// state is used.
    #[inline(always)]
    pub(super) unsafe fn state<'a>(self, v_padded: usize) -> State<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            let values = std::slice::from_raw_parts(self.values.cast_const(), v_padded);
            State { max: *self.max, sum: *self.sum, values }
        }
    }
}

/// Shared memory for the states of tiles that several items share: maximum, sum and values for each
/// query in each segment.
#[derive(Debug)]
pub(super) struct Partials {
    memory: *mut [f32],
}

// SAFETY: only unsafe functions access the memory, and their callers promise to access different
// parts.
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

    /// Numbers in the state of one query.
    pub(super) fn stride(v_padded: usize) -> usize {
        // Values stay aligned to at least a quarter of a cache line.
        v_padded + 16
    }

    /// # Safety
    /// Meanwhile nothing else accesses the memory from `offset` on, for the stride.
    #[inline(always)]
    pub(super) unsafe fn write(&self, offset: usize, state: State) {
        assert!(offset + Self::stride(state.values.len()) <= self.memory.len());
        let memory = self.memory.cast::<f32>();
        // SAFETY: within the memory, as just checked, and not accessed elsewhere by the caller's
        // promise.
        unsafe {
            let memory = memory.add(offset);
            memory.write(state.max);
            memory.add(1).write(state.sum);
            memory.add(16).copy_from_nonoverlapping(state.values.as_ptr(), state.values.len());
        }
    }

    /// # Safety
    /// The state was written, and nothing writes to it while it is used.
    #[inline(always)]
    unsafe fn read(&self, offset: usize, v_padded: usize) -> State<'_> {
        assert!(offset + Self::stride(v_padded) <= self.memory.len());
        let memory = self.memory.cast::<f32>().cast_const();
        // SAFETY: within the memory, as just checked, and not written to by the caller's promise.
        unsafe {
            let memory = memory.add(offset);
            let values = std::slice::from_raw_parts(memory.add(16), v_padded);
            State { max: memory.read(), sum: memory.add(1).read(), values }
        }
    }
}

impl Drop for Partials {
    fn drop(&mut self) {
        // SAFETY: `new` made it with `into_raw`, and it was not freed since.
        drop(unsafe { Box::from_raw(self.memory) });
    }
}

/// Counts the finished items of a tile.
#[derive(Debug, Default)]
pub(super) struct Countdown(AtomicU32);

impl Countdown {
    /// Whether this was the last of `items`. If so, everything that the others wrote can be read,
    /// and the count starts anew for the next layer.
    pub(super) fn finished_last(&self, items: usize) -> bool {
        let last = self.0.fetch_add(1, Ordering::AcqRel) as usize + 1 == items;
        if last {
            self.0.store(0, Ordering::Relaxed);
        }
        last
    }
}

/// Combines the states of one query over all segments, in order, into its output.
///
/// Only constructed when all states were written and nothing writes to them any more.
pub(super) struct Combine<'a> {
    pub(super) partials: &'a Partials,
    /// Offset of the first segment's state.
    pub(super) offset: usize,
    /// The distance between the states of two segments.
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

/// Writes the output of a query: its values divided by the sum, or zero if it sees no position.
#[inline(always)]
pub(super) fn finish<S: Simd>(s: S, state: State, out: &mut [f32]) {
    let inverse = s.splat(if state.sum > 0.0 || state.sum.is_nan() { 1.0 / state.sum } else { 0.0 });
    let len = out.len().min(state.values.len());
    for i in (0..len).step_by(S::LANES) {
        // SAFETY: accesses at most the rest of both slices.
        unsafe {
            let x = load_up_to(s, state.values.as_ptr().add(i), len - i);
            // Positions that a query does not see may only change the sign of a zero. Adding zero
            // removes that sign, so they change nothing.
            store_up_to(s, out.as_mut_ptr().add(i), len - i, s.add(s.mul(x, inverse), s.splat(0.0)));
        }
    }
}
