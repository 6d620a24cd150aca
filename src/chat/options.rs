//! Options for rendering a conversation.

use super::Json;
use std::time::SystemTime;

/// Options for rendering a conversation, besides its messages.
///
/// ```
/// use wavelm::chat::{ChatOptions, Json};
///
/// let weather: Json = r#"{"type": "function", "function": {"name": "weather", "description": "The weather"}}"#.parse()?;
/// let options = ChatOptions::new().tool(weather).variable("enable_thinking", false);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ChatOptions {
    pub(super) add_generation_prompt: bool,
    pub(super) tools: Vec<Json>,
    pub(super) variables: Vec<(String, Json)>,
    pub(super) now: Option<SystemTime>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: Vec::new(), variables: Vec::new(), now: None }
    }
}

impl ChatOptions {
    /// Options for a prompt that ends where the assistant's answer begins, without tools.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the prompt ends where the assistant's answer begins (the default). Otherwise the
    /// prompt is the conversation alone.
    pub fn add_generation_prompt(mut self, yes: bool) -> Self {
        self.add_generation_prompt = yes;
        self
    }

    /// Adds a tool that the model may call, normally a JSON schema of the form `{"type":
    /// "function", "function": {"name": …, "description": …, "parameters": {…}}}`.
    pub fn tool(mut self, tool: Json) -> Self {
        self.tools.push(tool);
        self
    }

    /// Sets a variable for the template, such as `enable_thinking`, `reasoning_effort` or
    /// `documents`. Its text counts as the conversation's: it never becomes a special token.
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<Json>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value));
        self
    }

    /// The time for templates that write the date; by default the system's clock. Dates are in UTC:
    /// shift the time for another zone.
    pub fn now(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }
}
