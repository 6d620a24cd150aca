// Products of a matrix with 1 to 8 columns of activations: decoding, which reads every weight once and is bound by
// that.
//
// matvec_<type>_<n>(w, q, groups, out, bias, residual, rows, columns, count, squares, eps) for quantized types, with
// activations quantized as in activations.h, and matvec_<type>_<n>(w, x, out, bias, residual, rows, columns, count) for
// f32, f16 and bf16, with f32 activations [count][columns]:
//
//   out[c][row] = factor[c] * sum over k of w[row][k] * x[c][k], + bias[row] if bias, + residual[c][row] if residual
//
// for c < count <= n, with n = 1, 2, 4, 8. `residual` may be `out`. A wave computes a row, four waves make a block:
// grid ceil(rows / 4), blocks of 4 * WAVE threads. The factor is 1, or where `squares` is not null that of a root mean
// square norm, 1 / sqrt(mean + eps), of which matvec_residual leaves the sums: it can come last, since activations are
// quantized in groups with scales of their own.
//
// What reads the same activations is one launch, of quantized types:
//
// matvec_three_<type>_<n>(w0, w1, w2, q, groups, out0, out1, out2, bias0, bias1, bias2, rows0, rows1, rows2, columns,
//   count, squares, eps): three products (queries, keys, values), the last two with 0 rows where there are fewer.
//   In matvec_three_<type>_<other>_<n> the last matrix has the other type. Grid ceil(rows0 / 4) + ceil(rows1 / 4) +
//   ceil(rows2 / 4), blocks as above.
// matvec_glu_<type>_<n>(gate, up, q, groups, out, out_q, out_groups, gelu, rows, columns, count, squares, eps):
//   two products and what elementwise.hip's glu makes of them, to `out` (f32) and, quantized, to `out_q` and
//   `out_groups`, each where not null; for the latter `rows` is a multiple of 32. A block takes 32 rows: grid
//   ceil(rows / 32), blocks of 256.
// matvec_residual_<type>_<n>(w, q, groups, x, bias, norm, out_q, out_groups, squares, rows, columns, count): a
//   product that is added to the residual stream x [count][rows], and what a norm with the weights `norm` then begins
//   with: x * norm, quantized, and sums of 32 squares of x, squares [count][rows / 32]. `rows` is a multiple of 32.
//   Grid rows / 32, blocks of RESIDUAL_THREADS(n).

#include "activations.h"
#include "glu.h"
#include "quant.h"

#define MATVEC_WAVES 4
#define MATVEC_THREADS (MATVEC_WAVES * WAVE)
#define GLU_THREADS 256
#define GLU_WAVES (GLU_THREADS / WAVE)
// As many waves as have registers for what each has under way.
#if GPU_AMD && REGISTERS == 256
#define RESIDUAL_THREADS(n) ((n) == 1 ? 512 : 256)
#else
#define RESIDUAL_THREADS(n) ((n) == 1 ? 1024 : 512)
#endif

// Units that are fetched ahead: more of those that take longer to decode. R rows and N columns share the registers.
template <class F> constexpr bool MANY_LOADS = sizeof(typename F::Raw) > 34;
template <class F> constexpr bool SMALL = F::ONE_SCALE && !MANY_LOADS<F>;
template <class F, u32 R, u32 N>
constexpr u32 AHEAD = N > 2 || R > 1 || (N > 1 && MANY_LOADS<F>) ? 1 : N > 1 || SMALL<F> || WAVE == 64 ? 2 : 4;

// The same where all waves of a large block share the registers.
template <class F, u32 N> constexpr u32 RESIDUAL_AHEAD = AHEAD<F, 1, N>;
#if WAVE == 64
template <> constexpr u32 RESIDUAL_AHEAD<Q3_K, 1> = 1;
#elif GPU_AMD && REGISTERS == 1024
template <> constexpr u32 RESIDUAL_AHEAD<Q3_K, 1> = 2;
template <> constexpr u32 RESIDUAL_AHEAD<Q5_K, 1> = 2;
#endif

// Registers for so many blocks on a compute unit: with one column as measured on an H100 (docs/gpu-performance.md),
// with more as many as do not spill.
#if GPU_AMD
// A block of four waves has one on each SIMD unit.
constexpr u32 ONE_COLUMN = REGISTERS == 1536 ? 8 : REGISTERS == 1024 ? 6 : REGISTERS == 512 ? 5 : 2;
template <class F, u32 N> constexpr u32 BLOCKS = N == 1 ? ONE_COLUMN : 1;
template <u32 N> constexpr u32 MIXED_BLOCKS = N == 1 ? ONE_COLUMN : 1;
// Of eight waves, or four of 64 lanes.
template <class F, u32 N>
constexpr u32 GLU_BLOCKS = N > 1                 ? 1
                           : REGISTERS == 1536   ? 4
                           : REGISTERS == 512    ? 4
                           : REGISTERS == 256    ? 2
                           : MANY_LOADS<F>       ? 2
                                                 : 3;
#else
template <class F, u32 N> constexpr u32 BLOCKS = N == 1 ? (MANY_LOADS<F> ? 5 : SMALL<F> ? 8 : 6) : N == 2 ? 5 : 4;
template <u32 N> constexpr u32 MIXED_BLOCKS = N == 1 ? 6 : 4;
template <class F, u32 N> constexpr u32 GLU_BLOCKS = N > 1 || MANY_LOADS<F> ? 2 : 4;
#endif
// Gated units whose loads are under way from row to row.
template <class F, u32 N> constexpr bool STREAMS = N == 1 && MANY_LOADS<F>;

// The quantized activations of a product.
struct Columns {
  const i8 *q;
  const u32 *groups;
  u32 columns, count;
  // What is left of the norm of these activations, or null.
  const f32 *squares;
  f32 eps;
  // What the sums of column c are multiplied with, in two steps: a lane's part of it, which is read while the weights
  // are on their way, and the number itself. All lanes of the wave call them together.
#if READS_EARLY
  // The first numbers, which are added when all else has been asked for, and the sum of those behind them.
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

// What is added to sums of a row: it is read while the weights are on their way.
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

// What a lane does in a row: its units are `unit` of the blocks `first`, `first` + STEP and so on.
template <class F> struct Lane {
  static constexpr u32 UNITS = F::BLOCK / UNIT_WEIGHTS, STEP = WAVE / UNITS;
  u32 unit, first;
  MEMBER Lane() : unit(lane_id() % UNITS), first(lane_id() / UNITS) {}
};

// What a unit is multiplied with: its runs of a column, and what belongs to their groups.
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
    // Where the other word is not needed, compilers load it over the next number, and wait in between.
    if (F::ZERO == 0 && !F::MINS) return u32x2{*from, 0};
#endif
    return *(const u32x2 *)from;
  }
};

// Those of the lane's unit in block number `at` of the rows, of the first column.
template <class F> DEVICE Activations<F> activations_of(const Columns &x, u32 at, const Lane<F> &lane) {
  u32 block = at * F::BLOCK;
  return Activations<F>(x, block + F::first(lane.unit), block + F::second(lane.unit));
}

// Adds a unit of R rows, which is in block number `at` of them, for N columns. EARLY: what the first column is
// multiplied with was loaded before.
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
        // Both runs are in the same half of their groups. Products with factors are exact integers below 2^25.
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

// Whether all loads of add_units come before the first use: where the compiler would otherwise wait in between, and
// registers suffice.
template <u32 N> constexpr bool ALL_AHEAD = READS_EARLY && N == 1;

// Adds K units, which are fetched before the first is decoded, of R rows, for N columns.
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

// Units of a row that are fetched before what they are multiplied with is known: none where launches do not overlap
// (gpu.h), or registers do not suffice.
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
      // What is beyond the end of the row is the last block again, and not added.
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
  // Without branches between them, activations of all units are read at once. Short rows are fetched again.
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

// Does the same for one column and `count` rows, number `row`, `row` + `stride` and so on, and hands their sums to
// `done`. While K units of R rows are added the next ones are on their way, and those of the next rows at the end.
// `begin` is called when the first are.
template <class F, u32 R, u32 K, class Begin, class Done>
DEVICE void stream_rows(const F *weights, u32 row, u32 stride, u32 count, const Columns &x, const Begin &begin,
                        const Done &done) {
  Lane<F> lane;
  u32 blocks = x.columns / F::BLOCK, steps = ceil_div(blocks, lane.STEP * K);
  // What is beyond the end of a row is the last block again, and not added.
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
      // At the very end the last ones again: with a branch around them, compilers load at the end of the loop.
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

template <class F, u32 N>
DEVICE void matvec_quantized(const u8 *w, const Columns &x, f32 *out, const f32 *bias, const f32 *residual, u32 row,
                             u32 rows) {
  F weights[1] = {F(w, (u64)rows * (x.columns / F::BLOCK))};
  Begun<F, 1, N> begun(weights, smaller(row, rows - 1), x.columns);
  wait_for_launches();
  if (row >= rows) return;
  Columns::Part parts[N];
  UNROLL for (u32 c = 0; c < N; c++) parts[c] = x.part_of_factor(c);
  f32 sums[1][N] = {};
  if constexpr (READS_EARLY) {
    Added<N> added(bias, residual, row, rows, x.count);
    add_row<F, 1, N>(weights, row, begun, x, sums);
    UNROLL for (u32 c = 0; c < N; c++) sums[0][c] *= x.factor(parts[c]);
    finish_row<N>(sums[0], out, added, residual != nullptr, row, rows, x.count);
  } else {
    add_row<F, 1, N>(weights, row, begun, x, sums);
    UNROLL for (u32 c = 0; c < N; c++) sums[0][c] *= x.factor(parts[c]);
    finish_row<N>(sums[0], out, bias, residual, row, rows, x.count);
  }
}

// The row of this wave where a matrix starts at block `block` of the grid.
DEVICE u32 row_of_wave(u32 block) { return (block_x() - block) * MATVEC_WAVES + wave_id(); }

template <class F, class G, u32 N>
DEVICE void matvec_three(const u8 *w0, const u8 *w1, const u8 *w2, const Columns &x, f32 *out0, f32 *out1, f32 *out2,
                         const f32 *bias0, const f32 *bias1, const f32 *bias2, u32 rows0, u32 rows1, u32 rows2) {
  let_next_begin();
  u32 second = ceil_div(rows0, MATVEC_WAVES), third = second + ceil_div(rows1, MATVEC_WAVES);
  if (block_x() >= third) {
    matvec_quantized<G, N>(w2, x, out2, bias2, nullptr, row_of_wave(third), rows2);
    return;
  }
  bool is_first = block_x() < second;
  matvec_quantized<F, N>(is_first ? w0 : w1, x, is_first ? out0 : out1, is_first ? bias0 : bias1, nullptr,
                         row_of_wave(is_first ? 0 : second), is_first ? rows0 : rows1);
}

template <class F, u32 N>
DEVICE void matvec_glu(const u8 *gate, const u8 *up, const Columns &x, f32 *out, i8 *out_q, u32 *out_groups, u32 gelu,
                       u32 rows) {
  SHARED f32 values[N][GROUP];
  let_next_begin();
  u64 blocks = (u64)rows * (x.columns / F::BLOCK);
  Columns::Part parts[N];
  auto begin = [&]() __attribute__((always_inline)) {
    wait_for_launches();
    UNROLL for (u32 c = 0; c < N; c++) parts[c] = x.part_of_factor(c);
  };
  F weights[2] = {F(gate, blocks), F(up, blocks)};
  auto finish = [&](u32 i, f32 sums[2][N]) __attribute__((always_inline)) {
    UNROLL for (u32 c = 0; c < N; c++) {
      f32 factor = x.factor(parts[c]), g = wave_sum(sums[0][c]) * factor, u = wave_sum(sums[1][c]) * factor;
      if (lane_id() == 0) values[c][i] = (gelu ? Gelu::apply(g) : Silu::apply(g)) * u;
    }
  };
  u32 first = block_x() * GROUP, rows_here = smaller(rows - first, (u32)GROUP);
  if constexpr (STREAMS<F, N>) {
    u32 count = wave_id() < rows_here ? ceil_div(rows_here - wave_id(), GLU_WAVES) : 0;
    auto done = [&](u32 i, f32 sums[2][1]) { finish(wave_id() + i * GLU_WAVES, sums); };
    if (count) {
      stream_rows<F, 2, WAVE == 64 ? 1 : 2>(weights, first + wave_id(), GLU_WAVES, count, x, begin, done);
    } else {
      wait_for_launches();
    }
  } else {
    // Where registers do not suffice for both, rows of one matrix come after those of the other.
    const u32 R = N < 8 ? 2 : 1;
    u32 i = wave_id();
    Begun<F, R, N> begun(weights, smaller(first + i, rows - 1), x.columns);
    begin();
    UNROLL_BY(1) while (i < rows_here) {
      f32 sums[2][N] = {};
      add_row<F, R, N>(weights, first + i, begun, x, sums);
      if constexpr (R == 1) {
        add_row<F, 1, N>(weights + 1, first + i, Begun<F, 1, N>(weights + 1, first + i, x.columns), x, sums + 1);
      }
      finish(i, sums);
      i += GLU_WAVES;
      if (i < rows_here) begun = Begun<F, R, N>(weights, first + i, x.columns);
    }
  }
  shared_barrier();
  u32 row = block_x() * GROUP + lane_id();
  // Lanes from 32 on have no row, but take part.
  bool active = lane_id() < GROUP && row < rows;
  for (u32 c = wave_id(); c < N && c < x.count; c += GLU_WAVES) {
    f32 value = values[c][lane_id() % GROUP];
    u64 at = (u64)c * rows + row;
    if (out && active) out[at] = value;
    if (out_q) store_quantized(value, at, active, out_q, out_groups);
  }
}

template <class F, u32 N, u32 WAVES>
DEVICE void matvec_residual(const u8 *w, const Columns &x, f32 *stream, const f32 *bias, const f32 *norm, i8 *out_q,
                            u32 *out_groups, f32 *squares, u32 rows) {
  SHARED f32 values[N][GROUP];
  let_next_begin();
  F weights[1] = {F(w, (u64)rows * (x.columns / F::BLOCK))};
  u32 first = block_x() * GROUP;
  Begun<F, 1, N> begun(weights, first + wave_id(), x.columns);
  wait_for_launches();
  // What the sums of a column are added to, and multiplied with: the wave's first ones while weights are on their way.
  f32 before = 0.0f, offset = 0.0f, weight = 0.0f;
  auto read = [&](u32 c) __attribute__((always_inline)) {
    u32 row = block_x() * GROUP + lane_id() % GROUP;
    before = stream[(u64)c * rows + row], offset = bias ? bias[row] : 0.0f, weight = norm[row];
  };
  if (READS_EARLY && wave_id() < N && wave_id() < x.count) read(wave_id());
  UNROLL_BY(1) for (u32 round = 0; round < GROUP / WAVES; round++) {
    u32 i = round * WAVES + wave_id();
    if (round > 0) begun = Begun<F, 1, N>(weights, first + i, x.columns);
    f32 sums[1][N] = {};
    add_row<F, 1, N, RESIDUAL_AHEAD<F, N>>(weights, first + i, begun, x, sums);
    UNROLL for (u32 c = 0; c < N; c++) {
      f32 sum = wave_sum(sums[0][c]);
      if (lane_id() == 0) values[c][i] = sum;
    }
  }
  shared_barrier();
  // Lanes from 32 on have no row, but take part.
  bool active = lane_id() < GROUP;
  u32 row = block_x() * GROUP + lane_id() % GROUP;
  for (u32 c = wave_id(); c < N && c < x.count; c += WAVES) {
    u64 at = (u64)c * rows + row;
    if (READS_EARLY && c >= WAVES) read(c);
    f32 value = READS_EARLY ? before + values[c][lane_id() % GROUP] + offset
                            : stream[at] + values[c][lane_id() % GROUP] + (bias ? bias[row] : 0.0f);
    f32 sum = wave_sum(value * value, GROUP);
    if (active) stream[at] = value;
    if (lane_id() == 0) squares[c * (rows / GROUP) + block_x()] = sum;
    store_quantized(value * (READS_EARLY ? weight : norm[row]), at, active, out_q, out_groups);
  }
}

template <class F, u32 N>
DEVICE void matvec_floats(const u8 *w, const f32 *x, f32 *out, const f32 *bias, const f32 *residual, u32 rows,
                          u32 columns, u32 count) {
  begin_launch();
  u32 row = row_of_wave(0);
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

#if GPU_AMD
#define WAVES_OF_BLOCKS(threads, blocks) ((blocks) * (threads) / WAVE / 4)
#define FOR_BLOCKS(name, threads, blocks, parameters)                                                                  \
  KERNEL_FOR_WAVES(                                                                                                    \
      name, threads,                                                                                                   \
      (WAVES_OF_BLOCKS(threads, blocks) > REGISTERS / 256 ? WAVES_OF_BLOCKS(threads, blocks) : REGISTERS / 256),       \
      parameters)
#else
#define FOR_BLOCKS(name, threads, blocks, parameters) KERNEL_FOR_BLOCKS(name, threads, blocks, parameters)
#endif
#define THREE(name, format, other, n, blocks)                                                                          \
  FOR_BLOCKS(matvec_three_##name##_##n, MATVEC_THREADS, blocks,                                                        \
             (const u8 *w0, const u8 *w1, const u8 *w2, const i8 *q, const u32 *groups, f32 *out0, f32 *out1,          \
              f32 *out2, const f32 *bias0, const f32 *bias1, const f32 *bias2, u32 rows0, u32 rows1, u32 rows2,        \
              u32 columns, u32 count, const f32 *squares, f32 eps)) {                                                  \
    Columns x = {q, groups, columns, count, squares, eps};                                                             \
    matvec_three<format, other, n>(w0, w1, w2, x, out0, out1, out2, bias0, bias1, bias2, rows0, rows1, rows2);         \
  }
#define STAMP_N(name, format, n)                                                                                       \
  FOR_BLOCKS(matvec_##name##_##n, MATVEC_THREADS, (BLOCKS<format, n>),                                                 \
             (const u8 *w, const i8 *q, const u32 *groups, f32 *out, const f32 *bias, const f32 *residual,             \
              u32 rows, u32 columns, u32 count, const f32 *squares, f32 eps)) {                                        \
    Columns x = {q, groups, columns, count, squares, eps};                                                             \
    let_next_begin();                                                                                                  \
    matvec_quantized<format, n>(w, x, out, bias, residual, row_of_wave(0), rows);                                      \
  }                                                                                                                    \
  THREE(name, format, format, n, (BLOCKS<format, n>))                                                                  \
  FOR_BLOCKS(matvec_glu_##name##_##n, GLU_THREADS, (GLU_BLOCKS<format, n>),                                            \
             (const u8 *gate, const u8 *up, const i8 *q, const u32 *groups, f32 *out, i8 *out_q,                       \
              u32 *out_groups, u32 gelu, u32 rows, u32 columns, u32 count, const f32 *squares, f32 eps)) {             \
    Columns x = {q, groups, columns, count, squares, eps};                                                             \
    matvec_glu<format, n>(gate, up, x, out, out_q, out_groups, gelu, rows);                                            \
  }                                                                                                                    \
  FOR_BLOCKS(matvec_residual_##name##_##n, RESIDUAL_THREADS(n), 1,                                                     \
             (const u8 *w, const i8 *q, const u32 *groups, f32 *x, const f32 *bias, const f32 *norm, i8 *out_q,        \
              u32 *out_groups, f32 *squares, u32 rows, u32 columns, u32 count)) {                                      \
    Columns columns_of_x = {q, groups, columns, count, nullptr, 0.0f};                                                 \
    matvec_residual<format, n, RESIDUAL_THREADS(n) / WAVE>(w, columns_of_x, x, bias, norm, out_q, out_groups, squares, \
                                                           rows);                                                      \
  }
#define STAMP(name, format)                                                                                            \
  STAMP_N(name, format, 1) STAMP_N(name, format, 2) STAMP_N(name, format, 4) STAMP_N(name, format, 8)
QUANTIZED_FORMATS(STAMP)
#undef STAMP_N
#undef STAMP

// Half of the layers of the mixes Q4_K_M and Q5_K_M have values of 6 bits.
#define STAMP(name, format)                                                                                            \
  THREE(name, format, Q6_K, 1, MIXED_BLOCKS<1>) THREE(name, format, Q6_K, 2, MIXED_BLOCKS<2>)                          \
  THREE(name, format, Q6_K, 4, MIXED_BLOCKS<4>) THREE(name, format, Q6_K, 8, MIXED_BLOCKS<8>)
STAMP(q4_k_q6_k, Q4_K)
STAMP(q5_k_q6_k, Q5_K)
#undef STAMP

#define STAMP_N(name, format, n)                                                                                       \
  KERNEL(matvec_##name##_##n, MATVEC_THREADS,                                                                          \
         (const u8 *w, const f32 *x, f32 *out, const f32 *bias, const f32 *residual, u32 rows, u32 columns,            \
          u32 count)) {                                                                                                \
    matvec_floats<format, n>(w, x, out, bias, residual, rows, columns, count);                                         \
  }
#define STAMP(name, format)                                                                                            \
  STAMP_N(name, format, 1) STAMP_N(name, format, 2) STAMP_N(name, format, 4) STAMP_N(name, format, 8)
FLOAT_FORMATS(STAMP)
