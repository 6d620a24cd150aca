//! Activations as 8-bit integers, to multiply with quantized weights.

use super::multiplier::Multiplier;
use crate::simd::{self, Isa, Kernel};
use crate::{Error, Result, memory};
use std::cell::UnsafeCell;
use std::ops::Range;

/// Activations that share a scale.
pub(crate) const GROUP: usize = 32;
/// Activations that share a sum.
pub(super) const SUM_GROUP: usize = 16;

/// A cache line of quantized activations.
#[repr(C, align(64))]
struct Line([i8; LINE]);

const LINE: usize = 64;

/// Numbers from one group of `rows` rows to the next. With many rows, this is an odd number of
/// cache lines: at a distance of a power of two, all groups would compete for the same few places
/// of the first-level cache.
pub(super) fn group_stride(rows: usize) -> usize {
    const IN_LINE: usize = LINE / size_of::<f32>();
    if rows <= IN_LINE { rows } else { (rows.div_ceil(IN_LINE) | 1).saturating_mul(IN_LINE) }
}

/// Rows of activations (one for each token), as 8-bit integers in groups of 32 with an f32 scale:
/// `x = scale * q`, with `q` in -127..=127.
///
/// The storage grows with [`reserve`](Self::reserve) and is reused. Several threads may fill
/// disjoint rows at once: see [`quantize_rows`].
pub(crate) struct QuantRows {
    /// Row-major. Each row starts a cache line.
    q: Box<[UnsafeCell<Line>]>,
    /// `[cols / 32][rows]`, with groups [`group_stride`] apart. The kernels read the scales of one
    /// group for all rows, so these are neighbours.
    scales: Box<[UnsafeCell<f32>]>,
    /// `[cols / 16][rows]`, laid out like the scales: sums of 16 quantized activations.
    sums: Box<[UnsafeCell<i32>]>,
    rows: usize,
    cols: usize,
}

// SAFETY: only `quantize_rows` and `matmul` access the cells, and their callers promise that no
// thread accesses a row while another writes it.
unsafe impl Sync for QuantRows {}

impl QuantRows {
    /// An empty buffer.
    pub(crate) fn new() -> Self {
        Self { q: Box::default(), scales: Box::default(), sums: Box::default(), rows: 0, cols: 0 }
    }

    /// Makes this a buffer of `rows` rows of `cols` activations each, with unspecified contents.
    ///
    /// # Errors
    /// `InvalidInput` if `cols` is not a multiple of 32; `OutOfMemory`.
    pub(crate) fn reserve(&mut self, rows: usize, cols: usize) -> Result<()> {
        if !cols.is_multiple_of(GROUP) {
            return Err(Error::invalid_input(format!(
                "rows of {cols} activations cannot be quantized: the length must be a multiple of {GROUP}"
            )));
        }
        let elements = rows.checked_mul(cols.next_multiple_of(LINE)).ok_or_else(|| out_of_memory(rows, cols))?;
        let stride = group_stride(rows);
        let groups = stride.checked_mul(cols / SUM_GROUP).ok_or_else(|| out_of_memory(rows, cols))?;
        // Unusable until all parts are large enough.
        (self.rows, self.cols) = (0, 0);
        grow(&mut self.q, elements / LINE, || UnsafeCell::new(Line([0; LINE])))
            .and_then(|()| grow(&mut self.scales, stride * (cols / GROUP), || UnsafeCell::new(0.0)))
            .and_then(|()| grow(&mut self.sums, groups, || UnsafeCell::new(0)))
            .map_err(|()| out_of_memory(rows, cols))?;
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Activations in a row.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The quantized activations; rows are [`stride`](Self::stride) apart.
    pub(super) fn q(&self) -> *mut i8 {
        UnsafeCell::raw_get(self.q.as_ptr()).cast()
    }

    /// Bytes from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.cols.next_multiple_of(LINE)
    }

    /// The scales, `[cols / 32][rows]`.
    pub(super) fn scales(&self) -> *mut f32 {
        UnsafeCell::raw_get(self.scales.as_ptr())
    }

    /// The sums, `[cols / 16][rows]`.
    pub(super) fn sums(&self) -> *mut i32 {
        UnsafeCell::raw_get(self.sums.as_ptr())
    }
}

fn out_of_memory(rows: usize, cols: usize) -> Error {
    // The activations, and for each 32 of them a scale and two sums.
    let bytes = rows.saturating_mul(cols).saturating_add(rows.saturating_mul(cols / GROUP).saturating_mul(12));
    memory::out_of_memory(format_args!("{rows} rows of {cols} quantized activations"), bytes)
}

/// Makes a slice at least `len` elements long. If it grows, its contents are lost.
pub(super) fn grow<T>(slice: &mut Box<[T]>, len: usize, element: impl FnMut() -> T) -> Result<(), ()> {
    if slice.len() < len {
        *slice = Box::default();
        let mut elements = Vec::new();
        elements.try_reserve_exact(len).map_err(|_| ())?;
        elements.resize_with(len, element);
        *slice = elements.into_boxed_slice();
    }
    Ok(())
}

/// The source and the destination of a quantization.
struct QuantizeJob<'a> {
    /// Row-major, `[..][cols]`.
    x: &'a [f32],
    cols: usize,
    to: &'a QuantRows,
    rows: Range<usize>,
}

/// Quantizes `x`, row-major, to the given rows of `to`. In each group of 32 the largest magnitude
/// becomes 127, and the others are rounded to nearest, ties to even. The result is the same on
/// every instruction set. A group with an infinite or NaN activation gets an infinite or NaN scale,
/// so that it is not hidden.
///
/// # Safety
/// No other thread accesses these rows of `to` meanwhile.
///
/// # Panics
/// If the sizes do not agree.
pub(crate) unsafe fn quantize_rows(isa: Isa, x: &[f32], rows: Range<usize>, to: &QuantRows) {
    assert!(rows.start <= rows.end && rows.end <= to.rows, "rows {rows:?} of {}", to.rows);
    assert!(x.len() == rows.len() * to.cols, "{} activations for {rows:?} x {}", x.len(), to.cols);
    let job = QuantizeJob { x, cols: to.cols, to, rows };
    simd::run(isa, Quantize(job));
}

/// Rows and groups to quantize before their scales and sums are written. The scales of a group
/// share a cache line, possibly with those of other threads. So a line is written at once, not row
/// by row.
const ROWS_AT_ONCE: usize = LINE / size_of::<f32>();
const GROUPS_AT_ONCE: usize = 64;

/// A job whose sizes agree, and whose rows nothing else accesses.
struct Quantize<'a>(QuantizeJob<'a>);

impl<S: Multiplier> Kernel<S> for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        // SAFETY: only `quantize_rows` constructs these values, with its caller's promise.
        unsafe { run(s, &self.0) }
    }
}

/// Quantizes the rows of a job.
///
/// # Safety
/// The sizes agree, and nothing else accesses the job's rows of the output.
#[inline(always)]
unsafe fn run<S: Multiplier>(s: S, job: &QuantizeJob<'_>) {
    for first in job.rows.clone().step_by(ROWS_AT_ONCE) {
        let rows = first..job.rows.end.min(first + ROWS_AT_ONCE);
        for first in (0..job.cols / GROUP).step_by(GROUPS_AT_ONCE) {
            let groups = first..(job.cols / GROUP).min(first + GROUPS_AT_ONCE);
            // SAFETY: the caller's promise.
            unsafe {
                match rows.len() {
                    1 => quantize_part::<S, 1>(s, job, rows.clone(), groups),
                    _ => quantize_part::<S, ROWS_AT_ONCE>(s, job, rows.clone(), groups),
                }
            }
        }
    }
}

/// Quantizes some groups of up to `ROWS` rows.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn quantize_part<S: Multiplier, const ROWS: usize>(
    s: S,
    job: &QuantizeJob<'_>,
    rows: Range<usize>,
    groups: Range<usize>,
) {
    let mut scales = [[0.0; ROWS]; GROUPS_AT_ONCE];
    let mut sums = [[[0; ROWS]; 2]; GROUPS_AT_ONCE];
    let (n, stride) = (group_stride(job.to.rows), job.to.stride());
    for (i, row) in rows.clone().enumerate() {
        let x = job.x[(row - job.rows.start) * job.cols..][..job.cols].as_chunks::<GROUP>().0;
        for ((group, x), (scale, sums)) in groups.clone().zip(&x[groups.clone()]).zip(scales.iter_mut().zip(&mut sums))
        {
            // SAFETY: the row and the group are within the buffer, and only this thread accesses
            // the row.
            let q = unsafe { &mut *job.to.q().add(row * stride + group * GROUP).cast::<[i8; GROUP]>() };
            (scale[i], [sums[0][i], sums[1][i]]) = quantize_group(s, x, q);
        }
    }
    for (group, (scales, sums)) in groups.zip(scales.iter().zip(&sums)) {
        for i in 0..rows.len().min(ROWS) {
            let row = rows.start + i;
            // SAFETY: as above.
            unsafe {
                job.to.scales().add(group * n + row).write(scales[i]);
                job.to.sums().add(2 * group * n + row).write(sums[0][i]);
                job.to.sums().add((2 * group + 1) * n + row).write(sums[1][i]);
            }
        }
    }
}

/// Quantizes a group. Returns the scale, and the sums of both halves.
#[inline(always)]
fn quantize_group<S: Multiplier>(s: S, x: &[f32; GROUP], q: &mut [i8; GROUP]) -> (f32, [i32; 2]) {
    // The bits of magnitudes are ordered as the magnitudes are, with infinity and then NaN at the end.
    let max = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff)));
    // Numbers this small are zeros to the model, and their reciprocals could overflow.
    let (scale, inverse) = if max < 1e-30 { (0.0, 0.0) } else { (max / 127.0, 127.0 / max) };
    (scale, s.round(x, inverse, q))
}

/// 1.5 * 2^23: adding it to a number of small magnitude leaves the nearest integer in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// What [`Multiplier::round`] does, in plain Rust.
#[inline(always)]
pub(super) fn round(x: &[f32; GROUP], by: f32, q: &mut [i8; GROUP]) -> [i32; 2] {
    let mut sums = [0; 2];
    for (half, sum) in sums.iter_mut().enumerate() {
        for i in half * SUM_GROUP..(half + 1) * SUM_GROUP {
            let rounded = (x[i] * by + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
            q[i] = rounded;
            *sum += i32::from(rounded);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row 0, quantized: quants, scales, sums.
    fn quantize(isa: Isa, x: &[f32]) -> (Vec<i8>, Vec<f32>, Vec<i32>) {
        let mut to = QuantRows::new();
        to.reserve(1, x.len()).unwrap();
        // SAFETY: there is one thread, and the buffers were just filled. All three hold at least
        // the row.
        unsafe {
            quantize_rows(isa, x, 0..1, &to);
            (
                std::slice::from_raw_parts(to.q(), x.len()).to_vec(),
                std::slice::from_raw_parts(to.scales(), x.len() / GROUP).to_vec(),
                std::slice::from_raw_parts(to.sums(), x.len() / SUM_GROUP).to_vec(),
            )
        }
    }

    #[test]
    fn the_largest_magnitude_is_127_and_ties_go_to_even() {
        let mut x = [0.0; 32];
        (x[0], x[1], x[2], x[3], x[20]) = (-254.0, 1.0, 3.0, 5.1, 254.0);
        for isa in Isa::available() {
            let (q, scales, sums) = quantize(isa, &x);
            assert_eq!((scales[0], &sums[..]), (2.0, &[-122, 127][..]), "{isa:?}");
            assert_eq!((&q[..5], q[20]), (&[-127, 0, 2, 3, 0][..], 127), "{isa:?}");
        }
    }

    #[test]
    fn all_instruction_sets_give_the_same() {
        let mut state = 1_u32;
        let x: Vec<f32> = (0..32 * 2000)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let exponent = (i / 32 % 200) - 100;
                (state as i32 as f32 / 2.0_f32.powi(31)) * 2.0_f32.powi(exponent)
            })
            .collect();
        let oracle = quantize(Isa::SCALAR, &x);
        for (group, x) in x.chunks(32).enumerate() {
            let (q, scale) = (&oracle.0[group * 32..][..32], oracle.1[group]);
            for (x, &q) in x.iter().zip(q) {
                assert!((x - scale * f32::from(q)).abs() <= scale * 0.50001 + 1e-30, "{x} is not {q} * {scale}");
            }
        }
        for isa in Isa::available() {
            assert!(quantize(isa, &x) == oracle, "{isa:?}");
        }
    }

    #[test]
    fn rows_together_are_the_same_as_one_by_one() {
        // More rows and groups than are quantized at once, in jobs that begin within a line of
        // scales.
        let (rows, cols) = (37, GROUP * (GROUPS_AT_ONCE + 6));
        let mut state = 7_u32;
        let x: Vec<f32> = (0..rows * cols)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state as i32 as f32
            })
            .collect();
        for isa in Isa::available() {
            let mut to = QuantRows::new();
            to.reserve(rows, cols).unwrap();
            for job in [0..5, 5..23, 23..24, 24..rows] {
                // SAFETY: there is one thread.
                unsafe { quantize_rows(isa, &x[job.start * cols..job.end * cols], job, &to) };
            }
            let n = group_stride(rows);
            for (row, x) in x.chunks_exact(cols).enumerate() {
                let (q, scales, sums) = quantize(isa, x);
                // SAFETY: row, columns and groups are within the buffer, and nobody writes to it.
                unsafe {
                    assert_eq!(
                        std::slice::from_raw_parts(to.q().add(row * to.stride()), cols),
                        q,
                        "{isa:?}, row {row}"
                    );
                    assert!(
                        scales.iter().enumerate().all(|(group, &scale)| *to.scales().add(group * n + row) == scale)
                    );
                    assert!(sums.iter().enumerate().all(|(group, &sum)| *to.sums().add(group * n + row) == sum));
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows_in_the_scale() {
        for isa in Isa::available() {
            let mut x = [1.0; 64];
            x[5] = f32::NAN;
            x[40] = f32::NEG_INFINITY;
            let (_, scales, _) = quantize(isa, &x);
            assert!(scales[0].is_nan() && scales[1] == f32::INFINITY, "{isa:?}: {scales:?}");
            let tiny = quantize(isa, &[f32::from_bits(1); 32]);
            assert_eq!(tiny, (vec![0; 32], vec![0.0], vec![0; 2]), "{isa:?}");
        }
    }

    #[test]
    fn odd_lengths_are_refused() {
        assert!(QuantRows::new().reserve(2, 33).is_err());
        assert!(QuantRows::new().reserve(usize::MAX / 2, 64).is_err());
    }
}
