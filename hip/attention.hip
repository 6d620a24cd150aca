// Causal attention over the paged cache, softmax(softcap(scale * q kᵀ) + mask) v, with an online softmax in f32
// (Milakov and Gimelshein, 2018; Dao et al., 2022). Query head h reads key-value head h / (heads / kv_heads); a query
// at position p sees the positions up to p, and from p + 1 - window on where window is not 0. `softcap` 0 is none.
//
// Parameters in common: q [tokens][heads][k_dim], out [tokens][heads][v_dim]; the cache as in kv.h and rope.hip.
//
// attend_decode_<type>_<n>: for few queries, and for any number of them. A block takes one token, n query heads that
//   share a key-value head (n = 1, 4, 8; the heads of a group that are left over are not stored) and one of `splits`
//   parts of the positions (split-K; Dao et al., Flash-Decoding, 2023). k_dim and v_dim are at most 512.
//   Grid (kv_heads * ceil(group / n), tokens, splits). With `partials` null and splits 1 it writes `out`, otherwise
//   `partials` [tokens][heads][splits][v_dim + 2] f32, which attend_combine(partials, out, out_q, groups, heads, v_dim,
//   splits), grid (heads, tokens), combines: to `out` and, quantized as in activations.h, to `out_q` and `groups` where
//   not null; v_dim is then a multiple of 32.
//
// attend_prompt_<type>_<n>: for many queries of a sequence. A block takes a tile of 32 queries: `heads_in_tile` =
//   min(group, 32) heads of up to 32 / heads_in_tile consecutive tokens, whose first and number are in `tiles` [..][2].
//   v_dim is at most 32 * n, n = 2, 4, 8. Grid (tiles, kv_heads * ceil(group / heads_in_tile)).

#include "activations.h"
#include "kv.h"

#define LOG2_E 1.44269504f
// Where a running maximum starts: below any score, but finite, so that no difference is NaN.
#define LOWEST (-1e30f)

struct Shape {
  u32 heads, kv_heads, k_dim, v_dim;
  MEMBER u32 group() const { return heads / kv_heads; }
};

// What a score needs: softmax is computed in powers of two.
struct Scoring {
  f32 query_factor, cap;
  MEMBER Scoring(f32 scale, f32 softcap)
      : query_factor(softcap > 0.0f ? scale / softcap : scale * LOG2_E),
        cap(softcap > 0.0f ? softcap * LOG2_E : 0.0f) {}
  MEMBER f32 finish(f32 dot) const { return cap > 0.0f ? cap * tanh_fast(dot) : dot; }
};

// The first position that a query sees.
DEVICE u32 first_visible(u32 position, u32 window) {
  return window && position + 1 > window ? position + 1 - window : 0;
}

#define DECODE_THREADS 128
#define MAX_DIM 512

template <class T, u32 N>
DEVICE void attend_decode(const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,
                          f32 *out, f32 *partials, Shape shape, f32 scale, f32 softcap, u32 window, u32 table_len,
                          u32 splits, u64 layer_offset, u64 page_bytes) {
  // The queries, and at the end what the subgroups found.
  SHARED f32 memory[N * MAX_DIM];
  SHARED f32 scores[N][PAGE_LEN];
  SHARED f32 factors[N], maxima[N], sums[N];
  u32 chunks = ceil_div(shape.group(), N), kv_head = block_x() / chunks, chunk = block_x() % chunks;
  u32 token = block_y(), split = block_z(), first_head = kv_head * shape.group() + chunk * N;
  u32 count = smaller(N, shape.group() - chunk * N);
  u32 k_padded = kv_padded<T>(shape.k_dim), v_padded = kv_padded<T>(shape.v_dim);
  Scoring scoring(scale, softcap);

  const f32 *queries = q + ((u64)token * shape.heads + first_head) * shape.k_dim;
  for (u32 i = thread_x(); i < N * k_padded; i += DECODE_THREADS) {
    u32 head = i / k_padded, d = i % k_padded;
    bool inside = head < count && d < shape.k_dim;
    memory[i] = inside ? queries[head * shape.k_dim + d] * scoring.query_factor : 0.0f;
  }
  if (thread_x() < N) {
    maxima[thread_x()] = LOWEST;
    sums[thread_x()] = 0.0f;
  }
  barrier();

  // Threads share keys 8 to one, and values 4 columns to one, in as many subgroups as there are threads for.
  u32 key_part = thread_x() % 8, value_threads = v_padded / 4, subgroups = DECODE_THREADS / value_threads;
  u32 subgroup = thread_x() / value_threads, column = thread_x() % value_threads * 4;
  f32 values[N][4] = {};

  u32 end = positions[token] + 1, start = first_visible(positions[token], window);
  u32 first_page = start / PAGE_LEN, pages = ceil_div(end, PAGE_LEN) - first_page;
  u32 pages_of_split = ceil_div(pages, splits);
  u32 page = first_page + smaller(split * pages_of_split, pages);
  u32 last_page = first_page + smaller((split + 1) * pages_of_split, pages);
  const u32 *numbers = table + (u64)token_tables[token] * table_len;
  u64 keys_of_head = layer_offset + (u64)kv_head * kv_head_bytes<T>(shape.k_dim);
  u64 values_of_head = layer_offset + (u64)shape.kv_heads * kv_head_bytes<T>(shape.k_dim) +
                       (u64)kv_head * kv_head_bytes<T>(shape.v_dim);
  for (; page < last_page; page++) {
    const u8 *bytes = pool + numbers[page] * page_bytes;
    u32 from = larger(start, page * PAGE_LEN) - page * PAGE_LEN, to = smaller(end - page * PAGE_LEN, (u32)PAGE_LEN);
    for (u32 base = 0; base < PAGE_LEN; base += DECODE_THREADS / 8) {
      u32 slot = base + thread_x() / 8;
      // What was never stored is not read, as it may be no number.
      bool visible = from <= slot && slot < to;
      f32 dots[N] = {};
      if (visible) {
        for (u32 i = key_part * 8; i < k_padded; i += 64) {
          f32 key[8];
          kv_load8<T>(bytes + keys_of_head, k_padded, slot, i, key);
          UNROLL for (u32 n = 0; n < N; n++) {
            UNROLL for (u32 k = 0; k < 8; k++) dots[n] = mul_add(memory[n * k_padded + i + k], key[k], dots[n]);
          }
        }
      }
      UNROLL for (u32 n = 0; n < N; n++) {
        f32 dot = wave_sum(dots[n], 8);
        if (key_part == 0) scores[n][slot] = visible ? scoring.finish(dot) : LOWEST;
      }
    }
    barrier();
    for (u32 n = wave_id(); n < N; n += DECODE_THREADS / WAVE) {
      f32 max = maxima[n], sum = 0.0f;
      f32 highest = LOWEST;
      for (u32 slot = lane_id(); slot < PAGE_LEN; slot += WAVE) highest = larger(scores[n][slot], highest);
      highest = larger(wave_max(highest), max);
      for (u32 slot = lane_id(); slot < PAGE_LEN; slot += WAVE) {
        f32 weight = exp2_fast(scores[n][slot] - highest);
        scores[n][slot] = weight;
        if (from <= slot && slot < to) sum += weight;
      }
      sum = wave_sum(sum);
      if (lane_id() == 0) {
        factors[n] = exp2_fast(max - highest);
        maxima[n] = highest;
        sums[n] = mul_add(sums[n], factors[n], sum);
      }
    }
    barrier();
    if (subgroup < subgroups) {
      UNROLL for (u32 n = 0; n < N; n++) {
        UNROLL for (u32 k = 0; k < 4; k++) values[n][k] *= factors[n];
      }
      for (u32 slot = from + subgroup; slot < to; slot += subgroups) {
        f32 value[4];
        kv_load4<T>(bytes + values_of_head, v_padded, slot, column, value);
        UNROLL for (u32 n = 0; n < N; n++) {
          UNROLL for (u32 k = 0; k < 4; k++) values[n][k] = mul_add(scores[n][slot], value[k], values[n][k]);
        }
      }
    }
    barrier();
  }

  if (subgroup < subgroups) {
    UNROLL for (u32 n = 0; n < N; n++) {
      UNROLL for (u32 k = 0; k < 4; k++) memory[(subgroup * N + n) * v_padded + column + k] = values[n][k];
    }
  }
  barrier();
  for (u32 i = thread_x(); i < count * shape.v_dim; i += DECODE_THREADS) {
    u32 n = i / shape.v_dim, d = i % shape.v_dim;
    f32 value = 0.0f;
    for (u32 s = 0; s < subgroups; s++) value += memory[(s * N + n) * v_padded + d];
    u64 head = (u64)token * shape.heads + first_head + n;
    if (!partials) {
      out[head * shape.v_dim + d] = value / sums[n];
    } else {
      f32 *partial = partials + (head * splits + split) * (shape.v_dim + 2);
      partial[2 + d] = value;
      if (d == 0) partial[0] = maxima[n], partial[1] = sums[n];
    }
  }
}

KERNEL(attend_combine, DECODE_THREADS,
       (const f32 *partials, f32 *out, i8 *out_q, u32 *groups, u32 heads, u32 v_dim, u32 splits)) {
  u64 head = (u64)block_y() * heads + block_x();
  u32 stride = v_dim + 2;
  const f32 *parts = partials + head * splits * stride;
  f32 max = LOWEST;
  for (u32 s = 0; s < splits; s++) max = larger(parts[s * stride], max);
  // Whole waves go on, for the sake of the quantization.
  for (u32 first = 0; first < v_dim; first += DECODE_THREADS) {
    u32 d = first + thread_x();
    bool active = d < v_dim;
    f32 sum = 0.0f, value = 0.0f;
    for (u32 s = 0; s < splits; s++) {
      f32 weight = exp2_fast(parts[s * stride] - max);
      sum = mul_add(weight, parts[s * stride + 1], sum);
      value = mul_add(weight, active ? parts[s * stride + 2 + d] : 0.0f, value);
    }
    value /= sum;
    if (active) out[head * v_dim + d] = value;
    if (out_q) store_quantized(value, head * v_dim + d, active, out_q, groups);
  }
}

#define PROMPT_THREADS 256
#define TILE 32
// Columns of queries, keys and values in shared memory at a time, and the distance of rows there.
#define CHUNK 32
#define STRIDE (CHUNK + 4)

template <class T, u32 N>
DEVICE void attend_prompt(const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,
                          const u32 *tiles, f32 *out, Shape shape, f32 scale, f32 softcap, u32 window, u32 table_len,
                          u64 layer_offset, u64 page_bytes) {
  SHARED __attribute__((aligned(16))) f32 queries[TILE][STRIDE];
  SHARED __attribute__((aligned(16))) f32 cached[PAGE_LEN][STRIDE];
  SHARED f32 scores[TILE][PAGE_LEN + 1];
  u32 heads_in_tile = smaller(shape.group(), (u32)TILE), chunks = ceil_div(shape.group(), heads_in_tile);
  u32 kv_head = block_y() / chunks, chunk = block_y() % chunks;
  u32 first_token = tiles[block_x() * 2], tokens = tiles[block_x() * 2 + 1];
  u32 k_padded = kv_padded<T>(shape.k_dim), v_padded = kv_padded<T>(shape.v_dim);
  Scoring scoring(scale, softcap);

  // Query m of the tile is of token m / heads_in_tile. Eight threads share a query, but for the dot products.
  u32 m = thread_x() / 8, part = thread_x() % 8;
  u32 head_in_group = chunk * heads_in_tile + m % heads_in_tile;
  bool is_query = m / heads_in_tile < tokens && head_in_group < shape.group();
  u32 token = first_token + smaller(m / heads_in_tile, tokens - 1);
  u64 query_row = (u64)token * shape.heads + kv_head * shape.group() + head_in_group;
  u32 query_end = positions[token] + 1, query_start = first_visible(positions[token], window);
  f32 max = LOWEST, sum = 0.0f;
  f32 values[N][4] = {};

  u32 start = first_visible(positions[first_token], window), end = positions[first_token + tokens - 1] + 1;
  const u32 *numbers = table + (u64)token_tables[first_token] * table_len;
  u64 keys_of_head = layer_offset + (u64)kv_head * kv_head_bytes<T>(shape.k_dim);
  u64 values_of_head = layer_offset + (u64)shape.kv_heads * kv_head_bytes<T>(shape.k_dim) +
                       (u64)kv_head * kv_head_bytes<T>(shape.v_dim);
  for (u32 page = start / PAGE_LEN; page * PAGE_LEN < end; page++) {
    const u8 *bytes = pool + numbers[page] * page_bytes;
    // Each thread loads 8 columns of one row; what was never stored is not read, as it may be no number.
    u32 load_slot = thread_x() / 4, load_column = thread_x() % 4 * 8, load_position = page * PAGE_LEN + load_slot;
    bool stored = start <= load_position && load_position < end;

    // A thread computes the scores of 2 queries and 4 positions.
    u32 score_query = thread_x() / 16 * 2, score_slot = thread_x() % 16;
    f32 dots[2][4] = {};
    for (u32 column = 0; column < k_padded; column += CHUNK) {
      UNROLL for (u32 k = 0; k < 4; k++) {
        u32 d = column + part * 4 + k;
        bool inside = is_query && d < shape.k_dim;
        queries[m][part * 4 + k] = inside ? q[query_row * shape.k_dim + d] * scoring.query_factor : 0.0f;
      }
      f32 key[8] = {};
      if (stored && column + load_column < k_padded) {
        kv_load8<T>(bytes + keys_of_head, k_padded, load_slot, column + load_column, key);
      }
      UNROLL for (u32 k = 0; k < 8; k++) cached[load_slot][load_column + k] = key[k];
      barrier();
      UNROLL_BY(1) for (u32 d = 0; d < CHUNK; d += 4) {
        f32x4 a[2], b[4];
        UNROLL for (u32 i = 0; i < 2; i++) a[i] = *(const f32x4 *)&queries[score_query + i][d];
        UNROLL for (u32 j = 0; j < 4; j++) b[j] = *(const f32x4 *)&cached[score_slot + 16 * j][d];
        UNROLL for (u32 i = 0; i < 2; i++) {
          UNROLL for (u32 j = 0; j < 4; j++) {
            UNROLL for (u32 k = 0; k < 4; k++) dots[i][j] = mul_add(a[i][k], b[j][k], dots[i][j]);
          }
        }
      }
      barrier();
    }
    UNROLL for (u32 i = 0; i < 2; i++) {
      UNROLL for (u32 j = 0; j < 4; j++) scores[score_query + i][score_slot + 16 * j] = scoring.finish(dots[i][j]);
    }
    barrier();

    f32 highest = LOWEST, page_sum = 0.0f, weights[8];
    UNROLL for (u32 k = 0; k < 8; k++) {
      u32 position = page * PAGE_LEN + part + 8 * k;
      bool visible = query_start <= position && position < query_end;
      weights[k] = visible ? scores[m][part + 8 * k] : LOWEST;
      highest = larger(weights[k], highest);
    }
    highest = larger(wave_max(highest, 8), max);
    UNROLL for (u32 k = 0; k < 8; k++) {
      weights[k] = weights[k] == LOWEST ? 0.0f : exp2_fast(weights[k] - highest);
      scores[m][part + 8 * k] = weights[k];
      page_sum += weights[k];
    }
    f32 factor = exp2_fast(max - highest);
    max = highest;
    sum = mul_add(sum, factor, wave_sum(page_sum, 8));

    UNROLL for (u32 c = 0; c < N; c++) {
      f32 value[8] = {};
      if (stored && c * CHUNK + load_column < v_padded) {
        kv_load8<T>(bytes + values_of_head, v_padded, load_slot, c * CHUNK + load_column, value);
      }
      UNROLL for (u32 k = 0; k < 8; k++) cached[load_slot][load_column + k] = value[k];
      barrier();
      UNROLL for (u32 k = 0; k < 4; k++) values[c][k] *= factor;
      UNROLL_BY(4) for (u32 slot = 0; slot < PAGE_LEN; slot++) {
        f32x4 value = *(const f32x4 *)&cached[slot][part * 4];
        UNROLL for (u32 k = 0; k < 4; k++) values[c][k] = mul_add(scores[m][slot], value[k], values[c][k]);
      }
      barrier();
    }
  }

  if (!is_query) return;
  UNROLL for (u32 c = 0; c < N; c++) {
    UNROLL for (u32 k = 0; k < 4; k++) {
      u32 d = c * CHUNK + part * 4 + k;
      if (d < shape.v_dim) out[query_row * shape.v_dim + d] = values[c][k] / sum;
    }
  }
}

#define STAMP_N(name, type, n)                                                                                         \
  KERNEL(attend_decode_##name##_##n, DECODE_THREADS,                                                                   \
         (const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions, f32 *out,     \
          f32 *partials, u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, f32 scale, f32 softcap, u32 window,            \
          u32 table_len, u32 splits, u64 layer_offset, u64 page_bytes)) {                                              \
    attend_decode<type, n>(q, pool, table, token_tables, positions, out, partials, {heads, kv_heads, k_dim, v_dim},    \
                           scale, softcap, window, table_len, splits, layer_offset, page_bytes);                       \
  }
#define STAMP(name, type) STAMP_N(name, type, 1) STAMP_N(name, type, 4) STAMP_N(name, type, 8)
KV_TYPES(STAMP)
#undef STAMP_N

#define STAMP_N(name, type, n)                                                                                         \
  KERNEL(attend_prompt_##name##_##n, PROMPT_THREADS,                                                                   \
         (const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,               \
          const u32 *tiles, f32 *out, u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, f32 scale, f32 softcap,           \
          u32 window, u32 table_len, u64 layer_offset, u64 page_bytes)) {                                              \
    attend_prompt<type, n>(q, pool, table, token_tables, positions, tiles, out, {heads, kv_heads, k_dim, v_dim},       \
                           scale, softcap, window, table_len, layer_offset, page_bytes);                               \
  }
#undef STAMP
#define STAMP(name, type) STAMP_N(name, type, 2) STAMP_N(name, type, 4) STAMP_N(name, type, 8)
KV_TYPES(STAMP)
