//! Setting up a sampler.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Sampler;
use crate::{Error, Result, memory};

/// Sets up a [`Sampler`]. Settings start as in [`Sampler::default`]; [`build`](Self::build) checks
/// all of them.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing before build()"]
pub struct SamplerBuilder {
    sampler: Sampler,
    biases: BTreeMap<u32, f32>,
}

impl SamplerBuilder {
    pub(super) fn new() -> Self {
        Self { sampler: Sampler::default(), biases: BTreeMap::new() }
    }

    /// Divides the logits before the draw: a temperature above 1 evens out the choice, one below 1
    /// sharpens it, and 0 always takes the most likely token. At least 0; 0.8 by default.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.sampler.temperature = temperature;
        self
    }

    /// Keeps the `k` most likely tokens; 0 is off. 40 by default.
    pub fn top_k(mut self, k: usize) -> Self {
        self.sampler.top_k = k;
        self
    }

    /// Keeps the smallest set of the most likely tokens whose probability reaches `mass`, from 0 (only the best token)
    /// to 1 (off). 0.95 by default.
    pub fn top_p(mut self, mass: f32) -> Self {
        self.sampler.top_p = mass;
        self
    }

    /// Keeps the tokens that are at least `ratio` times as likely as the best, from 0 (off) to 1 (only the best and
    /// its equals). 0.05 by default.
    pub fn min_p(mut self, ratio: f32) -> Self {
        self.sampler.min_p = ratio;
        self
    }

    /// Keeps the smallest set of tokens whose probability reaches `mass` and whose surprisal is the closest to the
    /// entropy (locally typical sampling), from 0 (only the most typical token) to 1 (off). 1 by default.
    ///
    /// Without [top-k](Self::top_k), the whole vocabulary is sorted: some milliseconds for a large one.
    pub fn typical(mut self, mass: f32) -> Self {
        self.sampler.typical = mass;
        self
    }

    /// Divides the positive logits, and multiplies the negative ones, of tokens within the
    /// [window](Self::penalty_window). Above 0; 1 is off, and the default.
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.sampler.repetition_penalty = penalty;
        self
    }

    /// Subtracts `penalty` from the logit of a token for each time that it occurs within the
    /// [window](Self::penalty_window). Negative values make repetition likelier; 0 is off, and the
    /// default.
    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.sampler.frequency_penalty = penalty;
        self
    }

    /// Subtracts `penalty` once from the logit of each token that occurs within the
    /// [window](Self::penalty_window). Negative values make repetition likelier; 0 is off, and the
    /// default.
    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.sampler.presence_penalty = penalty;
        self
    }

    /// How many of the last tokens of prompt and answer the penalties look at: 0 turns them off, and [`usize::MAX`]
    /// takes all. 64 by default.
    pub fn penalty_window(mut self, tokens: usize) -> Self {
        self.sampler.penalty_window = tokens;
        self
    }

    /// Adds `bias` to the logit of `token`: finite, or -∞ for a [ban](Self::ban). Biases for the same token add up. A
    /// token outside of the model's vocabulary is an error when the first token is sampled.
    pub fn logit_bias(mut self, token: u32, bias: f32) -> Self {
        *self.biases.entry(token).or_insert(0.0) += bias;
        self
    }

    /// Never chooses `token`.
    pub fn ban(self, token: u32) -> Self {
        self.logit_bias(token, f32::NEG_INFINITY)
    }

    /// Lists the `count` most likely tokens of each step in
    /// [`Choice::top_logprobs`](super::Choice::top_logprobs). 0 by default, which lists none.
    pub fn top_logprobs(mut self, count: usize) -> Self {
        self.sampler.top_logprobs = count;
        self
    }

    /// Makes every generation draw the same random numbers. Without a seed, each generation draws
    /// its own.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampler.seed = Some(seed);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// `InvalidInput` for a setting out of its range, with the range in the message; `OutOfMemory`.
    pub fn build(self) -> Result<Sampler> {
        let Self { mut sampler, biases } = self;
        let share = 0.0..=1.0;
        let finite = f32::MIN..=f32::MAX;
        let positive = f32::from_bits(1)..=f32::MAX;
        let checks = [
            ("temperature", sampler.temperature, 0.0..=f32::MAX, "a finite number from 0, which is greedy, upwards"),
            ("top_p", sampler.top_p, share.clone(), "from 0 to 1, which is off"),
            ("min_p", sampler.min_p, share.clone(), "from 0, which is off, to 1"),
            ("typical", sampler.typical, share, "from 0 to 1, which is off"),
            ("repetition_penalty", sampler.repetition_penalty, positive, "a finite number above 0; 1 is off"),
            ("frequency_penalty", sampler.frequency_penalty, finite.clone(), "a finite number; 0 is off"),
            ("presence_penalty", sampler.presence_penalty, finite, "a finite number; 0 is off"),
        ];
        for (name, value, range, must) in checks {
            if !range.contains(&value) {
                return Err(Error::invalid_input(format!("the sampler's {name} is {value}, but must be {must}")));
            }
        }
        if let Some((token, bias)) = biases.iter().find(|(_, bias)| bias.is_nan() || **bias == f32::INFINITY) {
            return Err(Error::invalid_input(format!(
                "the sampler's bias for token {token} is {bias}, but must be finite, or -inf to ban the token"
            )));
        }
        sampler.biases = Arc::new(memory::collected(biases, "the biases of a sampler")?);
        Ok(sampler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn every_setting_out_of_range_is_refused_by_name() {
        type Set = fn(SamplerBuilder, f32) -> SamplerBuilder;
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let cases: [(&str, Set, &[f32], &[f32]); 8] = [
            ("temperature", SamplerBuilder::temperature, &[-0.1], &[0.0, -0.0, 1e-45, 1e-30, 2.0, 1e30]),
            ("top_p", SamplerBuilder::top_p, &[-0.1, 1.1], &[0.0, 0.5, 1.0]),
            ("min_p", SamplerBuilder::min_p, &[-0.1, 1.1], &[0.0, 1e-45, 1.0]),
            ("typical", SamplerBuilder::typical, &[-0.1, 1.1], &[0.0, 0.5, 1.0]),
            ("repetition_penalty", SamplerBuilder::repetition_penalty, &[0.0, -1.0], &[1e-45, 0.5, 1.0, 1e30]),
            ("frequency_penalty", SamplerBuilder::frequency_penalty, &[], &[-2.0, 0.0, 2.0]),
            ("presence_penalty", SamplerBuilder::presence_penalty, &[], &[-2.0, 0.0, 2.0]),
            ("bias for token 3", |builder, bias| builder.logit_bias(3, bias), &[], &[-100.0, 0.0, 100.0]),
        ];
        for (name, set, refused, accepted) in cases {
            for &value in bad.iter().chain(refused) {
                if name.starts_with("bias") && value == f32::NEG_INFINITY {
                    continue;
                }
                let error = set(Sampler::builder(), value).build().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains(&format!("{name} is {value}")), "{error}");
            }
            for &value in accepted {
                set(Sampler::builder(), value).build().unwrap();
            }
        }
    }

    #[test]
    fn biases_add_up_and_a_ban_stays() {
        let sampler = Sampler::builder().logit_bias(7, 1.0).ban(2).logit_bias(7, 0.5).logit_bias(2, 9.0).build();
        assert_eq!(*sampler.unwrap().biases, [(2, f32::NEG_INFINITY), (7, 1.5)]);
        let overflow = Sampler::builder().logit_bias(1, f32::MAX).logit_bias(1, f32::MAX).build();
        assert!(overflow.is_err());
    }

    #[test]
    fn a_builder_starts_from_the_default() {
        assert_eq!(Sampler::builder().build().unwrap(), Sampler::default());
    }
}
