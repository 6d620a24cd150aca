//! Any bytes as operations on sessions of a tiny model with a sliding window: whatever was done, the logits of a session
//! are those of a fresh one with the same tokens, bit by bit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use wavelm::gguf::Gguf;
use wavelm::{Device, Model};

#[path = "../../tests/common/operations.rs"]
mod operations;

fuzz_target!(|bytes: &[u8]| {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let file = include_bytes!("../../tests/fixtures/tiny/gemma3-window.gguf");
        let gguf = Gguf::from_bytes(file.to_vec()).expect("a fixture");
        Model::options().device(Device::Cpu).threads(1).load_gguf(gguf).expect("a fixture")
    });
    operations::operate(model, model.vocab_len() as u32, &bytes[..bytes.len().min(64)]);
});
