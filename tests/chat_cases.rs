//! Templates and conversations that went wrong in public programs, each with what Hugging Face's Jinja makes of it.

use std::process::Command;
use wavelm::ErrorKind;
use wavelm::chat::{Builtin, ChatOptions, ChatTemplate, Json, Message, SpecialTokens};

fn render(source: &str, messages: &[Message], options: &ChatOptions) -> Result<String, wavelm::Error> {
    let tokens = SpecialTokens::new().bos("<s>").eos("</s>");
    Ok(ChatTemplate::parse(source, tokens)?.render(messages, options)?.text())
}

fn hello() -> [Message; 1] {
    [Message::user("How warm is it?")]
}

fn expression(source: &str) -> String {
    render(source, &hello(), &ChatOptions::new()).unwrap_or_else(|error| panic!("{source}: {error}"))
}

#[test]
fn line_breaks_of_every_kind_are_one() {
    let template = |line: &str| {
        [
            "{%- for m in messages %}",
            "{{- '<|im_start|>' + m.role + '",
            "' + m.content + '<|im_end|>",
            "' }}",
            "{%- endfor %}",
            "{%- if add_generation_prompt %}",
            "{{- '<|im_start|>assistant",
            "' }}",
            "{%- endif %}",
            "end of template",
            "",
        ]
        .join(line)
    };
    for line in ["\n", "\r\n", "\r"] {
        let wanted = "<|im_start|>user\nHow warm is it?<|im_end|>\n<|im_start|>assistant\nend of template";
        assert_eq!(expression(&template(line)), wanted, "{line:?}");
    }
    // A conversation's line breaks stay as they are, and so do those that a template spells by an escape.
    let messages = [Message::user("a\r\nb\rc")];
    assert_eq!(render("{{ messages[0].content }}\r\n", &messages, &ChatOptions::new()).unwrap(), "a\r\nb\rc");
    assert_eq!(expression("{{ 'a\\r\\nb' }}\r\n\r\n"), "a\r\nb\n");
    assert_eq!(expression("a{# x\r\ny #}\r\nb\r\n{% if true %}\r\n  c\r\n{% endif %}\r\nd"), "ab\n  c\nd");
    assert_eq!(expression("{% raw %}a\r\nb\r{% endraw %}c"), "a\nb\nc");
}

#[test]
fn joined_values_are_written_as_python_writes_them() {
    let tool: Json = r#"{"type": "function", "function": {"name": "warmth", "parameters": {"a": [1, 2.0, true, null]}}}"#.parse().unwrap();
    let options = ChatOptions::new().tool(tool);
    let wanted = "Tools: [{'type': 'function', 'function': {'name': 'warmth', 'parameters': {'a': [1, 2.0, True, None]}}}] \
                  [1, None, 'a', \"it's\"]";
    assert_eq!(
        render("{{ 'Tools: ' ~ tools }}{{ ' ' ~ [1, none, 'a', \"it's\"] }}", &hello(), &options).unwrap(),
        wanted
    );
    assert_eq!(expression("{{ 1 ~ none ~ true ~ 1.0 ~ (1,) ~ {} ~ 'x' ~ undefined_name }}"), "1NoneTrue1.0(1,){}x");
}

#[test]
fn what_is_undefined_is_empty_to_filters() {
    let source =
        "{% for m in messages %}{% if m.tool_calls|length > 0 %}calls{% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert_eq!(expression(&format!("{source}{{{{ functions|count }}}}")), "How warm is it?0");
    for (source, wanted) in [
        ("{{ x|first }}|{{ x|last }}", "|"),
        ("{{ x|items|list }}", "[]"),
        ("{{ x|list }}{{ x|join(',') }}{{ x|string }}", "[]"),
        ("{{ x|default('d') }}{{ x|upper }}{{ x|trim }}", "d"),
        ("{% for a in x %}a{% else %}none{% endfor %}", "none"),
        ("{{ x is defined }}{{ not x }}{{ x == y }}", "FalseTrueTrue"),
    ] {
        assert_eq!(expression(source), wanted, "{source}");
    }
    let error = render("{{ x.y }}", &hello(), &ChatOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Template);
}

#[test]
fn expressions_that_engines_get_wrong() {
    for (source, wanted) in [
        ("{{ '%s and %d' % ('x', 3) }}", "x and 3"),
        ("{{ 7 % -3 }} {{ -7 % 3 }} {{ -7 // 2 }} {{ 7.5 % -2 }}", "-2 2 -4 -0.5"),
        ("{{ 2**-1 }} {{ 2**3**2 }} {{ -2**2 }}", "0.5 64 4"),
        ("{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }}", "007 -007"),
        ("{{ 'a'.ljust(3) ~ '|' ~ 'a'.rjust(3, '.') }}", "a  |..a"),
        ("{{ 'x' * -1 }}|{{ [1] * 0 }}", "|[]"),
        ("{{ 'a b c'.rsplit(None,1) }}{{ 'a b c'.split(' ', 1) }}", "['a b', 'c']['a', 'b c']"),
        ("{{ 'abc'.startswith('b', 1) }}{{ 'abc'.endswith(('x', 'c')) }}", "TrueTrue"),
        ("{{ [1,2,2].index(2) }}{{ [1,2,2].count(2) }}", "12"),
        ("{{ \"it's o'neil\"|title }}", "It's O'neil"),
        ("{{ 'a b'|wordcount }}", "2"),
        ("{{ 'hello big world'|truncate(9,true) }}", "hello ..."),
        ("{{ 'a b&c/d'|urlencode }}", "a%20b%26c/d"),
        ("{{ 2.5|round }} {{ 3.5|round }} {{ 2.675|round(2) }} {{ 1.25|round(1) }}", "2.0 4.0 2.67 1.2"),
        ("{{ (1, 'a') }}{{ ('a',) }}{{ () }}", "(1, 'a')('a',)()"),
        ("{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}{{ l.pop() }}{{ l }}", "[1, 2]2[1]"),
        (
            "{% set d = {'a': 1} %}{% set _ = d.update(b=2) %}{{ d }}{{ d.pop('a') }}{{ d }}",
            "{'a': 1, 'b': 2}1{'b': 2}",
        ),
        ("{{ 'a\\u00e9\\n\"<'|tojson }}", "\"aé\\n\\\"<\""),
        ("{{ 'ab'[::-1] }}{{ ''[::-1] }}{{ [1, 2, 3][::-2] }}", "ba[3, 1]"),
        ("{{ '%5.1f|%-4s|%x' % (2.25, 'a', 255) }}", "  2.2|a   |ff"),
    ] {
        assert_eq!(expression(source), wanted, "{source}");
    }
}

#[test]
fn a_template_finds_its_own_words_though_they_are_control_tokens() {
    let source = "{% for m in messages %}<|{{ m.role }}|>{% if '</think>' in m.content %}\
                  {{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let tokens = SpecialTokens::new().bos("<s>").eos("</s>").control(["<think>", "</think>", "<|user|>"]);
    let template = ChatTemplate::parse(source, tokens).unwrap();
    let answer = Message::assistant("<think>\nhm\n</think>\n\n12 degrees");
    let prompt = template.render(&[hello()[0].clone(), answer], &ChatOptions::new()).unwrap();
    assert_eq!(prompt.text(), "<|user|>How warm is it?<|assistant|>12 degrees");
    assert!(prompt.segments().iter().all(|segment| segment.parse_special), "nothing is left that spells a token");
    // What is left in the text is text.
    let prompt = template.render(&[Message::user("say <think>")], &ChatOptions::new()).unwrap();
    let segments: Vec<_> = prompt.segments().iter().map(|s| (s.text.as_str(), s.parse_special)).collect();
    assert_eq!(segments, [("<|user|>", true), ("say <think>", false)]);
}

/// Set in the process that renders a long chat.
const LONG_CHAT: &str = "WAVELM_LONG_CHAT";

#[test]
#[ignore = "long_chats_need_no_addresses starts it in a process of its own"]
fn render_a_long_chat() {
    if std::env::var_os(LONG_CHAT).is_none() {
        return;
    }
    let tokens = || SpecialTokens::new().bos("<s>").control(["<|im_start|>", "<|im_end|>"]);
    for format in [Builtin::ChatMl, Builtin::Llama3, Builtin::Gemma, Builtin::Mistral] {
        let template = ChatTemplate::builtin(format, tokens()).unwrap();
        for count in [200, 800, 1600] {
            let mut messages = Vec::new();
            for i in 0..count / 2 {
                messages.extend([Message::user(format!("question {i}")), Message::assistant("answer")]);
            }
            messages.push(Message::user("end"));
            let prompt = template.render(&messages, &ChatOptions::new()).unwrap();
            assert_eq!(prompt.text().matches("question").count(), count / 2);
            assert_eq!(prompt.text().matches("answer").count(), count / 2);
        }
    }
    println!("rendered");
}

#[test]
fn long_chats_need_no_addresses() {
    if !Command::new("prlimit").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: prlimit (of util-linux) is not there");
        return;
    }
    let output = Command::new("prlimit")
        .arg(format!("--as={}", 300 << 20))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "render_a_long_chat", "--ignored", "--nocapture", "--test-threads=1"])
        .env(LONG_CHAT, "1")
        .output()
        .unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("rendered"), "{}\n{out}\n{error}", output.status);
}
