//! Any bytes as a template, with a conversation made of the input: an error or a prompt in bounded time, memory and stack,
//! in which nothing that the conversation says is read as a control token.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wavelm_fuzz::on_small_stack(|| wavelm_fuzz::template_render(bytes)));
