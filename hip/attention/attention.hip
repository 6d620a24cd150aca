// Attention of few queries by plain arithmetic: see attention.h and attention_decode.h.
//
// attend_decode_<type>_<n>: for any number of queries and all types. A block takes n heads, n = 1,
// 4, 8; heads beyond the group are not stored. k_dim and v_dim are at most 512.

#include "attention/attention_decode.h"

#define MAX_DIM 512
// The threads that share a key, and the loads of 8 elements that each has in flight: as many as
// leave registers for the heads.
#define KEY_THREADS 4
template <class T, u32 N> constexpr u32 AHEAD = N * (T::SCALES ? 2 : 1) > 4 || N * T::BYTES > 8 ? 2 : 4;

template <class T, u32 N>
DEVICE void attend_decode(const f32 *q, const Fresh &fresh, const Cache &cache, const Result &result, f32 *partials,
                          u32 *counters, const Shape &shape, f32 scale, f32 softcap, u32 splits) {
  // The queries; at the end the results of the subgroups for one query.
  SHARED __attribute__((aligned(16))) f32 memory[N * MAX_DIM > DECODE_THREADS * 8 ? N * MAX_DIM : DECODE_THREADS * 8];
  SHARED f32 scores[N][PAGE_LEN];
  SHARED f32 factors[N], maxima[N], sums[N];
  const u32 LOADS = AHEAD<T, N>;
  Part<T, N> part(cache, shape, splits);
  u32 k_padded = kv_padded<T>(shape.k_dim), v_padded = kv_padded<T>(shape.v_dim);
  u32 page = part.page, last_page = part.last_page, start = part.start, end = part.end;
  Scoring scoring(scale, softcap);
  part.begin();
  for (u32 i = thread_x(); i < N * k_padded; i += DECODE_THREADS) {
    memory[i] = part.query(q, fresh, scoring.query_factor, i / k_padded, i % k_padded);
  }
  part.store(fresh);
  if (thread_x() < N) {
    maxima[thread_x()] = LOWEST;
    sums[thread_x()] = 0.0f;
  }
  barrier();

  // Several threads share a key. A thread takes 8 columns of the values, and as many subgroups as
  // there are threads for take different positions.
  u32 key_part = thread_x() % KEY_THREADS, key_slot = thread_x() / KEY_THREADS;
  u32 value_threads = v_padded / 8, subgroups = DECODE_THREADS / value_threads;
  u32 subgroup = thread_x() / value_threads, column = thread_x() % value_threads * 8;
  f32 values[N][8] = {};

  // The first keys of a page are loaded while the page before it is computed. The last time these
  // are keys of the last page again.
  Eight<T> keys[LOADS];
  auto load_keys = [&](const u8 *bytes, u32 page, u32 base) __attribute__((always_inline)) {
    u32 from = larger(start, page * PAGE_LEN) - page * PAGE_LEN, to = smaller(end - page * PAGE_LEN, (u32)PAGE_LEN);
    u32 slot = smaller(larger(key_slot, from), to - 1);
    UNROLL for (u32 j = 0; j < LOADS; j++) {
      keys[j] = Eight<T>::load(bytes + part.keys, k_padded, slot, smaller(base + j * KEY_THREADS * 8, k_padded - 8));
    }
  };
  const u8 *bytes = cache.pool;
  if (page < last_page) {
    bytes = part.page_at(page);
    load_keys(bytes, page, key_part * 8);
  }
  UNROLL_BY(1) for (; page < last_page; page++) {
    u32 next = smaller(page + 1, last_page - 1), next_number = part.numbers[next];
    const u8 *value_bytes = bytes + part.values;
    u32 from = larger(start, page * PAGE_LEN) - page * PAGE_LEN, to = smaller(end - page * PAGE_LEN, (u32)PAGE_LEN);
    auto is_visible = [&](u32 slot) { return from <= slot && slot < to; };
    // A row that is not visible may hold NaN. The nearest visible row is read instead, with a
    // weight of 0: with branches around them, loads would wait for each other.
    auto visible = [&](u32 slot) { return smaller(larger(slot, from), to - 1); };
    // The first values are loaded while the scores are computed.
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
    bytes = cache.pool + next_number * cache.page_bytes;
    load_keys(bytes, next, key_part * 8);
    UNROLL for (u32 n = 0; n < N; n++) {
      f32 dot = wave_sum(dots[n], KEY_THREADS);
      if (key_part == 0) scores[n][key_slot] = dot;
    }
    barrier();
    UNROLL for (u32 first = 0; first < N; first += DECODE_THREADS / WAVE) {
      u32 n = first + wave_id();
      if (n >= N) break;
      f32 max = maxima[n], sum = 0.0f, highest = max, found[PAGE_LEN / WAVE];
      UNROLL for (u32 i = 0; i < PAGE_LEN / WAVE; i++) {
        u32 slot = i * WAVE + lane_id();
        found[i] = is_visible(slot) ? scoring.finish(scores[n][slot]) : LOWEST;
        highest = larger(found[i], highest);
      }
      highest = wave_max(highest);
      UNROLL for (u32 i = 0; i < PAGE_LEN / WAVE; i++) {
        u32 slot = i * WAVE + lane_id();
        f32 weight = exp2_fast(found[i] - highest);
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

  // Results from here on need no registers above.
  u32 thread = opaque(thread_x());
  UNROLL for (u32 n = 0; n < N; n++) {
    if (subgroup < subgroups) {
      UNROLL for (u32 k = 0; k < 8; k++) memory[subgroup * v_padded + column + k] = values[n][k];
    }
    barrier();
    for (u32 first = 0; n < part.count && first < shape.v_dim; first += DECODE_THREADS) {
      u32 d = first + thread;
      f32 value = 0.0f;
      for (u32 s = 0; d < shape.v_dim && s < subgroups; s++) value += memory[s * v_padded + d];
      leave(part, result, partials, n, d, value, maxima[n], sums[n]);
    }
    barrier();
  }
  finish(part, result, partials, counters, scores, memory);
}

#define STAMP_N(name, type, n)                                                                                         \
  KERNEL_FOR_BLOCKS(attend_decode_##name##_##n, DECODE_THREADS, 2, DECODE_PARAMETERS) {                                \
    attend_decode<type, n>(DECODE_ARGUMENTS);                                                                          \
  }
#define STAMP(name, type) STAMP_N(name, type, 1) STAMP_N(name, type, 4) STAMP_N(name, type, 8)
KV_TYPES(STAMP)
#undef STAMP_N
