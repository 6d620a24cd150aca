//! Templates for files that have none.

use super::special::SpecialTokens;
use crate::Result;
use crate::gguf::Metadata;

/// A well-known format of conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Builtin {
    /// `<|im_start|>user … <|im_end|>`: Qwen, SmolLM2, Yi, and many fine-tunes.
    ChatMl,
    /// `<|start_header_id|>user<|end_header_id|> … <|eot_id|>`: Llama 3 and later.
    Llama3,
    /// `<start_of_turn>user … <end_of_turn>`: Gemma. The system's message goes before the first of the user.
    Gemma,
    /// `<|user|> … <|end|>`: Phi 3 and later.
    Phi3,
    /// `[INST] … [/INST]`: Mistral. The system's message goes before the first of the user.
    Mistral,
    /// `[INST] <<SYS>> … <</SYS>> … [/INST]`: Llama 2 chat.
    Llama2,
    /// `user: …` on a line of its own: for models that learned no format. Such a model has no token
    /// that ends an answer, so stop at a line that begins with `user:`.
    Plain,
}

impl Builtin {
    /// The format of a vocabulary, judged by its tokens; [`Plain`](Self::Plain) where none fits.
    /// Llama 2 has no tokens of its own, so the name in `general.name` decides.
    pub(super) fn for_vocabulary(metadata: &Metadata, tokens: &SpecialTokens) -> Result<Self> {
        const MARKS: [(&str, Builtin); 5] = [
            ("<|im_start|>", Builtin::ChatMl),
            ("<|start_header_id|>", Builtin::Llama3),
            ("<start_of_turn>", Builtin::Gemma),
            ("<|assistant|>", Builtin::Phi3),
            ("[INST]", Builtin::Mistral),
        ];
        if let Some((_, format)) = MARKS.iter().find(|(mark, _)| tokens.contains(mark)) {
            return Ok(*format);
        }
        // Some files call these tokens user-defined, so search the whole vocabulary.
        if let Some(all) = metadata.strings("tokenizer.ggml.tokens")? {
            let found = all.iter().filter_map(|text| MARKS.iter().position(|(mark, _)| *mark == text)).min();
            if let Some((_, format)) = found.and_then(|found| MARKS.get(found)) {
                return Ok(*format);
            }
        }
        let name = metadata.str("general.name")?.unwrap_or_default().to_lowercase().replace([' ', '_'], "-");
        let is_llama2 = (name.contains("llama-2") || name.contains("llama2")) && name.contains("chat");
        Ok(if is_llama2 { Self::Llama2 } else { Self::Plain })
    }

    /// The template, in the language of chat templates.
    pub(super) fn source(self) -> &'static str {
        match self {
            Self::ChatMl => CHATML,
            Self::Llama3 => LLAMA3,
            Self::Gemma => GEMMA,
            Self::Phi3 => PHI3,
            Self::Mistral => MISTRAL,
            Self::Llama2 => LLAMA2,
            Self::Plain => PLAIN,
        }
    }
}

const CHATML: &str = "\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const LLAMA3: &str = "\
{{ bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content|trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/// Defines `system` and `turns`: the system's text, and the other messages.
macro_rules! system_and_turns {
    ($rest:literal) => {
        concat!(
            "{%- set system = '' %}{% set turns = messages %}\
             {%- if messages and messages[0].role == 'system' %}\
             {%- set system = messages[0].content|trim %}{% set turns = messages[1:] %}\
             {%- endif %}",
            $rest
        )
    };
}

const GEMMA: &str = system_and_turns!(
    "{{ bos_token }}
{%- for message in turns %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- system + '\\n\\n' if loop.first and system else '' }}
{{- message.content|trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
);

const PHI3: &str = "\
{% for message in messages %}
{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

const MISTRAL: &str = system_and_turns!(
    "{{ bos_token }}
{%- for message in turns %}
{%- if message.role == 'assistant' %}{{ ' ' + message.content|trim + eos_token }}
{%- else %}
{{- '[INST] ' + (system + '\\n\\n' if loop.first and system else '') + message.content|trim + ' [/INST]' }}
{%- endif %}
{%- endfor %}"
);

const LLAMA2: &str = system_and_turns!(
    "{%- for message in turns %}
{%- if message.role == 'assistant' %}{{ ' ' + message.content|trim + ' ' + eos_token }}
{%- else %}
{{- bos_token + '[INST] ' }}
{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '' }}
{{- message.content|trim + ' [/INST]' }}
{%- endif %}
{%- endfor %}"
);

const PLAIN: &str = "\
{{ bos_token }}
{%- for message in messages %}
{{- message.role + ': ' + message.content|trim + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";
