//! A whole file with some bytes changed, and a chat template in it: an error, or a model that answers a conversation.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavelm::gguf::{Gguf, GgufWriter, Value};
use wavelm::{Device, Message, Model, Sampler, SessionOptions};

const FILES: [&[u8]; 6] = [
    include_bytes!("../../tests/fixtures/tiny/llama-gqa-tied.gguf"),
    include_bytes!("../../tests/fixtures/tiny/llama-rope-freqs.gguf"),
    include_bytes!("../../tests/fixtures/tiny/qwen2.gguf"),
    include_bytes!("../../tests/fixtures/tiny/qwen3.gguf"),
    include_bytes!("../../tests/fixtures/tiny/gemma3-window.gguf"),
    include_bytes!("../../tests/fixtures/tiny/gemma3-linear-softcap.gguf"),
];

fuzz_target!(|input: (u8, Vec<(u16, u8)>, Option<&str>, &str)| {
    let (file, changes, template, message) = input;
    let mut bytes = FILES[usize::from(file) % FILES.len()].to_vec();
    // Headers are at the beginning; what lies behind 64 KB are weights alone.
    for (at, byte) in changes {
        if let Some(place) = bytes.get_mut(usize::from(at)) {
            *place = byte;
        }
    }
    let Ok(mut gguf) = Gguf::from_bytes(bytes) else { return };
    if let Some(template) = template {
        let entries = gguf.metadata().iter().filter(|(key, _)| key != "tokenizer.chat_template");
        let writer = entries.fold(GgufWriter::new(), |writer, (key, value)| writer.metadata(key, value.clone()));
        let writer = writer.metadata("tokenizer.chat_template", Value::String(template.into()));
        let writer = gguf.tensors().iter().fold(writer, |writer, tensor| {
            writer.tensor(tensor.name(), tensor.tensor_type(), tensor.dims(), gguf.data(tensor))
        });
        let Ok(with_template) = writer.to_bytes() else { return };
        gguf = Gguf::from_bytes(with_template).expect("what is written can be read");
    }
    let Ok(model) = Model::options().device(Device::Cpu).threads(1).load_gguf(gguf) else { return };
    let Ok(prompt) = model.chat_prompt(&[Message::user(message)]) else { return };
    let prompt = wavelm::Prompt::from_tokens(&prompt.tokens()[..prompt.len().min(70)]);
    let Ok(mut session) = model.session_with(SessionOptions::default().context(model.context_len().min(90))) else {
        return;
    };
    for sampler in [Sampler::greedy(), Sampler::default()] {
        let Ok(generation) = session.generate(&prompt, &sampler) else { continue };
        for piece in generation.max_tokens(3) {
            if piece.is_err() {
                break;
            }
        }
    }
});
