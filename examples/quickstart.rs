//! The shortest program that streams an answer: `cargo run --release --example quickstart -- model.gguf`

use std::io::Write;
use wavelm::{Message, Model, Sampler};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: quickstart MODEL.gguf")?;
    let model = Model::load(path)?;
    let mut session = model.session()?;
    let prompt = model.chat_prompt(&[Message::user("Name three primes.")])?;
    for piece in session.generate(&prompt, &Sampler::default())?.take(64) {
        print!("{}", piece?.text());
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
