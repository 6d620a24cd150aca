// Attention of few queries on matrix cores: see attention.h and attention_decode.h.
//
// attend_waves_<type>_<n>: for caches of f16 and q8_0, and heads of at most n columns (keys and
// values), n = 64, 128. A block takes up to 8 heads. Each wave takes 16 positions at a time, with a
// maximum and sums of its own, and waits for other waves only at the end.
//
// Queries become f16 with a power of two for those of a block. Keys and values are f16 or become
// it, and so do the weights of the softmax (see weight_base). Scores, sums and the softmax are f32.

#include "attention/attention_decode.h"
#include "common/fragments.h"

#if MATRIX_CORES

#define HEADS 8
#define WAVES (DECODE_THREADS / WAVE)

// The scores of 16 positions and heads are a product, arranged so that a lane gets the scores of
// the head that it later needs as an operand.
#if GPU_NVIDIA
#define LANE_HEADS 2
DEVICE u32 head_of_lane(u32 i) { return lane_row(i); }
// Which head of the lane and which position an element belongs to, and the positions in the order
// of an operand.
DEVICE u32 head_of_score(u32 i) { return Accumulator::row_of_lane(i); }
DEVICE u32 position_of_score(u32 i) { return Accumulator::column(i); }
DEVICE u32 position_of_operand(u32 i) { return i / 2 * 8 + lane_part() * 2 + i % 2; }
template <u32 WORDS>
DEVICE void add_scores(const u32 (&keys)[LANE_ROWS][WORDS], const u32 (&queries)[LANE_ROWS][WORDS], u32 f,
                       Accumulator &scores) {
  multiply_add(first_of<WORDS>(queries, f), second_of<WORDS>(keys, f), scores);
}
DEVICE Fragment operand_of(const f32 (&w)[Accumulator::ELEMENTS]) {
  u32 rows[LANE_ROWS][2] = {{pack_halves(w[0], w[1]), pack_halves(w[4], w[5])},
                            {pack_halves(w[2], w[3]), pack_halves(w[6], w[7])}};
  return first_of<2>(rows, 0);
}
#else
#define LANE_HEADS 1
DEVICE u32 head_of_lane(u32) { return lane_id() % 16; }
DEVICE u32 head_of_score(u32) { return 0; }
DEVICE u32 position_of_score(u32 i) { return Accumulator::row(i); }
template <u32 WORDS>
DEVICE void add_scores(const u32 (&keys)[LANE_ROWS][WORDS], const u32 (&queries)[LANE_ROWS][WORDS], u32 f,
                       Accumulator &scores) {
  multiply_add(first_of<WORDS>(keys, f), second_of<WORDS>(queries, f), scores);
}
#if GPU_AMD && defined(__GFX11__)
// Both halves of a wave have all positions: first those with even numbers, whose scores the first
// half has.
DEVICE u32 position_of_operand(u32 i) { return i % 8 * 2 + i / 8; }
#else
DEVICE u32 position_of_operand(u32 i) { return lane_part() * LANE_HALVES + i; }
#endif
DEVICE Fragment operand_of(const f32 (&w)[Accumulator::ELEMENTS]) {
  const u32 OWN = Accumulator::ELEMENTS / 2;
  u32 rows[LANE_ROWS][LANE_HALVES / 2];
  UNROLL for (u32 i = 0; i < OWN; i++) {
    u32 own = pack_halves(w[2 * i], w[2 * i + 1]);
    rows[0][i] = own;
    if (OWN < LANE_HALVES / 2) {
      u32 other = shuffle_xor(own, 16), is_first = lane_id() / 16 == 0;
      rows[0][i] = is_first ? own : other;
      rows[0][OWN + i] = is_first ? other : own;
    }
  }
  return first_of<LANE_HALVES / 2>(rows, 0);
}
#endif

// The largest value of all lanes with the same heads, and the sum.
DEVICE f32 max_of_head(f32 value) {
  if (LANE_HEADS > 1) return wave_max(value, Accumulator::LANES);
  UNROLL for (u32 mask = 16; mask < WAVE; mask *= 2) value = larger(shuffle_xor(value, mask), value);
  return value;
}
DEVICE f32 sum_of_head(f32 value) {
  if (LANE_HEADS > 1) return wave_sum(value, Accumulator::LANES);
  UNROLL for (u32 mask = 16; mask < WAVE; mask *= 2) value += shuffle_xor(value, mask);
  return value;
}

// The number of the head that element `i` of a result belongs to, out of the numbers of the lane's
// heads.
DEVICE f32 of_result(const f32 (&numbers)[LANE_HEADS], u32 i) {
  if (LANE_HEADS > 1) return numbers[Accumulator::row_of_lane(i) % LANE_HEADS];
  return f32_of(shuffle_from(bits_of(numbers[0]), Accumulator::row(i)));
}

template <class T, u32 DIM>
DEVICE void attend_waves(const f32 *q, const Fresh &fresh, const Cache &cache, const Result &result, f32 *partials,
                         u32 *counters, const Shape &shape, f32 scale, f32 softcap, u32 splits) {
  const u32 PARTS = FRAGMENT / LANE_HALVES, STEPS = DIM / (16 * PARTS), ELEMENTS = Accumulator::ELEMENTS;
  // A lane takes eight columns of values. With two rows for each lane, that is half as many columns
  // at a time.
  const u32 LANES = FRAGMENT / LANE_ROWS, GROUPS = DIM > LANES * 8 ? DIM / (LANES * 8) : 1, OUTS = 8 / LANE_ROWS;
  const u32 STRIDE = DIM / 8 + 4, SUMS = GROUPS * OUTS * ELEMENTS * WAVE;
  // Keys are fetched one step ahead, and values with them, where there are enough registers.
  const bool EARLY = PARTS > 1;
  SHARED __attribute__((aligned(16))) u32x4 queries[HEADS * STRIDE];
  SHARED __attribute__((aligned(16))) f32 memory[WAVES / 2 * SUMS];
  SHARED f32 maxima[WAVES][FRAGMENT], sums[WAVES][FRAGMENT], weights[HEADS][PAGE_LEN];
  SHARED u32 scratch[WAVES];

  Part<T, HEADS> part(cache, shape, splits);
  u32 k_padded = kv_padded<T>(shape.k_dim), v_padded = kv_padded<T>(shape.v_dim);
  Scoring scoring(scale, softcap);
  part.begin();
  const u32 EACH = HEADS * DIM / DECODE_THREADS;
  f32 own[EACH];
  u32 largest = 0;
  UNROLL for (u32 i = 0; i < EACH; i++) {
    u32 at = i * DECODE_THREADS + thread_x();
    own[i] = part.query(q, fresh, scoring.query_factor, at / DIM, at % DIM);
    largest = larger(bits_of(own[i]) & 0x7fffffffu, largest);
  }
  u32 exponent = halving_exponent(block_max<DECODE_THREADS>(largest, scratch));
  f32 factor = f32_of((254 - exponent) << 23);
  UNROLL for (u32 i = 0; i < EACH; i++) {
    u32 at = i * DECODE_THREADS + thread_x();
    ((u16_alias *)queries)[at / DIM * STRIDE * 8 + at % DIM] = f32_to_f16(own[i] * f32_of(exponent << 23));
  }
  part.store(fresh);
  barrier();

  // Positions in tiles of 16, from the first tile with a visible one on.
  const u32 TILES = PAGE_LEN / FRAGMENT;
  u32 tile = larger(part.page * TILES, part.start / FRAGMENT) + wave_id();
  u32 last_tile = smaller(part.last_page * TILES, ceil_div(part.end, FRAGMENT));
  // A position that is not visible may hold NaN. The nearest visible one is read instead, with a
  // weight of 0.
  auto slot_of = [&](u32 tile, u32 i) __attribute__((always_inline)) {
    return smaller(larger(tile * FRAGMENT + i, part.start), part.end - 1) % PAGE_LEN;
  };
  auto page_of = [&](u32 tile) __attribute__((always_inline)) {
    return part.page_at(smaller(tile / TILES, part.last_page - 1));
  };
  Eight<T> keys[STEPS][LANE_ROWS][2];
  auto load_keys = [&](const u8 *page, u32 tile) __attribute__((always_inline)) {
    UNROLL for (u32 s = 0; s < STEPS; s++) {
      UNROLL for (u32 r = 0; r < LANE_ROWS; r++) {
        UNROLL for (u32 half = 0; half < 2; half++) {
          u32 column = smaller((s * PARTS + lane_part()) * 16 + half * 8, k_padded - 8);
          keys[s][r][half] = Eight<T>::load(page + part.keys, k_padded, slot_of(tile, lane_row(r)), column);
        }
      }
    }
  };

  Accumulator outs[GROUPS][OUTS] = {};
  f32 max[LANE_HEADS], sum[LANE_HEADS] = {};
  UNROLL for (u32 h = 0; h < LANE_HEADS; h++) max[h] = LOWEST;
  // The page of the tile. The next one is looked up before it is needed.
  const u8 *page = cache.pool, *next_page = cache.pool;
  if (tile < last_tile) {
    page = page_of(tile);
    if (EARLY) next_page = page_of(tile + WAVES), load_keys(page, tile);
  }
  UNROLL_BY(1) for (; tile < last_tile; tile += WAVES) {
    if (!EARLY) load_keys(page, tile);
    Eight<T> values[GROUPS][LANE_HALVES];
    auto load_values = [&](u32 tile) __attribute__((always_inline)) {
      UNROLL for (u32 g = 0; g < GROUPS; g++) {
        u32 column = smaller(g * LANES * 8 + lane_row(0) % LANES * 8, v_padded - 8);
        UNROLL for (u32 i = 0; i < LANE_HALVES; i++) {
          values[g][i] = Eight<T>::load(page + part.values, v_padded, slot_of(tile, position_of_operand(i)), column);
        }
      }
    };
    if (EARLY) load_values(tile);
    const u8 *looked_up = page_of(tile + (EARLY ? 2 : 1) * WAVES);

    Accumulator scores = {};
    UNROLL for (u32 s = 0; s < STEPS; s++) {
      u32 of_keys[LANE_ROWS][8], of_queries[LANE_ROWS][8];
      UNROLL for (u32 r = 0; r < LANE_ROWS; r++) {
        // Heads beyond the eighth repeat others, and are not stored.
        const u32x4 *query = queries + lane_row(r) % HEADS * STRIDE + (s * PARTS + lane_part()) * 2;
        UNROLL for (u32 half = 0; half < 2; half++) {
          u32x4 key = keys[s][r][half].halves();
          UNROLL for (u32 i = 0; i < 4; i++) of_keys[r][half * 4 + i] = key[i];
          UNROLL for (u32 i = 0; i < 4; i++) of_queries[r][half * 4 + i] = query[half][i];
        }
      }
      UNROLL for (u32 f = 0; f < FRAGMENT / LANE_HALVES; f++) add_scores<8>(of_keys, of_queries, f, scores);
    }
    if (EARLY) {
      load_keys(next_page, smaller(tile + WAVES, last_tile - 1));
    } else {
      // Now the registers of the keys are free.
      u32 behind = tile;
      keep_behind(behind, scores);
      load_values(behind);
    }

    f32 weight[ELEMENTS], shrinks[LANE_HEADS];
    UNROLL for (u32 h = 0; h < LANE_HEADS; h++) {
      f32 highest = max[h];
      UNROLL for (u32 i = 0; i < ELEMENTS; i++) {
        if (head_of_score(i) != h) continue;
        u32 position = tile * FRAGMENT + position_of_score(i);
        bool is_visible = part.start <= position && position < part.end;
        weight[i] = is_visible ? scoring.finish(scores.sums[i] * factor) : LOWEST;
        highest = larger(weight[i], highest);
      }
      highest = max_of_head(highest);
      shrinks[h] = exp2_fast(max[h] - highest);
      max[h] = highest;
      sum[h] *= shrinks[h];
      UNROLL for (u32 i = 0; i < ELEMENTS; i++) {
        if (head_of_score(i) != h) continue;
        weight[i] = weight[i] == LOWEST ? 0.0f : exp2_fast(weight[i] - weight_base(highest));
        sum[h] += weight[i];
      }
    }
    Fragment operand = operand_of(weight);
    UNROLL for (u32 i = 0; i < ELEMENTS; i++) {
      f32 shrink = of_result(shrinks, i);
      UNROLL for (u32 g = 0; g < GROUPS; g++) {
        UNROLL for (u32 o = 0; o < OUTS; o++) outs[g][o].sums[i] *= shrink;
      }
    }
    UNROLL for (u32 g = 0; g < GROUPS; g++) {
      u32x4 rows[LANE_HALVES];
      UNROLL for (u32 i = 0; i < LANE_HALVES; i++) rows[i] = values[g][i].halves();
      UNROLL for (u32 o = 0; o < OUTS; o++) {
        // Each of the lane's eight columns is a row of the operand, whose positions lie next to
        // each other.
        u32 turned[LANE_ROWS][LANE_HALVES / 2];
        UNROLL for (u32 r = 0; r < LANE_ROWS; r++) {
          u32 column = o * LANE_ROWS + r;
          UNROLL for (u32 i = 0; i < LANE_HALVES / 2; i++) {
            turned[r][i] = pair_of_halves(rows[2 * i][column / 2], rows[2 * i + 1][column / 2], column % 2);
          }
        }
        multiply_add(operand, second_of<LANE_HALVES / 2>(turned, 0), outs[g][o]);
      }
    }
    page = EARLY ? next_page : looked_up, next_page = looked_up;
  }

  UNROLL for (u32 h = 0; h < LANE_HEADS; h++) sum[h] = sum_of_head(sum[h]);
  // Half of the waves add the results of the other half, then half of these, and so on.
  auto element = [&](f32 *at, u32 i) -> f32 & { return at[i * WAVE + lane_id()]; };
  UNROLL for (u32 half = WAVES / 2; half > 0; half /= 2) {
    if (half <= wave_id() && wave_id() < 2 * half) {
      f32 *to = memory + (wave_id() - half) * SUMS;
      UNROLL for (u32 i = 0; i < GROUPS * OUTS * ELEMENTS; i++) {
        // The value goes through an ordinary register, because the emulator does not know stores of
        // accumulation registers.
        f32 value = outs[i / ELEMENTS / OUTS][i / ELEMENTS % OUTS].sums[i % ELEMENTS];
        element(to, i) = f32_of(opaque(bits_of(value)));
      }
      UNROLL for (u32 h = 0; h < LANE_HEADS; h++) {
        maxima[wave_id()][head_of_lane(h)] = max[h], sums[wave_id()][head_of_lane(h)] = sum[h];
      }
    }
    barrier();
    if (wave_id() < half) {
      f32 mine[LANE_HEADS], others[LANE_HEADS];
      UNROLL for (u32 h = 0; h < LANE_HEADS; h++) {
        u32 other = wave_id() + half, head = head_of_lane(h);
        f32 highest = larger(max[h], maxima[other][head]);
        mine[h] = exp2_fast(max[h] - highest), others[h] = exp2_fast(maxima[other][head] - highest);
        sum[h] = sum[h] * mine[h] + sums[other][head] * others[h];
        max[h] = highest;
      }
      UNROLL for (u32 e = 0; e < ELEMENTS; e++) {
        f32 a = of_result(mine, e), b = of_result(others, e);
        UNROLL for (u32 o = 0; o < GROUPS * OUTS; o++) {
          f32 other = element(memory + wave_id() * SUMS, o * ELEMENTS + e);
          outs[o / OUTS][o % OUTS].sums[e] = outs[o / OUTS][o % OUTS].sums[e] * a + other * b;
        }
      }
    }
    barrier();
  }
  if (wave_id() == 0) {
    UNROLL for (u32 i = 0; i < GROUPS * OUTS * ELEMENTS; i++) {
      u32 e = i % ELEMENTS, o = i / ELEMENTS % OUTS, g = i / ELEMENTS / OUTS, c = Accumulator::column(e);
      u32 head = Accumulator::row(e), d = g * LANES * 8 + c % LANES * 8 + o * LANE_ROWS + c / LANES;
      if (head < HEADS && d < DIM) memory[head * DIM + d] = outs[g][o].sums[e];
    }
    UNROLL for (u32 h = 0; h < LANE_HEADS; h++) {
      maxima[0][head_of_lane(h)] = max[h], sums[0][head_of_lane(h)] = sum[h];
    }
  }
  barrier();
  u32 all = part.count * shape.v_dim;
  for (u32 first = 0; first < all; first += DECODE_THREADS) {
    u32 i = first + thread_x(), head = i < all ? i / shape.v_dim : 0, d = i < all ? i % shape.v_dim : shape.v_dim;
    leave(part, result, partials, head, d, memory[head * DIM + d % DIM], maxima[0][head], sums[0][head]);
  }
  finish(part, result, partials, counters, weights, memory);
}

#define STAMP(name, type, n)                                                                                           \
  KERNEL_FOR_BLOCKS(attend_waves_##name##_##n, DECODE_THREADS, 1, DECODE_PARAMETERS) {                                 \
    attend_waves<type, n>(DECODE_ARGUMENTS);                                                                           \
  }
STAMP(f16, KvF16, 64)
STAMP(f16, KvF16, 128)
STAMP(q8_0, KvQ8, 64)
STAMP(q8_0, KvQ8, 128)

#endif
