//! [`Generation`]: the stream of what a model says.

use super::{Prompt, Session};
use crate::backend::Logits;
use crate::sampler::{Sampler, SamplerState};
use crate::tokenizer::{Decoder, TokenId};
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model drew a token that ends its turn or the text.
    EndOfGeneration,
    /// As many tokens as were asked for.
    MaxTokens,
    /// One of the stop texts was generated; it is not part of the pieces.
    StopText,
    /// An error, which the stream has returned.
    Error,
}

/// A token with the logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// The natural logarithm of its probability under the model, before any step of the sampler.
    pub logprob: f32,
}

/// What one step of a generation yields.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    text: String,
    choice: Option<TokenLogprob>,
    top: Vec<TokenLogprob>,
}

impl Piece {
    /// Whole characters that became certain with this token; empty while a character or a stop text may be unfinished.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The token; `None` for a last piece that only brings held-back text.
    pub fn token(&self) -> Option<TokenId> {
        self.choice.map(|c| c.token)
    }

    /// The natural logarithm of the token's probability under the model, before any step of the sampler.
    pub fn logprob(&self) -> Option<f32> {
        self.choice.map(|c| c.logprob)
    }

    /// The most probable tokens at this place, best first; as many as [`Generation::top_logprobs`] asked for.
    pub fn top_logprobs(&self) -> &[TokenLogprob] {
        &self.top
    }
}

/// How long a generation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were cached already.
    pub reused_tokens: usize,
    /// Time to evaluate the others.
    pub prompt_time: Duration,
    /// Tokens drawn so far, without the one that ended the generation.
    pub generated_tokens: usize,
    /// Time since the prompt was evaluated, without the time the caller took.
    pub generation_time: Duration,
}

/// A running generation: an iterator over [`Piece`]s. Dropping it stops the work; the session keeps what was evaluated.
///
/// After an error the iterator ends; the session remains usable.
pub struct Generation<'s> {
    session: &'s mut Session,
    state: SamplerState,
    decoder: Decoder,
    logits: Option<Box<dyn Logits>>,
    /// Drawn but not evaluated yet.
    pending: Option<TokenId>,
    stop: StopTexts,
    left: usize,
    top: usize,
    reason: Option<StopReason>,
    stats: Stats,
}

impl<'s> Generation<'s> {
    pub(super) fn start(session: &'s mut Session, prompt: &Prompt, sampler: &Sampler) -> Result<Self> {
        let began = Instant::now();
        let state = sampler.start(prompt.tokens());
        let decoder = session.model.tokenizer().decoder();
        let (logits, reused_tokens) = session.set_context(prompt.tokens())?;
        let prompt_time = began.elapsed();
        let stats = Stats { prompt_tokens: prompt.len(), reused_tokens, prompt_time, ..Stats::default() };
        Ok(Self {
            session,
            state,
            decoder,
            logits: Some(logits),
            pending: None,
            stop: StopTexts::default(),
            left: usize::MAX,
            top: 0,
            reason: None,
            stats,
        })
    }

    /// Ends after `n` tokens.
    #[must_use]
    pub fn max_tokens(mut self, n: usize) -> Self {
        self.left = n;
        self
    }

    /// Ends where `text` is generated; may be called for several texts.
    #[must_use]
    pub fn stop_at(mut self, text: impl Into<String>) -> Self {
        self.stop.add(text.into());
        self
    }

    /// Gives each piece the `n` most probable tokens of its place.
    #[must_use]
    pub fn top_logprobs(mut self, n: usize) -> Self {
        self.top = n;
        self
    }

    /// The seed of the sampler: the given one, or the one that was made up.
    pub fn seed(&self) -> u64 {
        self.state.seed()
    }

    /// Why the generation ended; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.reason
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Generates to the end and returns the whole text.
    ///
    /// # Errors
    /// The first error of the stream.
    pub fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        for piece in self {
            text.push_str(piece?.text());
        }
        Ok(text)
    }

    fn step(&mut self) -> Result<Option<Piece>> {
        if self.left == 0 {
            return Ok(self.finish(StopReason::MaxTokens));
        }
        if let Some(token) = self.pending.take() {
            self.logits = Some(self.session.push(token)?);
        }
        if self.session.canceller.take() {
            return Err(Error::new(crate::ErrorKind::Cancelled, "the session was cancelled"));
        }
        let Some(logits) = self.logits.as_mut() else { return Ok(None) };
        let choice = logits.sample(0, &mut self.state)?;
        let top = if self.top > 0 { top_logprobs(logits.row(0)?, self.top) } else { Vec::new() };
        self.logits = None;
        if self.session.model.tokenizer().is_end_of_generation(choice.token) {
            return Ok(self.finish(StopReason::EndOfGeneration));
        }
        self.left -= 1;
        self.pending = Some(choice.token);
        self.stats.generated_tokens += 1;
        let text = self.decoder.push(self.session.model.tokenizer(), choice.token);
        let (text, stopped) = self.stop.push(&text);
        if stopped {
            self.reason = Some(StopReason::StopText);
        }
        let choice = TokenLogprob { token: choice.token, logprob: choice.logprob };
        Ok(Some(Piece { text, choice: Some(choice), top }))
    }

    /// Ends the generation; where text was held back, a last piece brings it.
    fn finish(&mut self, reason: StopReason) -> Option<Piece> {
        self.reason = Some(reason);
        let rest = self.decoder.finish();
        let (mut text, stopped) = self.stop.push(&rest);
        if stopped {
            self.reason = Some(StopReason::StopText);
        } else {
            text.push_str(&self.stop.take());
        }
        (!text.is_empty()).then(|| Piece { text, choice: None, top: Vec::new() })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reason.is_some() {
            return None;
        }
        let began = Instant::now();
        let step = self.step();
        self.stats.generation_time += began.elapsed();
        step.inspect_err(|_| self.reason = Some(StopReason::Error)).transpose()
    }
}

impl std::iter::FusedIterator for Generation<'_> {}

/// The `n` most probable tokens of a row of logits, best first.
fn top_logprobs(logits: &[f32], n: usize) -> Vec<TokenLogprob> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().filter(|l| !l.is_nan()).map(|&l| f64::from(l - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits.get(i).is_some_and(|l| !l.is_nan())).collect();
    let value = |i: usize| logits.get(i).copied().unwrap_or(f32::NEG_INFINITY);
    let by_logit = |&a: &usize, &b: &usize| value(b).total_cmp(&value(a)).then(a.cmp(&b));
    if n < order.len() {
        order.select_nth_unstable_by(n, by_logit);
        order.truncate(n);
    }
    order.sort_unstable_by(by_logit);
    order
        .into_iter()
        .map(|i| TokenLogprob { token: i as TokenId, logprob: (f64::from(value(i)) - norm) as f32 })
        .collect()
}

/// Looks for the stop texts in a stream, holding back what may be the beginning of one.
#[derive(Debug, Default)]
struct StopTexts {
    texts: Vec<String>,
    held: String,
}

impl StopTexts {
    fn add(&mut self, text: String) {
        if !text.is_empty() {
            self.texts.push(text);
        }
    }

    /// Takes new text; returns what is certain, and whether a stop text was found behind it.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.texts.iter().filter_map(|t| self.held.find(t.as_str())).min() {
            let mut certain = std::mem::take(&mut self.held);
            certain.truncate(at);
            return (certain, true);
        }
        let begins_here = |at: &usize| {
            let tail = self.held.get(*at..).unwrap_or_default();
            self.texts.iter().any(|t| t.starts_with(tail))
        };
        let keep_from = self.held.char_indices().map(|(at, _)| at).find(begins_here).unwrap_or(self.held.len());
        let held = self.held.split_off(keep_from);
        (std::mem::replace(&mut self.held, held), false)
    }

    /// What is held back: no stop text after all.
    fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_texts_are_found_across_pieces_and_never_shown() {
        let mut stop = StopTexts::default();
        stop.add("\n\nUser:".into());
        stop.add("END".into());
        assert_eq!(stop.push("Hi\n"), ("Hi".into(), false));
        assert_eq!(stop.push("there\n\nUs"), ("\nthere".into(), false));
        assert_eq!(stop.push("ual"), ("\n\nUsual".into(), false));
        assert_eq!(stop.push(" E"), (" ".into(), false));
        assert_eq!(stop.push("Néé"), ("ENéé".into(), false));
        assert_eq!(stop.push("\n\nUser: x END"), (String::new(), true));
        assert_eq!(stop.take(), "");
    }

    #[test]
    fn held_text_is_not_lost() {
        let mut stop = StopTexts::default();
        stop.add("abc".into());
        assert_eq!(stop.push("xab"), ("x".into(), false));
        assert_eq!(stop.take(), "ab");
    }

    #[test]
    fn the_most_probable_tokens_come_first() {
        let top = top_logprobs(&[0.0, 2.0, f32::NAN, 1.0, f32::NEG_INFINITY], 2);
        assert_eq!(top.iter().map(|t| t.token).collect::<Vec<_>>(), [1, 3]);
        let norm = (1.0 + 2f64.exp() + 1f64.exp()).ln();
        assert!((f64::from(top[0].logprob) - (2.0 - norm)).abs() < 1e-6);
    }
}
