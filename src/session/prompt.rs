//! [`Prompt`]: the tokens of a context.

use crate::Result;
use crate::chat::RenderedPrompt;
use crate::tokenizer::{TokenId, Tokenizer};

/// The tokens that a session's context begins with: a whole conversation, or plain text.
///
/// Made by [`Model::prompt`](crate::Model::prompt), [`Model::chat_prompt`](crate::Model::chat_prompt), or from token
/// ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompt {
    tokens: Vec<TokenId>,
}

impl Prompt {
    /// Exactly these tokens.
    pub fn from_tokens(tokens: impl Into<Vec<TokenId>>) -> Self {
        Self { tokens: tokens.into() }
    }

    /// Tokenizes a rendered chat template. The template has most often written the token for the beginning of the text
    /// itself; where it has not and the file asks for one, it is added.
    pub(crate) fn from_rendered(tokenizer: &Tokenizer, rendered: &RenderedPrompt) -> Result<Self> {
        let parts = rendered.segments().iter().map(|segment| (segment.text.as_str(), segment.parse_special));
        let mut tokens = tokenizer.encode_parts(parts, false)?;
        if tokenizer.adds_bos()
            && let Some(bos) = tokenizer.bos()
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(Self { tokens })
    }

    /// The token ids.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

impl From<Vec<TokenId>> for Prompt {
    fn from(tokens: Vec<TokenId>) -> Self {
        Self { tokens }
    }
}
