//! [`Session`]: one conversation with a model, and the cache of its tokens.

mod generate;
mod of_model;
mod prompt;

pub use generate::{Generation, Piece, Stats, StopReason, next_of_each};
pub use prompt::Prompt;

use crate::backend::state::Sequence;
use crate::backend::{Backend, Batch, Canceller, Limits, Logits, Span, Wanted};
use crate::device::Device;
use crate::model::Model;
use crate::sampler::{Sampler, SamplerState};
use crate::tokenizer::TokenId;
use crate::{Error, ErrorKind, Result, memory};
use std::fmt;
use std::sync::Arc;

/// What happens when a session's context is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ContextPolicy {
    /// An error of the kind [`ContextFull`](ErrorKind::ContextFull). Nothing is lost: the session
    /// keeps the tokens generated so far.
    #[default]
    Error,
    /// Keeps the first `keep` tokens and the newest half of what else the context has room for, and
    /// evaluates these anew. Generation goes on without end, with a pause at each slide.
    Slide {
        /// How many tokens at the start are never forgotten: for example a system prompt.
        keep: usize,
    },
}

/// Options of a [`Session`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// The longest context in tokens; `None` for the [model's](Model::context_len).
    pub context: Option<usize>,
    /// What happens when the context is full.
    pub when_full: ContextPolicy,
}

impl SessionOptions {
    /// Sets the longest context, in tokens.
    #[must_use]
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Sets what happens when the context is full.
    #[must_use]
    pub fn when_full(mut self, policy: ContextPolicy) -> Self {
        self.when_full = policy;
        self
    }
}

/// One conversation: the tokens that the model has seen and their cache.
///
/// A session is `Send` and borrows nothing. Many sessions of one model may work at the same time, from any threads.
pub struct Session {
    model: Model,
    backend: Arc<dyn Backend>,
    device: Device,
    /// What the backend keeps of the first tokens: of all, unless the session moved to another
    /// device, or went back to where the state is not kept any more, and has not caught up yet.
    state: Sequence,
    /// The evaluated tokens.
    tokens: Vec<TokenId>,
    context: usize,
    when_full: ContextPolicy,
    canceller: Canceller,
}

impl Session {
    pub(crate) fn new(model: Model, options: SessionOptions) -> Result<Self> {
        memory::check_spare("a session")?;
        let context = options.context.unwrap_or(model.context_len());
        if context == 0 || context > model.context_len() {
            return Err(Error::invalid_input(format!(
                "a context of {context} tokens was asked for, but the model was loaded with {}; load it with a larger \
                 one (LoadOptions::context)",
                model.context_len()
            )));
        }
        if let ContextPolicy::Slide { keep } = options.when_full
            && keep.saturating_add(2) > context
        {
            return Err(Error::invalid_input(format!(
                "a context of {context} tokens cannot slide and keep the first {keep}; keep at most {}",
                context.saturating_sub(2)
            )));
        }
        let backend = Arc::clone(model.backend());
        Ok(Self {
            device: model.device(),
            state: Sequence::new(backend.states())?,
            backend,
            model,
            tokens: Vec::new(),
            context,
            when_full: options.when_full,
            canceller: Canceller::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The device that runs this session: the [model's](Model::device), or the CPU after that
    /// device failed.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The tokens that are evaluated. After a fault of a GPU, and after [`truncate`](Self::truncate),
    /// the cache may lack some until the next pass evaluates them again.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// How many tokens are evaluated.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing is evaluated.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The longest context of this session, in tokens.
    pub fn context_len(&self) -> usize {
        self.context
    }

    /// A handle that stops this session from another thread, even in the middle of a prompt.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Forgets all but the first `len` tokens.
    ///
    /// Layers with a sliding window keep only the newest positions and those at the end of the last
    /// few prompts. If `len` lies further back, the next pass evaluates some tokens again. The texts
    /// are the same.
    pub fn truncate(&mut self, len: usize) {
        if len < self.tokens.len() {
            self.tokens.truncate(len);
            self.state.rewind(len);
        }
    }

    /// Forgets everything and gives the cache's memory back.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.state.rewind(0);
    }

    /// A second session with the same past. The two share the cache until one of them writes, so a
    /// fork is cheap: it copies only the tokens and the table of the cache's pages.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self {
            model: self.model.clone(),
            backend: Arc::clone(&self.backend),
            device: self.device,
            state: self.state.fork()?,
            tokens: memory::copied(&self.tokens, TOKENS)?,
            context: self.context,
            when_full: self.when_full,
            canceller: Canceller::default(),
        })
    }

    /// Makes `prompt` the whole context, and generates the text that follows.
    ///
    /// The session does not evaluate the longest cached beginning of `prompt` again. So continue a
    /// conversation by passing all of it, a little longer each time. The prompt is evaluated before
    /// this returns.
    ///
    /// # Errors
    /// `InvalidInput` for a prompt without tokens or with unknown ones, `ContextFull` where it does
    /// not fit, `Cancelled`, `OutOfMemory`, and errors of the device. The session then holds the
    /// tokens evaluated so far.
    pub fn generate(&mut self, prompt: &Prompt, sampler: &Sampler) -> Result<Generation<'_>> {
        Generation::start(self, prompt, sampler)
    }

    /// Makes `prompt` the whole context without generating. Use it to evaluate a long prompt ahead
    /// of time.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn feed(&mut self, prompt: &Prompt) -> Result<()> {
        self.set_context(prompt.tokens()).map(|_| ())
    }

    /// Appends `tokens` to the context, and hands the logits of each to `each`: the token's index
    /// in `tokens`, and a row of [`vocab_len`](Model::vocab_len) values that predict the token
    /// after it.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and the errors of `each`.
    pub fn logits(&mut self, tokens: &[TokenId], mut each: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        self.check(tokens)?;
        if self.tokens.len() + tokens.len() > self.context {
            return Err(self.context_full(self.tokens.len() + tokens.len()));
        }
        let before = self.tokens.len();
        let mut done = 0;
        while let Some(rest) = tokens.get(done..).filter(|rest| !rest.is_empty()) {
            let limits = self.limits();
            let chunk = rest.get(..limits.tokens.min(limits.outputs)).unwrap_or(rest);
            let first = done;
            let ran = match self.pass(chunk, Wanted::All, &[]) {
                Ok(mut logits) => loop {
                    match logits.row(done - first) {
                        Ok(row) => each(done, row)?,
                        Err(e) => break Err(e),
                    }
                    done += 1;
                    if done - first == chunk.len() {
                        break Ok(());
                    }
                },
                Err(e) => Err(e),
            };
            if let Err(e) = ran {
                self.recover(e)?;
                // Rows that `each` has not seen are computed again.
                self.truncate(before + done);
            }
        }
        Ok(())
    }

    /// Makes `tokens` the context, and evaluates only those that are not cached. Returns the logits
    /// of the last token.
    fn set_context(&mut self, tokens: &[TokenId]) -> Result<(Box<dyn Logits>, usize)> {
        self.check(tokens)?;
        let shortened;
        let tokens = match self.when_full {
            _ if tokens.len() <= self.context => tokens,
            ContextPolicy::Error => return Err(self.context_full(tokens.len())),
            ContextPolicy::Slide { keep } => {
                shortened = slide(tokens, &[], keep, self.context)?;
                &shortened
            }
        };
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // The last token is evaluated in any case, because its logits are needed.
        let kept = common.min(tokens.len().saturating_sub(1));
        self.truncate(kept);
        let reused = self.state.len();
        let fresh = tokens.get(kept..).unwrap_or_default();
        if !self.state.has_slots() {
            let logits = self.extend(fresh, Wanted::Last, &[])?;
            self.state.checkpoint();
            return Ok((logits, reused));
        }
        // Such a state cannot go back by the one token that answering the same prompt again needs.
        let (first, last) = fresh.split_at(fresh.len().saturating_sub(1));
        if !first.is_empty() {
            self.extend(first, Wanted::None, &[])?;
        }
        self.state.checkpoint();
        Ok((self.extend(last, Wanted::Last, &[])?, reused))
    }

    /// Appends one token. Slides a full context if the options ask for it. `state` will draw the
    /// next token.
    fn push(&mut self, token: TokenId, state: &SamplerState) -> Result<Box<dyn Logits>> {
        if self.tokens.len() < self.context {
            return self.extend(&[token], Wanted::Last, &[state]);
        }
        match self.when_full {
            ContextPolicy::Error => Err(self.context_full(self.tokens.len() + 1)),
            ContextPolicy::Slide { keep } => {
                let all = slide(&self.tokens, &[token], keep, self.context)?;
                Ok(self.set_context(&all)?.0)
            }
        }
    }

    /// Evaluates `tokens`, at least one, after the evaluated ones. `wanted` and `draws` are for the
    /// last pass: see [`Batch`].
    fn extend(&mut self, tokens: &[TokenId], wanted: Wanted, draws: &[&SamplerState]) -> Result<Box<dyn Logits>> {
        let mut rest = tokens;
        loop {
            let most = self.limits().tokens;
            let (chunk, after) = rest.split_at_checked(most).unwrap_or((rest, &[]));
            let (wanted, draws) = if after.is_empty() { (wanted, draws) } else { (Wanted::None, &[][..]) };
            match self.pass(chunk, wanted, draws) {
                Ok(logits) if after.is_empty() => return Ok(logits),
                Ok(_) => {
                    // A long prompt is not evaluated from its start again after a small change.
                    if self.state.has_slots() {
                        self.state.checkpoint();
                    }
                    rest = after;
                }
                Err(e) => self.recover(e)?,
            }
        }
    }

    /// Evaluates the last token again, after `error` kept its logits from being read.
    fn repeat_last(&mut self, error: Error) -> Result<Box<dyn Logits>> {
        self.recover(error)?;
        let token = self.tokens.pop();
        self.extend(token.as_slice(), Wanted::Last, &[])
    }

    /// After `error`, moves to a device where the work can be tried again, or returns the error.
    fn recover(&mut self, error: Error) -> Result<()> {
        // Only the model's first device fails. A session that has moved does not move again.
        let backend = if self.device == Device::Cpu { None } else { self.model.rescue(&error) };
        self.move_to(backend.ok_or(error)?)
    }

    /// The limits of a pass on the device of the next one.
    fn limits(&mut self) -> Limits {
        if self.device != Device::Cpu
            && let Some(backend) = self.model.follow()
            && let Err(e) = self.move_to(backend)
        {
            // The pass on the lost device fails, and then the move is tried again.
            log::warn!("a session could not leave its device: {e}");
        }
        self.backend.limits()
    }

    /// Goes on on the CPU. Its cache is filled before the next pass.
    fn move_to(&mut self, backend: Arc<dyn Backend>) -> Result<()> {
        self.state = Sequence::new(backend.states())?;
        self.backend = backend;
        self.device = Device::Cpu;
        Ok(())
    }

    /// One pass of the backend over tokens that follow the evaluated ones.
    fn pass(&mut self, tokens: &[TokenId], wanted: Wanted, draws: &[&SamplerState]) -> Result<Box<dyn Logits>> {
        // Reserves before the pass, whose effects could not be undone.
        memory::reserve(&mut self.tokens, tokens.len(), TOKENS)?;
        while let Some(missing) = self.tokens.get(self.state.len()..).filter(|missing| !missing.is_empty()) {
            let most = self.backend.limits().tokens;
            let mut chunk = memory::copied(missing.get(..most).unwrap_or(missing), TOKENS)?;
            if wanted != Wanted::All && missing.len().saturating_add(tokens.len()) <= most {
                memory::extend(&mut chunk, tokens, TOKENS)?;
                let logits = self.run(&chunk, wanted, draws)?;
                self.tokens.extend_from_slice(tokens);
                return Ok(logits);
            }
            self.run(&chunk, Wanted::None, &[])?;
        }
        let logits = self.run(tokens, wanted, draws)?;
        self.tokens.extend_from_slice(tokens);
        Ok(logits)
    }

    /// Runs tokens that follow those in the state.
    fn run(&mut self, tokens: &[TokenId], wanted: Wanted, draws: &[&SamplerState]) -> Result<Box<dyn Logits>> {
        self.check_cancelled()?;
        let first_pos = self.state.len();
        let ran = self.state.prepare(first_pos + tokens.len()).and_then(|()| {
            let spans = [Span { tokens, first_pos, tables: self.state.tables(), wanted }];
            self.backend.run(&Batch { spans: &spans, draws, given: &[] }, &self.canceller)
        });
        match ran {
            Ok(logits) => {
                self.state.commit(first_pos + tokens.len());
                Ok(logits)
            }
            Err(e) => {
                if e.kind() == ErrorKind::Cancelled {
                    self.canceller.take();
                }
                self.state.abort();
                Err(e)
            }
        }
    }

    /// Whether one more token can be evaluated by a single pass over it.
    fn takes_one(&mut self) -> bool {
        // First leaves a device that was given up.
        self.limits();
        self.tokens.len() < self.context && self.state.len() == self.tokens.len() && !self.canceller.is_cancelled()
    }

    /// Appends a token to each of several sessions on one backend, in one pass; every session must
    /// [take one](Self::takes_one). The logits have a row for each session. After an error all are
    /// unchanged.
    fn pass_of_each(sessions: &mut [(&mut Self, TokenId, &SamplerState)]) -> Result<Box<dyn Logits>> {
        let prepare = |(session, ..): &mut (&mut Self, TokenId, &SamplerState)| {
            memory::reserve(&mut session.tokens, 1, TOKENS)?;
            session.state.prepare(session.state.len() + 1)
        };
        let ran = sessions.iter_mut().try_for_each(prepare).and_then(|()| {
            let Some((first, ..)) = sessions.first() else { return Err(Error::invalid_input("there are no sessions")) };
            let mut spans = memory::with_room(sessions.len(), "the sessions of a pass")?;
            for (session, token, _) in sessions.iter() {
                let (tokens, state) = (std::slice::from_ref(token), &session.state);
                spans.push(Span { tokens, first_pos: state.len(), tables: state.tables(), wanted: Wanted::Last });
            }
            let draws = memory::collected(sessions.iter().map(|(.., state)| *state), "the sessions of a pass")?;
            first.backend.run(&Batch { spans: &spans, draws: &draws, given: &[] }, &Canceller::default())
        });
        for (session, token, _) in sessions {
            if ran.is_ok() {
                session.state.commit(session.state.len() + 1);
                session.tokens.push(*token);
            } else {
                session.state.abort();
            }
        }
        ran
    }

    /// Reports a requested cancellation, once.
    fn check_cancelled(&self) -> Result<()> {
        if self.canceller.take() {
            return Err(Error::new(ErrorKind::Cancelled, "the session was cancelled"));
        }
        Ok(())
    }

    fn check(&self, tokens: &[TokenId]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid_input("the prompt has no tokens; give it at least one"));
        }
        let vocab = self.model.vocab_len();
        match tokens.iter().find(|&&t| t as usize >= vocab) {
            Some(token) => {
                Err(Error::invalid_input(format!("token {token} is not in the vocabulary, which has {vocab} tokens")))
            }
            None => Ok(()),
        }
    }

    fn context_full(&self, wanted: usize) -> Error {
        Error::new(
            ErrorKind::ContextFull,
            format!(
                "{wanted} tokens do not fit the context of {}; load the model with a longer context, shorten the \
                 prompt, or ask for a sliding context (SessionOptions::when_full)",
                self.context
            ),
        )
    }
}

/// What the memory is for, in texts of errors.
const TOKENS: &str = "the tokens of a session";

/// The tokens that remain of `tokens` and `more`: the first `keep`, and of the others the newest
/// half of the context that `keep` leaves. The other half stays free.
///
/// # Errors
/// `OutOfMemory`.
fn slide(tokens: &[TokenId], more: &[TokenId], keep: usize, context: usize) -> Result<Vec<TokenId>> {
    let len = tokens.len() + more.len();
    let keep = keep.min(len);
    let newest = (context.saturating_sub(keep) / 2).max(1);
    let from = len.saturating_sub(newest).max(keep);
    let all = || tokens.iter().chain(more);
    let mut kept = memory::with_room(keep + len - from, TOKENS)?;
    kept.extend(all().take(keep).chain(all().skip(from)));
    Ok(kept)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("len", &self.tokens.len())
            .field("context_len", &self.context)
            .field("when_full", &self.when_full)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sliding_keeps_the_start_and_the_newest() {
        let tokens: Vec<TokenId> = (0..10).collect();
        let slide = |keep| slide(&tokens[..9], &tokens[9..], keep, 8).unwrap();
        assert_eq!(slide(2), [0, 1, 7, 8, 9]);
        assert_eq!(slide(0), [6, 7, 8, 9]);
        assert_eq!(slide(6), [0, 1, 2, 3, 4, 5, 9]);
    }
}
