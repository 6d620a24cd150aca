// Choosing the next token, with the arithmetic of the CPU's sampler (src/sampler), so that the same logits, settings
// and seed give the same token: exp is made of operations that IEEE 754 rounds exactly, probabilities are fixed-point
// integers, whose sums do not depend on the order, and random numbers come from a counter.
//
// Three launches for any number of rows of logits, each with its own settings in `rows` (struct Row) and its own part
// of each buffer. With peaks = ceil(vocabulary / 64), spans = ceil(vocabulary / 4096):
//
//   sample_penalize(rows, logits, scores, biases, counts, vocabulary)          grid (ceil(vocabulary / 1024), rows)
//       scores = logits with biases, penalties and numbers that are not finite seen to, and the largest of each 64
//   sample_weigh(logits, scores, totals, vocabulary)                           grid (spans, rows)
//       sums of the weights, at a temperature of 1, of 4096 logits and 4096 scores each
//   sample_choose(rows, logits, scores, totals, counts, ring, tokens, choices, vocabulary, ring_len)      grid (rows)
//       top-k, top-p, min-p, the draw; writes the token of each row to `tokens` (0xffffffff where there is none to
//       choose) and what its probability is made of to `choices` (struct Choice); counts the token, and the step in
//       `rows`
//   sample_argmax(logits, tokens, vocabulary)                                  grid (rows), instead of all of these
//       the first of the largest logits; 0xffffffff where none is above -infinity
//
// Buffers: logits [rows][vocabulary]; scores [rows][vocabulary + 2 * peaks]: the scores, their peaks, those of the
// logits; totals [rows][2 * spans] u64; counts [rows][vocabulary] u32, how often each token is in the penalty window,
// and ring [rows][ring_len] u32, the tokens of that window, both null where no row has penalties; biases: pairs of
// words, token and f32, sorted by token.

#include "gpu.h"

struct Row {
  u64 seed, step;
  // The logarithm of min-p; -infinity for none.
  f64 log_min_p;
  f32 temperature, top_p;
  // 0 is off.
  u32 top_k;
  // 1 is off for the first, 0 for the others.
  f32 repetition_penalty, frequency_penalty, presence_penalty;
  // The biases of this row.
  u32 first_bias, biases;
  // Of the ring: its length (0: tokens are not counted), and how many tokens went into it so far.
  u32 window, pushed;
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
#define WEIGH_SPAN 4096

// Rows of the buffers.
struct Vocabulary {
  u32 size, peaks, spans;
  MEMBER Vocabulary(u32 size) : size(size), peaks(ceil_div(size, PEAK)), spans(ceil_div(size, WEIGH_SPAN)) {}
  MEMBER u64 scores(u32 row) const { return (u64)row * (size + 2 * peaks); }
  MEMBER u64 totals(u32 row) const { return (u64)row * 2 * spans; }
};

// The bias of a token, by bisection.
DEVICE f32 bias_of(const u32 *biases, u32 count, u32 token) {
  u32 low = 0, high = count;
  while (low < high) {
    u32 middle = (low + high) / 2;
    if (biases[2 * middle] < token) low = middle + 1;
    else high = middle;
  }
  return low < count && biases[2 * low] == token ? f32_of(biases[2 * low + 1]) : 0.0f;
}

KERNEL(sample_penalize, PENALIZE_THREADS,
       (const Row *rows, const f32 *logits, f32 *scores, const u32 *biases, const u32 *counts, u32 vocabulary)) {
  Vocabulary v(vocabulary);
  u32 index = block_y();
  const Row *row = rows + index;
  const f32 *from = logits + (u64)index * vocabulary;
  f32 *to = scores + v.scores(index);
  // 16 lanes take 64 logits.
  u32 peak = block_x() * (PENALIZE_SPAN / PEAK) + thread_x() / 16;
  f32 raw_max = minus_infinity(), max = minus_infinity();
  UNROLL for (u32 i = 0; i < PEAK / 16; i++) {
    u32 token = peak * PEAK + 16 * i + thread_x() % 16;
    if (token < vocabulary) {
      f32 score = without_infinity(from[token]);
      raw_max = larger(score, raw_max);
      if (row->biases) score += bias_of(biases + 2 * row->first_bias, row->biases, token);
      u32 count = counts && row->window ? counts[(u64)index * vocabulary + token] : 0;
      if (count) {
        score = score > 0.0f ? score / row->repetition_penalty : score * row->repetition_penalty;
        score -= (f32)count * row->frequency_penalty + row->presence_penalty;
      }
      score = without_infinity(score);
      to[token] = score;
      max = larger(score, max);
    }
  }
  raw_max = wave_max(raw_max, 16);
  max = wave_max(max, 16);
  if (thread_x() % 16 == 0 && peak < v.peaks) {
    to[vocabulary + peak] = max;
    to[vocabulary + v.peaks + peak] = raw_max;
  }
}

// The largest of the peaks; all threads of the block call it together.
template <u32 THREADS> DEVICE f32 largest_peak(const f32 *peaks, u32 count, f32 *scratch) {
  f32 max = minus_infinity();
  for (u32 i = thread_x(); i < count; i += THREADS) max = larger(peaks[i], max);
  max = block_max<THREADS>(max, scratch);
  barrier();
  return max;
}

KERNEL(sample_weigh, WEIGH_THREADS,
       (const f32 *logits, const f32 *scores, u64 *totals, u32 vocabulary)) {
  SHARED f32 maxima[WEIGH_THREADS / WAVE];
  SHARED u64 sums[WEIGH_THREADS / WAVE];
  Vocabulary v(vocabulary);
  u32 index = block_y(), span = block_x();
  const f32 *raw = logits + (u64)index * vocabulary, *row = scores + v.scores(index);
  f32 best = largest_peak<WEIGH_THREADS>(row + vocabulary, v.peaks, maxima);
  f32 raw_best = largest_peak<WEIGH_THREADS>(row + vocabulary + v.peaks, v.peaks, maxima);
  u64 sum = 0, raw_sum = 0;
  for (u32 i = thread_x(); i < WEIGH_SPAN; i += WEIGH_THREADS) {
    u32 token = span * WEIGH_SPAN + i;
    if (token < vocabulary) {
      sum += weight(row[token] - best);
      raw_sum += weight(without_infinity(raw[token]) - raw_best);
    }
  }
  sum = block_sum<WEIGH_THREADS>(sum, sums);
  barrier();
  raw_sum = block_sum<WEIGH_THREADS>(raw_sum, sums);
  if (thread_x() == 0) {
    totals[v.totals(index) + span] = sum;
    totals[v.totals(index) + v.spans + span] = raw_sum;
  }
}

// ------------------------------------------------------------------------------------------------ the choice

#define CHOOSE_THREADS 512
// Candidates that are sorted at most; a longer ranking is searched by its histogram.
#define RANKED 1024
// … and where it is not known how many are needed: most draws need no more.
#define FIRST 256
// What is gathered to be sorted: more than the first so many candidates, by the way they are found.
#define GATHERED 2048
#define BUCKETS 256

// The candidates of one row in rank order, the first of which are sorted in shared memory. All threads of the block
// call each function together and get the same result.
struct Ranking {
  const f32 *scores, *peaks;
  u32 vocabulary, peak_count;
  // Shared memory: the sorted candidates, the histogram, what is passed on, and sums.
  u64 *ranked, *buckets, *passed, *sums;
  // The candidates are those that rank up to this one. Where `complete`, they are the first `count` of `ranked`;
  // otherwise these are only the first ones.
  u64 last;
  u32 count;
  bool complete;
  f32 best;

  MEMBER bool is_candidate(u32 token) const { return scores[token] >= lowest_finite(); }

  MEMBER u64 weight_of(u64 candidate, f32 temperature) const {
    return weight((logit_of(candidate) - best) / temperature);
  }

  // In the order of ranks, the first candidate with which the sum of its and all weights before reaches `target`, where
  // weights are 1 if `temperature` is 0. Elements are `values` [..], whose index is the token, that rank up to `bound`.
  // Candidates are 64-bit numbers: each pass finds 8 more bits. NONE with the high half set if the total is too small.
  MEMBER u64 search(const f32 *values, u32 length, u64 bound, u64 target, f32 temperature) {
    u64 prefix = 0;
    for (i32 shift = 56; shift >= 0; shift -= 8) {
      for (u32 i = thread_x(); i < BUCKETS; i += CHOOSE_THREADS) buckets[i] = 0;
      barrier();
      for (u32 token = thread_x(); token < length; token += CHOOSE_THREADS) {
        f32 value = values[token];
        if (!(value >= lowest_finite())) continue;
        u64 key = candidate(token, value);
        if (key > bound || (shift < 56 && key >> (shift + 8) != prefix)) continue;
        u64 mass = temperature == 0.0f ? 1 : weight((value - best) / temperature);
        shared_add(&buckets[key >> shift & (BUCKETS - 1)], mass);
      }
      barrier();
      // One wave finds the bucket in which the target is reached.
      if (wave_id() == 0) {
        u64 own = 0;
        const u32 PER_LANE = BUCKETS / WAVE;
        UNROLL for (u32 i = 0; i < PER_LANE; i++) own += buckets[lane_id() * PER_LANE + i];
        u64 before = wave_prefix(own) - own;
        if (lane_id() == WAVE - 1 && before + own < target) passed[0] = ~(u64)0;
        if (before < target && target <= before + own) {
          u32 bucket = lane_id() * PER_LANE;
          while (before + buckets[bucket] < target) before += buckets[bucket++];
          passed[0] = bucket;
          passed[1] = target - before;
        }
      }
      barrier();
      u64 bucket = passed[0];
      target = passed[1];
      barrier();
      if (bucket == ~(u64)0) return bucket;
      prefix = prefix << 8 | bucket;
    }
    return prefix;
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

  // Gathers the candidates that rank up to `bound` and returns how many there are: of more than GATHERED, the rest is
  // left out.
  MEMBER u32 gather(u64 bound) {
    if (thread_x() == 0) passed[0] = 0;
    barrier();
    f32 floor = logit_of(bound);
    // 16 lanes look into a block of which the peak says that it has any.
    for (u32 peak = thread_x() / 16; peak < peak_count; peak += CHOOSE_THREADS / 16) {
      if (!(peaks[peak] >= floor)) continue;
      for (u32 i = thread_x() % 16; i < PEAK; i += 16) {
        u32 token = peak * PEAK + i;
        if (token >= vocabulary || !is_candidate(token)) continue;
        u64 key = candidate(token, scores[token]);
        if (key > bound) continue;
        u64 place = shared_add(&passed[0], (u64)1);
        if (place < GATHERED) ranked[place] = key;
      }
    }
    barrier();
    u32 found = (u32)passed[0];
    barrier();
    return found;
  }

  // Sorts what was gathered (bitonic; Batcher, 1968).
  MEMBER void sort(u32 found) {
    u32 length = 2;
    while (length < found) length *= 2;
    for (u32 i = found + thread_x(); i < length; i += CHOOSE_THREADS) ranked[i] = ~(u64)0;
    barrier();
    for (u32 size = 2; size <= length; size *= 2) {
      for (u32 distance = size / 2; distance > 0; distance /= 2) {
        for (u32 pair = thread_x(); pair < length / 2; pair += CHOOSE_THREADS) {
          u32 low = pair / distance * distance * 2 + pair % distance, high = low + distance;
          u64 a = ranked[low], b = ranked[high];
          bool descending = (low & size) != 0;
          if ((a > b) != descending) ranked[low] = b, ranked[high] = a;
        }
        barrier();
      }
    }
  }

  // Sorts the first `wanted` (up to RANKED) candidates.
  MEMBER void load(u32 wanted) {
    // With the wanted-th highest peak as the threshold, as many blocks have a score that reaches it: what the first
    // candidates have is at least that.
    u64 bound = last;
    if (wanted < peak_count) {
      u64 peak = search(peaks, peak_count, ~(u64)0, wanted, 0.0f);
      if (peak != ~(u64)0) bound = smaller(bound, candidate(NONE, logit_of(peak)));
    }
    u32 found = gather(bound);
    if (found > GATHERED) {
      // Many equals: the exact candidate instead of a threshold.
      bound = smaller(bound, search(scores, vocabulary, bound, wanted, 0.0f));
      found = gather(bound);
    }
    sort(found);
    complete = found < wanted || wanted >= vocabulary;
    count = smaller(found, wanted);
  }

  // Keeps the first `wanted` candidates.
  MEMBER void keep(u32 wanted) {
    load(smaller(wanted, (u32)RANKED));
    if (wanted <= RANKED) {
      complete = true;
    } else if (!complete) {
      u64 found = search(scores, vocabulary, last, wanted, 0.0f);
      // Where there are fewer, all of them stay.
      last = smaller(last, found);
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
    if (low < count) {
      count = low;
      complete = true;
    }
  }

  // The sum of the weights of all candidates.
  MEMBER u64 total(f32 temperature) {
    u64 sum = 0;
    if (complete) {
      for (u32 i = thread_x(); i < count; i += CHOOSE_THREADS) sum += weight_of(ranked[i], temperature);
    } else {
      for (u32 token = thread_x(); token < vocabulary; token += CHOOSE_THREADS) {
        if (is_candidate(token) && candidate(token, scores[token]) <= last)
          sum += weight((scores[token] - best) / temperature);
      }
    }
    sum = block_sum<CHOOSE_THREADS>(sum, sums);
    barrier();
    return sum;
  }

  // The first candidate with which the sum of the weights in rank order reaches `target`; all bits set if there is
  // none.
  MEMBER u64 find(u64 target, f32 temperature) {
    // Each thread has neighbouring candidates.
    const u32 PER_THREAD = RANKED / CHOOSE_THREADS;
    u64 own = 0;
    u32 first = thread_x() * PER_THREAD;
    for (u32 i = first; i < first + PER_THREAD && i < count; i++) own += weight_of(ranked[i], temperature);
    u64 before = wave_prefix(own);
    if (lane_id() == WAVE - 1) sums[wave_id()] = before;
    if (thread_x() == 0) passed[0] = ~(u64)0;
    barrier();
    before -= own;
    for (u32 wave = 0; wave < wave_id(); wave++) before += sums[wave];
    if (before < target && target <= before + own) {
      for (u32 i = first;; i++) {
        before += weight_of(ranked[i], temperature);
        if (before >= target) {
          passed[0] = ranked[i];
          break;
        }
      }
    }
    barrier();
    u64 found = passed[0];
    barrier();
    if (found != ~(u64)0 || complete) return found;
    return search(scores, vocabulary, last, target, temperature);
  }
};

KERNEL(sample_choose, CHOOSE_THREADS,
       (Row * rows, const f32 *logits, const f32 *scores, const u64 *totals, u32 *counts, u32 *ring, u32 *tokens,
        Choice *choices, u32 vocabulary, u32 ring_len)) {
  SHARED u64 ranked[GATHERED], buckets[BUCKETS], passed[2], sums[CHOOSE_THREADS / WAVE];
  SHARED f32 maxima[CHOOSE_THREADS / WAVE];
  Vocabulary v(vocabulary);
  u32 index = block_x();
  Row *row = rows + index;
  const f32 *own_scores = scores + v.scores(index), *peaks = own_scores + vocabulary;
  f32 best = largest_peak<CHOOSE_THREADS>(peaks, v.peaks, maxima);
  f32 raw_best = largest_peak<CHOOSE_THREADS>(peaks + v.peaks, v.peaks, maxima);
  u64 total = 0, raw_total = 0;
  for (u32 i = thread_x(); i < v.spans; i += CHOOSE_THREADS) {
    total += totals[v.totals(index) + i];
    raw_total += totals[v.totals(index) + v.spans + i];
  }
  total = block_sum<CHOOSE_THREADS>(total, sums);
  barrier();
  raw_total = block_sum<CHOOSE_THREADS>(raw_total, sums);
  barrier();

  u64 found = ~(u64)0;
  if (best >= lowest_finite()) {
    Ranking ranking = {own_scores, peaks, vocabulary, v.peaks, ranked, buckets, passed, sums,
                       candidate(NONE, lowest_finite()), 0, false, best};
    f32 temperature = row->temperature, top_p = row->top_p;
    f64 log_min_p = row->log_min_p;
    u32 top_k = temperature == 0.0f ? 1 : row->top_k;
    if (top_k) ranking.keep(top_k);
    else ranking.load(FIRST);
    if (temperature == 0.0f) {
      found = ranked[0];
    } else {
      if (top_p < 1.0f && (top_k || ranking.complete)) total = ranking.total(1.0f);
      if (log_min_p > (f64)minus_infinity()) {
        f32 floor = (f32)((f64)best + log_min_p);
        ranking.keep_to(candidate(NONE, larger(floor, lowest_finite())));
      }
      if (top_p < 1.0f) {
        u64 end = ranking.find(share(top_p, total), 1.0f);
        if (end != ~(u64)0) ranking.keep_to(end);
      }
      u64 before = multiply_high(uniform(row->seed, row->step), ranking.total(temperature));
      found = ranking.find(before + 1, temperature);
    }
  }

  if (thread_x() != 0) return;
  u32 token = found == ~(u64)0 ? NONE : (u32)found;
  tokens[index] = token;
  f32 logit = token < vocabulary ? without_infinity(logits[(u64)index * vocabulary + token]) : minus_infinity();
  choices[index] = {token, logit, raw_best, 0, raw_total};
  if (token >= vocabulary) return;
  row->step += 1;
  if (row->window) {
    u32 *own_counts = counts + (u64)index * vocabulary;
    u32 *place = ring + (u64)index * ring_len + row->pushed % row->window;
    if (row->pushed >= row->window && *place < vocabulary) own_counts[*place] -= 1;
    *place = token;
    own_counts[token] += 1;
    row->pushed += 1;
  }
}

KERNEL(sample_argmax, CHOOSE_THREADS, (const f32 *logits, u32 *tokens, u32 vocabulary)) {
  SHARED u64 scratch[CHOOSE_THREADS / WAVE];
  const f32 *row = logits + (u64)block_x() * vocabulary;
  // The largest complement is the first candidate; 0 is none.
  u64 best = 0;
  for (u32 token = thread_x(); token < vocabulary; token += CHOOSE_THREADS) {
    f32 logit = without_infinity(row[token]);
    if (logit >= lowest_finite()) best = larger(~candidate(token, logit), best);
  }
  best = block_max<CHOOSE_THREADS>(best, scratch);
  if (thread_x() == 0) tokens[block_x()] = best ? (u32)~best : NONE;
}
