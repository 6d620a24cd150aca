// Root mean square norms (Zhang and Sennrich, 2019): x / sqrt(mean(x²) + eps) * weight.
//
// rms_norm(x, add, weight, out, q, groups, columns, eps): for each row of x [rows][columns]. Where
// `add` is not null, it is first added to x in place (the residual stream). The result goes to
// `out` (f32, may be x where nothing is added) and, quantized as in quant/activations.h, to `q` and
// `groups`, each where not null. For the latter `columns` is a multiple of 32. Grid (rows), blocks
// of 1024: with one row, the time is that of one thread's elements.
//
// head_norm(x, weight, heads, columns, eps): in place, for each of `heads` heads of `columns`
// columns, which follow each other in memory. A wave takes a head: grid ceil(heads / 4), blocks of
// 4 * WAVE threads.

#include "quant/activations.h"

#define NORM_THREADS 1024
#define HEAD_NORM_WAVES 4

// Four elements of a row, zeros beyond it. Rows of whole fours are aligned; others are read one by
// one.
DEVICE f32x4 load4(const f32 *row, u32 i, u32 columns) {
  if (columns % 4 == 0) return i < columns ? *(const f32x4 *)(row + i) : f32x4{};
  f32x4 values = {};
  UNROLL for (u32 k = 0; k < 4; k++) values[k] = i + k < columns ? row[i + k] : 0.0f;
  return values;
}

DEVICE void store4(f32 *row, u32 i, u32 columns, f32x4 values) {
  if (columns % 4 == 0) {
    if (i < columns) *(f32x4 *)(row + i) = values;
    return;
  }
  UNROLL for (u32 k = 0; k < 4; k++) {
    if (i + k < columns) row[i + k] = values[k];
  }
}

KERNEL(rms_norm, NORM_THREADS,
       (f32 *x, const f32 *add, const f32 *weight, f32 *out, i8 *q, u32 *groups, u32 columns, f32 eps)) {
  SHARED f32 scratch[NORM_THREADS / WAVE];
  begin_launch();
  const u32 STEP = NORM_THREADS * 4;
  u64 start = (u64)block_x() * columns;
  f32 *row = x + start;
  f32 squares = 0.0f;
  // The last elements stay in registers. Most rows have no others.
  f32x4 last = {};
  for (u32 i = thread_x() * 4; i < columns; i += STEP) {
    last = load4(row, i, columns);
    if (add) store4(row, i, columns, last += load4(add + start, i, columns));
    UNROLL for (u32 k = 0; k < 4; k++) squares = mul_add(last[k], last[k], squares);
  }
  f32 mean = block_sum<NORM_THREADS>(squares, scratch) / (f32)columns;
  f32 factor = 1.0f / square_root(mean + eps);
  // Each thread returns to the elements that it added to. Whole waves continue, because
  // quantization needs all lanes.
  for (u32 first = 0; first < columns; first += STEP) {
    u32 i = first + thread_x() * 4;
    f32x4 value = i + STEP < columns ? load4(row, i, columns) : last;
    value = value * factor * load4(weight, i, columns);
    if (out) store4(out + start, i, columns, value);
    if (q) store_quantized(value, start + i, i < columns, q, groups);
  }
}

KERNEL(head_norm, HEAD_NORM_WAVES *WAVE, (f32 *x, const f32 *weight, u32 heads, u32 columns, f32 eps)) {
  u32 head = block_x() * HEAD_NORM_WAVES + wave_id();
  if (head >= heads) return;
  f32 *row = x + (u64)head * columns;
  f32 squares = 0.0f;
  for (u32 i = lane_id(); i < columns; i += WAVE) squares = mul_add(row[i], row[i], squares);
  f32 factor = 1.0f / square_root(wave_sum(squares) / (f32)columns + eps);
  for (u32 i = lane_id(); i < columns; i += WAVE) row[i] = row[i] * factor * weight[i];
}
