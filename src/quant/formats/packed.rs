//! How Q4_K and Q5_K pack scales, minima and levels.

use crate::quant::unpack::Sink;
use crate::simd::lanes::{Lanes, byte, high, low};

/// The 6-bit scale and minimum of group `j` (of 8) of a [`BlockQ4K`] or [`BlockQ5K`].
///
/// Bytes 0..4 hold the scales of groups 0..4 in their low 6 bits, bytes 4..8 the minima likewise. Groups 4..8 have their
/// low nibbles in bytes 8..12 (scale low, minimum high), and bits 4 and 5 in the top bits of bytes 0..4 and 4..8.
#[inline]
pub(super) fn scale_min_k4(j: usize, scales: &[u8; 12]) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        ((low & 15) | (scales[j - 4] >> 6 << 4), (low >> 4) | (scales[j] >> 6 << 4))
    }
}

/// The inverse of [`scale_min_k4`]: packs 6-bit scales and minima.
pub(super) fn pack_scales_mins_k4(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4 << 6);
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4 << 6);
        packed[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] << 4);
    }
    packed
}

/// Packs the nibbles of Q4_K and Q5_K: of each 64 levels, the first 32 go into low nibbles and the
/// others into high ones.
pub(super) fn pack_nibble_pairs(q: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|i| {
        let first = i / 32 * 64 + i % 32;
        (q[first] & 15) | q[first + 32] << 4
    })
}

/// The scales and minima that start a block of Q4_K and Q5_K.
pub(super) struct Heads<S: Lanes> {
    d: S::Float,
    minus_dmin: S::Float,
    scales: [S::Int; 2],
    mins: [S::Int; 2],
}

impl<S: Lanes> Heads<S> {
    #[inline(always)]
    pub(super) fn new(s: S, head: [S::Int; 4]) -> Self {
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
    pub(super) unsafe fn end(&self, s: S, half: usize, group: usize, out: &mut impl Sink<S>) {
        let scale = s.mul(self.d, byte(s, self.scales[0], group));
        let min = s.mul(self.minus_dmin, byte(s, self.mins[0], group));
        // SAFETY: the caller's promise that `out` takes the group.
        unsafe { out.end(4 * half + group, scale, Some(min)) }
    }

    /// Goes on to the second half.
    #[inline(always)]
    pub(super) fn next_half(&mut self) {
        self.scales.swap(0, 1);
        self.mins.swap(0, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_scales_round_trip() {
        // 37 is coprime to 64, so every group sees many of the 6-bit values, no two neighbours the same.
        for start in 0..64_u8 {
            let value = |i: usize| (start as usize + 37 * i) as u8 % 64;
            let (scales, mins) = (std::array::from_fn(value), std::array::from_fn(|j| value(j + 8)));
            let packed = pack_scales_mins_k4(&scales, &mins);
            for j in 0..8 {
                assert_eq!(scale_min_k4(j, &packed), (scales[j], mins[j]), "group {j} of {packed:?}");
            }
        }
    }
}
