// Attention of many queries on matrix cores: see attention.h.
//
// attend_core_<type>_<n>: parameters as those of attend_prompt_<type>_<n>, for caches of f16 and
// q8_0 and heads of at most n columns (keys and values), n = 64, 128, 256. A block takes a tile of
// 64 queries: `heads_in_tile` = min(group, 64) heads of up to 64 / heads_in_tile tokens at
// consecutive positions. `tiles` [..][2] has the first token and the number of tokens. Grid (tiles,
// kv_heads * ceil(group / heads_in_tile)).
//
// Queries become f16 with a power of two for those of a wave. Keys and values are f16 or become it,
// and so do the weights of the softmax (see weight_base). Scores, sums and the softmax are f32.

#include "attention/attention.h"
#include "common/fragments.h"

#if MATRIX_CORES

// A wave takes 16 queries.
#define TILE 64
#define CORE_THREADS (TILE / FRAGMENT * WAVE)
// The columns of keys or values of a page in a step. Each thread takes PIECES times eight of them.
#define STEP 64
#define PIECES (PAGE_LEN * STEP / CHUNK_HALVES / CORE_THREADS)
static_assert(PAGE_LEN == STEP, "tiles of keys and values have the same shape");

template <class T, u32 COLUMNS>
DEVICE void attend_core(const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,
                        const u32 *tiles, f32 *out, Shape shape, f32 scale, f32 softcap, u32 window, u32 table_len,
                        u64 layer_offset, u64 page_bytes) {
  const u32 STEPS = COLUMNS / STEP, TILE_CHUNKS = PAGE_LEN * STEP / CHUNK_HALVES, BLOCKS = STEP / FRAGMENT;
  // Two stages where 48 KiB suffice: one is filled while the other is multiplied.
  const u32 STAGES = COLUMNS > 128 ? 1 : 2;
  // The queries as STEPS tiles of STEP columns; keys, or values with a row for each column; the
  // weights of a page.
  SHARED __attribute__((aligned(16))) u32x4 queries[STEPS * TILE_CHUNKS], cached[STAGES * TILE_CHUNKS],
      weights[TILE_CHUNKS];

  u32 heads_in_tile = smaller(shape.group(), (u32)TILE), chunks = ceil_div(shape.group(), heads_in_tile);
  u32 kv_head = block_y() / chunks, chunk = block_y() % chunks;
  u32 first_token = tiles[block_x() * 2], tokens = tiles[block_x() * 2 + 1];
  u32 k_padded = kv_padded<T>(shape.k_dim), v_padded = kv_padded<T>(shape.v_dim);
  Scoring scoring(scale, softcap);
  u32 first_query = wave_id() * FRAGMENT;

  // Query m of the tile belongs to token m / heads_in_tile.
  auto head_of = [&](u32 m) __attribute__((always_inline)) { return chunk * heads_in_tile + m % heads_in_tile; };
  auto is_query = [&](u32 m) __attribute__((always_inline)) {
    return m / heads_in_tile < tokens && head_of(m) < shape.group();
  };
  auto row_of = [&](u32 m) __attribute__((always_inline)) {
    return (u64)(first_token + m / heads_in_tile) * shape.heads + kv_head * shape.group() + head_of(m);
  };

  // Each wave makes its own queries f16, with one power of two for all of them.
  auto query = [&](u32 m, u32 d) __attribute__((always_inline)) {
    return is_query(m) && d < shape.k_dim ? q[row_of(m) * shape.k_dim + d] * scoring.query_factor : 0.0f;
  };
  u32 largest = 0;
  UNROLL_BY(1) for (u32 m = first_query; m < first_query + FRAGMENT; m++) {
    UNROLL for (u32 i = 0; i < COLUMNS / WAVE; i++) {
      largest = larger(bits_of(query(m, i * WAVE + lane_id())) & 0x7fffffffu, largest);
    }
  }
  u32 exponent = halving_exponent(wave_max(largest));
  f32 factor = f32_of((254 - exponent) << 23);
  UNROLL_BY(1) for (u32 m = first_query; m < first_query + FRAGMENT; m++) {
    UNROLL for (u32 i = 0; i < COLUMNS / WAVE; i++) {
      u32 d = i * WAVE + lane_id();
      u32 at = d / STEP * TILE_CHUNKS + swizzled<STEP>(m, d % STEP / CHUNK_HALVES);
      ((u16_alias *)(queries + at))[d % CHUNK_HALVES] = f32_to_f16(query(m, d) * f32_of(exponent << 23));
    }
  }
  // The tokens of the lane's rows, a byte each: a number in the tile, or NONE.
  const u32 NONE = 255;
  u32 token_bytes[(Accumulator::ROWS + 3) / 4] = {};
  UNROLL for (u32 i = 0; i < Accumulator::ELEMENTS; i++) {
    u32 m = first_query + Accumulator::row(i), r = Accumulator::row_of_lane(i);
    token_bytes[r / 4] |= (is_query(m) ? m / heads_in_tile : NONE) << (r % 4 * 8);
  }

  u32 first_position = positions[first_token], start = first_visible(first_position, window);
  u32 end = first_position + tokens;
  const u32 *numbers = table + (u64)token_tables[first_token] * table_len;
  u64 keys_of_head = layer_offset + (u64)kv_head * kv_head_bytes<T>(shape.k_dim);
  u64 values_of_head = layer_offset + (u64)shape.kv_heads * kv_head_bytes<T>(shape.k_dim) +
                       (u64)kv_head * kv_head_bytes<T>(shape.v_dim);

  // Keys and values go through `staged` to a stage of `cached`. Positions that were never stored
  // are not read, because they may hold NaN.
  Eight<T> staged[PIECES];
  auto load = [&](u32 page, u64 offset, u32 padded, u32 i, u32 slot, u32 d) __attribute__((always_inline)) {
    u32 position = page * PAGE_LEN + slot;
    staged[i] = Eight<T>{};
    if (start <= position && position < end && d < padded) {
      staged[i] = Eight<T>::load(pool + numbers[page] * page_bytes + offset, padded, slot, d);
    }
  };
  auto load_keys = [&](u32 page, u32 step) __attribute__((always_inline)) {
    u32 thread = opaque(thread_x());
    UNROLL for (u32 i = 0; i < PIECES; i++) {
      u32 piece = thread + i * CORE_THREADS;
      load(page, keys_of_head, k_padded, i, piece / 8, step * STEP + piece % 8 * CHUNK_HALVES);
    }
  };
  auto store_keys = [&](u32 stage) __attribute__((always_inline)) {
    u32 thread = opaque(thread_x());
    UNROLL for (u32 i = 0; i < PIECES; i++) {
      u32 piece = thread + i * CORE_THREADS;
      cached[stage % STAGES * TILE_CHUNKS + swizzled<STEP>(piece / 8, piece % 8)] = staged[i].halves();
    }
  };
  // A thread takes the same columns of the values of two neighbouring positions.
  auto load_values = [&](u32 page, u32 step) __attribute__((always_inline)) {
    u32 thread = opaque(thread_x());
    UNROLL for (u32 i = 0; i < PIECES; i++) {
      u32 pair = thread + i / 2 * CORE_THREADS;
      load(page, values_of_head, v_padded, i, pair % 32 * 2 + i % 2, step * STEP + pair / 32 * CHUNK_HALVES);
    }
  };
  auto store_values = [&](u32 stage) __attribute__((always_inline)) {
    u32 thread = opaque(thread_x());
    UNROLL for (u32 i = 0; i < PIECES; i += 2) {
      u32 pair = thread + i / 2 * CORE_THREADS;
      u32x4 even = staged[i].halves(), odd = staged[i + 1].halves();
      UNROLL for (u32 k = 0; k < CHUNK_HALVES; k++) {
        u32 shift = k % 2 * 16, both = (even[k / 2] >> shift & 0xffffu) | odd[k / 2] >> shift << 16;
        u32 at = swizzled<PAGE_LEN>(pair / 32 * CHUNK_HALVES + k, pair % 32 / 4);
        ((u32_alias *)(cached + stage % STAGES * TILE_CHUNKS + at))[pair % 4] = both;
      }
    }
  };
  auto multiply = [&](const u32x4 *first, u32 stage, Accumulator *to) __attribute__((always_inline)) {
    const u32x4 *second = cached + stage % STAGES * TILE_CHUNKS;
    UNROLL_BY(1) for (u32 part = 0; part < STEP / FRAGMENT; part++) {
      Fragment a = load_first<STEP>(first, first_query, part);
      UNROLL for (u32 n = 0; n < BLOCKS; n++) {
        multiply_add(a, load_second<STEP>(second, n * FRAGMENT, part), to[n]);
        // There are not enough registers for all fragments at once.
        if (COLUMNS > 128) keep_order();
      }
    }
    if (STAGES == 1) shared_barrier();
  };

  Accumulator values[STEPS * BLOCKS] = {};
  f32 maxima[Accumulator::ROWS], sums[Accumulator::ROWS];
  UNROLL for (u32 r = 0; r < Accumulator::ROWS; r++) maxima[r] = LOWEST, sums[r] = 0.0f;
  u32 page = start / PAGE_LEN, last_page = (end - 1) / PAGE_LEN;
  load_keys(page, 0);
  store_keys(0);
  shared_barrier();
  UNROLL_BY(1) for (; page <= last_page; page++) {
    Accumulator scores[BLOCKS] = {};
    UNROLL for (u32 step = 0; step < STEPS; step++) {
      // The next step is loaded while this one is multiplied.
      bool more = step + 1 < STEPS;
      if (more) load_keys(page, step + 1);
      else load_values(page, 0);
      multiply(queries + step * TILE_CHUNKS, step, scores);
      if (more) store_keys(step + 1);
      else store_values(step + 1);
      shared_barrier();
    }
    auto load_next = [&](u32 step) __attribute__((always_inline)) {
      if (step + 1 < STEPS) load_values(page, step + 1);
      else if (page < last_page) load_keys(page + 1, 0);
    };
    // The widest heads leave no registers for this during the softmax.
    const bool EARLY = COLUMNS <= 128;
    if (EARLY) load_next(0);

    u32 first = opaque(first_query);
    f32 highest[Accumulator::ROWS], added[Accumulator::ROWS], shrinks[Accumulator::ROWS];
    UNROLL for (u32 r = 0; r < Accumulator::ROWS; r++) highest[r] = maxima[r], added[r] = 0.0f;
    UNROLL for (u32 i = 0; i < Accumulator::ELEMENTS; i++) {
      u32 r = Accumulator::row_of_lane(i), token = opaque(token_bytes[r / 4]) >> (r % 4 * 8) & 255;
      u32 position_of_query = first_position + token, from = first_visible(position_of_query, window);
      u32 to = token == NONE ? 0 : position_of_query + 1;
      UNROLL for (u32 n = 0; n < BLOCKS; n++) {
        u32 position = page * PAGE_LEN + n * FRAGMENT + Accumulator::column(i);
        f32 score = scoring.finish(scores[n].sums[i] * factor);
        score = from <= position && position < to ? score : LOWEST;
        scores[n].sums[i] = score;
        highest[r] = larger(score, highest[r]);
      }
    }
    UNROLL for (u32 r = 0; r < Accumulator::ROWS; r++) {
      highest[r] = wave_max(highest[r], Accumulator::LANES);
      shrinks[r] = exp2_fast(maxima[r] - highest[r]);
      maxima[r] = highest[r];
    }
    UNROLL for (u32 i = 0; i < Accumulator::ELEMENTS; i++) {
      u32 m = first + Accumulator::row(i), r = Accumulator::row_of_lane(i);
      UNROLL for (u32 n = 0; n < BLOCKS; n++) {
        f32 score = scores[n].sums[i], weight = score == LOWEST ? 0.0f : exp2_fast(score - weight_base(highest[r]));
        added[r] += weight;
        u32 slot = n * FRAGMENT + Accumulator::column(i);
        u32x4 *to = weights + swizzled<PAGE_LEN>(m, slot / CHUNK_HALVES);
        ((u16_alias *)to)[slot % CHUNK_HALVES] = f32_to_f16(weight);
      }
      UNROLL for (u32 n = 0; n < STEPS * BLOCKS; n++) values[n].sums[i] *= shrinks[r];
    }
    UNROLL for (u32 r = 0; r < Accumulator::ROWS; r++) {
      sums[r] = mul_add(sums[r], shrinks[r], wave_sum(added[r], Accumulator::LANES));
    }
    wave_barrier();
    if (!EARLY) keep_order();

    UNROLL for (u32 step = 0; step < STEPS; step++) {
      if (step > 0 || !EARLY) load_next(step);
      multiply(weights, STEPS + step, values + step * BLOCKS);
      if (step + 1 < STEPS) store_values(STEPS + step + 1);
      else if (page < last_page) store_keys(0);
      shared_barrier();
    }
  }

  u32 first = opaque(first_query);
  UNROLL for (u32 i = 0; i < Accumulator::ELEMENTS; i++) {
    u32 m = first + Accumulator::row(i);
    if (is_query(m)) {
      f32 inverse = 1.0f / sums[Accumulator::row_of_lane(i)];
      UNROLL for (u32 n = 0; n < STEPS * BLOCKS; n++) {
        u32 d = n * FRAGMENT + Accumulator::column(i);
        if (d < shape.v_dim) out[row_of(m) * shape.v_dim + d] = values[n].sums[i] * inverse;
      }
    }
  }
}

#if GPU_AMD
// Shared memory, not registers, decides how many blocks share a compute unit.
#define CORE_KERNEL(name, parameters) KERNEL(name, CORE_THREADS, parameters)
#else
#define CORE_KERNEL(name, parameters) KERNEL_FOR_BLOCKS(name, CORE_THREADS, 2, parameters)
#endif
#define STAMP(name, type, n)                                                                                           \
  CORE_KERNEL(attend_core_##name##_##n,                                                                                \
              (const f32 *q, const u8 *pool, const u32 *table, const u32 *token_tables, const u32 *positions,          \
               const u32 *tiles, f32 *out, u32 heads, u32 kv_heads, u32 k_dim, u32 v_dim, f32 scale,                   \
               f32 softcap, u32 window, u32 table_len, u64 layer_offset, u64 page_bytes)) {                            \
    attend_core<type, n>(q, pool, table, token_tables, positions, tiles, out, {heads, kv_heads, k_dim, v_dim}, scale,  \
                         softcap, window, table_len, layer_offset, page_bytes);                                        \
  }
STAMP(f16, KvF16, 64)
STAMP(f16, KvF16, 128)
STAMP(f16, KvF16, 256)
STAMP(q8_0, KvQ8, 64)
STAMP(q8_0, KvQ8, 128)
STAMP(q8_0, KvQ8, 256)

#endif
