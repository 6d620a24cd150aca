// Products of a matrix with 1 to 8 columns of activations: decoding, which reads every weight once and is bound by
// that.
//
// matvec_<type>_<n>(w, q, groups, out, bias, residual, rows, columns, count) for quantized types, with activations
// quantized as in activations.h, and matvec_<type>_<n>(w, x, out, bias, residual, rows, columns, count) for f32, f16
// and bf16, with f32 activations [count][columns]:
//
//   out[c][row] = sum over k of w[row][k] * x[c][k], + bias[row] if bias, + residual[c][row] if residual
//
// for c < count <= n, with n = 1, 2, 4, 8. `residual` may be `out`. A wave computes a row, four waves make a block:
// grid ceil(rows / 4), blocks of 4 * WAVE threads.

#include "activations.h"
#include "quant.h"

#define MATVEC_WAVES 4
#define MATVEC_THREADS (MATVEC_WAVES * WAVE)

template <u32 N>
DEVICE void finish_row(f32 *sums, f32 *out, const f32 *bias, const f32 *residual, u32 row, u32 rows, u32 count) {
  UNROLL for (u32 c = 0; c < N; c++) sums[c] = wave_sum(sums[c]);
  if (lane_id() != 0) return;
  f32 offset = bias ? bias[row] : 0.0f;
  UNROLL for (u32 c = 0; c < N; c++) {
    if (c >= count) break;
    u64 at = (u64)c * rows + row;
    f32 sum = sums[c] + offset;
    out[at] = residual ? residual[at] + sum : sum;
  }
}

template <class F, u32 N>
DEVICE void matvec_quantized(const u8 *w, const i8 *q, const u32 *groups, f32 *out, const f32 *bias,
                             const f32 *residual, u32 rows, u32 columns, u32 count) {
  u32 row = block_x() * MATVEC_WAVES + wave_id();
  if (row >= rows) return;
  const u32 UNITS = F::BLOCK / UNIT_WEIGHTS;
  u32 blocks = columns / F::BLOCK;
  F weights(w, (u64)rows * blocks);
  f32 sums[N] = {};
  for (u32 i = lane_id(); i < blocks * UNITS; i += WAVE) {
    u32 block = i / UNITS, unit = i % UNITS;
    Unit u;
    weights.unpack((u64)row * blocks + block, unit, u);
    u32 first = block * F::BLOCK + F::first(unit), second = block * F::BLOCK + F::second(unit);
    UNROLL for (u32 c = 0; c < N; c++) {
      // Columns beyond the count repeat the last one, and are not stored.
      u64 column = (u64)smaller(c, count - 1) * columns;
      const u8 *x = (const u8 *)q + column;
      i32 dot_a = dot16(u.a, load16(x + first)), dot_b = dot16(u.b, load16(x + second));
      const u32 *group = groups + column / GROUP * 2;
      u32x2 words_a = *(const u32x2 *)(group + first / GROUP * 2);
      if (F::ONE_SCALE) {
        i32 sum = half_sum(words_a[1], 0) + half_sum(words_a[1], 1);
        f32 value = u.scale_a * (f32)(dot_a + dot_b - F::ZERO * sum);
        if (F::MINS) value = mul_add(-u.min_a, (f32)sum, value);
        sums[c] = mul_add(f32_of(words_a[0]), value, sums[c]);
      } else {
        u32x2 words_b = *(const u32x2 *)(group + second / GROUP * 2);
        i32 sum_a = half_sum(words_a[1], first / 16 % 2), sum_b = half_sum(words_b[1], second / 16 % 2);
        f32 value_a = u.scale_a * (f32)(dot_a - F::ZERO * sum_a), value_b = u.scale_b * (f32)(dot_b - F::ZERO * sum_b);
        if (F::MINS) {
          value_a = mul_add(-u.min_a, (f32)sum_a, value_a);
          value_b = mul_add(-u.min_b, (f32)sum_b, value_b);
        }
        sums[c] = mul_add(f32_of(words_a[0]), value_a, mul_add(f32_of(words_b[0]), value_b, sums[c]));
      }
    }
  }
  finish_row<N>(sums, out, bias, residual, row, rows, count);
}

template <class F, u32 N>
DEVICE void matvec_floats(const u8 *w, const f32 *x, f32 *out, const f32 *bias, const f32 *residual, u32 rows,
                          u32 columns, u32 count) {
  u32 row = block_x() * MATVEC_WAVES + wave_id();
  if (row >= rows) return;
  u64 start = (u64)row * columns;
  f32 sums[N] = {};
  // Rows of whole vectors are aligned; others are read number by number.
  u32 whole = columns % 8 == 0 ? columns : 0;
  for (u32 k = lane_id() * 8; k < whole; k += WAVE * 8) {
    f32 weights[8];
    F::load8(w, start + k, weights);
    UNROLL for (u32 c = 0; c < N; c++) {
      const f32 *column = x + (u64)smaller(c, count - 1) * columns + k;
      f32x4 low = *(const f32x4 *)column, high = *(const f32x4 *)(column + 4);
      UNROLL for (u32 j = 0; j < 4; j++) sums[c] = mul_add(weights[j], low[j], sums[c]);
      UNROLL for (u32 j = 0; j < 4; j++) sums[c] = mul_add(weights[j + 4], high[j], sums[c]);
    }
  }
  for (u32 k = whole + lane_id(); k < columns; k += WAVE) {
    f32 weight = F::load(w, start + k);
    UNROLL for (u32 c = 0; c < N; c++) sums[c] = mul_add(weight, x[(u64)smaller(c, count - 1) * columns + k], sums[c]);
  }
  finish_row<N>(sums, out, bias, residual, row, rows, count);
}

#define STAMP_N(name, format, n)                                                                                       \
  KERNEL(matvec_##name##_##n, MATVEC_THREADS,                                                                          \
         (const u8 *w, const i8 *q, const u32 *groups, f32 *out, const f32 *bias, const f32 *residual, u32 rows,       \
          u32 columns, u32 count)) {                                                                                   \
    matvec_quantized<format, n>(w, q, groups, out, bias, residual, rows, columns, count);                              \
  }
#define STAMP(name, format)                                                                                            \
  STAMP_N(name, format, 1) STAMP_N(name, format, 2) STAMP_N(name, format, 4) STAMP_N(name, format, 8)
QUANTIZED_FORMATS(STAMP)
#undef STAMP_N

#define STAMP_N(name, format, n)                                                                                       \
  KERNEL(matvec_##name##_##n, MATVEC_THREADS,                                                                          \
         (const u8 *w, const f32 *x, f32 *out, const f32 *bias, const f32 *residual, u32 rows, u32 columns,            \
          u32 count)) {                                                                                                \
    matvec_floats<format, n>(w, x, out, bias, residual, rows, columns, count);                                         \
  }
FLOAT_FORMATS(STAMP)
