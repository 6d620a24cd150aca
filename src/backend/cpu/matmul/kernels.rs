//! The kernels as functions that are compiled for an instruction set, and the tables of them that [`driver`](super::driver) takes.
//!
//! A table is only handed out by a token ([`Lanes`]), and its functions make the token anew: so they are called where the
//! processor has the instructions.

use super::driver::{Correction, Dots, Kernels};
use super::few::{self, Few};
use super::float::{self, FloatFormat};
use super::formats::{Format, Kind};
use super::lanes::{Dot, Lanes, Rows};
use super::layout::Source;
use super::tile::{self, Tile};
use crate::simd::Kernel;
use std::marker::PhantomData;

/// The kernels for a quantized format, with tiles of `VECTORS` vectors.
pub(super) fn quant<S: Lanes, F: Format, R: Source<S>, const VECTORS: usize>() -> Kernels {
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

/// The kernels for a floating-point type, with tiles of `VECTORS` vectors.
pub(super) fn float<S: Lanes, F: FloatFormat, const VECTORS: usize>() -> Kernels {
    Kernels {
        rows: VECTORS * S::LANES,
        group: usize::MAX,
        block: 1,
        slice: float::SLICE,
        unpack: float_unpack::<S, F, VECTORS>,
        dots: S::float_products::<VECTORS>(),
        direct_rows: S::LANES,
        direct: &[],
        correction: Correction::None,
    }
}

/// Columns of some rows, and where they are unpacked to.
struct Unpack<'t, F, R> {
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &'t mut Tile,
    types: PhantomData<(F, R)>,
}

/// An [`Unpack`] to a tile of `VECTORS` vectors. What is called as a function of the instruction set is a value: it is made
/// where the caller promises what the kernel needs, and nowhere else.
struct Quant<'t, F, R, const VECTORS: usize>(Unpack<'t, F, R>);

impl<S: Lanes, F: Format, R: Source<S>, const VECTORS: usize> Kernel<S> for Quant<'_, F, R, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let Unpack { rows, column, columns, tile, .. } = self.0;
        // SAFETY: the promise of who made this.
        unsafe { tile::unpack::<S, F, R, VECTORS>(s, rows, column, columns, tile) }
    }
}

/// [`tile::unpack`].
///
/// # Safety
/// As there; there was a token.
unsafe fn unpack<S: Lanes, F: Format, R: Source<S>, const VECTORS: usize>(
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &mut Tile,
) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(Quant::<F, R, VECTORS>(Unpack { rows, column, columns, tile, types: PhantomData }))
}

struct Float<'t, F, const VECTORS: usize>(Unpack<'t, F, ()>);

impl<S: Lanes, F: FloatFormat, const VECTORS: usize> Kernel<S> for Float<'_, F, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let Unpack { rows, column, columns, tile, .. } = self.0;
        // SAFETY: the promise of who made this.
        unsafe { float::unpack::<S, F, VECTORS>(s, rows, column, columns, tile) }
    }
}

/// [`float::unpack`].
///
/// # Safety
/// As there; there was a token.
unsafe fn float_unpack<S: Lanes, F: FloatFormat, const VECTORS: usize>(
    rows: Rows,
    column: usize,
    columns: usize,
    tile: &mut Tile,
) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(Float::<F, VECTORS>(Unpack { rows, column, columns, tile, types: PhantomData }))
}

struct Products<'d, K, const VECTORS: usize, const TOKENS: usize>(&'d Dots<'d>, PhantomData<K>);

impl<S: Lanes, K: Kind, const VECTORS: usize, const TOKENS: usize> Kernel<S> for Products<'_, K, VECTORS, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        // SAFETY: the promise of who made this.
        unsafe { s.dots::<K, VECTORS, TOKENS>(self.0) }
    }
}

/// [`Lanes::dots`].
///
/// # Safety
/// As there; there was a token.
pub(super) unsafe fn dots<S: Lanes, K: Kind, const VECTORS: usize, const TOKENS: usize>(dots: &Dots<'_>) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(Products::<K, VECTORS, TOKENS>(dots, PhantomData))
}

struct FloatProducts<'d, const VECTORS: usize, const TOKENS: usize>(&'d Dots<'d>);

impl<S: Lanes, const VECTORS: usize, const TOKENS: usize> Kernel<S> for FloatProducts<'_, VECTORS, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        // SAFETY: the promise of who made this.
        unsafe { float::dots::<S, VECTORS, TOKENS>(s, self.0) }
    }
}

/// [`float::dots`].
///
/// # Safety
/// As there; there was a token.
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
        // SAFETY: the promise of who made this.
        unsafe { few::run::<S, F, R, TOKENS>(s, self.0) }
    }
}

/// [`few::run`].
///
/// # Safety
/// As there; there was a token.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only x86 has kernels of it
pub(super) unsafe fn direct<S: Dot, F: Format, R: Source<S>, const TOKENS: usize>(few: &Few) {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.call(DirectProducts::<F, R, TOKENS>(few, PhantomData))
}
