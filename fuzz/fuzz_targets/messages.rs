//! Any conversation with known templates: nothing that it says is read as a control token.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wavelm_fuzz::on_small_stack(|| wavelm_fuzz::messages(bytes)));
