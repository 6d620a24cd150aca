//! GGUF files: a total parser over mapped files or bytes in memory, typed metadata, split files, and a small writer.
//!
//! The format is that of ggml's `gguf.h`, versions 2 and 3, little-endian: metadata, then descriptions of tensors, then
//! their data. Opening a file reads the first two and checks everything that can be checked without touching the data.

mod metadata;
mod parse;
mod split;
mod storage;
mod tensor_type;
mod writer;

pub use metadata::{Array, Metadata, StringArray, Value};
pub use tensor_type::TensorType;
pub use writer::GgufWriter;

use crate::{Result, memory};
use parse::{Parsed, parse};
use split::{Access, Part};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use storage::Storage;

/// The most bytes that a metadata key or a tensor name may have.
const MAX_KEY_BYTES: u64 = 65535;
/// How deep arrays may be nested; 1 is an array of numbers or strings.
const MAX_NESTING: usize = 8;
/// The alignments of tensor data that are accepted, powers of two only.
const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=1 << 24;

/// One tensor of a file: where it lies and what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    pub(crate) name: String,
    pub(crate) ty: TensorType,
    /// Innermost dimension first, as GGUF has it: `[columns, rows, …]`; never empty, no dimension is 0.
    pub(crate) dims: Vec<u64>,
    /// Which file of a split set holds the data.
    pub(crate) part: usize,
    /// Byte offset from the start of that file.
    pub(crate) offset: u64,
    /// Bytes of data.
    pub(crate) size: u64,
}

impl TensorInfo {
    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn tensor_type(&self) -> TensorType {
        self.ty
    }

    /// Its dimensions, innermost (columns) first: one to four, none of them 0.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    /// Elements in a row: the innermost dimension.
    pub fn columns(&self) -> usize {
        self.dims.first().map_or(0, |&columns| columns as usize)
    }

    /// Number of rows: the product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product::<u64>() as usize
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product::<u64>() as usize
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.columns() / self.ty.block_len() * self.ty.block_bytes()
    }

    /// Bytes of data.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Byte offset of the data from the start of the file that holds it.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Which file holds the data: an index into [`Gguf::parts`], 0 unless the model is split.
    pub fn part(&self) -> usize {
        self.part
    }
}

/// A GGUF model: metadata and tensor index, with the data memory-mapped or in memory.
#[derive(Debug)]
pub struct Gguf {
    header: Arc<Header>,
    /// The bytes of each file; none where there is only the header.
    storages: Vec<Storage>,
}

/// Everything but the data.
#[derive(Debug)]
struct Header {
    path: PathBuf,
    parts: Vec<PathBuf>,
    /// Bytes of all files together.
    bytes: u64,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Positions in `tensors`, sorted by name.
    sorted: Vec<usize>,
}

impl Gguf {
    /// Opens a file, or all files of a split set when the name is that of any of its parts
    /// (`…-00001-of-0000N.gguf`).
    ///
    /// Only the header is read; tensor data is mapped, and read from disk when it is first touched. The files must
    /// therefore not be changed while this value lives: a file that is overwritten in place yields other weights, and
    /// one that is truncated ends the process with a bus error once a lost page is touched. To replace a model file,
    /// write a new one and rename it over the old one; or [read](Self::read) files that may change.
    ///
    /// # Errors
    /// `Io` where a file is missing or cannot be mapped; `InvalidFile` where it is damaged;
    /// `Unsupported` for big-endian files, versions other than 2 and 3, and unknown tensor types;
    /// `OutOfMemory`, also where the file has more bytes than the process may have address space.
    /// The error names the file, and the key or tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (parts, parsed) = split::open(path, Access::Map).map_err(|error| error.in_file(path))?;
        Self::assemble(path, parts, parsed).map_err(|error| error.in_file(path))
    }

    /// Reads a file, or all files of a split set, into memory. Nothing is mapped, so later changes
    /// to the files do not matter. This takes memory for all tensors.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Io` for a file that is cut short while it is read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::read_and_tell(path.as_ref(), &mut |_, _| Ok(()))
    }

    /// Like [`read`](Self::read), and reports progress: bytes read so far, and bytes in all.
    pub(crate) fn read_and_tell(path: &Path, tell: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Self> {
        let (parts, parsed) = split::open(path, Access::Read(tell)).map_err(|error| error.in_file(path))?;
        Self::assemble(path, parts, parsed).map_err(|error| error.in_file(path))
    }

    /// Parses a file held in memory (tests, embedded models). It must be whole, not a part of a split set.
    ///
    /// # Errors
    /// `InvalidFile`, `Unsupported` and `OutOfMemory` as in [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let storage = Storage::from_vec(bytes)?;
        let parsed = parse(storage.bytes(), 0)?;
        split::check_whole(&parsed)?;
        Self::assemble(Path::new(""), vec![Part { path: PathBuf::new(), storage }], parsed)
    }

    fn assemble(path: &Path, parts: Vec<Part>, parsed: Parsed) -> Result<Self> {
        let Parsed { version, alignment, metadata, tensors } = parsed;
        let sorted = split::index_tensors(&tensors)?;
        // Gives the headers' pages back: their content was parsed, and nobody reads them again.
        let mut headers = memory::filled(parts.len(), u64::MAX, "the parts of the model")?;
        for tensor in &tensors {
            if let Some(header) = headers.get_mut(tensor.part) {
                *header = tensor.offset.min(*header);
            }
        }
        let mut storages = memory::with_room(parts.len(), "the parts of the model")?;
        let mut paths = memory::with_room(parts.len(), "the parts of the model")?;
        let mut bytes = 0;
        for (Part { path, mut storage }, header) in parts.into_iter().zip(headers) {
            let len = storage.bytes().len();
            storage.forget(usize::try_from(header).unwrap_or(len).min(len));
            bytes += len as u64;
            storages.push(storage);
            paths.push(path);
        }
        let header =
            Header { path: path.to_path_buf(), parts: paths, bytes, version, alignment, metadata, tensors, sorted };
        Ok(Self { header: Arc::new(header), storages })
    }

    /// The same model without the tensors' data.
    pub(crate) fn without_data(&self) -> Self {
        Self { header: Arc::clone(&self.header), storages: Vec::new() }
    }

    /// The metadata; for a split set, the first file's.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        find_by_name(&self.header.tensors, &self.header.sorted, |tensor| &tensor.name, name)
    }

    /// The bytes of a tensor of this file: exactly its size, aligned to at least 8 bytes. Empty for
    /// a tensor of another file that does not fit this one. Also empty for the file of a
    /// [model](crate::Model::gguf), because the model keeps the data to itself.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let bytes = self.storages.get(tensor.part).map(Storage::bytes);
        bytes.and_then(|bytes| bytes.get(byte_range(tensor)?)).unwrap_or_default()
    }

    /// The bytes of a tensor, to write to; empty where they are mapped.
    pub(crate) fn data_mut(&mut self, tensor: &TensorInfo) -> &mut [u8] {
        let bytes = self.storages.get_mut(tensor.part).map(Storage::bytes_mut);
        bytes.and_then(|bytes| bytes.get_mut(byte_range(tensor)?)).unwrap_or_default()
    }

    /// Whether tensors' bytes are those of a mapped file.
    pub(crate) fn is_mapped(&self) -> bool {
        self.storages.iter().any(|storage| matches!(storage, Storage::Mapped(_)))
    }

    /// Gives some bytes of a tensor back to the system until they are asked for again, if they are mapped.
    pub(crate) fn give_back(&self, tensor: &TensorInfo, bytes: Range<usize>) {
        if let (Some(storage), Some(all)) = (self.storages.get(tensor.part), byte_range(tensor)) {
            storage.give_back(all.start.saturating_add(bytes.start)..all.start.saturating_add(bytes.end).min(all.end));
        }
    }

    /// The path this was opened from (empty for [`from_bytes`](Self::from_bytes)).
    pub fn path(&self) -> &Path {
        &self.header.path
    }

    /// The files of the model in order: one, unless it is split.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = &Path> + '_ {
        self.header.parts.iter().map(PathBuf::as_path)
    }

    /// The version of the GGUF format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The alignment in bytes: every tensor's offset is a multiple of it. For a split set, the
    /// first file's.
    pub fn alignment(&self) -> u64 {
        self.header.alignment
    }

    /// Bytes of all files together.
    pub fn file_size(&self) -> u64 {
        self.header.bytes
    }
}

fn byte_range(tensor: &TensorInfo) -> Option<Range<usize>> {
    let start = usize::try_from(tensor.offset).ok()?;
    Some(start..start.checked_add(usize::try_from(tensor.size).ok()?)?)
}

/// The positions of `items` in the order of their names; as the inner error, a name that appears
/// twice.
///
/// # Errors
/// `OutOfMemory`.
fn sorted_by_name<T>(items: &[T], name: impl Fn(&T) -> &String) -> Result<Result<Vec<usize>, &str>> {
    const WHAT: &str = "an index of names";
    let named = items.iter().enumerate().map(|(i, item)| (name(item).as_str(), i));
    let mut named: Vec<(&str, usize)> = memory::collected(named, WHAT)?;
    named.sort_unstable();
    for (before, after) in named.iter().zip(named.iter().skip(1)) {
        if before.0 == after.0 {
            return Ok(Err(after.0));
        }
    }
    memory::collected(named.into_iter().map(|(_, i)| i), WHAT).map(Ok)
}

/// The item called `wanted`, given the positions that [`sorted_by_name`] returned.
fn find_by_name<'a, T>(items: &'a [T], sorted: &[usize], name: impl Fn(&T) -> &String, wanted: &str) -> Option<&'a T> {
    let found = sorted.binary_search_by(|&i| items.get(i).map(|item| name(item).as_str()).cmp(&Some(wanted))).ok()?;
    items.get(*sorted.get(found)?)
}

/// The size of a tensor in bytes; an explanation where such a tensor cannot exist.
fn tensor_bytes(ty: TensorType, dims: &[u64]) -> Result<u64, String> {
    let [columns, ..] = *dims else { return Err("it has no dimensions".to_string()) };
    if dims.contains(&0) {
        return Err(format!("its dimensions {dims:?} contain 0"));
    }
    let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let Some(elements) = elements.filter(|&n| isize::try_from(n).is_ok()) else {
        return Err(format!("its dimensions {dims:?} are too large"));
    };
    let block_len = ty.block_len() as u64;
    if columns % block_len != 0 {
        return Err(format!("its rows have {columns} elements, but {ty} is stored in blocks of {block_len}"));
    }
    let bytes = (elements / block_len).checked_mul(ty.block_bytes() as u64);
    bytes.filter(|&n| isize::try_from(n).is_ok()).ok_or_else(|| format!("its dimensions {dims:?} are too large"))
}

/// Returns the alignment if it is valid; an explanation otherwise.
fn check_alignment(alignment: u64) -> Result<u64, String> {
    if alignment.is_power_of_two() && ALIGNMENTS.contains(&alignment) {
        return Ok(alignment);
    }
    let (min, max) = ALIGNMENTS.into_inner();
    Err(format!("metadata key general.alignment is {alignment}, but must be a power of two from {min} to {max}"))
}

/// Makes a name from a file fit for a message: on one line, and not long.
pub(crate) fn show(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
