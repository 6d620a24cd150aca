//! How a format unpacks on the CPU, to the form that matrix products work on: bytes with a scale for each group of 16 or 32
//! weights and, in some formats, a minimum.
//!
//! Unpacking is vertical: the packed bytes of a vector of rows are transposed first, so that the bits of all rows are
//! taken apart by the same full-width instructions, the packed scales among them. [`Format::unpack`](super::Format::unpack)
//! does it, once for all instruction sets ([`Lanes`]), for all orders of rows in memory ([`Source`]), and for all uses of
//! what was unpacked ([`Sink`]).

use crate::simd::lanes::{Lanes, Rows, unroll};

/// What matrix products have to know of a format; formats of the same kind share their kernels. Group `g` of a row stands
/// for the weights `scale[g] * (q[i] - zero) + min[g]`.
pub(crate) trait Kind {
    /// Whether the format unpacks at all; `()` is for one that does not.
    const UNPACKS: bool = true;
    /// Weights that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether the zero point is not 0: sums of products start at minus it times the sum of the activations.
    const HAS_ZERO: bool = false;
    /// Whether groups have a minimum.
    const MINS: bool = false;
    /// Whether the bytes take all 8 bits, and are in the form of [`Lanes::wide`].
    const WIDE: bool = false;
    /// The largest magnitude of a byte.
    const MAX: i32;
}

/// Groups of 32 bytes of up to `MAX`, around a zero point.
pub(crate) struct Zero32<const MAX: i32>;
/// Groups of 16 around a zero point.
pub(crate) struct Zero16<const MAX: i32>;
/// Groups of 32 with minima.
pub(crate) struct Mins32<const MAX: i32>;
/// Groups of 16 with minima.
pub(crate) struct Mins16<const MAX: i32>;
/// Groups of 32 of signed bytes.
pub(crate) struct Wide32;

impl<const MAX: i32> Kind for Zero32<MAX> {
    const GROUP: usize = 32;
    const HAS_ZERO: bool = true;
    const MAX: i32 = MAX;
}

impl<const MAX: i32> Kind for Zero16<MAX> {
    const GROUP: usize = 16;
    const HAS_ZERO: bool = true;
    const MAX: i32 = MAX;
}

impl<const MAX: i32> Kind for Mins32<MAX> {
    const GROUP: usize = 32;
    const MINS: bool = true;
    const MAX: i32 = MAX;
}

impl<const MAX: i32> Kind for Mins16<MAX> {
    const GROUP: usize = 16;
    const MINS: bool = true;
    const MAX: i32 = MAX;
}

/// The kind of a format without code that unpacks it: its blocks are dequantized, and multiplied with activations in f32.
/// That is slower, and takes no more than the format's scalar code.
impl Kind for () {
    const UNPACKS: bool = false;
    const GROUP: usize = 32;
    const MAX: i32 = 0;
}

impl Kind for Wide32 {
    const GROUP: usize = 32;
    // Where the instruction set takes signed bytes as they are, the sums start at 0 times something.
    const HAS_ZERO: bool = true;
    const WIDE: bool = true;
    const MAX: i32 = 128;
}

/// The same block of a vector of rows, and how its bytes are read.
///
/// # Safety
/// What all functions want: the bytes are within the rows.
pub(crate) trait Source<S: Lanes>: Copy {
    /// Whether rows are interleaved, or lie one after the other as in a file.
    const INTERLEAVED: bool;

    /// Of rows that begin at `rows.first`, and in a file are `rows.stride` apart.
    fn new(rows: Rows) -> Self;
    /// The four elements of 16 weights of one byte: see [`Lanes::quants`].
    unsafe fn quants(self, s: S, at: usize) -> [S::Int; 4];
    /// 16 bytes of each row, transposed.
    unsafe fn words(self, s: S, at: usize) -> [S::Int; 4];
    /// The two bytes that begin a block of at least 16, in the low halves of the lanes.
    unsafe fn first_half(self, s: S, at: usize) -> S::Int;
    /// The same, and the four bytes after them.
    unsafe fn first_half_and_word(self, s: S, at: usize) -> [S::Int; 2];
    /// The two bytes that end a block of at least 16, in the low halves of the lanes.
    unsafe fn last_half(self, s: S, at: usize) -> S::Int;
    /// Three words and then two bytes, which end a block of at least 16.
    unsafe fn last_words_and_half(self, s: S, at: usize) -> ([S::Int; 3], S::Int);
}

/// What takes the block of a vector of rows as it is unpacked: group by group, in order.
pub(crate) trait Sink<S: Lanes> {
    /// Begins a group.
    ///
    /// # Safety
    /// It is within the block that the sink was made for; so for the functions below.
    unsafe fn begin(&mut self, group: usize);
    /// Weights `4 * i ..` of the block, of the group that was begun last.
    ///
    /// # Safety
    /// As for [`begin`](Self::begin).
    unsafe fn q(&mut self, i: usize, value: S::Int);
    /// Ends the group, all of whose weights were given; with minima where the [`Kind`] has some.
    ///
    /// # Safety
    /// As for [`begin`](Self::begin).
    unsafe fn end(&mut self, group: usize, scale: S::Float, min: Option<S::Float>);
}

/// The halves of a block of 256 weights, for a loop that compilers do not unroll. Where a block is one straight line of code,
/// each of its instructions reads every two or three kilobytes, which the processor's prefetchers foresee worse than small steps:
/// interleaved weights were read at 0.8 instead of 0.96 of what memory gives.
#[inline(always)]
pub(super) fn halves() -> std::ops::Range<usize> {
    0..std::hint::black_box(2)
}

/// 32 bytes of each row.
#[inline(always)]
pub(super) unsafe fn two_quants<S: Lanes>(s: S, rows: impl Source<S>, at: usize) -> [[S::Int; 4]; 2] {
    // SAFETY: the caller's promise that the rows can be read there.
    unsafe { [rows.quants(s, at), rows.quants(s, at + 16)] }
}

/// Moves the upper half of what [`two_quants`] read to the lower half. No closure is mapped over the vectors: compilers do
/// not always inline one, and without that it is compiled for the oldest processors.
#[inline(always)]
pub(super) fn shift_right<S: Lanes>(s: S, quants: &mut [[S::Int; 4]; 2]) {
    unroll!(part < 2; 0 1, {
        unroll!(j < 4; 0 1 2 3, {
            quants[part][j] = s.shr(quants[part][j], 4);
        });
    });
}
