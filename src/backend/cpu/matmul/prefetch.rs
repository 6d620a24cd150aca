//! Prefetching: which memory to request before it is needed.

use super::Matrix;
use super::kernels::Kernels;
use super::schedule::Places;

/// Distance of prefetches in bytes: the memory delivers this much while it answers.
pub(super) const AHEAD: usize = 4096;
/// The same for interleaved rows, as blocks of 256 weights are not read from beginning to end.
pub(super) const AHEAD_INTERLEAVED: usize = 8192;
/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Prefetches the memory at `at` to the second-level cache. Any address will do.
#[inline(always)]
pub(crate) fn ask_for(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: all processors have the instruction, which is a hint: no address faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The memory to prefetch while rows are multiplied without a tile: the rows after them, and then
/// the next memory that this thread reads.
#[derive(Clone, Copy)]
pub(super) struct AheadOfRows {
    /// The address to prefetch.
    at: usize,
    /// The end of the rows, and the distance from there to the next memory.
    end: usize,
    further: usize,
}

impl AheadOfRows {
    pub(super) fn new(w: &Matrix<'_>, end: usize, next: Option<*const u8>) -> Self {
        let end = w.start(0).addr() + end * w.row_bytes();
        Self { at: 0, end, further: next.map_or(0, |next| next.addr().wrapping_sub(end)) }
    }

    /// The memory from `address` on.
    pub(super) fn at(self, address: *const u8) -> Self {
        Self { at: address.addr(), ..self }
    }

    /// Moves on by `bytes`.
    #[inline(always)]
    pub(super) fn add(self, bytes: usize) -> Self {
        Self { at: self.at.wrapping_add(bytes), ..self }
    }

    /// The address for a whole block. A block across the end of the first memory prefetches a few
    /// wrong lines.
    #[inline(always)]
    pub(super) fn address(&self) -> *const u8 {
        let further = if self.at >= self.end { self.further } else { 0 };
        std::ptr::without_provenance(self.at.wrapping_add(further))
    }
}

/// The memory to prefetch while a slice of a tile is multiplied.
pub(super) struct Ahead {
    pub(super) from: *const u8,
    /// Remaining cache lines, the lines for each group of columns, and the groups.
    lines: usize,
    for_group: usize,
    groups: usize,
}

impl Ahead {
    pub(super) fn new(
        kernels: &Kernels,
        w: &Matrix<'_>,
        places: &Places,
        column: usize,
        columns: usize,
        n: usize,
    ) -> Self {
        let groups = columns / kernels.group;
        if places.step != 1 || places.count < kernels.rows || groups == 0 {
            return Self { from: std::ptr::null(), lines: 0, for_group: 0, groups: 0 };
        }
        let tile = w.row_bytes() * kernels.rows;
        let from = w.start(places.first).wrapping_add(tile + AHEAD + w.bytes(column) * kernels.rows);
        let lines = (w.bytes(columns) * kernels.rows).div_ceil(LINE);
        let for_group = lines.div_ceil(n.div_ceil(kernels.dots.len()) * groups);
        Self { from, lines, for_group, groups }
    }

    /// The number of lines to prefetch for each group next.
    pub(super) fn next(&mut self) -> usize {
        let for_group = if self.lines > 0 { self.for_group } else { 0 };
        let lines = for_group * self.groups;
        self.from = self.from.wrapping_add(lines * LINE);
        self.lines = self.lines.saturating_sub(lines);
        for_group
    }
}
