// Rotary position embeddings (Su et al., 2021), and storing keys and values in the cache.
//
// The host computes the cosines and sines. `angles` is [..][2 * pairs], cosines first. `angle_rows`
// says which of its rows a token uses; where it is null, each token has its own. Pair i of a head
// is columns (2i, 2i + 1), or (i, i + pairs) where `neox` is 1. Columns from 2 * pairs on are not
// rotated.
//
// rope(x, angles, angle_rows, heads, head_dim, pairs, neox): in place, x [tokens][heads][head_dim].
// Grid (heads, tokens).
//
// store_kv_<type>(q, k, v, angles, angle_rows, pool, table, token_tables, positions, heads,
// kv_heads, k_dim, v_dim, pairs, neox, table_len, layer_offset, page_bytes):
//   rotates q [tokens][heads][k_dim] in place, and appends k [tokens][kv_heads][k_dim], rotated,
//   and v [tokens][kv_heads][v_dim] to the cache of a layer. The position of a token is
//   positions[token], its page table is row token_tables[token] of `table` [..][table_len]. Nothing
//   is rotated where `angles` is null, and q is left alone where `heads` is 0. In f16, magnitudes
//   beyond 65504 are stored as 65504. Grid (heads + 2 * kv_heads, tokens).

#include "attention/rope.h"

#define ROPE_THREADS 64

DEVICE void rotate_head(f32 *x, const f32 *angles, u32 pairs, u32 neox) {
  for (u32 i = thread_x(); i < pairs; i += ROPE_THREADS) {
    u32 first = neox ? i : 2 * i, second = neox ? i + pairs : 2 * i + 1;
    f32 a = x[first], b = x[second], cosine = angles[i], sine = angles[pairs + i];
    x[first] = a * cosine - b * sine;
    x[second] = a * sine + b * cosine;
  }
}

// The place where the angles of a token start.
DEVICE u64 angles_at(const u32 *angle_rows, u32 token, u32 pairs) {
  return (u64)(angle_rows ? angle_rows[token] : token) * 2 * pairs;
}

KERNEL(rope, ROPE_THREADS,
       (f32 *x, const f32 *angles, const u32 *angle_rows, u32 heads, u32 head_dim, u32 pairs, u32 neox)) {
  u32 head = block_x(), token = block_y();
  rotate_head(x + ((u64)token * heads + head) * head_dim, angles + angles_at(angle_rows, token, pairs), pairs, neox);
}

template <class T>
DEVICE void store_kv(f32 *q, const f32 *k, const f32 *v, const f32 *angles, const u32 *angle_rows, u8 *pool,
                     const u32 *table, const u32 *token_tables, const u32 *positions, u32 heads, u32 kv_heads,
                     u32 k_dim, u32 v_dim, u32 pairs, u32 neox, u32 table_len, u64 layer_offset, u64 page_bytes) {
  begin_launch();
  u32 head = block_x(), token = block_y();
  if (!angles) pairs = 0;
  u64 turn = pairs ? angles_at(angle_rows, token, pairs) : 0;
  if (head < heads) {
    rotate_head(q + ((u64)token * heads + head) * k_dim, angles + turn, pairs, neox);
    return;
  }
  head -= heads;
  u32 position = positions[token], slot = position % PAGE_LEN;
  u32 page = table[(u64)token_tables[token] * table_len + position / PAGE_LEN];
  u8 *layer = pool + page * page_bytes + layer_offset;
  if (head < kv_heads) {
    u8 *to = layer + (u64)head * kv_head_bytes<T>(k_dim);
    const f32 *from = k + ((u64)token * kv_heads + head) * k_dim;
    store_row<T, ROPE_THREADS>(thread_x(), from, k_dim, angles + turn, pairs, neox, to, slot);
  } else {
    head -= kv_heads;
    u8 *to = layer + (u64)kv_heads * kv_head_bytes<T>(k_dim) + (u64)head * kv_head_bytes<T>(v_dim);
    const f32 *from = v + ((u64)token * kv_heads + head) * v_dim;
    store_row<T, ROPE_THREADS>(thread_x(), from, v_dim, angles, 0, 0, to, slot);
  }
}

#define STAMP(name, type)                                                                                              \
  KERNEL(store_kv_##name, ROPE_THREADS,                                                                                \
         (f32 * q, const f32 *k, const f32 *v, const f32 *angles, const u32 *angle_rows, u8 *pool, const u32 *table,   \
          const u32 *token_tables, const u32 *positions, u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, u32 pairs,     \
          u32 neox, u32 table_len, u64 layer_offset, u64 page_bytes)) {                                                \
    store_kv<type>(q, k, v, angles, angle_rows, pool, table, token_tables, positions, heads, kv_heads, k_dim, v_dim,   \
                   pairs, neox, table_len, layer_offset, page_bytes);                                                  \
  }
KV_TYPES(STAMP)
