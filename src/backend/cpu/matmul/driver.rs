//! How a matrix product is taken apart, for all types of weights and all instruction sets.
//!
//! A tile of rows is unpacked, a slice of the columns at a time, into memory that stays in the first-level cache, and is
//! then multiplied with all tokens: the weights are read once. In a lane there is one row from beginning to end, and
//! slices depend on nothing but the number of columns. So an element of the product is the same number bit by bit
//! whatever else is computed with it: other tokens, other rows, on however many threads.

use super::activations::{self, SUM_GROUP};
use super::few::Few;
use super::lanes::{Lanes, Rows};
use super::tile::{SLICE, Tile};
use super::{Matrix, OutPtr, Scratch};
use crate::gguf::TensorType;
use std::ops::Range;

/// Rows of a tile at most.
pub(super) const TILE_ROWS: usize = 32;
/// Tokens that a tile is multiplied with at once, at most.
const MAX_TOKENS: usize = 6;

/// With so few tokens, what takes time is to read the weights.
pub(super) const FEW_TOKENS: usize = 8;

/// With so many tokens at most, rows are multiplied without a tile where there are kernels for it.
pub(super) const DIRECT_TOKENS: usize = 8;
/// Bytes that such a kernel asks for before they are next: what memory delivers while it answers.
const AHEAD: usize = 4096;
/// The same where rows are interleaved: blocks of 256 weights are not read from their beginning to their end.
const AHEAD_INTERLEAVED: usize = 8192;
/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Unpacks columns (the first, and how many) of the rows of a tile.
pub(super) type Unpack = unsafe fn(Rows, usize, usize, &mut Tile);
/// Multiplies a tile with a certain number of tokens.
pub(super) type Multiply = unsafe fn(&Dots<'_>);

/// Multiplies rows with a certain number of tokens, a few, without a tile.
pub(super) type Direct = unsafe fn(&Few);

/// The kernels for one type of weights on one instruction set.
pub(super) struct Kernels {
    /// Rows in a tile.
    pub(super) rows: usize,
    /// Columns that the kernels work on between two requests for memory; more than a slice where they make none.
    pub(super) group: usize,
    /// Slices are multiples of this.
    pub(super) block: usize,
    /// Columns of a slice at most.
    pub(super) slice: usize,
    pub(super) unpack: Unpack,
    /// For 1, 2, … tokens, at most [`MAX_TOKENS`].
    pub(super) dots: &'static [Multiply],
    /// Rows that a [`Direct`] multiplies.
    pub(super) direct_rows: usize,
    /// For 1, 2, … tokens; empty where there are none.
    pub(super) direct: &'static [Direct],
    pub(super) correction: Correction,
}

/// What the sums of activations are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Correction {
    /// Nothing.
    None,
    /// The zero point, which the unpacked bytes exceed the weights by, in groups of so many columns. Sums start at
    /// `start` without it.
    Zero { zero: i32, start: i32, group: usize },
    /// Minima of groups of so many columns.
    Mins { group: usize },
}

/// Activations as the kernels read them.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    /// Row-major, i8 or f32.
    pub(super) x: *const u8,
    /// Bytes from one token to the next.
    pub(super) stride: usize,
    /// Bytes of a column.
    pub(super) size: usize,
    /// For quantized ones: scales, `[cols / 32][n]`,
    pub(super) scales: *const f32,
    /// and sums, `[cols / 16][n]`;
    pub(super) sums: *const i32,
    /// and numbers from one group to the next.
    pub(super) group_stride: usize,
    /// Tokens.
    pub(super) n: usize,
}

/// A few tokens: their activations from a column on, and where their products with rows go.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    /// From the first token and column on, as [`Activations::x`].
    pub(super) x: *const u8,
    pub(super) x_stride: usize,
    /// From the first token and group on; the next group is `group_stride` elements further.
    pub(super) scales: *const f32,
    /// As `scales`, for the groups of the [`Correction`].
    pub(super) corrections: *const i32,
    pub(super) group_stride: usize,
    /// The output from the first token and row on; tokens are `out_stride` apart.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
}

impl Activations {
    /// The tokens from `token` on, from `column` on, whose products with the rows from `row` on go to `out`. `corrections` are in
    /// groups of `group` columns.
    ///
    /// # Safety
    /// Token and column are within the activations, token and row within the output.
    unsafe fn tokens(
        &self,
        token: usize,
        column: usize,
        corrections: (&[i32], usize),
        out: OutPtr<'_>,
        row: usize,
    ) -> Tokens {
        let (corrections, group) = corrections;
        // SAFETY: the caller's promise.
        let (x, to) = unsafe { (self.x.add(token * self.stride + column * self.size), out.element(token, row)) };
        Tokens {
            x,
            x_stride: self.stride,
            // There are none for floating-point activations.
            scales: self.scales.wrapping_add(column / activations::GROUP * self.group_stride + token),
            corrections: corrections.as_ptr().wrapping_add(column / group * self.group_stride + token),
            group_stride: self.group_stride,
            out: to,
            out_stride: out.stride,
        }
    }
}

/// A slice of a tile times a few tokens, for a [`Multiply`].
pub(super) struct Dots<'a> {
    pub(super) tile: &'a Tile,
    pub(super) columns: usize,
    pub(super) tokens: Tokens,
    /// What the products are added to, as the output: the sum of earlier slices, which may be the output itself, or else the bias or
    /// zeros.
    pub(super) before: *const f32,
    pub(super) before_stride: usize,
    /// Memory to ask for meanwhile: so many cache lines for each group of columns.
    pub(super) ahead: *const u8,
    pub(super) ahead_lines: usize,
}

/// Multiplies rows of a matrix with all tokens.
///
/// # Safety
/// The kernels are for the matrix and for this processor; the pointers are valid for the sizes, and the scratch memory is
/// large enough; nothing else accesses the rows of the output or writes the activations.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run(
    kernels: &Kernels,
    w: &Matrix<'_>,
    x: Activations,
    rows: Range<usize>,
    out: OutPtr<'_>,
    bias: Option<&[f32]>,
    next: Option<*const u8>,
    scratch: &mut Scratch,
) {
    static ZEROS: [f32; TILE_ROWS] = [0.0; TILE_ROWS];
    debug_assert!(kernels.rows <= TILE_ROWS && kernels.dots.len() <= MAX_TOKENS);
    let Scratch { tile, last_rows, corrections, corrected, .. } = scratch;
    // SAFETY: the caller's promise.
    let correction_group = unsafe { prepare(kernels.correction, w.cols, &x, corrections, corrected) };
    // Slices of about the same length.
    let blocks = w.cols / kernels.block;
    let slice = blocks.div_ceil(w.cols.div_ceil(kernels.slice).max(1)).max(1) * kernels.block;
    let mut rows = rows;
    if x.n <= DIRECT_TOKENS && !kernels.direct.is_empty() {
        let whole = rows.start..rows.end - rows.len() % kernels.direct_rows;
        rows.start = whole.end;
        let ahead = AheadOfRows::new(w, whole.end, next);
        for first in whole.step_by(kernels.direct_rows) {
            // SAFETY: the rows are within the matrix and the output.
            unsafe { run_direct(kernels, w, &x, first, slice, out, bias, (corrections, correction_group), &ahead) };
        }
    }
    for places in tiles(kernels.rows, x.n <= FEW_TOKENS && w.lanes == 1, &rows) {
        let first = places.first;
        for column in (0..w.cols.max(1)).step_by(slice) {
            let columns = slice.min(w.cols - column);
            // SAFETY: the columns are within the rows, and no more than a slice.
            unsafe {
                if first + (kernels.rows - 1) * places.step < w.rows {
                    let rows = Rows { first: w.start(first), stride: places.step * w.row_bytes };
                    (kernels.unpack)(rows, column, columns, tile);
                } else {
                    (kernels.unpack)(last_rows.copy(w, first, column, columns), 0, columns, tile);
                }
            }
            // The part of the next tile that is as large as what was just unpacked.
            let mut ahead = Ahead::new(kernels, w, &places, column, columns, x.n);
            let mut token = 0;
            while token < x.n {
                // As even as possible: few tokens at a time are less efficient.
                let left = x.n - token;
                let tokens = left.div_ceil(left.div_ceil(kernels.dots.len()));
                // SAFETY: the tokens and columns are within the activations, the tokens and rows within the output.
                unsafe {
                    let mut dots = Dots {
                        tile,
                        columns,
                        tokens: x.tokens(token, column, (corrections, correction_group), out, first),
                        before: ZEROS.as_ptr(),
                        before_stride: 0,
                        ahead: ahead.from,
                        ahead_lines: ahead.next(),
                    };
                    if column > 0 {
                        (dots.before, dots.before_stride) = (dots.tokens.out, out.stride);
                    } else if let Some(bias) = bias {
                        dots.before = bias.as_ptr().add(first);
                    }
                    let multiply = kernels.dots[tokens - 1];
                    if places.count == kernels.rows && places.step == 1 {
                        multiply(&dots);
                    } else {
                        multiply_apart(multiply, dots, tokens, &places, bias.is_none() && column == 0);
                    }
                }
                token += tokens;
            }
        }
    }
}

/// Multiplies the rows from `first` on with all tokens by the kernels that need no tile.
///
/// # Safety
/// As for [`run`], with all of these rows.
#[allow(clippy::too_many_arguments)]
unsafe fn run_direct(
    kernels: &Kernels,
    w: &Matrix<'_>,
    x: &Activations,
    first: usize,
    slice: usize,
    out: OutPtr<'_>,
    bias: Option<&[f32]>,
    corrections: (&[i32], usize),
    ahead: &AheadOfRows,
) {
    let rows = Rows { first: w.start(first), stride: w.row_bytes };
    // Rows are read side by side, but asked for one after the other.
    let further = if w.lanes == 1 { w.row_bytes * kernels.direct_rows + AHEAD } else { AHEAD_INTERLEAVED };
    let mut token = 0;
    while token < x.n {
        let left = x.n - token;
        let tokens = left.div_ceil(left.div_ceil(kernels.direct.len()));
        // SAFETY: the tokens and columns are within the activations, the tokens and rows within the output.
        unsafe {
            kernels.direct[tokens - 1](&Few {
                rows,
                cols: w.cols,
                slice,
                tokens: x.tokens(token, 0, corrections, out, first),
                bias: bias.map(|bias| bias.as_ptr().add(first)),
                ahead: ahead.at(rows.first.wrapping_add(further)),
            });
        }
        token += tokens;
    }
}

/// What is asked for while rows are multiplied without a tile: what follows them, and then what is to be read next.
#[derive(Clone, Copy)]
pub(super) struct AheadOfRows {
    /// The address asked for.
    at: usize,
    /// Where the rows end, and how much further the next memory is.
    end: usize,
    further: usize,
}

impl AheadOfRows {
    fn new(w: &Matrix<'_>, end: usize, next: Option<*const u8>) -> Self {
        let end = w.data.as_ptr().addr() + end * w.row_bytes;
        Self { at: 0, end, further: next.map_or(0, |next| next.addr().wrapping_sub(end)) }
    }

    /// From `address` on.
    fn at(self, address: *const u8) -> Self {
        Self { at: address.addr(), ..self }
    }

    /// So many bytes later.
    #[inline(always)]
    pub(super) fn add(self, bytes: usize) -> Self {
        Self { at: self.at.wrapping_add(bytes), ..self }
    }

    /// Decided once for what a block asks for: the few lines across the end of the first memory are the wrong ones.
    #[inline(always)]
    pub(super) fn address(&self) -> *const u8 {
        let further = if self.at >= self.end { self.further } else { 0 };
        std::ptr::without_provenance(self.at.wrapping_add(further))
    }
}

/// What is to be asked for while a slice of a tile is multiplied.
struct Ahead {
    from: *const u8,
    /// Cache lines that are left, those for each group of columns, and the groups.
    lines: usize,
    for_group: usize,
    groups: usize,
}

impl Ahead {
    fn new(kernels: &Kernels, w: &Matrix<'_>, places: &Places, column: usize, columns: usize, n: usize) -> Self {
        let groups = columns / kernels.group;
        if places.step != 1 || places.count < kernels.rows || groups == 0 {
            return Self { from: std::ptr::null(), lines: 0, for_group: 0, groups: 0 };
        }
        let tile = w.row_bytes * kernels.rows;
        let from = w.start(places.first).wrapping_add(tile + AHEAD + w.bytes(column) * kernels.rows);
        let lines = (w.bytes(columns) * kernels.rows).div_ceil(LINE);
        let for_group = lines.div_ceil(n.div_ceil(kernels.dots.len()) * groups);
        Self { from, lines, for_group, groups }
    }

    /// How many lines for each group come next.
    fn next(&mut self) -> usize {
        let for_group = if self.lines > 0 { self.for_group } else { 0 };
        let lines = for_group * self.groups;
        self.from = self.from.wrapping_add(lines * LINE);
        self.lines = self.lines.saturating_sub(lines);
        for_group
    }
}

/// Which rows a tile has.
struct Places {
    first: usize,
    /// From one row to the next.
    step: usize,
    /// How many of them are to be written: the first ones.
    count: usize,
}

/// The tiles that rows are taken apart to.
///
/// Where there are few tokens, reading the weights is what takes time, and memory is fastest where each lane reads on and
/// on, far from the others. So the rows of a tile are then as far `apart` as can be, if they are not interleaved.
fn tiles(tile_rows: usize, apart: bool, rows: &Range<usize>) -> impl Iterator<Item = Places> {
    let step = if apart { rows.len() / tile_rows } else { 0 };
    let rest = rows.start + step * tile_rows..rows.end;
    let apart = (rows.start..rows.start + step).map(move |first| Places { first, step, count: tile_rows });
    let end = rest.end;
    let side_by_side =
        rest.step_by(tile_rows).map(move |first| Places { first, step: 1, count: tile_rows.min(end - first) });
    apart.chain(side_by_side)
}

/// Multiplies a tile whose rows are not all to be written, or not one after the other. `no_bias` says that what the
/// products are added to are zeros.
///
/// # Safety
/// As for `multiply`, with the rows at their places.
unsafe fn multiply_apart(multiply: Multiply, mut dots: Dots<'_>, tokens: usize, places: &Places, no_bias: bool) {
    let mut before = [0.0; TILE_ROWS * MAX_TOKENS];
    let mut products = [0.0; TILE_ROWS * MAX_TOKENS];
    let Tokens { out, out_stride, .. } = dots.tokens;
    // SAFETY: the rows to be written can be read and written, and the arrays have room for all rows.
    unsafe {
        if !no_bias {
            for (t, to) in before.chunks_exact_mut(TILE_ROWS).enumerate().take(tokens) {
                for (r, to) in to.iter_mut().enumerate().take(places.count) {
                    *to = *dots.before.add(t * dots.before_stride + r * places.step);
                }
            }
        }
        (dots.before, dots.before_stride) = (before.as_ptr(), TILE_ROWS);
        (dots.tokens.out, dots.tokens.out_stride) = (products.as_mut_ptr(), TILE_ROWS);
        multiply(&dots);
        for (t, from) in products.chunks_exact(TILE_ROWS).enumerate().take(tokens) {
            for (r, from) in from.iter().enumerate().take(places.count) {
                *out.add(t * out_stride + r * places.step) = *from;
            }
        }
    }
}

/// Memory for a slice of the last rows of a matrix, if they are less than a tile.
pub(super) struct LastRows([u8; TILE_ROWS * Self::STRIDE]);

impl LastRows {
    pub(super) const ZERO: Self = Self([0; TILE_ROWS * Self::STRIDE]);
    /// The longest slice of a row: that of Q8_0.
    const STRIDE: usize = SLICE / TensorType::Q8_0.block_len() * TensorType::Q8_0.block_bytes();

    /// Copies columns of rows `first` and up. The rows past the end are arbitrary.
    fn copy(&mut self, w: &Matrix<'_>, first: usize, column: usize, columns: usize) -> Rows {
        for (to, row) in self.0.chunks_exact_mut(Self::STRIDE).zip(first..w.rows) {
            to[..w.bytes(columns)].copy_from_slice(&w.row(row)[w.bytes(column)..][..w.bytes(columns)]);
        }
        Rows { first: self.0.as_ptr(), stride: Self::STRIDE }
    }
}

/// What corrections were computed of: which, for how many columns of which activations.
pub(super) type Corrected = (Correction, usize, usize, usize);

/// Fills in the corrections, `[groups][tokens]`: where integer sums start so as to account for the zero point, or what
/// minima are multiplied with, as bits. Returns the columns of a group. Nothing is done where they are there already.
///
/// # Safety
/// The pointers of the activations are valid.
unsafe fn prepare(
    correction: Correction,
    cols: usize,
    x: &Activations,
    corrections: &mut [i32],
    corrected: &mut Option<Corrected>,
) -> usize {
    let (Correction::Zero { group, .. } | Correction::Mins { group }) = correction else { return 1 };
    let of = (correction, cols, x.sums.addr(), x.n);
    if corrected.replace(of) == Some(of) {
        return group;
    }
    let (n, stride) = (x.n, x.group_stride);
    // SAFETY: there are as many sums and scales, and nothing writes them.
    let (sums, scales) = unsafe {
        (
            std::slice::from_raw_parts(x.sums, cols / SUM_GROUP * stride),
            std::slice::from_raw_parts(x.scales, cols / activations::GROUP * stride),
        )
    };
    if n == 1 {
        prepare_one(correction, sums, scales, &mut corrections[..cols / group]);
        return group;
    }
    for (i, to) in corrections.chunks_exact_mut(stride).take(cols / group).enumerate() {
        let (to, column) = (&mut to[..n], i * group);
        let first = &sums[column / SUM_GROUP * stride..][..n];
        let second = if group > SUM_GROUP { &sums[(column / SUM_GROUP + 1) * stride..][..n] } else { &[] };
        to.copy_from_slice(first);
        for (to, second) in to.iter_mut().zip(second) {
            *to += second;
        }
        match correction {
            Correction::Zero { zero, start, .. } => to.iter_mut().for_each(|to| *to = start - zero * *to),
            _ => {
                for (to, scale) in to.iter_mut().zip(&scales[column / activations::GROUP * stride..]) {
                    *to = (*to as f32 * scale).to_bits() as i32;
                }
            }
        }
    }
    group
}

/// The same for one token, in loops that compilers make vectors of.
fn prepare_one(correction: Correction, sums: &[i32], scales: &[f32], corrections: &mut [i32]) {
    let pairs = sums.as_chunks::<2>().0;
    let to = corrections.iter_mut();
    match correction {
        Correction::None => {}
        Correction::Zero { zero, start, group: SUM_GROUP } => {
            to.zip(sums).for_each(|(to, sum)| *to = start - zero * sum);
        }
        Correction::Zero { zero, start, .. } => {
            to.zip(pairs).for_each(|(to, [first, second])| *to = start - zero * (first + second));
        }
        Correction::Mins { group: SUM_GROUP } => {
            let pairs = pairs.iter().zip(scales);
            for (to, (sums, scale)) in corrections.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                *to = sums.map(|sum| (sum as f32 * scale).to_bits() as i32);
            }
        }
        Correction::Mins { .. } => {
            let pairs = pairs.iter().zip(scales);
            to.zip(pairs).for_each(|(to, ([a, b], scale))| *to = ((a + b) as f32 * scale).to_bits() as i32);
        }
    }
}

impl Dots<'_> {
    /// Writes a vector of products, of token `t` with rows `row` and up.
    ///
    /// # Safety
    /// The token and the rows are within the output, and this thread's.
    #[inline(always)]
    pub(super) unsafe fn write<S: Lanes>(&self, s: S, t: usize, row: usize, product: S::Float) {
        // SAFETY: the caller's promise.
        unsafe {
            let before = s.load_float(self.before.add(t * self.before_stride + row));
            s.store_float(self.tokens.out.add(t * self.tokens.out_stride + row), s.add(before, product));
        }
    }
}
