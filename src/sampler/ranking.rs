//! The candidates for the next token in rank order. Only as many are sorted as are asked for.

use super::logits::{self, BLOCK};
use super::math::weight;
use crate::{Result, memory};

/// A token and its logit as one integer whose order is the rank: higher logits first, and among
/// equal logits the lower id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

impl Candidate {
    /// The last possible rank of a candidate with a finite logit.
    const LAST: Self = Self::new(u32::MAX, f32::MIN);

    /// `logit` must not be NaN.
    #[inline]
    pub(super) const fn new(token: u32, logit: f32) -> Self {
        // The sum turns -0 into +0, as the two are equal. The bits of positive floats then order as
        // integers do; those of negative floats in reverse.
        let bits = (logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self((!ascending as u64) << 32 | token as u64)
    }

    pub(super) fn token(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn logit(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        f32::from_bits(if ascending >> 31 == 1 { ascending ^ 1 << 31 } else { !ascending })
    }
}

/// How many candidates to sort before knowing how many are needed. Most draws need no more.
const FIRST: usize = 256;

/// Buckets per distance of 1, in a histogram of distances to the best logit. It serves searches
/// beyond the [`FIRST`] candidates, …
const BUCKETS_PER_UNIT: f32 = 64.0;
/// … and covers distances up to 32; weights are 0 well before that.
const BUCKETS: usize = 2048;

/// The buffers of a [`Ranking`] and its input, reused from token to token. A clone is empty.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// The largest score of each block, from [`logits::peaks`].
    pub(super) peaks: Vec<f32>,
    ranked: Vec<Candidate>,
    /// The logits after bias and penalties, if the sampler has any.
    pub(super) scores: Vec<f32>,
}

impl Clone for Buffers {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Buffers {
    /// Finds the peaks of `logits`, and returns the highest.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn find_peaks(&mut self, logits: &[f32]) -> Result<f32> {
        self.peaks.clear();
        memory::reserve(&mut self.peaks, logits.len().div_ceil(BLOCK), WHAT)?;
        Ok(logits::peaks(logits, &mut self.peaks))
    }
}

/// What the memory is for, in texts of errors.
const WHAT: &str = "the candidates for a token";

/// The candidates among `scores`, which contain no +∞. Scores of -∞ and NaN are no candidates.
pub(super) struct Ranking<'a> {
    scores: &'a [f32],
    buffers: &'a mut Buffers,
    /// Unless `complete`: the candidates are those that rank up to this one, …
    last: Candidate,
    /// … and `buffers.ranked` has the first of them, sorted. If `complete`, it has all candidates.
    complete: bool,
    /// The total of all `scores` at a temperature of 1, where it is known.
    total: Option<u64>,
}

impl<'a> Ranking<'a> {
    /// All of `scores`. `buffers` already has their peaks; `total` is their total at a temperature
    /// of 1, if known.
    pub(super) fn new(scores: &'a [f32], buffers: &'a mut Buffers, total: Option<u64>) -> Self {
        buffers.ranked.clear();
        Self { scores, buffers, last: Candidate::LAST, complete: false, total }
    }

    /// The first candidates, sorted: [`FIRST`] of them, or all if there are fewer.
    fn first(&mut self) -> Result<&[Candidate]> {
        if !self.complete && self.buffers.ranked.is_empty() {
            self.load(FIRST)?;
        }
        Ok(&self.buffers.ranked)
    }

    /// The logit of the best candidate; -∞ if there is none. All weights are relative to it.
    pub(super) fn best(&mut self) -> Result<f32> {
        Ok(self.first()?.first().map_or(f32::NEG_INFINITY, |candidate| candidate.logit()))
    }

    /// All candidates, sorted.
    pub(super) fn all(&mut self) -> Result<&[Candidate]> {
        if !self.complete {
            self.load(self.scores.len())?;
        }
        Ok(&self.buffers.ranked)
    }

    /// Keeps the first `count` candidates.
    pub(super) fn keep(&mut self, count: usize) -> Result<()> {
        if !self.complete {
            self.load(count)?;
        }
        self.buffers.ranked.truncate(count);
        self.complete = true;
        Ok(())
    }

    /// Keeps the candidates that rank up to `last`.
    pub(super) fn keep_to(&mut self, last: Candidate) {
        self.last = self.last.min(last);
        let count = self.buffers.ranked.partition_point(|candidate| *candidate <= last);
        if count < self.buffers.ranked.len() {
            self.buffers.ranked.truncate(count);
            self.complete = true;
        }
    }

    /// Keeps the candidates whose logit is at least `floor`.
    pub(super) fn keep_from(&mut self, floor: f32) {
        self.keep_to(Candidate::new(u32::MAX, floor.max(f32::MIN)));
    }

    /// Keeps only the candidates that `keep` accepts, given their rank.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) -> Result<()> {
        self.all()?;
        let mut rank = 0;
        self.buffers.ranked.retain(|_| {
            rank += 1;
            keep(rank - 1)
        });
        Ok(())
    }

    /// The sum of the weights of all candidates at a temperature.
    pub(super) fn total(&mut self, temperature: f32) -> Result<u64> {
        let best = self.best()?;
        let weight = |logit: f32| weight((logit - best) / temperature);
        if self.complete {
            return Ok(self.buffers.ranked.iter().map(|candidate| weight(candidate.logit())).sum());
        }
        if self.last == Candidate::LAST {
            let known = self.total.filter(|_| temperature == 1.0);
            return Ok(known.unwrap_or_else(|| logits::total(self.scores, best, temperature, f32::NEG_INFINITY)));
        }
        let floor = self.last.logit();
        let behind = self.scores.get((self.last.token() as usize).saturating_add(1)..).unwrap_or_default();
        let equals = behind.iter().filter(|&&score| score == floor).count() as u64;
        Ok(logits::total(self.scores, best, temperature, floor) - equals * weight(floor))
    }

    /// The first candidate at which the cumulative weight in rank order, at a temperature, reaches
    /// `target`; `None` if the weight of all together does not.
    pub(super) fn find(&mut self, target: u64, temperature: f32) -> Result<Option<Candidate>> {
        let best = self.best()?;
        let distance = |logit: f32| (best - logit) / temperature;
        let mut sum = 0;
        let mut reaches = |candidate: &Candidate| {
            sum += weight(-distance(candidate.logit()));
            sum >= target
        };
        if let Some(found) = self.first()?.iter().copied().find(&mut reaches) {
            return Ok(Some(found));
        }
        if self.complete {
            return Ok(None);
        }
        // All candidates go into buckets by distance. The order of buckets is then the order of
        // ranks, so only the bucket in which the target is reached needs sorting.
        let bucket = |logit: f32| ((distance(logit) * BUCKETS_PER_UNIT) as usize).min(BUCKETS - 1);
        let mut masses = [0u64; BUCKETS];
        self.each(|candidate| {
            if let Some(mass) = masses.get_mut(bucket(candidate.logit())) {
                *mass += weight(-distance(candidate.logit()));
            }
        });
        let mut sum = 0;
        let crossing = masses.iter().position(|mass| {
            sum += mass;
            sum >= target
        });
        let Some((crossing, mass)) = crossing.and_then(|crossing| Some((crossing, masses.get(crossing)?))) else {
            return Ok(None);
        };
        sum -= mass;
        let (mut crossed, mut pushed) = (Vec::new(), Ok(()));
        self.each(|candidate| {
            if pushed.is_ok() && bucket(candidate.logit()) == crossing {
                pushed = memory::push(&mut crossed, candidate, WHAT);
            }
        });
        pushed?;
        crossed.sort_unstable();
        Ok(crossed.into_iter().find(|candidate| {
            sum += weight(-distance(candidate.logit()));
            sum >= target
        }))
    }

    /// Calls `visit` with every candidate, in the order of tokens. Not for a `complete` ranking.
    #[inline]
    fn each(&self, mut visit: impl FnMut(Candidate)) {
        let floor = self.last.logit();
        for (index, (block, &peak)) in self.scores.chunks(BLOCK).zip(&self.buffers.peaks).enumerate() {
            // False for NaN, and for -∞ as the floor is finite
            if peak >= floor {
                for (token, &score) in ((index * BLOCK) as u32..).zip(block) {
                    if score >= floor {
                        let candidate = Candidate::new(token, score);
                        if candidate <= self.last {
                            visit(candidate);
                        }
                    }
                }
            }
        }
    }

    /// Sorts the first `count` candidates.
    fn load(&mut self, count: usize) -> Result<()> {
        let mut ranked = std::mem::take(&mut self.buffers.ranked);
        ranked.clear();
        // Take the count-th highest peak as the threshold. Then `count` blocks hold a score that
        // reaches it, so the first `count` candidates all reach it. Few blocks need to be searched.
        let last = self.last;
        if 0 < count && count < self.buffers.peaks.len() {
            memory::reserve(&mut ranked, self.buffers.peaks.len(), WHAT)?;
            ranked.extend(self.buffers.peaks.iter().map(|&peak| Candidate::new(u32::MAX, peak)));
            self.last = last.min(*ranked.select_nth_unstable(count - 1).1);
            ranked.clear();
        }
        let mut pushed = Ok(());
        self.each(|candidate| {
            if pushed.is_ok() {
                pushed = memory::push(&mut ranked, candidate, WHAT);
            }
        });
        self.last = last;
        pushed?;
        self.complete = ranked.len() < count || count >= self.scores.len();
        if ranked.len() > count {
            ranked.select_nth_unstable(count);
            ranked.truncate(count);
        }
        ranked.sort_unstable();
        self.buffers.ranked = ranked;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::tests::random_logits;

    fn ranking<'a>(scores: &'a [f32], buffers: &'a mut Buffers) -> Ranking<'a> {
        logits::peaks(scores, &mut buffers.peaks);
        Ranking::new(scores, buffers, None)
    }

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
                for limit in [1, 2, 40, 700, len] {
                    for floor in [f32::NEG_INFINITY, -1.0, 2.0, 1e9] {
                        let expected = naive(&scores, limit, floor);
                        let mut one = ranking(&scores, &mut buffers);
                        one.keep(limit).unwrap();
                        one.keep_from(floor);
                        assert!(pairs(one.all().unwrap()) == expected);
                        let mut other = ranking(&scores, &mut buffers);
                        other.best().unwrap();
                        other.keep_from(floor);
                        other.keep(limit).unwrap();
                        assert!(pairs(other.all().unwrap()) == expected);
                    }
                }
            }
        }
    }

    /// Flat enough, and with enough ties, that most searches have to go into the buckets.
    fn flat_scores() -> Vec<f32> {
        random_logits(11, 5000, 1.5).iter().map(|score| (score * 16.0).floor() / 16.0).collect()
    }

    #[test]
    fn the_total_is_the_same_however_it_is_summed() {
        let scores = flat_scores();
        let mut buffers = Buffers::default();
        let sorted = ranking(&scores, &mut buffers).all().unwrap().to_vec();
        for last in [Candidate::LAST, sorted[300], sorted[301], sorted[2500], sorted[4999]] {
            for temperature in [1.0, 0.3, 40.0] {
                let mut ranking = ranking(&scores, &mut buffers);
                ranking.keep_to(last);
                let swept = ranking.total(temperature).unwrap();
                assert!(!ranking.complete);
                ranking.all().unwrap();
                assert_eq!(ranking.total(temperature).unwrap(), swept);
            }
        }
    }

    #[test]
    fn a_search_finds_what_a_walk_over_all_finds() {
        let scores = flat_scores();
        let mut buffers = Buffers::default();
        let sorted = ranking(&scores, &mut buffers).all().unwrap().to_vec();
        for last in [Candidate::LAST, sorted[10], sorted[700], sorted[4000]] {
            for temperature in [1.0, 0.1, 3.0, 1e20] {
                let mut ranking = ranking(&scores, &mut buffers);
                ranking.keep_to(last);
                let total = ranking.total(temperature).unwrap();
                for part in 0..=64 {
                    let target = (total / 64 * part).max(1);
                    let mut sum = 0;
                    let expected = sorted.iter().find(|candidate| {
                        sum += weight((candidate.logit() - sorted[0].logit()) / temperature);
                        sum >= target
                    });
                    assert_eq!(ranking.find(target, temperature).unwrap().as_ref(), expected);
                }
                assert!(ranking.find(total, temperature).unwrap().is_some_and(|found| found <= last));
                assert_eq!(ranking.find(total + 1, temperature).unwrap(), None);
            }
        }
    }
}
