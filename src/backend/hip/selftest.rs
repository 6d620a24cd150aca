//! The self-test of a device: before a model runs there, each kernel that it needs is compared with the CPU's plain code.
//!
//! A *probe* is a small program with random weights that goes through the same lowering, kernels and launches as the
//! model: one for each kind of operation, weight type and shape of the model, which gives the fault a name, and one for
//! each kind of layer as a whole, in which neighbours are fused as they are in the model. Each runs with one, few and
//! many tokens, which have different kernels. A device passes a probe once in a process. All of it takes the CPU a tenth
//! of a second.

mod probes;

use super::device::Device;
use super::modules::Modules;
use super::weights::Loading;
use super::{HipBackend, objects};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::kv::KvSequence;
use crate::backend::{Backend, Batch, Canceller, KvType, Span, Wanted};
use crate::model::Precision;
use crate::model::program::Program;
use crate::tokenizer::TokenId;
use crate::{Error, ErrorKind, Result};
use probes::{Probe, Random};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// A GPU by its number, and where its kernels come from.
type Place = (usize, String);

/// What was found in this process.
#[derive(Default)]
struct Found {
    passed: HashSet<(Place, KvType, String)>,
    failed: HashMap<Place, String>,
}

static FOUND: Mutex<Option<Found>> = Mutex::new(None);

/// Compares every kernel that `program` needs with the CPU, if that was not done before.
///
/// # Errors
/// `Device` where one differs, with its name and by how much; also what the device reports meanwhile.
pub(super) fn check(
    gpu: usize,
    device: &Arc<Device>,
    modules: &Modules,
    program: &Program,
    kv_type: KvType,
) -> Result<()> {
    let place = (gpu, objects::origin(&device.arch).unwrap_or_default());
    // Held meanwhile: who loads a model on the same device waits for the result instead of testing too.
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let found = found.get_or_insert_default();
    let failure = |reason: &String| Error::new(ErrorKind::Device, format!("hip:{gpu} failed its self-test: {reason}"));
    if let Some(reason) = found.failed.get(&place) {
        return Err(failure(reason));
    }
    let began = std::time::Instant::now();
    let mut count = 0;
    for probe in probes::of(program) {
        let key = (place.clone(), kv_type, probe.key());
        if found.passed.contains(&key) {
            continue;
        }
        if let Some(reason) = probe_fails(&probe, device, modules, kv_type)? {
            return Err(failure(found.failed.entry(place).or_insert(reason)));
        }
        found.passed.insert(key);
        count += 1;
    }
    if count > 0 {
        log::debug!("hip:{gpu}: self-test of {count} probes in {:?}", began.elapsed());
    }
    Ok(())
}

/// Why the device fails a probe, if it does.
fn probe_fails(probe: &Probe, device: &Arc<Device>, modules: &Modules, kv_type: KvType) -> Result<Option<String>> {
    let (gguf, program) = probe.build()?;
    let (gguf, program) = (Arc::new(gguf), Arc::new(program));
    let mut loading = Loading { threads: 1, tell: &mut |_, _| Ok(()) };
    let gpu = HipBackend::untested(device, modules, &gguf, Arc::clone(&program), kv_type, &mut loading)?;
    let options = CpuOptions { threads: Some(1), pool: None, kv_type, precision: Precision::Fast, isa: probe.isa() };
    let cpu = CpuBackend::new(gguf, Arc::clone(&program), options)?;
    let mut random = Random::new(1);
    let mut tokens = |n: usize| -> Vec<TokenId> { (0..n).map(|_| random.below(program.vocab) as TokenId).collect() };
    let (mut on_gpu, mut on_cpu) = (Runner::new(&gpu, &program), Runner::new(&cpu, &program));
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

/// A sequence on a backend.
struct Runner<'a> {
    backend: &'a dyn Backend,
    program: &'a Program,
    kv: KvSequence,
    len: usize,
}

impl<'a> Runner<'a> {
    fn new(backend: &'a dyn Backend, program: &'a Program) -> Self {
        Self { backend, program, kv: KvSequence::new(backend.kv_pool()), len: 0 }
    }

    /// All rows of the result.
    fn run(&mut self, tokens: &[TokenId], wanted: Wanted) -> Result<Vec<f32>> {
        let first_pos = self.len;
        self.len += tokens.len();
        self.kv.prepare(first_pos, self.len)?;
        let spans = [Span { tokens, first_pos, pages: self.kv.pages(), wanted }];
        let batch = Batch { spans: &spans };
        let mut result = self.backend.run(&batch, &Canceller::default())?;
        let mut rows = Vec::new();
        for row in 0..batch.result_rows(self.program) {
            rows.extend_from_slice(result.row(row)?);
        }
        Ok(rows)
    }
}

/// The largest difference, relative to the largest number: not a number where one of `found` is none.
fn difference(expected: &[f32], found: &[f32]) -> f32 {
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let differences = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
    // `max` of floats would drop a NaN.
    differences.fold(0.0, |worst, d| if d <= worst { worst } else { d }) / largest
}
