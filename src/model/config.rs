//! A model's hyperparameters, read from the metadata and checked.

use crate::gguf::{Gguf, Metadata};
use crate::model::arch::{SUPPORTED, unsupported};
use crate::program::{Rope, RopeScaling, RopeStyle};
use crate::{Error, Result};

/// The settings that the families of this version have in common.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// `general.architecture`, the prefix of the other keys.
    pub(crate) arch: String,
    pub(crate) layers: usize,
    /// Columns of the residual stream.
    pub(crate) embed: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Columns of a query and key head, and of a value head.
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) feed_forward: usize,
    pub(crate) vocab: usize,
    /// The context length that the model was trained for.
    pub(crate) context: usize,
    pub(crate) norm_eps: f32,
    /// How many columns of each head are rotated.
    pub(crate) rope_columns: usize,
    pub(crate) rope_base: f64,
    pub(crate) rope_scaling: RopeScaling,
}

/// More than any real model has. The bound keeps products of sizes far from overflow.
const LARGEST: usize = 1 << 24;

impl Config {
    pub(crate) fn read(gguf: &Gguf) -> Result<Self> {
        let meta = gguf.metadata();
        let arch = meta.str("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
        // Checked first, so that no error calls keys missing that an unknown architecture does not
        // have.
        if !SUPPORTED.contains(&arch) {
            return Err(unsupported(arch));
        }
        let key = |k: &str| format!("{arch}.{k}");
        let needed = |k: &str| size(meta, &key(k))?.ok_or_else(|| missing(&key(k)));

        let layers = needed("block_count")?;
        let embed = needed("embedding_length")?;
        let heads =
            uniform(meta, &key("attention.head_count"))?.ok_or_else(|| missing(&key("attention.head_count")))?;
        let kv_heads = uniform(meta, &key("attention.head_count_kv"))?.unwrap_or(heads);
        let feed_forward =
            uniform(meta, &key("feed_forward_length"))?.ok_or_else(|| missing(&key("feed_forward_length")))?;
        let head_dim = size(meta, &key("attention.key_length"))?.unwrap_or(embed / heads);
        let value_dim = size(meta, &key("attention.value_length"))?.unwrap_or(embed / heads);
        let context = needed("context_length")?;
        if heads % kv_heads != 0 {
            return Err(Error::invalid_file(format!(
                "{heads} attention heads cannot share {kv_heads} key-value heads evenly (keys {}, {})",
                key("attention.head_count"),
                key("attention.head_count_kv")
            )));
        }
        let rope_columns = size(meta, &key("rope.dimension_count"))?.unwrap_or(head_dim);
        if head_dim == 0 || value_dim == 0 || rope_columns > head_dim || rope_columns % 2 != 0 {
            return Err(Error::invalid_file(format!(
                "heads of {head_dim} columns ({value_dim} for values) with {rope_columns} rotated ones make no sense; \
                 see the keys {} and {}",
                key("attention.key_length"),
                key("rope.dimension_count")
            )));
        }
        if meta.usize(&key("expert_count"))?.unwrap_or(0) > 0 {
            return Err(Error::unsupported(format!(
                "key {} asks for a mixture of experts, which this version does not implement",
                key("expert_count")
            )));
        }
        let norm_eps = meta
            .f32(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| missing(&key("attention.layer_norm_rms_epsilon")))?;
        let rope_base = meta.f32(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        for (name, value) in [("attention.layer_norm_rms_epsilon", norm_eps), ("rope.freq_base", rope_base)] {
            if !(value.is_finite() && value >= 0.0) || (name == "rope.freq_base" && value <= 1.0) {
                return Err(Error::invalid_file(format!("key {} has the impossible value {value}", key(name))));
            }
        }
        let vocab = gguf
            .tensor("token_embd.weight")
            .and_then(|t| t.dims().get(1).copied())
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n <= LARGEST)
            .ok_or_else(|| Error::invalid_file("tensor token_embd.weight is missing or is no matrix"))?;
        let rope_scaling = RopeScaling::from_metadata(meta, arch, context)?;
        Ok(Self {
            layers,
            embed,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            feed_forward,
            vocab,
            context,
            norm_eps,
            rope_columns,
            rope_base: f64::from(rope_base),
            rope_scaling,
            arch: arch.to_owned(),
        })
    }

    /// The rotary embedding that the metadata describe, with the factors of `rope_freqs.weight`
    /// where the file has them.
    pub(crate) fn rope(&self, style: RopeStyle, factors: Option<&[f32]>) -> Result<Rope> {
        Rope::new(style, self.rope_columns, self.rope_base, self.rope_scaling, factors)
    }

    /// `attention.scale` where the file has it, else `1 / sqrt(head_dim)`.
    pub(crate) fn attention_scale(&self, meta: &Metadata) -> Result<f32> {
        let scale = meta.f32(&format!("{}.attention.scale", self.arch))?.filter(|&s| s != 0.0 && s.is_finite());
        Ok(scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt()))
    }
}

fn missing(key: &str) -> Error {
    Error::invalid_file(format!("key {key} is missing"))
}

/// A size under `key`: at least 1 and at most [`LARGEST`].
fn size(meta: &Metadata, key: &str) -> Result<Option<usize>> {
    match meta.usize(key)? {
        None => Ok(None),
        Some(n) if (1..=LARGEST).contains(&n) => Ok(Some(n)),
        Some(n) => Err(Error::invalid_file(format!("key {key} is {n}, expected 1 to {LARGEST}"))),
    }
}

/// A size that the file may give for each layer; all layers must agree.
fn uniform(meta: &Metadata, key: &str) -> Result<Option<usize>> {
    if !matches!(meta.get(key), Some(crate::gguf::Value::Array(_))) {
        return size(meta, key);
    }
    let values = meta.ints(key)?.unwrap_or_default();
    let Some(&first) = values.first() else { return Err(Error::invalid_file(format!("key {key} is an empty array"))) };
    if let Some(other) = values.iter().find(|&&v| v != first) {
        return Err(Error::unsupported(format!(
            "key {key} differs between layers ({first} and {other}), which this version does not implement"
        )));
    }
    usize::try_from(first)
        .ok()
        .filter(|n| (1..=LARGEST).contains(n))
        .map(Some)
        .ok_or_else(|| Error::invalid_file(format!("key {key} is {first}, expected 1 to {LARGEST}")))
}
