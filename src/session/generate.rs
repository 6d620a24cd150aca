//! [`Generation`]: the stream of a model's output.

use super::{Prompt, Session};
use crate::backend::Logits;
use crate::sampler::{Choice, Sampler, SamplerState, TokenLogprob};
use crate::tokenizer::{Decoder, TokenId};
use crate::{Result, memory};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model drew a token that ends its turn or the text.
    EndOfGeneration,
    /// The requested number of tokens was generated.
    MaxTokens,
    /// One of the stop texts was generated; it is not part of the pieces.
    StopText,
    /// An error, which the stream has returned.
    Error,
}

/// The result of one step of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    text: String,
    choice: Option<Choice>,
}

impl Piece {
    /// The characters that became certain with this token. Empty while a character or a stop text
    /// may be unfinished.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The token; `None` for a last piece that only releases held-back text.
    pub fn token(&self) -> Option<TokenId> {
        self.choice.as_ref().map(|c| c.token)
    }

    /// The natural logarithm of the token's probability under the model, before any step of the sampler.
    pub fn logprob(&self) -> Option<f32> {
        self.choice.as_ref().map(|c| c.logprob)
    }

    /// The most probable tokens at this place, best first; as many as
    /// [`SamplerBuilder::top_logprobs`](crate::sampler::SamplerBuilder::top_logprobs) asked for.
    pub fn top_logprobs(&self) -> &[TokenLogprob] {
        self.choice.as_ref().map(|c| c.top_logprobs.as_slice()).unwrap_or_default()
    }
}

/// How long a generation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were cached already.
    pub reused_tokens: usize,
    /// Time to evaluate the other ones.
    pub prompt_time: Duration,
    /// Tokens drawn so far, without the one that ended the generation.
    pub generated_tokens: usize,
    /// Time since the prompt was evaluated, without the caller's own time.
    pub generation_time: Duration,
}

/// A running generation: an iterator over [`Piece`]s. Dropping it stops the work; the session keeps
/// the evaluated tokens.
///
/// After an error the iterator ends; the session remains usable.
pub struct Generation<'s> {
    session: &'s mut Session,
    state: SamplerState,
    decoder: Decoder,
    logits: Option<Box<dyn Logits>>,
    /// The token that was drawn but not evaluated yet.
    pending: Option<TokenId>,
    stop: StopTexts,
    left: usize,
    reason: Option<StopReason>,
    stats: Stats,
}

impl<'s> Generation<'s> {
    pub(super) fn start(session: &'s mut Session, prompt: &Prompt, sampler: &Sampler) -> Result<Self> {
        let began = Instant::now();
        let state = sampler.start(prompt.tokens())?;
        let decoder = session.model.tokenizer().decoder_after(prompt.tokens());
        let (logits, reused_tokens) = session.set_context(prompt.tokens())?;
        let prompt_time = began.elapsed();
        let stats = Stats { prompt_tokens: prompt.len(), reused_tokens, prompt_time, ..Stats::default() };
        Ok(Self {
            session,
            state,
            decoder,
            logits: Some(logits),
            pending: None,
            stop: StopTexts::default(),
            left: usize::MAX,
            reason: None,
            stats,
        })
    }

    /// Ends after `n` tokens.
    #[must_use]
    pub fn max_tokens(mut self, n: usize) -> Self {
        self.left = n;
        self
    }

    /// Ends where the model generates `text`. Call it several times for several texts.
    #[must_use]
    pub fn stop_at(mut self, text: impl Into<String>) -> Self {
        self.stop.add(text.into());
        self
    }

    /// The seed of the sampler: the given one, or the random one.
    pub fn seed(&self) -> u64 {
        self.state.seed()
    }

    /// Why the generation ended; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.reason
    }

    /// The session that generates.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Generates to the end and returns the whole text.
    ///
    /// # Errors
    /// The first error of the stream.
    pub fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        for piece in self {
            memory::push_text(&mut text, piece?.text(), TEXT)?;
        }
        Ok(text)
    }

    fn step(&mut self) -> Result<Option<Piece>> {
        if self.left == 0 {
            return self.finish(StopReason::MaxTokens);
        }
        if let Some(token) = self.pending.take() {
            self.logits = Some(self.session.push(token, &self.state)?);
        }
        self.draw()
    }

    /// Draws the next token from the logits.
    fn draw(&mut self) -> Result<Option<Piece>> {
        self.session.check_cancelled()?;
        loop {
            let Some(mut logits) = self.logits.take() else { return Ok(None) };
            match logits.sample(&mut [&mut self.state]).pop() {
                Some(Ok(choice)) => return self.accept(choice),
                // The logits are lost together with their device.
                Some(Err(e)) => self.logits = Some(self.session.repeat_last(e)?),
                None => return Ok(None),
            }
        }
    }

    /// Accepts the drawn token.
    fn accept(&mut self, choice: Choice) -> Result<Option<Piece>> {
        if self.session.model.tokenizer().is_end_of_generation(choice.token) {
            return self.finish(StopReason::EndOfGeneration);
        }
        self.left -= 1;
        self.pending = Some(choice.token);
        self.stats.generated_tokens += 1;
        let (text, stopped) = self.stop.push(self.decoder.push(choice.token)?)?;
        if stopped {
            self.reason = Some(StopReason::StopText);
        }
        Ok(Some(Piece { text, choice: Some(choice) }))
    }

    /// Finishes a step that began at `began`.
    fn done(&mut self, step: Result<Option<Piece>>, began: Instant) -> Option<Result<Piece>> {
        self.stats.generation_time += began.elapsed();
        step.inspect_err(|_| self.reason = Some(StopReason::Error)).transpose()
    }

    /// Ends the generation. A last piece releases any held-back text.
    fn finish(&mut self, reason: StopReason) -> Result<Option<Piece>> {
        self.reason = Some(reason);
        let (mut text, stopped) = self.stop.push(self.decoder.flush())?;
        if stopped {
            self.reason = Some(StopReason::StopText);
        } else {
            memory::push_text(&mut text, self.stop.held(), TEXT)?;
        }
        Ok((!text.is_empty()).then_some(Piece { text, choice: None }))
    }
}

/// Advances each generation by one piece, and returns in order what [`next`](Iterator::next) of
/// each would return. Generations of the same model share one pass; for many sequences it takes
/// little longer than for one.
///
/// The lists made here take some hundred bytes for each generation. Like other collections, they
/// end the process when there is no memory.
///
/// ```no_run
/// # fn main() -> wavelm::Result<()> {
/// # use wavelm::{Generation, Model, Sampler};
/// let model = Model::load("model.gguf")?;
/// let mut sessions = [model.session()?, model.session()?];
/// let prompts = [model.prompt("Once upon a time")?, model.prompt("In the beginning")?];
/// let mut generations = Vec::new();
/// for (session, prompt) in sessions.iter_mut().zip(&prompts) {
///     generations.push(session.generate(prompt, &Sampler::default())?.max_tokens(100));
/// }
/// while generations.iter().any(|generation| generation.stop_reason().is_none()) {
///     for (i, piece) in wavelm::next_of_each(&mut generations).into_iter().enumerate() {
///         if let Some(piece) = piece.transpose()? {
///             println!("{i}: {}", piece.text());
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub fn next_of_each<'a, 's: 'a>(
    generations: impl IntoIterator<Item = &'a mut Generation<'s>>,
) -> Vec<Option<Result<Piece>>> {
    let mut all: Vec<&mut Generation<'s>> = generations.into_iter().collect();
    let mut pieces: Vec<Option<Option<Result<Piece>>>> = all.iter().map(|_| None).collect();
    let mut waiting: Vec<usize> = (0..all.len()).filter(|&i| all.get_mut(i).is_some_and(|g| g.can_share())).collect();
    while let Some(first) = waiting.first().and_then(|&i| all.get_mut(i)) {
        let backend = Arc::clone(&first.session.backend);
        let limits = backend.limits();
        let (mut group, mut later) = (Vec::new(), Vec::new());
        for (i, generation) in all.iter_mut().enumerate().filter(|(i, _)| waiting.binary_search(i).is_ok()) {
            let is_full = group.len() >= limits.tokens.min(limits.outputs);
            if is_full || !Arc::ptr_eq(&backend, &generation.session.backend) {
                later.push(i);
            } else {
                group.push((i, &mut **generation));
            }
        }
        waiting = later;
        if group.len() > 1 {
            for (i, piece) in Generation::step_together(group) {
                if let Some(place) = pieces.get_mut(i) {
                    *place = Some(piece);
                }
            }
        }
    }
    all.into_iter().zip(pieces).map(|(generation, piece)| piece.unwrap_or_else(|| generation.next())).collect()
}

impl Generation<'_> {
    /// Whether the next step is a pass for a single token.
    fn can_share(&mut self) -> bool {
        self.reason.is_none() && self.left > 0 && self.pending.is_some() && self.session.takes_one()
    }

    /// One step of several generations, with one pass. If the pass fails there are no pieces, so
    /// that each generation may try alone.
    fn step_together(mut group: Vec<(usize, &mut Self)>) -> Vec<(usize, Option<Result<Piece>>)> {
        let began = Instant::now();
        let passed = {
            let pending = group.iter_mut().filter_map(|(_, g)| Some((&mut *g.session, g.pending?, &g.state)));
            Session::pass_of_each(&mut pending.collect::<Vec<_>>())
        };
        let Ok(mut logits) = passed else { return Vec::new() };
        let choices = {
            let mut states: Vec<_> = group.iter_mut().map(|(_, g)| &mut g.state).collect();
            logits.sample(&mut states)
        };
        let finish = |((i, generation), choice): ((usize, &mut Self), Result<Choice>)| {
            generation.pending = None;
            let step = generation.session.check_cancelled().and_then(|()| match choice {
                Ok(choice) => generation.accept(choice),
                Err(e) => {
                    generation.logits = Some(generation.session.repeat_last(e)?);
                    generation.draw()
                }
            });
            (i, generation.done(step, began))
        };
        group.into_iter().zip(choices).map(finish).collect()
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reason.is_some() {
            return None;
        }
        let began = Instant::now();
        let step = self.step();
        self.done(step, began)
    }
}

impl std::iter::FusedIterator for Generation<'_> {}

/// What the memory is for, in texts of errors.
const TEXT: &str = "the generated text";

/// Searches a stream for the stop texts, and holds back text that may be the beginning of one.
#[derive(Debug, Default)]
struct StopTexts {
    texts: Vec<String>,
    held: String,
}

impl StopTexts {
    fn add(&mut self, text: String) {
        if !text.is_empty() {
            self.texts.push(text);
        }
    }

    /// Takes new text. Returns the text that is certain, and whether a stop text follows it.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn push(&mut self, text: &str) -> Result<(String, bool)> {
        memory::push_text(&mut self.held, text, TEXT)?;
        if let Some(at) = self.texts.iter().filter_map(|t| self.held.find(t.as_str())).min() {
            let mut certain = std::mem::take(&mut self.held);
            certain.truncate(at);
            return Ok((certain, true));
        }
        let begins_here = |at: &usize| {
            let tail = self.held.get(*at..).unwrap_or_default();
            self.texts.iter().any(|t| t.starts_with(tail))
        };
        let keep_from = self.held.char_indices().map(|(at, _)| at).find(begins_here).unwrap_or(self.held.len());
        let held = memory::copied_text(self.held.get(keep_from..).unwrap_or_default(), TEXT)?;
        let mut certain = std::mem::replace(&mut self.held, held);
        certain.truncate(keep_from);
        Ok((certain, false))
    }

    /// The held-back text, which turned out to be no stop text.
    fn held(&self) -> &str {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_texts_are_found_across_pieces_and_never_shown() {
        let mut stop = StopTexts::default();
        stop.add("\n\nUser:".into());
        stop.add("END".into());
        assert_eq!(stop.push("Hi\n").unwrap(), ("Hi".into(), false));
        assert_eq!(stop.push("there\n\nUs").unwrap(), ("\nthere".into(), false));
        assert_eq!(stop.push("ual").unwrap(), ("\n\nUsual".into(), false));
        assert_eq!(stop.push(" E").unwrap(), (" ".into(), false));
        assert_eq!(stop.push("Néé").unwrap(), ("ENéé".into(), false));
        assert_eq!(stop.push("\n\nUser: x END").unwrap(), (String::new(), true));
        assert_eq!(stop.held(), "");
    }

    #[test]
    fn held_text_is_not_lost() {
        let mut stop = StopTexts::default();
        stop.add("abc".into());
        assert_eq!(stop.push("xab").unwrap(), ("x".into(), false));
        assert_eq!(stop.held(), "ab");
    }
}
