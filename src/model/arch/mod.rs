//! The model families: each file reads like the family's paper, top to bottom, and writes its [`Program`].

mod gemma3;
mod llama;
mod qwen2;
mod qwen3;

use super::config::Config;
use crate::gguf::{Gguf, show};
use crate::program::{Activation, AttentionInfo, Buf, Builder, KvShape, LayerState, Op, Program};
use crate::{Error, Result};

/// The architectures that [`program`] knows, as `general.architecture` names them.
pub(crate) const SUPPORTED: &[&str] = &["llama", "qwen2", "qwen3", "gemma3"];

/// The program of the model in `gguf`.
///
/// # Errors
/// `Unsupported` for an unknown architecture; `InvalidFile` where keys or tensors are missing or do not agree.
pub(crate) fn program(gguf: &Gguf, config: &Config) -> Result<Program> {
    match config.arch.as_str() {
        "llama" => llama::program(gguf, config),
        "qwen2" => qwen2::program(gguf, config),
        "qwen3" => qwen3::program(gguf, config),
        "gemma3" => gemma3::program(gguf, config),
        other => Err(unsupported(other)),
    }
}

/// The error for an architecture that is not in [`SUPPORTED`].
pub(crate) fn unsupported(arch: &str) -> Error {
    let arch = show(arch);
    Error::unsupported(format!(
        "architecture \"{arch}\" (key general.architecture) is not implemented; supported are {}",
        SUPPORTED.join(", ")
    ))
}

/// The buffers of a pre-norm transformer with a gated feed-forward network.
struct Buffers {
    /// The residual stream.
    x: Buf,
    /// Normed input of a block half.
    h: Buf,
    q: Buf,
    k: Buf,
    v: Buf,
    attn: Buf,
    gate: Buf,
    up: Buf,
    /// Output of a block half, before it is added to `x`.
    y: Buf,
}

impl Buffers {
    fn new(b: &mut Builder<'_>, c: &Config) -> Self {
        Self {
            x: b.buffer("x", c.embed),
            h: b.buffer("h", c.embed),
            q: b.buffer("q", c.heads * c.head_dim),
            k: b.buffer("k", c.kv_heads * c.head_dim),
            v: b.buffer("v", c.kv_heads * c.value_dim),
            attn: b.buffer("attn", c.heads * c.value_dim),
            gate: b.buffer("gate", c.feed_forward),
            up: b.buffer("up", c.feed_forward),
            y: b.buffer("y", c.embed),
        }
    }

    /// From here on, only the rows whose logits are wanted are computed. The last layer's attention
    /// output and residual stream continue as outputs, and everything after works on outputs.
    fn keep_outputs(&mut self, b: &mut Builder<'_>, c: &Config) {
        let attn = b.output_buffer("attn_out", c.heads * c.value_dim);
        let x = b.output_buffer("x_out", c.embed);
        b.op(Op::Rows { x: self.attn, out: attn });
        b.op(Op::Rows { x: self.x, out: x });
        *self = Self {
            x,
            attn,
            h: b.output_buffer("h_out", c.embed),
            gate: b.output_buffer("gate_out", c.feed_forward),
            up: b.output_buffer("up_out", c.feed_forward),
            y: b.output_buffer("y_out", c.embed),
            ..*self
        };
    }
}

/// The three projections of block `i`, with biases where the file has them.
fn queries_keys_values(b: &mut Builder<'_>, buf: &Buffers, i: usize) -> Result<()> {
    b.linear(buf.h, &format!("blk.{i}.attn_q"), buf.q)?;
    b.linear(buf.h, &format!("blk.{i}.attn_k"), buf.k)?;
    b.linear(buf.h, &format!("blk.{i}.attn_v"), buf.v)
}

/// The gated feed-forward network of block `i`, from `h` to `y`.
fn feed_forward(b: &mut Builder<'_>, buf: &Buffers, i: usize, act: Activation) -> Result<()> {
    b.linear(buf.h, &format!("blk.{i}.ffn_gate"), buf.gate)?;
    b.linear(buf.h, &format!("blk.{i}.ffn_up"), buf.up)?;
    b.op(Op::Glu { gate: buf.gate, up: buf.up, act });
    b.linear(buf.gate, &format!("blk.{i}.ffn_down"), buf.y)
}

/// Rotates queries and keys, stores keys and values in a new cache layer and attends over it.
fn attention(b: &mut Builder<'_>, c: &Config, buf: &Buffers, rope: usize, scale: f32, window: Option<usize>) {
    b.op(Op::Rope { x: buf.q, rope, head_dim: c.head_dim });
    b.op(Op::Rope { x: buf.k, rope, head_dim: c.head_dim });
    let shape = KvShape { kv_heads: c.kv_heads, head_dim: c.head_dim, value_dim: c.value_dim };
    let layer = b.state(LayerState::Paged { shape, window });
    b.op(Op::StoreKv { layer, k: buf.k, v: buf.v });
    let info = AttentionInfo {
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        value_dim: c.value_dim,
        scale,
        window,
        softcap: None,
    };
    b.op(Op::Attention { layer, q: buf.q, out: buf.attn, info });
}

/// The final norm and the output matrix. If the file has no output matrix, the embedding table
/// serves.
fn output(b: &mut Builder<'_>, c: &Config, buf: &Buffers, softcap: Option<f32>) -> Result<()> {
    let logits = b.output_buffer("logits", c.vocab);
    b.rms_norm(buf.x, "output_norm.weight", c.norm_eps, buf.h)?;
    let stem = if b.has("output.weight") { "output" } else { "token_embd" };
    b.linear(buf.h, stem, logits)?;
    if let Some(cap) = softcap {
        b.op(Op::Softcap { x: logits, cap });
    }
    b.op(Op::Logits { x: logits });
    Ok(())
}
