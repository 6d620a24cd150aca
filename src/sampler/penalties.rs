//! Penalties on tokens that occurred before.

use std::collections::{HashMap, VecDeque};

use super::Sampler;
use crate::{Result, memory};

/// How often each token occurs among the last ones of the text.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    window: usize,
    recent: VecDeque<u32>,
    counts: HashMap<u32, u32>,
}

impl History {
    /// The last `window` tokens of `tokens`, and of those pushed later.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn new(window: usize, tokens: &[u32]) -> Result<Self> {
        let mut history = Self { window, ..Self::default() };
        for &token in tokens.iter().skip(tokens.len().saturating_sub(window)) {
            history.reserve()?;
            history.push(token);
        }
        Ok(history)
    }

    /// Makes room for one more token.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn reserve(&mut self) -> Result<()> {
        const WHAT: &str = "the tokens that penalties look at";
        if self.window == 0 {
            return Ok(());
        }
        memory::reserve_in_map(&mut self.counts, 1, WHAT)?;
        let bytes = (self.recent.len() + 1) * size_of::<u32>();
        self.recent.try_reserve(1).map_err(|_| memory::out_of_memory(WHAT, bytes))
    }

    /// Adds a token. [`reserve`](Self::reserve) has made room for it.
    pub(super) fn push(&mut self, token: u32) {
        if self.window == 0 {
            return;
        }
        if self.recent.len() == self.window
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.recent.push_back(token);
        let count = self.counts.entry(token).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }

    /// How often each token occurs, in any order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u32, u32)> {
        self.counts.iter().map(|(&token, &count)| (token, count))
    }

    /// Applies the penalties of `sampler` to `logits`; tokens without a logit are ignored.
    ///
    /// The repetition penalty (Keskar et al., "CTRL", 2019) divides a positive logit and multiplies
    /// a negative one, so that the token becomes less likely in both cases. The frequency penalty
    /// is subtracted once per occurrence, the presence penalty once (both as OpenAI defined them).
    pub(super) fn penalize(&self, logits: &mut [f32], sampler: &Sampler) {
        for (&token, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                let repetition = sampler.repetition_penalty;
                let scaled = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
                *logit = scaled - (count as f32 * sampler.frequency_penalty + sampler.presence_penalty);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_tokens_count() {
        let mut history = History::new(3, &[1, 2, 2, 3]).unwrap();
        assert_eq!(history.counts, HashMap::from([(2, 2), (3, 1)]));
        history.push(4);
        history.push(4);
        assert_eq!(history.counts, HashMap::from([(3, 1), (4, 2)]));
        assert_eq!(History::new(100, &[1, 2]).unwrap().counts.len(), 2);
        let mut off = History::new(0, &[1, 2]).unwrap();
        off.push(3);
        assert!(off.is_empty());
    }

    #[test]
    fn penalties_have_their_definitions() {
        let sampler = Sampler::builder().repetition_penalty(2.0).frequency_penalty(0.5).presence_penalty(0.25);
        let history = History::new(64, &[0, 1, 1, 1, 2, 99]).unwrap();
        let mut logits = [4.0, -4.0, 0.0, 7.0];
        history.penalize(&mut logits, &sampler.build().unwrap());
        assert_eq!(logits, [4.0 / 2.0 - 0.75, -4.0 * 2.0 - 1.75, -0.75, 7.0]);
    }
}
