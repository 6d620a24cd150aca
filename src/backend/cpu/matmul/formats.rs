//! How the quantized formats unpack to the form that the one matrix kernel works on: bytes with a scale for each group
//! of 16 or 32 weights and, in some formats, a minimum. The formats are described in `quant::blocks`.
//!
//! Unpacking is vertical: the packed bytes of a vector of rows are transposed first, so that the bits of all rows are
//! taken apart by the same full-width instructions, the packed scales among them.

use super::simd::{Rows, Simd};
use crate::gguf::TensorType;

/// What the matrix kernel has to know of a format; formats of the same kind share it. Group `g` of a row stands for the
/// weights `scale[g] * (q[i] - zero) + min[g]`.
pub(super) trait Kind {
    /// Weights that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether the zero point is not 0: sums of products start at minus it times the sum of the activations.
    const HAS_ZERO: bool = false;
    /// Whether groups have a minimum.
    const MINS: bool = false;
    /// Whether the bytes take all 8 bits, and are in the form of [`Simd::wide`].
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
    // Where the instruction set takes signed bytes as they are, the sums start at 0 times something.
    const HAS_ZERO: bool = true;
    const WIDE: bool = true;
    const MAX: i32 = 128;
}

/// A quantized format.
pub(super) trait Format {
    /// The format's name in GGUF.
    const TYPE: TensorType;
    /// What kind it is.
    type Kind: Kind;
    /// The zero point: what is subtracted from the unpacked bytes. For a wide format, [`Simd::WIDE_ZERO`] stands in its
    /// place.
    const ZERO: i32 = 0;

    /// Unpacks one block, which starts at `offset`, of each row.
    ///
    /// # Safety
    /// `LANES` rows are valid for reads of `offset` plus the bytes of a block, and `out` is valid for writes of a block.
    unsafe fn unpack<S: Simd, const VECTORS: usize>(s: S, rows: Rows, offset: usize, out: Unpacked<S, VECTORS>);
}

/// Where a vector of rows unpacks to: arrays whose elements are `VECTORS` vectors of rows, this one among them.
#[derive(Clone, Copy)]
pub(super) struct Unpacked<S, const VECTORS: usize> {
    simd: S,
    /// Elements of four bytes: weights `4 * i ..` of the rows.
    q: *mut i32,
    /// Elements for groups.
    scales: *mut f32,
    mins: *mut f32,
}

impl<S: Simd, const VECTORS: usize> Unpacked<S, VECTORS> {
    #[inline(always)]
    pub(super) fn new(simd: S, q: *mut i32, scales: *mut f32, mins: *mut f32) -> Self {
        Self { simd, q, scales, mins }
    }

    #[inline(always)]
    unsafe fn q(self, i: usize, value: S::Int) {
        // SAFETY: the caller's promise that the block can be written, of which `i` is a part.
        unsafe { self.simd.store(self.q.add(i * VECTORS * S::LANES), value) }
    }

    #[inline(always)]
    unsafe fn scale(self, group: usize, value: S::Float) {
        // SAFETY: as above.
        unsafe { self.simd.store_float(self.scales.add(group * VECTORS * S::LANES), value) }
    }

    #[inline(always)]
    unsafe fn min(self, group: usize, value: S::Float) {
        // SAFETY: as above.
        unsafe { self.simd.store_float(self.mins.add(group * VECTORS * S::LANES), value) }
    }
}

const LOW_NIBBLES: i32 = 0x0f0f_0f0f;

/// Byte `i` of each lane, as a number.
#[inline(always)]
fn byte<S: Simd>(s: S, v: S::Int, i: usize) -> S::Float {
    s.to_float(s.and(s.shr(v, 8 * i as u32), s.splat(255)))
}

/// Byte `i` of each lane, as a signed number.
#[inline(always)]
fn signed_byte<S: Simd>(s: S, v: S::Int, i: usize) -> S::Float {
    s.to_float(s.sar(s.shl(v, 24 - 8 * i as u32), 24))
}

/// The nibbles of 16 bytes: low ones are weights 0..16, high ones 16..32.
#[inline(always)]
unsafe fn nibbles<S: Simd, const V: usize>(s: S, packed: [S::Int; 4], out: Unpacked<S, V>) {
    let mask = s.splat(LOW_NIBBLES);
    for (j, v) in packed.into_iter().enumerate() {
        // SAFETY: the caller's promise that `out` can be written.
        unsafe {
            out.q(j, s.and(v, mask));
            out.q(4 + j, s.and(s.shr(v, 4), mask));
        }
    }
}

/// The same with a fifth bit: bit `i` of `high` for weight `i`.
#[inline(always)]
unsafe fn nibbles_and_bits<S: Simd, const V: usize>(s: S, packed: [S::Int; 4], high: S::Int, out: Unpacked<S, V>) {
    let mask = s.splat(LOW_NIBBLES);
    for (j, v) in packed.into_iter().enumerate() {
        // SAFETY: the caller's promise that `out` can be written.
        unsafe {
            out.q(j, s.or(s.and(v, mask), s.spread_bits(high, j as u32)));
            out.q(4 + j, s.or(s.and(s.shr(v, 4), mask), s.spread_bits(high, 4 + j as u32)));
        }
    }
}

pub(super) struct Q4_0;

impl Format for Q4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    type Kind = Zero32<15>;
    const ZERO: i32 = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 18 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = s.transpose(rows, at)[0];
            out.scale(0, s.half_to_float(head));
            nibbles(s, s.quants(rows, at + 2), out);
        }
    }
}

pub(super) struct Q4_1;

impl Format for Q4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    type Kind = Mins32<15>;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 20 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = s.transpose(rows, at)[0];
            out.scale(0, s.half_to_float(head));
            out.min(0, s.half_to_float(s.shr(head, 16)));
            nibbles(s, s.quants(rows, at + 4), out);
        }
    }
}

pub(super) struct Q5_0;

impl Format for Q5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    type Kind = Zero32<31>;
    const ZERO: i32 = 16;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 22 bytes of the block, all writes within its 32 weights.
        unsafe {
            let [head, next, ..] = s.transpose(rows, at);
            out.scale(0, s.half_to_float(head));
            let high = s.or(s.shr(head, 16), s.shl(next, 16));
            nibbles_and_bits(s, s.quants(rows, at + 6), high, out);
        }
    }
}

pub(super) struct Q5_1;

impl Format for Q5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    type Kind = Mins32<31>;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 24 bytes of the block, all writes within its 32 weights.
        unsafe {
            let [head, high, ..] = s.transpose(rows, at);
            out.scale(0, s.half_to_float(head));
            out.min(0, s.half_to_float(s.shr(head, 16)));
            nibbles_and_bits(s, s.quants(rows, at + 8), high, out);
        }
    }
}

pub(super) struct Q8_0;

impl Format for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    type Kind = Wide32;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 34 bytes of the block, all writes within its 32 weights.
        unsafe {
            let head = s.transpose(rows, at)[0];
            out.scale(0, s.half_to_float(head));
            for half in 0..2 {
                for (j, v) in s.quants(rows, at + 2 + 16 * half).into_iter().enumerate() {
                    out.q(4 * half + j, s.wide(v));
                }
            }
        }
    }
}

pub(super) struct Q2K;

impl Format for Q2K {
    const TYPE: TensorType = TensorType::Q2_K;
    type Kind = Mins16<3>;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 84 bytes of the block, all writes within its 256 weights.
        unsafe {
            let tail = s.transpose(rows, at + 68)[3];
            let d = s.half_to_float(tail);
            let minus_dmin = s.mul(s.half_to_float(s.shr(tail, 16)), s.splat_float(-1.0));
            for (j, v) in s.transpose(rows, at).into_iter().enumerate() {
                let (scales, mins) = (s.and(v, s.splat(LOW_NIBBLES)), s.and(s.shr(v, 4), s.splat(LOW_NIBBLES)));
                for i in 0..4 {
                    out.scale(4 * j + i, s.mul(d, byte(s, scales, i)));
                    out.min(4 * j + i, s.mul(minus_dmin, byte(s, mins, i)));
                }
            }
            for piece in 0..4 {
                // 16 bytes hold 16 weights of each of four groups, 32 weights apart.
                let first = 32 * (piece / 2) + 4 * (piece % 2);
                for (j, v) in s.quants(rows, at + 16 + 16 * piece).into_iter().enumerate() {
                    for pair in 0..4 {
                        let q = s.and(s.shr(v, 2 * pair as u32), s.splat(0x0303_0303));
                        out.q(first + 8 * pair + j, q);
                    }
                }
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
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 110 bytes of the block, all writes within its 256 weights.
        unsafe {
            // The last 16 bytes: 2 others, 12 of scales, 2 of d.
            let tail = s.transpose(rows, at + 94);
            let low = [s.or(s.shr(tail[0], 16), s.shl(tail[1], 16)), s.or(s.shr(tail[1], 16), s.shl(tail[2], 16))];
            let high = s.or(s.shr(tail[2], 16), s.shl(tail[3], 16));
            let d = s.half_to_float(s.shr(tail[3], 16));
            for j in 0..4 {
                // Scales 4 * j ..: four low bits in nibbles, two high bits in pairs.
                let nibbles = s.and(s.shr(low[j % 2], 4 * (j as u32 / 2)), s.splat(LOW_NIBBLES));
                let pairs = s.and(s.shr(high, 2 * j as u32), s.splat(0x0303_0303));
                let scales = s.or(nibbles, s.shl(pairs, 4));
                for i in 0..4 {
                    let scale = s.add(byte(s, scales, i), s.splat_float(-32.0));
                    out.scale(4 * j + i, s.mul(d, scale));
                }
            }
            for part in 0..2 {
                // 16 of the 32 bytes that repeat: of the mask for all 256 weights, of the pairs for 128.
                let mask = s.quants(rows, at + 16 * part);
                for half in 0..2 {
                    let pairs = s.quants(rows, at + 32 + 32 * half + 16 * part);
                    for j in 0..4 {
                        for pair in 0..4 {
                            let low = s.and(s.shr(pairs[j], 2 * pair as u32), s.splat(0x0303_0303));
                            let high = s.and(s.shr(mask[j], (4 * half + pair) as u32), s.splat(0x0101_0101));
                            out.q(32 * half + 8 * pair + 4 * part + j, s.or(low, s.shl(high, 2)));
                        }
                    }
                }
            }
        }
    }
}

/// The scales and minima that start a block of Q4_K and Q5_K.
#[inline(always)]
unsafe fn scales_and_mins<S: Simd, const V: usize>(s: S, head: [S::Int; 4], out: Unpacked<S, V>) {
    let d = s.half_to_float(head[0]);
    let minus_dmin = s.mul(s.half_to_float(s.shr(head[0], 16)), s.splat_float(-1.0));
    let (nibble, six, top) = (s.splat(LOW_NIBBLES), s.splat(0x3f3f_3f3f), s.splat(0x3030_3030));
    let scales = [s.and(head[1], six), s.or(s.and(head[3], nibble), s.and(s.shr(head[1], 2), top))];
    let mins = [s.and(head[2], six), s.or(s.and(s.shr(head[3], 4), nibble), s.and(s.shr(head[2], 2), top))];
    for group in 0..8 {
        // SAFETY: the caller's promise that `out` can be written.
        unsafe {
            out.scale(group, s.mul(d, byte(s, scales[group / 4], group % 4)));
            out.min(group, s.mul(minus_dmin, byte(s, mins[group / 4], group % 4)));
        }
    }
}

pub(super) struct Q4K;

impl Format for Q4K {
    const TYPE: TensorType = TensorType::Q4_K;
    type Kind = Mins32<15>;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 144 bytes of the block, all writes within its 256 weights.
        unsafe {
            scales_and_mins(s, s.transpose(rows, at), out);
            for piece in 0..8 {
                let first = 16 * (piece / 2) + 4 * (piece % 2);
                for (j, v) in s.quants(rows, at + 16 + 16 * piece).into_iter().enumerate() {
                    out.q(first + j, s.and(v, s.splat(LOW_NIBBLES)));
                    out.q(first + 8 + j, s.and(s.shr(v, 4), s.splat(LOW_NIBBLES)));
                }
            }
        }
    }
}

pub(super) struct Q5K;

impl Format for Q5K {
    const TYPE: TensorType = TensorType::Q5_K;
    type Kind = Mins32<31>;

    #[inline(always)]
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 176 bytes of the block, all writes within its 256 weights.
        unsafe {
            scales_and_mins(s, s.transpose(rows, at), out);
            for part in 0..2 {
                // 16 of the 32 bytes of high bits: bit g of a byte belongs to group g.
                let high = s.quants(rows, at + 16 + 16 * part);
                for pair in 0..4 {
                    let low = s.quants(rows, at + 48 + 32 * pair + 16 * part);
                    for j in 0..4 {
                        let bit = s.splat(0x1010_1010);
                        let even = s.and(s.shl(s.shr(high[j], 2 * pair as u32), 4), bit);
                        let odd = s.and(s.shl(s.shr(high[j], 2 * pair as u32 + 1), 4), bit);
                        let first = 16 * pair + 4 * part + j;
                        out.q(first, s.or(s.and(low[j], s.splat(LOW_NIBBLES)), even));
                        out.q(first + 8, s.or(s.and(s.shr(low[j], 4), s.splat(LOW_NIBBLES)), odd));
                    }
                }
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
    unsafe fn unpack<S: Simd, const V: usize>(s: S, rows: Rows, at: usize, out: Unpacked<S, V>) {
        // SAFETY: all reads are within the 210 bytes of the block, all writes within its 256 weights.
        unsafe {
            let d = s.half_to_float(s.shr(s.transpose(rows, at + 194)[3], 16));
            for (j, v) in s.transpose(rows, at + 192).into_iter().enumerate() {
                for i in 0..4 {
                    out.scale(4 * j + i, s.mul(d, signed_byte(s, v, i)));
                }
            }
            let (nibble, pair) = (s.splat(LOW_NIBBLES), s.splat(0x3030_3030));
            for half in 0..2 {
                for part in 0..2 {
                    let low0 = s.quants(rows, at + 64 * half + 16 * part);
                    let low1 = s.quants(rows, at + 64 * half + 32 + 16 * part);
                    let high = s.quants(rows, at + 128 + 32 * half + 16 * part);
                    for j in 0..4 {
                        let first = 32 * half + 4 * part + j;
                        let h = high[j];
                        out.q(first, s.or(s.and(low0[j], nibble), s.and(s.shl(h, 4), pair)));
                        out.q(first + 8, s.or(s.and(low1[j], nibble), s.and(s.shl(h, 2), pair)));
                        out.q(first + 16, s.or(s.and(s.shr(low0[j], 4), nibble), s.and(h, pair)));
                        out.q(first + 24, s.or(s.and(s.shr(low1[j], 4), nibble), s.and(s.shr(h, 2), pair)));
                    }
                }
            }
        }
    }
}
