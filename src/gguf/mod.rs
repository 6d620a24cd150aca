//! GGUF files: a total parser over memory-mapped files, typed metadata, split files, and a small writer.

mod metadata;
mod tensor_type;

pub use metadata::{Array, Metadata, StringArray, Value};
pub use tensor_type::TensorType;

use crate::Result;
use std::path::Path;

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
    /// Its dimensions, innermost (columns) first.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }
}

/// A GGUF model: metadata and tensor index, with the data memory-mapped.
#[derive(Debug)]
pub struct Gguf {}

impl Gguf {
    /// Opens a file, or all files of a split set when the name is that of any of its parts
    /// (`…-00001-of-0000N.gguf`).
    pub fn open(_path: impl AsRef<Path>) -> Result<Self> {
        todo!()
    }
    /// Parses a file held in memory (tests, embedded models).
    pub fn from_bytes(_bytes: Vec<u8>) -> Result<Self> {
        todo!()
    }
    /// The metadata; for a split set, the first file's.
    pub fn metadata(&self) -> &Metadata {
        todo!()
    }
    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        todo!()
    }
    /// A tensor by its name.
    pub fn tensor(&self, _name: &str) -> Option<&TensorInfo> {
        todo!()
    }
    /// The bytes of a tensor of this file: exactly its size, aligned to at least 8 bytes.
    pub fn data(&self, _tensor: &TensorInfo) -> &[u8] {
        todo!()
    }
    /// The path this was opened from (empty for [`from_bytes`](Self::from_bytes)).
    pub fn path(&self) -> &Path {
        todo!()
    }
}
