//! The special tokens of a vocabulary, as far as chat templates need them.

use crate::Result;
use crate::gguf::{Metadata, StringArray};
use crate::tokenizer::may_be_control;

/// Values of `tokenizer.ggml.token_type`: for text, and for tokens that a tokenizer must not find
/// in plain text.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;

/// The texts of a vocabulary's special tokens: those with names in templates, and all those that
/// text of the conversation must not become.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    pub(super) unk: Option<String>,
    pub(super) pad: Option<String>,
    pub(super) control: Vec<String>,
}

impl SpecialTokens {
    /// No special tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that begins a text (`bos_token` in templates).
    pub fn bos(mut self, text: impl Into<String>) -> Self {
        self.bos = Some(text.into());
        self
    }

    /// The token that ends a text (`eos_token` in templates).
    pub fn eos(mut self, text: impl Into<String>) -> Self {
        self.eos = Some(text.into());
        self
    }

    /// All control tokens: a tokenizer finds them in a text only when told to parse special tokens.
    /// The tokens that are set by role count as control tokens too.
    pub fn control<S: Into<String>>(mut self, texts: impl IntoIterator<Item = S>) -> Self {
        self.control.extend(texts.into_iter().map(Into::into));
        self
    }

    /// The special tokens of a file's vocabulary: those that the file calls control tokens, and
    /// those that a tokenizer recognizes by their texts, such as `<|im_end|>`, whatever the file
    /// calls them.
    ///
    /// # Errors
    ///
    /// [`InvalidFile`](crate::ErrorKind::InvalidFile) where a key of the tokenizer has the wrong type.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")? else { return Ok(Self::default()) };
        let named = |key: &str| -> Result<Option<String>> {
            let id = metadata.u32(&format!("tokenizer.ggml.{key}_token_id"))?;
            Ok(id.and_then(|id| tokens.get(id as usize)).map(str::to_string))
        };
        let types = metadata.ints("tokenizer.ggml.token_type")?.unwrap_or_default();
        Ok(Self {
            bos: named("bos")?,
            eos: named("eos")?,
            unk: named("unknown")?,
            pad: named("padding")?,
            control: control_texts(tokens, &types),
        })
    }

    /// The texts of all tokens here.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> + Clone {
        let named = [&self.bos, &self.eos, &self.unk, &self.pad].into_iter().flatten();
        self.control.iter().chain(named).map(String::as_str)
    }

    pub(super) fn contains(&self, text: &str) -> bool {
        self.all().any(|other| other == text)
    }
}

fn control_texts(tokens: &StringArray, types: &[i64]) -> Vec<String> {
    let types = types.iter().copied().chain(std::iter::repeat(NORMAL));
    let is_control = |(text, ty): &(&str, i64)| matches!(*ty, UNKNOWN | CONTROL) || may_be_control(text);
    tokens.iter().zip(types).filter(is_control).map(|(text, _)| text.to_string()).collect()
}
