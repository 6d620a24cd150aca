//! Llama (Touvron et al. 2023) and models of the same shape: Llama 2 and 3, Mistral, Yi, SmolLM and
//! others whose files say `llama`. Pre-norm, rotary embeddings on neighbouring columns, grouped
//! queries, SwiGLU; optional biases and frequency factors.

use super::{Buffers, attention, feed_forward, output, queries_keys_values};
use crate::Result;
use crate::gguf::Gguf;
use crate::model::config::Config;
use crate::program::RopeStyle;
use crate::program::{Activation, Builder, Op, Program};

pub(super) fn program(gguf: &Gguf, c: &Config) -> Result<Program> {
    let mut b = Builder::new(gguf, &c.arch);
    let mut buf = Buffers::new(&mut b, c);
    let scale = c.attention_scale(gguf.metadata())?;
    let factors = b.values("rope_freqs.weight", c.rope_columns / 2)?;
    let rope = b.rope(c.rope(RopeStyle::Norm, factors.as_deref())?);

    let table = b.matrix("token_embd.weight", c.embed, c.vocab)?;
    b.op(Op::Embed { table, out: buf.x });
    for i in 0..c.layers {
        let t = |name: &str| format!("blk.{i}.{name}");

        b.rms_norm(buf.x, &t("attn_norm.weight"), c.norm_eps, buf.h)?;
        queries_keys_values(&mut b, &buf, i)?;
        attention(&mut b, c, &buf, rope, scale, None);
        if i + 1 == c.layers {
            buf.keep_outputs(&mut b, c);
        }
        b.linear(buf.attn, &t("attn_output"), buf.y)?;
        b.op(Op::Add { x: buf.x, y: buf.y });

        b.rms_norm(buf.x, &t("ffn_norm.weight"), c.norm_eps, buf.h)?;
        feed_forward(&mut b, &buf, i, Activation::Silu)?;
        b.op(Op::Add { x: buf.x, y: buf.y });
    }
    output(&mut b, c, &buf, None)?;
    b.build(c.vocab)
}
