//! Chat templates: from messages to a prompt.
//!
//! Chat models learn one format of conversations, and their files carry a template that writes it.
//! [`ChatTemplate::from_metadata`] reads it from there (or picks a [`Builtin`] one where it is
//! missing), and [`ChatTemplate::render`] writes the prompt. The template language is that of
//! Hugging Face: Jinja with Python's methods, `tojson`, `raise_exception`, `strftime_now`,
//! `{% break %}`, `{% continue %}` and `{% generation %}`.
//!
//! Templates come from untrusted files, and messages from untrusted people:
//!
//! - A prompt is a list of [`Segment`]s, and text of the conversation does not become a special
//!   token: a message with `<|im_end|>` gets these ten characters, not the end of the message. See
//!   [`RenderedPrompt`].
//! - A template cannot hang or recurse without end, and its time, memory and output are bounded.
//!
//! ```
//! use wavelm::chat::{ChatOptions, ChatTemplate, Message, SpecialTokens};
//!
//! let tokens = SpecialTokens::new().control(["<|im_start|>", "<|im_end|>"]);
//! let source = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}";
//! let template = ChatTemplate::parse(source, tokens)?;
//!
//! let prompt = template.render(&[Message::user("Hello!")], &ChatOptions::new())?;
//! assert_eq!(prompt.text(), "<|im_start|>user: Hello!<|im_end|>");
//! assert_eq!(prompt.segments().len(), 1);
//!
//! let prompt = template.render(&[Message::user("a<|im_end|>b")], &ChatOptions::new())?;
//! let segments: Vec<_> = prompt.segments().iter().map(|s| (s.text.as_str(), s.parse_special)).collect();
//! assert_eq!(segments, [("<|im_start|>", true), ("user: a<|im_end|>b", false), ("<|im_end|>", true)]);
//! # Ok::<(), wavelm::Error>(())
//! ```

mod builtin;
mod date;
mod jinja;
mod message;
mod options;
mod prompt;
mod special;

pub use builtin::Builtin;
pub use message::{Message, Role, ToolCall};
pub use options::ChatOptions;
pub use prompt::{RenderedPrompt, Segment};
/// A JSON value, for tools and variables of templates. Objects keep the order of their keys,
/// because templates print them in that order.
pub use serde_json::Value as Json;
pub use special::SpecialTokens;

use crate::gguf::Metadata;
use crate::{Result, memory};
use jinja::{By, Limits, Template, Variables};
use message::bytes_of;
use prompt::ControlTokens;
use std::sync::Arc;
use std::time::SystemTime;

/// A chat template, ready to render conversations. Cheap to clone; it can be used from many threads at once.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    main: Template,
    /// The template for conversations with tools, where the file has a separate one.
    tool_use: Option<Template>,
    source: String,
    builtin: Option<Builtin>,
    tokens: SpecialTokens,
    control: ControlTokens,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    ///
    /// [`Template`](crate::ErrorKind::Template) with the line where the template is broken.
    pub fn parse(source: &str, tokens: SpecialTokens) -> Result<Self> {
        Self::new(source, None, None, tokens)
    }

    /// One of the built-in templates.
    pub fn builtin(format: Builtin, tokens: SpecialTokens) -> Result<Self> {
        Self::new(format.source(), None, Some(format), tokens)
    }

    /// The file's template (`tokenizer.chat_template`, with `tokenizer.chat_template.tool_use` for
    /// conversations with tools). Where the file has none, the built-in one that fits the
    /// vocabulary: see [`builtin_format`](Self::builtin_format).
    ///
    /// # Errors
    ///
    /// [`Template`](crate::ErrorKind::Template) where the file's template is broken,
    /// [`InvalidFile`](crate::ErrorKind::InvalidFile) where a key of the tokenizer has the wrong type.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let tokens = SpecialTokens::from_metadata(metadata)?;
        let tool_use = source_of(metadata, "tokenizer.chat_template.tool_use")?;
        match source_of(metadata, "tokenizer.chat_template")? {
            Some(main) => Self::new(main, tool_use, None, tokens),
            None => Self::builtin(Builtin::for_vocabulary(metadata, &tokens)?, tokens),
        }
    }

    /// The file's template of this name (`tokenizer.chat_template.<name>`), if it has one.
    ///
    /// # Errors
    ///
    /// As [`from_metadata`](Self::from_metadata).
    pub fn named_from_metadata(metadata: &Metadata, name: &str) -> Result<Option<Self>> {
        let tokens = SpecialTokens::from_metadata(metadata)?;
        let source = source_of(metadata, &format!("tokenizer.chat_template.{name}"))?;
        source.map(|source| Self::parse(source, tokens)).transpose()
    }

    fn new(source: &str, tool_use: Option<&str>, builtin: Option<Builtin>, tokens: SpecialTokens) -> Result<Self> {
        memory::check_spare("a chat template")?;
        let main = Template::parse(source)?;
        let tool_use = tool_use.map(Template::parse).transpose()?;
        let control = ControlTokens::new(tokens.all());
        let source = memory::copied_text(source, "a chat template")?;
        Ok(Self { inner: Arc::new(Inner { main, tool_use, source, builtin, tokens, control }) })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// Which built-in format this is; `None` for a template of a file or of the caller.
    pub fn builtin_format(&self) -> Option<Builtin> {
        self.inner.builtin
    }

    /// Writes the prompt for a conversation.
    ///
    /// Many templates write the token that begins a text themselves. A tokenizer should add it only
    /// where the first segment does not start with it.
    ///
    /// # Errors
    ///
    /// [`Template`](crate::ErrorKind::Template) with the template's line and reason, where the template refuses the
    /// conversation (many do so for roles that do not alternate), is broken, or takes too many instructions.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<RenderedPrompt> {
        memory::check_spare("a prompt")?;
        let inner = &self.inner;
        let tool_bytes = options.tools.iter().map(bytes_of).sum::<usize>();
        let bytes = inner.source.len()
            + tool_bytes
            + options.variables.iter().map(|(_, value)| bytes_of(value)).sum::<usize>()
            + messages.iter().map(Message::bytes).sum::<usize>();
        let limits = Limits::new(messages.len(), bytes, tool_bytes);
        let template = inner.tool_use.as_ref().filter(|_| !options.tools.is_empty()).unwrap_or(&inner.main);
        let now = options.now.unwrap_or_else(SystemTime::now);
        let rendered = template.render(now, limits, |variables| self.fill(messages, options, variables))?;
        RenderedPrompt::new(&rendered, &inner.control)
    }

    /// Sets the variables that Hugging Face provides to templates.
    fn fill(&self, messages: &[Message], options: &ChatOptions, variables: &mut Variables<'_>) -> Result<()> {
        let tokens = &self.inner.tokens;
        let all = variables.list(messages.iter().map(|message| message.to_given(variables)))?;
        variables.set("messages", all);
        let tools = match &*options.tools {
            [] => variables.none(),
            tools => variables.list(tools.iter().map(|tool| variables.json(tool)))?,
        };
        variables.set("tools", tools);
        variables.set("documents", variables.none());
        variables.set("add_generation_prompt", variables.bool(options.add_generation_prompt));
        for (name, text) in [("bos", &tokens.bos), ("eos", &tokens.eos), ("unk", &tokens.unk), ("pad", &tokens.pad)] {
            // Templates may add these to strings, so an empty string is better than an undefined
            // value.
            let text = variables.text(text.as_deref().unwrap_or_default(), By::Template)?;
            variables.set(format!("{name}_token"), text);
        }
        for (name, value) in &options.variables {
            variables.set(name.clone(), variables.json(value)?);
        }
        Ok(())
    }
}

/// The template under `key`; an empty one counts as missing.
fn source_of<'m>(metadata: &'m Metadata, key: &str) -> Result<Option<&'m str>> {
    Ok(metadata.str(key)?.filter(|text| !text.trim().is_empty()))
}
