//! Copies of a model's matrices in the order that the kernels read them in, which is as fast as memory is; from the file's
//! order, they have about 85% of that. The file stays mapped, but what was copied is given back, so that a process holds
//! each weight once. Where memory is short, the kernels work on the file as it is.

use super::isa::Isa;
use super::matmul::{Matrix, ROW_STEP};
use super::team::{Items, Progress, Team};
use crate::gguf::Gguf;
use crate::model::program::{Op, Program, Weight};
use crate::{Error, ErrorKind, Result};
use memmap2::MmapMut;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes that a thread copies at a time, about: few, since what is copied is held twice meanwhile.
const PART: usize = 1 << 20;
/// Where matrices begin: at cache lines.
const ALIGNMENT: usize = 64;

/// The matrix of a weight, as it is in the file.
pub(super) fn matrix<'a>(gguf: &'a Gguf, program: &Program, weight: Weight) -> Result<Matrix<'a>> {
    let info = program.weights.get(weight.0);
    let info = info.ok_or_else(|| Error::new(ErrorKind::Device, "a weight is not known: a bug in wavelm"))?;
    Matrix::new(info.tensor.tensor_type(), gguf.data(&info.tensor), info.rows, info.columns)
}

/// The matrices that are interleaved.
#[derive(Default)]
pub(super) struct Interleaved {
    memory: Option<MmapMut>,
    /// For each weight where its copy is, if there is one.
    places: Vec<Option<Range<usize>>>,
}

/// Rows to be copied, and to where.
struct Part<'a> {
    weight: usize,
    matrix: Matrix<'a>,
    rows: Range<usize>,
    to: &'a mut [u8],
}

impl Interleaved {
    /// Copies the matrices that the program multiplies with, if there is enough memory.
    pub(super) fn of(gguf: &Gguf, program: &Program, isa: Isa, team: &Team) -> Result<Self> {
        let mut found = Self { memory: None, places: vec![None; program.weights.len()] };
        let mut bytes = 0;
        let mut matrices = Vec::new();
        for op in &program.ops {
            if let Op::MatMul { weight, .. } = op
                && let Some(place @ None) = found.places.get_mut(weight.0)
            {
                let matrix = matrix(gguf, program, *weight)?;
                if matrix.can_interleave(isa) {
                    let size = matrix.rows() * matrix.row(0).len();
                    *place = Some(bytes..bytes + size);
                    bytes = (bytes + size).next_multiple_of(ALIGNMENT);
                    matrices.push((weight.0, matrix, size));
                }
            }
        }
        let memory = match bytes > 0 && gguf.is_mapped() && wanted(bytes as u64) {
            true => MmapMut::map_anon(bytes).ok(),
            false => None,
        };
        let Some(mut memory) = memory else { return Ok(Self::default()) };
        // Fewer entries of page tables to look for. It is a wish: systems may have none.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);

        let mut parts = Vec::new();
        let mut left = &mut memory[..];
        for (weight, matrix, size) in matrices {
            let (mut copy, rest) = left.split_at_mut(size.next_multiple_of(ALIGNMENT).min(left.len()));
            left = rest;
            let row = matrix.row(0).len();
            let step = (PART / row.max(1)).max(1).next_multiple_of(ROW_STEP);
            for first in (0..matrix.rows()).step_by(step) {
                let rows = first..matrix.rows().min(first + step);
                let to;
                (to, copy) = copy.split_at_mut(rows.len() * row);
                parts.push(Mutex::new(Some(Part { weight, matrix, rows, to })));
            }
        }
        let items = [Items { count: parts.len(), stretches: false }];
        let run = |_, _, items: Range<usize>| {
            for part in parts.get(items).unwrap_or_default() {
                if let Some(Part { weight, matrix, rows, to }) =
                    part.lock().unwrap_or_else(PoisonError::into_inner).take()
                {
                    let row = matrix.row(0).len();
                    matrix.interleave(isa, rows.clone(), to);
                    if let Some(info) = program.weights.get(weight) {
                        gguf.give_back(&info.tensor, rows.start * row..rows.end * row);
                    }
                }
            }
        };
        team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ());
        drop(parts);
        Ok(Self { memory: Some(memory), ..found })
    }

    /// The copy of a weight.
    pub(super) fn get(&self, weight: usize) -> Option<&[u8]> {
        self.memory.as_ref()?.get(self.places.get(weight)?.clone()?)
    }
}

/// Whether to copy so many bytes: where nobody says, if half as many again are available.
fn wanted(bytes: u64) -> bool {
    match std::env::var("WAVELM_CPU_WEIGHTS").as_deref() {
        Ok("mapped") => false,
        Ok("copied") => true,
        other => {
            if let Ok(other) = other {
                log::warn!("WAVELM_CPU_WEIGHTS={other} is neither \"copied\" nor \"mapped\"; ignored");
            }
            available().is_some_and(|available| available / 3 * 2 > bytes)
        }
    }
}

/// Bytes of memory that this process can have without others losing theirs, if the system tells.
fn available() -> Option<u64> {
    let system = kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = own.lines().filter_map(|line| line.strip_prefix("0::")).flat_map(|path| {
        let path = PathBuf::from(format!("/sys/fs/cgroup{path}"));
        path.ancestors().filter_map(left_of_group).collect::<Vec<_>>()
    });
    // Where control groups are of the first version.
    let old = left(Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache");
    limits.chain(old).chain([system]).min()
}

fn left_of_group(group: &Path) -> Option<u64> {
    left(group, "memory.max", "memory.current", "file")
}

/// What is left to a control group; what its files take in the page cache can be had.
fn left(group: &Path, limit: &str, usage: &str, cache: &str) -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let statistics = read("memory.stat").unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse().ok()).unwrap_or(0);
    Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(cached)))
}

/// A line of /proc/meminfo, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_where_the_system_tells() {
        let text = "MemTotal:       24000 kB\nMemFree:  7 kB\nMemAvailable:   23000 kB\n";
        assert_eq!(kilobytes(text, "MemAvailable:"), Some(23000 * 1024));
        assert_eq!(kilobytes(text, "SwapFree:"), None);
        if cfg!(target_os = "linux") {
            assert!(available().is_some_and(|bytes| bytes > 1 << 20), "{:?}", available());
        }
    }
}
