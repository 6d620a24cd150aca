//! The kernels as functions that are compiled for an instruction set, the tables of them for
//! [`schedule`](super::schedule), and their arguments.
//!
//! A table is only handed out by a token ([`Multiplier`]), and its functions make the token anew: so they are called where the
//! processor has the instructions.

use super::OutPtr;
use super::activations;
use super::corrections::Correction;
use super::few::{self, Few};
use super::float::{self, FloatFormat};
use super::multiplier::{Dot, Multiplier};
use super::schedule::TILE_ROWS;
use super::tile::{self, Tile};
use crate::quant::Format;
use crate::quant::unpack::{Kind, Source};
use crate::simd::Kernel;
use crate::simd::lanes::{Lanes, Rows};
use std::marker::PhantomData;

/// Unpacks columns (the first, and their number) of the rows of a tile.
pub(super) type Unpack = unsafe fn(Rows, usize, usize, &mut Tile);
/// Multiplies a tile with a certain number of tokens.
pub(super) type Multiply = unsafe fn(&Dots<'_>);

/// Multiplies rows with a certain small number of tokens, without a tile.
pub(super) type Direct = unsafe fn(&Few);

/// The kernels for one type of weights on one instruction set.
pub(super) struct Kernels {
    /// Rows per tile.
    pub(super) rows: usize,
    /// Columns between two prefetches of the kernels; more than a slice if they do not prefetch.
    pub(super) group: usize,
    /// Slices are multiples of this.
    pub(super) block: usize,
    /// The most columns of a slice.
    pub(super) slice: usize,
    pub(super) unpack: Unpack,
    /// For 1, 2, … tokens, up to [`MAX_TOKENS`](super::schedule::MAX_TOKENS).
    pub(super) dots: &'static [Multiply],
    /// Rows that a [`Direct`] multiplies.
    pub(super) direct_rows: usize,
    /// For 1, 2, … tokens. Empty if there are none.
    pub(super) direct: &'static [Direct],
    pub(super) correction: Correction,
}

/// Activations in the form that the kernels read.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    /// Row-major, i8 or f32.
    pub(super) x: *const u8,
    /// Bytes from one token to the next.
    pub(super) stride: usize,
    /// Bytes of a column.
    pub(super) size: usize,
    /// For quantized activations: scales, `[cols / 32][n]`,
    pub(super) scales: *const f32,
    /// and sums, `[cols / 16][n]`;
    pub(super) sums: *const i32,
    /// and numbers from one group to the next.
    pub(super) group_stride: usize,
    /// Tokens.
    pub(super) n: usize,
}

/// A few tokens: their activations from a column on, and the place of their products with rows.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    /// From the first token and column on, like [`Activations::x`].
    pub(super) x: *const u8,
    pub(super) x_stride: usize,
    /// From the first token and group on. The next group is `group_stride` elements further.
    pub(super) scales: *const f32,
    /// Like `scales`, for the groups of the [`Correction`].
    pub(super) corrections: *const i32,
    pub(super) group_stride: usize,
    /// The output from the first token and row on. Tokens are `out_stride` apart.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
}

impl Activations {
    /// Those of `n` tokens in f32, as many as `cols` columns need.
    pub(super) fn of_floats(x: &[f32], cols: usize, n: usize) -> Self {
        assert!(x.len() >= n * cols, "{} activations for {n} x {cols}", x.len());
        let size = size_of::<f32>();
        Self {
            x: x.as_ptr().cast(),
            stride: cols * size,
            size,
            scales: std::ptr::null(),
            sums: std::ptr::null(),
            group_stride: n,
            n,
        }
    }

    /// The tokens from `token` on, from `column` on, whose products with the rows from `row` on go to `out`. `corrections` are in
    /// groups of `group` columns.
    ///
    /// # Safety
    /// Token and column are within the activations, token and row within the output.
    pub(super) unsafe fn tokens(
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
            // Floating-point activations have no scales.
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
    /// The products are added to this, in the output's layout: to the sum of earlier slices, which
    /// may be the output itself, or else to the bias or zeros.
    pub(super) before: *const f32,
    pub(super) before_stride: usize,
    /// Memory to prefetch meanwhile: `ahead_lines` cache lines for each group of columns.
    pub(super) ahead: *const u8,
    pub(super) ahead_lines: usize,
}

impl Dots<'_> {
    /// Writes a vector of products, of token `t` with rows `row` and up.
    ///
    /// # Safety
    /// The token and the rows are within the output, and belong to this thread.
    #[inline(always)]
    pub(super) unsafe fn write<S: Lanes>(&self, s: S, t: usize, row: usize, product: S::Float) {
        // SAFETY: the caller's promise.
        unsafe {
            let before = s.load_float(self.before.add(t * self.before_stride + row));
            s.store_float(self.tokens.out.add(t * self.tokens.out_stride + row), s.add(before, product));
        }
    }
}

/// The kernels for a quantized format, with tiles of `VECTORS` vectors.
pub(super) fn quant<S: Multiplier, F: Format, R: Source<S>, const VECTORS: usize>() -> Kernels {
    let zero = if F::Kind::WIDE { S::WIDE_ZERO } else { F::ZERO };
    let group = F::Kind::GROUP;
    Kernels {
        rows: VECTORS * S::LANES,
        group: if S::ASKS_AHEAD { group } else { usize::MAX },
        block: F::TYPE.block_len(),
        slice: tile::SLICE,
        unpack: unpack::<S, F, R, VECTORS>,
        dots: S::products::<F::Kind, VECTORS>(),
        direct_rows: S::LANES,
        direct: S::direct_products::<F, R>(),
        correction: if F::Kind::MINS {
            Correction::Mins { group }
        } else {
            Correction::Zero { zero, start: S::SUM_START, group }
        },
    }
}

/// The kernels for weights that are multiplied as f32, with tiles of `VECTORS` vectors.
pub(super) fn float<S: Multiplier, F: FloatFormat, const VECTORS: usize>() -> Kernels {
    let slice = float::SLICE.max(F::BLOCK);
    assert!(VECTORS * S::LANES * slice <= float::SLICE * TILE_ROWS, "a slice does not fit a tile");
    Kernels {
        rows: VECTORS * S::LANES,
        group: usize::MAX,
        block: F::BLOCK,
        slice,
        unpack: float_unpack::<S, F, VECTORS>,
        dots: S::float_products::<VECTORS>(),
        direct_rows: S::LANES,
        direct: &[],
        correction: Correction::None,
    }
}

/// Columns of some rows, and the tile to unpack them to.
struct Columns<'t, F, R> {
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &'t mut Tile,
    types: PhantomData<(F, R)>,
}

// `Token::call` only compiles a kernel for the instruction set if it is a value. Each kernel below
// is constructed in one unsafe function, whose caller promises what the kernel needs.

/// Unpacks quantized weights to a tile of `VECTORS` vectors.
struct Quant<'t, F, R, const VECTORS: usize>(Columns<'t, F, R>);

impl<S: Lanes, F: Format, R: Source<S>, const VECTORS: usize> Kernel<S> for Quant<'_, F, R, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let Columns { rows, column, columns, tile, .. } = self.0;
        // SAFETY: the unsafe function that constructs these values has the caller's promise.
        unsafe { tile::unpack::<S, F, R, VECTORS>(s, rows, column, columns, tile) }
    }
}

/// [`tile::unpack`].
///
/// # Safety
/// As for that function; there was a token.
unsafe fn unpack<S: Lanes, F: Format, R: Source<S>, const VECTORS: usize>(
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &mut Tile,
) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(Quant::<F, R, VECTORS>(Columns { rows, column, columns, tile, types: PhantomData }))
}

struct Float<'t, F, const VECTORS: usize>(Columns<'t, F, ()>);

impl<S: Lanes, F: FloatFormat, const VECTORS: usize> Kernel<S> for Float<'_, F, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let Columns { rows, column, columns, tile, .. } = self.0;
        // SAFETY: the unsafe function that constructs these values has the caller's promise.
        unsafe { float::unpack::<S, F, VECTORS>(s, rows, column, columns, tile) }
    }
}

/// [`float::unpack`].
///
/// # Safety
/// As for that function; there was a token.
unsafe fn float_unpack<S: Lanes, F: FloatFormat, const VECTORS: usize>(
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &mut Tile,
) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(Float::<F, VECTORS>(Columns { rows, column, columns, tile, types: PhantomData }))
}

struct Products<'d, K, const VECTORS: usize, const TOKENS: usize>(&'d Dots<'d>, PhantomData<K>);

impl<S: Multiplier, K: Kind, const VECTORS: usize, const TOKENS: usize> Kernel<S> for Products<'_, K, VECTORS, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        // SAFETY: the unsafe function that constructs these values has the caller's promise.
        unsafe { s.dots::<K, VECTORS, TOKENS>(self.0) }
    }
}

/// [`Multiplier::dots`].
///
/// # Safety
/// As there; there was a token.
pub(super) unsafe fn dots<S: Multiplier, K: Kind, const VECTORS: usize, const TOKENS: usize>(dots: &Dots<'_>) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(Products::<K, VECTORS, TOKENS>(dots, PhantomData))
}

struct FloatProducts<'d, const VECTORS: usize, const TOKENS: usize>(&'d Dots<'d>);

impl<S: Lanes, const VECTORS: usize, const TOKENS: usize> Kernel<S> for FloatProducts<'_, VECTORS, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        // SAFETY: the unsafe function that constructs these values has the caller's promise.
        unsafe { float::dots::<S, VECTORS, TOKENS>(s, self.0) }
    }
}

/// [`float::dots`].
///
/// # Safety
/// As for that function; there was a token.
pub(super) unsafe fn float_dots<S: Lanes, const VECTORS: usize, const TOKENS: usize>(dots: &Dots<'_>) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(FloatProducts::<VECTORS, TOKENS>(dots))
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only x86 has kernels of it
struct DirectProducts<'f, F, R, const TOKENS: usize>(&'f Few, PhantomData<(F, R)>);

impl<S: Dot, F: Format, R: Source<S>, const TOKENS: usize> Kernel<S> for DirectProducts<'_, F, R, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        // SAFETY: the unsafe function that constructs these values has the caller's promise.
        unsafe { few::run::<S, F, R, TOKENS>(s, self.0) }
    }
}

/// [`few::run`].
///
/// # Safety
/// As for that function; there was a token.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only x86 has kernels of it
pub(super) unsafe fn direct<S: Dot, F: Format, R: Source<S>, const TOKENS: usize>(few: &Few) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(DirectProducts::<F, R, TOKENS>(few, PhantomData))
}
