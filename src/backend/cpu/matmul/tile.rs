//! The matrix kernel of all quantized formats.
//!
//! A few vectors of rows are unpacked to a tile of bytes that stays in the first-level cache, a slice of the columns at a
//! time, and the tile is then multiplied with all tokens: the weights are read once. In a lane there is one row from
//! beginning to end, and slices depend on nothing but the number of columns. So an element of the product is the same
//! number bit by bit whatever else is computed with it: other tokens, other rows, on however many threads.

use super::activations::SUM_GROUP;
use super::formats::{Format, Unpacked};
use super::simd::{MAX_LANES, RowPtrs, Simd};
use super::{Output, QuantJob, TILE_ROWS, activations};

/// Columns of a slice at most: a multiple of every format's block.
pub(super) const SLICE: usize = 512;

/// A slice of some rows, unpacked.
#[repr(C, align(64))]
pub(super) struct Tile {
    /// `[SLICE / 4][rows]`, four bytes an element; f32 weights, `[SLICE / 4][rows]`, for the floating-point types.
    pub(super) q: [i32; SLICE / 4 * TILE_ROWS],
    /// `[groups][rows]`.
    scales: [f32; SLICE / SUM_GROUP * TILE_ROWS],
    /// `[groups][rows]`.
    mins: [f32; SLICE / SUM_GROUP * TILE_ROWS],
}

impl Tile {
    pub(super) const ZERO: Self = Self {
        q: [0; SLICE / 4 * TILE_ROWS],
        scales: [0.0; SLICE / SUM_GROUP * TILE_ROWS],
        mins: [0.0; SLICE / SUM_GROUP * TILE_ROWS],
    };
}

/// Multiplies `VECTORS` vectors of rows at a time with up to `TOKENS` tokens at a time.
///
/// # Safety
/// The pointers of the job are valid for its sizes, and nothing else accesses the job's part of the output.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, F: Format, const VECTORS: usize, const TOKENS: usize>(s: S, job: &mut QuantJob<'_>) {
    const { assert!(VECTORS * S::LANES <= TILE_ROWS && S::LANES <= MAX_LANES) };
    let (block, block_bytes) = (F::TYPE.block_len(), F::TYPE.block_bytes());
    // SAFETY: the caller's promise about the job.
    unsafe { prepare::<S, F>(job) };
    let blocks = job.cols / block;
    let blocks_of_slice = blocks.div_ceil(job.cols.div_ceil(SLICE).max(1));
    let mut row = job.rows.start;
    while row < job.rows.end {
        let rows: [RowPtrs; VECTORS] = std::array::from_fn(|v| job.row_ptrs(row + v * S::LANES));
        let mut first = 0;
        while first < blocks {
            let count = blocks_of_slice.min(blocks - first);
            for i in 0..count {
                for (v, rows) in rows.iter().enumerate() {
                    let column = i * block;
                    let at = |columns: usize| (column / columns * VECTORS + v) * S::LANES;
                    // SAFETY: the rows hold the block; `count` blocks of all vectors fit the tile.
                    unsafe {
                        let out = Unpacked::<S, VECTORS>::new(
                            s,
                            job.tile.q.as_mut_ptr().add(at(4)),
                            job.tile.scales.as_mut_ptr().add(at(F::GROUP)),
                            job.tile.mins.as_mut_ptr().add(at(F::GROUP)),
                        );
                        F::unpack(s, rows, (first + i) * block_bytes, out);
                    }
                }
            }
            let (column, columns) = (first * block, count * block);
            let mut token = 0;
            while token < job.n {
                // As even as possible: few tokens at a time are less efficient.
                let left = job.n - token;
                let tokens = left.div_ceil(left.div_ceil(TOKENS));
                let dots = Dots { job, output: Output { first: row, token, is_sum: first > 0 }, column, columns };
                // SAFETY: the slice is within the columns, and the tokens are within the job's.
                unsafe {
                    match tokens {
                        1 => dots.run::<S, F, VECTORS, 1>(s),
                        2 if TOKENS >= 2 => dots.run::<S, F, VECTORS, 2>(s),
                        3 if TOKENS >= 3 => dots.run::<S, F, VECTORS, 3>(s),
                        4 if TOKENS >= 4 => dots.run::<S, F, VECTORS, 4>(s),
                        5 if TOKENS >= 5 => dots.run::<S, F, VECTORS, 5>(s),
                        _ => dots.run::<S, F, VECTORS, TOKENS>(s),
                    }
                }
                token += tokens;
            }
            first += count;
        }
        row += VECTORS * S::LANES;
    }
}

/// The zero point of the format: what its unpacked bytes exceed the weights by.
const fn zero<S: Simd, F: Format>() -> i32 {
    if F::WIDE { S::WIDE_ZERO } else { F::ZERO }
}

/// For each group and token, `[groups][tokens]`: where integer sums start so as to account for the zero point, or what
/// the minimum is multiplied with.
///
/// # Safety
/// The pointers of the job are valid for its sizes.
#[inline(always)]
unsafe fn prepare<S: Simd, F: Format>(job: &mut QuantJob<'_>) {
    if zero::<S, F>() == 0 && !F::MINS {
        return;
    }
    let n = job.n;
    let sums_of_group = F::GROUP / SUM_GROUP;
    for group in 0..job.cols / F::GROUP {
        for token in 0..n {
            // SAFETY: sums and scales are there for all groups and tokens, and so is room for the corrections.
            unsafe {
                let mut sum = 0;
                for i in 0..sums_of_group {
                    sum += *job.sums.add((group * sums_of_group + i) * n + token);
                }
                let correction = if F::MINS {
                    let scale = *job.scales.add(group * F::GROUP / activations::GROUP * n + token);
                    (scale * sum as f32).to_bits() as i32
                } else {
                    -zero::<S, F>() * sum
                };
                *job.corrections.get_unchecked_mut(group * n + token) = correction;
            }
        }
    }
}

/// A tile times a few tokens.
struct Dots<'a, 'b> {
    job: &'a QuantJob<'b>,
    output: Output,
    /// Where the slice starts.
    column: usize,
    columns: usize,
}

impl Dots<'_, '_> {
    /// # Safety
    /// The tile holds the columns, the tokens are within the job's, and nothing else accesses the rows of the output.
    #[inline(always)]
    unsafe fn run<S: Simd, F: Format, const VECTORS: usize, const TOKENS: usize>(&self, s: S) {
        let job = self.job;
        let (n, token) = (job.n, self.output.token);
        let words_of_group = F::GROUP / 4;
        // SAFETY: all offsets are within the arrays, by the caller's promise.
        unsafe {
            let x = job.x.add(token * job.x_stride + self.column);
            let x: [*const i8; TOKENS] = std::array::from_fn(|t| x.add(t * job.x_stride));
            let mut q = job.tile.q.as_ptr();
            let mut scales = job.tile.scales.as_ptr();
            let mut mins = job.tile.mins.as_ptr();
            let mut x_scales = job.scales.add(self.column / activations::GROUP * n + token);
            let mut corrections = job.corrections.as_ptr().add(self.column / F::GROUP * n + token);
            let mut totals = [[s.splat_float(0.0); TOKENS]; VECTORS];
            let mut at = 0;
            while at < self.columns {
                for _ in 0..activations::GROUP / F::GROUP {
                    let mut sums = [[s.splat(0); TOKENS]; VECTORS];
                    if zero::<S, F>() != 0 {
                        for t in 0..TOKENS {
                            let start = s.splat(*corrections.add(t));
                            for v in 0..VECTORS {
                                sums[v][t] = start;
                            }
                        }
                    }
                    for word in 0..words_of_group {
                        let mut w = [s.splat(0); VECTORS];
                        for v in 0..VECTORS {
                            w[v] = s.load(q.add((word * VECTORS + v) * S::LANES));
                        }
                        for t in 0..TOKENS {
                            let x = s.splat(x[t].add(at + 4 * word).cast::<i32>().read_unaligned());
                            for v in 0..VECTORS {
                                sums[v][t] = if F::WIDE {
                                    s.dot4_wide(sums[v][t], w[v], x)
                                } else {
                                    s.dot4(sums[v][t], w[v], x)
                                };
                            }
                        }
                    }
                    for t in 0..TOKENS {
                        let x_scale = s.splat_float(*x_scales.add(t));
                        for v in 0..VECTORS {
                            let scale = s.mul(s.load_float(scales.add(v * S::LANES)), x_scale);
                            totals[v][t] = s.mul_add(s.to_float(sums[v][t]), scale, totals[v][t]);
                        }
                    }
                    if F::MINS {
                        for t in 0..TOKENS {
                            let x_sum = s.splat_float(f32::from_bits(*corrections.add(t) as u32));
                            for v in 0..VECTORS {
                                totals[v][t] = s.mul_add(s.load_float(mins.add(v * S::LANES)), x_sum, totals[v][t]);
                            }
                        }
                    }
                    q = q.add(words_of_group * VECTORS * S::LANES);
                    scales = scales.add(VECTORS * S::LANES);
                    mins = mins.add(VECTORS * S::LANES);
                    corrections = corrections.add(n);
                    at += F::GROUP;
                }
                x_scales = x_scales.add(n);
            }
            self.output.write(s, job.out, job.bias, &job.rows, &totals);
        }
    }
}
