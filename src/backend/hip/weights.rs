//! Weights in device memory: matrices in the planar layout that hip/quant.h describes, vectors as `f32`.

use super::device::Device;
use super::memory::{ALIGN, DeviceBuffer, HostBuffer, Layout, Stream};
use crate::gguf::{Gguf, TensorType};
use crate::model::program::Program;
use crate::{Error, ErrorKind, Result, quant};
use std::sync::Arc;

/// Bytes that are copied at a time, through one of two pinned buffers.
const STAGE: usize = 4 << 20;

/// The fields of a block in the order of their planes, each as (offset in the file's block, length).
type Planes = &'static [(usize, usize)];

/// The planes of a type that kernels read: those of hip/quant.h.
fn planes(ty: TensorType) -> Option<Planes> {
    Some(match ty {
        TensorType::F32 => &[(0, 4)],
        TensorType::F16 | TensorType::BF16 => &[(0, 2)],
        TensorType::Q4_0 => &[(2, 16), (0, 2)],
        TensorType::Q4_1 => &[(4, 16), (0, 4)],
        TensorType::Q5_0 => &[(6, 16), (2, 4), (0, 2)],
        TensorType::Q5_1 => &[(8, 16), (4, 4), (0, 4)],
        TensorType::Q8_0 => &[(2, 32), (0, 2)],
        TensorType::Q2_K => &[(16, 64), (0, 16), (80, 4)],
        TensorType::Q3_K => &[(32, 64), (0, 32), (96, 12), (108, 2)],
        TensorType::Q4_K => &[(16, 128), (0, 16)],
        TensorType::Q5_K => &[(48, 128), (16, 32), (0, 16)],
        TensorType::Q6_K => &[(0, 128), (128, 64), (192, 16), (208, 2)],
        _ => return None,
    })
}

/// All weights of a program on a device.
pub(super) struct Weights {
    memory: DeviceBuffer,
    /// Where each weight of the program starts.
    offsets: Vec<usize>,
}

impl Weights {
    /// Uploads all weights and waits for it.
    ///
    /// # Errors
    /// `OutOfMemory` where they do not fit, `Unsupported` for a type without kernels, and what the driver reports.
    pub(super) fn upload(device: &Arc<Device>, stream: &Stream, gguf: &Gguf, program: &Program) -> Result<Self> {
        let mut layout = Layout::default();
        let mut offsets = Vec::with_capacity(program.weights.len());
        for weight in &program.weights {
            let ty = if weight.rows == 1 { TensorType::F32 } else { weight.tensor.tensor_type() };
            let elements = weight.rows.checked_mul(weight.columns);
            let bytes = elements.and_then(|n| planar_bytes(ty, n)).ok_or_else(|| {
                Error::unsupported(format!(
                    "tensor {} has the type {ty:?}, which no GPU kernel reads",
                    weight.tensor.name()
                ))
            })?;
            offsets.push(layout.part(bytes)?);
        }
        let memory = DeviceBuffer::new(device, layout.bytes(), "weights")?;
        let mut stage = Stage::new(device, stream, &memory)?;
        let queued = program.weights.iter().zip(&offsets).try_for_each(|(weight, &offset)| {
            let (ty, data) = (weight.tensor.tensor_type(), gguf.data(&weight.tensor));
            if weight.rows == 1 {
                let mut values = vec![0.0f32; weight.columns];
                quant::dequantize(ty, data, &mut values)?;
                stage.tensor(TensorType::F32, bytemuck::cast_slice(&values), offset)
            } else {
                stage.tensor(ty, data, offset)
            }
        });
        // Waited for in any case: the memory and the stage must outlive the copies.
        let waited = stream.wait();
        queued.and(waited)?;
        drop(stage);
        Ok(Self { memory, offsets })
    }

    /// The address of weight number `index`.
    pub(super) fn address(&self, index: usize) -> Result<u64> {
        let offset = self.offsets.get(index);
        let offset = offset.ok_or_else(|| Error::new(ErrorKind::Device, "a weight is not known: a bug in wavelm"))?;
        Ok(self.memory.start() + *offset as u64)
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// Bytes of a tensor of `elements` elements on the device.
pub(super) fn planar_bytes(ty: TensorType, elements: usize) -> Option<usize> {
    let blocks = elements.is_multiple_of(ty.block_len()).then_some(elements / ty.block_len())?;
    planes(ty)?
        .iter()
        .try_fold(0usize, |sum, (_, len)| sum.checked_add(blocks.checked_mul(*len)?.checked_next_multiple_of(ALIGN)?))
}

/// Two pinned buffers that take turns: one is filled while the other is copied.
struct Stage<'a> {
    stream: &'a Stream,
    to: &'a DeviceBuffer,
    buffers: [HostBuffer; 2],
    /// How many copies were queued.
    turn: usize,
}

impl<'a> Stage<'a> {
    fn new(device: &Arc<Device>, stream: &'a Stream, to: &'a DeviceBuffer) -> Result<Self> {
        let buffers = [HostBuffer::new(device, STAGE)?, HostBuffer::new(device, STAGE)?];
        Ok(Self { stream, to, buffers, turn: 0 })
    }

    /// Queues the copy of a tensor, plane by plane.
    fn tensor(&mut self, ty: TensorType, data: &[u8], offset: usize) -> Result<()> {
        let unknown = || Error::unsupported(format!("no GPU kernel reads the type {ty:?}"));
        let planes = planes(ty).ok_or_else(unknown)?;
        let block_bytes = ty.block_bytes();
        let blocks = data.len() / block_bytes;
        let mut start = offset;
        for &(from, len) in planes {
            let per_copy = STAGE / len;
            for first in (0..blocks).step_by(per_copy) {
                let count = per_copy.min(blocks - first);
                let part = data.get(first * block_bytes..(first + count) * block_bytes).unwrap_or_default();
                self.copy(start + first * len, count * len, |out| gather(part, block_bytes, from, len, out))?;
            }
            start += (blocks * len).next_multiple_of(ALIGN);
        }
        Ok(())
    }

    /// Fills a buffer and queues its copy.
    fn copy(&mut self, offset: usize, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        // The other buffer's copy goes on while this one is filled.
        if self.turn.is_multiple_of(2) {
            self.stream.wait()?;
        }
        let Some(buffer) = self.buffers.get_mut(self.turn % 2) else { return Ok(()) };
        if let Some(out) = buffer.as_mut_slice().get_mut(..bytes) {
            fill(out);
        }
        self.turn += 1;
        // SAFETY: this buffer is filled again only after a wait, and `upload` waits before buffers are dropped.
        unsafe { self.stream.upload(self.to, offset, buffer, bytes) }
    }
}

/// Collects the field at `from` of every block.
fn gather(blocks: &[u8], block_bytes: usize, from: usize, len: usize, out: &mut [u8]) {
    if len == block_bytes {
        out.copy_from_slice(blocks);
        return;
    }
    for (block, out) in blocks.chunks_exact(block_bytes).zip(out.chunks_exact_mut(len)) {
        if let Some(field) = block.get(from..from + len) {
            out.copy_from_slice(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [TensorType; 13] = [
        TensorType::F32,
        TensorType::F16,
        TensorType::BF16,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::Q8_0,
        TensorType::Q2_K,
        TensorType::Q3_K,
        TensorType::Q4_K,
        TensorType::Q5_K,
        TensorType::Q6_K,
    ];

    #[test]
    fn planes_are_a_permutation_of_every_block() {
        for ty in ALL {
            let mut seen = vec![0; ty.block_bytes()];
            for &(from, len) in planes(ty).unwrap() {
                seen[from..from + len].iter_mut().for_each(|n| *n += 1);
            }
            assert!(seen.iter().all(|&n| n == 1), "{ty:?}: {seen:?}");
        }
        assert!(ALL.iter().all(|&ty| quant::is_supported(ty)));
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
