//! The vocabulary: token texts, kinds and roles, as the file gives them and llama.cpp completes
//! them.

use super::index::{Index, NONE, Strings};
use super::special::{Special, Trie};
use super::{TokenId, TokenKind, bytes_of_letters};
use crate::gguf::{Metadata, StringArray};
use crate::{Error, Result, memory};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";

/// U+2581, the space of SentencePiece.
const LOWER_BLOCK: char = '\u{2581}';

/// How normal tokens are written in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Spelling {
    /// Each byte is one of GPT-2's 256 letters.
    ByteLetters,
    /// UTF-8 with U+2581 for a space; single bytes are `<0x00>` to `<0xFF>`.
    LowerBlock,
}

/// The ids of tokens with a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecialIds {
    /// Beginning of a text.
    pub bos: Option<TokenId>,
    /// End of a text.
    pub eos: Option<TokenId>,
    /// End of a turn in a chat.
    pub eot: Option<TokenId>,
    /// End of a message that expects an answer from a tool.
    pub eom: Option<TokenId>,
    /// Anything that the vocabulary cannot spell.
    pub unk: Option<TokenId>,
    /// Between two texts.
    pub sep: Option<TokenId>,
    /// Fills up a batch.
    pub pad: Option<TokenId>,
    /// A masked token.
    pub mask: Option<TokenId>,
    /// Before the text that precedes a gap (fill in the middle).
    pub fim_prefix: Option<TokenId>,
    /// Before the text that follows a gap.
    pub fim_suffix: Option<TokenId>,
    /// Before the text that fills a gap.
    pub fim_middle: Option<TokenId>,
    /// Fills up a batch of gaps.
    pub fim_pad: Option<TokenId>,
    /// Before the name of a repository.
    pub fim_repo: Option<TokenId>,
    /// Between files of a repository.
    pub fim_separator: Option<TokenId>,
}

/// What a token is, besides its [`TokenKind`].
#[derive(Clone, Copy)]
struct Token {
    kind: TokenKind,
    /// A control token that is nevertheless part of the answer.
    visible: bool,
    /// Whether [`Vocab::find`] finds this token for its piece.
    findable: bool,
}

impl Token {
    fn new(kind: TokenKind, visible: bool) -> Self {
        Self { kind, visible, findable: false }
    }
}

/// All tokens.
pub(super) struct Vocab {
    /// The file's own texts; they are not copied.
    texts: StringArray,
    /// The bytes that each token stands for.
    pieces: Strings,
    tokens: Vec<Token>,
    /// From pieces to the tokens that plain text may become.
    index: Index,
    inside: BytePairs,
    special: Trie,
    special_list: Vec<TokenId>,
    pub(super) ids: SpecialIds,
    /// Tokens that end an answer, sorted.
    end_of_generation: Vec<TokenId>,
}

/// A set of pairs of bytes.
struct BytePairs(Box<[u64; 1024]>);

impl BytePairs {
    fn new() -> Self {
        Self(Box::new([0; 1024]))
    }

    /// Adds all neighbours in `bytes`.
    fn insert_all(&mut self, bytes: &[u8]) {
        for (&first, &second) in bytes.iter().zip(bytes.iter().skip(1)) {
            self.0[usize::from(first) * 4 + usize::from(second) / 64] |= 1 << (second % 64);
        }
    }

    #[inline]
    fn contains(&self, first: u8, second: u8) -> bool {
        self.0[usize::from(first) * 4 + usize::from(second) / 64] >> (second % 64) & 1 == 1
    }
}

impl Vocab {
    /// Reads the vocabulary. `defaults` are ids for roles that the file may leave out.
    pub(super) fn new(metadata: &Metadata, spelling: Spelling, defaults: SpecialIds) -> Result<Self> {
        let list = metadata.strings(TOKENS)?.ok_or_else(|| missing(TOKENS, "vocabulary"))?;
        let count = list.len();
        let bytes: usize = list.iter().map(str::len).sum();
        if count == 0 {
            return Err(Error::invalid_file(format!("{TOKENS} is empty: there is no vocabulary")));
        }
        if count >= NONE as usize || bytes >= u32::MAX as usize {
            return Err(Error::invalid_file(format!("{TOKENS} is too large: {count} tokens of {bytes} bytes in all")));
        }

        let mut tokens = memory::filled(count, Token::new(TokenKind::Normal, false), "the vocabulary")?;
        if let Some(types) = metadata.ints(TOKEN_TYPES)? {
            same_length(TOKEN_TYPES, types.len(), count)?;
            for (token, &number) in tokens.iter_mut().zip(&types) {
                token.kind = TokenKind::from_number(number);
            }
        }

        let mut vocab = Self {
            texts: list.clone(),
            pieces: Strings::with_capacity(count, bytes)?,
            tokens,
            index: Index::with_capacity(count)?,
            inside: BytePairs::new(),
            special: Trie::default(),
            special_list: Vec::new(),
            ids: defaults,
            end_of_generation: Vec::new(),
        };
        vocab.read_ids(metadata)?;
        vocab.find_roles_by_text(list.iter())?;
        vocab.spell(list.iter(), spelling);
        vocab.collect_specials(metadata)?;
        Ok(vocab)
    }

    fn read_ids(&mut self, metadata: &Metadata) -> Result<()> {
        let count = self.len();
        let ids = &mut self.ids;
        for default in [&mut ids.bos, &mut ids.eos, &mut ids.unk] {
            *default = default.filter(|&id| (id as usize) < count);
        }
        // Whether a wrong id is an error. Without these ids, text begins or ends in the wrong
        // place. Other ids are often wrong in files that otherwise work well, so a wrong one counts
        // as absent.
        let needed = true;
        for (key, id, needed) in [
            ("bos_token_id", &mut ids.bos, needed),
            ("eos_token_id", &mut ids.eos, needed),
            ("eot_token_id", &mut ids.eot, needed),
            ("eom_token_id", &mut ids.eom, needed),
            ("unknown_token_id", &mut ids.unk, needed),
            ("seperator_token_id", &mut ids.sep, !needed),
            ("padding_token_id", &mut ids.pad, !needed),
            ("mask_token_id", &mut ids.mask, !needed),
            // Keys of older files come first, so that the newer ones win.
            ("prefix_token_id", &mut ids.fim_prefix, !needed),
            ("suffix_token_id", &mut ids.fim_suffix, !needed),
            ("middle_token_id", &mut ids.fim_middle, !needed),
        ] {
            read_id(metadata, key, id, needed, count)?;
        }
        for (key, id) in [
            ("fim_pre_token_id", &mut ids.fim_prefix),
            ("fim_suf_token_id", &mut ids.fim_suffix),
            ("fim_mid_token_id", &mut ids.fim_middle),
            ("fim_pad_token_id", &mut ids.fim_pad),
            ("fim_rep_token_id", &mut ids.fim_repo),
            ("fim_sep_token_id", &mut ids.fim_separator),
        ] {
            read_id(metadata, key, id, !needed, count)?;
        }
        Ok(())
    }

    /// Finds roles by the tokens' texts, because files rarely say which tokens end a turn.
    fn find_roles_by_text<'a>(&mut self, texts: impl Iterator<Item = &'a str>) -> Result<()> {
        // The file's own ids for fill-in-the-middle take precedence over these texts.
        let mut by_text: [Option<(usize, TokenId)>; ROLES.len()] = Default::default();
        let mut ends = Vec::new();
        for (id, text) in texts.enumerate() {
            if !text.starts_with(['<', '[', '_', LOWER_BLOCK]) || text.len() > LONGEST_ROLE_TEXT {
                continue;
            }
            let id = id as TokenId;
            for (found, role) in by_text.iter_mut().zip(ROLES) {
                if let Some(rank) = role.iter().position(|known| *known == text)
                    && found.is_none_or(|(best, _)| rank < best)
                {
                    *found = Some((rank, id));
                }
            }
            if END_OF_GENERATION.contains(&text) {
                memory::push(&mut ends, id, END_TOKENS)?;
            }
            if HARMONY.contains(&text)
                && let Some(token) = self.tokens.get_mut(id as usize)
            {
                *token = Token::new(TokenKind::Control, true);
            }
        }
        let ids = &mut self.ids;
        let roles = [
            &mut ids.eot,
            &mut ids.eom,
            &mut ids.fim_prefix,
            &mut ids.fim_suffix,
            &mut ids.fim_middle,
            &mut ids.fim_pad,
            &mut ids.fim_repo,
            &mut ids.fim_separator,
        ];
        let mut control = memory::with_room(ends.len() + ROLES.len(), END_TOKENS)?;
        control.extend_from_slice(&ends);
        for (role, found) in roles.into_iter().zip(by_text) {
            if role.is_none()
                && let Some((_, id)) = found
            {
                *role = Some(id);
                control.push(id);
            }
        }
        for id in control {
            self.make_control(id);
        }
        let ids = &self.ids;
        memory::reserve(&mut ends, 6, END_TOKENS)?;
        ends.extend([ids.eos, ids.eot, ids.eom, ids.fim_pad, ids.fim_repo, ids.fim_separator].into_iter().flatten());
        ends.sort_unstable();
        ends.dedup();

        let end = |text: &str| ends.iter().copied().find(|&id| self.texts.get(id as usize) == Some(text));
        let has = |text: &str| end(text).is_some();
        // In OpenAI's harmony format and in Solar's, <|end|> ends a message but not the answer.
        let messages = (has("<|call|>") || has("<|calls|>")) && (has("<|return|>") || has("<|flush|>"));
        let message_end = if messages { end("<|end|>") } else { None };
        // In Gemma 4 and PLaMo, </s> is an ordinary token.
        let ordinary = if has("<|tool_response>") || has("<|plamo:eos|>") { end("</s>") } else { None };
        ends.retain(|&id| Some(id) != message_end && Some(id) != ordinary);
        for (id, kind) in [(message_end, TokenKind::Control), (ordinary, TokenKind::Normal)] {
            if let Some(token) = id.and_then(|id| self.tokens.get_mut(id as usize)) {
                *token = Token::new(kind, true);
            }
        }
        self.end_of_generation = ends;
        Ok(())
    }

    fn make_control(&mut self, id: TokenId) {
        if let Some(token) = self.tokens.get_mut(id as usize)
            && token.kind != TokenKind::Control
        {
            log::debug!("token {id} looks like a control token and is made one");
            token.kind = TokenKind::Control;
        }
    }

    /// Fills in the bytes of each token, and the index of the tokens that plain text may become.
    fn spell<'a>(&mut self, texts: impl Iterator<Item = &'a str>, spelling: Spelling) {
        for (id, text) in (0..).zip(texts) {
            let Some(token) = self.tokens.get_mut(id as usize) else { break };
            // Whether encoding plain text may find the token by its piece.
            let mut findable = !text.is_empty();
            self.pieces.push_with(|out| match (token.kind, spelling) {
                (TokenKind::Byte, _) if byte_of(text).is_some() => {
                    out.extend(byte_of(text));
                    findable = false;
                }
                (TokenKind::Control | TokenKind::Unknown, _) => {
                    out.extend_from_slice(text.as_bytes());
                    findable = false;
                }
                (TokenKind::UserDefined, _) => {
                    out.extend_from_slice(text.as_bytes());
                    findable &= match spelling {
                        Spelling::ByteLetters => text.bytes().all(|byte| byte.is_ascii_graphic()),
                        Spelling::LowerBlock => !text.contains([' ', LOWER_BLOCK]),
                    };
                }
                (_, Spelling::ByteLetters) => {
                    let start = out.len();
                    if !bytes_of_letters(text, out) {
                        out.truncate(start);
                        out.extend_from_slice(text.as_bytes());
                        findable = false;
                    }
                }
                (_, Spelling::LowerBlock) => {
                    // Lookups never see a literal space, because text has U+2581 in its place.
                    findable &= !text.contains(' ');
                    for (i, part) in text.split(LOWER_BLOCK).enumerate() {
                        if i > 0 {
                            out.push(b' ');
                        }
                        out.extend_from_slice(part.as_bytes());
                    }
                }
            });
            if findable {
                token.findable = true;
                self.inside.insert_all(self.pieces.get(id).unwrap_or_default());
                let replaced = self.index.insert(&self.pieces, id);
                if let Some(other) = self.tokens.get_mut(replaced as usize) {
                    other.findable = false;
                }
            }
        }
    }

    fn collect_specials(&mut self, metadata: &Metadata) -> Result<()> {
        let strip = Strip::of(metadata)?;
        let is_special = |id: &u32| self.kind(*id).is_some_and(TokenKind::is_special);
        self.special_list = memory::collected((0..self.len() as u32).filter(is_special), "the special tokens")?;
        self.special = Trie::new(self.special_list.iter().map(|&id| {
            let text = self.texts.get(id as usize).unwrap_or_default().as_bytes();
            let anywhere = self.kind(id) == Some(TokenKind::UserDefined);
            Special { text, id, anywhere, strip_left: strip.left(text), strip_right: strip.right(text) }
        }))?;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn kind(&self, id: TokenId) -> Option<TokenKind> {
        self.tokens.get(id as usize).map(|token| token.kind)
    }

    pub(super) fn text(&self, id: TokenId) -> Option<&str> {
        self.texts.get(id as usize)
    }

    /// The bytes that the token stands for, whatever its kind.
    pub(super) fn piece(&self, id: TokenId) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// The bytes that the token adds to a text: none for control tokens unless `special`, and none
    /// for tokens without meaning.
    pub(super) fn rendered(&self, id: TokenId, special: bool) -> &[u8] {
        let Some(token) = self.tokens.get(id as usize) else { return &[] };
        let shown = match token.kind {
            TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte => true,
            TokenKind::Control | TokenKind::Unknown => special || token.visible,
            TokenKind::Unused => false,
        };
        if shown { self.pieces.get(id).unwrap_or_default() } else { &[] }
    }

    /// The token that plain text of these bytes may become, or [`NONE`].
    #[inline]
    pub(super) fn find(&self, piece: &[u8]) -> u32 {
        self.index.get(&self.pieces, piece)
    }

    /// Whether [`find`](Self::find) finds this token for `piece`; faster than searching.
    #[inline]
    pub(super) fn is_found_for(&self, piece: &[u8], id: TokenId) -> bool {
        self.tokens.get(id as usize).is_some_and(|token| token.findable) && self.pieces.get(id) == Some(piece)
    }

    /// Whether any token that [`find`](Self::find) may find has these two bytes next to each other.
    /// If none has, no merge ever reaches across the two bytes, so text can be cut between them.
    #[inline]
    pub(super) fn joins(&self, first: u8, second: u8) -> bool {
        self.inside.contains(first, second)
    }

    /// The special tokens to look for in text.
    pub(super) fn specials(&self) -> &Trie {
        &self.special
    }

    pub(super) fn special_list(&self) -> &[TokenId] {
        &self.special_list
    }

    pub(super) fn is_end_of_generation(&self, id: TokenId) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    pub(super) fn end_of_generation(&self) -> &[TokenId] {
        &self.end_of_generation
    }
}

fn read_id(metadata: &Metadata, key: &str, id: &mut Option<TokenId>, needed: bool, count: usize) -> Result<()> {
    let key = format!("tokenizer.ggml.{key}");
    // A few files store -1 for "none".
    let Some(value) = metadata.i64(&key)? else { return Ok(()) };
    match u32::try_from(value) {
        Ok(value) if (value as usize) < count => *id = Some(value),
        _ if needed && value != -1 && value != i64::from(u32::MAX) => {
            return Err(Error::invalid_file(format!("{key} is {value}, but there are only {count} tokens")));
        }
        _ => log::warn!("{key} is {value}, but there are only {count} tokens; it is ignored"),
    }
    Ok(())
}

/// The byte of a token like `<0x0A>`.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

pub(super) fn missing(key: &str, what: &str) -> Error {
    Error::invalid_file(format!("the key {key} is missing: the file has no {what}"))
}

pub(super) fn same_length(key: &str, length: usize, tokens: usize) -> Result<()> {
    if length == tokens {
        return Ok(());
    }
    Err(Error::invalid_file(format!("{key} has {length} elements, but {TOKENS} has {tokens}")))
}

/// Which special tokens take the white space around them. Files do not say so; the models are those
/// that llama.cpp knows.
enum Strip {
    Nothing,
    LeftOf(&'static str),
    /// Phi-3: white space after most special tokens.
    Phi3,
}

impl Strip {
    fn of(metadata: &Metadata) -> Result<Self> {
        let name = metadata.str("general.name")?.unwrap_or_default();
        let named = |part: &str| name.as_bytes().windows(part.len()).any(|w| w.eq_ignore_ascii_case(part.as_bytes()));
        let pre = metadata.str("tokenizer.ggml.pre")?.unwrap_or_default();
        Ok(if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|known| pre.contains(known)) {
            Self::LeftOf("<mask>")
        } else if named("phi-3") || named("phi3") {
            Self::Phi3
        } else if named("modern-bert") {
            Self::LeftOf("[MASK]")
        } else {
            Self::Nothing
        })
    }

    fn left(&self, text: &[u8]) -> bool {
        matches!(self, Self::LeftOf(token) if token.as_bytes() == text)
    }

    fn right(&self, text: &[u8]) -> bool {
        matches!(self, Self::Phi3) && !matches!(text, b"<unk>" | b"<s>" | b"<|endoftext|>")
    }
}

/// Texts of tokens for each role, the most telling first. The roles: end of turn, end of message,
/// fill-in-the-middle prefix, suffix, middle, padding, repository and file separator.
const ROLES: [&[&str]; 8] = [
    &[
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<|endoftext|>",
        "<|end_of_text|>",
    ],
    &["<|eom_id|>"],
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Texts of tokens that end an answer.
const END_OF_GENERATION: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Control tokens of OpenAI's harmony format. They are shown because they give an answer its
/// structure.
const HARMONY: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// What the memory is for, in texts of errors.
const END_TOKENS: &str = "the tokens that end an answer";

/// An upper bound for the length of texts in [`ROLES`].
const LONGEST_ROLE_TEXT: usize = 32;

/// Whether a vocabulary may treat a token with this text as a control token, whatever kind the file
/// gives.
pub(crate) fn may_be_control(text: &str) -> bool {
    text.len() <= LONGEST_ROLE_TEXT
        && (END_OF_GENERATION.contains(&text)
            || HARMONY.contains(&text)
            || ROLES.iter().any(|role| role.contains(&text)))
}
