//! Choosing the next token from the logits.
//!
//! A [`Sampler`] says how to choose and never changes; each generation gets its own [`SamplerState`] from it.
//!
//! # The steps
//!
//! They run in llama.cpp's default order, so that settings carry over. Each is skipped where its
//! setting is neutral:
//!
//! 1. **Bias and bans** are added to the logits.
//! 2. **Penalties** for tokens among the last [`penalty_window`](SamplerBuilder::penalty_window)
//!    ones of the prompt and the answer: [repetition](SamplerBuilder::repetition_penalty),
//!    [frequency](SamplerBuilder::frequency_penalty), [presence](SamplerBuilder::presence_penalty).
//! 3. **[Top-k](SamplerBuilder::top_k)** keeps the k best tokens.
//! 4. **[Typical](SamplerBuilder::typical)** keeps the tokens whose surprisal is near the entropy.
//! 5. **[Top-p](SamplerBuilder::top_p)** keeps the best tokens up to a share of the probability.
//! 6. **[Min-p](SamplerBuilder::min_p)** keeps the tokens whose probability is at least a given
//!    fraction of the best one's.
//! 7. **[Temperature](SamplerBuilder::temperature)** divides the remaining logits; then one token
//!    is drawn. It comes last so that the steps before it see the model's own probabilities: a high
//!    temperature varies the choice among the tokens that the model finds plausible, and lets no
//!    others in. A temperature of 0 takes the best token after step 2; of equally good ones, the
//!    one with the lowest id.
//!
//! Steps 3 to 6 always leave at least one token. Each step measures probabilities among the tokens
//! that the step before it left.
//!
//! # The same seed gives the same tokens on every machine
//!
//! … if the logits are the same. Random numbers come from a counter-based generator
//! ([Philox](https://doi.org/10.1145/2063384.2063405), keyed by the seed, counting the tokens). exp
//! and ln use only operations that IEEE 754 rounds exactly. Probabilities are fixed-point integers,
//! whose sums do not depend on the order. A token less than 2^-41 times as likely as the best one
//! is never drawn.
//!
//! # Logits that are not numbers
//!
//! NaN counts as -∞, which is never chosen. +∞ counts as the largest finite number. An error occurs
//! only when no token is left to choose.
//!
//! ```
//! use wavelm::sampler::Sampler;
//!
//! let sampler = Sampler::builder().temperature(0.7).top_p(0.9).seed(42).build()?;
//! let mut state = sampler.start(&[1, 15, 7])?; // the tokens of the prompt
//! let choice = state.sample(&[0.1, 2.5, -1.0, 2.4])?; // the model's logits, one per token of the vocabulary
//! assert!(choice.token == 1 || choice.token == 3);
//! # Ok::<(), wavelm::Error>(())
//! ```

mod builder;
pub(crate) mod logits;
pub(crate) mod math;
mod penalties;
mod philox;
mod ranking;
mod state;
mod steps;
#[cfg(test)]
pub(crate) mod tests;

use crate::Result;
use std::hash::BuildHasher;
use std::sync::Arc;

pub use builder::SamplerBuilder;
pub use state::{Choice, SamplerState, TokenLogprob};
pub(crate) use state::{Drawn, Request};

/// How to choose tokens: cheap to clone, never changed, shared between threads at will.
///
/// [`Sampler::default`] is temperature 0.8, top-k 40, top-p 0.95 and min-p 0.05, with a new seed for each generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    typical: f32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    penalty_window: usize,
    /// Sorted by token, and each token occurs once; -∞ is a ban.
    biases: Arc<Vec<(u32, f32)>>,
    top_logprobs: usize,
    seed: Option<u64>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            typical: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            biases: Arc::default(),
            top_logprobs: 0,
            seed: None,
        }
    }
}

impl Sampler {
    /// Always takes the most likely token; of equally likely ones, the one with the lowest id.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// A sampler to set up step by step, starting from [`Sampler::default`].
    pub fn builder() -> SamplerBuilder {
        SamplerBuilder::new()
    }

    /// Starts a generation after the tokens of `prompt`, which the penalties take into account.
    ///
    /// Without a [seed](SamplerBuilder::seed), a new one is taken from the operating system's randomness.
    ///
    /// # Errors
    /// `OutOfMemory`, where there is not enough for the tokens in the
    /// [window](SamplerBuilder::penalty_window).
    pub fn start(&self, prompt: &[u32]) -> Result<SamplerState> {
        // Each RandomState has its own keys, derived from the system's randomness. The standard
        // library has no other way to it.
        let seed = self.seed.unwrap_or_else(|| std::hash::RandomState::new().hash_one(prompt.len()));
        SamplerState::new(self.clone(), seed, prompt)
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}
