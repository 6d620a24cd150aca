//! The effect of a bug in a forward pass on a session.

use super::*;
use crate::session::{Prompt, Session};
use crate::simd::Isa;
use crate::{ErrorKind, Precision};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/llama-gqa-tied.gguf");

/// The model, and the same model with a pass that panics unless it has exactly one token.
fn sound_and_broken(threads: usize) -> Option<(Model, Model)> {
    if !Path::new(FILE).exists() {
        println!("skipped: {FILE} is not there");
        return None;
    }
    let load = || Model::options().device(Device::Cpu).threads(threads).load(FILE).unwrap();
    let (sound, broken) = (load(), load());
    let Inner { gguf, config, program, tokenizer, template, report, context, kv_type, .. } =
        Arc::into_inner(broken.0).unwrap();
    let isa = Isa::best();
    let options = cpu::CpuOptions { threads: Some(threads), pool: None, kv_type, precision: Precision::Fast, isa };
    let file = Arc::new(Gguf::open(FILE).unwrap());
    let mut backend = cpu::CpuBackend::new(file, Arc::clone(&program), options).unwrap();
    backend.break_passes_of_many();
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let rescue = None;
    let inner = Inner { gguf, config, program, tokenizer, template, backend, report, rescue, context, kv_type };
    Some((sound, Model(Arc::new(inner))))
}

#[test]
fn a_step_that_panics_is_an_error_and_the_session_goes_on() {
    for threads in [1, 2, 4] {
        let Some((sound, broken)) = sound_and_broken(threads) else { return };
        let (mut expected, mut session) = (sound.session().unwrap(), broken.session().unwrap());
        let mut all = Vec::new();
        let last = |session: &mut Session, token: u32| {
            let mut row = Vec::new();
            let keep = |_: usize, logits: &[f32]| {
                row.extend_from_slice(logits);
                Ok(())
            };
            session.logits(&[token], keep).unwrap();
            row
        };
        for token in [3, 5, 7, 11, 13] {
            for _ in 0..3 {
                let error = session.feed(&Prompt::from_tokens([&all[..], &[1, 2, 3, 4, 5, 6]].concat())).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Device);
                assert!(error.to_string().contains("panicked"), "{error}");
                assert_eq!(session.tokens(), all);
            }
            all.push(token);
            assert_eq!(last(&mut session, token), last(&mut expected, token));
        }
    }
}
