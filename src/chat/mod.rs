//! Chat templates (first version; the full one replaces it).

use crate::gguf::Metadata;
use crate::{Error, ErrorKind, Result};

/// A message.
#[derive(Debug, Clone)]
pub struct Message {
    role: String,
    content: String,
}

impl Message {
    /// From the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }
    /// Instructions.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".into(), content: content.into() }
    }
    /// From the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }
}

/// Options.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {}

/// A part of a prompt.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether control tokens are meant.
    pub parse_special: bool,
}

/// A prompt.
#[derive(Debug, Clone)]
pub struct RenderedPrompt {
    segments: Vec<Segment>,
}

impl RenderedPrompt {
    /// In order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// A template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Of a file.
    ///
    /// # Errors
    /// A key of the wrong type.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let source =
            metadata.str("tokenizer.chat_template")?.unwrap_or("{% for m in messages %}{{ m.content }}{% endfor %}");
        Ok(Self { source: source.to_owned() })
    }

    /// Renders.
    ///
    /// # Errors
    /// A broken template.
    pub fn render(&self, messages: &[Message], _options: &ChatOptions) -> Result<RenderedPrompt> {
        let messages: Vec<_> =
            messages.iter().map(|m| minijinja::context! { role => m.role, content => m.content }).collect();
        let text = minijinja::Environment::new()
            .render_str(&self.source, minijinja::context! { messages, add_generation_prompt => true })
            .map_err(|e| Error::new(ErrorKind::Template, e.to_string()))?;
        Ok(RenderedPrompt { segments: vec![Segment { text, parse_special: true }] })
    }
}
