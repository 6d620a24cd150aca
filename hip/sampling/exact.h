// Arithmetic of draws, equal to that of the CPU's sampler (src/sampler/math.rs).
#pragma once

#include "common/gpu.h"

#define INFINITE 0x7f800000u
#define NONE 0xffffffffu
// 2^12: numbers from here on have the grid of weights.
#define GRID 4096.0

// exp(x) for -40 <= x <= 0. Smaller numbers and NaN count as -40. See src/sampler/math.rs.
DEVICE f32 exp_exact(f32 x) {
  const f32 ROUND = 12582912.0f, LN2_HIGH = 0.6933594f, LN2_LOW = -2.1219444e-4f, LOG2_E = 1.44269504f;
  x = x > -40.0f ? x : -40.0f;
  f32 rounded = x * LOG2_E + ROUND;
  f32 n = rounded - ROUND;
  f32 r = (x - n * LN2_HIGH) - n * LN2_LOW;
  f32 q = (((1.381454e-3f * r + 8.368745e-3f) * r + 4.166839e-2f) * r + 0.1666652f) * r + 0.49999993f;
  f32 mantissa = (q * (r * r) + r) + 1.0f;
  return f32_of(bits_of(mantissa) + (bits_of(rounded) << 23));
}

// The weight of a candidate at a distance x <= 0 from the best one: exp(x) in units of 2^-40.
DEVICE u64 weight(f32 x) { return bits_of((f64)exp_exact(x) + GRID) - bits_of(GRID); }

// The high half of a product.
DEVICE u64 multiply_high(u64 a, u64 b) {
  u64 a_low = (u32)a, a_high = a >> 32, b_low = (u32)b, b_high = b >> 32;
  u64 low = a_low * b_low, middle = a_high * b_low + (low >> 32), other = a_low * b_high + (u32)middle;
  return a_high * b_high + (middle >> 32) + (other >> 32);
}

// Philox4x32-10 (Salmon et al., 2011): 64 random bits for a step.
DEVICE u64 uniform(u64 seed, u64 step) {
  u32 c0 = (u32)step, c1 = (u32)(step >> 32), c2 = 0, c3 = 0, k0 = (u32)seed, k1 = (u32)(seed >> 32);
  for (u32 round = 0; round < 10; round++) {
    u64 a = (u64)c0 * 0xd2511f53u, b = (u64)c2 * 0xcd9e8d57u;
    c0 = (u32)(b >> 32) ^ c1 ^ k0;
    c1 = (u32)b;
    c2 = (u32)(a >> 32) ^ c3 ^ k1;
    c3 = (u32)a;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return (u64)c1 << 32 | c0;
}

// A token and its logit as one number, whose order is the rank: higher logits first, and lower
// tokens first among equals.
DEVICE u64 candidate(u32 token, f32 logit) {
  u32 bits = bits_of(logit + 0.0f);
  u32 ascending = bits >> 31 ? ~bits : bits | 1u << 31;
  return (u64)~ascending << 32 | token;
}
DEVICE f32 logit_of(u64 candidate) {
  u32 ascending = ~(u32)(candidate >> 32);
  return f32_of(ascending >> 31 ? ascending ^ 1u << 31 : ~ascending);
}

DEVICE f32 lowest_finite() { return f32_of(0xff7fffffu); }
DEVICE f32 minus_infinity() { return f32_of(0xff800000u); }
// +infinity counts as the largest finite number.
DEVICE f32 without_infinity(f32 logit) { return bits_of(logit) == INFINITE ? f32_of(0x7f7fffffu) : logit; }

// The part `fraction` of `total`, rounded up, and at least 1.
DEVICE u64 share(f32 fraction, u64 total) {
  return larger((u64)round_toward_infinity((f64)fraction * (f64)total), (u64)1);
}
