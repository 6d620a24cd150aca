// Causal attention over the paged cache, softmax(softcap(scale * q kᵀ) + mask) v, with an online
// softmax in f32 (Milakov and Gimelshein, 2018; Dao et al., 2022). Query head h reads key-value
// head h / (heads / kv_heads). A query at position p sees the positions up to p, from p + 1 -
// window on if window is not 0. A `softcap` of 0 is none.
//
// Parameters that all kernels share: q [tokens][heads][k_dim], out [tokens][heads][v_dim], and the
// cache as in kv.h and rope.hip.
#pragma once

#include "attention/kv.h"

#define LOG2_E 1.44269504f
// A running maximum starts below any score. It is finite, so that no difference is NaN.
#define LOWEST (-1e30f)

struct Shape {
  u32 heads, kv_heads, k_dim, v_dim;
  MEMBER u32 group() const { return heads / kv_heads; }
};

// How scores are computed. The softmax uses powers of two.
struct Scoring {
  f32 query_factor, cap;
  MEMBER Scoring(f32 scale, f32 softcap)
      : query_factor(softcap > 0.0f ? scale / softcap : scale * LOG2_E),
        cap(softcap > 0.0f ? softcap * LOG2_E : 0.0f) {}
  MEMBER f32 finish(f32 dot) const { return cap > 0.0f ? cap * tanh_fast(dot) : dot; }
};

// The base of the softmax weights that go to matrix cores as halves: exp2(score - base). The
// largest weight is 2^14, so that weights are normal halves down to 2^-28 of it. Matrix cores of
// gfx90a take subnormal halves for zeros, and thousands of those together matter. The sums of the
// weights grow by the same factor, which divides out. NVIDIA GPUs read all halves, so their weights
// are at most 1.
DEVICE f32 weight_base(f32 highest) {
#if GPU_NVIDIA
  return highest;
#else
  return highest - 14.0f;
#endif
}

// The first position that a query sees.
DEVICE u32 first_visible(u32 position, u32 window) {
  return window && position + 1 > window ? position + 1 - window : 0;
}
