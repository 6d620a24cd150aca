//! Messages of a conversation.

use super::Json;
use super::jinja::{By, Given, Variables};
use crate::Result;
use std::fmt;

/// Who wrote a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
    /// Another role, for templates that know it. Templates put the role next to special tokens, so
    /// do not take it from people: pick it from a list of your own.
    Other(String),
}

impl Role {
    /// The role's name in templates.
    pub fn as_str(&self) -> &str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Other(name) => name,
        }
    }
}

impl From<&str> for Role {
    fn from(name: &str) -> Self {
        match name {
            "system" => Self::System,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" => Self::Tool,
            other => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call of a tool by the model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ToolCall {
    /// The call's id, where the model or the program gives calls ids.
    pub id: Option<String>,
    /// The tool's name.
    pub name: String,
    /// The arguments, normally an object. A few templates want them as text instead, in a
    /// [`Json::String`].
    pub arguments: Json,
}

impl ToolCall {
    /// A call without an id.
    pub fn new(name: impl Into<String>, arguments: Json) -> Self {
        Self { id: None, name: name.into(), arguments }
    }

    /// The call as templates see it.
    fn to_given(&self, variables: &Variables<'_>) -> Result<Given> {
        let text = |text: &str| variables.text(text, By::Caller);
        let function =
            variables.dict([("name", text(&self.name)?), ("arguments", variables.json(&self.arguments)?)])?;
        let id = self.id.as_ref().map(|id| Ok(("id", text(id)?))).transpose()?;
        let kind = ("type", variables.text("function", By::Template)?);
        variables.dict(id.into_iter().chain([kind, ("function", function)]))
    }

    /// How many bytes of text the call has.
    fn bytes(&self) -> usize {
        self.id.as_ref().map_or(0, String::len) + self.name.len() + bytes_of(&self.arguments)
    }
}

/// How many bytes of text a JSON value has, including keys.
pub(super) fn bytes_of(json: &Json) -> usize {
    match json {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(|item| 8 + bytes_of(item)).sum(),
        Json::Object(entries) => entries.iter().map(|(key, value)| 8 + key.len() + bytes_of(value)).sum(),
        _ => 0,
    }
}

/// A message of a conversation.
///
/// ```
/// use wavelm::chat::Message;
///
/// let conversation = [Message::system("Answer in one word."), Message::user("The capital of Peru?")];
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// The text of the message.
    pub content: String,
    /// The name of the author or tool, for templates that know one.
    pub name: Option<String>,
    /// The calls that an assistant's message makes.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// The model's reasoning before an assistant's message (`reasoning_content` in templates).
    pub reasoning: Option<String>,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<Role>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            reasoning: None,
        }
    }

    /// Instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// The user's text.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// The model's answer.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// The result of a tool that the model called.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new(Role::Tool, content)
    }

    /// The same message with a call of a tool.
    pub fn with_tool_call(mut self, call: ToolCall) -> Self {
        self.tool_calls.push(call);
        self
    }

    /// The same message with the name of its author or tool.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The same message with the model's reasoning before it.
    pub fn with_reasoning(mut self, reasoning: impl Into<String>) -> Self {
        self.reasoning = Some(reasoning.into());
        self
    }

    /// The message as templates see it. All its text counts as the caller's, except for a role that
    /// is a plain word: the role becomes part of special tokens (`<|user|>`).
    pub(super) fn to_given(&self, variables: &Variables<'_>) -> Result<Given> {
        let role = self.role.as_str();
        let is_word = role.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        let role = variables.text(role, if is_word { By::Template } else { By::Caller })?;
        let mut entries = vec![("role", role), ("content", variables.text(&self.content, By::Caller)?)];
        let optional =
            [("name", &self.name), ("tool_call_id", &self.tool_call_id), ("reasoning_content", &self.reasoning)];
        for (key, text) in optional {
            if let Some(text) = text {
                entries.push((key, variables.text(text, By::Caller)?));
            }
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(|call| call.to_given(variables));
            entries.push(("tool_calls", variables.list(calls)?));
        }
        variables.dict(entries)
    }

    /// How many bytes of text the message has.
    pub(super) fn bytes(&self) -> usize {
        let optional = [&self.name, &self.tool_call_id, &self.reasoning].into_iter().flatten().map(String::len);
        let calls = self.tool_calls.iter().map(ToolCall::bytes);
        self.role.as_str().len() + self.content.len() + optional.chain(calls).sum::<usize>()
    }
}
