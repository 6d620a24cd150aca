//! What a conversation is rendered with.

use super::Json;
use std::time::SystemTime;

/// What a conversation is rendered with, besides its messages.
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
    /// An answer of the assistant is to follow, without tools.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the prompt is to end where the assistant's answer begins (the default). Without it, the prompt is the
    /// conversation alone.
    pub fn add_generation_prompt(mut self, yes: bool) -> Self {
        self.add_generation_prompt = yes;
        self
    }

    /// Adds a tool that the model may call, as a rule a JSON schema of the form
    /// `{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}`.
    pub fn tool(mut self, tool: Json) -> Self {
        self.tools.push(tool);
        self
    }

    /// Sets a variable that the template knows, such as `enable_thinking`, `reasoning_effort` or `documents`. Its text
    /// counts as the conversation's: it never becomes a special token.
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<Json>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value));
        self
    }

    /// What time it is for templates that write the date; the system's clock by default. Dates are those of UTC: shift
    /// the time for another zone.
    pub fn now(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }
}
