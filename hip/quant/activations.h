// Activations as 8-bit integers, which quantized weights are multiplied with. x = scale * q, with a
// scale for each group of 32 and q in -127..=127. The CPU computes the same numbers.
//
// Device memory holds q as i8 [rows][columns], and two words for each group, [rows][columns / 32]:
// the scale (f32), and the sums of the first and the last 16 q (i16 each, the first in the low
// half). Formats with a zero point or a minimum need the sums.
#pragma once

#include "common/gpu.h"

#define GROUP 32

// The scale of a group, from its largest magnitude, and the factor that brings its numbers to
// -127..=127.
struct GroupScale {
  f32 scale, inverse;
  MEMBER GroupScale(f32 max) {
    // A model cannot tell numbers this small from zero, and their reciprocals could overflow.
    bool zero = max < 1e-30f;
    inverse = zero ? 0.0f : 127.0f / max;
    scale = zero ? 0.0f : max / 127.0f;
  }
  MEMBER i32 quantize(f32 x) const {
    // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits.
    const f32 ROUND = 12582912.0f;
    return (i8)(bits_of(x * inverse + ROUND) - bits_of(ROUND));
  }
};

// Magnitudes as integers. They are ordered as the numbers are, with infinity and then NaN at the
// end, so that the scale shows whether all is finite.
DEVICE u32 magnitude_bits(f32 x) { return bits_of(x) & 0x7fffffffu; }

DEVICE void store_group(const GroupScale &group, i32 sum, i32 other, u64 i, u32 *groups) {
  u32x2 words = {bits_of(group.scale), ((u32)sum & 0xffffu) | (u32)other << 16};
  *(u32x2 *)(groups + i / GROUP * 2) = words;
}

// Stores element `i`, counted over all rows. One of the 32 lanes of a group also stores its words.
// All lanes of the wave call it together; groups without elements pass `active` as false.
DEVICE void store_quantized(f32 x, u64 i, bool active, i8 *q, u32 *groups) {
  GroupScale group(f32_of(wave_max(magnitude_bits(x), GROUP)));
  i32 quantized = group.quantize(x);
  i32 sum = wave_sum(quantized, GROUP / 2), other = shuffle_xor(sum, GROUP / 2);
  if (!active) return;
  q[i] = (i8)quantized;
  if (i % GROUP == 0) store_group(group, sum, other, i, groups);
}

// The same for four elements from `i` on, a multiple of 4, so that 8 lanes share a group.
DEVICE void store_quantized(f32x4 x, u64 i, bool active, i8 *q, u32 *groups) {
  u32 max = 0, word = 0;
  UNROLL for (u32 k = 0; k < 4; k++) max = larger(max, magnitude_bits(x[k]));
  GroupScale group(f32_of(wave_max(max, GROUP / 4)));
  i32 sum = 0;
  UNROLL for (u32 k = 0; k < 4; k++) {
    i32 quantized = group.quantize(x[k]);
    sum += quantized;
    word |= ((u32)quantized & 255) << (8 * k);
  }
  sum = wave_sum(sum, GROUP / 8);
  i32 other = shuffle_xor(sum, GROUP / 8);
  if (!active) return;
  *(u32_alias *)(q + i) = word;
  if (i % GROUP == 0) store_group(group, sum, other, i, groups);
}

// The sum of the first (half 0) or last 16 q of a group, from its second word.
DEVICE i32 half_sum(u32 word, u32 half) { return (i16)(word >> (16 * half)); }
