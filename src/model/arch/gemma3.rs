//! Gemma 3 (Gemma Team 2025): norms before and after each half of a block, normed query and key
//! heads, GeGLU and scaled embeddings. Five layers with a sliding window (and a rotary base of
//! their own) alternate with one layer that sees everything.

use super::{Buffers, attention, feed_forward, output, queries_keys_values};
use crate::gguf::{Gguf, Value};
use crate::model::config::Config;
use crate::program::{Activation, Builder, Op, Program};
use crate::program::{Rope, RopeScaling, RopeStyle};
use crate::{Error, Result, memory};

pub(super) fn program(gguf: &Gguf, c: &Config) -> Result<Program> {
    let meta = gguf.metadata();
    let mut b = Builder::new(gguf, &c.arch);
    let mut buf = Buffers::new(&mut b, c);
    // Only the 27B model scales by the width that its heads would have in a square projection.
    let scale_dim = if c.layers == 62 { c.embed / c.heads } else { c.head_dim };
    let scale = 1.0 / (scale_dim as f32).sqrt();
    let softcap = meta.f32("gemma3.final_logit_softcapping")?.filter(|&cap| cap > 0.0 && cap.is_finite());
    let window = meta.usize("gemma3.attention.sliding_window")?.filter(|&w| w > 0);
    let sliding = sliding_layers(gguf, c, window)?;
    let local_base = meta.f32("gemma3.rope.freq_base_swa")?.unwrap_or(10_000.0);
    if !(local_base.is_finite() && local_base > 1.0) {
        return Err(Error::invalid_file(format!(
            "key gemma3.rope.freq_base_swa has the impossible value {local_base}"
        )));
    }
    let global = b.rope(c.rope(RopeStyle::Neox, None)?);
    let local = Rope::new(RopeStyle::Neox, c.rope_columns, f64::from(local_base), RopeScaling::None, None)?;
    let local = b.rope(local);

    let table = b.matrix("token_embd.weight", c.embed, c.vocab)?;
    b.op(Op::Embed { table, out: buf.x });
    b.op(Op::Scale { x: buf.x, by: (c.embed as f32).sqrt() });
    for i in 0..c.layers {
        let t = |name: &str| format!("blk.{i}.{name}");
        let slides = sliding.get(i).copied().unwrap_or(false);
        let (rope, window) = if slides { (local, window) } else { (global, None) };

        b.rms_norm(buf.x, &t("attn_norm.weight"), c.norm_eps, buf.h)?;
        queries_keys_values(&mut b, &buf, i)?;
        b.head_norm(buf.q, &t("attn_q_norm.weight"), c.head_dim, c.norm_eps)?;
        b.head_norm(buf.k, &t("attn_k_norm.weight"), c.head_dim, c.norm_eps)?;
        attention(&mut b, c, &buf, rope, scale, window);
        if i + 1 == c.layers {
            buf.keep_outputs(&mut b, c);
        }
        b.linear(buf.attn, &t("attn_output"), buf.y)?;
        b.rms_norm(buf.y, &t("post_attention_norm.weight"), c.norm_eps, buf.y)?;
        b.op(Op::Add { x: buf.x, y: buf.y });

        b.rms_norm(buf.x, &t("ffn_norm.weight"), c.norm_eps, buf.h)?;
        feed_forward(&mut b, &buf, i, Activation::Gelu)?;
        b.rms_norm(buf.y, &t("post_ffw_norm.weight"), c.norm_eps, buf.y)?;
        b.op(Op::Add { x: buf.x, y: buf.y });
    }
    output(&mut b, c, &buf, softcap)?;
    b.build(c.vocab)
}

/// Which layers have the sliding window: all but every sixth, unless the file gives its own period
/// or list.
fn sliding_layers(gguf: &Gguf, c: &Config, window: Option<usize>) -> Result<Vec<bool>> {
    const WHAT: &str = "the list of sliding layers";
    const KEY: &str = "gemma3.attention.sliding_window_pattern";
    if window.is_none() {
        return memory::filled(c.layers, false, WHAT);
    }
    let list: Option<Vec<bool>> = match gguf.metadata().get(KEY) {
        Some(Value::Array(crate::gguf::Array::Bool(list))) => Some(memory::copied(list, WHAT)?),
        Some(Value::Array(_)) => {
            let list = gguf.metadata().ints(KEY)?.unwrap_or_default();
            Some(memory::collected(list.into_iter().map(|v| v != 0), WHAT)?)
        }
        _ => None,
    };
    if let Some(list) = list {
        if list.len() < c.layers {
            return Err(Error::invalid_file(format!("key {KEY} has {} elements for {} layers", list.len(), c.layers)));
        }
        return Ok(list);
    }
    let period = gguf.metadata().usize(KEY)?.unwrap_or(6);
    memory::collected((0..c.layers).map(|i| period > 0 && i % period < period - 1), WHAT)
}
