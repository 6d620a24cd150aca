//! One generation's state: the seed, the step and the tokens that penalties take into account.

use std::borrow::Cow;

use super::logits::{self, BLOCK};
use super::math::{MAX_VOCABULARY, UNIT, ln};
use super::penalties::History;
use super::philox::uniform;
use super::ranking::{Buffers, Ranking};
use super::{Sampler, steps};
use crate::{Error, Result, memory};

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The token's id.
    pub token: u32,
    /// The natural logarithm of the token's probability under the model: the log-softmax of the
    /// logits before any step of the sampler.
    pub logprob: f32,
    /// The most likely tokens before any step of the sampler, the best first: as many as
    /// [`top_logprobs`](super::SamplerBuilder::top_logprobs) asked for, if that many have a finite
    /// logit.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// A token and the logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token's id.
    pub token: u32,
    /// The natural logarithm of the token's probability.
    pub logprob: f32,
}

/// The most candidates among which a device searches for the typical ones.
const MOST_TYPICAL: usize = 1024;

/// The settings and state that a choice depends on besides the logits.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) seed: u64,
    pub(crate) step: u64,
    /// The logarithm of min-p; -∞ for none.
    pub(crate) log_min_p: f64,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) typical: f32,
    /// 0 is off.
    pub(crate) top_k: u32,
    pub(crate) repetition_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    /// Tokens and the biases of their logits; each token occurs once.
    pub(crate) biases: &'a [(u32, f32)],
    /// Tokens and their counts in the penalty window; each token occurs once.
    pub(crate) counts: Vec<(u32, u32)>,
}

/// A token that a device chose, with values from the model's own logits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    /// Its logit, and the largest one.
    pub(crate) logit: f32,
    pub(crate) best: f32,
    /// The sum of the weights of all logits.
    pub(crate) total: u64,
}

/// The state of one generation, made by [`Sampler::start`]. A clone continues with the same random
/// numbers.
#[derive(Debug, Clone)]
pub struct SamplerState {
    sampler: Sampler,
    seed: u64,
    /// How many tokens were sampled; the counter of the random numbers.
    step: u64,
    history: History,
    buffers: Buffers,
}

impl SamplerState {
    pub(super) fn new(sampler: Sampler, seed: u64, prompt: &[u32]) -> Result<Self> {
        let window = if sampler.has_penalties() { sampler.penalty_window } else { 0 };
        let history = History::new(window, prompt)?;
        Ok(Self { sampler, seed, step: 0, history, buffers: Buffers::default() })
    }

    /// The seed in use: with [`SamplerBuilder::seed`](super::SamplerBuilder::seed) it repeats this generation.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token from the model's logits, one per token of the vocabulary, and counts it as part of the
    /// text.
    ///
    /// # Errors
    /// `InvalidInput` where there is nothing to choose from (no logits, none above -∞, or all of
    /// those banned), where a bias is for a token without a logit, and for more than 8,388,608
    /// logits; `OutOfMemory`. After an error the state is unchanged.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice> {
        let Self { sampler, buffers, history, .. } = self;
        if logits.len() > MAX_VOCABULARY {
            return Err(Error::invalid_input(format!(
                "there are {} logits to sample from, but at most {MAX_VOCABULARY} are possible",
                logits.len()
            )));
        }
        if logits.is_empty() {
            return Err(Error::invalid_input(
                "there are no logits to sample from; run the model on at least one token",
            ));
        }
        history.reserve()?;
        let mut best = buffers.find_peaks(logits)?;
        let logits = if best == f32::INFINITY {
            let mut finite = memory::copied(logits, LOGITS)?;
            best = make_finite(&mut finite, buffers)?;
            Cow::Owned(finite)
        } else {
            Cow::Borrowed(logits)
        };
        if best == f32::NEG_INFINITY {
            return Err(Error::invalid_input(format!(
                "none of the {} logits is a number above -inf; check the model file and the tokens that it was given",
                logits.len()
            )));
        }
        let total = logits::total(&logits, best, 1.0, f32::NEG_INFINITY);
        let log_total = log_of(total);
        let logprob = |logit: f32| (f64::from(logit) - f64::from(best) - log_total) as f32;

        let mut top_logprobs = Vec::new();
        if sampler.top_logprobs > 0 {
            let mut ranking = Ranking::new(&logits, buffers, None);
            ranking.keep(sampler.top_logprobs)?;
            let top = ranking.all()?.iter();
            memory::reserve_exact(&mut top_logprobs, top.len(), "the most likely tokens")?;
            top_logprobs.extend(top.map(|c| TokenLogprob { token: c.token(), logprob: logprob(c.logit()) }));
        }

        let token = self.choose(&logits, best, total)?;
        self.count(token);
        let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        Ok(Choice { token, logprob: logprob(logit), top_logprobs })
    }

    /// Counts a chosen token as part of the text.
    fn count(&mut self, token: u32) {
        self.step += 1;
        self.history.push(token);
    }

    /// Describes the next choice to a device that makes it where the `vocabulary` logits are.
    /// `None` where the device cannot; [`sample`](Self::sample) then makes the choice or returns
    /// the error.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn request(&self, vocabulary: usize) -> Result<Option<Request<'_>>> {
        let sampler = &self.sampler;
        let top_k = u32::try_from(sampler.top_k).unwrap_or(u32::MAX);
        let is_known = |&(token, _): &(u32, f32)| (token as usize) < vocabulary;
        let is_possible = (1..=MAX_VOCABULARY).contains(&vocabulary)
            && sampler.top_logprobs == 0
            && (sampler.typical >= 1.0 || (1..=MOST_TYPICAL).contains(&sampler.top_k))
            && sampler.biases.iter().all(is_known);
        if !is_possible {
            return Ok(None);
        }
        Ok(Some(Request {
            seed: self.seed,
            step: self.step,
            log_min_p: if sampler.min_p > 0.0 { ln(f64::from(sampler.min_p)) } else { f64::NEG_INFINITY },
            temperature: sampler.temperature,
            top_p: sampler.top_p,
            typical: sampler.typical,
            top_k,
            repetition_penalty: sampler.repetition_penalty,
            frequency_penalty: sampler.frequency_penalty,
            presence_penalty: sampler.presence_penalty,
            biases: &sampler.biases,
            counts: memory::collected(self.history.counts(), "the tokens that penalties look at")?,
        }))
    }

    /// Takes over a device's choice for the last [`request`](Self::request).
    ///
    /// # Errors
    /// `OutOfMemory`; the state is then unchanged.
    pub(crate) fn accept(&mut self, drawn: Drawn) -> Result<Choice> {
        self.history.reserve()?;
        self.count(drawn.token);
        let logprob = (f64::from(drawn.logit) - f64::from(drawn.best) - log_of(drawn.total)) as f32;
        Ok(Choice { token: drawn.token, logprob, top_logprobs: Vec::new() })
    }

    /// All steps, on logits without +∞, whose peaks are in the buffers. `best` is the highest peak,
    /// and `total` the total of the weights at a temperature of 1.
    fn choose(&mut self, logits: &[f32], best: f32, total: u64) -> Result<u32> {
        let Self { sampler, buffers, history, .. } = self;
        if sampler.biases.is_empty() && history.is_empty() {
            return Self::draw(sampler, logits, best, Some(total), uniform(self.seed, self.step), buffers);
        }
        // Taken out of the buffers, because the others change meanwhile.
        let mut scores = std::mem::take(&mut buffers.scores);
        scores.clear();
        memory::extend(&mut scores, logits, LOGITS)?;
        add_biases(&mut scores, &sampler.biases)?;
        history.penalize(&mut scores, sampler);
        let mut best = buffers.find_peaks(&scores)?;
        if best == f32::INFINITY {
            // A sum or product of large numbers overflowed.
            best = make_finite(&mut scores, buffers)?;
        }
        let drawn = Self::draw(sampler, &scores, best, None, uniform(self.seed, self.step), buffers);
        buffers.scores = scores;
        drawn
    }

    /// The later steps, with a random number; `best` is the highest of the logits.
    fn draw(
        sampler: &Sampler,
        logits: &[f32],
        best: f32,
        total: Option<u64>,
        random: u64,
        buffers: &mut Buffers,
    ) -> Result<u32> {
        let nothing = || {
            Error::invalid_input(
                "every token with a logit above -inf is banned by the sampler's biases; allow at least one of them",
            )
        };
        if best == f32::NEG_INFINITY {
            return Err(nothing());
        }
        if sampler.temperature == 0.0 {
            return first_of(logits, &buffers.peaks, best).ok_or_else(nothing);
        }
        let mut ranking = Ranking::new(logits, buffers, total);
        steps::narrow(&mut ranking, sampler)?;
        steps::draw(&mut ranking, sampler.temperature, random)?.map(|drawn| drawn.token()).ok_or_else(nothing)
    }
}

/// What the memory is for, in texts of errors.
const LOGITS: &str = "a copy of the logits";

/// The logarithm of a sum of weights.
fn log_of(total: u64) -> f64 {
    ln(total as f64 / UNIT as f64)
}

/// Replaces +∞ by the largest finite number. Returns that number, which is the highest of the new
/// peaks.
///
/// # Errors
/// `OutOfMemory`.
fn make_finite(logits: &mut [f32], buffers: &mut Buffers) -> Result<f32> {
    for logit in logits.iter_mut().filter(|logit| **logit == f32::INFINITY) {
        *logit = f32::MAX;
    }
    buffers.find_peaks(logits)
}

/// Adds each bias to its token's logit.
fn add_biases(logits: &mut [f32], biases: &[(u32, f32)]) -> Result<()> {
    let count = logits.len();
    for &(token, bias) in biases {
        let logit = logits.get_mut(token as usize).ok_or_else(|| {
            Error::invalid_input(format!(
                "the sampler has a bias or ban for token {token}, but the model has only the tokens 0 to {}",
                count.saturating_sub(1)
            ))
        })?;
        *logit += bias;
    }
    Ok(())
}

/// The first token whose logit is `best`, the highest of the peaks.
fn first_of(logits: &[f32], peaks: &[f32], best: f32) -> Option<u32> {
    let start = peaks.iter().position(|&peak| peak == best)? * BLOCK;
    let within = logits.get(start..)?.iter().position(|&logit| logit == best)?;
    Some((start + within) as u32)
}
