//! Random operations on sessions: feeding, editing the past, forking, forgetting, scoring, and generating alone or together.

mod common;
#[path = "common/operations.rs"]
mod operations;

use common::{Random, Tiny, VOCAB};
use operations::operate;
use wavelm::{Device, KvType, LoadOptions, Model};

fn random(model: &Model, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..60 {
        let bytes: Vec<u8> = (0..2 * (1 + random.below(24))).map(|_| random.bits() as u8).collect();
        operate(model, VOCAB as u32 - 2, &bytes);
    }
}

fn options() -> LoadOptions {
    Model::options().threads(2).device(Device::Cpu)
}

#[test]
fn whatever_was_done_a_session_is_as_a_fresh_one() {
    random(&Tiny::default().load(options()), 1);
    random(&Tiny { kv_heads: 1, head_dim: 24, ..Tiny::default() }.load(options().kv_type(KvType::F32)), 2);
    random(&Tiny { kv_heads: 4, ..Tiny::default() }.load(options().kv_type(KvType::Q8_0)), 3);
}

#[test]
fn also_where_attention_has_a_window() {
    let tiny = Tiny { arch: "gemma3", window: Some(50), layers: 6, ..Tiny::default() };
    random(&tiny.load(options()), 4);
}
