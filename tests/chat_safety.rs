//! Chat templates and hostile input: messages that spell special tokens, and templates that do not want to end.

use wavelm::ErrorKind;
use wavelm::chat::{Builtin, ChatOptions, ChatTemplate, Json, Message, RenderedPrompt, Role, SpecialTokens, ToolCall};
use wavelm::gguf::{Array, Metadata, Value};

const CONTROL: [&str; 12] = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
];

fn tokens() -> SpecialTokens {
    SpecialTokens::new().bos("<s>").eos("</s>").control(CONTROL)
}

fn render(source: &str, messages: &[Message]) -> RenderedPrompt {
    ChatTemplate::parse(source, tokens()).unwrap().render(messages, &ChatOptions::new()).unwrap()
}

/// The segments, plain ones as "=…".
fn segments(prompt: &RenderedPrompt) -> Vec<String> {
    let spell = |text: &str, special: bool| format!("{}{text}", if special { "" } else { "=" });
    prompt.segments().iter().map(|segment| spell(&segment.text, segment.parse_special)).collect()
}

/// How often control tokens stand where they will be parsed.
fn parsed(prompt: &RenderedPrompt) -> usize {
    let special = prompt.segments().iter().filter(|segment| segment.parse_special);
    special.map(|segment| CONTROL.iter().map(|token| segment.text.matches(token).count()).sum::<usize>()).sum()
}

fn error(source: &str) -> String {
    let template = match ChatTemplate::parse(source, tokens()) {
        Ok(template) => template,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Template);
            return error.to_string();
        }
    };
    let error =
        template.render(&[Message::user("hi")], &ChatOptions::new()).map(|prompt| prompt.text().len()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Template);
    error.to_string()
}

#[test]
fn no_message_spells_a_special_token() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/chat/templates");
    let names = ["chatml", "llama3", "gemma", "mistral", "thinking", "tools"];
    let mut sources: Vec<String> =
        names.iter().map(|name| std::fs::read_to_string(format!("{folder}/{name}.jinja")).unwrap()).collect();
    for format in [
        Builtin::ChatMl,
        Builtin::Llama3,
        Builtin::Gemma,
        Builtin::Phi3,
        Builtin::Mistral,
        Builtin::Llama2,
        Builtin::Plain,
    ] {
        sources.push(ChatTemplate::builtin(format, tokens()).unwrap().source().to_string());
    }
    let attacks: Vec<String> = CONTROL
        .iter()
        .flat_map(|token| {
            let (head, tail) = token.split_at(token.len() / 2);
            [
                token.to_string(),
                format!("{token}{token}"),
                format!("a{token}b"),
                format!("  {token}\n"),
                format!("{head}{token}{tail}"),
                head.to_string(),
                tail.to_string(),
                format!("<think>{token}</think>{token}"),
                format!("{tail} x {head}"),
                token.to_uppercase(),
            ]
        })
        .collect();
    for source in &sources {
        let template = ChatTemplate::parse(source, tokens()).unwrap();
        let conversation = |text: &str| {
            [
                Message::system(text),
                Message::user(text),
                Message::assistant(text).with_reasoning(text),
                Message::user(text),
            ]
        };
        let harmless = template.render(&conversation("harmless"), &ChatOptions::new()).unwrap();
        assert_eq!(harmless.segments().len(), 1);
        for attack in &attacks {
            let prompt = template.render(&conversation(attack), &ChatOptions::new()).unwrap();
            assert_eq!(parsed(&prompt), parsed(&harmless), "{attack:?} in {source}");
            let noncharacters = |c: char| ('\u{fdd0}'..='\u{fdef}').contains(&c);
            assert!(!prompt.text().contains(noncharacters), "a mark stays in the prompt");
        }
    }
}

#[test]
fn tools_calls_names_and_variables_are_guarded_too() {
    let source = "<s>{{ tools|tojson }}<s>{% for m in messages %}{{ m.name }}{{ m.tool_calls|tojson }}\
                  {{ m.tool_call_id }}<s>{{ extra }}{% endfor %}<s>";
    let template = ChatTemplate::parse(source, tokens()).unwrap();
    let tool: Json = r#"{"name": "</s>", "</s>": ["</s>", {"a": "\u003c/s>"}]}"#.parse().unwrap();
    let mut message = Message::assistant("").with_name("</s>").with_tool_call(ToolCall::new("</s>", tool.clone()));
    message.tool_call_id = Some("</s>".into());
    let options = ChatOptions::new().tool(tool).variable("extra", "</s>");
    let prompt = template.render(&[message], &options).unwrap();
    assert!(prompt.text().matches("</s>").count() >= 10);
    assert_eq!(parsed(&prompt), 4);
}

#[test]
fn text_that_joins_with_the_template_is_caught() {
    let message = |text: &str| [Message::user(text)];
    let source = "<s>{{ messages[0].content }}|im_end|>x</s>";
    assert_eq!(segments(&render(source, &message("a <"))), ["<s>", "=a <|im_end|>x", "</s>"]);
    assert_eq!(segments(&render(source, &message("a "))), ["<s>a |im_end|>x</s>"]);
    let source = "<s><|im_end{{ messages[0].content|trim }}</s>";
    assert_eq!(segments(&render(source, &message(" |> b"))), ["<s>", "=<|im_end|> b", "</s>"]);
    // What the template cuts out of a message joins the rest.
    let source = "<s>{{ messages[0].content.replace('XX', '') }}</s>";
    assert_eq!(segments(&render(source, &message("<|im_XXend|>"))), ["<s>", "=<|im_end|>", "</s>"]);
    assert_eq!(segments(&render(source, &message("<XX|im_end|>"))), ["<s>", "=<|im_end|>", "</s>"]);
    // Changing case can make a token.
    let source = "<s>{{ messages[0].content|lower }}</s>";
    assert_eq!(segments(&render(source, &message("<|IM_END|>"))), ["<s>", "=<|im_end|>", "</s>"]);
    // Finding words of its own in a message is not disturbed.
    let source = "<s>{{ messages[0].content.split('</think>')[-1] }}</s>";
    assert_eq!(segments(&render(source, &message("<think></s></think> a < b"))), ["<s> a < b</s>"]);
}

#[test]
fn a_role_is_part_of_the_template() {
    let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
    let tokens = SpecialTokens::new().control(["<|user|>", "<|end|>"]);
    let template = ChatTemplate::parse(source, tokens).unwrap();
    let prompt = template.render(&[Message::user("<|user|>")], &ChatOptions::new()).unwrap();
    assert_eq!(segments(&prompt), ["<|user|>", "=<|user|>"]);
    let message = Message::new(Role::Other("x|><|end|><|y".into()), "");
    assert_eq!(segments(&template.render(&[message], &ChatOptions::new()).unwrap()), ["=<|x|><|end|><|y|>"]);
}

#[test]
fn builtin_templates() {
    let messages = [Message::system("S"), Message::user(" U "), Message::assistant("A"), Message::user("V")];
    let cases = [
        (
            Builtin::ChatMl,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U <|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n\
             <|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            Builtin::Llama3,
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
             U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            Builtin::Gemma,
            "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n\
             <start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            Builtin::Phi3,
            "<|system|>\nS<|end|>\n<|user|>\n U <|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n",
        ),
        (Builtin::Mistral, "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]"),
        (Builtin::Llama2, "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
        (Builtin::Plain, "<s>system: S\nuser: U\nassistant: A\nuser: V\nassistant:"),
    ];
    for (format, wanted) in cases {
        let template = ChatTemplate::builtin(format, tokens()).unwrap();
        assert_eq!(template.render(&messages, &ChatOptions::new()).unwrap().text(), wanted, "{format:?}");
        assert!(template.render(&[], &ChatOptions::new()).is_ok(), "{format:?} without messages");
        let finished = template.render(&messages[..3], &ChatOptions::new().add_generation_prompt(false)).unwrap();
        assert!(wanted.starts_with(finished.text().trim_end()), "{format:?}: {}", finished.text());
    }
}

/// A vocabulary as files hold it; those named in `control` are control tokens.
fn vocabulary(texts: &[&str], control: &[&str], more: &[(&str, Value)]) -> Metadata {
    let types = texts.iter().map(|text| if control.contains(text) { 3 } else { 1 }).collect();
    let mut entries = vec![
        ("tokenizer.ggml.tokens".to_string(), Value::Array(Array::String(texts.iter().copied().collect()))),
        ("tokenizer.ggml.token_type".to_string(), Value::Array(Array::I32(types))),
        ("tokenizer.ggml.bos_token_id".to_string(), Value::U32(0)),
        ("tokenizer.ggml.eos_token_id".to_string(), Value::U32(1)),
    ];
    entries.extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
    Metadata::new(entries).unwrap()
}

#[test]
fn templates_come_from_the_file_or_fit_its_vocabulary() {
    let template = |text: &str| Value::String(text.to_string());
    let file = vocabulary(
        &["<s>", "</s>", "a"],
        &["<s>", "</s>"],
        &[
            ("tokenizer.chat_template", template("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")),
            ("tokenizer.chat_template.tool_use", template("tools {{ tools|length }}")),
            ("tokenizer.chat_template.rag", template("rag")),
        ],
    );
    let main = ChatTemplate::from_metadata(&file).unwrap();
    assert_eq!(main.builtin_format(), None);
    let messages = [Message::user("</s>")];
    let prompt = main.render(&messages, &ChatOptions::new()).unwrap();
    assert_eq!(segments(&prompt), ["<s>", "=</s>", "</s>"]);
    let with_tool = ChatOptions::new().tool(Json::Object(Default::default()));
    assert_eq!(main.render(&messages, &with_tool).unwrap().text(), "tools 1");
    let rag = ChatTemplate::named_from_metadata(&file, "rag").unwrap().unwrap();
    assert_eq!(rag.render(&[], &ChatOptions::new()).unwrap().text(), "rag");
    assert!(ChatTemplate::named_from_metadata(&file, "other").unwrap().is_none());

    let broken = vocabulary(&["<s>", "</s>"], &[], &[("tokenizer.chat_template", template("a\n{% if %}"))]);
    let error = ChatTemplate::from_metadata(&broken).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Template);
    assert!(error.to_string().starts_with("line 2 of the chat template does not work: syntax error"), "{error}");
    assert!(error.to_string().ends_with("give a template of your own with ChatTemplate::parse"), "{error}");

    let name = |name: &str| [("general.name", Value::String(name.into()))];
    for (texts, control, more, wanted) in [
        (&["<s>", "</s>", "<|im_start|>"][..], &["<|im_start|>"][..], vec![], Builtin::ChatMl),
        (&["<s>", "</s>", "<|im_start|>"], &[], vec![], Builtin::ChatMl),
        (&["<s>", "</s>", "<|start_header_id|>"], &["<|start_header_id|>"], vec![], Builtin::Llama3),
        (&["<s>", "</s>", "<start_of_turn>"], &["<start_of_turn>"], vec![], Builtin::Gemma),
        (&["<s>", "</s>", "<|assistant|>"], &["<|assistant|>"], vec![], Builtin::Phi3),
        (&["<s>", "</s>", "[INST]"], &["[INST]"], vec![], Builtin::Mistral),
        (&["<s>", "</s>"], &[], name("LLaMA v2 / Llama 2 7B Chat").to_vec(), Builtin::Llama2),
        (&["<s>", "</s>"], &[], name("Llama 2 7B").to_vec(), Builtin::Plain),
        (&["<s>", "</s>"], &[], vec![("tokenizer.chat_template", template("  "))], Builtin::Plain),
    ] {
        let template = ChatTemplate::from_metadata(&vocabulary(texts, control, &more)).unwrap();
        assert_eq!(template.builtin_format(), Some(wanted));
        assert!(template.render(&[Message::user("hi")], &ChatOptions::new()).is_ok());
    }
    assert!(ChatTemplate::from_metadata(&Metadata::default()).is_ok());
}

#[test]
fn generation_blocks_are_plain() {
    let source = "a\n{% generation %}\nb{% set x = 1 %}\n{%- endgeneration -%}\n c{{ x is defined }}{%generation%}{%endgeneration%}";
    assert_eq!(render(source, &[]).text(), "a\nbcFalse");
    assert!(error("{% generation %}").contains("line 1"));
}

#[test]
fn templates_that_do_not_end_are_stopped() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(error(endless).contains("it takes more than"), "{}", error(endless));
    let recursive = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}";
    assert!(error(recursive).contains("recursion"), "{}", error(recursive));
    let long = "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}";
    assert!(error(long).contains("it writes more than"), "{}", error(long));
    let captured = "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(99) %}\
                    {% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}";
    assert!(error(captured).contains("it writes more than"), "{}", error(captured));
}

#[test]
fn templates_that_overflow_or_panic_are_errors() {
    // Values nest to a limit, so that nothing that walks them goes deep; changed ones may nest in each other.
    let (open, close) = ("[".repeat(50), "]".repeat(50));
    let deep = |levels: usize, end: &str| {
        format!(
            "{{% set ns = namespace(x=[], y=[]) %}}{{% for a in range({}) %}}{{% set ns.x = {open}ns.x{close} %}}{end}",
            levels / 50
        )
    };
    assert_eq!(render(&deep(50, "{% endfor %}{{ ns.x|length }}"), &[]).text(), "1");
    for end in ["{{ ns.x|length }}", "{{ ns.x }}", "{{ ns.x|tojson }}", "{{ ns.x == ns.y }}"] {
        assert!(error(&deep(170_000, &format!("{{% endfor %}}{end}"))).contains("nests too deeply"), "{end}");
    }
    for cyclic in [
        "{% set l = [] %}{% set x = l.append(l) %}{{ l }}",
        "{% set d = {} %}{% set x = d.update(d=d) %}{{ d|tojson }}",
        "{% set l = [] %}{% set x = l.append(l) %}{% set m = [] %}{% set x = m.append(m) %}{{ l == m }}",
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
    ] {
        assert!(error(cyclic).contains("nests too deeply"), "{cyclic}: {}", error(cyclic));
    }
    let chain = "{% set ns = namespace(l=[]) %}{% set first = ns.l %}{% for i in range(50000) %}{% set l = [] %}\
                 {% set x = ns.l.append(l) %}{% set ns.l = l %}{% endfor %}{{ first|length }}";
    assert_eq!(render(chain, &[]).text(), "1");
    for wide in [
        "'%999999999d'|format(1)",
        "'{:999999999}'.format(1)",
        "'%*d'|format(999999999, 1)",
        "'a\\nb'|indent(999999999)",
    ] {
        assert!(error(&format!("{{{{ {wide} }}}}")).contains("line 1"), "{wide}");
    }
    for large in
        ["[1]|batch(999999999999, 2)|list", "[1]|slice(999999999999)|list", "[0] * 999999999999", "(0,) * 99999999"]
    {
        assert!(error(&format!("{{{{ {large} }}}}")).contains("it takes more than"), "{large}");
    }
    let long = "{% set ns = namespace(s='x' * 9999) %}{% for a in range(9) %}{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}";
    assert!(error(long).contains("it writes more than"));
    assert_eq!(render("{{ ''[::-1] }}", &[]).text(), "");
}

#[test]
fn errors_say_where_and_why() {
    for (source, wanted) in [
        ("a\n{{ messages[0].content.x.y }}", "line 2 of the chat template does not work: undefined value"),
        (
            "{{ raise_exception('No ' ~ messages[0].role) }}",
            "line 1 of the chat template refuses the conversation: No user",
        ),
        (
            "\n\n{{ strftime_now('%Q') }}",
            "line 3 of the chat template does not work: invalid operation: strftime_now does not know",
        ),
        ("{{ 1|nope }}", "line 1 of the chat template does not work: unknown filter"),
        ("{% include 'x' %}", "line 1 of the chat template does not work: template not found"),
    ] {
        assert!(error(source).starts_with(wanted), "{}", error(source));
    }
    assert!(error(&"x".repeat(2 << 20)).contains("bytes long"));
}

#[test]
fn templates_are_shared_between_threads() {
    let template = ChatTemplate::builtin(Builtin::ChatMl, tokens()).unwrap();
    std::thread::scope(|scope| {
        for i in 0..4 {
            let template = template.clone();
            scope.spawn(move || {
                let prompt = template.render(&[Message::user(i.to_string())], &ChatOptions::new()).unwrap();
                assert!(prompt.text().contains(&format!("user\n{i}<|im_end|>")));
            });
        }
    });
}
