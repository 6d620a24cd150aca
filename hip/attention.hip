// Attention of few queries: see attention.h.
//
// attend_decode_<type>_<n>(q, k, v, angles, pool, table, token_tables, positions, out, out_q, groups, partials,
//   counters, heads, kv_heads, k_dim, v_dim, scale, softcap, pairs, neox, window, table_len, splits, layer_offset,
//   page_bytes): for few queries, and for any number of them. A block takes one token, n query heads that share a
//   key-value head (n = 1, 4, 8; the heads of a group that are left over are not stored) and one of `splits` parts of
//   the positions, of up to 64 (split-K; Dao et al., Flash-Decoding, 2023). k_dim and v_dim are at most 512.
//   Grid (kv_heads * ceil(group / n), tokens, splits).
//
//   Where k [tokens][kv_heads][k_dim] and v [tokens][kv_heads][v_dim] are not null, they are not yet in the cache, and
//   q and k not yet rotated, by `pairs` pairs (0: not at all): as store_kv in rope.hip, but that q stays as it is. No
//   two tokens are then of one sequence.
//
//   The result goes to `out` and, quantized as in activations.h, to `out_q` and `groups` where they are not null; v_dim
//   is then a multiple of 32. With more than one part, those of a token leave what they found in `partials`
//   [tokens][heads][splits][v_dim + 2], and the last one that is done, by `counters` [tokens][grid x], which are zeros
//   before and after, combines them.

#include "activations.h"
#include "attention.h"
#include "rope.h"

#define DECODE_THREADS 256
#define MAX_DIM 512
// Threads that share a key, and loads of 8 elements that each has under way: as many as leave registers for the heads.
#define KEY_THREADS 4
template <class T, u32 N> constexpr u32 AHEAD = N * (T::SCALES ? 2 : 1) > 4 || N * T::BYTES > 8 ? 2 : 4;

// What becomes of a result: element `i` of all.
struct Result {
  f32 *out;
  i8 *q;
  u32 *groups;
  // All lanes of a wave call it together, the inactive ones for whole groups.
  MEMBER void store(f32 value, u64 i, bool active) const {
    if (active) out[i] = value;
    if (q) store_quantized(value, i, active, q, groups);
  }
};

// Keys and values that are not in the cache yet, or null, and angles.
struct Fresh {
  const f32 *k, *v, *angles;
  u32 pairs, neox;
};

// Combines what the parts of the positions found for `count` heads: maxima, sums, and sums of values.
template <u32 N>
DEVICE void combine(const f32 *partials, f32 (*weights)[PAGE_LEN], u32 count, u32 splits, u32 v_dim, u64 first_head,
                    const Result &result) {
  u32 stride = v_dim + 2;
  const f32 *parts = partials + first_head * splits * stride;
  for (u32 n = wave_id(); n < count; n += DECODE_THREADS / WAVE) {
    const f32 *part = parts + n * splits * stride;
    f32 highest = LOWEST, sum = 0.0f;
    for (u32 s = lane_id(); s < splits; s += WAVE) highest = larger(part[s * stride], highest);
    highest = wave_max(highest);
    for (u32 s = lane_id(); s < splits; s += WAVE) sum += exp2_fast(part[s * stride] - highest) * part[s * stride + 1];
    sum = wave_sum(sum);
    for (u32 s = lane_id(); s < splits; s += WAVE) weights[n][s] = exp2_fast(part[s * stride] - highest) / sum;
  }
  barrier();
  for (u32 first = 0; first < count * v_dim; first += DECODE_THREADS) {
    u32 i = first + thread_x();
    bool active = i < count * v_dim;
    if (!active) i = 0;
    const f32 *part = parts + i / v_dim * splits * stride + 2 + i % v_dim;
    f32 value = 0.0f;
    UNROLL_BY(8) for (u32 s = 0; s < splits; s++) value = mul_add(weights[i / v_dim][s], part[s * stride], value);
    result.store(value, first_head * v_dim + i, active);
  }
}

template <class T, u32 N>
DEVICE void attend_decode(const f32 *q, const Fresh &fresh, u8 *pool, const u32 *table, const u32 *token_tables,
                          const u32 *positions, const Result &result, f32 *partials, u32 *counters, Shape shape,
                          f32 scale, f32 softcap, u32 window, u32 table_len, u32 splits, u64 layer_offset,
                          u64 page_bytes) {
  // The queries, and at the end what the subgroups found for one of them.
  SHARED __attribute__((aligned(16))) f32 memory[N * MAX_DIM > DECODE_THREADS * 8 ? N * MAX_DIM : DECODE_THREADS * 8];
  SHARED f32 scores[N][PAGE_LEN];
  SHARED f32 factors[N], maxima[N], sums[N];
  SHARED u32 is_last;
  const u32 LOADS = AHEAD<T, N>;
  u32 chunks = ceil_div(shape.group(), N), kv_head = block_x() / chunks, chunk = block_x() % chunks;
  u32 token = block_y(), split = block_z(), first_head = kv_head * shape.group() + chunk * N;
  u32 count = smaller(N, shape.group() - chunk * N);
  u32 k_padded = kv_padded<T>(shape.k_dim), v_padded = kv_padded<T>(shape.v_dim);
  Scoring scoring(scale, softcap);

  u32 end = positions[token] + 1, start = first_visible(positions[token], window);
  u32 first_page = start / PAGE_LEN, pages = ceil_div(end, PAGE_LEN) - first_page;
  u32 pages_of_split = ceil_div(pages, splits);
  u32 page = first_page + smaller(split * pages_of_split, pages);
  u32 last_page = first_page + smaller((split + 1) * pages_of_split, pages);
  const u32 *numbers = table + (u64)token_tables[token] * table_len;
  u64 keys_of_head = layer_offset + (u64)kv_head * kv_head_bytes<T>(shape.k_dim);
  u64 values_of_head = layer_offset + (u64)shape.kv_heads * kv_head_bytes<T>(shape.k_dim) +
                       (u64)kv_head * kv_head_bytes<T>(shape.v_dim);

  const f32 *queries = q + ((u64)token * shape.heads + first_head) * shape.k_dim;
  const f32 *angles = fresh.angles + (u64)token * 2 * fresh.pairs;
  for (u32 i = thread_x(); i < N * k_padded; i += DECODE_THREADS) {
    u32 head = i / k_padded, d = i % k_padded;
    f32 value = 0.0f;
    if (head < count && d < shape.k_dim) {
      value = rotated(queries + head * shape.k_dim, d, angles, fresh.pairs, fresh.neox) * scoring.query_factor;
    }
    memory[i] = value;
  }
  if (fresh.k && page < last_page && last_page == first_page + pages) {
    // The part that sees them stores them: half of the block the keys, the other one the values. Blocks for other heads
    // of the group store the same.
    const u32 HALF = DECODE_THREADS / 2;
    u32 slot = (end - 1) % PAGE_LEN, thread = thread_x() % HALF;
    u8 *bytes = pool + numbers[last_page - 1] * page_bytes;
    u64 row = (u64)token * shape.kv_heads + kv_head;
    if (thread_x() < HALF) {
      const f32 *from = fresh.k + row * shape.k_dim;
      store_row<T, HALF>(thread, from, shape.k_dim, angles, fresh.pairs, fresh.neox, bytes + keys_of_head, slot);
    } else {
      store_row<T, HALF>(thread, fresh.v + row * shape.v_dim, shape.v_dim, angles, 0, 0, bytes + values_of_head, slot);
    }
  }
  if (thread_x() < N) {
    maxima[thread_x()] = LOWEST;
    sums[thread_x()] = 0.0f;
  }
  barrier();

  // Threads share keys, and values 8 columns to one, in as many subgroups as there are threads for.
  u32 key_part = thread_x() % KEY_THREADS, key_slot = thread_x() / KEY_THREADS;
  u32 value_threads = v_padded / 8, subgroups = DECODE_THREADS / value_threads;
  u32 subgroup = thread_x() / value_threads, column = thread_x() % value_threads * 8;
  f32 values[N][8] = {};

  // The first keys of a page are on their way while the one before it is worked on. At the end they are the last
  // page's again.
  Eight<T> keys[LOADS];
  auto load_keys = [&](const u8 *bytes, u32 page, u32 base) __attribute__((always_inline)) {
    u32 from = larger(start, page * PAGE_LEN) - page * PAGE_LEN, to = smaller(end - page * PAGE_LEN, (u32)PAGE_LEN);
    u32 slot = smaller(larger(key_slot, from), to - 1);
    UNROLL for (u32 j = 0; j < LOADS; j++) {
      keys[j] = Eight<T>::load(bytes + keys_of_head, k_padded, slot, smaller(base + j * KEY_THREADS * 8, k_padded - 8));
    }
  };
  const u8 *bytes = pool;
  if (page < last_page) {
    bytes += numbers[page] * page_bytes;
    load_keys(bytes, page, key_part * 8);
  }
  UNROLL_BY(1) for (; page < last_page; page++) {
    u32 next = smaller(page + 1, last_page - 1), next_number = numbers[next];
    const u8 *value_bytes = bytes + values_of_head;
    u32 from = larger(start, page * PAGE_LEN) - page * PAGE_LEN, to = smaller(end - page * PAGE_LEN, (u32)PAGE_LEN);
    auto is_visible = [&](u32 slot) { return from <= slot && slot < to; };
    // In place of a row that is not visible, and may hold no numbers, the next one is read, and weighs nothing: with
    // branches around them, loads would wait for each other.
    auto visible = [&](u32 slot) { return smaller(larger(slot, from), to - 1); };
    // The first values are on their way while the scores are computed.
    Eight<T> loaded[LOADS];
    auto load_values = [&](u32 first) {
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        loaded[j] = Eight<T>::load(value_bytes, v_padded, visible(first + j * subgroups), column);
      }
    };
    load_values(subgroup);
    f32 dots[N] = {};
    UNROLL_BY(1) for (u32 base = key_part * 8; base < k_padded; base += LOADS * KEY_THREADS * 8) {
      if (base >= LOADS * KEY_THREADS * 8) load_keys(bytes, page, base);
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        u32 i = base + j * KEY_THREADS * 8;
        f32 key[8];
        UNROLL for (u32 k = 0; k < 8; k++) key[k] = i < k_padded ? keys[j][k] : 0.0f;
        i = smaller(i, k_padded - 8);
        UNROLL for (u32 n = 0; n < N; n++) {
          f32x4 low = *(const f32x4 *)&memory[n * k_padded + i], high = *(const f32x4 *)&memory[n * k_padded + i + 4];
          UNROLL for (u32 k = 0; k < 4; k++) {
            dots[n] = mul_add(low[k], key[k], dots[n]);
            dots[n] = mul_add(high[k], key[k + 4], dots[n]);
          }
        }
      }
    }
    bytes = pool + next_number * page_bytes;
    load_keys(bytes, next, key_part * 8);
    UNROLL for (u32 n = 0; n < N; n++) {
      f32 dot = wave_sum(dots[n], KEY_THREADS);
      if (key_part == 0) scores[n][key_slot] = is_visible(key_slot) ? scoring.finish(dot) : LOWEST;
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
        if (is_visible(slot)) sum += weight;
      }
      sum = wave_sum(sum);
      if (lane_id() == 0) {
        factors[n] = exp2_fast(max - highest);
        maxima[n] = highest;
        sums[n] = mul_add(sums[n], factors[n], sum);
      }
    }
    barrier();
    UNROLL for (u32 n = 0; n < N; n++) {
      UNROLL for (u32 k = 0; k < 8; k++) values[n][k] *= factors[n];
    }
    UNROLL_BY(1) for (u32 first = subgroup; first < PAGE_LEN; first += LOADS * subgroups) {
      if (first != subgroup) load_values(first);
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        u32 slot = first + j * subgroups;
        f32 value[8];
        UNROLL for (u32 k = 0; k < 8; k++) value[k] = loaded[j][k];
        UNROLL for (u32 n = 0; n < N; n++) {
          f32 weight = slot < PAGE_LEN ? scores[n][slot] : 0.0f;
          UNROLL for (u32 k = 0; k < 8; k++) values[n][k] = mul_add(weight, value[k], values[n][k]);
        }
      }
    }
    barrier();
  }

  // What is computed from here on needs no registers above.
  u32 thread = opaque(thread_x());
  u64 heads_before = (u64)token * shape.heads + first_head;
  UNROLL for (u32 n = 0; n < N; n++) {
    if (subgroup < subgroups) {
      UNROLL for (u32 k = 0; k < 8; k++) memory[subgroup * v_padded + column + k] = values[n][k];
    }
    barrier();
    // Whole waves go on, for the sake of the quantization.
    for (u32 first = 0; n < count && first < shape.v_dim; first += DECODE_THREADS) {
      u32 d = first + thread;
      bool active = d < shape.v_dim;
      f32 value = 0.0f;
      for (u32 s = 0; active && s < subgroups; s++) value += memory[s * v_padded + d];
      u64 head = heads_before + n;
      if (splits == 1) {
        result.store(value / sums[n], head * shape.v_dim + d, active);
      } else if (active) {
        f32 *partial = partials + (head * splits + split) * (shape.v_dim + 2);
        partial[2 + d] = value;
        if (d == 0) partial[0] = maxima[n], partial[1] = sums[n];
      }
    }
    barrier();
  }
  if (splits == 1) return;
  u32 *counter = counters + token * shape.kv_heads * chunks + block_x();
  released();
  barrier();
  if (thread_x() == 0) is_last = device_add(counter, 1) == splits - 1;
  barrier();
  if (!is_last) return;
  acquired();
  if (thread_x() == 0) *counter = 0;
  combine<N>(partials, scores, count, splits, shape.v_dim, heads_before, result);
}

#define STAMP_N(name, type, n)                                                                                         \
  KERNEL_FOR_BLOCKS(attend_decode_##name##_##n, DECODE_THREADS, 2,                                                     \
                    (const f32 *q, const f32 *k, const f32 *v, const f32 *angles, u8 *pool, const u32 *table,          \
                     const u32 *token_tables, const u32 *positions, f32 *out, i8 *out_q, u32 *groups, f32 *partials,   \
                     u32 *counters, u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, f32 scale,      \
                     f32 softcap, u32 pairs, u32 neox, u32 window, u32 table_len, u32 splits, u64 layer_offset,        \
                     u64 page_bytes)) {                                                                                \
    attend_decode<type, n>(q, {k, v, angles, pairs, neox}, pool, table, token_tables, positions, {out, out_q, groups}, \
                           partials, counters, {heads, kv_heads, k_dim, v_dim}, scale, softcap, window,         \
                           table_len, splits, layer_offset, page_bytes);                                               \
  }
#define STAMP(name, type) STAMP_N(name, type, 1) STAMP_N(name, type, 4) STAMP_N(name, type, 8)
KV_TYPES(STAMP)
#undef STAMP_N
