//! From tokens back to text, piece by piece.

use super::{TokenId, Tokenizer};
use crate::{Result, memory};

/// Turns tokens into text one by one, in whole characters only: the bytes of an incomplete
/// character wait for the tokens that complete it.
///
/// Made by [`Tokenizer::decoder`]. Bytes that are not UTF-8 come out as U+FFFD.
///
/// ```no_run
/// # fn main() -> wavelm::Result<()> {
/// # let gguf = wavelm::gguf::Gguf::open("model.gguf")?;
/// # let tokenizer = wavelm::tokenizer::Tokenizer::from_metadata(gguf.metadata())?;
/// # let tokens = [1];
/// let mut decoder = tokenizer.decoder();
/// for token in tokens {
///     print!("{}", decoder.push(token)?);
/// }
/// println!("{}", decoder.flush());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Decoder {
    tokenizer: Tokenizer,
    special: bool,
    /// Whether the space that [`Tokenizer::encode`] puts before a text is still to be removed.
    strip_space: bool,
    /// The bytes of an incomplete character, at most three.
    pending: Vec<u8>,
    /// The last piece.
    text: String,
}

impl Decoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        let strip_space = tokenizer.inner.add_space_prefix;
        Self { tokenizer, special: false, strip_space, pending: Vec::new(), text: String::new() }
    }

    /// Whether control tokens such as `<|im_end|>` appear in the text; by default they do not.
    pub fn special(mut self, special: bool) -> Self {
        self.special = special;
        self
    }

    /// For tokens that continue a text instead of starting one: keeps a leading space.
    pub fn continuing(mut self) -> Self {
        self.strip_space = false;
        self
    }

    /// Takes the next token, and returns what it adds to the text: whole characters, maybe none. A
    /// token that is not in the vocabulary adds nothing.
    ///
    /// # Errors
    /// `OutOfMemory`: a file may have tokens of any length. The decoder does not take the token
    /// then.
    pub fn push(&mut self, token: TokenId) -> Result<&str> {
        self.text.clear();
        let mut bytes = self.tokenizer.inner.vocab.rendered(token, self.special);
        // In the worst case each byte becomes U+FFFD.
        let most = (self.pending.len() + bytes.len()) * char::REPLACEMENT_CHARACTER.len_utf8();
        memory::reserve_text(&mut self.text, most, TEXT)?;
        memory::reserve(&mut self.pending, bytes.len(), TEXT)?;
        if self.strip_space && !bytes.is_empty() {
            self.strip_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        if self.pending.is_empty() {
            let rest = push_whole(bytes, &mut self.text);
            self.pending.extend_from_slice(rest);
        } else {
            self.pending.extend_from_slice(bytes);
            let rest = push_whole(&self.pending, &mut self.text).len();
            self.pending.drain(..self.pending.len() - rest);
        }
        Ok(&self.text)
    }

    /// Ends the text: returns U+FFFD for an incomplete character, and nothing otherwise.
    pub fn flush(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }

    /// The bytes of an incomplete character, which wait for the rest.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }
}

/// What the memory is for, in texts of errors.
const TEXT: &str = "the text of a token";

/// Appends the characters of `bytes`, with U+FFFD for invalid UTF-8. Returns the bytes at the end
/// that may be the start of a character.
fn push_whole<'a>(bytes: &'a [u8], text: &mut String) -> &'a [u8] {
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return &[];
            }
            Err(error) => {
                let (valid, tail) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                let Some(length) = error.error_len() else { return tail };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = tail.get(length..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::push_whole;

    #[test]
    fn splits_off_an_incomplete_character() {
        for (bytes, text, rest) in [
            (&b"abc"[..], "abc", &b""[..]),
            (b"a\xE4\xB8", "a", b"\xE4\xB8"),
            (b"\xE4\xB8\xADx\xF0\x9F\x98", "中x", b"\xF0\x9F\x98"),
            (b"\xFFa\x80b\xE4c", "\u{FFFD}a\u{FFFD}b\u{FFFD}c", b""),
            (b"\xED\xA0\x80", "\u{FFFD}\u{FFFD}\u{FFFD}", b""),
        ] {
            let mut out = String::new();
            assert_eq!(push_whole(bytes, &mut out), rest);
            assert_eq!(out, text);
        }
    }
}
