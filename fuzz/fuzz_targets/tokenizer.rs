//! Any text through each tokenizer family: what was encoded decodes to the text, in one go and piece by piece, and text
//! from users never becomes a control token. Any metadata as a vocabulary: an error, or a tokenizer that does not panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use wavelm::gguf::{Gguf, Metadata};
use wavelm::tokenizer::{EncodeOptions, TokenKind, Tokenizer};

/// Small vocabularies of each family, and their metadata.
fn vocabularies() -> &'static [(Tokenizer, Metadata)] {
    static VOCABULARIES: OnceLock<Vec<(Tokenizer, Metadata)>> = OnceLock::new();
    VOCABULARIES.get_or_init(|| {
        let files: [&[u8]; 4] = [
            include_bytes!("../../tests/fixtures/tokenizer/bpe.gguf"),
            include_bytes!("../../tests/fixtures/tokenizer/spm.gguf"),
            include_bytes!("../../tests/fixtures/tokenizer/gemma.gguf"),
            include_bytes!("../../tests/fixtures/tokenizer/plain.gguf"),
        ];
        let load = |file: &[u8]| {
            let gguf = Gguf::from_bytes(file.to_vec()).expect("a fixture");
            (Tokenizer::from_metadata(gguf.metadata()).expect("a fixture"), gguf.metadata().clone())
        };
        files.into_iter().map(load).collect()
    })
}

fn use_tokenizer(tokenizer: &Tokenizer, text: &str, sane: bool) {
    for (add_special, parse_special) in [(false, false), (true, false), (true, true)] {
        let Ok(tokens) = tokenizer.encode(text, EncodeOptions { add_special, parse_special }) else { continue };
        let plain = !add_special && !parse_special;
        if plain {
            for &token in &tokens {
                assert_ne!(tokenizer.token_kind(token), Some(TokenKind::Control), "{text:?} became a control token");
            }
        }
        let whole = tokenizer.decode(&tokens).unwrap();
        let mut decoder = tokenizer.decoder();
        let mut pieces = String::new();
        for &token in &tokens {
            pieces.push_str(decoder.push(token).unwrap());
        }
        pieces.push_str(decoder.flush());
        assert_eq!(pieces, whole);
        // SentencePiece writes spaces as U+2581, so that the two cannot be told apart, and puts one after the tokens that
        // are found as they stand.
        let spaced = text.contains('\u{2581}') || tokenizer.special_tokens().any(|(_, token, _)| text.contains(token));
        if plain && sane && !spaced {
            assert_eq!(whole, text);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let all = vocabularies();
    let (tokenizer, metadata) = &all[usize::from(choice) % all.len()];
    if choice < 128 {
        use_tokenizer(tokenizer, &String::from_utf8_lossy(rest), true);
        // Any ids decode to something.
        let ids: Vec<u32> = rest.chunks(2).map(|c| c.iter().fold(0, |id, &b| id << 8 | u32::from(b))).collect();
        let _ = (tokenizer.decode(&ids), tokenizer.decode_with_special(&ids));
        return;
    }
    // The metadata of a vocabulary, damaged: values replaced by those of other keys, cut short or dropped.
    let mut entries: Vec<_> = metadata.iter().cloned().collect();
    let (damage, text) = rest.split_at(rest.len().min(8));
    for pair in damage.chunks_exact(2) {
        let (from, to) = (usize::from(pair[0]) % entries.len(), usize::from(pair[1]) % entries.len());
        if pair[0] & 128 == 0 {
            entries[to].1 = entries[from].1.clone();
        } else if entries.len() > 1 {
            entries.swap_remove(to);
        }
    }
    if let Ok(metadata) = Metadata::new(entries)
        && let Ok(tokenizer) = Tokenizer::from_metadata(&metadata)
    {
        use_tokenizer(&tokenizer, &String::from_utf8_lossy(text), false);
    }
});
