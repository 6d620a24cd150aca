//! A model on several devices: each runs a segment of the program, one after the other. One row for
//! each token crosses from segment to segment. The state of a layer lies on the device that runs the
//! layer.

use super::state::States;
use super::{Backend, Batch, Canceller, KernelTime, Limits, Logits, Span, Wanted};
use crate::program::{Cut, Program};
use crate::{Error, ErrorKind, Result, memory};
use std::ops::Range;
use std::sync::Arc;

/// What memory is for, in texts of errors.
const WHAT: &str = "the plan of a pass";

/// The parts of a program between cuts, which must be in the order of the program. The result of
/// each part but the last is the buffer that crosses; it is buffer 0 of both parts.
///
/// # Errors
/// `Unsupported` where cuts hand on different buffers, `OutOfMemory`.
pub(crate) fn parts(program: &Program, cuts: &[Cut]) -> Result<Vec<Program>> {
    let mut parts = memory::with_room(cuts.len() + 1, "the parts of a model")?;
    let seam = cuts.first().map(|cut| cut.buf);
    if cuts.iter().any(|cut| Some(cut.buf) != seam) {
        return Err(Error::unsupported("this model cannot be cut at these layers; place all of it on one device"));
    }
    let ends = cuts.iter().map(|cut| cut.op).chain([program.ops.len()]);
    let mut start = 0;
    for end in ends {
        parts.push(program.part(program.ops.get(start..end).unwrap_or_default(), seam)?);
        start = end;
    }
    Ok(parts)
}

/// A model on several devices.
pub(crate) struct Segments {
    segments: Vec<Segment>,
    states: Arc<States>,
}

struct Segment {
    backend: Box<dyn Backend>,
    /// Its groups among those of the whole.
    groups: Range<usize>,
}

impl Segments {
    /// A backend from those of the [parts] of a program, in order.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn new(backends: Vec<Box<dyn Backend>>) -> Result<Self> {
        let states = States::joined(backends.iter().map(|backend| backend.states()))?;
        let mut segments = memory::with_room(backends.len(), "the segments of a model")?;
        let mut first = 0;
        for backend in backends {
            let groups = first..first + backend.states().len();
            first = groups.end;
            segments.push(Segment { backend, groups });
        }
        Ok(Self { segments, states })
    }

    /// The segments that others follow, and the last one.
    fn parts(&self) -> Result<(&Segment, &[Segment])> {
        let none = || Error::new(ErrorKind::Device, "a model has no segments: a bug in wavelm");
        self.segments.split_last().ok_or_else(none)
    }
}

impl Segment {
    /// Runs this segment of a pass.
    fn run(&self, batch: &Batch<'_>, given: &[f32], is_last: bool, cancel: &Canceller) -> Result<Box<dyn Logits>> {
        let bug = || Error::new(ErrorKind::Device, "a sequence lacks page tables: a bug in wavelm");
        let spans = batch.spans.iter().map(|&span| {
            let tables = span.tables.get(self.groups.clone()).ok_or_else(bug)?;
            Ok(Span { tables, wanted: if is_last { span.wanted } else { Wanted::None }, ..span })
        });
        let spans = memory::try_collected(spans, WHAT)?;
        let draws = if is_last { batch.draws } else { &[] };
        self.backend.run(&Batch { spans: &spans, draws, given }, cancel)
    }
}

impl Backend for Segments {
    fn describe(&self) -> String {
        let texts: Vec<String> = self.segments.iter().map(|segment| segment.backend.describe()).collect();
        texts.join("; then ")
    }

    fn threads(&self) -> usize {
        self.segments.iter().map(|segment| segment.backend.threads()).max().unwrap_or(1)
    }

    fn states(&self) -> &Arc<States> {
        &self.states
    }

    fn limits(&self) -> Limits {
        let limits = || self.segments.iter().map(|segment| segment.backend.limits());
        let tokens = limits().map(|limits| limits.tokens).min().unwrap_or(1);
        Limits { tokens, outputs: limits().next_back().map_or(1, |limits| limits.outputs) }
    }

    fn run(&self, batch: &Batch<'_>, cancel: &Canceller) -> Result<Box<dyn Logits>> {
        let (last, others) = self.parts()?;
        let mut rows = memory::copied(batch.given, WHAT)?;
        for segment in others {
            let mut between = segment.run(batch, &rows, false, cancel)?;
            rows.clear();
            for row in 0..batch.tokens() {
                memory::extend(&mut rows, between.row(row)?, "what one device hands to the next")?;
            }
        }
        last.run(batch, &rows, true, cancel)
    }

    fn start_profile(&self) -> Result<()> {
        // Only GPUs can be profiled.
        let mut started: Result<()> = Err(Error::unsupported("no segment of this model has GPU kernels to profile"));
        for segment in &self.segments {
            match segment.backend.start_profile() {
                Err(e) if e.kind() == ErrorKind::Unsupported => {}
                Err(e) => {
                    self.end_profile();
                    return Err(e);
                }
                Ok(()) => started = Ok(()),
            }
        }
        started
    }

    fn end_profile(&self) -> Vec<KernelTime> {
        self.segments.iter().flat_map(|segment| segment.backend.end_profile()).collect()
    }
}
