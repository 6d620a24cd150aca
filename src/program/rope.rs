//! Rotary position embeddings (Su et al. 2021) with the scalings that GGUF files ask for: linear,
//! YaRN (Peng et al. 2023) and a factor for each frequency (`rope_freqs`, Llama 3).

use crate::gguf::{Metadata, show};
use crate::{Error, Result, memory};
use std::fmt;

/// Which pairs of columns of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeStyle {
    /// Neighbours: `(0, 1), (2, 3), …` (the original; GGUF files of Llama models).
    Norm,
    /// Halves: `(0, n/2), (1, n/2 + 1), …` (GPT-NeoX and most others).
    Neox,
}

/// One rotary embedding: the angle of pair `i` at position `p` is `p * inv_freq[i]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    pub(crate) style: RopeStyle,
    /// The frequency of each pair. Each head has twice this many rotated columns; the others stay.
    pub(crate) inv_freq: Vec<f64>,
    /// Factor for sines and cosines (YaRN's attention temperature).
    pub(crate) magnitude: f64,
}

/// How positions are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// Positions are divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones kept.
    Yarn {
        factor: f64,
        original_context: f64,
        ext_factor: f64,
        attn_factor: f64,
        beta_fast: f64,
        beta_slow: f64,
    },
}

impl RopeScaling {
    /// Reads `<arch>.rope.scaling.*`.
    pub(crate) fn from_metadata(meta: &Metadata, arch: &str, context: usize) -> Result<Self> {
        let key = |k: &str| format!("{arch}.rope.{k}");
        let positive = |k: &str| -> Result<Option<f64>> {
            let Some(v) = meta.f32(&key(k))? else { return Ok(None) };
            if v.is_finite() && v >= 0.0 {
                return Ok(Some(f64::from(v)));
            }
            Err(Error::invalid_file(format!("key {} is {v}, expected a finite number that is not negative", key(k))))
        };
        // A file without a type but with a factor means linear scaling; a factor of 0 means none.
        let kind = meta.str(&key("scaling.type"))?.unwrap_or("linear");
        let factor = match positive("scaling.factor")? {
            Some(f) => Some(f),
            None => positive("scale_linear")?,
        };
        let factor = factor.filter(|&f| f != 0.0).unwrap_or(1.0);
        match kind {
            "none" => Ok(Self::None),
            "linear" if factor == 1.0 => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor }),
            "yarn" => Ok(Self::Yarn {
                factor,
                original_context: meta
                    .usize(&key("scaling.original_context_length"))?
                    .filter(|&n| n > 0)
                    .unwrap_or(context) as f64,
                ext_factor: positive("scaling.yarn_ext_factor")?.unwrap_or(1.0),
                attn_factor: positive("scaling.attn_factor")?.unwrap_or(1.0)
                    * positive("scaling.yarn_attn_factor")?.unwrap_or(1.0),
                beta_fast: positive("scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: positive("scaling.yarn_beta_slow")?.unwrap_or(1.0),
            }),
            other => Err(Error::unsupported(format!(
                "key {} asks for \"{}\" scaling; supported are none, linear and yarn",
                key("scaling.type"),
                show(other)
            ))),
        }
    }
}

impl Rope {
    /// The embedding of the first `columns` columns of each head with base frequency `base`. The
    /// frequency of each pair is divided by its element of `factors`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn new(
        style: RopeStyle,
        columns: usize,
        base: f64,
        scaling: RopeScaling,
        factors: Option<&[f32]>,
    ) -> Result<Self> {
        const WHAT: &str = "the frequencies of positions";
        let n = columns as f64;
        let plain = (0..columns / 2).map(|i| {
            let factor = factors.and_then(|f| f.get(i)).map_or(1.0, |&f| f64::from(f));
            base.powf(-2.0 * i as f64 / n) / factor
        });
        let (inv_freq, magnitude) = match scaling {
            RopeScaling::None => (memory::collected(plain, WHAT)?, 1.0),
            RopeScaling::Linear { factor } => (memory::collected(plain.map(|f| f / factor), WHAT)?, 1.0),
            RopeScaling::Yarn { factor, original_context, ext_factor, attn_factor, beta_fast, beta_slow } => {
                // The pair that makes `turns` full turns over the original context.
                let pair =
                    |turns: f64| n * (original_context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln());
                let low = pair(beta_fast).floor().max(0.0);
                let high = pair(beta_slow).ceil().min(n - 1.0);
                let freqs = plain.enumerate().map(|(i, f)| {
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    let keep = (1.0 - ramp) * ext_factor;
                    f / factor * (1.0 - keep) + f * keep
                });
                let temperature = if ext_factor != 0.0 && factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
                (memory::collected(freqs, WHAT)?, attn_factor * temperature)
            }
        };
        Ok(Self { style, inv_freq, magnitude })
    }

    /// Cosines and sines of every pair at `position`, times the magnitude.
    pub(crate) fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((c, s), freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
            let (sine, cosine) = (position as f64 * freq).sin_cos();
            *c = (cosine * self.magnitude) as f32;
            *s = (sine * self.magnitude) as f32;
        }
    }
}

impl fmt::Display for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.inv_freq.last().copied().unwrap_or_default();
        write!(f, "{:?}, {} pairs, slowest {last:e}, magnitude {}", self.style, self.inv_freq.len(), self.magnitude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_fall_from_one_to_the_inverse_base() {
        let rope = Rope::new(RopeStyle::Norm, 64, 10_000.0, RopeScaling::None, None).unwrap();
        assert_eq!(rope.inv_freq.len(), 32);
        assert_eq!(rope.inv_freq[0], 1.0);
        assert!((rope.inv_freq[16] - 0.01).abs() < 1e-12);
        let (mut cos, mut sin) = (vec![0.0; 32], vec![0.0; 32]);
        rope.angles(3, &mut cos, &mut sin);
        assert_eq!((cos[0], sin[0]), (3f64.cos() as f32, 3f64.sin() as f32));
    }

    #[test]
    fn linear_scaling_divides_positions() {
        let factor = RopeScaling::Linear { factor: 4.0 };
        let scaled = Rope::new(RopeStyle::Neox, 8, 10_000.0, factor, None).unwrap();
        let plain = Rope::new(RopeStyle::Neox, 8, 10_000.0, RopeScaling::None, None).unwrap();
        for (s, p) in scaled.inv_freq.iter().zip(&plain.inv_freq) {
            assert!((s * 4.0 - p).abs() < 1e-15);
        }
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 8.0,
            original_context: 2048.0,
            ext_factor: 1.0,
            attn_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
        };
        let yarn = Rope::new(RopeStyle::Neox, 128, 10_000.0, scaling, None).unwrap();
        let plain = Rope::new(RopeStyle::Neox, 128, 10_000.0, RopeScaling::None, None).unwrap();
        assert_eq!(yarn.inv_freq[0], plain.inv_freq[0]);
        assert!((yarn.inv_freq[63] * 8.0 / plain.inv_freq[63] - 1.0).abs() < 1e-12);
        assert!((yarn.magnitude - (1.0 + 0.1 * 8f64.ln())).abs() < 1e-12);
    }
}
