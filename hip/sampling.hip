// Choosing the next token, with the arithmetic of the CPU's sampler (src/sampler), so that the same logits, settings
// and seed give the same token: exp is made of operations that IEEE 754 rounds exactly, probabilities are fixed-point
// integers, whose sums do not depend on the order, and random numbers come from a counter. A rejection sampler would
// draw other tokens; here nothing is sorted but the few candidates that a draw is about, which serves as well.
//
// Three launches for any number of draws, each with its own settings in `rows` (struct Row), from its own row of the
// logits [][vocabulary], and with its own part of the other buffers. With peaks = ceil(vocabulary / 64),
// spans = ceil(vocabulary / 2048):
//
//   sample_penalize(rows, edits, logits, scores, vocabulary)                   grid (ceil(vocabulary / 1024), rows)
//       scores = logits with biases, penalties and numbers that are not finite seen to, and the largest of each 64
//   sample_weigh(rows, logits, scores, totals, vocabulary)                     grid (spans, rows)
//       the largest of all, and sums of the weights of 2048 logits each
//   sample_choose(rows, logits, scores, totals, choices, vocabulary)           grid (rows)
//       top-k, typical, top-p, min-p, the draw; writes the token of each row (0xffffffff where there is none to
//       choose) and what its probability is made of to `choices` (struct Choice)
//
// Buffers: scores [rows][66 * peaks]: the scores, padded with -infinity, their peaks, those of the logits; totals
// [rows][3 * spans + 1] u64; edits: pairs of words, a token and its bias (f32), or a token and how often it is in the
// penalty window (u32). A token is in each list of a row once at most.

#include "gpu.h"

struct Row {
  u64 seed, step;
  // The logarithm of min-p; -infinity for none.
  f64 log_min_p;
  // `typical` below 1 needs a top_k between 1 and 1024.
  f32 temperature, top_p, typical;
  // 0 is off.
  u32 top_k;
  // 1 is off for the first, 0 for the others.
  f32 repetition_penalty, frequency_penalty, presence_penalty;
  // Which row of the logits.
  u32 logits;
  // The edits of this row: biases, then counts.
  u32 first_edit, biases, counts, unused;
};

// A chosen token by the model's own logits: the logarithm of its probability is logit - best - ln(total / 2^40).
struct Choice {
  u32 token;
  f32 logit, best;
  u32 unused;
  // The sum of the weights of all logits.
  u64 total;
};

// ------------------------------------------------------------------------------------------------ arithmetic

#define INFINITE 0x7f800000u
#define NONE 0xffffffffu
// 2^12, the weight that the bits below start from.
#define GRID 4096.0

// exp(x) for x <= 0, at least -40; NaN counts as that. See src/sampler/math.rs.
DEVICE f32 exp_exact(f32 x) {
  const f32 ROUND = 12582912.0f, LN2_HIGH = 0.6933594f, LN2_LOW = -2.1219444e-4f, LOG2_E = 1.44269504f;
  x = x > -40.0f ? x : -40.0f;
  f32 rounded = x * LOG2_E + ROUND;
  f32 n = rounded - ROUND;
  f32 r = (x - n * LN2_HIGH) - n * LN2_LOW;
  f32 q = (((1.381454e-3f * r + 8.368745e-3f) * r + 4.166839e-2f) * r + 0.1666652f) * r + 0.49999993f;
  f32 mantissa = (q * (r * r) + r) + 1.0f;
  return f32_of(bits_of(mantissa) + (bits_of(rounded) << 23));
}

// The weight of a candidate at a distance x <= 0 from the best one: exp(x) in units of 2^-40.
DEVICE u64 weight(f32 x) { return bits_of((f64)exp_exact(x) + GRID) - bits_of(GRID); }

// The high half of a product.
DEVICE u64 multiply_high(u64 a, u64 b) {
  u64 a_low = (u32)a, a_high = a >> 32, b_low = (u32)b, b_high = b >> 32;
  u64 low = a_low * b_low, middle = a_high * b_low + (low >> 32), other = a_low * b_high + (u32)middle;
  return a_high * b_high + (middle >> 32) + (other >> 32);
}

// Philox4x32-10 (Salmon et al., 2011): 64 random bits for a step.
DEVICE u64 uniform(u64 seed, u64 step) {
  u32 c0 = (u32)step, c1 = (u32)(step >> 32), c2 = 0, c3 = 0, k0 = (u32)seed, k1 = (u32)(seed >> 32);
  for (u32 round = 0; round < 10; round++) {
    u64 a = (u64)c0 * 0xd2511f53u, b = (u64)c2 * 0xcd9e8d57u;
    c0 = (u32)(b >> 32) ^ c1 ^ k0;
    c1 = (u32)b;
    c2 = (u32)(a >> 32) ^ c3 ^ k1;
    c3 = (u32)a;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return (u64)c1 << 32 | c0;
}

// A token and its logit as one number, whose order is the rank: the higher logit first, of equals the lower token.
DEVICE u64 candidate(u32 token, f32 logit) {
  u32 bits = bits_of(logit + 0.0f);
  u32 ascending = bits >> 31 ? ~bits : bits | 1u << 31;
  return (u64)~ascending << 32 | token;
}
DEVICE f32 logit_of(u64 candidate) {
  u32 ascending = ~(u32)(candidate >> 32);
  return f32_of(ascending >> 31 ? ascending ^ 1u << 31 : ~ascending);
}

DEVICE f32 lowest_finite() { return f32_of(0xff7fffffu); }
DEVICE f32 minus_infinity() { return f32_of(0xff800000u); }
// +infinity counts as the largest finite number.
DEVICE f32 without_infinity(f32 logit) { return bits_of(logit) == INFINITE ? f32_of(0x7f7fffffu) : logit; }

// The part `fraction` of `total`, rounded up, and at least 1.
DEVICE u64 share(f32 fraction, u64 total) {
  return larger((u64)round_toward_infinity((f64)fraction * (f64)total), (u64)1);
}

// ------------------------------------------------------------------------------------------------ over the vocabulary

#define PEAK 64
#define PENALIZE_THREADS 256
#define PENALIZE_SPAN 1024
#define WEIGH_THREADS 256
#define WEIGH_SPAN 2048
// Candidates that are sorted at most.
#define RANKED 1024

// Rows of the buffers.
struct Vocabulary {
  u32 size, peaks, spans;
  MEMBER Vocabulary(u32 size) : size(size), peaks(ceil_div(size, PEAK)), spans(ceil_div(size, WEIGH_SPAN)) {}
  MEMBER u32 padded() const { return peaks * PEAK; }
  MEMBER u64 logits(const Row &row) const { return (u64)row.logits * size; }
  MEMBER u64 scores(u32 row) const { return (u64)row * (padded() + 2 * peaks); }
  MEMBER u64 totals(u32 row) const { return (u64)row * (3 * spans + 1); }
};

KERNEL(sample_penalize, PENALIZE_THREADS,
       (const Row *rows, const u32 *edits, const f32 *logits, f32 *scores, u32 vocabulary)) {
  SHARED f32 bias_of[PENALIZE_SPAN];
  SHARED u32 count_of[PENALIZE_SPAN];
  Vocabulary v(vocabulary);
  const Row &row = rows[block_y()];
  const f32 *from = logits + v.logits(row);
  f32 *to = scores + v.scores(block_y());
  u32 start = block_x() * PENALIZE_SPAN;
  bool edited = row.biases + row.counts > 0;
  if (edited) {
    // Each block looks for its own tokens among the few that the lists have.
    for (u32 i = thread_x(); i < PENALIZE_SPAN; i += PENALIZE_THREADS) bias_of[i] = 0.0f, count_of[i] = 0;
    barrier();
    const u32 *own = edits + 2 * (u64)row.first_edit;
    for (u32 i = thread_x(); i < row.biases + row.counts; i += PENALIZE_THREADS) {
      u32 place = own[2 * i] - start;
      if (place >= PENALIZE_SPAN) continue;
      if (i < row.biases) bias_of[place] = f32_of(own[2 * i + 1]);
      else count_of[place] = own[2 * i + 1];
    }
    barrier();
  }
  // 16 lanes take 64 logits.
  u32 peak = start / PEAK + thread_x() / 16;
  f32 raw_max = minus_infinity(), max = minus_infinity();
  UNROLL for (u32 i = 0; i < PEAK / 16; i++) {
    u32 token = peak * PEAK + 16 * i + thread_x() % 16;
    f32 score = token < vocabulary ? without_infinity(from[token]) : minus_infinity();
    raw_max = larger(score, raw_max);
    if (edited) {
      score += bias_of[token - start];
      u32 count = count_of[token - start];
      if (count) {
        score = score > 0.0f ? score / row.repetition_penalty : score * row.repetition_penalty;
        score -= (f32)count * row.frequency_penalty + row.presence_penalty;
      }
      score = without_infinity(score);
    }
    if (peak < v.peaks) to[token] = score;
    max = larger(score, max);
  }
  raw_max = wave_max(raw_max, 16);
  max = wave_max(max, 16);
  if (thread_x() % 16 == 0 && peak < v.peaks) {
    to[v.padded() + peak] = max;
    to[v.padded() + v.peaks + peak] = raw_max;
  }
}

// The largest of the peaks; all threads of the block call it together.
DEVICE f32 largest_peak(const f32 *peaks, u32 count, f32 *scratch) {
  f32 max = minus_infinity();
  for (u32 i = thread_x(); i < count; i += WEIGH_THREADS) max = larger(peaks[i], max);
  max = block_max<WEIGH_THREADS>(max, scratch);
  barrier();
  return max;
}

// The lowest logit that min-p keeps.
DEVICE f32 floor_of(const Row &row, f32 best) {
  return larger((f32)((f64)best + row.log_min_p), lowest_finite());
}

KERNEL(sample_weigh, WEIGH_THREADS,
       (const Row *rows, const f32 *logits, const f32 *scores, u64 *totals, u32 vocabulary)) {
  SHARED f32 maxima[WEIGH_THREADS / WAVE];
  SHARED u64 sums[WEIGH_THREADS / WAVE];
  Vocabulary v(vocabulary);
  const Row &row = rows[block_y()];
  const f32 *raw = logits + v.logits(row), *own = scores + v.scores(block_y());
  f32 best = largest_peak(own + v.padded(), v.peaks, maxima), raw_best = best;
  bool edited = row.biases + row.counts > 0;
  if (edited) raw_best = largest_peak(own + v.padded() + v.peaks, v.peaks, maxima);
  // With a short top-k only the logits matter: the other sums are made of the few that are left.
  bool ranked = row.temperature == 0.0f || (row.top_k > 0 && row.top_k <= RANKED);
  bool plain = !ranked || !edited;
  f32 floor = floor_of(row, best);
  // At a temperature of 1, at the row's and without what min-p leaves out, and of the logits.
  u64 sum = 0, drawn_sum = 0, raw_sum = 0;
  for (u32 i = thread_x(); i < WEIGH_SPAN; i += WEIGH_THREADS) {
    u32 token = block_x() * WEIGH_SPAN + i;
    if (token >= vocabulary) break;
    f32 distance = own[token] - best;
    if (plain) sum += weight(distance);
    if (!ranked && own[token] >= floor) drawn_sum += weight(distance / row.temperature);
    if (edited) raw_sum += weight(without_infinity(raw[token]) - raw_best);
  }
  sum = block_sum<WEIGH_THREADS>(sum, sums);
  barrier();
  drawn_sum = block_sum<WEIGH_THREADS>(drawn_sum, sums);
  barrier();
  raw_sum = edited ? block_sum<WEIGH_THREADS>(raw_sum, sums) : sum;
  if (thread_x() != 0) return;
  u64 *to = totals + v.totals(block_y());
  to[block_x()] = sum;
  to[v.spans + block_x()] = drawn_sum;
  to[2 * v.spans + block_x()] = raw_sum;
  if (block_x() == 0) to[3 * v.spans] = (u64)bits_of(raw_best) << 32 | bits_of(best);
}

// ------------------------------------------------------------------------------------------------ the choice

#define CHOOSE_THREADS 512
// How many candidates are sorted where it is not known how many are needed: most draws need no more.
#define FIRST 256
// What is gathered to be sorted: more than the first so many candidates, by the way they are found.
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

// The candidates of one row in rank order, the first of which are sorted in shared memory. All threads of the block
// call each function together and get the same result.
struct Ranking {
  const f32 *scores, *peaks;
  u32 padded, peak_count;
  // Shared memory: GATHERED candidates, of which the first RANKED stay; what is passed on, and sums; blocks of scores
  // that are looked into, how many these are, and how many candidates are found.
  u64 *ranked, *passed, *sums;
  u32 *blocks, *listed, *found;
  f32 best;
  // The candidates are those that rank up to this one. Where `complete`, they are the first `count` of `ranked`;
  // otherwise these are only the first ones.
  u64 last;
  u32 count;
  bool complete;

  // The second half of `ranked`: masses of buckets, or the candidates of one.
  MEMBER u64 *others() const { return ranked + RANKED; }

  // In the order of ranks, as differences and products are rounded monotonically.
  MEMBER u32 bucket_of(f32 score, f32 temperature) const {
    return (u32)smaller((best - score) * (BUCKETS_PER_UNIT / larger(temperature, 1.0f)), BUCKETS - 1.0f);
  }

  // The weight of a candidate at a temperature, of which 0 is to count.
  MEMBER u64 mass_of(f32 score, f32 temperature) const {
    return temperature == 0.0f ? 1 : weight((score - best) / temperature);
  }
  MEMBER u64 mass_at(const u64 *candidates, u32 place, u32 end, f32 temperature) const {
    return place < end ? mass_of(logit_of(candidates[place]), temperature) : 0;
  }

  // The sum of the values of this lane and those before.
  static MEMBER u64 wave_prefix(u64 value) {
    for (u32 distance = 1; distance < WAVE; distance *= 2) {
      u32 from = lane_id() >= distance ? lane_id() - distance : lane_id();
      u64 other = (u64)shuffle_from((u32)(value >> 32), from) << 32 | shuffle_from((u32)value, from);
      if (lane_id() >= distance) value += other;
    }
    return value;
  }

  // Each thread has two neighbours of 2 * CHOOSE_THREADS masses. Returns the first place with which their sum reaches
  // `target`, and leaves in `target` what of it is that place's; NONE where all together do not.
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

  // Of the candidates that `spread` saw, the first one with which the sum of the masses in rank order reaches `target`;
  // all bits set where there is none.
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
    // The masses are those that the bucket's was made of.
    u64 key = others()[place % RANKED];
    barrier();
    return key;
  }

  // The same within one bucket of any length: candidates are 64-bit numbers, and each pass finds 8 more bits.
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

  // Gathers the candidates up to `bucket` that rank up to `bound` and returns how many there are: of more than GATHERED
  // the rest is left out.
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
    // As many blocks as are wanted have a score up to the bucket in which the wanted-th peak is, so that the first
    // candidates are up to there.
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
      // Many near each other: the exact candidate instead of a bucket.
      spread(0.0f);
      gathered = gather(BUCKETS - 1, smaller(last, search(wanted, 0.0f)));
    }
    sort(ranked, gathered);
    complete = gathered < wanted || wanted >= padded;
    count = smaller(gathered, wanted);
  }

  // Keeps the first `wanted` candidates, of which `load` sorted RANKED at most.
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

  // The sum of the weights of all candidates; `spread` is done where not all are sorted.
  MEMBER u64 total(f32 temperature) {
    if (!complete) return spread(temperature);
    u32 first = 2 * thread_x();
    u64 sum = mass_at(ranked, first, count, temperature) + mass_at(ranked, first + 1, count, temperature);
    sum = block_sum<CHOOSE_THREADS>(sum, sums);
    barrier();
    return sum;
  }

  // The first candidate with which the sum of the weights in rank order reaches `target`; all bits set if there is
  // none. `is_spread` says that `spread` is done for this temperature and these candidates.
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

  // Keeps, of a complete ranking, those whose distances to the best are nearest to the mean of these distances, until
  // they have the share `mass`: the distance is the surprisal, and its mean the entropy, but for the same constant.
  MEMBER void keep_typical(f32 mass) {
    u64 sum = 0, all = total(1.0f), target = share(mass, all);
    for (u32 i = thread_x(); i < count; i += CHOOSE_THREADS) {
      f32 distance = best - logit_of(ranked[i]);
      u64 own = weight(-distance);
      if (own) sum += (u64)((f64)own * (f64)distance);
    }
    sum = block_sum<CHOOSE_THREADS>(sum, sums);
    // The rank follows the oddity in the low half of a number.
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

KERNEL(sample_choose, CHOOSE_THREADS,
       (const Row *rows, const f32 *logits, const f32 *scores, const u64 *totals, Choice *choices, u32 vocabulary)) {
  SHARED u64 ranked[GATHERED], passed[2], sums[CHOOSE_THREADS / WAVE];
  SHARED u32 blocks[CHOOSE_THREADS], counters[2];
  Vocabulary v(vocabulary);
  const Row &row = rows[block_x()];
  const u64 *own_totals = totals + v.totals(block_x());
  u64 total = 0, drawn_total = 0, raw_total = 0;
  for (u32 i = thread_x(); i < v.spans; i += CHOOSE_THREADS) {
    total += own_totals[i];
    drawn_total += own_totals[v.spans + i];
    raw_total += own_totals[2 * v.spans + i];
  }
  total = block_sum<CHOOSE_THREADS>(total, sums);
  barrier();
  drawn_total = block_sum<CHOOSE_THREADS>(drawn_total, sums);
  barrier();
  raw_total = block_sum<CHOOSE_THREADS>(raw_total, sums);
  barrier();
  f32 best = f32_of((u32)own_totals[3 * v.spans]), raw_best = f32_of((u32)(own_totals[3 * v.spans] >> 32));

  u64 chosen = ~(u64)0;
  if (best >= lowest_finite()) {
    const f32 *own_scores = scores + v.scores(block_x());
    Ranking ranking = {own_scores, own_scores + v.padded(), v.padded(), v.peaks, ranked, passed, sums,
                       blocks, &counters[0], &counters[1], best, candidate(NONE, lowest_finite()), 0, false};
    f32 temperature = row.temperature;
    if (temperature == 0.0f) {
      chosen = ranking.first();
    } else {
      ranking.load(row.top_k ? smaller(row.top_k, (u32)RANKED) : FIRST);
      if (row.top_k) ranking.keep(row.top_k);
      if (row.typical < 1.0f && ranking.complete) ranking.keep_typical(row.typical);
      // The totals of the launch before are of all candidates, the second of those that min-p keeps.
      bool is_whole = !row.top_k;
      f32 floor = floor_of(row, ranking.best);
      // First top-p, with min-p in it, then the draw: one piece of code, which is long.
      UNROLL_BY(1) for (u32 step = 0; step < 2; step++) {
        f32 at = step ? temperature : 1.0f;
        bool is_searched = step || row.top_p < 1.0f, is_known = is_whole && !ranking.complete;
        if (step) total = drawn_total;
        if (is_searched && !is_known) total = ranking.total(at);
        if (!step) ranking.keep_to(candidate(NONE, floor));
        if (!is_searched) continue;
        u64 target = step ? multiply_high(uniform(row.seed, row.step), total) + 1 : share(row.top_p, total);
        // The buckets of top-p were summed up before min-p.
        chosen = ranking.find(target, at, step && !is_known && !ranking.complete);
        if (!step && chosen != ~(u64)0) {
          ranking.keep_to(chosen);
          is_whole = false;
        }
      }
    }
  }

  if (thread_x() != 0) return;
  u32 token = chosen == ~(u64)0 ? NONE : (u32)chosen;
  f32 logit = token < vocabulary ? without_infinity(logits[v.logits(row) + token]) : minus_infinity();
  choices[block_x()] = {token, logit, raw_best, 0, raw_total};
}
