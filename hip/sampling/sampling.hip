// Choosing the next token, with the arithmetic of the CPU's sampler (src/sampler), so that the same
// logits, settings and seed give the same token. exp is made of operations that IEEE 754 rounds
// exactly, probabilities are fixed-point integers, whose sums do not depend on the order, and
// random numbers come from a counter. A rejection sampler would draw other tokens. Only the few
// candidates that decide a draw are sorted, which is fast enough.
//
// Three launches serve any number of draws. Each draw has its own settings in `rows` (struct Row),
// its own row of the logits [][vocabulary], and its own part of the other buffers. With peaks =
// ceil(vocabulary / 64), spans = ceil(vocabulary / 2048):
//
//   sample_penalize(rows, edits, logits, scores, vocabulary), grid (ceil(vocabulary / 1024), rows):
//       scores = logits with biases and penalties, infinities replaced, and the largest of each 64
//   sample_weigh(rows, logits, scores, totals, vocabulary), grid (spans, rows):
//       the largest of all, and sums of the weights of 2048 logits each
//   sample_choose(rows, logits, scores, totals, choices, vocabulary), grid (rows):
//       top-k, typical, top-p, min-p, the draw; writes to `choices` (struct Choice) the token of
//       each row (0xffffffff where there is none to choose) and the parts of its probability
//
// Buffers: scores [rows][66 * peaks] are the scores, padded with -infinity, their peaks, and the
// peaks of the logits; totals [rows][3 * spans + 1] u64; edits are pairs of words, a token and its
// bias (f32), or a token and how often it is in the penalty window (u32). A token is in each list
// of a row at most once.

#include "sampling/ranking.h"

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

// A chosen token, by the model's own logits. The logarithm of its probability is logit - best -
// ln(total / 2^40).
struct Choice {
  u32 token;
  f32 logit, best;
  u32 unused;
  // The sum of the weights of all logits.
  u64 total;
};

#define PENALIZE_THREADS 256
#define PENALIZE_SPAN 1024
#define WEIGH_THREADS 256
#define WEIGH_SPAN 2048

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
  // With a short top-k only the sum of the logits is needed: the other sums come from the few
  // candidates that are left.
  bool ranked = row.temperature == 0.0f || (row.top_k > 0 && row.top_k <= RANKED);
  bool plain = !ranked || !edited;
  f32 floor = floor_of(row, best);
  // The sums at a temperature of 1, at the row's temperature without candidates below min-p, and of
  // the logits.
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
      // The totals of the launch before are of all candidates; the second is of those that min-p
      // keeps.
      bool is_whole = !row.top_k;
      f32 floor = floor_of(row, ranking.best);
      // First top-p, which includes min-p, then the draw. They share the code, because it is long.
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
