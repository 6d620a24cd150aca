//! A model's methods for sessions.

use super::{Prompt, Session, SessionOptions};
use crate::Result;
use crate::chat::{ChatOptions, Message};
use crate::model::Model;
use crate::tokenizer::EncodeOptions;

impl Model {
    /// A new session with the default [options](SessionOptions).
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn session(&self) -> Result<Session> {
        self.session_with(SessionOptions::default())
    }

    /// A new session.
    ///
    /// # Errors
    /// `InvalidInput` where an option is out of range; `OutOfMemory`.
    pub fn session_with(&self, options: SessionOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    /// The prompt that asks the model for a conversation's next message, written by the model's own
    /// chat template.
    ///
    /// Text of the messages never turns into special tokens, whatever it contains.
    ///
    /// # Errors
    /// `Template` where the template is broken or refuses the conversation.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Prompt> {
        self.chat_prompt_with(messages, &ChatOptions::default())
    }

    /// Like [`chat_prompt`](Self::chat_prompt), with options: tools, variables of the template, …
    ///
    /// # Errors
    /// As [`chat_prompt`](Self::chat_prompt).
    pub fn chat_prompt_with(&self, messages: &[Message], options: &ChatOptions) -> Result<Prompt> {
        let rendered = self.chat_template()?.render(messages, options)?;
        Prompt::from_rendered(self.tokenizer(), &rendered)
    }

    /// Tokenizes text as a prompt, with the special tokens at the start that the file asks for.
    /// Text that looks like a special token stays text.
    ///
    /// # Errors
    /// `InvalidInput` where the vocabulary cannot express the text.
    pub fn prompt(&self, text: &str) -> Result<Prompt> {
        let tokens = self.tokenizer().encode(text, EncodeOptions::default())?;
        Ok(Prompt::from_tokens(tokens))
    }
}
