// Products of a matrix with many columns of activations on matrix cores: prompts, and many
// sequences that decode together. Each type is a family of its own, so that a model loads only the
// kernels that it needs; matmul_core_TYPE.hip.template generates them. Families are empty for
// targets without matrix cores, which use matmul.hip.
//
// matmul_core_<type>_<n>(w0, w1, w2, halves, scales, out0, out1, out2, bias0, bias1, bias2, rows0,
// rows1, rows2, columns, count, splits, partials, counters): up to three products with the same
// activations, each as in matmul.hip, for `columns` that are a multiple of 32. Products that are
// not there have 0 rows. rows/halve.hip makes `halves` and `scales`. A block computes n columns of
// a result and 128 rows, 64 for n = 16. Grid (sum of ceil(rows / rows of a block), ceil(count / n),
// splits).
//
// Where there are too few tiles for the device, `splits` blocks share the sums of each. Each leaves
// its sums in `partials`, which has n times the rows of a block for each block of the grid. The
// last block to finish adds them up in their order. It learns that it is the last from `counters`,
// one for each tile, which are zeros before and after. With one split, both may be null.
//
// Weights become f16, sums are f32. For n = 128 both operands go through shared memory, where each
// weight is decoded once for all columns. For n = 16, 32 and 64 reading the weights takes most of
// the time: each wave decodes its own in registers, and waits for no other wave.
#pragma once

#include "matmul/core_weights.h"
#include "common/fragments.h"

#if MATRIX_CORES

#define CORE_THREADS 256
#define CORE_ROWS 128

// A product, and this block's part of it.
struct Core {
  const u8 *w;
  const u16 *x;
  const f32 *scales;
  f32 *out;
  const f32 *bias;
  u32 first_row, rows, columns, count;
  // The tiles of all products in this direction, and the blocks that share one.
  u32 tiles, splits;
  f32 *partials;
  u32 *counters;

  // A row of activations. Beyond the last one it is another row or no row at all, and its sums are
  // not stored.
  MEMBER const u16 *row_of_x(u32 row) const {
    return x + halves_at(smaller(row / 16, (count - 1) / 16) * 16 + row % 16, 0, columns);
  }
  // Eight halves of a row from `column` on.
  static MEMBER u32x4 chunk(const u16 *row, u32 column) { return *(const u32x4 *)(row + halves_at(0, column, 0)); }
};

// Adds up the sums of SHARERS waves of a block and of all blocks of a tile, for M x N fragments
// from `token` and `row` on, and stores them. PLACES have sums of their own, of which this is
// number `place`; the first of its sharers has number 0. The rows of the products are rows of
// weights where WEIGHTS_FIRST, else tokens. `memory` is the shared memory of the block, which no
// wave uses any more.
template <bool WEIGHTS_FIRST, u32 M, u32 N, u32 PLACES, u32 SHARERS>
DEVICE void finish_core(const Core &core, Accumulator (&sums)[M][N], u32 place, u32 sharer, u32 token, u32 row,
                        f32 *memory) {
#if READS_EARLY
  // A variable of its own would take the block 16 bytes beyond half of the shared memory of an AMD
  // compute unit.
  u32_alias &is_last = *(u32_alias *)memory;
#else
  SHARED u32 is_last;
#endif
  // Writes a wave's sums so that neighbouring lanes write neighbouring words.
  const u32 EACH = M * N * Accumulator::ELEMENTS, SUMS = EACH * PLACES * WAVE;
  auto write = [&](f32 *to) __attribute__((always_inline)) {
    UNROLL for (u32 i = 0; i < EACH; i++) {
      const Accumulator &from = sums[i / Accumulator::ELEMENTS / N][i / Accumulator::ELEMENTS % N];
      // The value goes through an ordinary register, because the emulator does not know stores of
      // accumulation registers.
      u32 bits = opaque(bits_of((f32)from.sums[i % Accumulator::ELEMENTS]));
      to[(i * PLACES + place) * WAVE + lane_id()] = f32_of(bits);
    }
  };
  auto add = [&](const f32 *from) __attribute__((always_inline)) {
    UNROLL for (u32 i = 0; i < EACH; i++) {
      Accumulator &to = sums[i / Accumulator::ELEMENTS / N][i / Accumulator::ELEMENTS % N];
      to.sums[i % Accumulator::ELEMENTS] += from[(i * PLACES + place) * WAVE + lane_id()];
    }
  };
  bool is_first = sharer == 0;
  if (SHARERS > 1) {
    if (!is_first) write(memory + (sharer - 1) * SUMS);
    shared_barrier();
    UNROLL_BY(1) for (u32 other = 0; is_first && other < SHARERS - 1; other++) add(memory + other * SUMS);
  }
  if (core.splits > 1) {
    u32 number = block_y() * core.tiles + block_x();
    f32 *parts = core.partials + (u64)number * core.splits * SUMS;
    if (is_first) write(parts + block_z() * SUMS);
    released();
    barrier();
    if (thread_x() == 0) is_last = device_add(core.counters + number, 1) == core.splits - 1;
    barrier();
    if (!is_last) return;
    acquired();
    if (thread_x() == 0) core.counters[number] = 0;
    UNROLL for (u32 i = 0; i < EACH; i++) {
      sums[i / Accumulator::ELEMENTS / N][i / Accumulator::ELEMENTS % N].sums[i % Accumulator::ELEMENTS] = 0.0f;
    }
    UNROLL_BY(1) for (u32 split = 0; is_first && split < core.splits; split++) add(parts + split * SUMS);
  }
  if (!is_first) return;
  const u32 ELEMENTS = Accumulator::ELEMENTS;
  auto place_of_row = [&](u32 m, u32 i) __attribute__((always_inline)) {
    return (WEIGHTS_FIRST ? row : token) + m * FRAGMENT + Accumulator::row(i);
  };
  auto place_of_column = [&](u32 n, u32 i) __attribute__((always_inline)) {
    return (WEIGHTS_FIRST ? token : row) + n * FRAGMENT + Accumulator::column(i);
  };
  // Scales and biases are read all at once, even beyond the edges. The elements of a lane in a
  // fragment share one column.
  const u32 ROWS = READS_EARLY ? M * ELEMENTS : 1, COLUMNS = READS_EARLY ? N : 1;
  f32 of_rows[ROWS] = {}, of_columns[COLUMNS] = {};
  if constexpr (READS_EARLY) {
    auto read = [&](const f32 *from, bool is_row, u32 length) __attribute__((always_inline)) {
      if (is_row) {
        UNROLL for (u32 k = 0; k < ROWS; k++) {
          of_rows[k] = from[smaller(place_of_row(k / ELEMENTS, k % ELEMENTS), length - 1)];
        }
      } else {
        UNROLL for (u32 n = 0; n < COLUMNS; n++) of_columns[n] = from[smaller(place_of_column(n, 0), length - 1)];
      }
    };
    read(core.scales, !WEIGHTS_FIRST, core.count);
    if (core.bias) read(core.bias, WEIGHTS_FIRST, core.rows);
    begin_loads();
  }
  UNROLL for (u32 m = 0; m < M; m++) {
    UNROLL for (u32 i = 0; i < ELEMENTS; i++) {
      u32 first = place_of_row(m, i);
      if (first >= (WEIGHTS_FIRST ? core.rows : core.count)) continue;
      UNROLL for (u32 n = 0; n < N; n++) {
        u32 second = place_of_column(n, i);
        if (second >= (WEIGHTS_FIRST ? core.count : core.rows)) continue;
        u32 from = WEIGHTS_FIRST ? second : first, to = WEIGHTS_FIRST ? first : second;
        if constexpr (READS_EARLY) {
          f32 of_row = of_rows[m * ELEMENTS + i], of_column = of_columns[n];
          f32 scale = WEIGHTS_FIRST ? of_column : of_row, bias = WEIGHTS_FIRST ? of_row : of_column;
          core.out[(u64)from * core.rows + to] = sums[m][n].sums[i] * scale + bias;
        } else {
          f32 sum = sums[m][n].sums[i] * core.scales[from];
          core.out[(u64)from * core.rows + to] = sum + (core.bias ? core.bias[to] : 0.0f);
        }
      }
    }
  }
}

// The units of this block, out of `all` units that `sharers` blocks share: number `begin` to `end`.
struct Share {
  u32 begin, end;
  MEMBER Share(u32 all, u32 number, u32 sharers) {
    u32 most = ceil_div(all, sharers);
    begin = smaller(number * most, all);
    end = smaller(begin + most, all);
  }
};

// 128 columns and rows, a unit of each at a time: half of the threads load weights, the others load
// activations.
template <class W> DEVICE void matmul_tile(const Core &core) {
  const u32 TOKENS = 128, WAVE_TOKENS = 64, WAVE_ROWS = WAVE, CHUNKS = UNIT_WEIGHTS / CHUNK_HALVES;
  const u32 ACROSS = CORE_ROWS / WAVE_ROWS, M = WAVE_TOKENS / FRAGMENT, N = WAVE_ROWS / FRAGMENT;
  // Two stages of both operands: one is filled while the other is multiplied.
  const u32 W_CHUNKS = CORE_ROWS * CHUNKS, STAGE = W_CHUNKS + TOKENS * CHUNKS;
  SHARED __attribute__((aligned(16))) u32x4 memory[2 * STAGE];
  begin_launch();
  // The data of a thread between device memory and shared memory.
  union Staged {
    typename W::Raw weights;
    u32x4 chunks[CHUNKS];
  };

  W weights(core.w, core.rows, core.columns);
  u32 first_token = block_y() * TOKENS;
  bool loads_weights = thread_x() < CORE_ROWS;
  u32 line = thread_x() % CORE_ROWS;
  // Beyond the edge, results come from the last row, and are not stored.
  u32 row = smaller(core.first_row + line, core.rows - 1);
  const u16 *row_of_x = core.row_of_x(first_token + line);

  auto load = [&](u32 unit, Staged &staged) __attribute__((always_inline)) {
    if (loads_weights) {
      u32 blocks = core.columns / UNIT_WEIGHTS / W::UNITS_OF_BLOCK, in_block = unit % W::UNITS_OF_BLOCK;
      weights.load(row * blocks + unit / W::UNITS_OF_BLOCK, in_block, staged.weights);
    } else {
      UNROLL for (u32 i = 0; i < CHUNKS; i++) {
        staged.chunks[i] = Core::chunk(row_of_x, W::place(unit, i / 2, i % 2));
      }
    }
  };
  auto store = [&](u32 unit, const Staged &staged) __attribute__((always_inline)) {
    u32x4 *tile = memory + unit % 2 * STAGE;
    if (loads_weights) {
      u32x4 *to[CHUNKS];
      UNROLL for (u32 i = 0; i < CHUNKS; i++) to[i] = tile + swizzled<UNIT_WEIGHTS>(line, i);
      W::expand(staged.weights, unit % W::UNITS_OF_BLOCK, to);
    } else {
      UNROLL for (u32 i = 0; i < CHUNKS; i++) tile[W_CHUNKS + swizzled<UNIT_WEIGHTS>(line, i)] = staged.chunks[i];
    }
  };

  u32 wave_token = wave_id() / ACROSS * WAVE_TOKENS, wave_row = wave_id() % ACROSS * WAVE_ROWS;
  Accumulator sums[M][N] = {};
  Share share(core.columns / UNIT_WEIGHTS, block_z(), core.splits);
  Staged staged;
  if (share.begin < share.end) {
    load(share.begin, staged);
    store(share.begin, staged);
  }
  shared_barrier();
  UNROLL_BY(1) for (u32 unit = share.begin; unit < share.end; unit++) {
    if (unit + 1 < share.end) load(unit + 1, staged);
    const u32x4 *tile = memory + unit % 2 * STAGE;
    UNROLL for (u32 part = 0; part < UNIT_WEIGHTS / FRAGMENT; part++) {
      Fragment b[N];
      UNROLL for (u32 n = 0; n < N; n++) b[n] = load_second<UNIT_WEIGHTS>(tile, wave_row + n * FRAGMENT, part);
      UNROLL for (u32 m = 0; m < M; m++) {
        Fragment a = load_first<UNIT_WEIGHTS>(tile + W_CHUNKS, wave_token + m * FRAGMENT, part);
        UNROLL for (u32 n = 0; n < N; n++) multiply_add(a, b[n], sums[m][n]);
      }
    }
    if (unit + 1 < share.end) store(unit + 1, staged);
    shared_barrier();
  }
  finish_core<false, M, N, CORE_THREADS / WAVE, 1>(core, sums, wave_id(), 0, first_token + wave_token,
                                                   core.first_row + wave_row, (f32 *)memory);
}

// TOKENS columns: a wave decodes its rows in registers, some units of each at a time. Activations
// go through shared memory. Where waves are left over, they share K.
template <class W, u32 TOKENS, u32 ROWS, u32 WAVE_ROWS, u32 MOST_UNITS>
DEVICE void matmul_waves(const Core &core) {
  const u32 M = WAVE_ROWS / FRAGMENT, N = TOKENS / FRAGMENT, PLACES = ROWS / WAVE_ROWS;
  const u32 SHARERS = CORE_THREADS / WAVE / PLACES, PARTS = FRAGMENT / LANE_HALVES;
  // The units of a lane: neighbours, which share data, but only as many as there are registers for.
  // COLUMNS is the width of a block's step.
  const u32 UNITS = PARTS == 1 || (PARTS == 2 && sizeof(typename W::Raw) > 32) ? 4 : MOST_UNITS;
  const u32 OF_LANE = UNITS / PARTS, COLUMNS = SHARERS * UNITS * UNIT_WEIGHTS;
  // Two stages of activations, in pieces of eight columns of all tokens: one is filled while the
  // other is used.
  const u32 STAGE = TOKENS * COLUMNS / CHUNK_HALVES, LOADS = STAGE / CORE_THREADS;
  SHARED __attribute__((aligned(16))) u32x4 memory[2 * STAGE];
  static_assert((SHARERS - 1) * TOKENS * ROWS * 4 <= sizeof memory, "sums of waves that share K fit");
  // Lanes that read the same tokens have no bank conflicts, whatever the distance between the units
  // of a format is (2, 4, 8 or 16 chunks).
  auto place_of = [&](u32 chunk, u32 token) __attribute__((always_inline)) {
    return chunk * TOKENS + (token ^ ((chunk / 2 ^ chunk / 8 % 2 * 3 ^ chunk / 16) % 4 * 2));
  };

  W weights(core.w, core.rows, core.columns);
  u32 place = wave_id() % PLACES, sharer = wave_id() / PLACES;
  u32 first_row = core.first_row + place * WAVE_ROWS, first_token = block_y() * TOKENS;
  u32 units = core.columns / UNIT_WEIGHTS, rows[M][LANE_ROWS];
  UNROLL for (u32 m = 0; m < M; m++) {
    UNROLL for (u32 r = 0; r < LANE_ROWS; r++) {
      u32 row = smaller(first_row + m * FRAGMENT + lane_row(r), core.rows - 1);
      rows[m][r] = row * (units / W::UNITS_OF_BLOCK);
    }
  }
  // This lane's units of a step, counted from its first one, and their places in their blocks.
  const bool WHOLE_BLOCKS = SHARERS * UNITS % W::UNITS_OF_BLOCK == 0;
  u32 first_unit = (sharer * PARTS + lane_part()) * OF_LANE;
  auto in_block = [&](u32 step, u32 i) __attribute__((always_inline)) {
    return ((WHOLE_BLOCKS ? 0 : step * SHARERS * UNITS) + first_unit + i) % W::UNITS_OF_BLOCK;
  };
  typename W::Raw next[OF_LANE][M][LANE_ROWS];
  u32x4 staged[LOADS];
  auto load_weights = [&](u32 step) __attribute__((always_inline)) {
    // Beyond the end of a row the last block is read again, and multiplied with zeros.
    u32 first = step * SHARERS * UNITS + first_unit, block = smaller(first, units - 1) / W::UNITS_OF_BLOCK;
    UNROLL for (u32 m = 0; m < M; m++) {
      UNROLL for (u32 r = 0; r < LANE_ROWS; r++) {
        UNROLL for (u32 i = 0; i < OF_LANE; i++) {
          if (W::UNITS_OF_BLOCK == 1) block = smaller(first + i, units - 1);
          weights.load(rows[m][r] + block, in_block(step, i), next[i][m][r]);
          // Neighbours have the same block.
          if (i > 0) W::share(next[i][m][r], next[0][m][r]);
        }
      }
    }
  };
  auto load_activations = [&](u32 step) __attribute__((always_inline)) {
    UNROLL for (u32 i = 0; i < LOADS; i++) {
      u32 piece = i * CORE_THREADS + thread_x(), column = step * COLUMNS + piece / TOKENS * CHUNK_HALVES;
      const u16 *row = core.row_of_x(first_token + piece % TOKENS);
      staged[i] = Core::chunk(row, smaller(column, core.columns - CHUNK_HALVES));
    }
  };
  auto store = [&](u32 step) __attribute__((always_inline)) {
    if ((step + 1) * COLUMNS > core.columns) {
      UNROLL for (u32 i = 0; i < LOADS; i++) {
        u32 piece = i * CORE_THREADS + thread_x(), column = step * COLUMNS + piece / TOKENS * CHUNK_HALVES;
        u32 inside = opaque(column < core.columns ? ~0u : 0u);
        UNROLL for (u32 k = 0; k < 4; k++) staged[i][k] &= inside;
      }
    }
    UNROLL for (u32 i = 0; i < LOADS; i++) {
      u32 piece = i * CORE_THREADS + thread_x(), chunk = piece / TOKENS;
      memory[step % 2 * STAGE + place_of(chunk, piece % TOKENS)] = staged[i];
    }
  };

  Accumulator sums[M][N] = {};
  Share share(ceil_div(core.columns, COLUMNS), block_z(), core.splits);
  let_next_begin();
  if (share.begin < share.end) load_weights(share.begin);
  wait_for_launches();
  if (share.begin < share.end) {
    load_activations(share.begin);
    store(share.begin);
  }
  shared_barrier();
  UNROLL_BY(1) for (u32 step = share.begin; step < share.end; step++) {
    typename W::Raw now[OF_LANE][M][LANE_ROWS];
    UNROLL for (u32 i = 0; i < OF_LANE; i++) {
      UNROLL for (u32 m = 0; m < M; m++) {
        UNROLL for (u32 r = 0; r < LANE_ROWS; r++) now[i][m][r] = next[i][m][r];
      }
    }
    // The last step loads itself again: with a branch around them, loads would come late.
    u32 following = smaller(step + 1, share.end - 1);
    load_activations(following);
    load_weights(following);
    const u32x4 *tile = memory + step % 2 * STAGE;
    UNROLL for (u32 i = 0; i < OF_LANE; i++) {
      UNROLL for (u32 run = 0; run < 2; run++) {
        UNROLL for (u32 m = 0; m < M; m++) {
          UNROLL for (u32 r = 0; r < LANE_ROWS; r++) keep_apart(now[i][m][r]);
        }
        u32 first[M][LANE_ROWS][8];
        UNROLL for (u32 m = 0; m < M; m++) {
          UNROLL for (u32 r = 0; r < LANE_ROWS; r++) W::expand_run(now[i][m][r], in_block(step, i), run, first[m][r]);
        }
        // A step is at least half a block, and all halves have the same layout.
        u32 chunk = W::place(first_unit + i, run, 0) / CHUNK_HALVES, at = place_of(chunk, lane_row(0));
        UNROLL for (u32 n = 0; n < N; n++) {
          u32 second[LANE_ROWS][8];
          // There are not enough registers for the reads of all of them at once.
          if (N > 1) keep_behind(at, sums[0][(n + N - 2) % N]);
          UNROLL for (u32 r = 0; r < LANE_ROWS; r++) {
            u32x4 low = tile[at + n * FRAGMENT + r * 8], high = tile[at + TOKENS + n * FRAGMENT + r * 8];
            UNROLL for (u32 k = 0; k < 4; k++) second[r][k] = low[k], second[r][4 + k] = high[k];
          }
          UNROLL for (u32 f = 0; f < FRAGMENT / LANE_HALVES; f++) {
            Fragment b = second_of<8>(second, f);
            UNROLL for (u32 m = 0; m < M; m++) multiply_add(first_of<8>(first[m], f), b, sums[m][n]);
          }
        }
      }
    }
    store(step + 1);
    shared_barrier();
  }
  finish_core<true, M, N, PLACES, SHARERS>(core, sums, place, sharer, first_token, first_row, (f32 *)memory);
}

// The four kernels of a type. prepare.rs knows how many blocks of each share a compute unit.
#define MATMUL_CORE_SHAPE(name, tokens, tile_rows, blocks, ...)                                                        \
  KERNEL_FOR_BLOCKS(matmul_core_##name##_##tokens, CORE_THREADS, blocks,                                               \
                    (const u8 *w0, const u8 *w1, const u8 *w2, const u16 *x, const f32 *scales, f32 *out0, f32 *out1,  \
                     f32 *out2, const f32 *bias0, const f32 *bias1, const f32 *bias2, u32 rows0, u32 rows1, u32 rows2, \
                     u32 columns, u32 count, u32 splits, f32 *partials, u32 *counters)) {                              \
    u32 second = ceil_div(rows0, tile_rows), third = second + ceil_div(rows1, tile_rows);                              \
    u32 tiles = third + ceil_div(rows2, tile_rows), tile = block_x();                                                  \
    Core core = {w0, x, scales, out0, bias0, tile * tile_rows, rows0, columns, count, tiles, splits, partials,         \
                 counters};                                                                                            \
    if (tile >= third) {                                                                                               \
      core.w = w2, core.out = out2, core.bias = bias2, core.rows = rows2;                                              \
      core.first_row = (tile - third) * tile_rows;                                                                     \
    } else if (tile >= second) {                                                                                       \
      core.w = w1, core.out = out1, core.bias = bias1, core.rows = rows1;                                              \
      core.first_row = (tile - second) * tile_rows;                                                                    \
    }                                                                                                                  \
    __VA_ARGS__(core);                                                                                                 \
  }
#define MATMUL_CORE(name, weights)                                                                                     \
  MATMUL_CORE_SHAPE(name, 128, 128, 2, matmul_tile<weights>)                                                           \
  MATMUL_CORE_SHAPE(name, 64, 128, 1, matmul_waves<weights, 64, 128, WAVE / 2, 4>)                                     \
  MATMUL_CORE_SHAPE(name, 32, 128, 2, matmul_waves<weights, 32, 128, WAVE / 2, 8>)                                     \
  MATMUL_CORE_SHAPE(name, 16, 64, 2, matmul_waves<weights, 16, 64, WAVE / 2, 8>)

#else
#define MATMUL_CORE(name, weights)
#endif
