// Rows to f16, for matmul/matmul_core.h: value = scale * half. Each row has a scale, a power of two
// that brings its largest magnitude to 2^14..2^15. So nothing overflows, and only numbers below
// 2^-28 of the largest have fewer than the 11 bits of f16. Numbers that are not finite stay so.
// `columns` is a multiple of 8, and halves_at in common/gpu.h gives the order of the halves. Grid
// (rows).
//
// halve_rows(x, halves, scales, columns)
// halve_silu, halve_gelu (gate, up, halves, scales, columns): a gated unit, as glu in
// rows/elementwise.hip computes it.
// halve_norm(x, add, weight, halves, scales, columns, eps): a norm, as rms_norm in rows/norm.hip
// computes it; `add` is added to x.

#include "rows/glu.h"

// A thread takes four columns at a time, and keeps its first values.
#define HALVE_THREADS 1024
#define STEP (HALVE_THREADS * 4)
#define KEPT 4

DEVICE f32x4 load4(const f32 *x, u32 i) { return *(const f32x4 *)(x + i); }

// `value(i)` computes columns i to i + 3, and gives the same each time. `kept` holds those of the
// first steps.
template <class Value>
DEVICE void halve(const f32x4 (&kept)[KEPT], const Value &value, u16 *halves, f32 *scales, u32 columns) {
  SHARED u32 scratch[HALVE_THREADS / WAVE];
  u32 max = 0;
  // The bits of magnitudes are ordered as the magnitudes are, with infinity and NaN at the end.
  auto see = [&](f32x4 four) __attribute__((always_inline)) {
    UNROLL for (u32 k = 0; k < 4; k++) max = larger(bits_of(four[k]) & 0x7fffffffu, max);
  };
  UNROLL for (u32 step = 0; step < KEPT; step++) see(kept[step]);
  for (u32 i = KEPT * STEP + thread_x() * 4; i < columns; i += STEP) see(value(i));
  max = block_max<HALVE_THREADS>(max, scratch);
  u32 exponent = halving_exponent(max);
  f32 inverse = f32_of(exponent << 23);
  auto store = [&](u32 i, f32x4 four) __attribute__((always_inline)) {
    four *= inverse;
    u32x2 words = {pack_halves(four[0], four[1]), pack_halves(four[2], four[3])};
    *(u32x2 *)(halves + halves_at(block_x(), i, columns) + i % 8) = words;
  };
  UNROLL for (u32 step = 0; step < KEPT; step++) {
    u32 i = step * STEP + thread_x() * 4;
    if (i < columns) store(i, kept[step]);
  }
  for (u32 i = KEPT * STEP + thread_x() * 4; i < columns; i += STEP) store(i, value(i));
  if (thread_x() == 0) scales[block_x()] = f32_of((254 - exponent) << 23);
}

template <class Value> DEVICE void halve(const Value &value, u16 *halves, f32 *scales, u32 columns) {
  f32x4 kept[KEPT];
  UNROLL for (u32 step = 0; step < KEPT; step++) {
    u32 i = step * STEP + thread_x() * 4;
    kept[step] = i < columns ? value(i) : f32x4{};
  }
  halve(kept, value, halves, scales, columns);
}

KERNEL(halve_rows, HALVE_THREADS, (const f32 *x, u16 *halves, f32 *scales, u32 columns)) {
  begin_launch();
  const f32 *row = x + (u64)block_x() * columns;
  halve([&](u32 i) { return load4(row, i); }, halves, scales, columns);
}

template <class Activation>
DEVICE void halve_glu(const f32 *gate, const f32 *up, u16 *halves, f32 *scales, u32 columns) {
  begin_launch();
  u64 start = (u64)block_x() * columns;
  auto value = [&](u32 i) {
    f32x4 four = load4(gate + start, i);
    UNROLL for (u32 k = 0; k < 4; k++) four[k] = Activation::apply(four[k]);
    return four * load4(up + start, i);
  };
  halve(value, halves, scales, columns);
}

KERNEL(halve_silu, HALVE_THREADS, (const f32 *gate, const f32 *up, u16 *halves, f32 *scales, u32 columns)) {
  halve_glu<Silu>(gate, up, halves, scales, columns);
}

KERNEL(halve_gelu, HALVE_THREADS, (const f32 *gate, const f32 *up, u16 *halves, f32 *scales, u32 columns)) {
  halve_glu<Gelu>(gate, up, halves, scales, columns);
}

KERNEL(halve_norm, HALVE_THREADS,
       (f32 *x, const f32 *add, const f32 *weight, u16 *halves, f32 *scales, u32 columns, f32 eps)) {
  SHARED f32 scratch[HALVE_THREADS / WAVE];
  begin_launch();
  u64 start = (u64)block_x() * columns;
  f32 *row = x + start;
  f32 squares = 0.0f;
  auto sum = [&](u32 i) __attribute__((always_inline)) {
    f32x4 four = load4(row, i) + load4(add + start, i);
    *(f32x4 *)(row + i) = four;
    UNROLL for (u32 k = 0; k < 4; k++) squares = mul_add(four[k], four[k], squares);
    return four;
  };
  f32x4 kept[KEPT];
  UNROLL for (u32 step = 0; step < KEPT; step++) {
    u32 i = step * STEP + thread_x() * 4;
    kept[step] = i < columns ? sum(i) : f32x4{};
  }
  for (u32 i = KEPT * STEP + thread_x() * 4; i < columns; i += STEP) sum(i);
  f32 factor = 1.0f / square_root(block_sum<HALVE_THREADS>(squares, scratch) / (f32)columns + eps);
  auto normed = [&](u32 i, f32x4 four) __attribute__((always_inline)) { return four * factor * load4(weight, i); };
  UNROLL for (u32 step = 0; step < KEPT; step++) {
    u32 i = step * STEP + thread_x() * 4;
    if (i < columns) kept[step] = normed(i, kept[step]);
  }
  halve(kept, [&](u32 i) { return normed(i, load4(row, i)); }, halves, scales, columns);
}
