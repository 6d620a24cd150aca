//! The candidates for the next token in rank order, of which only as many are sorted as are asked for.

use super::math::weight;
use crate::backend::cpu::logits::{self, BLOCK};

/// A token and its logit as one integer, whose order is the rank: the higher logit first, of equals the lower id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

impl Candidate {
    /// `logit` must not be NaN.
    #[inline]
    pub(super) fn new(token: u32, logit: f32) -> Self {
        // The sum makes +0 of -0, which are equal. The bits of positive floats then order as integers do; those of
        // negative ones in reverse.
        let bits = (logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(!ascending) << 32 | u64::from(token))
    }

    pub(super) fn token(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn logit(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        f32::from_bits(if ascending >> 31 == 1 { ascending ^ 1 << 31 } else { !ascending })
    }
}

/// How many candidates are sorted at first where none of the steps says how many are needed, …
const FIRST: usize = 256;
/// … and by what factor more when these do not do.
const GROWTH: usize = 8;

/// The buffers of a [`Ranking`] and what it starts from, kept from token to token.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers {
    /// The largest score of each block, from [`logits::peaks`].
    pub(super) peaks: Vec<f32>,
    ranked: Vec<Candidate>,
}

/// The candidates among `scores`: those that rank before `limit` and score at least `floor`. Scores of -∞ and NaN are
/// no candidates.
pub(super) struct Ranking<'a> {
    scores: &'a [f32],
    buffers: &'a mut Buffers,
    limit: usize,
    floor: f32,
    /// Whether `buffers.ranked` holds all candidates; else it holds the first ones.
    complete: bool,
}

impl<'a> Ranking<'a> {
    /// All of `scores`, whose peaks are already in `buffers`.
    pub(super) fn new(scores: &'a [f32], buffers: &'a mut Buffers) -> Self {
        buffers.ranked.clear();
        Self { limit: scores.len(), scores, buffers, floor: f32::NEG_INFINITY, complete: false }
    }

    /// The candidate of this rank, from 0, if there are so many.
    pub(super) fn get(&mut self, rank: usize) -> Option<Candidate> {
        while rank >= self.buffers.ranked.len() && !self.complete {
            self.load(FIRST.max(GROWTH * self.buffers.ranked.len()));
        }
        self.buffers.ranked.get(rank).copied()
    }

    /// The logit of the best candidate, which all weights are relative to; -∞ if there is none.
    pub(super) fn best(&mut self) -> f32 {
        self.get(0).map_or(f32::NEG_INFINITY, Candidate::logit)
    }

    /// All candidates, sorted.
    pub(super) fn all(&mut self) -> &[Candidate] {
        if !self.complete {
            self.load(self.limit);
        }
        &self.buffers.ranked
    }

    /// Keeps the first `count` candidates.
    pub(super) fn keep(&mut self, count: usize) {
        self.limit = self.limit.min(count);
        if self.buffers.ranked.len() >= self.limit {
            self.buffers.ranked.truncate(self.limit);
            self.complete = true;
        }
    }

    /// Keeps the candidates whose logit is at least `floor`.
    pub(super) fn keep_from(&mut self, floor: f32) {
        self.floor = self.floor.max(floor);
        let count = self.buffers.ranked.partition_point(|candidate| candidate.logit() >= self.floor);
        if count < self.buffers.ranked.len() {
            self.buffers.ranked.truncate(count);
            self.complete = true;
        }
    }

    /// Replaces the candidates by those of them that `keep` accepts, given their rank.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        self.all();
        let mut rank = 0;
        self.buffers.ranked.retain(|_| {
            rank += 1;
            keep(rank - 1)
        });
    }

    /// The sum of the weights of all candidates at a temperature.
    pub(super) fn total(&mut self, temperature: f32) -> u64 {
        let best = self.best();
        if !self.complete && self.limit == self.scores.len() {
            return logits::total(self.scores, best, temperature, self.floor);
        }
        self.all().iter().map(|candidate| weight((candidate.logit() - best) / temperature)).sum()
    }

    /// Sorts the first `count` candidates.
    fn load(&mut self, count: usize) {
        let count = count.min(self.limit);
        let Buffers { peaks, ranked } = &mut *self.buffers;
        ranked.clear();
        // With the count-th highest peak as the threshold, `count` blocks hold a score that reaches it: what the
        // first `count` candidates have is at least that. Few blocks need to be looked into.
        let mut threshold = self.floor;
        if 0 < count && count < peaks.len() {
            ranked.extend(peaks.iter().map(|&peak| Candidate::new(0, peak)));
            threshold = threshold.max(ranked.select_nth_unstable(count - 1).1.logit());
            ranked.clear();
        }
        let reaches = |score: f32| score >= threshold && score > f32::NEG_INFINITY;
        for (index, (block, &peak)) in self.scores.chunks(BLOCK).zip(&*peaks).enumerate() {
            if reaches(peak) {
                let tokens = (index * BLOCK) as u32..;
                let reaching = tokens.zip(block).filter(|&(_, &score)| reaches(score));
                ranked.extend(reaching.map(|(token, &score)| Candidate::new(token, score)));
            }
        }
        self.complete = count == self.limit || ranked.len() < count;
        if ranked.len() > count {
            ranked.select_nth_unstable(count);
            ranked.truncate(count);
        }
        ranked.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::tests::random_logits;

    fn naive(scores: &[f32], limit: usize, floor: f32) -> Vec<(u32, f32)> {
        let mut all: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
        all.retain(|&(_, score)| score >= floor && score > f32::NEG_INFINITY);
        all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        all.truncate(limit);
        all
    }

    fn pairs(candidates: &[Candidate]) -> Vec<(u32, f32)> {
        candidates.iter().map(|c| (c.token(), c.logit())).collect()
    }

    #[test]
    fn a_candidate_keeps_its_token_and_logit_and_orders_by_rank() {
        let logits = [f32::MAX, 3.5, 3.25, f32::MIN_POSITIVE, 0.0, -1e-45, -3.25, f32::MIN];
        for pair in logits.windows(2) {
            assert!(Candidate::new(9, pair[0]) < Candidate::new(1, pair[1]));
            assert!(Candidate::new(1, pair[0]) < Candidate::new(9, pair[0]));
            let candidate = Candidate::new(u32::MAX, pair[1]);
            assert_eq!((candidate.token(), candidate.logit()), (u32::MAX, pair[1]));
        }
        assert!(Candidate::new(1, -0.0) < Candidate::new(2, 0.0));
    }

    #[test]
    fn any_part_of_the_ranking_equals_a_full_sort() {
        for (seed, len) in [(1, 1), (2, 63), (3, 64), (4, 65), (5, 1000), (6, 40_000)] {
            // Coarse logits have many ties, -∞ and NaN among them
            for step in [0.0, 0.5, 1000.0] {
                let mut scores = random_logits(seed, len, 4.0);
                if step > 0.0 {
                    scores.iter_mut().for_each(|score| *score = (*score / step).floor() * step);
                }
                for (i, score) in scores.iter_mut().enumerate().skip(1) {
                    match i % 7 {
                        0 => *score = f32::NEG_INFINITY,
                        3 => *score = f32::NAN,
                        _ => (),
                    }
                }
                let mut buffers = Buffers::default();
                logits::peaks(&scores, &mut buffers.peaks);
                for limit in [0, 1, 2, 40, 700, len] {
                    for floor in [f32::NEG_INFINITY, -1.0, 2.0, 1e9] {
                        let expected = naive(&scores, limit, floor);
                        let mut ranking = Ranking::new(&scores, &mut buffers);
                        ranking.keep(limit);
                        ranking.keep_from(floor);
                        assert_eq!(pairs(ranking.all()), expected);
                        // The same, rank by rank, and with the steps in the other order after some were loaded
                        let mut ranking = Ranking::new(&scores, &mut buffers);
                        ranking.get(0);
                        ranking.keep_from(floor);
                        ranking.keep(limit);
                        let walked: Vec<_> = (0..).map_while(|rank| ranking.get(rank)).collect();
                        assert_eq!(pairs(&walked), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn the_total_is_the_same_however_it_is_summed() {
        let scores = random_logits(11, 5000, 3.0);
        let mut buffers = Buffers::default();
        logits::peaks(&scores, &mut buffers.peaks);
        for floor in [f32::NEG_INFINITY, 0.5] {
            for temperature in [1.0, 0.3, 40.0] {
                let mut ranking = Ranking::new(&scores, &mut buffers);
                ranking.keep_from(floor);
                let swept = ranking.total(temperature);
                ranking.all();
                assert_eq!(ranking.total(temperature), swept);
            }
        }
    }
}
