//! The matrix kernel of the floating-point types: as that of the quantized formats, with f32 weights in the tile and f32
//! activations.

use super::simd::{MAX_LANES, RowPtrs, Simd};
use super::tile::SLICE as INT_SLICE;
use super::{FloatJob, Output, TILE_ROWS};

/// Columns of a slice: what fits the tile.
const SLICE: usize = INT_SLICE / 4;

/// A floating-point type of one or two elements in 32 bits.
pub(super) trait FloatFormat {
    /// Elements in 32 bits.
    const IN_WORD: usize;

    /// Element `i` of each lane.
    fn element<S: Simd>(s: S, word: S::Int, i: usize) -> S::Float;
}

pub(super) struct F32;

impl FloatFormat for F32 {
    const IN_WORD: usize = 1;

    #[inline(always)]
    fn element<S: Simd>(s: S, word: S::Int, _: usize) -> S::Float {
        s.from_bits(word)
    }
}

pub(super) struct F16;

impl FloatFormat for F16 {
    const IN_WORD: usize = 2;

    #[inline(always)]
    fn element<S: Simd>(s: S, word: S::Int, i: usize) -> S::Float {
        s.half_to_float(s.shr(word, 16 * i as u32))
    }
}

pub(super) struct Bf16;

impl FloatFormat for Bf16 {
    const IN_WORD: usize = 2;

    #[inline(always)]
    fn element<S: Simd>(s: S, word: S::Int, i: usize) -> S::Float {
        s.from_bits(if i == 0 { s.shl(word, 16) } else { s.and(word, s.splat(0xffff_0000_u32 as i32)) })
    }
}

/// Multiplies `VECTORS` vectors of rows at a time with up to `TOKENS` tokens at a time.
///
/// # Safety
/// The pointers of the job are valid for its sizes, and nothing else accesses the job's part of the output.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, F: FloatFormat, const VECTORS: usize, const TOKENS: usize>(
    s: S,
    job: &mut FloatJob<'_>,
) {
    const { assert!(VECTORS * S::LANES <= TILE_ROWS && S::LANES <= MAX_LANES) };
    let mut row = job.rows.start;
    while row < job.rows.end {
        let rows: [RowPtrs; VECTORS] = std::array::from_fn(|v| job.row_ptrs(row + v * S::LANES));
        let mut column = 0;
        while column < job.cols {
            let columns = SLICE.min(job.cols - column);
            for (v, rows) in rows.iter().enumerate() {
                // SAFETY: the rows hold the columns, and the tile has room for them.
                unsafe {
                    let to = job.tile.q.as_mut_ptr().cast::<f32>().add(v * S::LANES);
                    unpack::<S, F, VECTORS>(s, rows, column, columns, to);
                }
            }
            let mut token = 0;
            while token < job.n {
                let left = job.n - token;
                let tokens = left.div_ceil(left.div_ceil(TOKENS));
                let dots = Dots { job, output: Output { first: row, token, is_sum: column > 0 }, column, columns };
                // SAFETY: the slice is within the columns, and the tokens are within the job's.
                unsafe {
                    match tokens {
                        1 => dots.run::<S, VECTORS, 1>(s),
                        2 if TOKENS >= 2 => dots.run::<S, VECTORS, 2>(s),
                        3 if TOKENS >= 3 => dots.run::<S, VECTORS, 3>(s),
                        4 if TOKENS >= 4 => dots.run::<S, VECTORS, 4>(s),
                        5 if TOKENS >= 5 => dots.run::<S, VECTORS, 5>(s),
                        _ => dots.run::<S, VECTORS, TOKENS>(s),
                    }
                }
                token += tokens;
            }
            column += columns;
        }
        row += VECTORS * S::LANES;
    }
}

/// Converts some columns of a vector of rows to f32, transposed: `VECTORS` vectors from one column to the next.
///
/// # Safety
/// The rows hold the columns, and `to` is valid for as many vectors.
#[inline(always)]
unsafe fn unpack<S: Simd, F: FloatFormat, const VECTORS: usize>(
    s: S,
    rows: &RowPtrs,
    column: usize,
    columns: usize,
    to: *mut f32,
) {
    let (step, bytes) = (4 * F::IN_WORD, 4 / F::IN_WORD);
    let mut at = 0;
    // SAFETY: the caller's promise; no column past the last is read or written.
    unsafe {
        while at + step <= columns {
            for (word, v) in s.transpose(rows, (column + at) * bytes).into_iter().enumerate() {
                for i in 0..F::IN_WORD {
                    let column = at + word * F::IN_WORD + i;
                    s.store_float(to.add(column * VECTORS * S::LANES), F::element(s, v, i));
                }
            }
            at += step;
        }
        while at < columns {
            let mut words = [0_i32; MAX_LANES];
            for (word, row) in words.iter_mut().zip(rows.0).take(S::LANES) {
                let from = row.add((column + at) * bytes);
                *word = if bytes == 4 {
                    i32::from_le(from.cast::<i32>().read_unaligned())
                } else {
                    i32::from(u16::from_le(from.cast::<u16>().read_unaligned()))
                };
            }
            s.store_float(to.add(at * VECTORS * S::LANES), F::element(s, s.load(words.as_ptr()), 0));
            at += 1;
        }
    }
}

/// A tile times a few tokens.
struct Dots<'a, 'b> {
    job: &'a FloatJob<'b>,
    output: Output,
    /// Where the slice starts.
    column: usize,
    columns: usize,
}

impl Dots<'_, '_> {
    /// # Safety
    /// The tile holds the columns, the tokens are within the job's, and nothing else accesses the rows of the output.
    #[inline(always)]
    unsafe fn run<S: Simd, const VECTORS: usize, const TOKENS: usize>(&self, s: S) {
        let job = self.job;
        // SAFETY: all offsets are within the arrays, by the caller's promise.
        unsafe {
            let x = job.x.as_ptr().add(self.output.token * job.cols + self.column);
            let x: [*const f32; TOKENS] = std::array::from_fn(|t| x.add(t * job.cols));
            let weights = job.tile.q.as_ptr().cast::<f32>();
            let mut totals = [[s.splat_float(0.0); TOKENS]; VECTORS];
            for at in 0..self.columns {
                let mut w = [s.splat_float(0.0); VECTORS];
                for v in 0..VECTORS {
                    w[v] = s.load_float(weights.add((at * VECTORS + v) * S::LANES));
                }
                for t in 0..TOKENS {
                    let x = s.splat_float(*x[t].add(at));
                    for v in 0..VECTORS {
                        totals[v][t] = s.mul_add(w[v], x, totals[v][t]);
                    }
                }
            }
            self.output.write(s, job.out, job.bias, &job.rows, &totals);
        }
    }
}
