// The candidates of a draw in the order of their ranks: see sampling/sampling.hip.
#pragma once

#include "sampling/exact.h"

#define PEAK 64
// The most candidates that are sorted.
#define RANKED 1024
#define CHOOSE_THREADS 512
// How many candidates are sorted where the number needed is unknown. Most draws need no more.
#define FIRST 256
// How many candidates are gathered for sorting. The search gathers more than it needs.
#define GATHERED 2048
// Distances to the best score, in parts of 1/32 or more.
#define BUCKETS 1024
#define BUCKETS_PER_UNIT 32.0f
#define DIGITS 256

// Adds to a sum in shared memory.
DEVICE void shared_sum(u64 *sum, u64 value) {
#if GPU_NVIDIA
  // Only additions of 32 bits are one instruction.
  u32_alias *halves = (u32_alias *)sum;
  u32 low = (u32)value, before = __atomic_fetch_add(&halves[0], low, __ATOMIC_RELAXED);
  u32 high = (u32)(value >> 32) + (before + low < before);
  if (high) __atomic_fetch_add(&halves[1], high, __ATOMIC_RELAXED);
#else
  shared_add(sum, value);
#endif
}

// The candidates of one row in rank order. The first of them are sorted in shared memory. All
// threads of the block call each function together and get the same result.
struct Ranking {
  const f32 *scores, *peaks;
  u32 padded, peak_count;
  // Shared memory: GATHERED candidates, of which the first RANKED stay; results to pass on, and
  // sums; the blocks of scores to look into, their number, and the number of candidates found.
  u64 *ranked, *passed, *sums;
  u32 *blocks, *listed, *found;
  f32 best;
  // The candidates rank up to this one. Where `complete`, they are the first `count` of `ranked`;
  // otherwise these are only the first ones.
  u64 last;
  u32 count;
  bool complete;

  // The second half of `ranked`: masses of buckets, or the candidates of one bucket.
  MEMBER u64 *others() const { return ranked + RANKED; }

  // Buckets follow the order of ranks, because differences and products are rounded monotonically.
  MEMBER u32 bucket_of(f32 score, f32 temperature) const {
    return (u32)smaller((best - score) * (BUCKETS_PER_UNIT / larger(temperature, 1.0f)), BUCKETS - 1.0f);
  }

  // The weight of a candidate at a temperature. At 0, each counts as 1.
  MEMBER u64 mass_of(f32 score, f32 temperature) const {
    return temperature == 0.0f ? 1 : weight((score - best) / temperature);
  }
  MEMBER u64 mass_at(const u64 *candidates, u32 place, u32 end, f32 temperature) const {
    return place < end ? mass_of(logit_of(candidates[place]), temperature) : 0;
  }

  // The sum of the values of this lane and the lanes before it.
  static MEMBER u64 wave_prefix(u64 value) {
    for (u32 distance = 1; distance < WAVE; distance *= 2) {
      u32 from = lane_id() >= distance ? lane_id() - distance : lane_id();
      u64 other = (u64)shuffle_from((u32)(value >> 32), from) << 32 | shuffle_from((u32)value, from);
      if (lane_id() >= distance) value += other;
    }
    return value;
  }

  // Each thread has two neighbouring masses of 2 * CHOOSE_THREADS. Returns the first place where
  // their sum reaches `target`, and leaves in `target` how much of it that place has to give; NONE
  // where all together do not reach it.
  MEMBER u32 crossing(u64 first, u64 second, u64 &target) {
    u64 own = first + second, before = wave_prefix(own);
    if (lane_id() == WAVE - 1) sums[wave_id()] = before;
    if (thread_x() == 0) passed[0] = NONE;
    barrier();
    before -= own;
    for (u32 wave = 0; wave < wave_id(); wave++) before += sums[wave];
    if (before < target && target <= before + own) {
      bool is_second = before + first < target;
      passed[0] = 2 * thread_x() + is_second;
      passed[1] = target - before - (is_second ? first : 0);
    }
    barrier();
    u32 place = (u32)passed[0];
    target = passed[1];
    barrier();
    return place;
  }

  // Clears the masses of the buckets.
  MEMBER void clear() {
    for (u32 i = thread_x(); i < BUCKETS; i += CHOOSE_THREADS) others()[i] = 0;
    barrier();
  }

  // Sums up the masses of all candidates by their buckets, and returns the sum of all.
  MEMBER u64 spread(f32 temperature) {
    clear();
    const u32 AHEAD = 4;
    f32 floor = logit_of(last);
    u64 sum = 0;
    for (u32 start = thread_x(); start < padded; start += AHEAD * CHOOSE_THREADS) {
      f32 score[AHEAD];
      UNROLL for (u32 i = 0; i < AHEAD; i++) {
        u32 token = start + i * CHOOSE_THREADS;
        score[i] = token < padded ? scores[token] : minus_infinity();
      }
      UNROLL for (u32 i = 0; i < AHEAD; i++) {
        if (!(score[i] >= floor) || candidate(start + i * CHOOSE_THREADS, score[i]) > last) continue;
        u64 mass = mass_of(score[i], temperature);
        if (mass) shared_sum(&others()[bucket_of(score[i], temperature)], mass);
        sum += mass;
      }
    }
    sum = block_sum<CHOOSE_THREADS>(sum, sums);
    barrier();
    return sum;
  }

  // The first candidate that `spread` saw with which the sum of the masses in rank order reaches
  // `target`; all bits set where there is none.
  MEMBER u64 search(u64 target, f32 temperature) {
    u32 bucket = crossing(others()[2 * thread_x()], others()[2 * thread_x() + 1], target);
    if (bucket == NONE) return ~(u64)0;
    if (thread_x() == 0) *found = 0;
    barrier();
    f32 floor = logit_of(last);
    for (u32 token = thread_x(); token < padded; token += CHOOSE_THREADS) {
      f32 score = scores[token];
      if (!(score >= floor) || bucket_of(score, temperature) != bucket) continue;
      u64 key = candidate(token, score);
      if (key > last) continue;
      u32 place = shared_add(found, (u32)1);
      if (place < RANKED) others()[place] = key;
    }
    barrier();
    u32 gathered = *found;
    barrier();
    if (gathered > RANKED) return search_digits(bucket, target, temperature);
    sort(others(), gathered);
    u32 first = 2 * thread_x();
    u32 place = crossing(mass_at(others(), first, gathered, temperature),
                         mass_at(others(), first + 1, gathered, temperature), target);
    // The mass of the bucket is the sum of these masses.
    u64 key = others()[place % RANKED];
    barrier();
    return key;
  }

  // The same in one bucket of any length. Candidates are 64-bit numbers, and each round finds 8
  // more bits.
  MEMBER u64 search_digits(u32 bucket, u64 target, f32 temperature) {
    f32 floor = logit_of(last);
    u64 prefix = 0;
    for (i32 shift = 56; shift >= 0; shift -= 8) {
      clear();
      for (u32 token = thread_x(); token < padded; token += CHOOSE_THREADS) {
        f32 score = scores[token];
        if (!(score >= floor) || bucket_of(score, temperature) != bucket) continue;
        u64 key = candidate(token, score);
        if (key > last || (shift < 56 && key >> (shift + 8) != prefix)) continue;
        shared_sum(&others()[key >> shift & (DIGITS - 1)], mass_of(score, temperature));
      }
      barrier();
      u32 digit = crossing(others()[2 * thread_x()], others()[2 * thread_x() + 1], target);
      prefix = prefix << 8 | (digit & (DIGITS - 1));
    }
    return prefix;
  }

  // Gathers the candidates up to `bucket` that rank up to `bound`, and returns their number. Those
  // beyond GATHERED are left out.
  MEMBER u32 gather(u32 bucket, u64 bound) {
    f32 floor = logit_of(bound);
    if (thread_x() == 0) *found = 0;
    for (u32 start = 0; start < peak_count; start += CHOOSE_THREADS) {
      // Each thread looks at a peak; 16 lanes then look into each block that has any.
      if (thread_x() == 0) *listed = 0;
      barrier();
      u32 own = start + thread_x();
      f32 peak = own < peak_count ? peaks[own] : minus_infinity();
      if (peak >= floor && bucket_of(peak, 1.0f) <= bucket) blocks[shared_add(listed, (u32)1)] = own;
      barrier();
      u32 end = *listed;
      for (u32 i = thread_x() / 16; i < end; i += CHOOSE_THREADS / 16) {
        UNROLL for (u32 j = 0; j < PEAK / 16; j++) {
          u32 token = blocks[i] * PEAK + 16 * j + thread_x() % 16;
          f32 score = scores[token];
          if (!(score >= floor) || bucket_of(score, 1.0f) > bucket) continue;
          u64 key = candidate(token, score);
          if (key > bound) continue;
          u32 place = shared_add(found, (u32)1);
          if (place < GATHERED) ranked[place] = key;
        }
      }
      barrier();
    }
    u32 gathered = *found;
    barrier();
    return gathered;
  }

  // Sorts up to 2 * RANKED candidates (bitonic; Batcher, 1968).
  MEMBER void sort(u64 *candidates, u32 length) {
    u32 padded_length = 2;
    while (padded_length < length) padded_length *= 2;
    for (u32 i = length + thread_x(); i < padded_length; i += CHOOSE_THREADS) candidates[i] = ~(u64)0;
    barrier();
    for (u32 size = 2; size <= padded_length; size *= 2) {
      for (u32 distance = size / 2; distance > 0; distance /= 2) {
        for (u32 pair = thread_x(); pair < padded_length / 2; pair += CHOOSE_THREADS) {
          u32 low = 2 * pair - (pair & (distance - 1)), high = low + distance;
          u64 a = candidates[low], b = candidates[high];
          bool descending = (low & size) != 0;
          if ((a > b) != descending) candidates[low] = b, candidates[high] = a;
        }
        barrier();
      }
    }
  }

  // Sorts the first `wanted` (up to RANKED) candidates.
  MEMBER void load(u32 wanted) {
    // The bucket of the wanted-th peak: `wanted` blocks have a score up to there, and so the first
    // candidates are all up to there.
    u32 bucket = BUCKETS - 1;
    if (wanted < peak_count) {
      clear();
      for (u32 i = thread_x(); i < peak_count; i += CHOOSE_THREADS)
        if (peaks[i] >= lowest_finite()) shared_sum(&others()[bucket_of(peaks[i], 1.0f)], 1);
      barrier();
      u64 target = wanted;
      bucket = smaller(crossing(others()[2 * thread_x()], others()[2 * thread_x() + 1], target), bucket);
    }
    u32 gathered = gather(bucket, last);
    if (gathered > GATHERED) {
      // Many candidates are close to each other. The exact candidate replaces the bucket.
      spread(0.0f);
      gathered = gather(BUCKETS - 1, smaller(last, search(wanted, 0.0f)));
    }
    sort(ranked, gathered);
    complete = gathered < wanted || wanted >= padded;
    count = smaller(gathered, wanted);
  }

  // Keeps the first `wanted` candidates. `load` sorted at most RANKED of them.
  MEMBER void keep(u32 wanted) {
    if (wanted <= RANKED) {
      complete = true;
    } else if (!complete) {
      spread(0.0f);
      // Where there are fewer, all of them stay.
      last = smaller(last, search(wanted, 0.0f));
    }
  }

  // Keeps the candidates that rank up to `bound`.
  MEMBER void keep_to(u64 bound) {
    last = smaller(last, bound);
    u32 low = 0, high = count;
    while (low < high) {
      u32 middle = (low + high) / 2;
      if (ranked[middle] <= bound) low = middle + 1;
      else high = middle;
    }
    complete = complete || low < count || (low > 0 && ranked[low - 1] == bound);
    count = low;
  }

  // The sum of the weights of all candidates. It calls `spread` where not all are sorted.
  MEMBER u64 total(f32 temperature) {
    if (!complete) return spread(temperature);
    u32 first = 2 * thread_x();
    u64 sum = mass_at(ranked, first, count, temperature) + mass_at(ranked, first + 1, count, temperature);
    sum = block_sum<CHOOSE_THREADS>(sum, sums);
    barrier();
    return sum;
  }

  // The first candidate with which the sum of the weights in rank order reaches `target`; all bits
  // set if there is none. `is_spread` says that `spread` has run for this temperature and these
  // candidates.
  MEMBER u64 find(u64 target, f32 temperature, bool is_spread) {
    u32 first = 2 * thread_x();
    u64 rest = target;
    u32 place =
        crossing(mass_at(ranked, first, count, temperature), mass_at(ranked, first + 1, count, temperature), rest);
    if (place != NONE) return ranked[place];
    if (complete) return ~(u64)0;
    if (!is_spread) spread(temperature);
    return search(target, temperature);
  }

  // Keeps the candidates of a complete ranking whose distances to the best are nearest to the mean
  // of these distances, until they have the share `mass`. The distance is the surprisal and its
  // mean the entropy, except for the same constant.
  MEMBER void keep_typical(f32 mass) {
    u64 sum = 0, all = total(1.0f), target = share(mass, all);
    for (u32 i = thread_x(); i < count; i += CHOOSE_THREADS) {
      f32 distance = best - logit_of(ranked[i]);
      u64 own = weight(-distance);
      if (own) sum += (u64)((f64)own * (f64)distance);
    }
    sum = block_sum<CHOOSE_THREADS>(sum, sums);
    // The low half of a number is the rank, after the oddity.
    for (u32 i = thread_x(); i < count; i += CHOOSE_THREADS) {
      f64 oddity = (f64)(best - logit_of(ranked[i])) * (f64)all - (f64)sum;
      others()[i] = (u64)bits_of(absolute((f32)oddity)) << 32 | i;
    }
    barrier();
    sort(others(), count);
    u64 masses[2];
    for (u32 i = 0; i < 2; i++) {
      u32 place = 2 * thread_x() + i;
      masses[i] = place < count ? mass_of(logit_of(ranked[(u32)others()[place] % RANKED]), 1.0f) : 0;
    }
    u32 cut = crossing(masses[0], masses[1], target);
    if (cut == NONE) return;
    for (u32 i = cut + 1 + thread_x(); i < count; i += CHOOSE_THREADS) ranked[(u32)others()[i] % RANKED] = ~(u64)0;
    barrier();
    sort(ranked, count);
    count = cut + 1;
    best = logit_of(ranked[0]);
  }

  // The first of the candidates.
  MEMBER u64 first() {
    u64 nearest = 0;
    for (u32 i = thread_x(); i < peak_count && !nearest; i += CHOOSE_THREADS)
      if (peaks[i] == best) nearest = ~(u64)i;
    nearest = ~block_max<CHOOSE_THREADS>(nearest, sums);
    barrier();
    u32 token = (u32)nearest * PEAK + thread_x();
    u64 key = thread_x() < PEAK && scores[token] == best ? ~candidate(token, best) : 0;
    key = block_max<CHOOSE_THREADS>(key, sums);
    barrier();
    return ~key;
  }
};
