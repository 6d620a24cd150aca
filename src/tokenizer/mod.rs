//! Tokenizers: text to token ids and back, from the metadata of a GGUF file alone.
//!
//! Two families are implemented, which cover nearly all language models: byte-pair encoding on
//! bytes (GPT-2, Llama 3, Qwen, …; `tokenizer.ggml.model` = `gpt2`), with the pre-tokenizers of
//! llama.cpp, and SentencePiece's with scores (Llama 2, Gemma, …; `llama`). Token ids agree with
//! llama.cpp's, with one intended difference: plain text never becomes a control token unless the
//! caller asks for special tokens, whatever the text says and whatever the vocabulary holds.
//!
//! Time and memory grow linearly with the text (with a logarithmic factor inside of a word), even
//! for text without any space.

mod bpe;
mod decoder;
mod index;
mod pretokenizer;
mod scan;
mod special;
mod spm;
mod unicode;
mod unicode_tables;
mod vocab;

pub use decoder::Decoder;
pub use vocab::SpecialIds;
pub(crate) use vocab::may_be_control;

use crate::gguf::{Metadata, show};
use crate::{Error, Result, memory};
use index::NONE;
use pretokenizer::PreTokenizer;
use special::Fragment;
use std::ops::Range;
use std::sync::Arc;
use vocab::{Spelling, Vocab};

/// A token's number in the vocabulary.
pub type TokenId = u32;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for anything that the vocabulary cannot spell.
    Unknown,
    /// Structure, such as the end of a turn. Plain text never becomes such a token, and it is not
    /// shown.
    Control,
    /// A piece of text that is kept whole wherever it occurs.
    UserDefined,
    /// A place in the vocabulary without a meaning.
    Unused,
    /// A single byte, for text that no other token spells.
    Byte,
}

impl TokenKind {
    /// The kind for a number of GGUF.
    fn from_number(number: i64) -> Self {
        match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }

    /// Whether the encoder looks for tokens of this kind before it does anything else.
    fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown | Self::UserDefined)
    }
}

/// How to encode a text. The default is for plain text at the start of a context: it adds BOS and
/// EOS as the file asks, and takes nothing in the text for a control token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Adds BOS at the start and EOS at the end, each if the file asks for it.
    pub add_special: bool,
    /// Turns the texts of control tokens, such as `<|im_start|>`, into these tokens. Leave it off
    /// for text from users. User-defined tokens are always found.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { add_special: true, parse_special: false }
    }
}

/// A tokenizer. Clones share one vocabulary.
///
/// ```no_run
/// # fn main() -> wavelm::Result<()> {
/// use wavelm::tokenizer::{EncodeOptions, Tokenizer};
///
/// let gguf = wavelm::gguf::Gguf::open("model.gguf")?;
/// let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
/// let tokens = tokenizer.encode("Hello, world", EncodeOptions::default())?;
/// assert_eq!(tokenizer.decode(&tokens)?, "Hello, world");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    vocab: Vocab,
    model: Model,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
}

enum Model {
    Bpe { bpe: bpe::Bpe, plain_text: bool },
    Spm(spm::Spm),
}

impl Tokenizer {
    /// Builds the tokenizer that a file describes.
    ///
    /// # Errors
    /// `InvalidFile`, naming the key, if something is missing or inconsistent. `Unsupported` for a
    /// kind of tokenizer that this version does not have. An unknown pre-tokenizer is no error: the
    /// default one takes its place, with a warning in the log. `OutOfMemory` where there is not
    /// enough for the vocabulary and its indexes.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        const MODEL: &str = "tokenizer.ggml.model";
        let flag =
            |key: &str, default| Ok::<_, Error>(metadata.bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default));
        let name = metadata.str(MODEL)?.ok_or_else(|| vocab::missing(MODEL, "tokenizer"))?;
        let inner = match name {
            "llama" => {
                let defaults = SpecialIds { bos: Some(1), eos: Some(2), unk: Some(0), ..SpecialIds::default() };
                let vocab = Vocab::new(metadata, Spelling::LowerBlock, defaults)?;
                let model = Model::Spm(spm::Spm::new(metadata, &vocab)?);
                let (add_bos, add_space_prefix) = (flag("add_bos_token", true)?, flag("add_space_prefix", true)?);
                Inner { vocab, model, add_bos, add_eos: flag("add_eos_token", false)?, add_space_prefix }
            }
            "gpt2" | "gemma4" => {
                let pre_name = match name {
                    "gemma4" => Some("gemma4"),
                    _ => metadata.str("tokenizer.ggml.pre")?,
                };
                let pre = pre_tokenizer(pre_name.unwrap_or_default())?;
                let spelling = if pre.plain_text { Spelling::LowerBlock } else { Spelling::ByteLetters };
                let vocab = Vocab::new(metadata, spelling, SpecialIds::default())?;
                let add_bos = flag("add_bos_token", pre.add_bos)? || (pre.add_bos && pre.whole_newlines);
                let plain_text = pre.plain_text;
                let bpe = bpe::Bpe::new(metadata, &vocab, pre, pre_name != Some("kimi-k2"))?;
                Inner {
                    vocab,
                    model: Model::Bpe { bpe, plain_text },
                    add_bos,
                    add_eos: flag("add_eos_token", false)?,
                    add_space_prefix: flag("add_space_prefix", false)?,
                }
            }
            _ => {
                return Err(Error::unsupported(format!(
                    "{MODEL} is \"{}\": this version has tokenizers for \"gpt2\", \"gemma4\" and \"llama\" only",
                    show(name)
                )));
            }
        };
        for (wanted, id, role) in
            [(inner.add_bos, inner.vocab.ids.bos, "BOS"), (inner.add_eos, inner.vocab.ids.eos, "EOS")]
        {
            if wanted && id.is_none() {
                log::warn!("the file asks for a {role} token, but names none");
            }
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The tokens of `text`.
    ///
    /// A byte-level vocabulary leaves out bytes for which it has no token. Other vocabularies use
    /// the unknown token for text that they cannot spell.
    ///
    /// # Errors
    /// `InvalidInput` for a text of 4 GiB or more; `OutOfMemory`.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>> {
        let everything = 0..text.len();
        let trusted = if options.parse_special { std::slice::from_ref(&everything) } else { &[] };
        self.encode_trusting(text, trusted, options.add_special)
    }

    /// The tokens of a text in parts. Each part says whether to look for control tokens in it
    /// ([`parse_special`](EncodeOptions::parse_special)). For everything else the parts are one
    /// text: words and tokens may reach from one into the next.
    ///
    /// # Errors
    /// `InvalidInput` for a text of 4 GiB or more; `OutOfMemory`.
    pub fn encode_parts<'a>(
        &self,
        parts: impl IntoIterator<Item = (&'a str, bool)>,
        add_special: bool,
    ) -> Result<Vec<TokenId>> {
        let mut text = String::new();
        let mut trusted: Vec<Range<usize>> = Vec::new();
        for (part, parse_special) in parts {
            let start = text.len();
            memory::push_text(&mut text, part, PARTS)?;
            match trusted.last_mut() {
                _ if !parse_special || part.is_empty() => {}
                Some(last) if last.end == start => last.end = text.len(),
                _ => memory::push(&mut trusted, start..text.len(), PARTS)?,
            }
        }
        self.encode_trusting(&text, &trusted, add_special)
    }

    /// Encodes a text, and looks for control tokens in the ranges `trusted` only.
    fn encode_trusting(&self, text: &str, trusted: &[Range<usize>], add_special: bool) -> Result<Vec<TokenId>> {
        let Inner { vocab, model, .. } = &*self.inner;
        // Leaves room for a space before the text.
        if text.len() >= u32::MAX as usize {
            return Err(Error::invalid_input(format!("a text of {} bytes is too long to encode", text.len())));
        }
        memory::check_spare(TOKENS)?;
        // English has about four bytes per token.
        let mut out = memory::with_room(text.len() / 4 + 2, TOKENS)?;
        if add_special && self.inner.add_bos {
            out.extend(vocab.ids.bos);
        }
        let before_text = out.len();
        let fragments = vocab.specials().split(text, trusted)?;
        match model {
            Model::Bpe { bpe, plain_text } => {
                let mut scratch = bpe::Scratch::default();
                for fragment in fragments {
                    match fragment {
                        Fragment::Token(token) => memory::push(&mut out, token, TOKENS)?,
                        Fragment::Text(range) => {
                            let part = text.get(range).unwrap_or_default();
                            if *plain_text && part.contains(SPACE) {
                                let mut spaced = String::new();
                                push_with_spaces(part, &mut spaced)?;
                                bpe.encode(vocab, spaced.as_bytes(), &mut scratch, &mut out)?;
                            } else {
                                bpe.encode(vocab, part.as_bytes(), &mut scratch, &mut out)?;
                            }
                        }
                    }
                }
            }
            Model::Spm(spm) => {
                let mut scratch = spm::Scratch::default();
                let mut buffer = String::new();
                let mut at_start = true;
                for fragment in fragments {
                    at_start = match fragment {
                        Fragment::Token(token) => {
                            memory::push(&mut out, token, TOKENS)?;
                            true
                        }
                        Fragment::Text(range) => {
                            buffer.clear();
                            if at_start && self.inner.add_space_prefix {
                                buffer.push(' ');
                            }
                            push_with_spaces(text.get(range).unwrap_or_default(), &mut buffer)?;
                            spm.encode(vocab, &buffer, &mut scratch, &mut out)?;
                            false
                        }
                    };
                }
            }
        }
        if before_text == 1 && out.get(1).is_some_and(|&first| vocab.ids.bos == Some(first)) {
            log::warn!("the text begins with the BOS token, which the file has added once more");
        }
        if add_special && self.inner.add_eos {
            memory::reserve(&mut out, 1, TOKENS)?;
            out.extend(vocab.ids.eos);
        }
        Ok(out)
    }

    /// The text of tokens, without control tokens and without the space that [`encode`](Self::encode) puts at the
    /// start for some vocabularies. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn decode(&self, tokens: &[TokenId]) -> Result<String> {
        decode_all(self.decoder(), tokens)
    }

    /// The text of tokens, control tokens included.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn decode_with_special(&self, tokens: &[TokenId]) -> Result<String> {
        decode_all(self.decoder().special(true), tokens)
    }

    /// A decoder for a stream of tokens.
    pub fn decoder(&self) -> Decoder {
        Decoder::new(self.clone())
    }

    /// A decoder for tokens that follow `context`. It keeps a leading space where the tokens
    /// continue a text. It removes one where a text begins: after a control token, or without any
    /// context.
    pub fn decoder_after(&self, context: &[TokenId]) -> Decoder {
        match context.last() {
            Some(&last) if self.token_kind(last) != Some(TokenKind::Control) => self.decoder().continuing(),
            _ => self.decoder(),
        }
    }

    /// How many tokens there are.
    pub fn vocab_len(&self) -> usize {
        self.inner.vocab.len()
    }

    /// The text of a token as the file spells it: a space may be `Ġ` or `▁`, for example.
    pub fn token_text(&self, token: TokenId) -> Option<&str> {
        self.inner.vocab.text(token)
    }

    /// The bytes of a token, whatever its kind: a control token's bytes are its name. Not always
    /// UTF-8.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.inner.vocab.piece(token)
    }

    /// What a token is for.
    pub fn token_kind(&self, token: TokenId) -> Option<TokenKind> {
        self.inner.vocab.kind(token)
    }

    /// The token with exactly this text: a special token's name (`<|im_end|>`), or a piece of plain text (` the`).
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        let vocab = &self.inner.vocab;
        let plain = || Some(vocab.find(text.as_bytes())).filter(|&token| token != NONE);
        vocab.specials().get(text.as_bytes()).or_else(plain)
    }

    /// The ids of tokens with a role.
    pub fn special_ids(&self) -> &SpecialIds {
        &self.inner.vocab.ids
    }

    /// The token at the beginning of a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.inner.vocab.ids.bos
    }

    /// The token at the end of a text.
    pub fn eos(&self) -> Option<TokenId> {
        self.inner.vocab.ids.eos
    }

    /// The token at the end of a turn in a chat.
    pub fn eot(&self) -> Option<TokenId> {
        self.inner.vocab.ids.eot
    }

    /// Whether the file asks for BOS before a text.
    pub fn adds_bos(&self) -> bool {
        self.inner.add_bos && self.inner.vocab.ids.bos.is_some()
    }

    /// Whether the file asks for EOS after a text.
    pub fn adds_eos(&self) -> bool {
        self.inner.add_eos && self.inner.vocab.ids.eos.is_some()
    }

    /// Whether a token ends an answer: EOS, the end of a turn or of a message, and others
    /// recognized by their text.
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        self.inner.vocab.is_end_of_generation(token)
    }

    /// All tokens that [end an answer](Self::is_end_of_generation), in ascending order.
    pub fn end_of_generation_tokens(&self) -> &[TokenId] {
        self.inner.vocab.end_of_generation()
    }

    /// All special tokens (control, unknown, user-defined) with their texts, in ascending order.
    pub fn special_tokens(&self) -> impl Iterator<Item = (TokenId, &str, TokenKind)> + '_ {
        let vocab = &self.inner.vocab;
        vocab.special_list().iter().filter_map(|&id| Some((id, vocab.text(id)?, vocab.kind(id)?)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_len", &self.vocab_len()).finish_non_exhaustive()
    }
}

/// What the memory is for, in texts of errors.
const TEXT: &str = "the text of tokens";
const PARTS: &str = "a text in parts";
const TOKENS: &str = "the tokens of a text";

/// U+2581, SentencePiece's space.
const SPACE: &str = "\u{2581}";

fn pre_tokenizer(name: &str) -> Result<PreTokenizer> {
    let default =
        || PreTokenizer::by_name("default").ok_or_else(|| Error::unsupported("there is no default pre-tokenizer"));
    match PreTokenizer::by_name(name) {
        Some(pre) => Ok(pre),
        None if name.is_empty() => {
            log::warn!(
                "the file names no pre-tokenizer (tokenizer.ggml.pre); the default one may split text otherwise"
            );
            default()
        }
        None => {
            let name = show(name);
            log::warn!("the pre-tokenizer \"{name}\" is unknown; the default one may split text otherwise");
            default()
        }
    }
}

fn decode_all(mut decoder: Decoder, tokens: &[TokenId]) -> Result<String> {
    let mut text = String::new();
    for &token in tokens {
        memory::push_text(&mut text, decoder.push(token)?, TEXT)?;
    }
    memory::push_text(&mut text, decoder.flush(), TEXT)?;
    Ok(text)
}

/// Appends `text` with spaces in place of [`SPACE`].
fn push_with_spaces(text: &str, out: &mut String) -> Result<()> {
    // A space has fewer bytes than [`SPACE`].
    memory::reserve_text(out, text.len(), TEXT)?;
    for (i, part) in text.split(SPACE).enumerate() {
        if i > 0 {
            out.push(' ');
        }
        out.push_str(part);
    }
    Ok(())
}

/// The tokens `<0x00>` to `<0xFF>`, or those of single ASCII characters; [`NONE`] where there is none.
fn byte_ids(vocab: &Vocab) -> [u32; 256] {
    let mut ids = std::array::from_fn(|byte| if byte < 0x80 { vocab.find(&[byte as u8]) } else { NONE });
    for id in 0..vocab.len() as u32 {
        if let Some(byte) = vocab.text(id).and_then(vocab::byte_of)
            && vocab.kind(id) != Some(TokenKind::Control)
        {
            ids[usize::from(byte)] = id;
        }
    }
    ids
}

/// Converts GPT-2's letters back to bytes and appends them; `false` if `text` has any other
/// character.
///
/// Bytes that are printable characters of Latin-1 stand for themselves; the others are U+0100 and
/// on, in order.
fn bytes_of_letters(text: &str, out: &mut Vec<u8>) -> bool {
    for c in text.chars() {
        let byte = match c as u32 {
            code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
            code @ 0x100..=0x120 => code - 0x100,
            code @ 0x121..=0x142 => code - 0x121 + 0x7F,
            0x143 => 0xAD,
            _ => return false,
        };
        out.push(byte as u8);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_for_all_bytes() {
        let mut others = 0x100..;
        for byte in 0..=255u8 {
            let shown = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if shown { u32::from(byte) } else { others.next().unwrap() };
            let mut out = Vec::new();
            assert!(bytes_of_letters(&char::from_u32(code).unwrap().to_string(), &mut out));
            assert_eq!(out, [byte]);
        }
        assert!(!bytes_of_letters("a b", &mut Vec::new()));
        assert!(!bytes_of_letters("\u{144}", &mut Vec::new()));
        assert!(!bytes_of_letters("\u{AD}", &mut Vec::new()));
    }
}
