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
