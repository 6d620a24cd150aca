// quantize_q8(x, q, groups, elements): activations to 8-bit integers, see quant/activations.h.
// `elements` counts those of all rows, and is a multiple of 32. Grid ceil(elements / 256).

#include "quant/activations.h"

#define QUANTIZE_THREADS 256

KERNEL(quantize_q8, QUANTIZE_THREADS, (const f32 *x, i8 *q, u32 *groups, u64 elements)) {
  begin_launch();
  u64 i = (u64)block_x() * QUANTIZE_THREADS + thread_x();
  bool active = i < elements;
  store_quantized(active ? x[i] : 0.0f, i, active, q, groups);
}
