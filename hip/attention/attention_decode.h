// The common part of the kernels for few queries: attention.hip and attention_waves.hip.
//
// attend_decode_<type>_<n>, attend_waves_<type>_<n> (q, k, v, angles, pool, table, token_tables,
// positions, out, out_q, groups, partials, counters, heads, kv_heads, k_dim, v_dim, scale, softcap,
// pairs, neox, window, table_len, splits, layer_offset, page_bytes): a block takes one token, some
// of the query heads that share a key-value head, and one of `splits` parts of the positions, of up
// to 64 (split-K; Dao et al., Flash-Decoding, 2023). Grid (kv_heads * ceil(group / heads of a
// block), tokens, splits).
//
//   Where k [tokens][kv_heads][k_dim] and v [tokens][kv_heads][v_dim] are not null, the kernel
//   rotates q and k by `pairs` pairs (0: not at all) and stores k and v in the cache, as store_kv
//   in rope.hip does, except that q stays as it is. No two tokens are then of one sequence.
//
//   The result goes to `out` and, quantized as in quant/activations.h, to `out_q` and `groups`
//   where they are not null; v_dim is then a multiple of 32. With more than one part, each part of
//   a token leaves its result in `partials` [tokens][heads][splits][v_dim, rounded up to 4, + 4].
//   The last part to finish combines them. It learns that it is the last from `counters`
//   [tokens][grid x], which are zeros before and after.
#pragma once

#include "quant/activations.h"
#include "attention/attention.h"
#include "attention/rope.h"

#define DECODE_THREADS 256

// Where a result goes, by the number of an element among all.
struct Result {
  f32 *out;
  i8 *q;
  u32 *groups;
  // All lanes of a wave call it together, with whole groups active or inactive.
  MEMBER void store(f32 value, u64 i, bool active) const {
    if (active) out[i] = value;
    if (q) store_quantized(value, i, active, q, groups);
  }
};

// Keys and values that are not in the cache yet, or null, and the angles for them.
struct Fresh {
  const f32 *k, *v, *angles;
  u32 pairs, neox;
};

// The parameters of the cache.
struct Cache {
  u8 *pool;
  const u32 *table, *token_tables, *positions;
  u32 window, table_len;
  u64 layer_offset, page_bytes;
};

// The work of a block: `count` heads from `first_head` on, and the positions from `start` to `end`
// - 1 that are in the pages from `page` to `last_page` - 1.
template <class T, u32 HEADS> struct Part {
  const Cache &cache;
  Shape shape;
  u32 chunks, kv_head, token, split, splits, first_head, count, start, end, page, last_page;
  const u32 *numbers;
  // The places of the keys and values of the head in a page.
  u64 keys, values;
  // Whether it takes the last page.
  bool has_end;

  MEMBER Part(const Cache &cache, const Shape &shape, u32 splits)
      : cache(cache), shape(shape), chunks(ceil_div(shape.group(), HEADS)), kv_head(block_x() / chunks),
        token(block_y()), split(block_z()), splits(splits) {
    u32 chunk = block_x() % chunks;
    first_head = kv_head * shape.group() + chunk * HEADS;
    count = smaller(HEADS, shape.group() - chunk * HEADS);
    end = cache.positions[token] + 1, start = first_visible(end - 1, cache.window);
    u32 first_page = start / PAGE_LEN, pages = ceil_div(end, PAGE_LEN) - first_page, most = ceil_div(pages, splits);
    page = first_page + smaller(split * most, pages);
    last_page = first_page + smaller((split + 1) * most, pages);
    has_end = page < last_page && last_page == first_page + pages;
    numbers = cache.table + (u64)cache.token_tables[token] * cache.table_len;
    keys = cache.layer_offset + (u64)kv_head * kv_head_bytes<T>(shape.k_dim);
    values = cache.layer_offset + (u64)shape.kv_heads * kv_head_bytes<T>(shape.k_dim) +
             (u64)kv_head * kv_head_bytes<T>(shape.v_dim);
  }

  MEMBER u8 *page_at(u32 page) const { return cache.pool + numbers[page] * cache.page_bytes; }
  MEMBER u64 heads_before() const { return (u64)token * shape.heads + first_head; }

  // Prefetches the first page, and waits for the queries.
  MEMBER void begin() const {
    let_next_begin();
    const u32 LINE = 128;
    if (page < last_page) {
      const u8 *bytes = page_at(page);
      for (u32 at = thread_x() * LINE; at < kv_head_bytes<T>(shape.k_dim); at += DECODE_THREADS * LINE) {
        prefetch(bytes + keys + at);
      }
      for (u32 at = thread_x() * LINE; at < kv_head_bytes<T>(shape.v_dim); at += DECODE_THREADS * LINE) {
        prefetch(bytes + values + at);
      }
    }
    wait_for_launches();
  }

  // Element `d` of head number `head` of the block, scaled for scores; 0 beyond the head.
  MEMBER f32 query(const f32 *q, const Fresh &fresh, f32 factor, u32 head, u32 d) const {
    if (head >= count || d >= shape.k_dim) return 0.0f;
    return rotated(q + (heads_before() + head) * shape.k_dim, d, angles(fresh), fresh.pairs, fresh.neox) * factor;
  }

  // Stores keys and values that are not in the cache yet, in the block whose part of the positions
  // has them. Half of the block stores the keys, the other half the values. Blocks for other heads
  // of the group store the same.
  MEMBER void store(const Fresh &fresh) const {
    if (!fresh.k || !has_end) return;
    const u32 HALF = DECODE_THREADS / 2;
    u32 slot = (end - 1) % PAGE_LEN, thread = thread_x() % HALF;
    u8 *bytes = page_at(last_page - 1);
    u64 row = (u64)token * shape.kv_heads + kv_head;
    if (thread_x() < HALF) {
      store_row<T, HALF>(thread, fresh.k + row * shape.k_dim, shape.k_dim, angles(fresh), fresh.pairs, fresh.neox,
                         bytes + keys, slot);
    } else {
      store_row<T, HALF>(thread, fresh.v + row * shape.v_dim, shape.v_dim, angles(fresh), 0, 0, bytes + values, slot);
    }
  }

  MEMBER const f32 *angles(const Fresh &fresh) const { return fresh.angles + (u64)token * 2 * fresh.pairs; }
};

// The floats of a partial result of a head: sums of values, then the maximum and the sum of
// weights.
DEVICE u32 partial_len(u32 v_dim) { return round_up(v_dim, 4) + 4; }

// Combines the partial results of `count` heads. `memory` has room for a row of values for each,
// and at least one for the block.
DEVICE void combine(const f32 *partials, f32 (*weights)[PAGE_LEN], f32 *memory, u32 count, u32 splits, u32 v_dim,
                    u64 first_head, const Result &result) {
  const u32 EACH = PAGE_LEN / WAVE, LOADS = 8;
  u32 stride = partial_len(v_dim), row = stride - 4, quads = row / 4;
  const f32 *parts = partials + first_head * splits * stride;
  for (u32 n = wave_id(); n < count; n += DECODE_THREADS / WAVE) {
    f32x4 found[EACH];
    f32 highest = LOWEST, sum = 0.0f;
    UNROLL for (u32 j = 0; j < EACH; j++) {
      u32 s = smaller(lane_id() + j * WAVE, splits - 1);
      found[j] = *(const f32x4 *)(parts + (n * splits + s) * stride + row);
      highest = larger(found[j][0], highest);
    }
    highest = wave_max(highest);
    UNROLL for (u32 j = 0; j < EACH; j++) {
      found[j][0] = exp2_fast(found[j][0] - highest);
      if (lane_id() + j * WAVE < splits) sum += found[j][0] * found[j][1];
    }
    sum = wave_sum(sum);
    UNROLL for (u32 j = 0; j < EACH; j++) weights[n][lane_id() + j * WAVE] = found[j][0] / sum;
  }
  barrier();
  // All threads take part: several share four columns.
  u32 all = count * quads, sharers = larger(DECODE_THREADS / all, 1u), sharer = thread_x() / all;
  for (u32 quad = thread_x() % all; sharer < sharers && quad < all; quad += DECODE_THREADS) {
    u32 n = quad / quads;
    const f32 *part = parts + n * splits * stride + quad % quads * 4;
    f32x4 value = {};
    UNROLL_BY(1) for (u32 first = sharer; first < splits; first += LOADS * sharers) {
      f32x4 loaded[LOADS];
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        loaded[j] = *(const f32x4 *)(part + smaller(first + j * sharers, splits - 1) * stride);
      }
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        u32 s = first + j * sharers;
        f32 weight = s < splits ? weights[n][s] : 0.0f;
        UNROLL for (u32 k = 0; k < 4; k++) value[k] = mul_add(weight, loaded[j][k], value[k]);
      }
    }
    *(f32x4 *)(memory + (sharer * all + quad) * 4) = value;
  }
  barrier();
  // Whole waves continue, because quantization needs all lanes.
  for (u32 first = 0; first < count * v_dim; first += DECODE_THREADS) {
    u32 i = first + thread_x();
    bool active = i < count * v_dim;
    f32 value = 0.0f;
    for (u32 s = 0; active && s < sharers; s++) value += memory[s * all * 4 + i / v_dim * row + i % v_dim];
    result.store(value, first_head * v_dim + i, active);
  }
}

// Stores element `d` of the result for head number `head` of the block: the sum of values, the
// maximum and the sum of weights. Whole waves call it, because quantization needs all lanes.
template <class T, u32 HEADS>
DEVICE void leave(const Part<T, HEADS> &part, const Result &result, f32 *partials, u32 head, u32 d, f32 value, f32 max,
                  f32 sum) {
  bool active = d < part.shape.v_dim;
  u64 row = part.heads_before() + head;
  if (part.splits == 1) {
    result.store(value / sum, row * part.shape.v_dim + d, active);
  } else if (active) {
    u32 stride = partial_len(part.shape.v_dim);
    f32 *partial = partials + (row * part.splits + part.split) * stride;
    partial[d] = value;
    if (d == 0) partial[stride - 4] = max, partial[stride - 3] = sum;
  }
}

// Combines the parts, in the block that gets here last. `weights` and `memory` are shared memory.
template <class T, u32 HEADS>
DEVICE void finish(const Part<T, HEADS> &part, const Result &result, f32 *partials, u32 *counters,
                   f32 (*weights)[PAGE_LEN], f32 *memory) {
  SHARED u32 is_last;
  if (part.splits == 1) return;
  u32 *counter = counters + part.token * part.shape.kv_heads * part.chunks + block_x();
  released();
  barrier();
  if (thread_x() == 0) is_last = device_add(counter, 1) == part.splits - 1;
  barrier();
  if (!is_last) return;
  acquired();
  if (thread_x() == 0) *counter = 0;
  combine(partials, weights, memory, part.count, part.splits, part.shape.v_dim, part.heads_before(), result);
}

// The parameters of a kernel, and the arguments that it passes on.
#define DECODE_PARAMETERS                                                                                              \
  (const f32 *q, const f32 *k, const f32 *v, const f32 *angles, u8 *pool, const u32 *table, const u32 *token_tables,   \
   const u32 *positions, f32 *out, i8 *out_q, u32 *groups, f32 *partials, u32 *counters, u32 heads, u32 kv_heads,      \
   u32 k_dim, u32 v_dim, f32 scale, f32 softcap, u32 pairs, u32 neox, u32 window, u32 table_len, u32 splits,           \
   u64 layer_offset, u64 page_bytes)
#define DECODE_ARGUMENTS                                                                                               \
  q, {k, v, angles, pairs, neox}, {pool, table, token_tables, positions, window, table_len, layer_offset, page_bytes}, \
      {out, out_q, groups}, partials, counters, {heads, kv_heads, k_dim, v_dim}, scale, softcap, splits
