// Products of a matrix with 1 to 8 columns of activations: decoding, which reads every weight once.
// That bounds its speed.
//
// matvec_<type>_<n>(w, q, groups, out, bias, residual, rows, columns, count, squares, eps) for
// quantized types, with activations quantized as in quant/activations.h, and matvec_<type>_<n>(w,
// x, out, bias, residual, rows, columns, count) for f32, f16 and bf16, with f32 activations
// [count][columns]:
//
//   out[c][row] = factor[c] * sum over k of w[row][k] * x[c][k], + bias[row] if bias, +
//   residual[c][row] if residual
//
// for c < count <= n, with n = 1, 2, 4, 8. `residual` may be `out`. A wave computes a row, four
// waves make a block: grid ceil(rows / 4), blocks of 4 * WAVE threads. The factor is 1, or where
// `squares` is not null that of a root mean square norm, 1 / sqrt(mean + eps). matvec_residual
// leaves the sums for it in `squares`. The factor can come last, because activations are quantized
// in groups with scales of their own.
//
// Products of quantized types that read the same activations are one launch:
//
// matvec_three_<type>_<n>(w0, w1, w2, q, groups, out0, out1, out2, bias0, bias1, bias2, rows0,
// rows1, rows2, columns, count, squares, eps): three products (queries, keys, values), the last two
// with 0 rows where there are fewer. In matvec_three_<type>_<other>_<n> the last matrix has the
// other type. Grid ceil(rows0 / 4) + ceil(rows1 / 4) + ceil(rows2 / 4), blocks as above.
//
// matvec_glu_<type>_<n>(gate, up, q, groups, out, out_q, out_groups, gelu, rows, columns, count,
// squares, eps): two products and the gated unit of rows/elementwise.hip, to `out` (f32) and,
// quantized, to `out_q` and `out_groups`, each where not null. For the latter `rows` is a multiple
// of 32. A block takes 32 rows: grid ceil(rows / 32), blocks of 256.
//
// matvec_residual_<type>_<n>(w, q, groups, x, bias, norm, out_q, out_groups, squares, rows,
// columns, count): a product that is added to the residual stream x [count][rows], and the start of
// a norm with the weights `norm`: x * norm, quantized, and the sums of 32 squares of x, squares
// [count][rows / 32]. `rows` is a multiple of 32. Grid rows / 32, blocks of RESIDUAL_THREADS(n).

#include "matmul/matvec_rows.h"
#include "rows/glu.h"

#define MATVEC_WAVES 4
#define MATVEC_THREADS (MATVEC_WAVES * WAVE)
#define GLU_THREADS 256
#define GLU_WAVES (GLU_THREADS / WAVE)
// As many waves as there are registers for the loads that each has in flight.
#if GPU_AMD && REGISTERS == 256
#define RESIDUAL_THREADS(n) ((n) == 1 ? 512 : 256)
#else
#define RESIDUAL_THREADS(n) ((n) == 1 ? 1024 : 512)
#endif

// AHEAD where all waves of a large block share the registers.
template <class F, u32 N> constexpr u32 RESIDUAL_AHEAD = AHEAD<F, 1, N>;
#if WAVE == 64
template <> constexpr u32 RESIDUAL_AHEAD<Q3_K, 1> = 1;
#elif GPU_AMD && REGISTERS == 1024
template <> constexpr u32 RESIDUAL_AHEAD<Q3_K, 1> = 2;
template <> constexpr u32 RESIDUAL_AHEAD<Q5_K, 1> = 2;
#endif

// How many blocks on a compute unit there are registers for. With one column these are the fastest
// choices on an H100 (docs/lab/gpu.md); with more columns, the most that do not spill.
#if GPU_AMD
// Each of the four waves of a block has a SIMD unit.
constexpr u32 ONE_COLUMN = REGISTERS == 1536 ? 8 : REGISTERS == 1024 ? 6 : REGISTERS == 512 ? 5 : 2;
template <class F, u32 N> constexpr u32 BLOCKS = N == 1 ? ONE_COLUMN : 1;
template <u32 N> constexpr u32 MIXED_BLOCKS = N == 1 ? ONE_COLUMN : 1;
// For blocks of eight waves, or of four with 64 lanes.
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
// Gated units that keep loads in flight from row to row.
template <class F, u32 N> constexpr bool STREAMS = N == 1 && MANY_LOADS<F>;

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

// The row of this wave, of a matrix that starts at block `block` of the grid.
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
    // Where there are not enough registers for both matrices, rows of one come after those of the
    // other.
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
  // The numbers that the sums of a column are added to and multiplied with. The wave's first ones
  // are read while weights are loading.
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
  // Rows of whole vectors are aligned. Others are read one by one.
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
