//! Scanners. Each is a handwritten form of one regular expression of a pre-tokenizer. It takes one
//! pass, and backtracks over no more than one run of characters.
//!
//! Positions are byte offsets into the current segment. For every expression, also for its
//! look-ahead, the segment's end is the end of the text, because each expression of a pre-tokenizer
//! applies only to the segments that the one before it left.

use super::unicode::{Classes, LETTER, MARK, NUMBER, OTHER, PUNCTUATION, SPACE, SYMBOL, Set, is_han};

/// One character, or the end of the segment: no class, no length.
#[derive(Clone, Copy)]
pub(super) struct Char {
    pub(super) code: u32,
    pub(super) class: Set,
    len: usize,
}

impl Char {
    const END: Self = Self { code: u32::MAX, class: 0, len: 0 };

    #[inline]
    pub(super) fn is(self, set: Set) -> bool {
        self.class & set != 0
    }

    #[inline]
    fn is_newline(self) -> bool {
        self.code == '\n' as u32 || self.code == '\r' as u32
    }

    #[inline]
    fn is_ascii(self, c: u8) -> bool {
        self.code == u32::from(c)
    }

    fn ascii(self) -> u8 {
        u8::try_from(self.code).ok().filter(u8::is_ascii).unwrap_or(0)
    }

    pub(super) fn is_digit(self) -> bool {
        self.ascii().is_ascii_digit()
    }
}

/// A piece of text to split, valid UTF-8.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) text: &'a [u8],
    classes: &'static Classes,
}

impl<'a> Segment<'a> {
    pub(super) fn new(text: &'a [u8], classes: &'static Classes) -> Self {
        Self { text, classes }
    }

    pub(super) fn slice(self, start: usize, end: usize) -> Self {
        Self { text: self.text.get(start..end).unwrap_or_default(), ..self }
    }

    /// The character at byte `pos`, which must be the first byte of a character.
    #[inline]
    pub(super) fn at(self, pos: usize) -> Char {
        match self.text.get(pos) {
            Some(&byte) if byte < 0x80 => {
                Char { code: u32::from(byte), class: self.classes.of(u32::from(byte)), len: 1 }
            }
            Some(&byte) => self.wide(pos, byte),
            None => Char::END,
        }
    }

    fn wide(self, pos: usize, first: u8) -> Char {
        let next = |i: usize| u32::from(self.text.get(pos + i).copied().unwrap_or(0) & 0x3F);
        let first = u32::from(first);
        let (code, len) = match first {
            0..=0xDF => ((first & 0x1F) << 6 | next(1), 2),
            0xE0..=0xEF => ((first & 0x0F) << 12 | next(1) << 6 | next(2), 3),
            _ => ((first & 0x07) << 18 | next(1) << 12 | next(2) << 6 | next(3), 4),
        };
        Char { code, class: self.classes.of(code), len: len.min(self.text.len() - pos) }
    }

    /// The end of the run of characters from `pos` on that are in `set`.
    #[inline]
    pub(super) fn run(self, mut pos: usize, set: Set) -> usize {
        loop {
            let c = self.at(pos);
            if !c.is(set) {
                return pos;
            }
            pos += c.len;
        }
    }

    /// The end of the run of up to `max` characters from `pos` on that satisfy `member`.
    fn run_of(self, mut pos: usize, max: usize, member: impl Fn(Char) -> bool) -> usize {
        for _ in 0..max {
            let c = self.at(pos);
            if c.len == 0 || !member(c) {
                break;
            }
            pos += c.len;
        }
        pos
    }

    /// Calls `emit` with the matches of an expression and with the text between them, in order.
    /// `find` returns the end of the match that starts at the given position, or that position
    /// itself if there is none.
    #[inline]
    pub(super) fn split(self, mut find: impl FnMut(usize) -> usize, emit: &mut dyn FnMut(Self)) {
        let (mut pos, mut gap) = (0, 0);
        while pos < self.text.len() {
            let end = find(pos);
            if end > pos {
                if gap < pos {
                    emit(self.slice(gap, pos));
                }
                emit(self.slice(pos, end));
                gap = end;
                pos = end;
            } else {
                pos += self.at(pos).len.max(1);
            }
        }
        if gap < pos {
            emit(self.slice(gap, pos));
        }
    }

    fn only_upper_case(self, start: usize, end: usize) -> bool {
        self.text.get(start..end).is_some_and(|text| text.iter().all(u8::is_ascii_uppercase))
    }

    /// `\s+(?!\S)|\s+`: a run of white space, without its last character if something follows the
    /// run.
    #[inline]
    fn spaces(self, start: usize) -> usize {
        let (mut pos, mut last) = (start, start);
        loop {
            let c = self.at(pos);
            if !c.is(SPACE) {
                return if c.len > 0 && last > start { last } else { pos };
            }
            last = pos;
            pos += c.len;
        }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d` at an apostrophe; `fold` also accepts upper case.
    fn contraction(self, pos: usize, fold: bool) -> Option<usize> {
        let letter = |i: usize| {
            let byte = self.text.get(pos + i).copied().unwrap_or(0);
            if fold { byte.to_ascii_lowercase() } else { byte }
        };
        match (letter(1), letter(2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(pos + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(pos + 3),
            _ => None,
        }
    }

    /// GPT-2's expression: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
    #[inline]
    pub(super) fn gpt2(self, pos: usize) -> usize {
        let c = self.at(pos);
        if c.is_ascii(b'\'')
            && let Some(end) = self.contraction(pos, false)
        {
            return end;
        }
        let (first, start) = if c.is_ascii(b' ') { (self.at(pos + 1), pos + 1) } else { (c, pos) };
        for set in [LETTER, NUMBER, OTHER | PUNCTUATION | SYMBOL | MARK] {
            if first.is(set) {
                return self.run(start + first.len, set);
            }
        }
        self.spaces(pos)
    }
}

/// Which characters make up a word.
#[derive(Clone, Copy)]
pub(super) enum Letters {
    /// `[…]+` of a set.
    Run(Set),
    /// `[upper]*[lower]+|[upper]+[lower]*` over a set, where every character outside ASCII counts as both cases.
    Cased(Set),
    /// `\p{L}+` without Han characters, which form words of their own.
    WithoutHan,
    /// `(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+`
    Spaced,
}

/// How words and English contractions (`'s`, `'LL`, …) relate.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Contraction {
    Never,
    /// As a word of its own.
    Alone,
    /// As the end of the word before.
    Suffix,
}

/// What may follow punctuation in the same word.
#[derive(Clone, Copy)]
pub(super) enum Tail {
    Nothing,
    /// `[\r\n]*`
    Newlines,
    /// `[\r\n/]*`
    NewlinesAndSlashes,
    /// `[\r\n/]?`
    OneNewlineOrSlash,
}

/// The family of expressions that began with GPT-4's: contractions, words with one leading
/// character, short groups of digits, punctuation with its newlines, and white space.
#[derive(Clone, Copy)]
pub(super) struct Words {
    pub(super) contraction: Contraction,
    /// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+`` comes first.
    pub(super) ascii_after_punctuation: bool,
    pub(super) letters: Letters,
    /// Classes that cannot be a word's leading character (besides `\r` and `\n`).
    pub(super) not_leading: Set,
    /// The longest group of numbers; 0 where the expression has none.
    pub(super) digits: usize,
    pub(super) punctuation: Set,
    pub(super) tail: Tail,
    /// A newline is a word alone (`[\r\n]`), instead of ending a run of white space (`\s*[\r\n]+`).
    pub(super) single_newlines: bool,
    /// White space comes in powers of two, from 512 down.
    pub(super) powers_of_two: bool,
}

impl Words {
    /// Llama 3's: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
    /// \s+(?!\S)|\s+`. Others are told as what differs.
    pub(super) const LLAMA3: Self = Self {
        contraction: Contraction::Alone,
        ascii_after_punctuation: false,
        letters: Letters::Run(LETTER),
        not_leading: LETTER | NUMBER,
        digits: 3,
        punctuation: OTHER | PUNCTUATION | SYMBOL | MARK,
        tail: Tail::Newlines,
        single_newlines: false,
        powers_of_two: false,
    };

    pub(super) fn split<'a>(&self, segment: Segment<'a>, emit: &mut dyn FnMut(Segment<'a>)) {
        // No run of white space holds a newline before this position, so it need not be searched
        // again.
        let mut no_newline_before = 0;
        segment.split(|pos| self.find(segment, pos, &mut no_newline_before), emit);
    }

    #[inline]
    fn find(&self, s: Segment<'_>, pos: usize, no_newline_before: &mut usize) -> usize {
        let c = s.at(pos);
        if self.contraction == Contraction::Alone
            && c.is_ascii(b'\'')
            && let Some(end) = s.contraction(pos, true)
        {
            return end;
        }
        if self.ascii_after_punctuation && c.ascii().is_ascii_punctuation() {
            let end = s.run_of(pos + 1, usize::MAX, |c| c.ascii().is_ascii_alphabetic());
            if end > pos + 1 {
                return end;
            }
        }
        if matches!(self.letters, Letters::WithoutHan) && is_han(c.code) {
            return s.run_of(pos, usize::MAX, |c| is_han(c.code));
        }
        if let Some(end) = self.word(s, pos, c) {
            if self.contraction == Contraction::Suffix && s.at(end).is_ascii(b'\'') {
                return s.contraction(end, true).unwrap_or(end);
            }
            return end;
        }
        if c.is(NUMBER) && self.digits > 0 {
            return s.run_of(pos, self.digits, |c| c.is(NUMBER));
        }
        let start = if c.is_ascii(b' ') { pos + 1 } else { pos };
        let end = s.run(start, self.punctuation);
        if end > start {
            return self.tail(s, end);
        }
        if c.is(SPACE) { self.white_space(s, pos, c, no_newline_before) } else { pos }
    }

    /// The word that starts at `pos`, either with its first letter or with a leading character.
    #[inline]
    fn word(&self, s: Segment<'_>, pos: usize, c: Char) -> Option<usize> {
        let leading = c.len > 0 && !c.is_newline() && !c.is(self.not_leading);
        if leading && let Some(end) = self.letters(s, pos + c.len) {
            return match self.letters {
                // The expression tries its first alternative, which needs lower case, without the
                // leading character too, before it tries the second one with it. A mark then counts
                // as a word in lower case.
                Letters::Cased(set) if c.is(set) && s.only_upper_case(pos + c.len, end) => Some(pos + c.len),
                _ => Some(end),
            };
        }
        self.letters(s, pos)
    }

    #[inline]
    fn letters(&self, s: Segment<'_>, pos: usize) -> Option<usize> {
        let end = match self.letters {
            Letters::Run(set) => s.run(pos, set),
            Letters::Cased(set) => cased(s, pos, set),
            Letters::WithoutHan => s.run_of(pos, usize::MAX, |c| c.is(LETTER) && !is_han(c.code)),
            Letters::Spaced => {
                let mut end = pos;
                loop {
                    let first = if end > pos && s.at(end).is_ascii(b' ') { end + 1 } else { end };
                    let c = s.at(first);
                    if !c.is(LETTER) {
                        break end;
                    }
                    end = s.run(first + c.len, MARK);
                }
            }
        };
        (end > pos).then_some(end)
    }

    fn tail(&self, s: Segment<'_>, pos: usize) -> usize {
        match self.tail {
            Tail::Nothing => pos,
            Tail::Newlines => s.run_of(pos, usize::MAX, Char::is_newline),
            Tail::NewlinesAndSlashes => s.run_of(pos, usize::MAX, |c| c.is_newline() || c.is_ascii(b'/')),
            Tail::OneNewlineOrSlash => s.run_of(pos, 1, |c| c.is_newline() || c.is_ascii(b'/')),
        }
    }

    fn white_space(&self, s: Segment<'_>, pos: usize, c: Char, no_newline_before: &mut usize) -> usize {
        if self.single_newlines {
            return if c.is_newline() { pos + 1 } else { s.spaces(pos) };
        }
        if pos >= *no_newline_before {
            let (mut at, mut newline_end) = (pos, None);
            loop {
                let c = s.at(at);
                if !c.is(SPACE) {
                    break;
                }
                at += c.len;
                if c.is_newline() {
                    newline_end = Some(at);
                }
            }
            if let Some(end) = newline_end {
                return end;
            }
            *no_newline_before = at;
        }
        if self.powers_of_two { power_of_two(s, pos) } else { s.spaces(pos) }
    }
}

/// `\s{512}(?!\S)|\s{256}(?!\S)|…|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}`
fn power_of_two(s: Segment<'_>, pos: usize) -> usize {
    // The end of the first `count` characters, if all are white space and the match may end there:
    // white space or the end of the text follows.
    let take = |count: usize| {
        let mut end = pos;
        for _ in 0..count {
            let c = s.at(end);
            if !c.is(SPACE) {
                return None;
            }
            end += c.len;
        }
        let next = s.at(end);
        (next.len == 0 || next.is(SPACE)).then_some(end)
    };
    let sizes = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
    sizes.into_iter().find_map(take).unwrap_or(pos + s.at(pos).len)
}

/// `U*W+|U+W*` where `U` is the set without a-z and `W` the set without A-Z. Characters outside
/// ASCII are in both sets. If no lower-case letter follows `U*`, it therefore backtracks, and the
/// match ends after the last such character.
fn cased(s: Segment<'_>, start: usize, set: Set) -> usize {
    let mut pos = start;
    let mut wide_end = None;
    loop {
        let c = s.at(pos);
        if !c.is(set) || c.ascii().is_ascii_lowercase() {
            break;
        }
        pos += c.len;
        if c.len > 1 {
            wide_end = Some(pos);
        }
    }
    let end = s.run_of(pos, usize::MAX, |c| c.is(set) && !c.ascii().is_ascii_uppercase());
    if end > pos { end } else { wide_end.unwrap_or(pos) }
}

/// An expression for runs of characters, maybe with one leading space: ` ?[…]{min,max}`.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    pub(super) lead: Lead,
    pub(super) member: fn(Char) -> bool,
    pub(super) min: usize,
    pub(super) max: usize,
}

/// What may precede the characters of [`Runs`].
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Lead {
    Nothing,
    /// ` ?`
    Blank,
    /// `\s?`
    Space,
}

impl Runs {
    pub(super) fn find(&self, s: Segment<'_>, pos: usize) -> usize {
        let c = s.at(pos);
        let start = match self.lead {
            Lead::Blank if c.is_ascii(b' ') => pos + 1,
            Lead::Space if c.is(SPACE) => pos + c.len,
            _ => pos,
        };
        let mut end = start;
        let mut count = 0;
        while count < self.max {
            let c = s.at(end);
            if c.len == 0 || !(self.member)(c) {
                break;
            }
            end += c.len;
            count += 1;
        }
        if count >= self.min { end } else { pos }
    }
}

/// `\s+$`: white space at the end.
pub(super) fn trailing_space<'a>(s: Segment<'a>, emit: &mut dyn FnMut(Segment<'a>)) {
    let (mut pos, mut start) = (0, 0);
    loop {
        let c = s.at(pos);
        if c.len == 0 {
            break;
        }
        pos += c.len;
        if !c.is(SPACE) {
            start = pos;
        }
    }
    for part in [s.slice(0, start), s.slice(start, pos)] {
        if !part.text.is_empty() {
            emit(part);
        }
    }
}

/// `[^\n]+|[\n]+`
pub(super) fn lines<'a>(s: Segment<'a>, emit: &mut dyn FnMut(Segment<'a>)) {
    let mut rest = s.text;
    while let Some(first) = rest.first() {
        let newline = *first == b'\n';
        let end = rest.iter().position(|&byte| (byte == b'\n') != newline).unwrap_or(rest.len());
        let (line, tail) = rest.split_at(end);
        emit(Segment { text: line, ..s });
        rest = tail;
    }
}

/// Splits before each group of three digits, counted from the right end of a run of ASCII digits:
/// `(?=(\d{3})+(?!\d))`.
pub(super) fn thousands<'a>(s: Segment<'a>, emit: &mut dyn FnMut(Segment<'a>)) {
    let (mut start, mut pos) = (0, 0);
    while pos < s.text.len() {
        let run = s.text.iter().skip(pos).take_while(|byte| byte.is_ascii_digit()).count();
        let mut split = pos + run % 3;
        while split < pos + run {
            if split > start {
                emit(s.slice(start, split));
                start = split;
            }
            split += 3;
        }
        pos += run + 1;
    }
    if start < s.text.len() {
        emit(s.slice(start, s.text.len()));
    }
}

/// Splits a run of numbers into groups of three; one or two left over come first. Text before a run
/// stays with its first group.
pub(super) fn number_groups<'a>(s: Segment<'a>, emit: &mut dyn FnMut(Segment<'a>)) {
    let (mut start, mut pos) = (0, 0);
    while pos < s.text.len() {
        let c = s.at(pos);
        if !c.is(NUMBER) {
            pos += c.len.max(1);
            continue;
        }
        let run_end = s.run(pos, NUMBER);
        let mut count = 0;
        let mut at = pos;
        while at < run_end {
            at += s.at(at).len.max(1);
            count += 1;
        }
        let mut group = if count % 3 == 0 { 3 } else { count % 3 };
        while pos < run_end {
            pos = s.run_of(pos, group, |c| c.is(NUMBER));
            emit(s.slice(start, pos));
            start = pos;
            group = 3;
        }
    }
    if start < s.text.len() {
        emit(s.slice(start, s.text.len()));
    }
}

/// Chameleon's `<sentinel:[0-9]+>`.
pub(super) fn sentinel(s: Segment<'_>, pos: usize) -> usize {
    const OPEN: &[u8] = b"<sentinel:";
    let rest = s.text.get(pos..).unwrap_or_default();
    if !rest.starts_with(OPEN) {
        return pos;
    }
    let digits = pos + OPEN.len();
    let end = s.run_of(digits, usize::MAX, Char::is_digit);
    if end > digits && s.at(end).is_ascii(b'>') { end + 1 } else { pos }
}

/// Chameleon's `(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z`.
pub(super) fn image_token(s: Segment<'_>, pos: usize) -> usize {
    const OPEN: &[u8] = b"IMGIMG";
    let rest = s.text.get(pos..).unwrap_or_default();
    if !rest.starts_with(OPEN) {
        return pos;
    }
    let letters = pos + OPEN.len();
    let end = s.run_of(letters, 4, |c| matches!(c.ascii(), b'A'..=b'I'));
    if end > letters && s.at(end).is_ascii(b'Z') { end + 1 } else { pos }
}

/// Chameleon's `([\t\n]|    |  )`.
pub(super) fn indentation(s: Segment<'_>, pos: usize) -> usize {
    let rest = s.text.get(pos..).unwrap_or_default();
    match rest {
        [b'\t' | b'\n', ..] => pos + 1,
        [b' ', b' ', b' ', b' ', ..] => pos + 4,
        [b' ', b' ', ..] => pos + 2,
        _ => pos,
    }
}
