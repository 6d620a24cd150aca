//! Backends run a model's [`Program`]. The trait is small on purpose: it is no tensor library. A
//! backend gets the whole program when it is made, so it can plan all its memory and fuse
//! neighbours.

pub(crate) mod cpu;
pub(crate) mod hip;
pub(crate) mod kv_type;
pub(crate) mod profile;
pub(crate) mod segments;
pub(crate) mod state;

use crate::program::{Program, RowKind};
use crate::sampler::{Choice, SamplerState};
use crate::tokenizer::TokenId;
use crate::{Error, Result};
pub(crate) use kv_type::KvType;
pub(crate) use profile::KernelTime;
use state::{PageId, States};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which tokens of a span get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// None: the span only fills the cache.
    None,
    /// The last token of the span.
    Last,
    /// Every token of the span.
    All,
}

impl Wanted {
    pub(crate) fn rows(self, tokens: usize) -> usize {
        match self {
            Wanted::None => 0,
            Wanted::Last => tokens.min(1),
            Wanted::All => tokens,
        }
    }
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    pub(crate) tokens: &'a [TokenId],
    /// The position of the first token. The sequence's cache holds all positions before it.
    pub(crate) first_pos: usize,
    /// The sequence's pages for each group of the backend's states: enough for
    /// `first_pos + tokens.len()` positions. Pages that are written to are not shared.
    pub(crate) tables: &'a [Vec<PageId>],
    pub(crate) wanted: Wanted,
}

/// The work of one forward pass: spans of different sequences, ragged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub(crate) spans: &'a [Span<'a>],
    /// The states that will draw tokens from the first rows of logits. A device may draw right
    /// away.
    pub(crate) draws: &'a [&'a SamplerState],
    /// For a later part of a program, buffer 0 as the part before it left it: a row for each token.
    pub(crate) given: &'a [f32],
}

impl Batch<'_> {
    pub(crate) fn tokens(&self) -> usize {
        self.spans.iter().map(|s| s.tokens.len()).sum()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.spans.iter().map(|s| s.wanted.rows(s.tokens.len())).sum()
    }

    /// Rows of the [result](Program::result) of `program`.
    pub(crate) fn result_rows(&self, program: &Program) -> usize {
        match program.result().map(|buffer| buffer.rows) {
            Some(RowKind::Tokens) => self.tokens(),
            _ => self.outputs(),
        }
    }
}

/// Lets another thread stop the work of a session, even in the middle of a prompt.
///
/// Cancelling stops the running operation, or the next one if none is running. That operation
/// returns an error of the kind [`Cancelled`](crate::ErrorKind::Cancelled), once, and the session
/// stays usable.
#[derive(Debug, Clone, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Asks the session to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for and has not been reported yet.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets the request, returning whether there was one.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// The logits of a pass, in the place where they were computed: a row for each output of the batch,
/// in order. For a part of a program, the buffer that it hands on: a row for each token.
pub(crate) trait Logits: Send {
    /// Copies or borrows a row to the host.
    fn row(&mut self, row: usize) -> Result<&[f32]>;

    /// Draws a token from each row, beginning with the first, in the place where the rows lie.
    /// `states` are the batch's [draws](Batch::draws), if it had some, unchanged since it ran. An
    /// error leaves the state of its row unchanged, so that another device can compute the row
    /// again and draw from it.
    fn sample(&mut self, states: &mut [&mut SamplerState]) -> Vec<Result<Choice>> {
        states.iter_mut().enumerate().map(|(row, state)| state.sample(self.row(row)?)).collect()
    }
}

/// A loaded model on a device.
pub(crate) trait Backend: Send + Sync {
    /// One line on the device and how it is used.
    fn describe(&self) -> String;

    /// How many threads compute, the calling one included.
    fn threads(&self) -> usize;

    /// The states of all sequences.
    fn states(&self) -> &Arc<States>;

    /// The limits of one pass.
    fn limits(&self) -> Limits;

    /// Runs the program on a batch within the [limits](Self::limits): fills the cache and computes the wanted logits.
    ///
    /// # Errors
    /// `Cancelled` soon after a cancel; any error of the device. The cache positions of the batch
    /// are then undefined, all others untouched.
    fn run(&self, batch: &Batch<'_>, cancel: &Canceller) -> Result<Box<dyn Logits>>;

    /// Times each kernel that runs from now on.
    ///
    /// # Errors
    /// `Unsupported` where there are no kernels to time, `InvalidInput` where they are timed already.
    fn start_profile(&self) -> Result<()> {
        Err(Error::unsupported("the CPU runs this model: there are no GPU kernels to profile"))
    }

    /// Ends the profile that [`start_profile`](Self::start_profile) began.
    fn end_profile(&self) -> Vec<KernelTime> {
        Vec::new()
    }
}

/// The most tokens and outputs of one pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) tokens: usize,
    pub(crate) outputs: usize,
}
