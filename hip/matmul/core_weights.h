// Weights as f16, for matrix cores: how units (quant/formats.h) get from device memory to
// fragments.
//
// The error of a weight is at most about 2^-10 of the largest weight that its scale and minimum
// allow. Beyond 65504 f16 becomes infinite.
#pragma once

#include "quant/formats.h"

// Sixteen weights of a run as two chunks of halves.
template <class F> DEVICE void store_run(const u32 q[4], f32 scale, f32 min, u32x4 *low, u32x4 *high) {
  const u32 ZERO = F::SIGNED ? 128 : F::ZERO;
  const u32 OFFSET = (0x6400u + ZERO) * 0x10001u;
  u32 scales = pack_halves(scale, scale), mins = F::MINS ? pack_halves(-min, -min) : 0;
  u32x4 chunks[2];
  UNROLL for (u32 i = 0; i < 4; i++) {
    u32 bytes = F::SIGNED ? q[i] ^ 0x80808080u : q[i];
    u32 first = half2_sub(halves_of_bytes<0>(bytes), OFFSET), second = half2_sub(halves_of_bytes<1>(bytes), OFFSET);
    chunks[i / 2][i % 2 * 2] = half2_mul_add(first, scales, mins);
    chunks[i / 2][i % 2 * 2 + 1] = half2_mul_add(second, scales, mins);
  }
  *low = chunks[0];
  *high = chunks[1];
}

// Quantized weights.
template <class F> struct CoreWeights {
  F format;
  MEMBER CoreWeights(const u8 *w, u32 rows, u32 columns) : format(w, (u64)rows * (columns / F::BLOCK)) {}
  static constexpr u32 UNITS_OF_BLOCK = F::BLOCK / UNIT_WEIGHTS;
  // The place of half `half` (0 or 1) of run `run` of a unit in its row.
  static MEMBER u32 place(u32 unit, u32 run, u32 half) {
    u32 in_block = unit % UNITS_OF_BLOCK;
    return unit / UNITS_OF_BLOCK * F::BLOCK + (run == 0 ? F::first(in_block) : F::second(in_block)) + half * 8;
  }
  typedef typename F::Raw Raw;
  // Unit `unit` of block `block`, counted over all rows.
  MEMBER void load(u32 block, u32 unit, Raw &raw) const { raw = format.fetch(block, unit); }
  // The data that units of a block share.
  static MEMBER void share(Raw &raw, const Raw &other) { F::share(raw, other); }
  // The words of a run.
  static MEMBER void expand_run(const Raw &raw, u32 unit, u32 run, u32 words[8]) {
    Unit u;
    F::decode(raw, unit, u);
    u32x4 low, high;
    if (run == 0) store_run<F>(u.a, u.scale_a, F::MINS ? u.min_a : 0.0f, &low, &high);
    else store_run<F>(u.b, u.scale_b, F::MINS ? u.min_b : 0.0f, &low, &high);
    UNROLL for (u32 i = 0; i < 4; i++) words[i] = low[i], words[4 + i] = high[i];
  }
  // Stores the unit's four chunks.
  static MEMBER void expand(const Raw &raw, u32 unit, u32x4 *const to[4]) {
    Unit u;
    F::decode(raw, unit, u);
    store_run<F>(u.a, u.scale_a, F::MINS ? u.min_a : 0.0f, to[0], to[1]);
    store_run<F>(u.b, u.scale_b, F::MINS ? u.min_b : 0.0f, to[2], to[3]);
  }
};

// Weights of two bytes. Weights of bf16 lose bits below the normal numbers of f16, 6e-5, and are 0
// below 3e-8.
template <class F> struct CoreFloats {
  static constexpr u32 UNITS_OF_BLOCK = 1;
  const u8 *w;
  MEMBER CoreFloats(const u8 *start, u32, u32) : w(start) {}
  static MEMBER u32 place(u32 unit, u32 run, u32 half) { return unit * UNIT_WEIGHTS + run * 16 + half * 8; }
  struct Raw {
    u32x4 chunks[4];
  };
  MEMBER void load(u32 block, u32, Raw &raw) const {
    const u8 *from = w + (u64)block * UNIT_WEIGHTS * 2;
    UNROLL for (u32 i = 0; i < 4; i++) raw.chunks[i] = load16(from + 16 * i);
  }
  static MEMBER void share(Raw &, const Raw &) {}
  static MEMBER void expand_run(const Raw &raw, u32, u32 run, u32 words[8]) {
    UNROLL for (u32 i = 0; i < 8; i++) words[i] = F::halves(raw.chunks[run * 2 + i / 4][i % 4]);
  }
  static MEMBER void expand(const Raw &raw, u32, u32x4 *const to[4]) {
    UNROLL for (u32 i = 0; i < 4; i++) {
      u32x4 chunk = raw.chunks[i];
      UNROLL for (u32 k = 0; k < 4; k++) chunk[k] = F::halves(chunk[k]);
      *to[i] = chunk;
    }
  }
};
struct CoreF16 {
  static MEMBER u32 halves(u32 pair) { return pair; }
};
struct CoreBF16 {
  static MEMBER u32 halves(u32 pair) { return pack_halves(f32_of(pair << 16), f32_of(pair & 0xffff0000u)); }
};

// The reader of a format of quant/formats.h, for MATMUL_CORE.
template <class F> struct ReaderOf {
  typedef CoreWeights<F> Type;
};
template <> struct ReaderOf<F16> {
  typedef CoreFloats<CoreF16> Type;
};
template <> struct ReaderOf<BF16> {
  typedef CoreFloats<CoreBF16> Type;
};
template <class F> using WeightsOf = typename ReaderOf<F>::Type;
