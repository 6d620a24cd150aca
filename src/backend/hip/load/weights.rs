//! Weights in device memory: matrices in the planar layout that hip/quant/formats.h describes, vectors as `f32`.

use super::verify::{self, Canary, Place};
use crate::backend::hip::device::Device;
use crate::backend::hip::memory::bandwidth::Spill;
use crate::backend::hip::memory::{ALIGN, DeviceBuffer, Event, HostBuffer, Layout, Stream};
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::program::Program;
use crate::{Error, ErrorKind, Result, memory as host_memory, quant};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

/// Bytes of a pinned buffer. Each thread has two.
const STAGE: usize = 4 << 20;
/// The most bytes of an allocation, unless a single weight is larger. Some systems take larger
/// allocations from slower memory.
const CHUNK: usize = 1 << 30;
/// The most threads that read: more would be faster than the bus.
const MOST_THREADS: usize = 8;

/// Hears how many bytes of the weights are on the device, and how many there are. Its error ends
/// the loading.
pub(crate) type Tell<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// What the host's memory is for, in texts of errors.
const WHAT: &str = "the list of weights";

/// Options for loading weights.
pub(crate) struct Loading<'t, 'a> {
    /// Threads that read, the calling one included.
    pub(crate) threads: usize,
    pub(crate) tell: &'t mut Tell<'a>,
    /// Whether to read all weights back and compare them.
    pub(crate) verify: bool,
    /// Whether it is an error if weights lie in slower memory than the device's own.
    pub(crate) refuses_spill: bool,
}

/// All weights of a program on a device.
pub(crate) struct Weights {
    chunks: Vec<DeviceBuffer>,
    /// The chunk of each weight of the program, and the weight's offset there.
    places: Vec<(usize, usize)>,
    canary: Canary,
}

/// Cuts memory into chunks for weights.
#[derive(Default)]
struct Chunks(Vec<Layout>);

impl Chunks {
    /// Places a new part; returns its chunk and its offset there.
    fn part(&mut self, bytes: usize) -> Result<(usize, usize)> {
        let has_room = |chunk: &Layout| chunk.bytes() == 0 || chunk.bytes().saturating_add(bytes) <= CHUNK;
        if !self.0.last().is_some_and(has_room) {
            self.0.push(Layout::default());
        }
        let last = self.0.len().saturating_sub(1);
        match self.0.last_mut() {
            Some(chunk) => Ok((last, chunk.part(bytes)?)),
            None => Ok((0, 0)),
        }
    }
}

impl Weights {
    /// Uploads all weights and waits for the copies. Several threads read while copies run.
    ///
    /// # Errors
    /// `OutOfMemory` where they do not fit, `Unsupported` for a type without kernels, and errors of
    /// the driver and of the caller's `tell`.
    pub(crate) fn upload(
        device: &Arc<Device>,
        stream: &Stream,
        gguf: &Gguf,
        program: &Program,
        loading: &mut Loading<'_, '_>,
    ) -> Result<Self> {
        let mut places = host_memory::with_room(program.weights.len(), WHAT)?;
        let mut layout = Chunks::default();
        let mut parts = Vec::new();
        for weight in &program.weights {
            // The program may compute with a less compact type than the file's.
            let (name, wanted) = (weight.tensor.name(), weight.tensor.tensor_type());
            let ty = gguf.tensor(name).map_or(wanted, |tensor| tensor.tensor_type());
            let elements = weight.rows.checked_mul(weight.columns);
            let stored = if weight.rows == 1 { TensorType::F32 } else { wanted };
            let bytes = elements.and_then(|n| planar_bytes(stored, n)).ok_or_else(|| {
                Error::unsupported(format!("tensor {name} has the type {ty:?}, which no GPU kernel reads"))
            })?;
            let place = layout.part(bytes)?;
            places.push(place);
            let in_f32 = stored != ty || weight.rows == 1;
            Part::cut(ty, in_f32, (&weight.tensor, gguf.data(&weight.tensor)), place, &mut parts)?;
        }
        // Made before the weights, so that it lies in the device's memory if anything does.
        let spill = Spill::new(device, &layout.0.iter().map(Layout::bytes).collect::<Vec<_>>());
        let chunks = layout.0.iter().map(|chunk| DeviceBuffer::new(device, chunk.bytes(), "weights"));
        let chunks = chunks.collect::<Result<Vec<_>>>()?;
        let threads = loading.threads.clamp(1, MOST_THREADS).min(parts.len().max(1));
        let mut stages: Vec<[Stage; 2]> =
            (0..threads).map(|_| Ok([Stage::new(device)?, Stage::new(device)?])).collect::<Result<_>>()?;
        let _guard = WaitInPanic(stream);
        let shared = Shared {
            stream,
            chunks: &chunks,
            parts: &parts,
            // If the device takes the system's memory, mapped pages of the file would count twice,
            // so they are given back.
            gives_back: device.integrated.then_some(gguf),
            verify: loading.verify,
            every: if loading.verify { 1 } else { parts.len().div_ceil(verify::FEW).max(1) },
            sums: Mutex::default(),
            next: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
        };
        let queued = shared.run(&mut stages, loading.tell);
        // Waits in any case, because the memory and the stages must outlive the copies.
        let waited = stream.wait();
        queued.and(waited)?;
        drop(stages);
        let sums = shared.sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(spill) = spill {
            spill.check(stream, &chunks, loading.refuses_spill)?;
        }
        let canary = Canary::new(device, stream, &chunks, sums, loading.verify)?;
        Ok(Self { chunks, places, canary })
    }

    /// The address of weight number `index`.
    pub(crate) fn address(&self, index: usize) -> Result<u64> {
        let place = self.places.get(index).and_then(|(chunk, at)| Some((self.chunks.get(*chunk)?, *at)));
        let (chunk, at) =
            place.ok_or_else(|| Error::new(ErrorKind::Device, "a weight is not known: a bug in wavelm"))?;
        Ok(chunk.start() + at as u64)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.chunks.iter().map(DeviceBuffer::bytes).sum()
    }

    /// Checks now and then that the weights are unchanged. Call it after each pass.
    ///
    /// # Errors
    /// `Device`, where they changed.
    pub(crate) fn look(&mut self, stream: &Stream) -> Result<()> {
        self.canary.look(stream, &self.chunks)
    }
}

/// Bytes of a tensor of `elements` elements on the device.
pub(crate) fn planar_bytes(ty: TensorType, elements: usize) -> Option<usize> {
    let blocks = elements.is_multiple_of(ty.block_len()).then_some(elements / ty.block_len())?;
    quant::planes(ty)?
        .iter()
        .try_fold(0usize, |sum, (_, len)| sum.checked_add(blocks.checked_mul(*len)?.checked_next_multiple_of(ALIGN)?))
}

/// Consecutive blocks of a tensor, few enough for a stage.
struct Part<'a> {
    ty: TensorType,
    /// Whether it is copied as `f32` instead of in planes.
    in_f32: bool,
    tensor: &'a TensorInfo,
    data: &'a [u8],
    /// The number of blocks in the whole tensor, and of those before this part.
    blocks: usize,
    first: usize,
    /// The tensor's chunk on the device, and its offset there.
    chunk: usize,
    offset: usize,
}

impl<'a> Part<'a> {
    /// Cuts a tensor with these bytes.
    fn cut(
        ty: TensorType,
        in_f32: bool,
        (tensor, data): (&'a TensorInfo, &'a [u8]),
        (chunk, offset): (usize, usize),
        parts: &mut Vec<Self>,
    ) -> Result<()> {
        let block_bytes = ty.block_bytes();
        let staged = if in_f32 { ty.block_len() * 4 } else { block_bytes };
        if !quant::is_supported(ty) || staged > STAGE {
            return Err(Error::unsupported(format!("no GPU kernel reads the type {ty:?}")));
        }
        let blocks = data.len() / block_bytes;
        let per_part = STAGE / staged;
        host_memory::reserve(parts, blocks.div_ceil(per_part), WHAT)?;
        let part = |(i, data)| Part { ty, in_f32, tensor, data, blocks, first: i * per_part, chunk, offset };
        parts.extend(data.chunks(per_part * block_bytes).enumerate().map(part));
        Ok(())
    }

    /// Fills a stage. Returns the copies to make from it, as (offset on the device, bytes of the
    /// stage).
    fn fill(&self, stage: &mut [u8]) -> Result<Vec<(usize, Range<usize>)>> {
        let block_bytes = self.ty.block_bytes();
        let count = self.data.len() / block_bytes;
        if self.in_f32 {
            let bytes = count * self.ty.block_len() * 4;
            let out = stage.get_mut(..bytes).and_then(|out| bytemuck::try_cast_slice_mut(out).ok());
            quant::dequantize(self.ty, self.data, out.ok_or_else(misaligned)?)?;
            return Ok(vec![(self.offset + self.first * self.ty.block_len() * 4, 0..bytes)]);
        }
        let planes =
            quant::planes(self.ty).ok_or_else(|| Error::unsupported("a type without kernels: a bug in wavelm"))?;
        let (mut copies, mut staged, mut plane) = (Vec::with_capacity(planes.len()), 0, self.offset);
        for &(from, len) in planes {
            let range = staged..staged + count * len;
            if let Some(out) = stage.get_mut(range.clone()) {
                gather(self.data, block_bytes, from, len, out);
            }
            staged = range.end;
            copies.push((plane + self.first * len, range));
            plane += (self.blocks * len).next_multiple_of(ALIGN);
        }
        Ok(copies)
    }
}

fn misaligned() -> Error {
    Error::new(ErrorKind::Device, "pinned memory is not aligned")
}

/// A pinned buffer, and how many bytes of the file its pending copy contains.
struct Stage {
    buffer: HostBuffer,
    copied: Event,
    under_way: u64,
}

impl Stage {
    fn new(device: &Arc<Device>) -> Result<Self> {
        Ok(Self { buffer: HostBuffer::new(device, STAGE)?, copied: Event::new(device)?, under_way: 0 })
    }
}

/// Waits for copies before their memory is freed, even if the caller's `tell` panics.
struct WaitInPanic<'a>(&'a Stream);

impl Drop for WaitInPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.wait().ok();
        }
    }
}

/// The state that an upload's threads share.
struct Shared<'a> {
    stream: &'a Stream,
    chunks: &'a [DeviceBuffer],
    parts: &'a [Part<'a>],
    /// The file whose mapped pages are given back after reading.
    gives_back: Option<&'a Gguf>,
    /// Whether to sum all bytes, or only the beginning of every `every`-th part.
    verify: bool,
    every: usize,
    sums: Mutex<Vec<Place>>,
    /// The next part to take.
    next: AtomicUsize,
    /// Bytes of the file that are on the device.
    done: AtomicU64,
    is_stopped: AtomicBool,
}

impl Shared<'_> {
    /// Uploads all parts. The calling thread works too, and reports the progress of all.
    fn run(&self, stages: &mut [[Stage; 2]], tell: &mut Tell<'_>) -> Result<()> {
        let total = self.parts.iter().map(|p| p.data.len() as u64).sum();
        tell(0, total)?;
        let Some((own, others)) = stages.split_first_mut() else { return Ok(()) };
        std::thread::scope(|scope| {
            let threads: Vec<_> = others
                .iter_mut()
                // A thread that does not start does no harm: the others do its work.
                .filter_map(|stages| {
                    std::thread::Builder::new().spawn_scoped(scope, || self.work(stages, || Ok(()))).ok()
                })
                .collect();
            let mut told = 0;
            let own = self.work(own, || {
                let done = self.done.load(Ordering::Relaxed);
                if done > told {
                    told = done;
                    tell(done, total)?;
                }
                Ok(())
            });
            let join = |thread: ScopedJoinHandle<'_, Result<()>>| {
                thread.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Device, "a thread that loads panicked")))
            };
            let results: Vec<_> = threads.into_iter().map(join).collect();
            own?;
            results.into_iter().collect::<Result<()>>()?;
            if told < total { tell(total, total) } else { Ok(()) }
        })
    }

    /// Uploads parts until there are no more; an error stops all threads.
    fn work(&self, stages: &mut [Stage; 2], mut after: impl FnMut() -> Result<()>) -> Result<()> {
        let worked = self.parts_of(stages, &mut after);
        if worked.is_err() {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
        worked
    }

    fn parts_of(&self, stages: &mut [Stage; 2], after: &mut impl FnMut() -> Result<()>) -> Result<()> {
        // One stage is filled while the other is copied.
        let mut turn = 0;
        while !self.is_stopped.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = self.parts.get(number) else { break };
            let [a, b] = &mut *stages;
            let stage = if turn % 2 == 0 { a } else { b };
            self.finish(stage)?;
            after()?;
            let chunk = self
                .chunks
                .get(part.chunk)
                .ok_or_else(|| Error::new(ErrorKind::Device, "a weight has no memory: a bug in wavelm"))?;
            for (place, range) in part.fill(stage.buffer.as_mut_slice())? {
                if number.is_multiple_of(self.every) {
                    self.keep_sums(part.chunk, place, stage.buffer.as_slice().get(range.clone()).unwrap_or_default());
                }
                // SAFETY: the stage is filled again only after its event, and `upload` waits before
                // the stage is dropped.
                unsafe { self.stream.upload_range(chunk, place, &stage.buffer, range) }?;
            }
            if let Some(gguf) = self.gives_back {
                let from = part.first * part.ty.block_bytes();
                gguf.give_back(part.tensor, from..from + part.data.len());
            }
            stage.copied.record(self.stream)?;
            stage.under_way = part.data.len() as u64;
            turn += 1;
        }
        for stage in stages {
            self.finish(stage)?;
            after()?;
        }
        Ok(())
    }

    /// Keeps the sums of all bytes copied to a place, or of their beginning only.
    fn keep_sums(&self, chunk: usize, at: usize, bytes: &[u8]) {
        let parts = bytes.chunks(verify::LENGTH).enumerate().map(|(i, part)| Place {
            chunk,
            at: at + i * verify::LENGTH,
            length: part.len(),
            sum: verify::sum(part),
        });
        let most = if self.verify { usize::MAX } else { 1 };
        let parts: Vec<Place> = parts.take(most).collect();
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).extend(parts);
    }

    /// Waits for the copy of a stage.
    fn finish(&self, stage: &mut Stage) -> Result<()> {
        if stage.under_way > 0 {
            stage.copied.wait()?;
            self.done.fetch_add(std::mem::take(&mut stage.under_way), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Collects the field at offset `from` of every block.
fn gather(blocks: &[u8], block_bytes: usize, from: usize, len: usize, out: &mut [u8]) {
    if len == block_bytes {
        out.copy_from_slice(blocks);
        return;
    }
    // A few wide instructions move fields of a fixed size.
    match len {
        2 => gather_fixed::<2>(blocks, block_bytes, from, out),
        4 => gather_fixed::<4>(blocks, block_bytes, from, out),
        12 => gather_fixed::<12>(blocks, block_bytes, from, out),
        16 => gather_fixed::<16>(blocks, block_bytes, from, out),
        32 => gather_fixed::<32>(blocks, block_bytes, from, out),
        64 => gather_fixed::<64>(blocks, block_bytes, from, out),
        128 => gather_fixed::<128>(blocks, block_bytes, from, out),
        _ => {
            for (block, out) in blocks.chunks_exact(block_bytes).zip(out.chunks_exact_mut(len)) {
                if let Some(field) = block.get(from..from + len) {
                    out.copy_from_slice(field);
                }
            }
        }
    }
}

fn gather_fixed<const LEN: usize>(blocks: &[u8], block_bytes: usize, from: usize, out: &mut [u8]) {
    for (block, out) in blocks.chunks_exact(block_bytes).zip(out.as_chunks_mut::<LEN>().0) {
        if let Some(field) = block.get(from..).and_then(<[u8]>::first_chunk) {
            *out = *field;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with some tensor.
    fn gguf() -> Gguf {
        let writer = crate::gguf::GgufWriter::new().tensor("x", TensorType::F32, &[1], vec![0; 4]);
        Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()
    }

    #[test]
    fn chunks_have_whole_weights_and_at_most_a_gibibyte() {
        let mut chunks = Chunks::default();
        let places: Vec<_> = [1, CHUNK / 2, CHUNK / 2, 300, CHUNK * 2, 5].map(|n| chunks.part(n).unwrap()).into();
        assert_eq!(places, [(0, 0), (0, 256), (1, 0), (1, CHUNK / 2), (2, 0), (3, 0)]);
        assert_eq!(chunks.0.iter().map(Layout::bytes).collect::<Vec<_>>()[2], CHUNK * 2);
        assert_eq!(chunks.part(usize::MAX).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }

    #[test]
    fn parts_bring_every_field_to_its_plane() {
        for ty in quant::supported() {
            // Two whole parts and a bit, so that the planes are longer than a stage.
            let (block_bytes, blocks) = (ty.block_bytes(), 2 * (STAGE / ty.block_bytes()) + 3);
            let data: Vec<u8> = (0..blocks * block_bytes).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect();
            let mut parts = Vec::new();
            let gguf = gguf();
            Part::cut(ty, false, (&gguf.tensors()[0], &data), (0, ALIGN), &mut parts).unwrap();
            assert_eq!(parts.len(), 3);
            let mut device = vec![0; ALIGN + planar_bytes(ty, blocks * ty.block_len()).unwrap()];
            let mut stage = vec![0; STAGE];
            for part in &parts {
                for (place, range) in part.fill(&mut stage).unwrap() {
                    device[place..place + range.len()].copy_from_slice(&stage[range]);
                }
            }
            let mut plane = ALIGN;
            for &(from, len) in quant::planes(ty).unwrap() {
                for block in [0, 1, blocks / 2, blocks - 1] {
                    let field = &data[block * block_bytes + from..][..len];
                    assert_eq!(&device[plane + block * len..][..len], field, "{ty:?}, block {block}, field {from}");
                }
                plane += (blocks * len).next_multiple_of(ALIGN);
            }
        }
    }

    #[test]
    fn long_vectors_are_cut_too() {
        let values: Vec<f32> = (0..STAGE / 4 + 5).map(|i| i as f32).collect();
        let mut parts = Vec::new();
        let gguf = gguf();
        Part::cut(TensorType::F32, true, (&gguf.tensors()[0], bytemuck::cast_slice(&values)), (0, 0), &mut parts)
            .unwrap();
        let mut stage = vec![0f32; STAGE / 4];
        let mut ends = Vec::new();
        for part in &parts {
            ends.extend(part.fill(bytemuck::cast_slice_mut(&mut stage)).unwrap());
        }
        assert_eq!(ends, [(0, 0..STAGE), (STAGE, 0..20)]);
        assert_eq!(stage[..5], values[STAGE / 4..]);
    }

    #[test]
    fn planes_start_at_multiples_of_256_bytes() {
        // 3 blocks of Q4_0: 48 bytes of qs and 6 of d.
        assert_eq!(planar_bytes(TensorType::Q4_0, 96), Some(512));
        assert_eq!(planar_bytes(TensorType::F32, 65), Some(512));
        assert_eq!(planar_bytes(TensorType::Q4_K, 255), None);
        let mut out = [0; 6];
        gather(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 3, 1, 2, &mut out);
        assert_eq!(out, [2, 3, 5, 6, 8, 9]);
    }
}
