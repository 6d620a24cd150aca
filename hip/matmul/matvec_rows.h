// How a wave computes rows of a product with few columns: see matmul/matvec.hip.
#pragma once

#include "quant/activations.h"
#include "quant/formats.h"

// The units that are fetched ahead: more of those that take longer to decode. R rows and N columns
// share the registers.
template <class F> constexpr bool MANY_LOADS = sizeof(typename F::Raw) > 34;
template <class F> constexpr bool SMALL = F::ONE_SCALE && !MANY_LOADS<F>;
template <class F, u32 R, u32 N>
constexpr u32 AHEAD = N > 2 || R > 1 || (N > 1 && MANY_LOADS<F>) ? 1 : N > 1 || SMALL<F> || WAVE == 64 ? 2 : 4;

// The quantized activations of a product.
struct Columns {
  const i8 *q;
  const u32 *groups;
  u32 columns, count;
  // The sums of squares for the norm of these activations, or null.
  const f32 *squares;
  f32 eps;
  // The factor for the sums of column c, in two steps. The first reads a lane's part of it while
  // the weights are loading, the second computes the factor. All lanes of the wave call them
  // together.
#if READS_EARLY
  // The first numbers, which are added after all other loads are issued, and the sum of the others.
  static constexpr u32 FIRST = 128 / WAVE;
  struct Part {
    f32 first[FIRST], others;
  };
  MEMBER Part part_of_factor(u32 c) const {
    Part part = {};
    if (!squares) return part;
    u32 parts = columns / GROUP;
    const f32 *from = squares + smaller(c, count - 1) * parts;
    UNROLL for (u32 k = 0; k < FIRST; k++) part.first[k] = from[smaller(lane_id() + k * WAVE, parts - 1)];
    for (u32 i = lane_id() + FIRST * WAVE; i < parts; i += WAVE) part.others += from[i];
    return part;
  }
  MEMBER f32 factor(const Part &part) const {
    if (!squares) return 1.0f;
    f32 sum = part.others;
    UNROLL for (u32 k = 0; k < FIRST; k++) sum += lane_id() + k * WAVE < columns / GROUP ? part.first[k] : 0.0f;
    return 1.0f / square_root(wave_sum(sum) / (f32)columns + eps);
  }
#else
  typedef f32 Part;
  MEMBER Part part_of_factor(u32 c) const {
    u32 parts = squares ? columns / GROUP : 0, first = smaller(c, count - 1) * parts;
    f32 sum = 0.0f;
    for (u32 i = lane_id(); i < parts; i += WAVE) sum += squares[first + i];
    return sum;
  }
  MEMBER f32 factor(f32 part) const {
    return squares ? 1.0f / square_root(wave_sum(part) / (f32)columns + eps) : 1.0f;
  }
#endif
};

// The numbers that are added to the sums of a row. They are read while the weights are loading.
template <u32 N> struct Added {
  f32 bias, residual[N];
  MEMBER Added(const f32 *bias, const f32 *residual, u32 row, u32 rows, u32 count) : bias(0.0f), residual{} {
    if (bias) this->bias = bias[row];
    if (!residual) return;
    UNROLL for (u32 c = 0; c < N; c++) this->residual[c] = residual[(u64)smaller(c, count - 1) * rows + row];
  }
};

template <u32 N>
DEVICE void finish_row(f32 *sums, f32 *out, const Added<N> &added, bool has_residual, u32 row, u32 rows, u32 count) {
  UNROLL for (u32 c = 0; c < N; c++) sums[c] = wave_sum(sums[c]);
  if (lane_id() != 0) return;
  UNROLL for (u32 c = 0; c < N; c++) {
    if (c >= count) break;
    f32 sum = sums[c] + added.bias;
    out[(u64)c * rows + row] = has_residual ? added.residual[c] + sum : sum;
  }
}

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

// The work of a lane in a row: unit `unit` of the blocks `first`, `first` + STEP and so on.
template <class F> struct Lane {
  static constexpr u32 UNITS = F::BLOCK / UNIT_WEIGHTS, STEP = WAVE / UNITS;
  u32 unit, first;
  MEMBER Lane() : unit(lane_id() % UNITS), first(lane_id() / UNITS) {}
};

// The activations for a unit: its runs of a column, and the words of their groups.
template <class F> struct Activations {
  u32x4 a, b;
  u32x2 words_a, words_b;
  MEMBER Activations() {}
  // `first` and `second` are the places of the runs.
  MEMBER Activations(const Columns &x, u32 first, u32 second)
      : a(load16((const u8 *)x.q + first)), b(load16((const u8 *)x.q + second)),
        words_a(words_of(x, first)), words_b(words_a) {
    if (!F::ONE_SCALE) words_b = words_of(x, second);
  }
  static MEMBER u32x2 words_of(const Columns &x, u32 place) {
    const u32 *from = x.groups + place / GROUP * 2;
#if GPU_AMD
    // Where the other word is not needed, compilers would load it over the next number, and wait in
    // between.
    if (F::ZERO == 0 && !F::MINS) return u32x2{*from, 0};
#endif
    return *(const u32x2 *)from;
  }
};

// The activations for the lane's unit in block number `at` of the rows, of the first column.
template <class F> DEVICE Activations<F> activations_of(const Columns &x, u32 at, const Lane<F> &lane) {
  u32 block = at * F::BLOCK;
  return Activations<F>(x, block + F::first(lane.unit), block + F::second(lane.unit));
}

// Adds a unit of R rows, in block number `at` of each, for N columns. With EARLY the activations of
// the first column are loaded already.
template <class F, u32 R, u32 N, bool EARLY = false>
DEVICE void add_unit(const typename F::Raw *raws, u32 at, const Lane<F> &lane, const Columns &x, f32 sums[R][N],
                     const Activations<F> &early = Activations<F>()) {
  Unit units[R];
  Factors factors[R];
  UNROLL for (u32 r = 0; r < R; r++) {
    if constexpr (F::ONE_SCALE) {
      F::decode(raws[r], lane.unit, units[r]);
    } else {
      F::quants(raws[r], lane.unit, units[r]);
      factors[r] = F::factors(raws[r], lane.unit);
    }
  }
  u32 block = at * F::BLOCK;
  u32 first = block + F::first(lane.unit), second = block + F::second(lane.unit);
  UNROLL for (u32 c = 0; c < N; c++) {
    // Columns beyond the count repeat the last one, and are not stored.
    u32 column = N == 1 ? 0 : smaller(c, x.count - 1) * x.columns;
    Activations<F> with = early;
    if constexpr (!EARLY) with = Activations<F>(x, column + first, column + second);
    UNROLL for (u32 r = 0; r < R; r++) {
      const Unit &u = units[r];
      i32 dot_a = dot16(u.a, with.a), dot_b = dot16(u.b, with.b);
      if (F::ONE_SCALE) {
        i32 sum = half_sum(with.words_a[1], 0) + half_sum(with.words_a[1], 1);
        f32 value = u.scale_a * (f32)(dot_a + dot_b - F::ZERO * sum);
        if (F::MINS) value = mul_add(-u.min_a, (f32)sum, value);
        sums[r][c] = mul_add(f32_of(with.words_a[0]), value, sums[r][c]);
      } else {
        // Both runs are in the same half of their groups. Products with factors are exact integers
        // below 2^25.
        u32 half = lane.unit % 2;
        i32 sum_a = half_sum(with.words_a[1], half), sum_b = half_sum(with.words_b[1], half);
        const Factors &f = factors[r];
        f32 scale_a = f32_of(with.words_a[0]), scale_b = f32_of(with.words_b[0]);
        f32 dots = scale_a * (f32)short_product(f.scale_a, dot_a - F::ZERO * sum_a);
        dots = mul_add(scale_b, (f32)short_product(f.scale_b, dot_b - F::ZERO * sum_b), dots);
        sums[r][c] = mul_add(f.d, dots, sums[r][c]);
        if (F::MINS) {
          f32 mins = mul_add(scale_b, (f32)short_product(f.min_b, sum_b), scale_a * (f32)short_product(f.min_a, sum_a));
          sums[r][c] = mul_add(-f.dmin, mins, sums[r][c]);
        }
      }
    }
  }
}

// Whether all loads of add_units come before the first use: where the compiler would otherwise wait
// in between, and there are enough registers.
template <u32 N> constexpr bool ALL_AHEAD = READS_EARLY && N == 1;

// Adds K units of R rows, which are fetched before the first is decoded, for N columns.
template <class F, u32 R, u32 N, u32 K>
DEVICE void add_units(const F *weights, u64 start, u32 at, const Lane<F> &lane, const Columns &x, f32 sums[R][N]) {
  typename F::Raw raws[K][R];
  UNROLL for (u32 k = 0; k < K; k++) {
    UNROLL for (u32 r = 0; r < R; r++) raws[k][r] = weights[r].fetch(start + at + k * Lane<F>::STEP, lane.unit);
  }
  if constexpr (ALL_AHEAD<N>) {
    Activations<F> all[K];
    UNROLL for (u32 k = 0; k < K; k++) all[k] = activations_of<F>(x, at + k * Lane<F>::STEP, lane);
    begin_loads();
    UNROLL for (u32 k = 0; k < K; k++) {
      add_unit<F, R, N, true>(raws[k], at + k * Lane<F>::STEP, lane, x, sums, all[k]);
    }
  } else {
    UNROLL for (u32 k = 0; k < K; k++) add_unit<F, R, N>(raws[k], at + k * Lane<F>::STEP, lane, x, sums);
  }
}

// The units of a row that are fetched before the activations are known. There are none where
// launches do not overlap (common/gpu.h) or registers do not suffice.
#if GPU_AMD
template <class F, u32 R, u32 N> constexpr u32 FIRST_UNITS = 0;
#else
template <class F, u32 R, u32 N> constexpr u32 FIRST_UNITS = R > 1 && !SMALL<F> ? 0 : AHEAD<F, R, N>;
#endif

// The first units of row number `row` of R matrices.
template <class F, u32 R, u32 N> struct Begun {
  static constexpr u32 UNITS = FIRST_UNITS<F, R, N>;
  typename F::Raw raws[UNITS > 0 ? UNITS : 1][R];
  MEMBER Begun(const F *weights, u32 row, u32 columns) {
    Lane<F> lane;
    u32 blocks = columns / F::BLOCK;
    UNROLL for (u32 k = 0; k < UNITS; k++) {
      // Beyond the end of the row the last block is read again, and not added.
      u64 block = (u64)row * blocks + smaller(lane.first + k * lane.STEP, blocks - 1);
      UNROLL for (u32 r = 0; r < R; r++) raws[k][r] = weights[r].fetch(block, lane.unit);
    }
  }
};

// Adds this lane's part of row number `row` of R matrices, up to MOST units at a time.
template <class F, u32 R, u32 N, u32 MOST = AHEAD<F, R, N>>
DEVICE void add_row(const F *weights, u32 row, const Begun<F, R, N> &begun, const Columns &x, f32 sums[R][N]) {
  Lane<F> lane;
  u32 blocks = x.columns / F::BLOCK, i = lane.first;
  u64 start = (u64)row * blocks;
  // Without branches between them, the activations of all units are read at once. Short rows are
  // fetched again.
  if (begun.UNITS * lane.STEP <= blocks) {
    UNROLL for (u32 k = 0; k < begun.UNITS; k++) add_unit<F, R, N>(begun.raws[k], i + k * lane.STEP, lane, x, sums);
    i += begun.UNITS * lane.STEP;
  }
  if constexpr (MOST >= 4) {
    UNROLL_BY(1) for (; i + 3 * lane.STEP < blocks; i += 4 * lane.STEP) {
      add_units<F, R, N, 4>(weights, start, i, lane, x, sums);
    }
  }
  if constexpr (MOST >= 2) {
    UNROLL_BY(1) for (; i + lane.STEP < blocks; i += 2 * lane.STEP) {
      add_units<F, R, N, 2>(weights, start, i, lane, x, sums);
    }
  }
  UNROLL_BY(1) for (; i < blocks; i += lane.STEP) add_units<F, R, N, 1>(weights, start, i, lane, x, sums);
}

// Does the same for one column and `count` rows, number `row`, `row` + `stride` and so on, and
// hands their sums to `done`. It loads the next units, at the end those of the next rows, while it
// adds K units of R rows. It calls `begin` after the first loads.
template <class F, u32 R, u32 K, class Begin, class Done>
DEVICE void stream_rows(const F *weights, u32 row, u32 stride, u32 count, const Columns &x, const Begin &begin,
                        const Done &done) {
  Lane<F> lane;
  u32 blocks = x.columns / F::BLOCK, steps = ceil_div(blocks, lane.STEP * K);
  // Beyond the end of a row the last block is read again, and not added.
  auto block_of = [&](u32 step, u32 k) { return lane.first + (step * K + k) * lane.STEP; };
  typename F::Raw next[K][R];
  auto fetch = [&](u32 i, u32 step) __attribute__((always_inline)) {
    u64 start = (u64)(row + i * stride) * blocks;
    UNROLL for (u32 k = 0; k < K; k++) {
      u64 block = start + smaller(block_of(step, k), blocks - 1);
      UNROLL for (u32 r = 0; r < R; r++) next[k][r] = weights[r].fetch(block, lane.unit);
    }
  };
  fetch(0, 0);
  begin();
  UNROLL_BY(1) for (u32 i = 0; i < count; i++) {
    f32 sums[R][1] = {};
    UNROLL_BY(1) for (u32 step = 0; step < steps; step++) {
      typename F::Raw now[K][R];
      UNROLL for (u32 k = 0; k < K; k++) {
        UNROLL for (u32 r = 0; r < R; r++) now[k][r] = next[k][r];
      }
      Activations<F> all[K];
      if constexpr (ALL_AHEAD<1>) {
        UNROLL for (u32 k = 0; k < K; k++) all[k] = activations_of<F>(x, smaller(block_of(step, k), blocks - 1), lane);
      }
      // At the very end it loads the last ones again: with a branch around them, compilers load at
      // the end of the loop.
      bool more = step + 1 < steps, is_last = !more && i + 1 == count;
      fetch(more || is_last ? i : i + 1, more ? step + 1 : is_last ? step : 0);
      begin_loads();
      UNROLL for (u32 k = 0; k < K; k++) {
        u32 at = block_of(step, k);
        f32 with[R][1];
        UNROLL for (u32 r = 0; r < R; r++) with[r][0] = sums[r][0];
        add_unit<F, R, 1, ALL_AHEAD<1>>(now[k], smaller(at, blocks - 1), lane, x, with, all[k]);
        UNROLL for (u32 r = 0; r < R; r++) sums[r][0] = at < blocks ? with[r][0] : sums[r][0];
      }
    }
    done(i, sums);
  }
}
