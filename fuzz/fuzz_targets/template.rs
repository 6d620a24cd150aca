//! Any template and conversation: an error or a prompt, in bounded time and memory, in which nothing that the
//! conversation says is read as a control token.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavelm::chat::{Builtin, ChatOptions, ChatTemplate, Message, SpecialTokens};

const CONTROL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<s>", "[INST]"];

fuzz_target!(|input: (&str, &str, &str, bool)| {
    let (source, first, second, known) = input;
    let tokens = || SpecialTokens::new().bos("<s>").control(CONTROL);
    let template =
        if known { ChatTemplate::builtin(Builtin::ChatMl, tokens()) } else { ChatTemplate::parse(source, tokens()) };
    let Ok(template) = template else { return };
    let messages = [Message::system(second), Message::user(first), Message::assistant(second), Message::user(second)];
    for messages in [&messages[1..2], &messages] {
        let Ok(prompt) = template.render(messages, &ChatOptions::new()) else { continue };
        let text: String = prompt.segments().iter().map(|s| s.text.as_str()).collect();
        assert_eq!(text, prompt.text());
        assert!(prompt.segments().iter().all(|s| !s.text.is_empty()));
        assert!(prompt.segments().windows(2).all(|s| s[0].parse_special != s[1].parse_special));
        if known {
            // This template writes two control tokens for each message and one to begin the answer. Whatever the
            // messages say, no more are found.
            let found: usize = prompt
                .segments()
                .iter()
                .filter(|s| s.parse_special)
                .map(|s| CONTROL.iter().map(|c| s.text.matches(c).count()).sum::<usize>())
                .sum();
            assert_eq!(found, 2 * messages.len() + 1, "{prompt:?}");
        }
    }
});
