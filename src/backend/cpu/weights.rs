//! Copies of a model's matrices in the order that the kernels read them in, for instruction sets that gain by it.
//! Copying takes longer than the first token, so it is done little by little between the tokens after it, which take longer
//! until all are copied. The file stays mapped, but what was copied is given back, so that a process holds each weight once.

use super::isa::Isa;
use super::matmul::{Matrix, ROW_STEP};
use super::team::{Items, Progress, Team};
use crate::gguf::Gguf;
use crate::model::Precision;
use crate::model::program::{Op, Program, Weight};
use crate::{Error, ErrorKind, Result};
use memmap2::MmapMut;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that a thread copies at a time, about: at most, and at least where a matrix is small.
const PART: usize = 1 << 19;
const SMALL_PART: usize = 1 << 16;

/// The matrix of a weight, as it is in the file.
pub(super) fn matrix<'a>(gguf: &'a Gguf, program: &Program, weight: Weight) -> Result<Matrix<'a>> {
    let info = program.weights.get(weight.0);
    let info = info.ok_or_else(|| Error::new(ErrorKind::Device, "a weight is not known: a bug in wavelm"))?;
    Matrix::new(info.tensor.tensor_type(), gguf.data(&info.tensor), info.rows, info.columns)
}

/// The matrices of a program that are interleaved, or will be.
pub(super) struct Copies {
    isa: Isa,
    /// For each weight its copy, if it is complete.
    complete: Vec<OnceLock<MmapMut>>,
    /// What is still to be copied, the next one last.
    waiting: Mutex<Vec<Weight>>,
}

impl Copies {
    /// Nothing is copied yet; what will be is what the program multiplies with, if there is memory for it or the user wants it.
    pub(super) fn new(gguf: &Gguf, program: &Program, isa: Isa, precision: Precision) -> Result<Self> {
        let (mut waiting, mut bytes, wish) = (Vec::new(), 0, wish());
        for op in &program.ops {
            if let Op::MatMul { weight, .. } = op
                && !waiting.contains(weight)
            {
                let matrix = matrix(gguf, program, *weight)?;
                if matrix.can_interleave(isa) {
                    waiting.push(*weight);
                    bytes += matrix.bytes_of(0..matrix.rows()).len() as u64;
                }
            }
        }
        waiting.reverse();
        let wanted = wish.unwrap_or_else(|| fits(bytes, available_memory()));
        if precision != Precision::Fast || !gguf.is_mapped() || !wanted {
            waiting.clear();
        }
        let complete = program.weights.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { isa, complete, waiting: Mutex::new(waiting) })
    }

    /// The copy of a matrix.
    pub(super) fn get<'a>(&'a self, weight: Weight, of: Matrix<'a>) -> Option<Matrix<'a>> {
        Some(of.interleaved(self.isa, self.complete.get(weight.0)?.get()?))
    }

    /// Copies for about as long as is given, if there is something left to copy that nobody else is copying. A matrix is copied
    /// as a whole, which can take longer: where a token was computed in between, it would read the file's pages again that were
    /// given back, and the process would hold these weights twice.
    pub(super) fn go_on(&self, gguf: &Gguf, program: &Program, team: &Team, time: Duration) -> Result<()> {
        let Ok(mut waiting) = self.waiting.try_lock() else { return Ok(()) };
        let (began, mut copied) = (Instant::now(), false);
        while began.elapsed() < time {
            let Some(weight) = waiting.pop() else { break };
            let matrix = matrix(gguf, program, weight)?;
            let Ok(mut copy) = MmapMut::map_anon(matrix.bytes_of(0..matrix.rows()).len()) else {
                // The file serves as well.
                waiting.clear();
                break;
            };
            self.copy(gguf, program, team, (weight, matrix), &mut copy)?;
            if let Some(place) = self.complete.get(weight.0) {
                // There was none, as the weight was waiting.
                let _ = place.set(copy);
            }
            copied = true;
        }
        if copied { self.give_back(gguf, program) } else { Ok(()) }
    }

    /// Gives back what was copied once more: who reads the rest of a large page, or of what the system maps at a time, gets all
    /// of it, beginnings and ends of neighbours among it.
    fn give_back(&self, gguf: &Gguf, program: &Program) -> Result<()> {
        for (i, info) in program.weights.iter().enumerate() {
            if self.complete.get(i).is_some_and(|copy| copy.get().is_some()) {
                let matrix = matrix(gguf, program, Weight(i))?;
                gguf.give_back(&info.tensor, matrix.bytes_of(0..matrix.rows()));
            }
        }
        Ok(())
    }

    /// Copies a matrix, with some parts for each thread.
    fn copy(
        &self,
        gguf: &Gguf,
        program: &Program,
        team: &Team,
        (weight, matrix): (Weight, Matrix<'_>),
        copy: &mut [u8],
    ) -> Result<()> {
        let row = matrix.bytes_of(0..1).len().max(1);
        let shared = (matrix.rows() * row).div_ceil(2 * team.threads());
        let step = (shared.clamp(SMALL_PART, PART) / row).max(1).next_multiple_of(ROW_STEP);
        let parts: Vec<_> = copy.chunks_mut(step * row).map(Mutex::new).collect();
        let run = |_, _, items: Range<usize>| {
            for item in items {
                let Some(to) = parts.get(item) else { continue };
                let rows = item * step..matrix.rows().min((item + 1) * step);
                matrix.interleave(self.isa, rows.clone(), &mut to.lock().unwrap_or_else(PoisonError::into_inner));
                if let Some(info) = program.weights.get(weight.0) {
                    gguf.give_back(&info.tensor, matrix.bytes_of(rows));
                }
            }
        };
        let items = [Items { count: parts.len(), stretches: false }];
        team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ())?;
        Ok(())
    }
}

/// Whether so many bytes fit the memory that there is, with a quarter to spare: copies, unlike what is mapped, cannot be
/// dropped where memory becomes scarce. Where the system does not tell, they may not fit.
fn fits(bytes: u64, available: Option<u64>) -> bool {
    available.is_some_and(|available| bytes.saturating_add(bytes / 4) <= available)
}

/// The memory that is free or holds what can be read again, and in a container (cgroup 2) no more than its limit.
#[cfg(target_os = "linux")]
fn available_memory() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    available_in(&std::fs::read_to_string("/proc/meminfo").ok()?, limit.as_deref())
}

#[cfg(not(target_os = "linux"))]
fn available_memory() -> Option<u64> {
    None // only Linux tells without a system library
}

/// What `/proc/meminfo` says in kilobytes, and the limit in bytes or "max".
#[cfg(target_os = "linux")]
fn available_in(meminfo: &str, limit: Option<&str>) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)?;
    let limit = limit.and_then(|limit| limit.trim().parse().ok());
    Some(limit.map_or(available, |limit| available.min(limit)))
}

/// Whether the user wants all that can be copied, or none of it.
fn wish() -> Option<bool> {
    match std::env::var("WAVELM_CPU_WEIGHTS").as_deref() {
        Ok("copied") => Some(true),
        Ok("mapped") => Some(false),
        Ok("") | Err(_) => None,
        Ok(other) => {
            log::warn!("WAVELM_CPU_WEIGHTS={other} is neither \"copied\" nor \"mapped\"; ignored");
            None
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn copies_need_memory_to_spare() {
        let info = "MemTotal:       24000000 kB\nMemFree: 100 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available_in(info, None), Some(20_480_000_000));
        assert_eq!(available_in(info, Some("max\n")), Some(20_480_000_000));
        assert_eq!(available_in(info, Some("1000000\n")), Some(1_000_000));
        assert_eq!(available_in("MemTotal: 1 kB", Some("1")), None);
        assert!(available_memory().is_some_and(|bytes| bytes > 0));
        assert!(fits(800, Some(1000)) && !fits(801, Some(1000)) && !fits(u64::MAX, Some(1000)) && !fits(1, None));
    }
}
