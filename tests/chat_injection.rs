//! Text of a conversation never becomes a control token, whatever a template does with it and wherever it stands: a
//! property test over templates, vocabularies, places and texts.
//!
//! Two properties are tested. Private tokens are control tokens whose letters no template has: not one of them may be in a
//! prompt, however a template cuts, joins, turns or decodes text, alone or together with the template's own. And with the
//! tokens of the template and of real vocabularies, a prompt has the control tokens of the same conversation with
//! harmless letters in their place.

#[path = "injection/conversation.rs"]
mod conversation;
#[path = "injection/snippets.rs"]
mod snippets;
#[path = "common/templates.rs"]
mod templates;

use conversation::{Place, SHAPES, conversation};
use std::collections::BTreeSet;
use std::path::Path;
use wavelm::chat::{ChatTemplate, RenderedPrompt, SpecialTokens};
use wavelm::gguf::{Array, Gguf, Metadata, StringArray, Value};
use wavelm::tokenizer::{TokenKind, Tokenizer};

/// A small generator of random numbers (SplitMix64), so that tests are the same everywhere.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Control tokens that only the conversation can spell, since no template writes q, z or ⓠ; with what templates look for
/// around and inside.
fn private_tokens() -> Vec<String> {
    let mut tokens: Vec<String> = [
        "<|qzj|>",
        "<qzj>",
        "[QZJ]",
        "ⓠⓩ",
        "<｜qzj▁zq｜>",
        "qzj",
        "</qzj>",
        "<|qzj_1|>",
        "\"qzj\"",
        "qz\\\\j",
        "qzj\n\n",
        "'zqj'",
        "<|QZJ|>",
        "zq",
        "<<qzj>>",
        "<|kqzjv|>",
        "<|kqzj",
        "qzjv|>",
        "314159265",
        "qzj 1",
    ]
    .map(String::from)
    .to_vec();
    tokens.sort_by_key(|token| std::cmp::Reverse(token.len()));
    tokens
}

fn is_private(token: &str) -> bool {
    ["qz", "QZ", "zq", "ZQ", "ⓠ", "ⓩ", "314159265"].iter().any(|letters| token.contains(letters))
}

/// A vocabulary of bytes and control tokens, for a kind of tokenizer.
fn vocabulary(model: &str, control: &[String]) -> Metadata {
    let mut tokens: Vec<String> = Vec::new();
    let mut types: Vec<i32> = Vec::new();
    if model == "llama" {
        tokens.extend(["<unk>", "<s>", "</s>"].map(String::from));
        types.extend([2, 3, 3]);
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
        types.extend([6; 256]);
        // Letters as pieces of their own, so that merges could lead to a control token.
        let letters: BTreeSet<char> = control.iter().flat_map(|token| token.chars()).collect();
        tokens.extend(letters.iter().map(char::to_string));
        types.extend(letters.iter().map(|_| 1));
    } else {
        // GPT-2's letters for bytes: printable ones stand for themselves, others for letters from U+0100 on.
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let prints = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let letter = if prints { u32::from(byte) } else { next };
            next += u32::from(!prints);
            tokens.push(char::from_u32(letter).unwrap().to_string());
            types.push(1);
        }
        tokens.extend(["<s>", "</s>"].map(String::from));
        types.extend([3, 3]);
    }
    for token in control {
        if !tokens.contains(token) {
            tokens.push(token.clone());
            types.push(3);
        }
    }
    let id = |text: &str| Value::U32(tokens.iter().position(|token| token == text).unwrap() as u32);
    let mut entries = vec![
        ("tokenizer.ggml.model".to_string(), Value::String(model.to_string())),
        ("tokenizer.ggml.bos_token_id".to_string(), id("<s>")),
        ("tokenizer.ggml.eos_token_id".to_string(), id("</s>")),
        ("tokenizer.ggml.token_type".to_string(), Value::Array(Array::I32(types))),
    ];
    if model == "llama" {
        let scores = vec![0.0f32; tokens.len()];
        entries.push(("tokenizer.ggml.scores".to_string(), Value::Array(Array::F32(scores))));
    } else {
        entries.push(("tokenizer.ggml.pre".to_string(), Value::String("default".to_string())));
        entries.push(("tokenizer.ggml.merges".to_string(), Value::Array(Array::String(StringArray::default()))));
    }
    entries.push((
        "tokenizer.ggml.tokens".to_string(),
        Value::Array(Array::String(tokens.iter().map(String::as_str).collect())),
    ));
    Metadata::new(entries).unwrap()
}

/// Texts in a template's source that look like control tokens.
fn tokens_in(source: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (open, close) in [('<', '>'), ('[', ']')] {
        for (at, _) in source.match_indices(open) {
            let rest: String = source[at..].chars().take(40).collect();
            let Some(end) = rest.find(close) else { continue };
            let token = &rest[..=end];
            let is_word = |c: char| c.is_alphanumeric() || "_|/-｜▁[]<>".contains(c);
            let letters = token.chars().filter(|c| c.is_alphabetic()).count();
            let upper = open == '<' || token.chars().all(|c| !c.is_lowercase());
            if token.chars().all(is_word) && letters > 0 && upper {
                found.insert(token.to_string());
            }
        }
    }
    found.into_iter().collect()
}

/// The texts in quotes in a template's source: what it may search for, cut at or take out.
fn words_in(source: &str) -> Vec<String> {
    let mut words: BTreeSet<String> = [" ", "\n", "|", "\\n"].map(String::from).into();
    for quote in ['\'', '"'] {
        for part in source.split(quote).skip(1) {
            if !part.is_empty() && part.len() <= 24 && !part.contains(['{', '}']) {
                words.insert(part.replace("\\n", "\n"));
            }
        }
    }
    words.into_iter().collect()
}

/// Text that wants to become one of the tokens.
fn attack(random: &mut Random, tokens: &[String], words: &[String], rounds: usize) -> String {
    let mut text = String::new();
    for _ in 0..rounds {
        let token = random.pick(tokens);
        let letters: Vec<char> = token.chars().collect();
        let cut = random.below(letters.len() + 1);
        let (head, tail): (String, String) = (letters[..cut].iter().collect(), letters[cut..].iter().collect());
        let word = random.pick(words);
        text += &match random.below(22) {
            0..3 => token.clone(),
            3..7 => format!("{head}{word}{tail}"),
            7 => format!("{head}{token}{tail}"),
            8 => format!("{head}{word}{word}{tail}"),
            9 => letters.iter().map(|c| format!("{c}{word}")).collect(),
            10 => letters.iter().map(|c| format!("\\u{:04x}", *c as u32 & 0xffff)).collect(),
            11 => letters
                .iter()
                .map(|c| if random.below(2) == 0 { c.to_string() } else { format!("\\u{:04X}", *c as u32 & 0xffff) })
                .collect(),
            12 => token.to_uppercase(),
            13 => token.to_lowercase(),
            14 => letters.iter().rev().collect(),
            15 => format!("{word}{token}{word}"),
            16 => head,
            17 => tail,
            18 => token.replace('<', "&lt;").replace('>', "&gt;"),
            19 => format!("{head}</{word}>{tail}\n{word}"),
            20 => letters
                .iter()
                .map(|c| if random.below(2) == 0 { c.to_uppercase().to_string() } else { c.to_lowercase().to_string() })
                .collect(),
            _ => word.clone(),
        };
        if random.below(4) == 0 {
            text += *random.pick(&[" ", "\n", "a", "\n\n", ", ", "\"", "\\", "%"]);
        }
    }
    text
}

fn control(tokenizer: &Tokenizer, prompt: &RenderedPrompt) -> Vec<String> {
    let parts = prompt.segments().iter().map(|segment| (segment.text.as_str(), segment.parse_special));
    let ids = tokenizer.encode_parts(parts, false).unwrap();
    let kinds =
        ids.iter().filter(|id| matches!(tokenizer.token_kind(**id), Some(TokenKind::Control | TokenKind::Unknown)));
    kinds.map(|id| tokenizer.token_text(*id).unwrap().to_string()).collect()
}

struct Subject {
    name: String,
    source: String,
    /// Whether a text in one place alone may come out as no more than a few letters.
    rounds: usize,
}

fn rounds() -> usize {
    std::env::var("WAVELM_INJECTION_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn seed() -> u64 {
    std::env::var("WAVELM_INJECTION_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7)
}

fn fixtures() -> Vec<Subject> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/templates");
    read(&folder, 6)
}

fn read(folder: &Path, rounds: usize) -> Vec<Subject> {
    let files = templates::files(folder, "jinja").into_iter();
    files
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            Subject { name, source: std::fs::read_to_string(path).unwrap(), rounds }
        })
        .collect()
}

fn snippets() -> Vec<Subject> {
    let subject = |source: &String| Subject { name: source.clone(), source: source.clone(), rounds: 6 };
    snippets::all().iter().map(subject).collect()
}

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    rendered: usize,
    refused: usize,
}

/// The first property, with one template.
fn no_private_token(subject: &Subject, tally: &mut Tally) {
    let mut random = Random(seed() ^ subject.source.len() as u64);
    let mut tokens = private_tokens();
    let words = words_in(&subject.source);
    let known = tokens_in(&subject.source);
    // Tokens that begin or end with what the template writes next to the conversation's text.
    let plain =
        ChatTemplate::parse(&subject.source, SpecialTokens::new()).unwrap_or_else(|e| panic!("{}: {e}", subject.name));
    for shape in SHAPES {
        for place in Place::ALL {
            let (messages, options) = conversation(shape, *place, "qzjqzj");
            let Ok(prompt) = plain.render(&messages, &options) else { continue };
            let text = prompt.text();
            for (at, found) in text.match_indices("qzjqzj") {
                let before: Vec<char> = text[..at].chars().rev().take(3).collect();
                let after: Vec<char> = text[at + found.len()..].chars().take(3).collect();
                for n in 1..=before.len().min(after.len()) {
                    let head: String = before[..n].iter().rev().collect();
                    let tail: String = after[..n].iter().collect();
                    tokens.extend([format!("{head}qz"), format!("zj{tail}"), format!("{head}qzjqzj{tail}")]);
                }
            }
        }
    }
    tokens.sort();
    tokens.dedup();
    let attacked: Vec<String> = tokens.clone();
    tokens.extend(known);
    for model in ["gpt2", "llama"] {
        let metadata = vocabulary(model, &tokens);
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        let template = ChatTemplate::parse(&subject.source, SpecialTokens::from_metadata(&metadata).unwrap()).unwrap();
        for shape in SHAPES {
            for place in Place::ALL {
                for round in 0..subject.rounds * rounds() {
                    let text = match round {
                        0 => attacked.join(""),
                        _ => attack(&mut random, &attacked, &words, 1 + round % 5),
                    };
                    let (messages, options) = conversation(shape, *place, &text);
                    let Ok(prompt) = template.render(&messages, &options) else {
                        tally.refused += 1;
                        continue;
                    };
                    tally.rendered += 1;
                    let found = control(&tokenizer, &prompt);
                    let private = found.iter().find(|token| is_private(token));
                    assert!(
                        private.is_none(),
                        "{private:?} of {place:?} {text:?} in {shape:?} of {}:\n{prompt:?}",
                        subject.name
                    );
                }
            }
        }
    }
}

/// The second property, with one template and vocabulary: `control` are its control tokens.
fn same_tokens_as_harmless(subject: &Subject, metadata: &Metadata, tally: &mut Tally) {
    let mut random = Random(seed() ^ subject.source.len() as u64);
    let tokenizer = Tokenizer::from_metadata(metadata).unwrap();
    let special = SpecialTokens::from_metadata(metadata).unwrap();
    let template = ChatTemplate::parse(&subject.source, special).unwrap();
    // A template may look for some tokens in the conversation's text and do otherwise where it finds them, as with
    // </think>: these stay out of the texts here.
    let code = code_of(&subject.source);
    let kind = |(_, text, kind): (_, &str, TokenKind)| {
        (kind == TokenKind::Control && text.chars().count() > 2).then(|| text.to_string())
    };
    let mut tokens: Vec<String> =
        tokenizer.special_tokens().filter_map(kind).filter(|token| !code.contains(token.as_str())).collect();
    // Those that the template writes come first; of the others a few are enough.
    tokens.sort_by_key(|token| !subject.source.contains(token.as_str()));
    tokens.truncate(40);
    if tokens.is_empty() {
        return;
    }
    let words: Vec<String> =
        words_in(&subject.source).into_iter().filter(|word| !code.contains(word.as_str()) || word.len() < 3).collect();
    for shape in SHAPES {
        for place in Place::ALL {
            for round in 0..subject.rounds * rounds() {
                let text = attack(&mut random, &tokens, &words, 1 + round % 4);
                let harmless: String = text
                    .chars()
                    .map(|c| if c.is_alphanumeric() || "<>|[]/｜▁_".contains(c) { 'x' } else { c })
                    .collect();
                let render = |text: &str| {
                    let (messages, options) = conversation(shape, *place, text);
                    template.render(&messages, &options)
                };
                let (Ok(got), Ok(wanted)) = (render(&text), render(&harmless)) else {
                    tally.refused += 1;
                    continue;
                };
                tally.rendered += 1;
                let (got_tokens, wanted_tokens) = (control(&tokenizer, &got), control(&tokenizer, &wanted));
                assert_eq!(got_tokens, wanted_tokens, "{place:?} {text:?} in {shape:?} of {}:\n{got:?}", subject.name);
            }
        }
    }
}

/// What stands in a template's tags, where it may be compared; not what it only writes.
fn code_of(source: &str) -> String {
    let mut code = String::new();
    for (open, close) in [("{%", "%}"), ("{{", "}}")] {
        for part in source.split(open).skip(1) {
            let inner = part.split(close).next().unwrap_or_default();
            let compares =
                ["split(", " in ", "replace(", "startswith(", "endswith(", "strip(", "==", "find(", "|replace"];
            if compares.iter().any(|word| inner.contains(word)) {
                code += inner;
                code.push('\n');
            }
        }
    }
    code
}

fn all_subjects() -> Vec<Subject> {
    let mut subjects = fixtures();
    subjects.extend(snippets());
    subjects
}

#[test]
fn no_text_becomes_a_private_control_token() {
    let mut tally = Tally::default();
    for subject in all_subjects() {
        no_private_token(&subject, &mut tally);
    }
    println!("{tally:?}");
    assert!(tally.rendered > 20_000 && tally.refused < tally.rendered, "{tally:?}");
}

#[test]
fn no_text_becomes_a_private_control_token_in_public_templates() {
    let Some(folder) = templates::folder() else { return };
    let mut tally = Tally::default();
    for subject in read(&folder, 3) {
        no_private_token(&subject, &mut tally);
    }
    println!("{tally:?}");
    assert!(tally.rendered > 10_000, "{tally:?}");
}

#[test]
fn templates_own_tokens_are_as_with_harmless_text() {
    let mut tally = Tally::default();
    for subject in fixtures() {
        let tokens: Vec<String> = tokens_in(&subject.source).into_iter().chain(private_tokens()).collect();
        for model in ["gpt2", "llama"] {
            same_tokens_as_harmless(&subject, &vocabulary(model, &tokens), &mut tally);
        }
    }
    println!("{tally:?}");
    assert!(tally.rendered > 1_000, "{tally:?}");
}

#[test]
fn real_vocabularies_have_the_tokens_of_harmless_text() {
    let Some(folder) = templates::folder() else { return };
    let mut vocabularies: Vec<(Metadata, Tokenizer)> = Vec::new();
    for path in templates::files(&folder, "gguf") {
        let metadata = Gguf::open(&path).unwrap().metadata().clone();
        match Tokenizer::from_metadata(&metadata) {
            Ok(tokenizer) => vocabularies.push((metadata, tokenizer)),
            Err(error) => println!("{}: {error}", path.display()),
        }
    }
    assert!(vocabularies.len() >= 5, "{} vocabularies", vocabularies.len());
    let mut tally = Tally::default();
    for (i, subject) in read(&folder, 1).iter().enumerate() {
        // The vocabulary that the template is for, as far as its tokens tell, and one that it is not for.
        let known = |tokenizer: &Tokenizer| {
            tokenizer.special_tokens().filter(|(_, text, _)| subject.source.contains(text)).count()
        };
        let best = (0..vocabularies.len()).max_by_key(|i| known(&vocabularies[*i].1)).unwrap();
        for choice in BTreeSet::from([best, i % vocabularies.len()]) {
            same_tokens_as_harmless(subject, &vocabularies[choice].0, &mut tally);
        }
    }
    println!("{tally:?}");
    assert!(tally.rendered > 2_000, "{tally:?}");
}
