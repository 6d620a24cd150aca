//! Chat templates against Python's Jinja: `tests/fixtures/make_chat_fixtures.py` rendered what is expected here.

use std::path::{Path, PathBuf};
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
    /// Where Python fails by itself: nothing is expected then.
    python_fails: usize,
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
        let got = got.map(|prompt| prompt.text());
        let wanted =
            text(result, "text").map(|wanted| if name.contains("functionary") { unescaped(&wanted) } else { wanted });
        match (&got, wanted, text(result, "raised")) {
            (Ok(got), Some(wanted), _) if *got == wanted => tally.same_text += 1,
            (Err(error), _, Some(raised))
                if error.to_string().ends_with(&format!("refuses the conversation: {raised}")) =>
            {
                assert_eq!(error.kind(), ErrorKind::Template);
                tally.same_refusal += 1;
            }
            (got, None, None) => {
                println!(
                    "{name} {case}: Python fails, we {}",
                    got.as_ref().map_or_else(ToString::to_string, |_| "render".into())
                );
                tally.python_fails += 1;
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
    assert_eq!((tally.same_text, tally.same_refusal, tally.python_fails), (83, 8, 0));
}

/// The templates that llama.cpp carries, where they are at hand: `WAVELM_LLAMA_CPP_MODELS` names its folder `models`, and
/// `WAVELM_CHAT_EXPECTED` what `make_chat_fixtures.py --models $WAVELM_LLAMA_CPP_MODELS/templates --out FILE` wrote.
#[test]
fn known_templates_render_as_in_python() {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(models), Some(expected)) = (folder("WAVELM_LLAMA_CPP_MODELS"), folder("WAVELM_CHAT_EXPECTED")) else {
        println!("skipped: WAVELM_LLAMA_CPP_MODELS or WAVELM_CHAT_EXPECTED is not set");
        return;
    };
    let tally = compare(&expected, &models.join("templates"));
    println!("{} texts, {} refusals, {} fail in Python", tally.same_text, tally.same_refusal, tally.python_fails);
    assert!(tally.differences.is_empty(), "{} differences\n{}", tally.differences.len(), tally.differences.join("\n"));
}
