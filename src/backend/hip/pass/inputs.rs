//! A pass's inputs from the host, in one copy: tokens, positions, page tables, angles, and zeros
//! for counters.

use crate::backend::hip::device::Device;
use crate::backend::hip::memory::{DeviceBuffer, HostBuffer, Layout, Stream};
use crate::backend::state::{NO_PAGE, PAGE_LEN};
use crate::backend::{Batch, Wanted};
use crate::program::Program;
use crate::{Error, Result, memory};
use std::ops::Range;
use std::sync::Arc;

/// Spans of at least this many tokens attend in tiles.
const PROMPT_TOKENS: usize = 16;
/// Passes of at most this many tokens decode.
const MOST_DECODED: usize = 8;

/// Addresses and sizes of the inputs of a pass.
#[derive(Default)]
pub(crate) struct Inputs {
    pub(crate) tokens: usize,
    pub(crate) outputs: usize,
    /// For each token its id, its position and the row of its page table.
    pub(crate) ids: u64,
    pub(crate) positions: u64,
    pub(crate) token_tables: u64,
    /// For each group of layers, page tables with `table_len` entries each. Kernels do not read the
    /// entries of pages that left a window.
    pub(crate) tables: Vec<u64>,
    pub(crate) table_len: usize,
    /// The rows whose logits are wanted.
    pub(crate) wanted: u64,
    /// Zeros, which blocks use as counters. They are uploaded with each pass, so values left over
    /// from before do not matter.
    pub(crate) counters: u64,
    /// For each rotary embedding, cosines and sines for each token.
    pub(crate) angles: Vec<u64>,
    /// Runs of tokens of short spans.
    pub(crate) decode: Vec<Range<usize>>,
    /// For each tile size the tiles of the long spans: their address, and how many.
    pub(crate) tiles: Vec<(usize, u64, usize)>,
    /// The most pages that a token of a short span sees, or slightly more.
    pub(crate) pages: usize,
    /// Whether each token belongs to a different sequence.
    pub(crate) single: bool,
}

impl Inputs {
    /// Whether this pass decodes: it has few tokens, all in short spans. More passes of its shape
    /// will follow.
    pub(crate) fn decodes(&self) -> bool {
        self.tokens > 0 && self.tokens <= MOST_DECODED && self.tiles.iter().all(|(.., count)| *count == 0)
    }

    /// The address of each input.
    pub(crate) fn addresses(&self) -> Vec<u64> {
        let single = [self.ids, self.positions, self.token_tables, self.wanted, self.counters];
        single.into_iter().chain(self.tables.iter().copied()).chain(self.angles.iter().copied()).collect()
    }
}

/// The memory for inputs, on the host and on the device. It grows when a pass needs more.
pub(crate) struct InputMemory {
    host: HostBuffer,
    device: DeviceBuffer,
}

impl InputMemory {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self> {
        const FIRST: usize = 64 << 10;
        Ok(Self { host: HostBuffer::new(device, FIRST)?, device: DeviceBuffer::new(device, FIRST, "inputs")? })
    }

    /// Queues the copy of a batch's inputs. `tile_sizes` are attention's tile sizes in tokens, and
    /// `counters` is the number of zeros.
    ///
    /// # Errors
    /// `InvalidInput` for tokens that are not in the vocabulary, or positions without a page among `capacity`.
    ///
    /// # Safety
    /// The stream was waited for since the last call, and is before this is dropped.
    pub(crate) unsafe fn upload(
        &mut self,
        device: &Arc<Device>,
        stream: &Stream,
        program: &Program,
        batch: &Batch<'_>,
        tile_sizes: &[usize],
        counters: usize,
    ) -> Result<Inputs> {
        let mut writer = Writer { layout: Layout::default(), parts: Vec::new() };
        let mut inputs = Inputs { tokens: batch.tokens(), outputs: batch.outputs(), ..Inputs::default() };
        let (mut ids, mut positions, mut token_tables, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // Rounds up to a power of two, so that successive passes have the same launches.
        let pages = batch.spans.iter().flat_map(|span| span.tables).map(Vec::len);
        inputs.table_len = pages.max().unwrap_or(0).next_power_of_two();
        let groups = batch.spans.first().map_or(0, |span| span.tables.len());
        let table_words = inputs.table_len.saturating_mul(batch.spans.len());
        let mut tables = memory::try_collected((0..groups).map(|_| memory::with_room(table_words, WHAT)), WHAT)?;
        let mut tiles = vec![Vec::new(); tile_sizes.len()];
        for (number, span) in batch.spans.iter().enumerate() {
            let (first, count) = (ids.len(), span.tokens.len());
            let has_pages = |&end: &usize| {
                span.tables.len() == groups && span.tables.iter().all(|table| end.div_ceil(PAGE_LEN) <= table.len())
            };
            let end = span.first_pos.checked_add(count).filter(has_pages);
            let Some(end) = end else {
                return Err(Error::invalid_input(format!("a pass over {count} tokens has too few cache pages")));
            };
            if let Some(id) = span.tokens.iter().find(|&&id| id as usize >= program.vocab) {
                return Err(Error::invalid_input(format!("token {id} is not in the vocabulary of {}", program.vocab)));
            }
            ids.extend_from_slice(span.tokens);
            positions.extend((span.first_pos..end).map(narrow));
            token_tables.extend(std::iter::repeat_n(narrow(number), count));
            for (table, pages) in tables.iter_mut().zip(span.tables) {
                table.extend(pages.iter().map(|&page| if page == NO_PAGE { 0 } else { page }));
                table.resize(inputs.table_len * (number + 1), 0);
            }
            match span.wanted {
                Wanted::None => {}
                Wanted::Last => wanted.extend((first..first + count).last().map(narrow)),
                Wanted::All => wanted.extend((first..first + count).map(narrow)),
            }
            if count >= PROMPT_TOKENS && !tile_sizes.is_empty() {
                for (tiles, &size) in tiles.iter_mut().zip(tile_sizes) {
                    let starts = (0..count).step_by(size);
                    tiles.extend(starts.flat_map(|at| [narrow(first + at), narrow(size.min(count - at))]));
                }
            } else if count > 0 {
                inputs.pages = inputs.pages.max(end.div_ceil(PAGE_LEN).next_power_of_two());
                match inputs.decode.last_mut() {
                    Some(run) if run.end == first => run.end = first + count,
                    _ => inputs.decode.push(first..first + count),
                }
            }
        }
        inputs.single = batch.spans.iter().all(|span| span.tokens.len() <= 1);
        inputs.counters = writer.part(&vec![0; counters])?;
        inputs.ids = writer.part(&ids)?;
        inputs.positions = writer.part(&positions)?;
        inputs.token_tables = writer.part(&token_tables)?;
        inputs.tables = memory::try_collected(tables.iter().map(|table| writer.part(table)), WHAT)?;
        inputs.wanted = writer.part(&wanted)?;
        for (tiles, &size) in tiles.iter().zip(tile_sizes) {
            inputs.tiles.push((size, writer.part(tiles)?, tiles.len() / 2));
        }
        for rope in &program.ropes {
            let pairs = rope.inv_freq.len();
            let mut angles = memory::filled(inputs.tokens.saturating_mul(pairs * 2), 0.0f32, WHAT)?;
            for (row, &position) in angles.chunks_exact_mut((pairs * 2).max(1)).zip(&positions) {
                let (cos, sin) = row.split_at_mut(pairs);
                rope.angles(position as usize, cos, sin);
            }
            inputs.angles.push(writer.part(bytemuck::cast_slice(&angles))?);
        }
        let bytes = writer.layout.bytes();
        if bytes > self.device.bytes() {
            let larger = bytes.saturating_mul(2);
            self.host = HostBuffer::new(device, larger)?;
            self.device = DeviceBuffer::new(device, larger, "inputs")?;
        }
        writer.write(self.host.as_mut_slice());
        // SAFETY: the caller's promise.
        unsafe { stream.upload(&self.device, 0, &self.host, bytes) }?;
        inputs.relocate(self.device.start());
        Ok(inputs)
    }
}

impl Inputs {
    /// Turns offsets into addresses.
    fn relocate(&mut self, start: u64) {
        let Self { ids, positions, token_tables, wanted, counters, .. } = self;
        [ids, positions, token_tables, wanted, counters]
            .into_iter()
            .chain(&mut self.tables)
            .chain(&mut self.angles)
            .chain(self.tiles.iter_mut().map(|t| &mut t.1))
            .for_each(|a| *a += start);
    }
}

/// Narrows positions and rows, which are far below 2^32: a pass has at most `MOST_TOKENS` rows, and
/// a position has a page of memory.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What the memory is for, in texts of errors.
const WHAT: &str = "the inputs of a pass";

/// Collects parts, in 32-bit words.
struct Writer {
    layout: Layout,
    parts: Vec<(usize, Vec<u32>)>,
}

impl Writer {
    /// The offset of a new part.
    fn part(&mut self, words: &[u32]) -> Result<u64> {
        let offset = self.layout.part(size_of_val(words))?;
        memory::push(&mut self.parts, (offset, memory::copied(words, WHAT)?), WHAT)?;
        Ok(offset as u64)
    }

    fn write(&self, out: &mut [u8]) {
        for (offset, words) in &self.parts {
            let bytes: &[u8] = bytemuck::cast_slice(words);
            if let Some(out) = out.get_mut(*offset..offset + bytes.len()) {
                out.copy_from_slice(bytes);
            }
        }
    }
}
