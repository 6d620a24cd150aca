// Root mean square norms (Zhang and Sennrich, 2019): x / sqrt(mean(x²) + eps) * weight.
//
// rms_norm(x, add, weight, out, q, groups, columns, eps): for each row of x [rows][columns]; where `add` is not null it
// is added to x first, in place (the residual stream). The result goes to `out` (f32, may be x where nothing is added)
// and, quantized as in activations.h, to `q` and `groups`, each where not null; for the latter `columns` is a multiple
// of 32. Grid (rows).
//
// head_norm(x, weight, heads, columns, eps): in place, for each of `heads` heads of `columns` columns, one after the
// other in memory. A wave takes a head: grid ceil(heads / 4), blocks of 4 * WAVE threads.

#include "activations.h"

#define NORM_THREADS 256
#define HEAD_NORM_WAVES 4

KERNEL(rms_norm, NORM_THREADS,
       (f32 *x, const f32 *add, const f32 *weight, f32 *out, i8 *q, u32 *groups, u32 columns, f32 eps)) {
  SHARED f32 scratch[NORM_THREADS / WAVE];
  u64 start = (u64)block_x() * columns;
  f32 squares = 0.0f;
  for (u32 i = thread_x(); i < columns; i += NORM_THREADS) {
    f32 value = x[start + i];
    if (add) x[start + i] = value += add[start + i];
    squares = mul_add(value, value, squares);
  }
  f32 mean = block_sum<NORM_THREADS>(squares, scratch) / (f32)columns;
  f32 factor = 1.0f / square_root(mean + eps);
  // Threads come back to the elements that they added to. Whole waves go on, for the sake of the quantization.
  for (u32 first = 0; first < columns; first += NORM_THREADS) {
    u32 i = first + thread_x();
    bool active = i < columns;
    f32 value = active ? x[start + i] * factor * weight[i] : 0.0f;
    if (out && active) out[start + i] = value;
    if (q) store_quantized(value, start + i, active, q, groups);
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
