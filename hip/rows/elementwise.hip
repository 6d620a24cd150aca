// Operations on single numbers. The grid is ceil(elements / 256) unless stated otherwise.
//
// add(x, y, elements): x += y
// scale(x, by, elements): x *= by
// softcap(x, cap, elements): x = cap * tanh(x / cap)
// glu_silu, glu_gelu (gate, up, out, q, groups, elements): act(gate) * up, to `out` (f32, may be
// gate or up) and, quantized as in quant/activations.h, to `q` and `groups`, each where not null.
// GELU is its approximation by tanh.
// gather_rows(x, rows, out, columns): out[i] = x[rows[i]]; grid (ceil(columns / 256), number of
// rows)

#include "quant/activations.h"
#include "rows/glu.h"

#define ELEMENT_THREADS 256

DEVICE u64 element() { return (u64)block_x() * ELEMENT_THREADS + thread_x(); }

KERNEL(add, ELEMENT_THREADS, (f32 *x, const f32 *y, u64 elements)) {
  begin_launch();
  u64 i = element();
  if (i < elements) x[i] += y[i];
}

KERNEL(scale, ELEMENT_THREADS, (f32 *x, f32 by, u64 elements)) {
  u64 i = element();
  if (i < elements) x[i] *= by;
}

KERNEL(softcap, ELEMENT_THREADS, (f32 *x, f32 cap, u64 elements)) {
  u64 i = element();
  if (i < elements) x[i] = cap * tanh_fast(x[i] / cap);
}

template <class Activation>
DEVICE void glu(const f32 *gate, const f32 *up, f32 *out, i8 *q, u32 *groups, u64 elements) {
  begin_launch();
  u64 i = element();
  bool active = i < elements;
  f32 value = active ? Activation::apply(gate[i]) * up[i] : 0.0f;
  if (out && active) out[i] = value;
  if (q) store_quantized(value, i, active, q, groups);
}

KERNEL(glu_silu, ELEMENT_THREADS,
       (const f32 *gate, const f32 *up, f32 *out, i8 *q, u32 *groups, u64 elements)) {
  glu<Silu>(gate, up, out, q, groups, elements);
}

KERNEL(glu_gelu, ELEMENT_THREADS,
       (const f32 *gate, const f32 *up, f32 *out, i8 *q, u32 *groups, u64 elements)) {
  glu<Gelu>(gate, up, out, q, groups, elements);
}

KERNEL(gather_rows, ELEMENT_THREADS, (const f32 *x, const u32 *rows, f32 *out, u32 columns)) {
  begin_launch();
  u32 column = block_x() * ELEMENT_THREADS + thread_x();
  if (column < columns) out[(u64)block_y() * columns + column] = x[(u64)rows[block_y()] * columns + column];
}
