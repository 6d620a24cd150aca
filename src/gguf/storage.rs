//! The bytes of a file: mapped, or in memory.

use crate::{Error, ErrorKind, Result, memory};
use memmap2::{Mmap, MmapMut};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

/// The alignment of a file's first byte in memory; file offsets of tensors are multiples of it.
const ALIGNMENT: usize = 8;
/// The smallest page size of any system.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// How many bytes to read from a file before reporting progress.
const STEP: usize = 16 << 20;

/// The bytes of a file, the first of them aligned to 8 in memory.
#[derive(Debug)]
pub(super) enum Storage {
    Mapped(Mmap),
    /// Read from a file.
    Read(MmapMut),
    /// The file starts at `start` in the buffer.
    Memory {
        buffer: Vec<u8>,
        start: usize,
    },
}

/// Hears how many bytes of all files have been read.
pub(crate) struct Reading<'a> {
    pub(crate) tell: &'a mut dyn FnMut(u64) -> Result<()>,
    pub(crate) done: u64,
}

impl Storage {
    /// Maps a file; nothing is read yet.
    pub fn map(path: &Path) -> Result<Self> {
        let Some((file, bytes)) = open(path)? else { return Self::from_vec(Vec::new()) };
        // SAFETY: the mapping is private to this value, read-only, and of plain bytes, for which
        // every content is valid. Rust cannot rule out that another process changes the file
        // meanwhile: changed bytes are read as weights, and a file cut short ends the process with
        // SIGBUS when its lost pages are touched. `Gguf::open` documents that files must be left
        // alone; replacing them by renaming is harmless.
        let map = unsafe { Mmap::map(&file) };
        let map = map.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => no_memory("map", bytes, error),
            _ => Error::io("cannot map the file (LoadOptions::map(false) reads it instead)", error),
        })?;
        memory::check_spare("the header of the file").map_err(|error| no_memory("map", bytes, error))?;
        Ok(Storage::Mapped(map))
    }

    /// Reads a file into memory.
    pub fn read(path: &Path, reading: &mut Reading<'_>) -> Result<Self> {
        let Some((mut file, bytes)) = open(path)? else { return Self::from_vec(Vec::new()) };
        let len = usize::try_from(bytes).map_err(|_| memory::out_of_memory("the file", usize::MAX))?;
        let mut map = memory::mapped(len, "the file").map_err(|error| no_memory("read", bytes, error))?;
        for part in map.chunks_mut(STEP) {
            file.read_exact(part).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    let message = format!("the file had {bytes} bytes when it was opened, and was cut short since");
                    Error::new(ErrorKind::Io, message).with_source(error)
                }
                _ => Error::io("cannot read the file", error),
            })?;
            reading.done = reading.done.saturating_add(part.len() as u64);
            (reading.tell)(reading.done)?;
        }
        Ok(Storage::Read(map))
    }

    /// Takes over bytes in memory, and copies them only if their buffer happens not to be aligned.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self> {
        if (bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            Ok(Storage::Memory { buffer: bytes, start: 0 })
        } else {
            Self::aligned_copy(&bytes)
        }
    }

    fn aligned_copy(bytes: &[u8]) -> Result<Self> {
        let mut buffer: Vec<u8> = memory::with_room(bytes.len().saturating_add(ALIGNMENT), "a copy of the file")?;
        let address = buffer.as_ptr() as usize;
        let start = address.next_multiple_of(ALIGNMENT) - address;
        buffer.resize(start, 0); // within the capacity, so the address stays
        buffer.extend_from_slice(bytes);
        Ok(Storage::Memory { buffer, start })
    }

    /// Drops the pages of these bytes from the process, if they are mapped. A later read maps them
    /// again.
    pub fn give_back(&self, bytes: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Storage::Mapped(map) = self {
            let pages = bytes.start / PAGE * PAGE..bytes.end / PAGE * PAGE;
            // SAFETY: the mapping is of a file and never written to, so its pages have the same
            // content when they come back. Where pages are larger, or the call fails, they stay.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, pages.start, pages.end - pages.start)
            };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = bytes;
    }

    /// Gives the first bytes back to the system for good. Reading there afterwards no longer gives
    /// the file's bytes.
    pub fn forget(&mut self, bytes: usize) {
        self.give_back(0..bytes);
        #[cfg(target_os = "linux")]
        if let Storage::Read(map) = self {
            // SAFETY: nobody else has a reference to the memory, whose pages become zeros. Where
            // the call fails they stay.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, 0, bytes / PAGE * PAGE) };
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Read(map) => map,
            Storage::Memory { buffer, start } => buffer.get(*start..).unwrap_or_default(),
        }
    }

    /// The bytes, to write to; empty where they are mapped.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Storage::Mapped(_) => &mut [],
            Storage::Read(map) => map,
            Storage::Memory { buffer, start } => buffer.get_mut(*start..).unwrap_or_default(),
        }
    }
}

/// Opens a file; `None` where it is empty.
fn open(path: &Path) -> Result<Option<(File, u64)>> {
    let cannot_open = |error| Error::io("cannot open the file", error);
    // Checked first, because opening a pipe would wait for its writer.
    let kind = std::fs::metadata(path).map_err(cannot_open)?;
    if !kind.is_file() {
        let what = if kind.is_dir() { "a directory" } else { "no regular file" };
        return Err(Error::new(ErrorKind::Io, format!("cannot open the file: it is {what}")));
    }
    let file = File::open(path).map_err(cannot_open)?;
    // The length of the file that was opened: the path may name another one by now.
    let bytes = file.metadata().map_err(cannot_open)?.len();
    Ok((bytes > 0).then_some((file, bytes)))
}

fn no_memory(what: &str, bytes: u64, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = format!(
        "no memory to {what} the file: {bytes} bytes cannot be had; allow the process more (ulimit -v, the limit of its \
         container), or use a smaller model"
    );
    Error::new(ErrorKind::OutOfMemory, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_aligned_wherever_the_bytes_lay() {
        let bytes: Vec<u8> = (0..100).collect();
        for from in 0..16 {
            let storage = Storage::aligned_copy(&bytes[from..]).unwrap();
            assert_eq!(storage.bytes(), &bytes[from..]);
            assert_eq!(storage.bytes().as_ptr() as usize % ALIGNMENT, 0);
        }
        assert_eq!(Storage::from_vec(bytes.clone()).unwrap().bytes(), bytes);
        assert_eq!(Storage::from_vec(Vec::new()).unwrap().bytes(), b"");
    }

    #[test]
    fn what_is_read_is_the_file_and_told_of() {
        let path = std::env::temp_dir().join(format!("wavelm-storage-{}", std::process::id()));
        let bytes: Vec<u8> = (0..STEP + 5000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut told = Vec::new();
        let mut tell = |done| {
            told.push(done);
            Ok(())
        };
        let mut storage = Storage::read(&path, &mut Reading { tell: &mut tell, done: 7 }).unwrap();
        assert!(storage.bytes() == bytes);
        assert_eq!(told, [7 + STEP as u64, 7 + bytes.len() as u64]);
        storage.forget(5000);
        assert!(storage.bytes()[8192..] == bytes[8192..]);
        assert!(storage.bytes_mut().len() == bytes.len());
        let mut cancel = |_| Err(Error::new(ErrorKind::Cancelled, "enough"));
        let cancelled = Storage::read(&path, &mut Reading { tell: &mut cancel, done: 0 }).unwrap_err();
        assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
        // Cuts the file while it is read, from the listener of the first step.
        let mut cut = |_| {
            File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
            Ok(())
        };
        let error = Storage::read(&path, &mut Reading { tell: &mut cut, done: 0 }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("cut short"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}
