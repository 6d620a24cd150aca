//! What the targets for chat templates do with one input, so that the loop in `src/bin/templates.rs` can do it too.

use std::sync::OnceLock;
use wavelm::chat::{ChatOptions, ChatTemplate, Json, Message, RenderedPrompt, SpecialTokens, ToolCall};

/// Tokens that only the conversation can spell: no template has the letter ⓠ.
const PRIVATE: [&str; 6] = ["ⓠ", "<ⓠ>", "<|ⓠⓩ|>", "[ⓠ", "ⓠ\n", "ⓠ\\"];
/// Tokens that templates write.
const KNOWN: [&str; 5] = ["<|im_start|>", "<|im_end|>", "<s>", "[INST]", "<|user|>"];
/// What texts are made of.
const PIECES: [&str; 24] = [
    "ⓠ",
    "<ⓠ>",
    "<|ⓠⓩ|>",
    "<",
    "|",
    ">",
    "ⓠⓩ|>",
    "<|ⓠ",
    "</think>",
    "<think>",
    "\\u24e0",
    "\"",
    "\\",
    "\n",
    " ",
    "{",
    "}",
    ":",
    ",",
    "[1]",
    "a",
    "é",
    "%s",
    "42",
];

fn tokens() -> SpecialTokens {
    SpecialTokens::new().bos("<s>").eos("</s>").control(PRIVATE.into_iter().chain(KNOWN))
}

/// Hands out the parts of an input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    /// A text of a few pieces.
    fn text(&mut self) -> String {
        let count = self.byte() % 6;
        (0..count).map(|_| PIECES[self.byte() % PIECES.len()]).collect()
    }

    fn json(&mut self, depth: usize) -> Json {
        match self.byte() % if depth == 0 { 5 } else { 8 } {
            0 => Json::Null,
            1 => Json::Bool(true),
            2 => Json::from(self.byte() as i64 - 100),
            3 => Json::from(self.byte() as f64 / 8.0),
            4 => Json::String(self.text()),
            5 => Json::Array((0..self.byte() % 3).map(|_| self.json(depth - 1)).collect()),
            _ => Json::Object((0..self.byte() % 3).map(|_| (self.text(), self.json(depth - 1))).collect()),
        }
    }

    fn message(&mut self) -> Message {
        let kind = self.byte();
        let text = self.text();
        let mut message = match kind % 8 {
            0 => Message::system(text),
            1..4 => Message::user(text),
            4 => Message::tool(text),
            5 => Message::new("critic", text),
            _ => Message::assistant(text),
        };
        if kind & 16 != 0 {
            message.reasoning = Some(self.text());
        }
        if kind & 32 != 0 {
            message.name = Some(self.text());
        }
        if kind & 64 != 0 {
            let mut call = ToolCall::new(self.text(), self.json(2));
            call.id = (kind & 128 != 0).then(|| self.text());
            message = message.with_tool_call(call);
        }
        message
    }

    fn conversation(&mut self) -> (Vec<Message>, ChatOptions) {
        let kind = self.byte();
        let messages = (0..kind % 4).map(|_| self.message()).collect();
        let mut options = ChatOptions::new().add_generation_prompt(kind & 8 == 0).now(std::time::UNIX_EPOCH);
        if kind & 16 != 0 {
            options = options.tool(self.json(3));
        }
        if kind & 32 != 0 {
            options = options.variable("x", self.json(3));
        }
        (messages, options)
    }
}

/// What holds for every prompt.
fn check(prompt: &RenderedPrompt, source: &str) {
    let segments = prompt.segments();
    let text: String = segments.iter().map(|segment| segment.text.as_str()).collect();
    assert_eq!(text, prompt.text());
    assert!(segments.iter().all(|segment| !segment.text.is_empty()));
    assert!(segments.windows(2).all(|pair| pair[0].parse_special != pair[1].parse_special));
    // A template that spells the letter itself, as it is or by an escape, may write the tokens.
    if !source.contains(['ⓠ', 'Ⓠ', '\\', '%', '&']) {
        for segment in segments.iter().filter(|segment| segment.parse_special) {
            let private = PRIVATE.iter().find(|token| segment.text.contains(**token));
            assert!(private.is_none(), "{private:?} is a control token: {source:?} wrote {prompt:?}");
        }
    }
}

/// Parses and renders any bytes as a template; the conversation is made of what stands behind the last zero byte.
pub fn template_render(bytes: &[u8]) {
    let cut = bytes.iter().rposition(|byte| *byte == 0).unwrap_or(bytes.len());
    let (source, rest) = bytes.split_at(cut);
    let source = String::from_utf8_lossy(source);
    let Ok(template) = ChatTemplate::parse(&source, tokens()) else { return };
    let (messages, options) = Input(rest.get(1..).unwrap_or_default()).conversation();
    if let Ok(prompt) = template.render(&messages, &options) {
        check(&prompt, &source);
    }
}

/// Templates that take conversations apart.
fn templates() -> &'static [ChatTemplate] {
    static TEMPLATES: OnceLock<Vec<ChatTemplate>> = OnceLock::new();
    TEMPLATES.get_or_init(|| {
        let sources = [
            include_str!("../../tests/fixtures/chat/templates/chatml.jinja"),
            include_str!("../../tests/fixtures/chat/templates/llama3.jinja"),
            include_str!("../../tests/fixtures/chat/templates/gemma.jinja"),
            include_str!("../../tests/fixtures/chat/templates/mistral.jinja"),
            include_str!("../../tests/fixtures/chat/templates/thinking.jinja"),
            include_str!("../../tests/fixtures/chat/templates/tools.jinja"),
            "{{ messages|tojson }}{{ messages }}{{ tools|tojson(indent=2) }}{{ x }}{{ x|tojson }}",
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content.replace('/think', '') }}{{ m.content[::-1] }}{% endfor %}",
            "{% for m in messages %}{{ m.content.split('|')|join('|') }}{{ m.content|list|sort|join }}{{ m.content|upper|lower }}{% endfor %}",
            "{% for m in messages %}{% for c in m.tool_calls %}{% set a = c.function.arguments %}{{ a|tojson|from_json if a is not string else a|from_json }}{% endfor %}{% endfor %}",
            "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}<{{ m.content|trim }}>{{ m.name }}{{ '%s' % m.content }}{{ '{}'.format(m.content) }}{% endfor %}",
            "{% macro w(v) %}{% if v is mapping %}{% for k, i in v|items %}{{ k }}:{{ w(i) }}{% endfor %}{% elif v is string %}{{ v|title }}{% elif v is iterable %}{% for i in v %}{{ w(i) }}{% endfor %}{% else %}{{ v }}{% endif %}{% endmacro %}{{ w(messages) }}{{ w(tools) }}{{ w(x) }}",
        ];
        sources.iter().map(|source| ChatTemplate::parse(source, tokens()).expect("a template of ours")).collect()
    })
}

/// Renders any conversation with templates that are known.
pub fn messages(bytes: &[u8]) {
    let mut input = Input(bytes);
    let template = &templates()[input.byte() % templates().len()];
    let (messages, options) = input.conversation();
    if let Ok(prompt) = template.render(&messages, &options) {
        check(&prompt, "");
    }
}

/// Runs a part on a stack of 2 MB, which is what threads of Rust programs have.
pub fn on_small_stack(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, run).expect("a thread");
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
