//! Conversations with a text in one of the places where a program may put what people or models wrote.

use std::time::{Duration, UNIX_EPOCH};
use wavelm::chat::{ChatOptions, Json, Message, ToolCall};

/// Where the text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    System,
    User,
    Assistant,
    Reasoning,
    ToolDescription,
    ToolParameter,
    ToolName,
    Argument,
    ArgumentKey,
    ArgumentText,
    EscapedArgumentText,
    CallName,
    CallId,
    AuthorName,
    Result,
    JsonResult,
    Variable,
    Everywhere,
}

impl Place {
    pub const ALL: &[Self] = &[
        Self::System,
        Self::User,
        Self::Assistant,
        Self::Reasoning,
        Self::ToolDescription,
        Self::ToolParameter,
        Self::ToolName,
        Self::Argument,
        Self::ArgumentKey,
        Self::ArgumentText,
        Self::EscapedArgumentText,
        Self::CallName,
        Self::CallId,
        Self::AuthorName,
        Self::Result,
        Self::JsonResult,
        Self::Variable,
        Self::Everywhere,
    ];
}

/// What the conversation is like; some templates refuse some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Talk,
    Tools,
}

pub const SHAPES: [Shape; 2] = [Shape::Talk, Shape::Tools];

pub fn conversation(shape: Shape, place: Place, text: &str) -> (Vec<Message>, ChatOptions) {
    let at = |here: Place, usual: &str| {
        if place == here
            || (place == Place::Everywhere && !matches!(here, Place::ArgumentText | Place::EscapedArgumentText))
        {
            text.to_string()
        } else {
            usual.to_string()
        }
    };
    let options = ChatOptions::new()
        .now(UNIX_EPOCH + Duration::from_secs(1_721_999_109))
        .variable("extra", at(Place::Variable, "more"))
        .variable("reasoning_effort", "high");
    let mut messages = vec![Message::system(at(Place::System, "Be brief."))];
    if shape == Shape::Talk {
        messages.push(Message::user(at(Place::User, "Hello")));
        let thought = at(Place::Assistant, "<think>\nhm\n</think>\n\nfine");
        messages.push(Message::assistant(thought).with_reasoning(at(Place::Reasoning, "I think")));
        messages.push(Message::user(at(Place::User, "Go on")).with_name(at(Place::AuthorName, "Ann")));
        return (messages, options);
    }
    let tool = Json::Object(
        [
            ("type".to_string(), Json::from("function")),
            (
                "function".to_string(),
                Json::Object(
                    [
                        ("name".to_string(), Json::from(at(Place::ToolName, "weather"))),
                        ("description".to_string(), Json::from(at(Place::ToolDescription, "The weather"))),
                        ("parameters".to_string(), parameters(&at(Place::ToolParameter, "town"))),
                    ]
                    .into_iter()
                    .collect(),
                ),
            ),
        ]
        .into_iter()
        .collect(),
    );
    let arguments = match place {
        // As a JSON text, in which the text is written as it is, or escaped.
        Place::ArgumentText => Json::from(format!("{{\"town\": {}}}", Json::from(text))),
        Place::EscapedArgumentText => Json::from(format!("{{\"town\": \"{}\"}}", escaped(text))),
        _ => {
            let inner: [(String, Json); 3] = [
                (at(Place::ArgumentKey, "town"), Json::from(at(Place::Argument, "Bergen"))),
                ("list".to_string(), Json::Array(vec![Json::from(at(Place::Argument, "a")), Json::from(1)])),
                ("days".to_string(), Json::from(314_159_265)),
            ];
            Json::Object(inner.into_iter().collect())
        }
    };
    let id = at(Place::CallId, "call12345");
    let mut call = ToolCall::new(at(Place::CallName, "weather"), arguments);
    call.id = Some(id.clone());
    let result = match place {
        Place::JsonResult => format!("{{\"sky\": {}, \"{text}\": 1}}", Json::from(text)),
        _ => at(Place::Result, "{\"sky\": \"blue\"}"),
    };
    let mut result = Message::tool(result).with_name(at(Place::AuthorName, "weather"));
    result.tool_call_id = Some(id);
    messages.push(Message::user(at(Place::User, "Hello")));
    let asks = Message::assistant(at(Place::Assistant, ""))
        .with_reasoning(at(Place::Reasoning, "I look"))
        .with_tool_call(call);
    messages.extend([
        asks,
        result,
        Message::assistant(at(Place::Assistant, "Blue.")),
        Message::user(at(Place::User, "Thanks")),
    ]);
    (messages, options.tool(tool))
}

fn parameters(name: &str) -> Json {
    let property =
        format!(r#"{{"type": "string", "description": {}, "enum": [{}, "x"]}}"#, Json::from(name), Json::from(name));
    let name = Json::from(name);
    format!(r#"{{"type": "object", "properties": {{{name}: {property}}}, "required": [{name}]}}"#).parse().unwrap()
}

/// All characters as JSON's escapes.
fn escaped(text: &str) -> String {
    text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()
}
