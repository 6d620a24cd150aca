//! Chat templates against Python's Jinja: `tests/fixtures/make_chat_fixtures.py` rendered what is expected here.

#[path = "common/templates.rs"]
mod templates;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};
use wavelm::ErrorKind;
use wavelm::chat::{ChatOptions, ChatTemplate, Json, Message, SpecialTokens, ToolCall};

fn text(json: &Json, key: &str) -> Option<String> {
    json.get(key)?.as_str().map(str::to_string)
}

fn array<'a>(json: &'a Json, key: &str) -> &'a [Json] {
    match json.get(key) {
        Some(Json::Array(items)) => items,
        _ => &[],
    }
}

fn message(json: &Json) -> Message {
    let mut message = Message::new(&*text(json, "role").unwrap(), text(json, "content").unwrap());
    message.name = text(json, "name");
    message.tool_call_id = text(json, "tool_call_id");
    message.reasoning = text(json, "reasoning_content");
    for call in array(json, "tool_calls") {
        let function = call.get("function").unwrap();
        let mut tool_call = ToolCall::new(text(function, "name").unwrap(), function.get("arguments").unwrap().clone());
        tool_call.id = text(call, "id");
        message = message.with_tool_call(tool_call);
    }
    message
}

fn conversation(case: &Json, now: u64) -> (Vec<Message>, ChatOptions) {
    let mut options = ChatOptions::new().now(UNIX_EPOCH + Duration::from_secs(now));
    let Json::Object(variables) = case else { panic!("a case is an object") };
    for (name, value) in variables {
        options = match (name.as_str(), value) {
            ("messages", _) => options,
            ("tools", Json::Array(tools)) => tools.iter().cloned().fold(options, ChatOptions::tool),
            ("add_generation_prompt", Json::Bool(yes)) => options.add_generation_prompt(*yes),
            _ => options.variable(name, value.clone()),
        };
    }
    (array(case, "messages").iter().map(message).collect(), options)
}

/// Functionary's template marks some text as safe HTML, upon which Python escapes the JSON that is added to it, though
/// there is no HTML. We do not.
fn unescaped(text: &str) -> String {
    let entities = [("&#34;", "\""), ("&#39;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")];
    entities.iter().fold(text.to_string(), |text, (entity, c)| text.replace(entity, c))
}

/// What became of one set of results.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    same_text: usize,
    same_refusal: usize,
    /// Where Python fails by itself, and so do we.
    same_failure: usize,
    /// What differs, with an explanation.
    differences: Vec<String>,
}

fn compare(expected: &Path, templates: &Path) -> Tally {
    let expected: Json = std::fs::read_to_string(expected).unwrap().parse().unwrap();
    let now = expected["now"].as_u64().unwrap();
    let mut tally = Tally::default();
    // Control tokens must not matter as long as no message spells one.
    let tokens = SpecialTokens::new().bos("<s>").eos("</s>").control(["<|im_start|>", "<|im_end|>", "[INST]", "<eos>"]);
    for result in array(&expected, "results") {
        let (name, case) = (text(result, "template").unwrap(), text(result, "case").unwrap());
        let source = std::fs::read_to_string(templates.join(&name)).unwrap();
        let (messages, options) = conversation(expected.get("cases").unwrap().get(&case).unwrap(), now);
        let got =
            ChatTemplate::parse(&source, tokens.clone()).and_then(|template| template.render(&messages, &options));
        if let Ok(prompt) = &got {
            let special = prompt.segments().iter().all(|segment| segment.parse_special);
            assert!(special && prompt.segments().len() <= 1, "{name} {case}: an ordinary prompt is one segment");
        }
        let plain = |text: String| if name.contains("functionary") { unescaped(&text) } else { text };
        let got = got.map(|prompt| plain(prompt.text()));
        let wanted = text(result, "text").map(plain);
        match (&got, wanted, text(result, "raised")) {
            (Ok(got), Some(wanted), _) if *got == wanted => tally.same_text += 1,
            (Err(error), _, Some(raised))
                if error.to_string().ends_with(&format!("refuses the conversation: {raised}")) =>
            {
                assert_eq!(error.kind(), ErrorKind::Template);
                tally.same_refusal += 1;
            }
            (Err(error), None, None) => {
                assert_eq!(error.kind(), ErrorKind::Template);
                tally.same_failure += 1;
            }
            (Ok(got), Some(wanted), _) => {
                let common = got.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
                let from = (0..=common.saturating_sub(60)).rev().find(|at| wanted.is_char_boundary(*at)).unwrap();
                let show = |text: &str| text[from..].chars().take(120).collect::<String>();
                tally.differences.push(format!(
                    "{name} {case}:\n  got    {:?}\n  wanted {:?}",
                    show(got),
                    show(&wanted)
                ));
            }
            (got, wanted, raised) => {
                let got = got.as_ref().map(|_| "a text").map_err(ToString::to_string);
                let wanted = if wanted.is_some() { Ok("a text") } else { Err(raised) };
                tally.differences.push(format!("{name} {case}:\n  got    {got:?}\n  wanted {wanted:?}"));
            }
        }
    }
    tally
}

#[test]
fn our_templates_render_as_in_python() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let tally = compare(&folder.join("expected.json"), &folder.join("templates"));
    assert!(tally.differences.is_empty(), "{}", tally.differences.join("\n"));
    assert_eq!((tally.same_text, tally.same_refusal, tally.same_failure), (179, 18, 2));
}

/// The templates that llama.cpp carries, where they and Python's Jinja are at hand.
#[test]
fn known_templates_render_as_in_python() {
    let Some(folder) = templates::folder() else { return };
    if !templates::has_jinja() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/make_chat_fixtures.py");
    let expected = std::env::temp_dir().join(format!("wavelm-chat-{}.json", std::process::id()));
    let mut python = Command::new("python3");
    let output = python.arg(script).arg("--models").arg(&folder).arg("--out").arg(&expected).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tally = compare(&expected, &folder);
    std::fs::remove_file(&expected).unwrap();
    println!("{} texts, {} refusals, {} failures", tally.same_text, tally.same_refusal, tally.same_failure);
    assert!(tally.differences.is_empty(), "{} differences\n{}", tally.differences.len(), tally.differences.join("\n"));
    assert!(tally.same_text >= 26 * templates::files(&folder, "jinja").len(), "{} texts", tally.same_text);
}
