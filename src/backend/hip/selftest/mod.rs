//! The self-test of a device: before a model runs there, each kernel that it needs is compared with
//! the CPU's plain code.
//!
//! A *probe* is a small program with random weights that goes through the same lowering, kernels
//! and launches as the model. There is one for each kind of operation, weight type and shape of the
//! model, which gives the fault a name. There is also one for each kind of layer as a whole, in
//! which neighbours are fused as they are in the model. Each runs with one, few and many tokens,
//! which have different kernels. A device passes each probe only once in a process. The whole
//! self-test takes the CPU a tenth of a second.

mod probes;

pub(crate) use probes::{EXACT, LAYER_COLUMNS, PRODUCT_COLUMNS, PRODUCT_ROWS, Probe, ROUNDED, Sketch, fewer_heads};

use super::code::Modules;
use super::code::objects;
use super::device::Device;
use super::load::Loading;
use super::memory::{DeviceBuffer, HostBuffer, Stream};
use super::sampling::Sampling;
use super::{HipBackend, health};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::state::Sequence;
use crate::backend::{Backend, Batch, Canceller, KvType, Span, Wanted};
use crate::program::Precision;
use crate::program::{Buf, Program, is_read};
use crate::sampler::Sampler;
use crate::tokenizer::TokenId;
use crate::{Error, ErrorKind, Result};
use probes::Random;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// A GPU's number, and the origin of its kernels.
type Place = (usize, String);
/// Identifies a test that a device needs to pass only once.
type Key = (KvType, String);

/// The results for a place in this process.
#[derive(Default)]
struct Found {
    passed: HashSet<Key>,
    failed: Option<String>,
}

static FOUND: Mutex<Option<HashMap<Place, Arc<Mutex<Found>>>>> = Mutex::new(None);

/// The name of sampling among the probes.
const SAMPLING: &str = "sampling";

/// Compares every kernel that `program` needs with the CPU, unless that was done before.
///
/// # Errors
/// `Device` where a kernel differs, with its name and by how much, or where the device does not
/// answer; also errors that the device reports meanwhile.
pub(crate) fn check(
    gpu: usize,
    device: &Arc<Device>,
    modules: &Arc<Modules>,
    program: &Program,
    kv_type: KvType,
) -> Result<()> {
    let place = (gpu, objects::origin(&device.arch).unwrap_or_default());
    let found = {
        let mut all = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.get_or_insert_default().entry(place).or_default())
    };
    // The lock is held meanwhile: another thread that loads a model on the same device waits for
    // the result instead of testing too. Other devices are not blocked.
    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
    let failure = |reason: &String| Error::new(ErrorKind::Device, format!("hip:{gpu} failed its self-test: {reason}"));
    if let Some(reason) = &found.failed {
        return Err(failure(reason));
    }
    let is_new = |key: &Key| !found.passed.contains(key);
    let probes = probes::of(program)?.into_iter().map(|probe| ((kv_type, probe.key()), probe));
    let probes: Vec<_> = probes.filter(|(key, _)| is_new(key)).collect();
    let samples = is_new(&(kv_type, SAMPLING.to_owned()));
    if probes.is_empty() && !samples {
        return Ok(());
    }
    let began = std::time::Instant::now();
    let test = Test { probes, samples, kv_type, device: device.for_self_test(), modules: Arc::clone(modules) };
    let (passed, ended) = health::watched(&Arc::clone(&test.device), "its self-test", move || Ok(test.run()))?;
    let count = passed.len();
    found.passed.extend(passed);
    if let Some(reason) = ended? {
        return Err(failure(found.failed.insert(reason)));
    }
    log::debug!("hip:{gpu}: self-test of {count} probes in {:?}", began.elapsed());
    Ok(())
}

/// The tests to run.
struct Test {
    probes: Vec<(Key, Probe)>,
    samples: bool,
    kv_type: KvType,
    device: Arc<Device>,
    modules: Arc<Modules>,
}

impl Test {
    /// Runs the tests. Returns the tests that the device passed, and why it failed, if it did.
    fn run(self) -> (Vec<Key>, Result<Option<String>>) {
        let Self { probes, samples, kv_type, device, modules } = self;
        let mut passed = Vec::new();
        for (key, probe) in probes {
            match probe_fails_in_both_ways(&probe, &device, &modules, kv_type) {
                Ok(None) => passed.push(key),
                failed => return (passed, failed),
            }
        }
        if samples {
            match sampling_fails(&device, &modules) {
                Ok(None) => passed.push((kv_type, SAMPLING.to_owned())),
                failed => return (passed, failed),
            }
        }
        (passed, Ok(None))
    }
}

/// Why the device fails a probe, if it fails both with graphs and without. If only graphs compute
/// wrong results, they are not used.
fn probe_fails_in_both_ways(
    probe: &Probe,
    device: &Arc<Device>,
    modules: &Modules,
    kv_type: KvType,
) -> Result<Option<String>> {
    let had_graphs = device.has_graphs();
    let failed = probe_fails(probe, device, modules, kv_type)?;
    let Some(reason) = failed else { return Ok(None) };
    if !had_graphs {
        return Ok(Some(reason));
    }
    let is_without = &device.health().is_without_graphs;
    is_without.store(true, Ordering::Relaxed);
    let failed = probe_fails(probe, device, modules, kv_type)?;
    match failed {
        None => {
            log::warn!("{}: passes are not captured in graphs, which compute something else: {reason}", device.name)
        }
        Some(_) => is_without.store(false, Ordering::Relaxed),
    }
    Ok(failed)
}

/// Why the device fails a probe, if it does.
fn probe_fails(probe: &Probe, device: &Arc<Device>, modules: &Modules, kv_type: KvType) -> Result<Option<String>> {
    let (gguf, program) = probe.build()?;
    let (gguf, program) = (Arc::new(gguf), Arc::new(program));
    let mut loading = Loading { threads: 1, tell: &mut |_, _| Ok(()), verify: false, refuses_spill: false };
    let gpu = HipBackend::untested(device, modules, &gguf, Arc::clone(&program), kv_type, &mut loading)?;
    let options = CpuOptions { threads: Some(1), pool: None, kv_type, precision: Precision::Fast, isa: probe.isa() };
    let cpu = CpuBackend::new(gguf, Arc::clone(&program), options)?;
    let mut random = Random::new(1);
    let mut tokens = |n: usize| -> Vec<TokenId> { (0..n).map(|_| random.below(program.vocab) as TokenId).collect() };
    let (mut on_gpu, mut on_cpu) = (Runner::new(&gpu, &program)?, Runner::new(&cpu, &program)?);
    for &count in probe.passes() {
        let tokens = tokens(count);
        let wanted = if count <= gpu.limits().outputs { Wanted::All } else { Wanted::Last };
        let difference = difference(&on_cpu.run(&tokens, wanted)?, &on_gpu.run(&tokens, wanted)?);
        log::trace!("{} for {count} tokens: {difference}", probe.name(count));
        if difference.is_nan() || difference > probe.tolerance() {
            let plural = if count == 1 { "" } else { "s" };
            return Ok(Some(format!("{} for {count} token{plural} is off by {difference:.3}", probe.name(count))));
        }
    }
    Ok(None)
}

/// Why the device draws other tokens than the CPU's sampler, if it does.
fn sampling_fails(device: &Arc<Device>, modules: &Modules) -> Result<Option<String>> {
    /// A size that needs several blocks of each kernel, and a part of one.
    const VOCABULARY: usize = 5000;
    let mut random = Random::new(2);
    let mut logits: Vec<f32> = (0..VOCABULARY).map(|_| random.below(24_000) as f32 / 2000.0 - 6.0).collect();
    logits.iter_mut().step_by(7).for_each(|logit| *logit -= 20.0);
    let stream = Stream::new(device)?;
    let mut host = HostBuffer::new(device, VOCABULARY * 4)?;
    host.as_mut_slice().copy_from_slice(bytemuck::cast_slice(&logits));
    let memory = DeviceBuffer::new(device, VOCABULARY * 4, "logits of the self-test")?;
    // SAFETY: both live until the stream was waited for: each draw does that, and after an error
    // the next statement.
    let copied = unsafe { stream.upload(&memory, 0, &host, VOCABULARY * 4) };
    copied.and(stream.wait())?;
    let sampling = Sampling::new(device, modules, VOCABULARY)?;
    let builder = || Sampler::builder().seed(3);
    let samplers = [
        ("the defaults", builder().build()?),
        ("temperature 0", builder().temperature(0.0).build()?),
        ("top-p alone", builder().top_k(0).top_p(0.7).min_p(0.0).build()?),
        ("no cut", builder().top_k(0).top_p(1.0).min_p(0.0).temperature(1.5).build()?),
        ("typical", builder().typical(0.6).build()?),
        ("penalties", builder().repetition_penalty(1.3).frequency_penalty(0.2).presence_penalty(0.1).build()?),
    ];
    let mut draw = None;
    for (what, sampler) in samplers {
        let mut state = sampler.start(&[1, 4, 4, 9, 4999])?;
        for _ in 0..2 {
            let request = state.request(VOCABULARY)?;
            let request =
                request.ok_or_else(|| Error::new(ErrorKind::Device, "a draw is not possible: a bug in wavelm"))?;
            let drawn = sampling.draw(&stream, &memory, &[(0, request)], &mut draw)?;
            let drawn = drawn.into_iter().next().and_then(Result::ok).flatten();
            let (drawn, expected) = (drawn.map(|d| d.token), state.sample(&logits)?.token);
            if drawn != Some(expected) {
                let drawn = drawn.map_or("nothing".to_owned(), |token| format!("token {token}"));
                return Ok(Some(format!("sampling with {what} draws {drawn}, not {expected}")));
            }
        }
    }
    Ok(None)
}

/// A sequence of tokens on a backend.
struct Runner<'a> {
    backend: &'a dyn Backend,
    program: &'a Program,
    state: Sequence,
}

impl<'a> Runner<'a> {
    fn new(backend: &'a dyn Backend, program: &'a Program) -> Result<Self> {
        Ok(Self { backend, program, state: Sequence::new(backend.states())? })
    }

    /// Runs tokens; returns all rows of the result.
    fn run(&mut self, tokens: &[TokenId], wanted: Wanted) -> Result<Vec<f32>> {
        let first_pos = self.state.len();
        let end = first_pos + tokens.len();
        self.state.prepare(end)?;
        let spans = [Span { tokens, first_pos, tables: self.state.tables(), wanted }];
        let given = self.given(tokens)?;
        let batch = Batch { spans: &spans, draws: &[], given: &given };
        let mut result = self.backend.run(&batch, &Canceller::default())?;
        let mut rows = Vec::new();
        for row in 0..batch.result_rows(self.program) {
            rows.extend_from_slice(result.row(row)?);
        }
        self.state.commit(end);
        Ok(rows)
    }

    /// Rows of buffer 0 for a part of a program that another part begins. They follow from the
    /// tokens.
    fn given(&self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        if !is_read(&self.program.ops, Buf(0)) {
            return Ok(Vec::new());
        }
        let columns = self.program.columns(Buf(0))?;
        let row = |&token: &TokenId| {
            let mut random = Random::new(u64::from(token));
            (0..columns).map(move |_| random.float())
        };
        Ok(tokens.iter().flat_map(row).collect())
    }
}

/// The largest difference, relative to the largest number; NaN if `found` contains one.
fn difference(expected: &[f32], found: &[f32]) -> f32 {
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let differences = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
    // `max` of floats would drop a NaN.
    differences.fold(0.0, |worst, d| if d <= worst { worst } else { d }) / largest
}
