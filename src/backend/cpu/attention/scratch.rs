//! A thread's working memory.

use crate::{Result, memory};

/// Working memory of one thread, kept between items. It grows to the largest item's needs.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    lines: Vec<Line>,
}

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; Line::LEN]);

impl Line {
    const LEN: usize = 16;
}

impl AttentionScratch {
    /// One buffer of `f32` for each length, aligned to cache lines, with arbitrary content. The
    /// pointers are valid for reads and writes until the next call, and do not overlap.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn buffers<const N: usize>(&mut self, lengths: [usize; N]) -> Result<[*mut f32; N]> {
        let lines = lengths.map(|len| len.div_ceil(Line::LEN));
        let total: usize = lines.iter().sum();
        if let Some(more) = total.checked_sub(self.lines.len()) {
            memory::reserve_exact(&mut self.lines, more, "what a thread computes attention in")?;
            self.lines.resize(total, Line([0.0; Line::LEN]));
        }
        let start: *mut f32 = self.lines.as_mut_ptr().cast();
        let mut offset = 0;
        Ok(lines.map(|lines| {
            let buffer = start.wrapping_add(offset * Line::LEN);
            offset += lines;
            buffer
        }))
    }
}
