// Causal attention over the paged cache, softmax(softcap(scale * q kᵀ) + mask) v, with an online softmax in f32
// (Milakov and Gimelshein, 2018; Dao et al., 2022). Query head h reads key-value head h / (heads / kv_heads); a query
// at position p sees the positions up to p, and from p + 1 - window on where window is not 0. `softcap` 0 is none.
//
// Parameters in common: q [tokens][heads][k_dim], out [tokens][heads][v_dim]; the cache as in kv.h and rope.hip.
#pragma once

#include "kv.h"

#define LOG2_E 1.44269504f
// Where a running maximum starts: below any score, but finite, so that no difference is NaN.
#define LOWEST (-1e30f)

struct Shape {
  u32 heads, kv_heads, k_dim, v_dim;
  MEMBER u32 group() const { return heads / kv_heads; }
};

// What a score needs: softmax is computed in powers of two.
struct Scoring {
  f32 query_factor, cap;
  MEMBER Scoring(f32 scale, f32 softcap)
      : query_factor(softcap > 0.0f ? scale / softcap : scale * LOG2_E),
        cap(softcap > 0.0f ? softcap * LOG2_E : 0.0f) {}
  MEMBER f32 finish(f32 dot) const { return cap > 0.0f ? cap * tanh_fast(dot) : dot; }
};

// What a weight of the softmax is measured from on its way to matrix cores, as a half: exp2(score - base). The largest
// is 2^14, so that weights are normal halves down to 2^-28 of it. Those below are lost on gfx90a, whose matrix cores take
// subnormal halves for zeros, and thousands of them weigh. Sums of weights are as much larger, which divides out.
// NVIDIA's GPUs read all halves; their weights stay at 1 and below.
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
