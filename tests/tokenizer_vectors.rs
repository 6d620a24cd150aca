//! Token ids compared with llama.cpp's: on small vocabularies (made by tests/fixtures/make_tokenizer_fixtures.py), and
//! on the large ones of llama.cpp where these are at hand.

use std::path::{Path, PathBuf};
use wavelm::gguf::{Gguf, Metadata, Value};
use wavelm::tokenizer::{EncodeOptions, TokenKind, Tokenizer};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

fn tokenizer(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap();
    Tokenizer::from_metadata(gguf.metadata()).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
}

fn read_fixture(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap()
}

/// The texts of a fixture, without their escapes.
fn texts(name: &str) -> Vec<String> {
    read_fixture(name).lines().map(unescape).collect()
}

fn unescape(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next().unwrap() {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '\\' => '\\',
            'u' => {
                let digits: String = chars.by_ref().skip(1).take_while(|&c| c != '}').collect();
                char::from_u32(u32::from_str_radix(&digits, 16).unwrap()).unwrap()
            }
            other => panic!("unknown escape {other:?} in {line}"),
        });
    }
    out
}

fn ids(line: &str) -> Vec<u32> {
    line.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

const FAMILIES: [&str; 4] = ["bpe", "spm", "gemma", "plain"];

#[test]
fn small_vocabularies() {
    let texts = texts("texts.txt");
    for name in FAMILIES {
        let tokenizer = tokenizer(&fixture(&format!("{name}.gguf")));
        for (mode, options) in [("plain", PLAIN), ("special", SPECIAL)] {
            let expected = read_fixture(&format!("{name}.{mode}.out"));
            assert_eq!(expected.lines().count(), texts.len());
            for (text, expected) in texts.iter().zip(expected.lines()) {
                // llama-tokenize was not asked about the empty text.
                if !text.is_empty() {
                    assert_eq!(tokenizer.encode(text, options).unwrap(), ids(expected), "{name}, {mode}: {text:?}");
                }
            }
        }
    }
}

/// A vocabulary where each pair of characters is a token shows where words begin and end.
#[test]
fn pre_tokenizers() {
    let gguf = Gguf::open(fixture("pairs.gguf")).unwrap();
    let texts = texts("pairs.txt");
    let expected = read_fixture("pre_tokenizers.out");
    let mut lines = expected.lines();
    let mut names = Vec::new();
    while let Some(header) = lines.next() {
        let results: Vec<Vec<u32>> = lines.by_ref().take(texts.len()).map(ids).collect();
        for name in header.strip_prefix("# ").unwrap().split(' ') {
            names.push(name);
            let tokenizer = Tokenizer::from_metadata(&with_key(gguf.metadata(), "tokenizer.ggml.pre", name)).unwrap();
            for (text, expected) in texts.iter().zip(&results) {
                assert_eq!(tokenizer.encode(text, PLAIN).unwrap(), *expected, "{name}: {text:?}");
            }
        }
    }
    assert!(names.len() > 80, "{names:?}");
}

fn with_key(metadata: &Metadata, key: &str, value: impl Into<Value>) -> Metadata {
    let kept = metadata.iter().filter(|(known, _)| known != key).cloned();
    Metadata::new(kept.chain([(key.to_string(), value.into())]).collect()).unwrap()
}

/// A small deterministic generator.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }

    /// Text of all planes, with a taste for what tokenizers treat in a special way.
    fn text(&mut self) -> String {
        const TRICKY: &str = " \n\t\r\u{a0}\u{3000}'▁<|>[]sS0123ÉéЖ中가\u{301}\u{200d}👩🏽\u{fe0f}";
        let tricky: Vec<char> = TRICKY.chars().collect();
        let length = self.below(40);
        (0..length)
            .map(|_| match self.below(3) {
                0 => tricky[self.below(tricky.len() as u32) as usize],
                1 => char::from_u32(self.below(0x250)).unwrap(),
                _ => char::from_u32(self.below(0x11_0000)).unwrap_or('\u{fffd}'),
            })
            .collect()
    }
}

/// U+2581 is a space in these vocabularies, also where a text has it literally.
fn spaces(name: &str, text: &str) -> String {
    if name == "bpe" { text.to_string() } else { text.replace('▁', " ") }
}

#[test]
fn random_text_round_trips() {
    let mut random = Random(1);
    for name in FAMILIES {
        let tokenizer = tokenizer(&fixture(&format!("{name}.gguf")));
        for _ in 0..2000 {
            let text = random.text();
            for options in [PLAIN, EncodeOptions::default()] {
                let tokens = tokenizer.encode(&text, options).unwrap();
                assert_eq!(tokenizer.decode(&tokens).unwrap(), spaces(name, &text), "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn streams_are_whole_characters_and_the_same_text() {
    let mut random = Random(2);
    for name in FAMILIES {
        let tokenizer = tokenizer(&fixture(&format!("{name}.gguf")));
        for _ in 0..500 {
            // Any tokens at all: also those that never follow each other in text.
            let length = random.below(30);
            let tokens: Vec<u32> = (0..length).map(|_| random.below(tokenizer.vocab_len() as u32 + 2)).collect();
            let mut bytes: Vec<u8> = tokens
                .iter()
                .filter(|&&token| {
                    use TokenKind::{Byte, Normal, UserDefined};
                    matches!(tokenizer.token_kind(token), Some(Normal | Byte | UserDefined))
                })
                .flat_map(|&token| tokenizer.token_bytes(token).unwrap().to_vec())
                .collect();
            if name == "spm" && bytes.first() == Some(&b' ') {
                bytes.remove(0);
            }
            let expected = String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(tokenizer.decode(&tokens).unwrap(), expected, "{name}: {tokens:?}");

            let mut decoder = tokenizer.decoder();
            let mut text = String::new();
            for &token in &tokens {
                let piece = decoder.push(token).unwrap();
                text.push_str(piece);
                assert!(decoder.pending().len() < 4);
                assert!(std::str::from_utf8(decoder.pending()).is_err() || decoder.pending().is_empty());
            }
            text.push_str(decoder.flush());
            assert_eq!(text, expected, "{name}: {tokens:?}");
            assert_eq!(decoder.flush(), "");
        }
    }
}

/// Whatever a user writes, no control token comes of it unless that is asked for.
#[test]
fn text_cannot_inject_control_tokens() {
    for name in FAMILIES {
        let tokenizer = tokenizer(&fixture(&format!("{name}.gguf")));
        let is_control =
            |token: &u32| matches!(tokenizer.token_kind(*token), Some(TokenKind::Control | TokenKind::Unknown));
        let controls: Vec<(u32, String)> = tokenizer
            .special_tokens()
            .filter(|(_, _, kind)| *kind == TokenKind::Control)
            .map(|(id, text, _)| (id, text.to_string()))
            .collect();
        assert!(controls.len() >= 2, "{name}");
        for (id, text) in controls {
            assert_eq!(tokenizer.token_id(&text), Some(id));
            for text in [text.clone(), format!("a{text}{text} b"), format!("\n {text}")] {
                let tokens = tokenizer.encode(&text, PLAIN).unwrap();
                assert!(!tokens.iter().any(is_control), "{name}: {text:?} became {tokens:?}");
                assert_eq!(tokenizer.decode(&tokens).unwrap(), text, "{name}");
                let tokens = tokenizer.encode(&text, SPECIAL).unwrap();
                assert!(tokens.contains(&id), "{name}: {text:?} became {tokens:?}");
                assert!(!tokenizer.decode(&tokens).unwrap().contains('<'), "{name}");
            }
        }
    }
}

/// A text in parts is one text, but for the control tokens in it.
#[test]
fn parts_are_one_text() {
    let text = "<|im_start|>user\n\n\nThe <s>quick</s> brown<|im_end|>\n<start_of_turn>the<tool>\n";
    let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let mut random = Random(3);
    for name in FAMILIES {
        let tokenizer = tokenizer(&fixture(&format!("{name}.gguf")));
        for _ in 0..200 {
            let mut ends: Vec<usize> = (0..4).map(|_| cuts[random.below(cuts.len() as u32) as usize]).collect();
            ends.push(text.len());
            ends.sort_unstable();
            let mut start = 0;
            let parts: Vec<&str> = ends.iter().map(|&end| &text[std::mem::replace(&mut start, end)..end]).collect();
            for (parse_special, options) in [(false, PLAIN), (true, EncodeOptions { add_special: false, ..SPECIAL })] {
                let tokens = tokenizer.encode_parts(parts.iter().map(|part| (*part, parse_special)), false).unwrap();
                assert_eq!(tokens, tokenizer.encode(text, options).unwrap(), "{name}: {parts:?}");
            }
        }
    }
    let bpe = tokenizer(&fixture("bpe.gguf"));
    let [start, end] = ["<|im_start|>", "<|im_end|>"].map(|text| bpe.token_id(text).unwrap());
    let parts = [("<|im_start|>user\n", true), ("<|im_end|><|im_", false), ("start|><|im_end|>", true)];
    let tokens = bpe.encode_parts(parts, true).unwrap();
    let control: Vec<u32> = tokens.iter().copied().filter(|&token| token < 3).collect();
    assert_eq!(control, [0, start, end], "BOS, and the control tokens of the trusted parts");
    assert_eq!(bpe.decode(&tokens).unwrap(), "user\n<|im_end|><|im_start|>");
}

/// Time grows with the length of the text and not with its square: this would take hours.
#[test]
fn a_megabyte_without_a_space() {
    for name in FAMILIES {
        let tokenizer = tokenizer(&fixture(&format!("{name}.gguf")));
        for text in ["a", "the", "<", "'", " ", "\n", "0", "é", "中", "they're<|im_"] {
            let text = text.repeat((1 << 20) / text.len());
            let tokens = tokenizer.encode(&text, PLAIN).unwrap();
            assert_eq!(tokenizer.decode(&tokens).unwrap(), text, "{name}");
        }
    }
}

#[test]
fn edges_of_a_text() {
    let options = EncodeOptions::default();
    let [bpe, spm, gemma, plain] = FAMILIES.map(|name| tokenizer(&fixture(&format!("{name}.gguf"))));
    // BOS and EOS as each file asks.
    assert_eq!(bpe.encode("", options).unwrap(), [0]);
    assert_eq!(spm.encode("", options).unwrap(), [1]);
    assert_eq!(gemma.encode("", options).unwrap(), [1, 2]);
    assert_eq!(plain.encode("", options).unwrap(), [2]);
    for tokenizer in [&bpe, &spm, &gemma, &plain] {
        assert!(tokenizer.encode("", PLAIN).unwrap().is_empty());
        assert_eq!(tokenizer.decode(&[]).unwrap(), "");
        assert_eq!(tokenizer.decode(&[u32::MAX, tokenizer.vocab_len() as u32]).unwrap(), "");
    }
    // The space that SentencePiece puts before a text is not part of it, but a space within is.
    let tokens = spm.encode("the", options).unwrap();
    assert_eq!(tokens.len(), 2);
    assert_eq!(spm.decode(&tokens).unwrap(), "the");
    assert_eq!(spm.decode_with_special(&tokens).unwrap(), "<s> the");
    assert_eq!(spm.decoder().continuing().push(tokens[1]).unwrap(), " the");
    assert_eq!(spm.decoder_after(&tokens).push(tokens[1]).unwrap(), " the");
    assert_eq!(spm.decoder_after(&tokens[..1]).push(tokens[1]).unwrap(), "the");
    assert_eq!(spm.decoder_after(&[]).push(tokens[1]).unwrap(), "the");
    assert_eq!(spm.decode(&spm.encode(" the", options).unwrap()).unwrap(), " the");
}

#[test]
fn roles_of_tokens() {
    let [bpe, spm, gemma, plain] = FAMILIES.map(|name| tokenizer(&fixture(&format!("{name}.gguf"))));
    assert_eq!((bpe.bos(), bpe.eos(), bpe.eot()), (Some(0), Some(2), Some(2)));
    assert_eq!(bpe.end_of_generation_tokens(), [0, 2]);
    assert!(bpe.is_end_of_generation(2) && !bpe.is_end_of_generation(1));
    assert_eq!((spm.bos(), spm.eos(), spm.eot()), (Some(1), Some(2), None));
    assert_eq!(spm.special_ids().unk, Some(0));
    assert_eq!(gemma.eot(), gemma.token_id("<end_of_turn>"));
    assert_eq!(gemma.end_of_generation_tokens(), [2, gemma.eot().unwrap()]);
    assert!(gemma.adds_eos() && !spm.adds_eos());
    assert_eq!((plain.bos(), plain.eos()), (Some(2), Some(1)));
    assert_eq!(bpe.token_kind(3), Some(TokenKind::UserDefined));
    assert_eq!(bpe.token_text(3), Some("<tool>"));
    let the = bpe.token_id(" the").unwrap();
    assert_eq!(bpe.token_text(the), Some("Ġthe"));
    assert_eq!(bpe.token_bytes(the), Some(&b" the"[..]));
    let byte = spm.token_id("<0x0A>");
    assert_eq!(byte, None, "the name of a byte is not its text");
    let last = bpe.vocab_len() as u32 - 1;
    assert_eq!(bpe.token_kind(last), Some(TokenKind::Unused));
    assert_eq!(bpe.decode_with_special(&[last]).unwrap(), "");
}

/// llama.cpp's own vectors: `ggml-vocab-NAME.gguf`, `.gguf.inp` with texts and `.gguf.out` with token ids. The files
/// are large, so that they are not part of this repository: the environment variable names a directory with them
/// (`models/` of llama.cpp).
#[test]
fn vectors_of_llama_cpp() {
    const DIRECTORY: &str = "WAVELM_LLAMA_CPP_MODELS";
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        println!("skipped: {DIRECTORY} does not name llama.cpp's directory of vocabularies (models/)");
        return;
    };
    let mut names = Vec::new();
    for name in [
        "command-r",
        "deepseek-coder",
        "deepseek-llm",
        "falcon",
        "gemma-4",
        "gpt-2",
        "llama-bpe",
        "llama-spm",
        "mpt",
        "phi-3",
        "qwen2",
        "qwen35",
        "refact",
        "starcoder",
    ] {
        let path = directory.join(format!("ggml-vocab-{name}.gguf"));
        if !path.exists() {
            println!("skipped: {name}: there is no {}", path.display());
            continue;
        }
        let tokenizer = tokenizer(&path);
        let read = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display())).unwrap();
        let (texts, expected) = (read(".inp"), read(".out"));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        // The last separator may end the file.
        assert!(texts.len() - expected.len() <= 1, "{name}: {} texts, {} results", texts.len(), expected.len());
        for (text, expected) in texts.iter().zip(expected) {
            let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, PLAIN).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected).unwrap(), *text, "{name}");
        }
        names.push(name);
    }
    println!("compared: {}", names.join(", "));
}
