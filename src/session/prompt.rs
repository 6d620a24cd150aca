//! [`Prompt`]: the tokens of a context.

use crate::chat::RenderedPrompt;
use crate::tokenizer::{TokenId, Tokenizer};
use crate::{Result, memory};

/// The tokens at the beginning of a session's context: a whole conversation, or plain text.
///
/// Made by [`Model::prompt`](crate::Model::prompt),
/// [`Model::chat_prompt`](crate::Model::chat_prompt), or from token ids. A clone copies the tokens;
/// like all clones, it ends the process when there is no memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompt {
    tokens: Vec<TokenId>,
}

impl Prompt {
    /// Exactly these tokens. A vector is taken over as it is. Other collections are copied, which
    /// ends the process when there is no memory.
    pub fn from_tokens(tokens: impl Into<Vec<TokenId>>) -> Self {
        Self { tokens: tokens.into() }
    }

    /// Tokenizes a rendered chat template. The template has usually written the token for the
    /// beginning of the text itself. If it has not and the file asks for one, it is added.
    pub(crate) fn from_rendered(tokenizer: &Tokenizer, rendered: &RenderedPrompt) -> Result<Self> {
        let parts = rendered.segments().iter().map(|segment| (segment.text.as_str(), segment.parse_special));
        let mut tokens = tokenizer.encode_parts(parts, false)?;
        if tokenizer.adds_bos()
            && let Some(bos) = tokenizer.bos()
            && tokens.first() != Some(&bos)
        {
            memory::reserve(&mut tokens, 1, "the tokens of a prompt")?;
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
