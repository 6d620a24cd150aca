//! How the quantized formats unpack to the form of the one matrix kernel: bytes with a scale for
//! each group of 16 or 32 weights and, in some formats, a minimum. `quant::formats` describes the
//! formats.
//!
//! Unpacking is vertical: it first transposes the packed bytes of a vector of rows. Then the same
//! full-width instructions split the bits of all rows, including packed scales.

use super::lanes::{Lanes, unroll};
use super::layout::Source;
use crate::gguf::TensorType;

/// The properties of a format that matter to the matrix kernel. Formats of the same kind share it.
/// Group `g` of a row stands for the weights `scale[g] * (q[i] - zero) + min[g]`.
pub(super) trait Kind {
    /// Weights that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether the zero point is not 0. Sums of products then start at minus the zero point times
    /// the sum of the activations.
    const HAS_ZERO: bool = false;
    /// Whether groups have a minimum.
    const MINS: bool = false;
    /// Whether the bytes use all 8 bits, and are in the form of [`Lanes::wide`].
    const WIDE: bool = false;
    /// The largest magnitude of a byte.
    const MAX: i32;
}

/// Groups of 32 bytes of up to `MAX`, around a zero point.
pub(super) struct Zero32<const MAX: i32>;
/// Groups of 16 around a zero point.
pub(super) struct Zero16<const MAX: i32>;
/// Groups of 32 with minima.
pub(super) struct Mins32<const MAX: i32>;
/// Groups of 16 with minima.
pub(super) struct Mins16<const MAX: i32>;
/// Groups of 32 of signed bytes.
pub(super) struct Wide32;

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

impl Kind for Wide32 {
    const GROUP: usize = 32;
    // On instruction sets that take signed bytes directly, the sums start at a multiple of 0.
    const HAS_ZERO: bool = true;
    const WIDE: bool = true;
    const MAX: i32 = 128;
}

/// A quantized format.
pub(super) trait Format {
    /// The format's name in GGUF.
    const TYPE: TensorType;
    /// Its kind.
    type Kind: Kind;
    /// The zero point, which is subtracted from the unpacked bytes. Wide formats use
    /// [`Lanes::WIDE_ZERO`] in its place.
    const ZERO: i32 = 0;

    /// Unpacks one block, which starts at `offset`, of each row.
    ///
    /// # Safety
    /// `LANES` rows are valid for reads of `offset` plus the bytes of a block, and `out` takes a
    /// block.
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, offset: usize, out: &mut impl Sink<S>);
}

/// The receiver of an unpacked block of a vector of rows: group by group, in order.
pub(super) trait Sink<S: Lanes> {
    /// Begins a group.
    ///
    /// # Safety
    /// The group is within the block that the sink was made for. The same holds for the functions
    /// below.
    unsafe fn begin(&mut self, group: usize);
    /// Weights `4 * i ..` of the block, which belong to the current group.
    ///
    /// # Safety
    /// As for [`begin`](Self::begin).
    unsafe fn q(&mut self, i: usize, value: S::Int);
    /// Ends the group after all of its weights, with minima if the [`Kind`] has them.
    ///
    /// # Safety
    /// As for [`begin`](Self::begin).
    unsafe fn end(&mut self, group: usize, scale: S::Float, min: Option<S::Float>);
}

/// The place to unpack a vector of rows to: arrays of elements of `VECTORS` vectors of rows,
/// including this one.
pub(super) struct Unpacked<S, const VECTORS: usize> {
    simd: S,
    /// Elements of four bytes: weights `4 * i ..` of the rows.
    q: *mut i32,
    /// An element for each group.
    scales: *mut f32,
    mins: *mut f32,
}

impl<S: Lanes, const VECTORS: usize> Unpacked<S, VECTORS> {
    #[inline(always)]
    pub(super) fn new(simd: S, q: *mut i32, scales: *mut f32, mins: *mut f32) -> Self {
        Self { simd, q, scales, mins }
    }
}

impl<S: Lanes, const VECTORS: usize> Sink<S> for Unpacked<S, VECTORS> {
    #[inline(always)]
    unsafe fn begin(&mut self, _: usize) {}

    #[inline(always)]
    unsafe fn q(&mut self, i: usize, value: S::Int) {
        // SAFETY: the caller's promise that the block can be written, of which `i` is a part.
        unsafe { self.simd.store(self.q.add(i * VECTORS * S::LANES), value) }
    }

    #[inline(always)]
    unsafe fn end(&mut self, group: usize, scale: S::Float, min: Option<S::Float>) {
        // SAFETY: as above.
        unsafe {
            self.simd.store_float(self.scales.add(group * VECTORS * S::LANES), scale);
            if let Some(min) = min {
                self.simd.store_float(self.mins.add(group * VECTORS * S::LANES), min);
            }
        }
    }
}

/// The halves of a block of 256 weights, for a loop that compilers do not unroll. If a block were
/// one straight line of code, each of its instructions would read every two or three kilobytes.
/// Prefetchers predict these steps worse than small ones: interleaved weights were read at 0.8
/// instead of 0.96 of the memory's bandwidth.
#[inline(always)]
fn halves() -> std::ops::Range<usize> {
    0..std::hint::black_box(2)
}

const LOW_NIBBLES: i32 = 0x0f0f_0f0f;

/// Byte `i` of each lane, as a number.
#[inline(always)]
fn byte<S: Lanes>(s: S, v: S::Int, i: usize) -> S::Float {
    s.to_float(s.and(s.shr(v, 8 * i as u32), s.splat(255)))
}

/// Byte `i` of each lane, as a signed number.
#[inline(always)]
fn signed_byte<S: Lanes>(s: S, v: S::Int, i: usize) -> S::Float {
    s.to_float(s.sar(s.shl(v, 24 - 8 * i as u32), 24))
}

/// The low nibbles.
#[inline(always)]
fn low<S: Lanes>(s: S, v: S::Int) -> S::Int {
    s.and(v, s.splat(LOW_NIBBLES))
}

/// The high nibbles.
#[inline(always)]
fn high<S: Lanes>(s: S, v: S::Int) -> S::Int {
    low(s, s.shr(v, 4))
}

/// A block of one group: the nibbles of 16 bytes, low ones for weights 0..16, high ones for 16..32.
#[inline(always)]
unsafe fn nibbles<S: Lanes>(s: S, packed: [S::Int; 4], scale: S::Float, min: Option<S::Float>, out: &mut impl Sink<S>) {
    // SAFETY: the caller's promise that `out` takes a block.
    unsafe {
        out.begin(0);
        unroll!(j < 4; 0 1 2 3, {
            out.q(j, low(s, packed[j]));
            out.q(4 + j, high(s, packed[j]));
        });
        out.end(0, scale, min);
    }
}

/// The same with a fifth bit: bit `i` of `bits` for weight `i`.
#[inline(always)]
unsafe fn nibbles_and_bits<S: Lanes>(
    s: S,
    packed: [S::Int; 4],
    bits: S::Int,
    scale: S::Float,
    min: Option<S::Float>,
    out: &mut impl Sink<S>,
) {
    // SAFETY: the caller's promise that `out` takes a block.
    unsafe {
        out.begin(0);
        unroll!(j < 4; 0 1 2 3, {
            out.q(j, s.or(low(s, packed[j]), s.spread_bits(bits, j as u32)));
            out.q(4 + j, s.or(high(s, packed[j]), s.spread_bits(bits, 4 + j as u32)));
        });
        out.end(0, scale, min);
    }
}

/// 32 bytes of each row.
#[inline(always)]
unsafe fn two_quants<S: Lanes>(s: S, rows: impl Source<S>, at: usize) -> [[S::Int; 4]; 2] {
    // SAFETY: the caller's promise that the rows can be read there.
    unsafe { [rows.quants(s, at), rows.quants(s, at + 16)] }
}

/// Moves the upper half of each byte from [`two_quants`] to the lower half. No closure is mapped
/// over the vectors: compilers do not always inline one, and then compile it for the oldest
/// processors.
#[inline(always)]
fn shift_right<S: Lanes>(s: S, quants: &mut [[S::Int; 4]; 2]) {
    unroll!(part < 2; 0 1, {
        unroll!(j < 4; 0 1 2 3, {
            quants[part][j] = s.shr(quants[part][j], 4);
        });
    });
}

pub(super) struct Q4_0;

impl Format for Q4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    type Kind = Zero32<15>;
    const ZERO: i32 = 8;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 18 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = rows.first_half(s, at);
            nibbles(s, rows.quants(s, at + 2), s.half_to_float(head), None, out);
        }
    }
}

pub(super) struct Q4_1;

impl Format for Q4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    type Kind = Mins32<15>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 20 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = rows.words(s, at)[0];
            let (scale, min) = (s.half_to_float(head), s.half_to_float(s.shr(head, 16)));
            nibbles(s, rows.quants(s, at + 4), scale, Some(min), out);
        }
    }
}

pub(super) struct Q5_0;

impl Format for Q5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    type Kind = Zero32<31>;
    const ZERO: i32 = 16;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 22 bytes of the block, all writes within its 32 weights.
        unsafe {
            let [head, bits] = rows.first_half_and_word(s, at);
            nibbles_and_bits(s, rows.quants(s, at + 6), bits, s.half_to_float(head), None, out);
        }
    }
}

pub(super) struct Q5_1;

impl Format for Q5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    type Kind = Mins32<31>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 24 bytes of the block, all writes within its 32 weights.
        unsafe {
            let [head, bits, ..] = rows.words(s, at);
            let (scale, min) = (s.half_to_float(head), s.half_to_float(s.shr(head, 16)));
            nibbles_and_bits(s, rows.quants(s, at + 8), bits, scale, Some(min), out);
        }
    }
}

pub(super) struct Q8_0;

impl Format for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    type Kind = Wide32;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 34 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = rows.first_half(s, at);
            out.begin(0);
            unroll!(part < 2; 0 1, {
                let quants = rows.quants(s, at + 2 + 16 * part);
                unroll!(j < 4; 0 1 2 3, {
                    out.q(4 * part + j, s.wide(quants[j]));
                });
            });
            out.end(0, s.half_to_float(head), None);
        }
    }
}

pub(super) struct Q2K;

impl Format for Q2K {
    const TYPE: TensorType = TensorType::Q2_K;
    type Kind = Mins16<3>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 84 bytes of the block, all writes within its 256
        // weights.
        unsafe {
            let tail = rows.words(s, at + 68)[3];
            let d = s.half_to_float(tail);
            let minus_dmin = s.mul(s.half_to_float(s.shr(tail, 16)), s.splat_float(-1.0));
            let mut packed = rows.words(s, at);
            for half in halves() {
                // 32 bytes hold 16 weights of each of eight groups: two of each pair of bits.
                let quants = two_quants(s, rows, at + 16 + 32 * half);
                unroll!(pair < 4; 0 1 2 3, {
                    unroll!(part < 2; 0 1, {
                        let group = 8 * half + 2 * pair + part;
                        out.begin(group);
                        unroll!(j < 4; 0 1 2 3, {
                            out.q(4 * group + j, s.and(s.shr(quants[part][j], 2 * pair as u32), s.splat(0x0303_0303)));
                        });
                        let (scales, mins) = (low(s, packed[pair / 2]), high(s, packed[pair / 2]));
                        let scale = s.mul(d, byte(s, scales, 2 * (pair % 2) + part));
                        out.end(group, scale, Some(s.mul(minus_dmin, byte(s, mins, 2 * (pair % 2) + part))));
                    });
                });
                packed = [packed[2], packed[3], packed[0], packed[1]];
            }
        }
    }
}

pub(super) struct Q3K;

impl Format for Q3K {
    const TYPE: TensorType = TensorType::Q3_K;
    type Kind = Zero16<7>;
    const ZERO: i32 = 4;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 110 bytes of the block, all writes within its 256
        // weights.
        unsafe {
            let ([first, second, mut tops], d) = rows.last_words_and_half(s, at + 96);
            let (mut lows, d) = ([first, second], s.half_to_float(d));
            // The mask's 32 bytes are for all 256 weights.
            let mut mask = two_quants(s, rows, at);
            for half in halves() {
                let pairs = two_quants(s, rows, at + 32 + 32 * half);
                unroll!(pair < 4; 0 1 2 3, {
                    unroll!(part < 2; 0 1, {
                        let group = 8 * half + 2 * pair + part;
                        out.begin(group);
                        unroll!(j < 4; 0 1 2 3, {
                            let low = s.and(s.shr(pairs[part][j], 2 * pair as u32), s.splat(0x0303_0303));
                            let top = s.and(s.shr(mask[part][j], pair as u32), s.splat(0x0101_0101));
                            out.q(4 * group + j, s.or(low, s.shl(top, 2)));
                        });
                        // Four scales: four low bits in nibbles, two high bits in pairs.
                        let j = pair / 2;
                        let nibbles = low(s, lows[j]);
                        let scales = s.or(nibbles, s.shl(s.and(s.shr(tops, 2 * j as u32), s.splat(0x0303_0303)), 4));
                        let scale = s.add(byte(s, scales, 2 * (pair % 2) + part), s.splat_float(-32.0));
                        out.end(group, s.mul(d, scale), None);
                    });
                });
                shift_right(s, &mut mask);
                (lows, tops) = ([s.shr(lows[0], 4), s.shr(lows[1], 4)], s.shr(tops, 4));
            }
        }
    }
}

/// The scales and minima at the start of a block of Q4_K and Q5_K.
struct Heads<S: Lanes> {
    d: S::Float,
    minus_dmin: S::Float,
    scales: [S::Int; 2],
    mins: [S::Int; 2],
}

impl<S: Lanes> Heads<S> {
    #[inline(always)]
    fn new(s: S, head: [S::Int; 4]) -> Self {
        let (six, top) = (s.splat(0x3f3f_3f3f), s.splat(0x3030_3030));
        Self {
            d: s.half_to_float(head[0]),
            minus_dmin: s.mul(s.half_to_float(s.shr(head[0], 16)), s.splat_float(-1.0)),
            scales: [s.and(head[1], six), s.or(low(s, head[3]), s.and(s.shr(head[1], 2), top))],
            mins: [s.and(head[2], six), s.or(high(s, head[3]), s.and(s.shr(head[2], 2), top))],
        }
    }

    /// Ends a group, one of the four of a half of the block.
    #[inline(always)]
    unsafe fn end(&self, s: S, half: usize, group: usize, out: &mut impl Sink<S>) {
        let scale = s.mul(self.d, byte(s, self.scales[0], group));
        let min = s.mul(self.minus_dmin, byte(s, self.mins[0], group));
        // SAFETY: the caller's promise that `out` takes the group.
        unsafe { out.end(4 * half + group, scale, Some(min)) }
    }

    /// Goes on to the second half.
    #[inline(always)]
    fn next_half(&mut self) {
        self.scales.swap(0, 1);
        self.mins.swap(0, 1);
    }
}

pub(super) struct Q4K;

impl Format for Q4K {
    const TYPE: TensorType = TensorType::Q4_K;
    type Kind = Mins32<15>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 144 bytes of the block, all writes within its 256
        // weights.
        unsafe {
            let mut heads = Heads::new(s, rows.words(s, at));
            for half in halves() {
                unroll!(pair < 2; 0 1, {
                    // The low nibbles of 32 bytes are one group, the high ones the next.
                    let packed = two_quants(s, rows, at + 16 + 64 * half + 32 * pair);
                    out.begin(4 * half + 2 * pair);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            out.q(32 * half + 16 * pair + 4 * part + j, low(s, packed[part][j]));
                        });
                    });
                    heads.end(s, half, 2 * pair, out);
                    out.begin(4 * half + 2 * pair + 1);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            out.q(32 * half + 16 * pair + 8 + 4 * part + j, high(s, packed[part][j]));
                        });
                    });
                    heads.end(s, half, 2 * pair + 1, out);
                });
                heads.next_half();
            }
        }
    }
}

pub(super) struct Q5K;

impl Format for Q5K {
    const TYPE: TensorType = TensorType::Q5_K;
    type Kind = Mins32<31>;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 176 bytes of the block, all writes within its 256
        // weights.
        unsafe {
            let mut heads = Heads::new(s, rows.words(s, at));
            // Bit g of a byte of the high bits belongs to group g.
            let mut bits = two_quants(s, rows, at + 16);
            let bit = |v, group: usize| s.and(s.shl(s.shr(v, group as u32), 4), s.splat(0x1010_1010));
            for half in halves() {
                unroll!(pair < 2; 0 1, {
                    let packed = two_quants(s, rows, at + 48 + 64 * half + 32 * pair);
                    out.begin(4 * half + 2 * pair);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            let q = s.or(low(s, packed[part][j]), bit(bits[part][j], 2 * pair));
                            out.q(32 * half + 16 * pair + 4 * part + j, q);
                        });
                    });
                    heads.end(s, half, 2 * pair, out);
                    out.begin(4 * half + 2 * pair + 1);
                    unroll!(part < 2; 0 1, {
                        unroll!(j < 4; 0 1 2 3, {
                            let q = s.or(high(s, packed[part][j]), bit(bits[part][j], 2 * pair + 1));
                            out.q(32 * half + 16 * pair + 8 + 4 * part + j, q);
                        });
                    });
                    heads.end(s, half, 2 * pair + 1, out);
                });
                shift_right(s, &mut bits);
                heads.next_half();
            }
        }
    }
}

pub(super) struct Q6K;

impl Format for Q6K {
    const TYPE: TensorType = TensorType::Q6_K;
    type Kind = Zero16<63>;
    const ZERO: i32 = 32;

    #[inline(always)]
    unsafe fn unpack<S: Lanes>(s: S, rows: impl Source<S>, at: usize, out: &mut impl Sink<S>) {
        // SAFETY: all reads are within the 210 bytes of the block, all writes within its 256
        // weights.
        unsafe {
            let d = s.half_to_float(rows.last_half(s, at + 208));
            let mut scales = rows.words(s, at + 192);
            let pair = s.splat(0x3030_3030);
            for half in halves() {
                // Groups 0 to 3 have the low nibbles of 64 bytes, groups 4 to 7 the high ones. Each
                // has a pair of bits of 32 bytes.
                let nibbles = [two_quants(s, rows, at + 64 * half), two_quants(s, rows, at + 64 * half + 32)];
                let tops = two_quants(s, rows, at + 128 + 32 * half);
                unroll!(two < 4; 0 1 2 3, {
                    unroll!(part < 2; 0 1, {
                        let group = 8 * half + 2 * two + part;
                        out.begin(group);
                        unroll!(j < 4; 0 1 2 3, {
                            let (v, top) = (nibbles[two % 2][part][j], tops[part][j]);
                            let q = match two {
                                0 => s.or(low(s, v), s.and(s.shl(top, 4), pair)),
                                1 => s.or(low(s, v), s.and(s.shl(top, 2), pair)),
                                2 => s.or(high(s, v), s.and(top, pair)),
                                _ => s.or(high(s, v), s.and(s.shr(top, 2), pair)),
                            };
                            out.q(4 * group + j, q);
                        });
                        out.end(group, s.mul(d, signed_byte(s, scales[two / 2], 2 * (two % 2) + part)), None);
                    });
                });
                scales = [scales[2], scales[3], scales[0], scales[1]];
            }
        }
    }
}
