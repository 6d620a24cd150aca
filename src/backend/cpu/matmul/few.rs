//! The matrix kernel for few tokens. It multiplies an unpacked block at once, since storing it in a
//! tile first would cost as much as the products. Results equal those of [`tile`](super::tile), bit
//! by bit.

use super::activations;
use super::kernels::Tokens;
use super::multiplier::Dot;
use super::prefetch::{AheadOfRows, LINE};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Sink, Source};
use crate::simd::lanes::{Rows, unroll};

/// Adjacent rows, as many as a vector has lanes, times a few tokens.
pub(super) struct Few {
    /// The rows, of `cols` columns.
    pub(super) rows: Rows,
    pub(super) cols: usize,
    /// Columns whose products are summed up before they are added to the output: whole blocks.
    pub(super) slice: usize,
    /// The tokens' activations from the first column on.
    pub(super) tokens: Tokens,
    /// The products are added to this.
    pub(super) bias: Option<*const f32>,
    /// Memory to prefetch meanwhile, as much as the rows have.
    pub(super) ahead: AheadOfRows,
}

/// # Safety
/// The pointers are valid for the sizes, `TOKENS` tokens and `LANES` rows.
#[inline(always)]
pub(super) unsafe fn run<S: Dot, F: Format, R: Source<S>, const TOKENS: usize>(s: S, few: &Few) {
    let (block, block_bytes) = (F::TYPE.block_len(), F::TYPE.block_bytes());
    let group = <F::Kind as Kind>::GROUP;
    let Tokens { x, x_stride, scales, corrections, group_stride, out, out_stride } = few.tokens;
    // SAFETY: all offsets are within the rows, the activations and the output, by the caller's
    // promise.
    unsafe {
        let before = few.bias.map_or(s.splat_float(0.0), |bias| s.load_float(bias));
        let mut outs = [before; TOKENS];
        let mut totals = [s.splat_float(0.0); TOKENS];
        let mut slice_end = few.slice.min(few.cols);
        let mut ahead = few.ahead;
        let mut column = 0;
        while column < few.cols {
            let mut products = Products::<S, F::Kind, TOKENS> {
                simd: s,
                x: std::array::from_fn(|t| x.add(t * x_stride + column).cast()),
                x_scales: scales.add(column / activations::GROUP * group_stride),
                corrections: corrections.add(column / group * group_stride),
                group_stride,
                ahead: ahead.address(),
                ahead_of_group: std::ptr::null(),
                ahead_bytes: S::LANES * block_bytes / (block / group),
                sums: [s.splat(S::SUM_START); TOKENS],
                words: 0,
                partial: [s.begin(s.splat(0)); TOKENS],
                totals,
                kind: std::marker::PhantomData,
            };
            ahead = ahead.add(S::LANES * block_bytes);
            F::unpack(s, R::new(few.rows), column / block * block_bytes, &mut products);
            totals = products.totals;
            column += block;
            if column >= slice_end {
                unroll!(t < TOKENS, {
                    outs[t] = s.add(outs[t], totals[t]);
                    totals[t] = s.splat_float(0.0);
                });
                slice_end = (slice_end + few.slice).min(few.cols);
            }
        }
        unroll!(t < TOKENS, {
            s.store_float(out.add(t * out_stride), outs[t]);
        });
    }
}

/// Multiplies a block with its activations.
struct Products<S: Dot, K, const TOKENS: usize> {
    simd: S,
    /// The activations of the block, their scales and the corrections.
    x: [*const i32; TOKENS],
    x_scales: *const f32,
    corrections: *const i32,
    group_stride: usize,
    /// The address to prefetch from during the block,
    ahead: *const u8,
    /// and during the group: `ahead_bytes` bytes, word by word, as the number of pending requests
    /// is limited.
    ahead_of_group: *const u8,
    ahead_bytes: usize,
    /// The sums of the group.
    sums: [S::Int; TOKENS],
    /// The number of words in the current run, and their sums. A group consists of whole runs.
    words: usize,
    partial: [S::Partial; TOKENS],
    totals: [S::Float; TOKENS],
    kind: std::marker::PhantomData<K>,
}

impl<S: Dot, K: Kind, const TOKENS: usize> Sink<S> for Products<S, K, TOKENS> {
    #[inline(always)]
    unsafe fn begin(&mut self, group: usize) {
        let s = self.simd;
        self.ahead_of_group = self.ahead.wrapping_add(group * self.ahead_bytes);
        unroll!(t < TOKENS, {
            self.sums[t] = match K::HAS_ZERO {
                // SAFETY: the group is within the block, and so are its corrections.
                true => s.splat(unsafe { *self.corrections.add(group * self.group_stride + t) }),
                false => s.splat(S::SUM_START),
            };
        });
    }

    #[inline(always)]
    unsafe fn q(&mut self, i: usize, w: S::Int) {
        let s = self.simd;
        let (word, words, lines) = (i % (K::GROUP / 4), K::GROUP / 4, self.ahead_bytes.div_ceil(LINE));
        for line in word * lines / words..(word + 1) * lines / words {
            s.prefetch(self.ahead_of_group.wrapping_add(line * LINE));
        }
        let run = S::run(K::MAX).min(K::GROUP / 4);
        unroll!(t < TOKENS, {
            // SAFETY: the activations of the block can be read, four words at a time.
            let x = unsafe { s.word(self.x[t].add(i & !3), i & 3) };
            let sum = if self.words == 0 { s.begin(self.sums[t]) } else { self.partial[t] };
            self.partial[t] = if K::WIDE { s.dot4_wide(sum, w, x) } else { s.dot4(sum, w, x) };
        });
        self.words += 1;
        if self.words == run {
            self.words = 0;
            unroll!(t < TOKENS, {
                self.sums[t] = s.end(self.sums[t], self.partial[t]);
            });
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, group: usize, scale: S::Float, min: Option<S::Float>) {
        let s = self.simd;
        let offset = s.offset(scale);
        let x_group = group * K::GROUP / activations::GROUP;
        unroll!(t < TOKENS, {
            // SAFETY: as for the corrections above.
            let x_scale = s.splat_float(unsafe { *self.x_scales.add(x_group * self.group_stride + t) });
            self.totals[t] = s.mul_add(s.scaled(self.sums[t], scale, offset), x_scale, self.totals[t]);
        });
        if let Some(min) = min {
            unroll!(t < TOKENS, {
                // SAFETY: as above.
                let x_sum = f32::from_bits(unsafe { *self.corrections.add(group * self.group_stride + t) } as u32);
                self.totals[t] = s.mul_add(min, s.splat_float(x_sum), self.totals[t]);
            });
        }
    }
}
