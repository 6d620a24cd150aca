//! What files say about their vocabularies: roles of tokens, and errors that name the key.

use wavelm::ErrorKind;
use wavelm::gguf::{Array, Metadata, Value};
use wavelm::tokenizer::{EncodeOptions, TokenKind, Tokenizer};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

/// Metadata of a vocabulary, to be changed by tests.
#[derive(Clone)]
struct File(Vec<(String, Value)>);

impl File {
    fn new(model: &str, tokens: &[(&str, i32)]) -> Self {
        let (texts, types): (Vec<&str>, Vec<i32>) = tokens.iter().copied().unzip();
        Self(Vec::new())
            .with("tokenizer.ggml.model", model)
            .with("tokenizer.ggml.tokens", strings(&texts))
            .with("tokenizer.ggml.token_type", types)
    }

    fn without(mut self, key: &str) -> Self {
        self.0.retain(|(known, _)| known != key);
        self
    }

    fn with(self, key: &str, value: impl Into<Value>) -> Self {
        let mut file = self.without(key);
        file.0.push((key.to_string(), value.into()));
        file
    }

    fn load(&self) -> wavelm::Result<Tokenizer> {
        Tokenizer::from_metadata(&Metadata::new(self.0.clone()).unwrap())
    }

    #[track_caller]
    fn fails(&self, kind: ErrorKind, words: &[&str]) {
        let error = self.load().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{error} lacks {word}");
        }
    }
}

fn strings(texts: &[&str]) -> Array {
    Array::String(texts.iter().copied().collect())
}

/// "abc" in byte-pair encoding, with an end.
fn bpe() -> File {
    let tokens = [("a", 1), ("b", 1), ("c", 1), ("ab", 1), ("abc", 1), ("Ġ", 1), ("<|im_end|>", 3)];
    File::new("gpt2", &tokens)
        .with("tokenizer.ggml.pre", "gpt-2")
        .with("tokenizer.ggml.merges", strings(&["a b", "ab c"]))
        .with("tokenizer.ggml.eos_token_id", 6u32)
}

/// "▁abc" in SentencePiece.
fn spm() -> File {
    let tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("a", 1), ("b", 1), ("c", 1), ("bc", 1), ("ab", 1), ("▁", 1)];
    File::new("llama", &tokens).with("tokenizer.ggml.scores", vec![0f32, 0., 0., -9., -9., -9., -1., -2., -9.])
}

#[test]
fn the_samples_are_sound() {
    assert_eq!(bpe().load().unwrap().encode("abc cab", PLAIN).unwrap(), [4, 5, 2, 3]);
    // "bc" has the better score; a character without a token, and without tokens for its bytes, is unknown.
    assert_eq!(spm().load().unwrap().encode("abcx中", PLAIN).unwrap(), [8, 3, 6, 0, 0]);
}

#[test]
fn missing_keys() {
    for key in ["model", "tokens", "merges"] {
        let key = format!("tokenizer.ggml.{key}");
        bpe().without(&key).fails(ErrorKind::InvalidFile, &[&key, "missing"]);
    }
    bpe()
        .with("tokenizer.ggml.tokens", strings(&[]))
        .fails(ErrorKind::InvalidFile, &["tokenizer.ggml.tokens", "empty"]);
    // These need not be there.
    for key in ["tokenizer.ggml.token_type", "tokenizer.ggml.pre", "tokenizer.ggml.eos_token_id"] {
        bpe().without(key).load().unwrap();
    }
    // Without scores all pairs are equal, and the leftmost is next.
    let tokenizer = spm().without("tokenizer.ggml.scores").load().unwrap();
    assert_eq!(tokenizer.encode("abc", PLAIN).unwrap(), [8, 7, 5]);
}

#[test]
fn keys_of_another_type() {
    for key in ["model", "tokens", "token_type", "merges", "pre", "eos_token_id", "add_bos_token"] {
        let key = format!("tokenizer.ggml.{key}");
        bpe().with(&key, 1.5f32).fails(ErrorKind::InvalidFile, &[&key]);
    }
    spm().with("tokenizer.ggml.scores", "high").fails(ErrorKind::InvalidFile, &["tokenizer.ggml.scores"]);
}

#[test]
fn arrays_of_another_length() {
    for length in [0, 6, 8] {
        let file = bpe().with("tokenizer.ggml.token_type", vec![1i32; length]);
        file.fails(ErrorKind::InvalidFile, &["tokenizer.ggml.token_type", &length.to_string(), "7"]);
    }
    for length in [0, 8, 10] {
        let file = spm().with("tokenizer.ggml.scores", vec![0f32; length]);
        file.fails(ErrorKind::InvalidFile, &["tokenizer.ggml.scores", &length.to_string(), "9"]);
    }
}

#[test]
fn ids_out_of_range() {
    for key in ["bos", "eos", "eot", "eom", "unknown"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        for id in [7u32, 1 << 31] {
            bpe().with(&key, id).fails(ErrorKind::InvalidFile, &[&key, &id.to_string(), "7"]);
        }
        bpe().with(&key, -2i32).fails(ErrorKind::InvalidFile, &[&key, "-2"]);
        // What some files write for "none".
        bpe().with(&key, u32::MAX).load().unwrap();
    }
    // Nothing depends on these.
    let tokenizer = bpe().with("tokenizer.ggml.padding_token_id", 7u32).load().unwrap();
    assert_eq!(tokenizer.special_ids().pad, None);
    // The ids that SentencePiece's files leave out may be out of range too.
    let tokenizer = File::new("llama", &[("a", 1)]).with("tokenizer.ggml.add_space_prefix", false).load().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, None));
    assert_eq!(tokenizer.encode("a", EncodeOptions::default()).unwrap(), [0]);
}

#[test]
fn other_tokenizers_are_unsupported() {
    for model in ["bert", "t5", "rwkv", "no_vocab", ""] {
        bpe().with("tokenizer.ggml.model", model).fails(ErrorKind::Unsupported, &["tokenizer.ggml.model", model]);
    }
}

#[test]
fn unknown_pre_tokenizers_are_the_default_one() {
    let texts = ["abc cab", "a.b..c", "  ab  c"];
    let tokenizers =
        ["default", "from-the-future", ""].map(|pre| bpe().with("tokenizer.ggml.pre", pre).load().unwrap());
    for text in texts {
        let [expected, ids @ ..] = tokenizers.each_ref().map(|tokenizer| tokenizer.encode(text, PLAIN).unwrap());
        assert!(ids.iter().all(|ids| *ids == expected));
    }
}

#[test]
fn merges_of_unknown_tokens_are_ignored() {
    let merges = ["a c", "x a", "a", "", " ", "  ", "a  b", "a b", "b c x", "a b", "ab c", "Ā €"];
    let tokenizer = bpe().with("tokenizer.ggml.merges", strings(&merges)).load().unwrap();
    assert_eq!(tokenizer.encode("abc ac", PLAIN).unwrap(), [4, 5, 0, 2]);
}

/// A merge that would make a control token from text is none.
#[test]
fn merges_to_control_tokens_are_ignored() {
    let tokens = [("<", 1), ("s", 1), (">", 1), ("<s", 1), ("<s>", 3)];
    let merges = strings(&["< s", "<s >"]);
    for pre in ["gpt-2", "llama-bpe", "superbpe"] {
        let file =
            File::new("gpt2", &tokens).with("tokenizer.ggml.pre", pre).with("tokenizer.ggml.merges", merges.clone());
        let tokenizer = file.load().unwrap();
        let ids = tokenizer.encode("<s>", PLAIN).unwrap();
        assert!(!ids.contains(&4), "{pre}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "<s>");
        assert_eq!(tokenizer.encode("<s>", EncodeOptions { parse_special: true, ..PLAIN }).unwrap(), [4]);
    }
    // Nor by their scores, as bytes, or as the unknown token.
    let tokens = [("<s>", 3), ("<s", 1), ("<", 1), ("s", 1), (">", 1), ("<0x61>", 3)];
    for add_space_prefix in [true, false] {
        let file = File::new("llama", &tokens)
            .with("tokenizer.ggml.unknown_token_id", 0u32)
            .with("tokenizer.ggml.add_space_prefix", add_space_prefix);
        assert_eq!(file.load().unwrap().encode("<s>a", PLAIN).unwrap(), [1, 4]);
    }
}

#[test]
fn ends_of_an_answer() {
    // The file names only EOS; the others are known by their text, and become control tokens.
    let tokens = [("a", 1), ("</s>", 3), ("<|eot_id|>", 1), ("<|eom_id|>", 4), ("<|endoftext|>", 3), ("<|other|>", 3)];
    let file = File::new("gpt2", &tokens)
        .with("tokenizer.ggml.merges", strings(&[]))
        .with("tokenizer.ggml.eos_token_id", 0u32);
    let tokenizer = file.load().unwrap();
    assert_eq!(tokenizer.end_of_generation_tokens(), [0, 1, 2, 3, 4]);
    assert_eq!((tokenizer.eos(), tokenizer.eot(), tokenizer.special_ids().eom), (Some(0), Some(2), Some(3)));
    assert_eq!(tokenizer.token_kind(2), Some(TokenKind::Control));
    assert_eq!(tokenizer.token_kind(3), Some(TokenKind::Control));
    // What the file says wins.
    let tokenizer = file.with("tokenizer.ggml.eot_token_id", 5u32).load().unwrap();
    assert_eq!(tokenizer.eot(), Some(5));
    assert_eq!(tokenizer.end_of_generation_tokens(), [0, 1, 2, 3, 4, 5]);
}

/// In OpenAI's harmony format <|end|> ends a message, and the structure of an answer is shown.
#[test]
fn harmony() {
    let tokens = [
        ("a", 1),
        ("<|return|>", 3),
        ("<|call|>", 3),
        ("<|end|>", 3),
        ("<|channel|>", 3),
        ("<|message|>", 3),
        ("<|start|>", 3),
    ];
    let tokenizer = File::new("gpt2", &tokens).with("tokenizer.ggml.merges", strings(&[])).load().unwrap();
    assert_eq!(tokenizer.end_of_generation_tokens(), [1, 2]);
    assert_eq!(tokenizer.decode(&[6, 0, 4, 0, 5, 0, 3, 1]).unwrap(), "<|start|>a<|channel|>a<|message|>a<|end|>");
    assert!(!tokenizer.encode("<|start|>", PLAIN).unwrap().contains(&6));
}

/// Phi-3's files do not say that special tokens take the white space after them.
#[test]
fn phi3_strips_white_space_after_special_tokens() {
    let tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 4), ("<|user|>", 3), ("<|endoftext|>", 3), ("a", 1), ("▁", 1)];
    let special = EncodeOptions { add_special: false, parse_special: true };
    let file = File::new("llama", &tokens).with("tokenizer.ggml.scores", vec![0f32; 7]);
    let phi3 = file.clone().with("general.name", "Phi-3 mini").load().unwrap();
    assert_eq!(phi3.encode("<|user|> \ta<s> a</s>  ", special).unwrap(), [3, 6, 5, 1, 6, 6, 5, 2]);
    assert_eq!(phi3.encode("<|endoftext|> a", special).unwrap(), [4, 6, 6, 5]);
    assert_eq!(file.load().unwrap().encode("<|user|> a", special).unwrap(), [3, 6, 6, 5]);
}

#[test]
fn tokenizers_are_shared_between_threads() {
    fn is_shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    let tokenizer = bpe().load().unwrap();
    is_shared(&tokenizer);
    is_shared(&tokenizer.decoder());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(tokenizer.clone().encode("abc", PLAIN).unwrap(), [4]));
        }
    });
}
