// Attention of few queries: see attention.h.
//
// attend_decode_<type>_<n>: for few queries, and for any number of them. A block takes one token, n query heads that
//   share a key-value head (n = 1, 4, 8; the heads of a group that are left over are not stored) and one of `splits`
//   parts of the positions (split-K; Dao et al., Flash-Decoding, 2023). k_dim and v_dim are at most 512.
//   Grid (kv_heads * ceil(group / n), tokens, splits). With `partials` null and splits 1 it writes `out`, otherwise
//   `partials` [tokens][heads][splits][v_dim + 2] f32, which attend_combine(partials, out, out_q, groups, heads, v_dim,
//   splits), grid (heads, tokens), combines: to `out` and, quantized as in activations.h, to `out_q` and `groups` where
//   not null; v_dim is then a multiple of 32.

#include "activations.h"
#include "attention.h"

#define DECODE_THREADS 256
#define MAX_DIM 512
// Threads that share a key, and loads of 8 elements that each has under way: as many as leave registers for the heads.
#define KEY_THREADS 4
template <class T, u32 N> constexpr u32 AHEAD = N * (T::SCALES ? 2 : 1) > 4 ? 2 : 4;

template <class T, u32 N>
DEVICE void attend_decode(const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,
                          f32 *out, f32 *partials, Shape shape, f32 scale, f32 softcap, u32 window, u32 table_len,
                          u32 splits, u64 layer_offset, u64 page_bytes) {
  // The queries, and at the end what the subgroups found for one of them.
  SHARED __attribute__((aligned(16))) f32 memory[N * MAX_DIM > DECODE_THREADS * 8 ? N * MAX_DIM : DECODE_THREADS * 8];
  SHARED f32 scores[N][PAGE_LEN];
  SHARED f32 factors[N], maxima[N], sums[N];
  const u32 LOADS = AHEAD<T, N>;
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

  // Threads share keys, and values 8 columns to one, in as many subgroups as there are threads for.
  u32 key_part = thread_x() % KEY_THREADS, key_slot = thread_x() / KEY_THREADS;
  u32 value_threads = v_padded / 8, subgroups = DECODE_THREADS / value_threads;
  u32 subgroup = thread_x() / value_threads, column = thread_x() % value_threads * 8;
  f32 values[N][8] = {};

  u32 end = positions[token] + 1, start = first_visible(positions[token], window);
  u32 first_page = start / PAGE_LEN, pages = ceil_div(end, PAGE_LEN) - first_page;
  u32 pages_of_split = ceil_div(pages, splits);
  u32 page = first_page + smaller(split * pages_of_split, pages);
  u32 last_page = first_page + smaller((split + 1) * pages_of_split, pages);
  const u32 *numbers = table + (u64)token_tables[token] * table_len;
  u64 keys_of_head = layer_offset + (u64)kv_head * kv_head_bytes<T>(shape.k_dim);
  u64 values_of_head = layer_offset + (u64)shape.kv_heads * kv_head_bytes<T>(shape.k_dim) +
                       (u64)kv_head * kv_head_bytes<T>(shape.v_dim);
  UNROLL_BY(1) for (; page < last_page; page++) {
    const u8 *bytes = pool + numbers[page] * page_bytes, *key_bytes = bytes + keys_of_head;
    const u8 *value_bytes = bytes + values_of_head;
    u32 from = larger(start, page * PAGE_LEN) - page * PAGE_LEN, to = smaller(end - page * PAGE_LEN, (u32)PAGE_LEN);
    auto is_visible = [&](u32 slot) { return from <= slot && slot < to; };
    // In place of a row that is not visible, and may hold no numbers, the next one is read, and weighs nothing: with
    // branches around them, loads would wait for each other.
    auto visible = [&](u32 slot) { return smaller(larger(slot, from), to - 1); };
    // The first values are on their way while the scores are computed.
    f32 ahead[LOADS][8];
    auto load_values = [&](u32 first) {
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        kv_load8<T>(value_bytes, v_padded, visible(first + j * subgroups), column, ahead[j]);
      }
    };
    load_values(subgroup);
    f32 dots[N] = {};
    UNROLL_BY(1) for (u32 base = key_part * 8; base < k_padded; base += LOADS * KEY_THREADS * 8) {
      f32 key[LOADS][8];
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        u32 i = base + j * KEY_THREADS * 8;
        kv_load8<T>(key_bytes, k_padded, visible(key_slot), smaller(i, k_padded - 8), key[j]);
        UNROLL for (u32 k = 0; k < 8; k++) key[j][k] = i < k_padded ? key[j][k] : 0.0f;
      }
      UNROLL for (u32 j = 0; j < LOADS; j++) {
        u32 i = smaller(base + j * KEY_THREADS * 8, k_padded - 8);
        UNROLL for (u32 n = 0; n < N; n++) {
          f32x4 low = *(const f32x4 *)&memory[n * k_padded + i], high = *(const f32x4 *)&memory[n * k_padded + i + 4];
          UNROLL for (u32 k = 0; k < 4; k++) {
            dots[n] = mul_add(low[k], key[j][k], dots[n]);
            dots[n] = mul_add(high[k], key[j][k + 4], dots[n]);
          }
        }
      }
    }
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
        UNROLL for (u32 n = 0; n < N; n++) {
          f32 weight = slot < PAGE_LEN ? scores[n][slot] : 0.0f;
          UNROLL for (u32 k = 0; k < 8; k++) values[n][k] = mul_add(weight, ahead[j][k], values[n][k]);
        }
      }
    }
    barrier();
  }

  UNROLL for (u32 n = 0; n < N; n++) {
    if (subgroup < subgroups) {
      UNROLL for (u32 k = 0; k < 8; k++) memory[subgroup * v_padded + column + k] = values[n][k];
    }
    barrier();
    for (u32 d = thread_x(); n < count && d < shape.v_dim; d += DECODE_THREADS) {
      f32 value = 0.0f;
      for (u32 s = 0; s < subgroups; s++) value += memory[s * v_padded + d];
      u64 head = (u64)token * shape.heads + first_head + n;
      if (!partials) {
        out[head * shape.v_dim + d] = value / sums[n];
      } else {
        f32 *partial = partials + (head * splits + split) * (shape.v_dim + 2);
        partial[2 + d] = value;
        if (d == 0) partial[0] = maxima[n], partial[1] = sums[n];
      }
    }
    barrier();
  }
}

#define COMBINE_THREADS 128

KERNEL(attend_combine, COMBINE_THREADS,
       (const f32 *partials, f32 *out, i8 *out_q, u32 *groups, u32 heads, u32 v_dim, u32 splits)) {
  u64 head = (u64)block_y() * heads + block_x();
  u32 stride = v_dim + 2;
  const f32 *parts = partials + head * splits * stride;
  f32 max = LOWEST;
  for (u32 s = 0; s < splits; s++) max = larger(parts[s * stride], max);
  // Whole waves go on, for the sake of the quantization.
  for (u32 first = 0; first < v_dim; first += COMBINE_THREADS) {
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

#define STAMP_N(name, type, n)                                                                                         \
  KERNEL_FOR_BLOCKS(attend_decode_##name##_##n, DECODE_THREADS, 2,                                                     \
                    (const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,    \
                     f32 *out, f32 *partials, u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, f32 scale, f32 softcap,   \
                     u32 window, u32 table_len, u32 splits, u64 layer_offset, u64 page_bytes)) {                       \
    attend_decode<type, n>(q, pool, table, token_tables, positions, out, partials, {heads, kv_heads, k_dim, v_dim},    \
                           scale, softcap, window, table_len, splits, layer_offset, page_bytes);                       \
  }
#define STAMP(name, type) STAMP_N(name, type, 1) STAMP_N(name, type, 4) STAMP_N(name, type, 8)
KV_TYPES(STAMP)
#undef STAMP_N
