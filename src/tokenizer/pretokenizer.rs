//! Pre-tokenizers: the expressions that split the text before byte-pair encoding, chosen by the
//! name in the file (`tokenizer.ggml.pre`).
//!
//! The expressions are llama.cpp's, even where they differ from the original tokenizer's, because
//! files are made for llama.cpp and compared with it. For example, it counts every letter outside
//! ASCII as both upper and lower case.

use super::scan::{self, Char, Contraction, Lead, Letters, Runs, Segment, Tail, Words};
use super::unicode::{Classes, LETTER, MARK, NUMBER, OTHER, PUNCTUATION, SPACE, SYMBOL};

/// One expression of a pre-tokenizer, applied to every segment that earlier expressions made.
enum Stage {
    Gpt2,
    Words(Words),
    Runs(Runs),
    Find(for<'a> fn(Segment<'a>, usize) -> usize),
    Split(for<'a> fn(Segment<'a>, &mut dyn FnMut(Segment<'a>))),
}

/// A pre-tokenizer and the settings that come with its name.
pub(super) struct PreTokenizer {
    stages: &'static [Stage],
    /// A segment that is itself a token is not merged.
    pub(super) ignore_merges: bool,
    /// BOS is added unless the file says otherwise.
    pub(super) add_bos: bool,
    /// The vocabulary writes spaces as U+2581, and text as plain UTF-8 instead of GPT-2's letters
    /// for bytes.
    pub(super) plain_text: bool,
    /// A run of newlines that is itself a token is not merged.
    pub(super) whole_newlines: bool,
}

impl PreTokenizer {
    /// llama.cpp's pre-tokenizer for `name`, or `None` if there is none.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        let plain =
            |stages| Self { stages, ignore_merges: false, add_bos: false, plain_text: false, whole_newlines: false };
        let whole_words = |stages| Self { ignore_merges: true, ..plain(stages) };
        Some(match name {
            "default" => plain(&DEFAULT),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "jina-v5-nano" => Self { add_bos: true, ..whole_words(&LLAMA3) },
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => plain(&LLAMA3),
            "glm4" | "glm5" => whole_words(&LLAMA3),
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "a.x-4.0"
            | "mellum" | "modern-bert" | "jina-v1-en" | "jina-v2-code" | "roberta-bpe" | "mpt" | "olmo" | "jais"
            | "exaone4" | "trillion" | "granite-docling" => plain(&GPT2),
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                plain(&STARCODER)
            }
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "hunyuan" | "solar-open" | "megrez"
            | "grok-2" | "bailingmoe" | "bailingmoe2" | "llada-moe" => plain(&QWEN2),
            "qwen35" => plain(&QWEN35),
            "ufakzeka" => plain(&UFAKZEKA),
            "laguna" => plain(&LAGUNA),
            "seed-coder" => plain(&SEED_CODER),
            "exaone-moe" => plain(&EXAONE_MOE),
            "minicpm5" => whole_words(&MINICPM5),
            "jais-2" => plain(&JAIS2),
            "falcon" => plain(&FALCON),
            "deepseek-llm" => plain(&DEEPSEEK_LLM),
            "deepseek-coder" => plain(&DEEPSEEK_CODER),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => plain(&DEEPSEEK_V3),
            "spark2_5" => plain(&SPARK),
            "youtu" => whole_words(&YOUTU),
            "tekken" => Self { add_bos: true, ..whole_words(&TEKKEN) },
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => plain(&GPT4O),
            "granite-embed-multi-97m" => whole_words(&GRANITE_MULTILINGUAL),
            "tiny_aya" | "cohere2moe" => plain(&TINY_AYA),
            "kimi-k2" => plain(&KIMI_K2),
            "afmoe" => plain(&AFMOE),
            "superbpe" => plain(&SUPERBPE),
            "poro-chat" | "bloom" | "gpt3-finnish" => plain(&BLOOM),
            "viking" => plain(&VIKING),
            "chameleon" => Self { add_bos: true, ..plain(&CHAMELEON) },
            "gemma4" | "granite-embed-multi-311m" => {
                Self { add_bos: true, plain_text: true, whole_newlines: true, ..plain(&LINES) }
            }
            "sarvam-moe" => Self { plain_text: true, ..plain(&LINES) },
            _ => return None,
        })
    }

    /// Calls `emit` with the segments of `text` (valid UTF-8) in order. Together they make up the
    /// text.
    pub(super) fn split<'a>(&self, text: &'a [u8], emit: &mut dyn FnMut(&'a [u8])) {
        split(self.stages, Segment::new(text, Classes::get()), emit);
    }
}

fn split<'a>(stages: &[Stage], segment: Segment<'a>, emit: &mut dyn FnMut(&'a [u8])) {
    let Some((stage, rest)) = stages.split_first() else {
        return emit(segment.text);
    };
    let next: &mut dyn FnMut(Segment<'a>) = &mut |part| split(rest, part, emit);
    match stage {
        Stage::Gpt2 => segment.split(|pos| segment.gpt2(pos), next),
        Stage::Words(words) => words.split(segment, next),
        Stage::Runs(runs) => segment.split(|pos| runs.find(segment, pos), next),
        Stage::Find(find) => segment.split(|pos| find(segment, pos), next),
        Stage::Split(split) => split(segment, next),
    }
}

static GPT2: [Stage; 1] = [Stage::Gpt2];
static STARCODER: [Stage; 2] = [NUMBERS_1, Stage::Gpt2];
static FALCON: [Stage; 3] = [runs(|c| is_falcon_symbol(c) || c.code == '`' as u32), Stage::Gpt2, THREE_DIGITS];
static DEFAULT: [Stage; 4] = [runs(is_falcon_symbol), Stage::Gpt2, runs(|c| c.is(NUMBER)), THREE_DIGITS];
static CHAMELEON: [Stage; 6] = [
    Stage::Find(scan::sentinel),
    Stage::Find(scan::image_token),
    Stage::Find(scan::indentation),
    NUMBERS_1,
    each(|c| c.is(PUNCTUATION) || is_ascii_punctuation(c)),
    Stage::Gpt2,
];
static LLAMA3: [Stage; 1] = [Stage::Words(Words::LLAMA3)];
static QWEN2: [Stage; 1] = [Stage::Words(QWEN2_WORDS)];
static QWEN35: [Stage; 1] = [Stage::Words(Words {
    letters: Letters::Run(LETTER | MARK),
    punctuation: OTHER | PUNCTUATION | SYMBOL,
    ..QWEN2_WORDS
})];
static UFAKZEKA: [Stage; 1] = [Stage::Words(Words { contraction: Contraction::Never, ..QWEN2_WORDS })];
static LAGUNA: [Stage; 2] = [Stage::Split(scan::lines), Stage::Words(QWEN2_WORDS)];
static SEED_CODER: [Stage; 1] = [Stage::Words(Words { tail: Tail::Nothing, ..QWEN2_WORDS })];
static EXAONE_MOE: [Stage; 1] =
    [Stage::Words(Words { letters: Letters::Spaced, tail: Tail::OneNewlineOrSlash, ..QWEN2_WORDS })];
static MINICPM5: [Stage; 2] = [NUMBERS_3, Stage::Words(Words::LLAMA3)];
static JAIS2: [Stage; 1] = [Stage::Words(Words { powers_of_two: true, ..Words::LLAMA3 })];
static TEKKEN: [Stage; 1] = [Stage::Words(Words { contraction: Contraction::Never, digits: 1, ..GPT4O_WORDS })];
static GPT4O: [Stage; 1] = [Stage::Words(GPT4O_WORDS)];
static GRANITE_MULTILINGUAL: [Stage; 1] =
    [Stage::Words(Words { letters: Letters::Cased(LETTER | MARK), ..GPT4O_WORDS })];
static TINY_AYA: [Stage; 2] =
    [Stage::Split(scan::number_groups), Stage::Words(Words { letters: Letters::Run(LETTER | MARK), ..GPT4O_WORDS })];
static YOUTU: [Stage; 2] =
    [Stage::Find(youtu_script), Stage::Words(Words { letters: Letters::Run(LETTER | MARK), digits: 1, ..GPT4O_WORDS })];
static KIMI_K2: [Stage; 1] =
    [Stage::Words(Words { contraction: Contraction::Suffix, letters: Letters::WithoutHan, ..Words::LLAMA3 })];
static DEEPSEEK_LLM: [Stage; 6] = [
    each(is_newline),
    Stage::Runs(Runs { lead: Lead::Space, member: is_deepseek_letter, min: 1, max: usize::MAX }),
    Stage::Runs(Runs { lead: Lead::Space, member: is_deepseek_punctuation, min: 1, max: usize::MAX }),
    Stage::Split(scan::trailing_space),
    runs(is_deepseek_cjk),
    runs(|c| c.is(NUMBER)),
];
static DEEPSEEK_CODER: [Stage; 5] = [
    each(is_newline),
    Stage::Runs(Runs { lead: Lead::Space, member: |c| c.is(LETTER), min: 1, max: usize::MAX }),
    Stage::Runs(Runs { lead: Lead::Space, member: |c| c.is(PUNCTUATION), min: 1, max: usize::MAX }),
    runs(is_deepseek_cjk),
    NUMBERS_1,
];
static DEEPSEEK_V3: [Stage; 3] = [NUMBERS_3, runs(is_cjk_or_kana), Stage::Words(DEEPSEEK_V3_WORDS)];
static SPARK: [Stage; 4] = [
    NUMBERS_3,
    runs(is_cjk_or_kana),
    Stage::Words(Words { tail: Tail::Nothing, single_newlines: true, ..DEEPSEEK_V3_WORDS }),
    NUMBERS_1,
];
static AFMOE: [Stage; 3] = [Stage::Split(scan::number_groups), runs(is_afmoe_script), Stage::Words(DEEPSEEK_V3_WORDS)];
static SUPERBPE: [Stage; 2] = [runs(|c| c.is(NUMBER)), Stage::Split(scan::thousands)];
static BLOOM: [Stage; 1] = [BLOOM_WORDS];
static VIKING: [Stage; 2] = [BLOOM_WORDS, NUMBERS_1];
static LINES: [Stage; 1] = [Stage::Split(scan::lines)];

const QWEN2_WORDS: Words = Words { digits: 1, ..Words::LLAMA3 };
const GPT4O_WORDS: Words = Words {
    contraction: Contraction::Suffix,
    letters: Letters::Cased(LETTER),
    tail: Tail::NewlinesAndSlashes,
    ..Words::LLAMA3
};
/// ``[!"#…~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``
const DEEPSEEK_V3_WORDS: Words = Words {
    contraction: Contraction::Never,
    ascii_after_punctuation: true,
    letters: Letters::Run(LETTER | MARK),
    not_leading: LETTER | PUNCTUATION | SYMBOL,
    digits: 0,
    punctuation: PUNCTUATION | SYMBOL,
    ..Words::LLAMA3
};
/// `\p{N}`
const NUMBERS_1: Stage = each(|c| c.is(NUMBER));
/// `\p{N}{1,3}`
const NUMBERS_3: Stage = Stage::Runs(Runs { lead: Lead::Nothing, member: |c| c.is(NUMBER), min: 1, max: 3 });
/// `[0-9][0-9][0-9]`
const THREE_DIGITS: Stage = Stage::Runs(Runs { lead: Lead::Nothing, member: Char::is_digit, min: 3, max: 3 });
/// ` ?[^(\s|.,!?…。，、।۔،)]+`
const BLOOM_WORDS: Stage = Stage::Runs(Runs { lead: Lead::Blank, member: is_bloom_letter, min: 1, max: usize::MAX });

/// `[…]+`
const fn runs(member: fn(Char) -> bool) -> Stage {
    Stage::Runs(Runs { lead: Lead::Nothing, member, min: 1, max: usize::MAX })
}

/// `[…]`
const fn each(member: fn(Char) -> bool) -> Stage {
    Stage::Runs(Runs { lead: Lead::Nothing, member, min: 1, max: 1 })
}

fn is_newline(c: Char) -> bool {
    matches!(char::from_u32(c.code), Some('\r' | '\n'))
}

fn is_ascii_punctuation(c: Char) -> bool {
    char::from_u32(c.code).is_some_and(|c| c.is_ascii_punctuation())
}

/// `[\p{P}$+<=>^~|]`
fn is_falcon_symbol(c: Char) -> bool {
    c.is(PUNCTUATION) || matches!(char::from_u32(c.code), Some('$' | '+' | '<' | '=' | '>' | '^' | '~' | '|'))
}

fn is_bloom_letter(c: Char) -> bool {
    const SEPARATORS: &str = "(|.,!?…。，、।۔،)";
    !c.is(SPACE) && !char::from_u32(c.code).is_some_and(|c| SEPARATORS.contains(c))
}

/// `[!-/:-~！-／：-～‘-‟、。]`: includes all ASCII letters, because the model was trained so.
fn is_deepseek_punctuation(c: Char) -> bool {
    matches!(c.code, 0x21..=0x2F | 0x3A..=0x7E | 0xFF01..=0xFF0F | 0xFF1A..=0xFF5E | 0x2018..=0x201F | 0x3001..=0x3002)
}

/// `[一-龥ࠀ-一가-퟿]`
fn is_deepseek_cjk(c: Char) -> bool {
    matches!(c.code, 0x800..=0x9FA5 | 0xAC00..=0xD7FF) && !c.is(SPACE)
}

/// `[一-龥぀-ゟ゠-ヿ]`
fn is_cjk_or_kana(c: Char) -> bool {
    matches!(c.code, 0x4E00..=0x9FA5 | 0x3040..=0x30FF)
}

/// Han, kana, Thai, Lao, Khmer, Burmese and Hangul as AFMoE delimits them. llama.cpp starts the
/// compatibility ideographs at U+8C48 instead of U+F900, whose normal form that is. The range
/// therefore includes all that lies between.
fn is_afmoe_script(c: Char) -> bool {
    matches!(c.code,
        0x3400..=0x4DBF | 0x4E00..=0xFAFF | 0x3040..=0x30FF | 0xFF65..=0xFF9F | 0x2F00..=0x2FDF | 0x0E40..=0x0EFF
        | 0x1780..=0x17FF | 0x1000..=0x109F | 0x1100..=0x11FF)
}

/// `[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+`
fn youtu_script(s: Segment<'_>, pos: usize) -> usize {
    let members: [fn(Char) -> bool; 4] = [
        |c| matches!(c.code, 0xAC00..=0xD7A3 | 0x3131..=0x318E),
        |c| {
            matches!(c.code, 0xFF01 | 0x2026 | 0x201C | 0x201D | 0x2018 | 0x2019 | 0x2014 | 0xFF1A | 0xFF1B | 0xFF0C
                | 0x3001..=0x303F | 0xFE30..=0xFE4F)
        },
        |c| matches!(c.code, 0x3105..=0x312F),
        is_cjk_or_kana,
    ];
    let found = members.into_iter().find(|member| member(s.at(pos)));
    found.map_or(pos, |member| Runs { lead: Lead::Nothing, member, min: 1, max: usize::MAX }.find(s, pos))
}

fn is_deepseek_letter(c: Char) -> bool {
    let after = DEEPSEEK_LETTERS.partition_point(|&(first, _)| first <= c.code);
    after.checked_sub(1).and_then(|i| DEEPSEEK_LETTERS.get(i)).is_some_and(|&(_, last)| c.code <= last)
}

/// The letters that DeepSeek LLM's tokenizer joins into words: cased ones of the Latin, Greek, Cyrillic, Armenian,
/// Georgian, Cherokee and some other scripts.
#[rustfmt::skip]
static DEEPSEEK_LETTERS: [(u32, u32); 87] = [
    (0x41, 0x5A), (0x61, 0x7A), (0xB5, 0xB5), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x1BA), (0x1BC, 0x1BF),
    (0x1C4, 0x293), (0x295, 0x2AF), (0x370, 0x373), (0x376, 0x376), (0x377, 0x377), (0x37B, 0x37D), (0x37F, 0x37F),
    (0x386, 0x386), (0x388, 0x38A), (0x38C, 0x38C), (0x38E, 0x3A1), (0x3A3, 0x3F5), (0x3F7, 0x481), (0x48A, 0x52F),
    (0x531, 0x556), (0x10A0, 0x10C5), (0x13A0, 0x13F5), (0x13F8, 0x13FD), (0x1C90, 0x1CBA), (0x1CBD, 0x1CBF),
    (0x1D00, 0x1D2B), (0x1D6B, 0x1D77), (0x1D79, 0x1D9A), (0x1E00, 0x1F15), (0x1F18, 0x1F1D), (0x1F20, 0x1F45),
    (0x1F48, 0x1F4D), (0x1F50, 0x1F57), (0x1F59, 0x1F59), (0x1F5B, 0x1F5B), (0x1F5D, 0x1F5D), (0x1F5F, 0x1F7D),
    (0x1F80, 0x1FB4), (0x1FB6, 0x1FBC), (0x1FBE, 0x1FBE), (0x1FC2, 0x1FC4), (0x1FC6, 0x1FCC), (0x1FD0, 0x1FD3),
    (0x1FD6, 0x1FDB), (0x1FE0, 0x1FEC), (0x1FF2, 0x1FF4), (0x1FF6, 0x1FFC), (0x2102, 0x2102), (0x2107, 0x2107),
    (0x210A, 0x2113), (0x2115, 0x2115), (0x2119, 0x211D), (0x2124, 0x2124), (0x2126, 0x2126), (0x2128, 0x2128),
    (0x212A, 0x212D), (0x212F, 0x2134), (0x2139, 0x2139), (0x213C, 0x213F), (0x2145, 0x2149), (0x214E, 0x214E),
    (0x2183, 0x2183), (0x2184, 0x2184), (0x2C00, 0x2C7B), (0x2C7E, 0x2CE4), (0x2CEB, 0x2CEE), (0x2CF2, 0x2CF2),
    (0x2CF3, 0x2CF3), (0xA640, 0xA66D), (0xA680, 0xA69B), (0xA722, 0xA76F), (0xA771, 0xA787), (0xA78B, 0xA78E),
    (0xAB70, 0xABBF), (0xFB00, 0xFB06), (0xFB13, 0xFB17), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A), (0x10400, 0x1044F),
    (0x104B0, 0x104D3), (0x104D8, 0x104FB), (0x10C80, 0x10CB2), (0x10CC0, 0x10CF2), (0x118A0, 0x118DF),
    (0x1E900, 0x1E943),
];
