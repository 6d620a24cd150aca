//! Messages of a conversation.

use super::Json;
use super::tojson::{texts, to_value};
use minijinja::Value;
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
    /// Another role, for templates that know it. Templates put it next to special tokens, so do not take it from
    /// people: pick from a list of your own.
    Other(String),
}

impl Role {
    /// The name that templates know the role by.
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
    /// Which call it is, where the model or the program gives calls names.
    pub id: Option<String>,
    /// The tool's name.
    pub name: String,
    /// The arguments, as a rule an object. A few templates want the text of it instead, as a [`Json::String`].
    pub arguments: Json,
}

impl ToolCall {
    /// A call without an id.
    pub fn new(name: impl Into<String>, arguments: Json) -> Self {
        Self { id: None, name: name.into(), arguments }
    }

    fn to_value(&self, map: &mut dyn FnMut(&str) -> String) -> Value {
        let function: Value = [("name", Value::from(map(&self.name))), ("arguments", to_value(&self.arguments, map))]
            .into_iter()
            .collect();
        let id = self.id.as_ref().map(|id| ("id", Value::from(map(id))));
        id.into_iter().chain([("type", Value::from("function")), ("function", function)]).collect()
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
    /// What it says.
    pub content: String,
    /// The name of the author or tool, for templates that know one.
    pub name: Option<String>,
    /// The calls that an assistant's message makes.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// What the model thought before an assistant's message (`reasoning_content` in templates).
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

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// What the model said.
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

    /// The same message with what the model thought before it.
    pub fn with_reasoning(mut self, reasoning: impl Into<String>) -> Self {
        self.reasoning = Some(reasoning.into());
        self
    }

    /// The message as templates see it. All its text goes through `map`, but for the role, which becomes part of special
    /// tokens (`<|user|>`), if it is a plain word.
    pub(super) fn to_value(&self, map: &mut dyn FnMut(&str) -> String) -> Value {
        let role = self.role.as_str();
        let is_word = role.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        let role = if is_word { role.to_string() } else { map(role) };
        let mut entries = vec![("role", Value::from(role)), ("content", Value::from(map(&self.content)))];
        let optional =
            [("name", &self.name), ("tool_call_id", &self.tool_call_id), ("reasoning_content", &self.reasoning)];
        for (key, text) in optional {
            entries.extend(text.as_ref().map(|text| (key, Value::from(map(text)))));
        }
        if !self.tool_calls.is_empty() {
            let calls: Vec<Value> = self.tool_calls.iter().map(|call| call.to_value(map)).collect();
            entries.push(("tool_calls", Value::from(calls)));
        }
        entries.into_iter().collect()
    }

    /// All text of the message.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let optional = [&self.name, &self.tool_call_id, &self.reasoning].into_iter().flatten().map(String::as_str);
        let calls = self
            .tool_calls
            .iter()
            .flat_map(|call| texts(&call.arguments).into_iter().chain(call.id.as_deref()).chain([call.name.as_str()]));
        [self.role.as_str(), &self.content].into_iter().chain(optional).chain(calls)
    }
}
