//! Draws tokens on the device that has the logits, so that only the choices come back: the kernels
//! of hip/sampling/sampling.hip.

use super::code::{Args, Kernel, Modules};
use super::device::Device;
use super::memory::{DeviceBuffer, HostBuffer, Layout, Stream};
use crate::sampler::math::UNIT;
use crate::sampler::{Drawn, Request};
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;

/// How many logits a block of each kernel takes, and how many share a peak.
const PENALIZE_SPAN: usize = 1024;
const WEIGH_SPAN: usize = 2048;
const PEAK: usize = 64;

/// The settings of a draw: struct Row of hip/sampling/sampling.hip.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Row {
    seed: u64,
    step: u64,
    log_min_p: f64,
    temperature: f32,
    top_p: f32,
    typical: f32,
    top_k: u32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    logits: u32,
    first_edit: u32,
    biases: u32,
    counts: u32,
    unused: u32,
}

/// A choice: struct Choice of hip/sampling/sampling.hip.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Choice {
    token: u32,
    logit: f32,
    best: f32,
    /// 0, unlike the value that fills the memory before.
    unused: u32,
    total: u64,
}

/// Fills the memory of choices before they are made, on the device and on the host.
const UNWRITTEN: u8 = 0xff;

impl Choice {
    /// The drawn token, or `None` if there was nothing to choose from.
    ///
    /// # Errors
    /// `Device` where no choice was written, or an impossible one.
    fn drawn(self, vocabulary: usize) -> Result<Option<Drawn>> {
        /// The kernels replace a +∞ among the logits by this.
        const INFINITE: f32 = f32::MAX;
        let Self { token, logit, best, unused, total } = self;
        if unused != 0 {
            return Err(Error::new(ErrorKind::Device, "the GPU reports success, but has drawn no token"));
        }
        if token == u32::MAX {
            return Ok(None);
        }
        // The best logit has a weight of one unit, and no other has more.
        let totals = UNIT..=UNIT.saturating_mul(vocabulary as u64);
        let is_possible =
            (token as usize) < vocabulary && logit.is_finite() && logit <= best && totals.contains(&total);
        if !is_possible {
            let text =
                format!("the GPU has drawn what cannot be: token {token} of {vocabulary}, with a logit of {logit}");
            return Err(Error::new(ErrorKind::Device, text));
        }
        if best >= INFINITE {
            return Err(Error::new(ErrorKind::Device, "the GPU reports success, but not all logits were written"));
        }
        Ok(Some(Drawn { token, logit, best, total }))
    }
}

/// The kernels, for one vocabulary.
pub(super) struct Sampling {
    device: Arc<Device>,
    penalize: Kernel,
    weigh: Kernel,
    choose: Kernel,
    vocabulary: usize,
}

/// The memory of draws, for reuse.
pub(super) struct DrawMemory {
    /// Settings and edits on their way to the device, and choices on their way back.
    host: HostBuffer,
    device: DeviceBuffer,
}

impl Sampling {
    /// Finds the kernels.
    ///
    /// # Errors
    /// `Device` where there is no code for the device, or the driver refuses it.
    pub(super) fn new(device: &Arc<Device>, modules: &Modules, vocabulary: usize) -> Result<Self> {
        let kernel = |name, threads| modules.kernel("sampling", name, threads);
        Ok(Self {
            device: Arc::clone(device),
            penalize: kernel("sample_penalize", 256)?,
            weigh: kernel("sample_weigh", 256)?,
            choose: kernel("sample_choose", 512)?,
            vocabulary,
        })
    }

    /// Draws a token for each request, from the row of logits that comes with it, and waits.
    /// `memory` is reused from an earlier draw, or made. `None` stands for a request with nothing
    /// to choose from, and an error for an impossible choice.
    ///
    /// # Errors
    /// `InvalidInput` for rows that do not exist, `OutOfMemory`, and errors of the driver.
    pub(super) fn draw(
        &self,
        stream: &Stream,
        logits: &DeviceBuffer,
        requests: &[(usize, Request<'_>)],
        memory: &mut Option<DrawMemory>,
    ) -> Result<Vec<Result<Option<Drawn>>>> {
        // SAFETY: the stream is waited for below in any case.
        let queued = unsafe { self.queue(stream, logits, requests, memory) };
        let waited = stream.wait();
        queued.and(waited)?;
        Ok(self.drawn(memory.as_ref(), requests.len()))
    }

    /// The choices of the last draw of `count` tokens. Call it only after waiting for the draw.
    pub(super) fn drawn(&self, memory: Option<&DrawMemory>, count: usize) -> Vec<Result<Option<Drawn>>> {
        let choices = memory.and_then(|memory| memory.host.as_slice().get(..count * size_of::<Choice>()));
        let drawn = choices.unwrap_or_default().chunks_exact(size_of::<Choice>()).map(|bytes| {
            let choice: Choice = bytemuck::pod_read_unaligned(bytes);
            choice.drawn(self.vocabulary)
        });
        drawn.collect()
    }

    /// Queues the draws.
    ///
    /// # Errors
    /// As [`draw`](Self::draw).
    ///
    /// # Safety
    /// Nobody uses the two memories until the stream was waited for, even after an error.
    pub(super) unsafe fn queue(
        &self,
        stream: &Stream,
        logits: &DeviceBuffer,
        requests: &[(usize, Request<'_>)],
        memory: &mut Option<DrawMemory>,
    ) -> Result<()> {
        let (vocabulary, count) = (self.vocabulary, requests.len());
        if requests.iter().any(|&(row, _)| (row + 1).saturating_mul(vocabulary) > logits.bytes() / 4) {
            return Err(Error::invalid_input("a token is to be drawn from logits that are not there"));
        }
        // A lost device may still read and write the memory, so do not touch it.
        self.device.driver()?;
        let (rows, edits) = inputs(requests)?;
        let (peaks, spans) = (vocabulary.div_ceil(PEAK), vocabulary.div_ceil(WEIGH_SPAN));
        let mut layout = Layout::default();
        // The data to send begins with the place of the choices, filled with an impossible choice.
        // That remains on the device if nothing is drawn, and on the host if nothing is copied
        // back.
        let chosen = count.saturating_mul(size_of::<Choice>());
        let at_choices = layout.part(chosen)?;
        let at_rows = layout.part(size_of_val(rows.as_slice()))?;
        let at_edits = layout.part(size_of_val(edits.as_slice()))?;
        let sent = layout.bytes();
        let at_totals = layout.part(count.saturating_mul((3 * spans + 1) * 8))?;
        let at_scores = layout.part(count.saturating_mul((PEAK + 2) * peaks * 4))?;
        let memory = self.memory(memory, sent, layout.bytes())?;

        let host = memory.host.as_mut_slice();
        host.get_mut(..chosen).unwrap_or_default().fill(UNWRITTEN);
        fill(host, at_rows, bytemuck::cast_slice(&rows));
        fill(host, at_edits, bytemuck::cast_slice(&edits));
        let at = |offset: usize| memory.device.start() + offset as u64;
        let (rows, edits, choices, totals, scores) =
            (at(at_rows), at(at_edits), at(at_choices), at(at_totals), at(at_scores));
        let logits = logits.start();
        let size = narrow(vocabulary)?;
        let launch = |kernel: &Kernel, [x, y]: [usize; 2], args: Args| {
            // SAFETY: the arguments are those that the kernels' file lists, in order, and the parts
            // have the required sizes. By the caller's promise nobody uses them until the stream
            // was waited for.
            unsafe { kernel.launch(stream, [narrow(x)?, narrow(y)?, 1], args) }
        };
        // SAFETY: the caller's promise.
        unsafe { stream.upload(&memory.device, 0, &memory.host, sent) }?;
        let args = Args::default().ptr(rows).ptr(edits).ptr(logits).ptr(scores).u32(size);
        launch(&self.penalize, [vocabulary.div_ceil(PENALIZE_SPAN), count], args)?;
        let args = Args::default().ptr(rows).ptr(logits).ptr(scores).ptr(totals).u32(size);
        launch(&self.weigh, [spans, count], args)?;
        let args = Args::default().ptr(rows).ptr(logits).ptr(scores).ptr(totals).ptr(choices).u32(size);
        launch(&self.choose, [count, 1], args)?;
        // SAFETY: the caller's promise.
        unsafe { stream.queue_download(&memory.device, at_choices, &mut memory.host, chosen) }
    }

    /// The memory of an earlier draw, if it is large enough.
    fn memory<'a>(
        &self,
        memory: &'a mut Option<DrawMemory>,
        on_host: usize,
        on_device: usize,
    ) -> Result<&'a mut DrawMemory> {
        let is_enough = |m: &DrawMemory| m.host.as_slice().len() >= on_host && m.device.bytes() >= on_device;
        if !memory.as_ref().is_some_and(is_enough) {
            // Penalty windows grow, so this allocates extra to avoid allocating at each step.
            let (on_host, on_device) = (on_host.saturating_mul(2), on_device.saturating_add(on_host));
            *memory = None;
            *memory = Some(DrawMemory {
                host: HostBuffer::new(&self.device, on_host)?,
                device: DeviceBuffer::new(&self.device, on_device, "memory for sampling")?,
            });
        }
        memory.as_mut().ok_or_else(|| Error::new(ErrorKind::Device, "no memory for sampling: a bug in wavelm"))
    }
}

/// The settings of all draws, and their edits: pairs of words.
fn inputs(requests: &[(usize, Request<'_>)]) -> Result<(Vec<Row>, Vec<[u32; 2]>)> {
    let mut edits = Vec::new();
    let row = |(logits, request): &(usize, Request<'_>)| {
        let first_edit = narrow(edits.len())?;
        edits.extend(request.biases.iter().map(|&(token, bias)| [token, bias.to_bits()]));
        edits.extend(request.counts.iter().map(|&(token, count)| [token, count]));
        Ok(Row {
            seed: request.seed,
            step: request.step,
            log_min_p: request.log_min_p,
            temperature: request.temperature,
            top_p: request.top_p,
            typical: request.typical,
            top_k: request.top_k,
            repetition_penalty: request.repetition_penalty,
            frequency_penalty: request.frequency_penalty,
            presence_penalty: request.presence_penalty,
            logits: narrow(*logits)?,
            first_edit,
            biases: narrow(request.biases.len())?,
            counts: narrow(request.counts.len())?,
            unused: 0,
        })
    };
    let rows = requests.iter().map(row).collect::<Result<_>>()?;
    Ok((rows, edits))
}

fn fill(memory: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(part) = memory.get_mut(offset..offset + bytes.len()) {
        part.copy_from_slice(bytes);
    }
}

fn narrow(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::unsupported(format!("{value} is more than a GPU kernel can count")))
}
