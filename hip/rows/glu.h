// The gates of gated linear units.
#pragma once

#include "common/gpu.h"

struct Silu {
  static MEMBER f32 apply(f32 x) { return x * sigmoid(x); }
};

// x / 2 * (1 + tanh u) with u = √(2/π) (x + 0.044715 x³) (Hendrycks and Gimpel, 2016), where (1 +
// tanh u) / 2 = sigmoid 2u.
struct Gelu {
  static MEMBER f32 apply(f32 x) {
    const f32 SQRT_8_OVER_PI = 1.5957691f;
    return x * sigmoid(SQRT_8_OVER_PI * mul_add(0.044715f * x * x, x, x));
  }
};
