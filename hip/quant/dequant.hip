// Rows of a matrix as f32: the embedding lookup.
//
// dequant_rows_<type>(w, ids, out, rows, columns): out[i] = row ids[i] of w, or row i where ids is
// null. Rows that w does not have become zeros. Grid (ceil(columns / 32 / 128) for quantized types
// and ceil(columns / 128) for others, number of ids).

#include "quant/formats.h"

#define DEQUANT_THREADS 128

template <class F>
DEVICE void dequant_units(const u8 *w, const u32 *ids, f32 *out, u32 rows, u32 columns) {
  u32 unit_of_row = block_x() * DEQUANT_THREADS + thread_x();
  if (unit_of_row >= columns / UNIT_WEIGHTS) return;
  u32 row = ids ? ids[block_y()] : block_y();
  u32 units = F::BLOCK / UNIT_WEIGHTS, block = unit_of_row / units, unit = unit_of_row % units;
  u32 blocks = columns / F::BLOCK;
  f32 *to = out + (u64)block_y() * columns + block * F::BLOCK;
  if (row >= rows) {
    for (u32 i = 0; i < 16; i++) to[F::first(unit) + i] = to[F::second(unit) + i] = 0.0f;
    return;
  }
  Unit values;
  F(w, (u64)rows * blocks).unpack((u64)row * blocks + block, unit, values);
  UNROLL for (u32 i = 0; i < 16; i++) {
    f32 a = values.scale_a * (f32)((i8)(values.a[i / 4] >> (i % 4 * 8)) - F::ZERO);
    f32 b = values.scale_b * (f32)((i8)(values.b[i / 4] >> (i % 4 * 8)) - F::ZERO);
    to[F::first(unit) + i] = F::MINS ? a - values.min_a : a;
    to[F::second(unit) + i] = F::MINS ? b - values.min_b : b;
  }
}

template <class F>
DEVICE void dequant_elements(const u8 *w, const u32 *ids, f32 *out, u32 rows, u32 columns) {
  u32 column = block_x() * DEQUANT_THREADS + thread_x();
  if (column >= columns) return;
  u32 row = ids ? ids[block_y()] : block_y();
  out[(u64)block_y() * columns + column] = row < rows ? F::load(w, (u64)row * columns + column) : 0.0f;
}

#define STAMP(name, format)                                                                                            \
  KERNEL(dequant_rows_##name, DEQUANT_THREADS,                                                                         \
         (const u8 *w, const u32 *ids, f32 *out, u32 rows, u32 columns)) {                                             \
    dequant_units<format>(w, ids, out, rows, columns);                                                                 \
  }
QUANTIZED_FORMATS(STAMP)
#undef STAMP

#define STAMP(name, format)                                                                                            \
  KERNEL(dequant_rows_##name, DEQUANT_THREADS,                                                                         \
         (const u8 *w, const u32 *ids, f32 *out, u32 rows, u32 columns)) {                                             \
    dequant_elements<format>(w, ids, out, rows, columns);                                                              \
  }
FLOAT_FORMATS(STAMP)
