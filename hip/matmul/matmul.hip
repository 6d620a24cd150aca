// Products of a matrix with many columns of activations: prompts. Weights and activations go
// through shared memory in tiles, and integer dot products multiply them.
//
// matmul_<type>(w, q, groups, out, bias, residual, rows, columns, count) for quantized types and
// matmul_<type>(w, x, out, bias, residual, rows, columns, count) for f32, f16 and bf16: parameters
// and result as those of matvec.hip, for any `count`. A block computes 64 rows of w for 64 columns:
// grid (ceil(rows / 64), ceil(count / 64)).

#include "quant/activations.h"
#include "quant/formats.h"

#define MATMUL_THREADS 256
#define TILE 64
// A thread computes 4 x 4 results: rows thread % 16 + 16 i and columns thread / 16 + 16 j of the
// tile.
#define PER_THREAD 4

DEVICE void store_results(f32 sums[PER_THREAD][PER_THREAD], f32 *out, const f32 *bias, const f32 *residual, u32 rows,
                          u32 count) {
  UNROLL for (u32 j = 0; j < PER_THREAD; j++) {
    u32 column = block_y() * TILE + thread_x() / 16 + 16 * j;
    if (column >= count) break;
    UNROLL for (u32 i = 0; i < PER_THREAD; i++) {
      u32 row = block_x() * TILE + thread_x() % 16 + 16 * i;
      if (row >= rows) break;
      u64 at = (u64)column * rows + row;
      f32 sum = sums[i][j] + (bias ? bias[row] : 0.0f);
      out[at] = residual ? residual[at] + sum : sum;
    }
  }
}

template <class F>
DEVICE void matmul_quantized(const u8 *w, const i8 *q, const u32 *groups, f32 *out, const f32 *bias,
                             const f32 *residual, u32 rows, u32 columns, u32 count) {
  // The units and the runs of a step.
  const u32 UNITS = 2, RUNS = 2 * UNITS;
  // Rows are 20 words apart, a multiple of 16 bytes that spreads them over the banks.
  const u32 ROW_WORDS = RUNS * 4 + 4;
  SHARED __attribute__((aligned(16))) u32 tile_w[TILE][ROW_WORDS], tile_x[TILE][ROW_WORDS];
  SHARED f32 scales[RUNS][TILE], mins[RUNS][TILE], x_scales[RUNS][TILE];
  SHARED i32 x_sums[RUNS][TILE];

  u32 blocks = columns / F::BLOCK, units = columns / UNIT_WEIGHTS, units_of_block = F::BLOCK / UNIT_WEIGHTS;
  F weights(w, (u64)rows * blocks);
  f32 sums[PER_THREAD][PER_THREAD] = {};
  u32 row = thread_x() % 16, column = thread_x() / 16;
  for (u32 step = 0; step < units; step += UNITS) {
    // Threads 0 to 127 each unpack a unit of a row of weights, the others load the same unit of a
    // column of activations. Everything beyond the edges is zero.
    u32 line = thread_x() % TILE, part = thread_x() / TILE % UNITS, unit = step + part;
    u32 block = unit / units_of_block, unit_of_block = unit % units_of_block;
    if (thread_x() < TILE * UNITS) {
      Unit u = {};
      u32 row_of_w = block_x() * TILE + line;
      if (row_of_w < rows && unit < units) weights.unpack((u64)row_of_w * blocks + block, unit_of_block, u);
      UNROLL for (u32 i = 0; i < 4; i++) {
        tile_w[line][part * 8 + i] = u.a[i];
        tile_w[line][part * 8 + 4 + i] = u.b[i];
      }
      scales[part * 2][line] = u.scale_a;
      scales[part * 2 + 1][line] = u.scale_b;
      if (F::MINS) {
        mins[part * 2][line] = u.min_a;
        mins[part * 2 + 1][line] = u.min_b;
      }
    } else {
      u32 column_of_x = block_y() * TILE + line;
      bool inside = column_of_x < count && unit < units;
      UNROLL for (u32 run = 0; run < 2; run++) {
        u32 at = block * F::BLOCK + (run == 0 ? F::first(unit_of_block) : F::second(unit_of_block));
        u32x4 values = {};
        u32x2 words = {};
        if (inside) {
          u64 start = (u64)column_of_x * columns;
          values = load16((const u8 *)q + start + at);
          words = *(const u32x2 *)(groups + (start + at) / GROUP * 2);
        }
        UNROLL for (u32 i = 0; i < 4; i++) tile_x[line][part * 8 + run * 4 + i] = values[i];
        x_scales[part * 2 + run][line] = f32_of(words[0]);
        x_sums[part * 2 + run][line] = half_sum(words[1], at / 16 % 2);
      }
    }
    barrier();
    UNROLL_BY(1) for (u32 run = 0; run < RUNS; run++) {
      u32x4 a[PER_THREAD], b[PER_THREAD];
      f32 scale[PER_THREAD], min[PER_THREAD];
      UNROLL for (u32 i = 0; i < PER_THREAD; i++) {
        a[i] = *(const u32x4 *)&tile_w[row + 16 * i][run * 4];
        b[i] = *(const u32x4 *)&tile_x[column + 16 * i][run * 4];
        scale[i] = scales[run][row + 16 * i];
        min[i] = F::MINS ? mins[run][row + 16 * i] : 0.0f;
      }
      UNROLL for (u32 j = 0; j < PER_THREAD; j++) {
        f32 x_scale = x_scales[run][column + 16 * j];
        i32 x_sum = x_sums[run][column + 16 * j];
        UNROLL for (u32 i = 0; i < PER_THREAD; i++) {
          i32 dot = -F::ZERO * x_sum;
          UNROLL for (u32 k = 0; k < 4; k++) dot = dot4(a[i][k], b[j][k], dot);
          f32 value = scale[i] * (f32)dot;
          if (F::MINS) value = mul_add(-min[i], (f32)x_sum, value);
          sums[i][j] = mul_add(x_scale, value, sums[i][j]);
        }
      }
    }
    barrier();
  }
  store_results(sums, out, bias, residual, rows, count);
}

template <class F>
DEVICE void matmul_floats(const u8 *w, const f32 *x, f32 *out, const f32 *bias, const f32 *residual, u32 rows,
                          u32 columns, u32 count) {
  const u32 DEPTH = 16;
  SHARED f32 tile_w[DEPTH][TILE + 1], tile_x[DEPTH][TILE + 1];
  f32 sums[PER_THREAD][PER_THREAD] = {};
  u32 row = thread_x() % 16, column = thread_x() / 16;
  for (u32 start = 0; start < columns; start += DEPTH) {
    // Zeros beyond the edges.
    u32 k = thread_x() % DEPTH;
    UNROLL for (u32 i = 0; i < PER_THREAD; i++) {
      u32 line = thread_x() / DEPTH + 16 * i, row_of_w = block_x() * TILE + line, column_of_x = block_y() * TILE + line;
      bool inside = start + k < columns;
      tile_w[k][line] = inside && row_of_w < rows ? F::load(w, (u64)row_of_w * columns + start + k) : 0.0f;
      tile_x[k][line] = inside && column_of_x < count ? x[(u64)column_of_x * columns + start + k] : 0.0f;
    }
    barrier();
    UNROLL_BY(4) for (u32 depth = 0; depth < DEPTH; depth++) {
      f32 a[PER_THREAD], b[PER_THREAD];
      UNROLL for (u32 i = 0; i < PER_THREAD; i++) {
        a[i] = tile_w[depth][row + 16 * i];
        b[i] = tile_x[depth][column + 16 * i];
      }
      UNROLL for (u32 i = 0; i < PER_THREAD; i++) {
        UNROLL for (u32 j = 0; j < PER_THREAD; j++) sums[i][j] = mul_add(a[i], b[j], sums[i][j]);
      }
    }
    barrier();
  }
  store_results(sums, out, bias, residual, rows, count);
}

#define STAMP(name, format)                                                                                            \
  KERNEL(matmul_##name, MATMUL_THREADS,                                                                                \
         (const u8 *w, const i8 *q, const u32 *groups, f32 *out, const f32 *bias, const f32 *residual, u32 rows,       \
          u32 columns, u32 count)) {                                                                                   \
    matmul_quantized<format>(w, q, groups, out, bias, residual, rows, columns, count);                                 \
  }
QUANTIZED_FORMATS(STAMP)
#undef STAMP

#define STAMP(name, format)                                                                                            \
  KERNEL(matmul_##name, MATMUL_THREADS,                                                                                \
         (const u8 *w, const f32 *x, f32 *out, const f32 *bias, const f32 *residual, u32 rows, u32 columns,            \
          u32 count)) {                                                                                                \
    matmul_floats<format>(w, x, out, bias, residual, rows, columns, count);                                            \
  }
FLOAT_FORMATS(STAMP)
