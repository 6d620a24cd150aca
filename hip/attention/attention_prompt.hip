// Attention of many queries, without matrix cores: see attention.h.
//
// attend_prompt_<type>_<n>: for many queries of a sequence. A block takes a tile of 32 queries:
// `heads_in_tile` = min(group, 32) heads of up to 32 / heads_in_tile consecutive tokens. `tiles`
// [..][2] has the first token and the number of tokens. v_dim is at most 32 * n, n = 2, 4, 8. Grid
// (tiles, kv_heads * ceil(group / heads_in_tile)).

#include "attention/attention.h"

#define PROMPT_THREADS 256
#define TILE 32
// The columns of queries, keys and values in shared memory at a time, and the distance of rows.
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

  // Query m of the tile belongs to token m / heads_in_tile. Eight threads share a query, except for
  // the dot products.
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
    // Each thread loads 8 columns of one row. Positions that were never stored are not read,
    // because they may hold NaN.
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
      Eight<T> key = {};
      if (stored && column + load_column < k_padded) {
        key = Eight<T>::load(bytes + keys_of_head, k_padded, load_slot, column + load_column);
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
      Eight<T> value = {};
      if (stored && c * CHUNK + load_column < v_padded) {
        value = Eight<T>::load(bytes + values_of_head, v_padded, load_slot, c * CHUNK + load_column);
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
  KERNEL(attend_prompt_##name##_##n, PROMPT_THREADS,                                                                   \
         (const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,               \
          const u32 *tiles, f32 *out, u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, f32 scale, f32 softcap,           \
          u32 window, u32 table_len, u64 layer_offset, u64 page_bytes)) {                                              \
    attend_prompt<type, n>(q, pool, table, token_tables, positions, tiles, out, {heads, kv_heads, k_dim, v_dim},       \
                           scale, softcap, window, table_len, layer_offset, page_bytes);                               \
  }
#define STAMP(name, type) STAMP_N(name, type, 2) STAMP_N(name, type, 4) STAMP_N(name, type, 8)
KV_TYPES(STAMP)
