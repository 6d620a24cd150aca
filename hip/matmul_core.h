// Products of a matrix with many columns of activations on matrix cores: prompts, and many sequences that decode
// together. Each type is a family of its own, matmul_core_<type>.hip, so that a model loads only what it needs. Targets
// without matrix cores have none of them and use matmul.hip.
//
// matmul_core_<type>_<n>(w, halves, scales, out, bias, residual, rows, columns, count, splits, partials, counters):
//   parameters and result as those of matmul.hip, for `columns` that are a multiple of 32; `halves` and `scales` are
//   what halve.hip makes. A block computes n columns of the result and this many rows: 128 for n = 128, 64 for 64 and 32, 32
//   for 16. Grid (ceil(rows / rows of a block), ceil(count / n), splits): where there are too few tiles for the device,
//   `splits` blocks share the sums of each. They leave what they find in `partials`, n times the rows of a block for
//   each block of the grid, and the last one that is done, by `counters`, which are zeros before and after, one for
//   each tile, adds it up in their order. With one split, both may be null.
//
// Weights become f16 on their way into shared memory, sums are f32. A weight's error is at most about 2^-10 of the
// largest weight that its scale and minimum allow; what f16 does not hold, beyond 65504, becomes infinite.

#pragma once

#include "fragments.h"
#include "quant.h"

#if MATRIX_CORES

#define CORE_THREADS 256
// Threads of a block that load weights, a unit each; the others load activations.
#define WEIGHT_THREADS 128

// What a thread holds between loading from device memory and storing to shared memory.
template <class W, u32 LOADS> union Staged {
  typename W::Raw weights;
  u32x4 chunks[LOADS];
};

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
  // Where the half `half` (0 or 1) of run `run` of a unit is in its row.
  static MEMBER u32 place(u32 unit, u32 run, u32 half) {
    u32 in_block = unit % UNITS_OF_BLOCK;
    return unit / UNITS_OF_BLOCK * F::BLOCK + (run == 0 ? F::first(in_block) : F::second(in_block)) + half * 8;
  }
  typedef typename F::Raw Raw;
  MEMBER void load(u32 row, u32 columns, u32 unit, Raw &raw) const {
    u64 block = (u64)row * (columns / F::BLOCK) + unit / UNITS_OF_BLOCK;
    raw = format.fetch(block, unit % UNITS_OF_BLOCK);
  }
  // Stores the unit's four chunks.
  static MEMBER void expand(const Raw &raw, u32 unit, u32x4 *const to[4]) {
    Unit u;
    F::decode(raw, unit % UNITS_OF_BLOCK, u);
    store_run<F>(u.a, u.scale_a, F::MINS ? u.min_a : 0.0f, to[0], to[1]);
    store_run<F>(u.b, u.scale_b, F::MINS ? u.min_b : 0.0f, to[2], to[3]);
  }
};

// Weights of two bytes. Those of bf16 below f16's normal numbers, 6e-5, lose bits; below 3e-8 they are 0.
template <class F> struct CoreFloats {
  const u8 *w;
  MEMBER CoreFloats(const u8 *start, u32, u32) : w(start) {}
  static MEMBER u32 place(u32 unit, u32 run, u32 half) { return unit * UNIT_WEIGHTS + run * 16 + half * 8; }
  struct Raw {
    u32x4 chunks[4];
  };
  MEMBER void load(u32 row, u32 columns, u32 unit, Raw &raw) const {
    const u8 *from = w + ((u64)row * columns + unit * UNIT_WEIGHTS) * 2;
    UNROLL for (u32 i = 0; i < 4; i++) raw.chunks[i] = load16(from + 16 * i);
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

// A block computes TOKENS x ROWS results, with UNITS units of each row at a time; a wave computes WAVE_TOKENS x
// WAVE_ROWS of them. Where that leaves waves over, they share K. Device memory is read AHEAD steps before its use: with
// few columns, its latency is what there is to hide.
template <class W, u32 TOKENS, u32 ROWS, u32 UNITS, u32 WAVE_TOKENS, u32 WAVE_ROWS, u32 AHEAD>
DEVICE void matmul_core(const u8 *w, const u16 *x, const f32 *scales, f32 *out, const f32 *bias, const f32 *residual,
                        u32 rows, u32 columns, u32 count, u32 splits, f32 *partials, u32 *counters) {
  static_assert(ROWS * UNITS == WEIGHT_THREADS, "a unit for each thread that loads weights");
  const u32 K = UNITS * UNIT_WEIGHTS, CHUNKS = K / CHUNK_HALVES, PARTS = K / FRAGMENT;
  const u32 LOADERS = CORE_THREADS - WEIGHT_THREADS, LOADS = TOKENS * CHUNKS / LOADERS;
  const u32 ACROSS = ROWS / WAVE_ROWS, PLACES = TOKENS / WAVE_TOKENS * ACROSS, SHARERS = CORE_THREADS / WAVE / PLACES;
  const u32 M = WAVE_TOKENS / FRAGMENT, N = WAVE_ROWS / FRAGMENT;
  static_assert(SHARERS >= 1 && PARTS % SHARERS == 0, "waves share K evenly");
  // Two stages of both operands: one is filled while the other is multiplied.
  const u32 W_CHUNKS = ROWS * CHUNKS, X_CHUNKS = TOKENS * CHUNKS, STAGE = W_CHUNKS + X_CHUNKS;
  SHARED __attribute__((aligned(16))) u32x4 memory[2 * STAGE];
  SHARED u32 is_last;
  static_assert((SHARERS - 1) * TOKENS * ROWS * 4 <= sizeof memory, "sums of waves that share K fit");

  W weights(w, rows, columns);
  u32 units = columns / UNIT_WEIGHTS;
  u32 first_row = block_x() * ROWS, first_token = block_y() * TOKENS;
  // What is beyond the edges is computed from the last row, and not stored.
  bool loads_weights = thread_x() < WEIGHT_THREADS;
  u32 line = thread_x() / UNITS, part_of_line = thread_x() % UNITS;
  u32 row = smaller(first_row + line, rows - 1);
  u32 loader = thread_x() % LOADERS, chunk_of_line = loader % CHUNKS;

  auto load = [&](u32 step, Staged<W, LOADS> &staged) __attribute__((always_inline)) {
    if (loads_weights) {
      u32 unit = step * UNITS + part_of_line;
      if (UNITS == 1 || unit < units) weights.load(row, columns, unit, staged.weights);
    } else {
      u32 unit = step * UNITS + chunk_of_line / 4;
      u32 place = W::place(unit, chunk_of_line / 2 % 2, chunk_of_line % 2);
      bool inside = UNITS == 1 || unit < units;
      UNROLL for (u32 i = 0; i < LOADS; i++) {
        u32 token = smaller(first_token + loader / CHUNKS + i * (LOADERS / CHUNKS), count - 1);
        staged.chunks[i] = inside ? load16((const u8 *)(x + (u64)token * columns + place)) : u32x4{};
      }
    }
  };
  auto store = [&](u32 step, const Staged<W, LOADS> &staged) __attribute__((always_inline)) {
    u32x4 *tile = memory + step % 2 * STAGE;
    if (loads_weights) {
      u32 unit = step * UNITS + part_of_line;
      u32x4 *to[4];
      UNROLL for (u32 i = 0; i < 4; i++) to[i] = tile + swizzled<K>(line, part_of_line * 4 + i);
      if (UNITS == 1 || unit < units) {
        W::expand(staged.weights, unit, to);
      } else {
        UNROLL for (u32 i = 0; i < 4; i++) *to[i] = u32x4{};
      }
    } else {
      UNROLL for (u32 i = 0; i < LOADS; i++) {
        u32 token = loader / CHUNKS + i * (LOADERS / CHUNKS);
        tile[W_CHUNKS + swizzled<K>(token, chunk_of_line)] = staged.chunks[i];
      }
    }
  };

  u32 place = wave_id() % PLACES, sharer = wave_id() / PLACES;
  u32 wave_token = place / ACROSS * WAVE_TOKENS, wave_row = place % ACROSS * WAVE_ROWS;
  Accumulator sums[M][N] = {};
  u32 all_steps = ceil_div(units, UNITS), most = ceil_div(all_steps, splits);
  u32 begin = smaller(block_z() * most, all_steps), steps = smaller(begin + most, all_steps);
  // What was loaded for step `begin` + s is in staged[s % AHEAD].
  Staged<W, LOADS> staged[AHEAD];
  UNROLL for (u32 j = 0; j < AHEAD; j++) {
    if (begin + j < steps) load(begin + j, staged[j]);
  }
  if (begin < steps) store(begin, staged[0]);
  barrier();
  UNROLL_BY(1) for (u32 first_step = begin; first_step < steps; first_step += AHEAD) {
    UNROLL for (u32 j = 0; j < AHEAD; j++) {
      u32 step = first_step + j;
      if (step >= steps) break;
      if (step + AHEAD < steps) load(step + AHEAD, staged[j]);
      const u32x4 *tile = memory + step % 2 * STAGE;
      UNROLL for (u32 i = 0; i < PARTS / SHARERS; i++) {
        u32 part = SHARERS == 1 ? i : i * SHARERS + sharer;
        Fragment b[N];
        UNROLL for (u32 n = 0; n < N; n++) b[n] = load_second<K>(tile, wave_row + n * FRAGMENT, part);
        UNROLL for (u32 m = 0; m < M; m++) {
          Fragment a = load_first<K>(tile + W_CHUNKS, wave_token + m * FRAGMENT, part);
          UNROLL for (u32 n = 0; n < N; n++) multiply_add(a, b[n], sums[m][n]);
        }
      }
      if (step + 1 < steps) store(step + 1, staged[(j + 1) % AHEAD]);
      barrier();
    }
  }

  // A wave's sums, in parts that lanes next to each other have next to each other.
  const u32 EACH = M * N * Accumulator::ELEMENTS, SUMS = EACH * PLACES * WAVE;
  auto write = [&](f32 *to) __attribute__((always_inline)) {
    UNROLL for (u32 i = 0; i < EACH; i++) {
      const Accumulator &from = sums[i / Accumulator::ELEMENTS / N][i / Accumulator::ELEMENTS % N];
      // Through an ordinary register: the emulator does not know stores of accumulation registers.
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
  // The first of those that share K adds what the others found.
  bool is_first = sharer == 0;
  if (SHARERS > 1) {
    if (!is_first) write((f32 *)memory + (sharer - 1) * SUMS);
    barrier();
    UNROLL_BY(1) for (u32 other = 0; is_first && other < SHARERS - 1; other++) add((f32 *)memory + other * SUMS);
  }
  if (splits > 1) {
    u32 number = block_y() * ceil_div(rows, ROWS) + block_x();
    f32 *parts = partials + (u64)number * splits * SUMS;
    if (is_first) write(parts + block_z() * SUMS);
    released();
    barrier();
    if (thread_x() == 0) is_last = device_add(counters + number, 1) == splits - 1;
    barrier();
    if (!is_last) return;
    acquired();
    if (thread_x() == 0) counters[number] = 0;
    UNROLL for (u32 i = 0; i < EACH; i++) {
      sums[i / Accumulator::ELEMENTS / N][i / Accumulator::ELEMENTS % N].sums[i % Accumulator::ELEMENTS] = 0.0f;
    }
    UNROLL_BY(1) for (u32 split = 0; is_first && split < splits; split++) add(parts + split * SUMS);
  }
  if (!is_first) return;
  UNROLL for (u32 m = 0; m < M; m++) {
    UNROLL for (u32 i = 0; i < Accumulator::ELEMENTS; i++) {
      u32 token = first_token + wave_token + m * FRAGMENT + Accumulator::row(i);
      if (token < count) {
        f32 scale = scales[token];
        UNROLL for (u32 n = 0; n < N; n++) {
          u32 to = first_row + wave_row + n * FRAGMENT + Accumulator::column(i);
          if (to < rows) {
            u64 at = (u64)token * rows + to;
            f32 sum = sums[m][n].sums[i] * scale + (bias ? bias[to] : 0.0f);
            out[at] = residual ? residual[at] + sum : sum;
          }
        }
      }
    }
  }
}

// The four kernels of a type. As many blocks share a compute unit as prepare.rs expects: with few columns, latency is
// what there is to hide.
#define MATMUL_CORE_SHAPE(name, weights, blocks, tokens, ...)                                                          \
  KERNEL_FOR_BLOCKS(matmul_core_##name##_##tokens, CORE_THREADS, blocks,                                               \
                    (const u8 *w, const u16 *x, const f32 *scales, f32 *out, const f32 *bias, const f32 *residual,     \
                     u32 rows, u32 columns, u32 count, u32 splits, f32 *partials, u32 *counters)) {                    \
    matmul_core<weights, tokens, __VA_ARGS__>(w, x, scales, out, bias, residual, rows, columns, count, splits,         \
                                              partials, counters);                                                     \
  }
#define MATMUL_CORE(name, weights)                                                                                     \
  MATMUL_CORE_SHAPE(name, weights, 2, 128, 128, 1, 64, WAVE, 1)                                                        \
  MATMUL_CORE_SHAPE(name, weights, 2, 64, 64, 2, 32, 32, 1)                                                            \
  MATMUL_CORE_SHAPE(name, weights, 4, 32, 64, 2, 32, 16, 2)                                                            \
  MATMUL_CORE_SHAPE(name, weights, 4, 16, 32, 4, 16, 16, 2)

#else
#define MATMUL_CORE(name, weights)
#endif
