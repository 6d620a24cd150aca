//! A model's matrices, in the file's layout or in the layout that is fastest for the kernels.
//!
//! On instruction sets that gain by it, matrices of a mapped file are copied to the fast layout.
//! Copying takes longer than the first token. So it is done little by little between the tokens
//! after it, and these take longer until all is copied. The file's pages are given back after
//! copying, so that a process holds each weight once. When nothing of the file is needed any more,
//! it is released, and later changes to it do not matter. Files in memory are reordered in place,
//! at once.

use super::matmul::{self, Matrix, ROW_STEP};
use super::team::{Items, Progress, Team};
use crate::gguf::Gguf;
use crate::memory::available_memory;
use crate::program::Precision;
use crate::program::{Program, Weight, WeightInfo, WeightUse};
use crate::simd::Isa;
use crate::{Error, ErrorKind, Result, memory};
use memmap2::MmapMut;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Approximate bytes that a thread copies at a time: at most, and at least if the matrix is small.
const PART: usize = 1 << 19;
const SMALL_PART: usize = 1 << 16;

/// The matrices of a program.
pub(super) struct Weights {
    isa: Isa,
    program: Arc<Program>,
    /// The file, until nothing of it is needed any more.
    file: Mutex<Option<Arc<Gguf>>>,
    /// For each weight, whether its rows are interleaved in the file's own memory.
    in_place: Vec<bool>,
    /// For each weight its copy, once complete.
    copies: Vec<OnceLock<Copy>>,
    /// Weights that are still to be copied, the next one last, and whether to interleave their
    /// rows.
    waiting: Mutex<Vec<(Weight, bool)>>,
}

struct Copy {
    bytes: MmapMut,
    is_interleaved: bool,
}

/// The file, held while a pass may read it.
pub(super) struct Held(Option<Arc<Gguf>>);

impl Weights {
    /// The matrices in `gguf`. The matrices that the program uses will be copied, if there is
    /// memory for them or the user asks for it. A file in memory with no other owner is reordered
    /// at once.
    ///
    /// # Errors
    /// `OutOfMemory`; errors of a matrix.
    pub(super) fn new(
        mut gguf: Arc<Gguf>,
        program: &Arc<Program>,
        isa: Isa,
        precision: Precision,
        team: &Team,
    ) -> Result<Self> {
        const WHAT: &str = "the list of matrices";
        // For each weight, whether the program uses it as a matrix, and whether interleaving its
        // rows helps.
        let mut uses = memory::filled(program.weights.len(), (false, false), WHAT)?;
        for op in &program.ops {
            let mut found = Ok(());
            op.each_weight(|weight, usage| {
                let (Some(uses), Some(info)) = (uses.get_mut(weight.0), program.weights.get(weight.0)) else { return };
                match usage {
                    WeightUse::Vector => {}
                    WeightUse::Rows => uses.0 = true,
                    WeightUse::Matrix => match of(&gguf, info) {
                        Ok(matrix) => {
                            *uses = (true, uses.1 || (precision == Precision::Fast && matrix.can_interleave(isa)));
                        }
                        Err(e) => found = Err(e),
                    },
                }
            });
            found?;
        }
        let (mut waiting, wish, gains) = (Vec::new(), wish(), uses.iter().any(|uses| uses.1));
        let mut in_place = memory::filled(program.weights.len(), false, WHAT)?;
        if gguf.is_mapped() {
            let used = || program.weights.iter().zip(&uses).filter(|(_, uses)| uses.0);
            let bytes = used().fold(0u64, |sum, (info, _)| sum.saturating_add(info.tensor.size()));
            if wish.unwrap_or_else(|| gains && fits(bytes, available_memory())) {
                memory::reserve(&mut waiting, uses.len(), WHAT)?;
                let used = uses.iter().enumerate().filter(|(_, uses)| uses.0);
                waiting.extend(used.map(|(i, &(_, gains))| (Weight(i), gains)));
                // In the program's order, except that its first weight comes last: the embedding,
                // which is most often the output matrix as well.
                waiting.reverse();
                let last = waiting.len().min(1);
                waiting.rotate_right(last);
            }
        } else if wish != Some(false)
            && let Some(own) = Arc::get_mut(&mut gguf)
        {
            for ((info, uses), in_place) in program.weights.iter().zip(&uses).zip(&mut in_place) {
                if uses.1 {
                    put_in_order(own, info, isa, team)?;
                    *in_place = true;
                }
            }
        }
        let copies = memory::collected(uses.iter().map(|_| OnceLock::new()), WHAT)?;
        let (program, file) = (Arc::clone(program), Mutex::new(Some(gguf)));
        Ok(Self { isa, program, file, in_place, copies, waiting: Mutex::new(waiting) })
    }

    /// Holds the file for a pass that reads matrices.
    pub(super) fn hold(&self) -> Held {
        Held(self.file.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// A weight's copy, or else its data in the file.
    pub(super) fn matrix<'a>(&'a self, held: &'a Held, weight: Weight) -> Result<Matrix<'a>> {
        let bug = || Error::new(ErrorKind::Device, "a weight is not known: a bug in wavelm");
        let info = self.program.weights.get(weight.0).ok_or_else(bug)?;
        let (matrix, is_interleaved) = match self.copies.get(weight.0).and_then(OnceLock::get) {
            Some(copy) => (matrix(info, &copy.bytes)?, copy.is_interleaved),
            None => (of(held.0.as_deref().ok_or_else(bug)?, info)?, self.in_place.get(weight.0) == Some(&true)),
        };
        Ok(if is_interleaved { matrix.written(self.isa) } else { matrix })
    }

    /// Copies for about `time`, if something is left and no other thread is copying. A matrix is
    /// always copied as a whole, which can take longer. With a token in between, that token would
    /// read again the file's pages that were given back, and the process would hold these weights
    /// twice.
    pub(super) fn go_on(&self, team: &Team, time: Duration) -> Result<()> {
        let Ok(mut waiting) = self.waiting.try_lock() else { return Ok(()) };
        if waiting.is_empty() {
            return Ok(());
        }
        let Held(Some(gguf)) = self.hold() else { return Ok(()) };
        let (began, mut copied) = (Instant::now(), false);
        while began.elapsed() < time {
            let Some((weight, is_interleaved)) = waiting.pop() else { break };
            let (Some(info), Some(place)) = (self.program.weights.get(weight.0), self.copies.get(weight.0)) else {
                continue;
            };
            let matrix = of(&gguf, info)?;
            let Ok(mut bytes) = memory::mapped(matrix.bytes_of(0..matrix.rows()).len(), "a copy of a matrix") else {
                // The file serves as well, and is kept.
                waiting.clear();
                return Ok(());
            };
            self.copy(&gguf, team, (info, matrix, is_interleaved), &mut bytes)?;
            // The weight was waiting, so it had no copy.
            let _ = place.set(Copy { bytes, is_interleaved });
            copied = true;
        }
        if waiting.is_empty() {
            *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        if copied {
            self.give_back(&gguf);
        }
        Ok(())
    }

    /// Gives all copied weights back once more. Reading the rest of a large page, or of a range
    /// that the system maps at once, brings in all of it, including neighbours' beginnings and
    /// ends.
    fn give_back(&self, gguf: &Gguf) {
        for (info, copy) in self.program.weights.iter().zip(&self.copies) {
            if copy.get().is_some() {
                gguf.give_back(&info.tensor, 0..usize::try_from(info.tensor.size()).unwrap_or(0));
            }
        }
    }

    /// Copies a matrix, in several parts per thread.
    fn copy(
        &self,
        gguf: &Gguf,
        team: &Team,
        (info, matrix, interleave): (&WeightInfo, Matrix<'_>, bool),
        copy: &mut [u8],
    ) -> Result<()> {
        let row = matrix.bytes_of(0..1).len().max(1);
        let shared = (matrix.rows() * row).div_ceil(2 * team.threads());
        let step = (shared.clamp(SMALL_PART, PART) / row).max(1).next_multiple_of(ROW_STEP);
        let parts = memory::collected(copy.chunks_mut(step * row).map(Mutex::new), "the parts of a copy")?;
        let run = |_, _, items: Range<usize>| {
            for item in items {
                let Some(to) = parts.get(item) else { continue };
                let rows = item * step..matrix.rows().min((item + 1) * step);
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                match interleave {
                    true => matrix.interleave(self.isa, rows.clone(), &mut to),
                    false => to.copy_from_slice(matrix.data_of(rows.clone())),
                }
                gguf.give_back(&info.tensor, matrix.bytes_of(rows));
            }
        };
        let items = [Items { count: parts.len(), stretches: false }];
        team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ())?;
        Ok(())
    }
}

/// The rows of a matrix that a thread copies at a time.
fn rows_at_once(row_bytes: usize) -> usize {
    (PART / row_bytes.max(1)).max(1).next_multiple_of(ROW_STEP)
}

/// The matrix of a weight, as it is in the file.
fn of<'a>(gguf: &'a Gguf, info: &WeightInfo) -> Result<Matrix<'a>> {
    matrix(info, gguf.data(&info.tensor))
}

fn matrix<'a>(info: &WeightInfo, bytes: &'a [u8]) -> Result<Matrix<'a>> {
    Matrix::new(info.tensor.tensor_type(), bytes, info.rows, info.columns)
}

/// Interleaves a weight's rows in place, in a file in memory.
fn put_in_order(gguf: &mut Gguf, info: &WeightInfo, isa: Isa, team: &Team) -> Result<()> {
    const WHAT: &str = "the parts of a matrix";
    let (ty, row) = (info.tensor.tensor_type(), info.tensor.row_bytes());
    let room = matmul::interleaved_at_once(isa) * row;
    let step = rows_at_once(row);
    let parts = gguf.data_mut(&info.tensor).chunks_mut(step.saturating_mul(row).max(1));
    let parts = memory::collected(parts.map(Mutex::new), WHAT)?;
    // Each thread has a buffer for the rows that it works on.
    let rooms = (0..team.threads()).map(|_| memory::filled(room, 0u8, WHAT).map(Mutex::new));
    let rooms = memory::try_collected(rooms, WHAT)?;
    let run = |member: usize, _, items: Range<usize>| {
        let Some(room) = rooms.get(member) else { return };
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        for part in items.filter_map(|item| parts.get(item)) {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            matmul::interleave_in_place(isa, ty, row, &mut part, &mut room);
        }
    };
    let items = [Items { count: parts.len(), stretches: false }];
    team.walk(&mut Progress::default(), &items, &|| false, run, |_, _, _| ())?;
    Ok(())
}

/// Whether `bytes` fit the available memory, with a quarter to spare. Unlike mapped memory, copies
/// cannot be dropped when memory becomes scarce. If the system does not report its memory, the
/// answer is no.
fn fits(bytes: u64, available: Option<u64>) -> bool {
    available.is_some_and(|available| bytes.saturating_add(bytes / 4) <= available)
}

/// Whether the user asks for copies of all weights, or for none.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_need_memory_to_spare() {
        assert!(fits(800, Some(1000)) && !fits(801, Some(1000)) && !fits(u64::MAX, Some(1000)) && !fits(1, None));
    }
}
