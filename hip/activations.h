// Activations as 8-bit integers: what quantized weights are multiplied with. x = scale * q, with a scale for each group
// of 32 and q in -127..=127; the arithmetic is that of the CPU's.
//
// Device memory holds q as i8 [rows][columns], and for each group two words [rows][columns / 32]: the scale (f32), and
// the sums of the first and last 16 q (i16 each, the first in the low half), which formats with a zero point or a
// minimum need.
#pragma once

#include "gpu.h"

#define GROUP 32

struct Group {
  i32 q;
  f32 scale;
  // The sum of the q of this lane's half.
  i32 sum;
};

// 32 neighbouring lanes quantize a group, each its own element. All lanes of the wave call it together.
DEVICE Group quantize_group(f32 x) {
  // The bits of magnitudes are ordered as the magnitudes are, with infinity and then NaN at the end: what is not finite
  // shows in the scale.
  f32 max = f32_of(wave_max(bits_of(x) & 0x7fffffffu, GROUP));
  // Numbers so small are zeros to the model, and their reciprocals could overflow.
  bool zero = max < 1e-30f;
  f32 inverse = zero ? 0.0f : 127.0f / max;
  // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits.
  const f32 ROUND = 12582912.0f;
  Group group;
  group.q = (i8)(bits_of(x * inverse + ROUND) - bits_of(ROUND));
  group.scale = zero ? 0.0f : max / 127.0f;
  group.sum = wave_sum(group.q, GROUP / 2);
  return group;
}

// Stores element `i` (counted over all rows) and, by one lane of the 32, the words of its group. All lanes of the wave
// call it together; those without an element pass `active` as false for whole groups.
DEVICE void store_quantized(f32 x, u64 i, bool active, i8 *q, u32 *groups) {
  Group group = quantize_group(x);
  u32 other = (u32)shuffle_xor(group.sum, GROUP / 2);
  if (!active) return;
  q[i] = (i8)group.q;
  if (i % GROUP == 0) {
    u32x2 words = {bits_of(group.scale), ((u32)group.sum & 0xffffu) | other << 16};
    *(u32x2 *)(groups + i / GROUP * 2) = words;
  }
}

// The sum of the first (half 0) or last 16 q of a group, from its second word.
DEVICE i32 half_sum(u32 word, u32 half) { return (i16)(word >> (16 * half)); }
