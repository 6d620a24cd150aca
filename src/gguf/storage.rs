//! The bytes of a file: mapped, or in memory.

use crate::{Error, ErrorKind, Result};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// The alignment of a file's first byte in memory; file offsets of tensors are multiples of it.
const ALIGNMENT: usize = 8;
/// The smallest pages that there are.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// The bytes of a file, the first of them aligned to 8 in memory.
#[derive(Debug)]
pub(super) enum Storage {
    Mapped(Mmap),
    /// The file starts at `start` in the buffer.
    Memory {
        buffer: Vec<u8>,
        start: usize,
    },
}

impl Storage {
    /// Maps a file; nothing is read yet.
    pub fn map(path: &Path) -> Result<Self> {
        let cannot_open = |error| Error::io("cannot open the file", error);
        // Asked for first, as to open a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(cannot_open)?;
        if !kind.is_file() {
            let what = if kind.is_dir() { "a directory" } else { "no regular file" };
            return Err(Error::new(ErrorKind::Io, format!("cannot open the file: it is {what}")));
        }
        let file = File::open(path).map_err(cannot_open)?;
        if kind.len() == 0 {
            return Ok(Storage::Memory { buffer: Vec::new(), start: 0 });
        }
        // SAFETY: the mapping is private to this value, read-only, and of plain bytes, for which every content is valid.
        // What Rust cannot rule out is another process that changes the file meanwhile: changed bytes are read as
        // weights, and a file cut short ends the process with SIGBUS when its lost pages are touched. `Gguf::open`
        // documents that files must be left alone; replacing them by renaming is harmless.
        let map = unsafe { Mmap::map(&file) };
        map.map(Storage::Mapped).map_err(|error| Error::io("cannot map the file", error))
    }

    /// Takes over bytes in memory; they are copied only if their buffer happens not to be aligned.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        if (bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            Storage::Memory { buffer: bytes, start: 0 }
        } else {
            Self::aligned_copy(&bytes)
        }
    }

    fn aligned_copy(bytes: &[u8]) -> Self {
        let mut buffer: Vec<u8> = Vec::with_capacity(bytes.len() + ALIGNMENT);
        let address = buffer.as_ptr() as usize;
        let start = address.next_multiple_of(ALIGNMENT) - address;
        buffer.resize(start, 0); // within the capacity, so the address stays
        buffer.extend_from_slice(bytes);
        Storage::Memory { buffer, start }
    }

    /// Drops the pages of these bytes from the process, if they are mapped; whoever reads them maps them again.
    pub fn give_back(&self, bytes: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Storage::Mapped(map) = self {
            let pages = bytes.start / PAGE * PAGE..bytes.end / PAGE * PAGE;
            // SAFETY: the mapping is of a file and never written to, so that its pages are the same when they come back.
            // Where pages are larger, or it fails, they stay.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, pages.start, pages.end - pages.start)
            };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = bytes;
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Memory { buffer, start } => buffer.get(*start..).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_aligned_wherever_the_bytes_lay() {
        let bytes: Vec<u8> = (0..100).collect();
        for from in 0..16 {
            let storage = Storage::aligned_copy(&bytes[from..]);
            assert_eq!(storage.bytes(), &bytes[from..]);
            assert_eq!(storage.bytes().as_ptr() as usize % ALIGNMENT, 0);
        }
        assert_eq!(Storage::from_vec(bytes.clone()).bytes(), bytes);
        assert_eq!(Storage::from_vec(Vec::new()).bytes(), b"");
    }
}
