//! A writer of GGUF files, for tests and tools.

use super::metadata::{Array, Metadata, Value};
use super::parse::DEFAULT_ALIGNMENT;
use super::{MAX_KEY_BYTES, MAX_NESTING, TensorType, check_alignment, show, sorted_by_name, tensor_bytes};
use crate::{Error, Result};
use std::io::Write;

/// Collects metadata and tensors, and writes them as a GGUF file.
///
/// ```
/// use wavelm::gguf::{Gguf, GgufWriter, TensorType};
/// # fn main() -> wavelm::Result<()> {
/// let bytes = GgufWriter::new()
///     .metadata("general.architecture", "llama")
///     .metadata("llama.block_count", 2u32)
///     .tensor("output_norm.weight", TensorType::F32, &[2], [1.0f32, 0.5].map(f32::to_le_bytes).concat())
///     .to_bytes()?;
/// let gguf = Gguf::from_bytes(bytes)?;
/// assert_eq!(gguf.metadata().u32("llama.block_count")?, Some(2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct GgufWriter {
    version: u32,
    entries: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    ty: TensorType,
    dims: Vec<u64>,
    data: Vec<u8>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// A file of version 3 with nothing in it.
    pub fn new() -> Self {
        Self { version: 3, entries: Vec::new(), tensors: Vec::new() }
    }

    /// Sets the version, 2 or 3; their layout is the same.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Adds a value. `general.alignment` sets the alignment of the tensors' data, which is 32 bytes without it.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.entries.push((key.into(), value.into()));
        self
    }

    /// Adds a tensor: its dimensions, innermost (columns) first, and its data in the layout of `ty`, little-endian.
    pub fn tensor(mut self, name: impl Into<String>, ty: TensorType, dims: &[u64], data: impl Into<Vec<u8>>) -> Self {
        self.tensors.push(Tensor { name: name.into(), ty, dims: dims.to_vec(), data: data.into() });
        self
    }

    /// The file as bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// `InvalidInput` where the parser would refuse the file: a name that is empty, too long or given twice, a tensor
    /// whose type, dimensions and data disagree, an alignment or version that does not exist. `Io` where writing fails.
    pub fn write(&self, mut out: impl Write) -> Result<()> {
        let alignment = self.check()?;
        let mut header = b"GGUF".to_vec();
        header.extend(self.version.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            put_string(&mut header, key);
            put_value(&mut header, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(&mut header, &tensor.name);
            header.extend((tensor.dims.len() as u32).to_le_bytes());
            header.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            header.extend(tensor.ty.id().to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(alignment);
        }
        // Each tensor is followed by padding; so is the header, unless nothing follows.
        let padding = |len: usize| vec![0; len.next_multiple_of(alignment) - len];
        let failed = |error| Error::io("cannot write the file", error);
        if !self.tensors.is_empty() {
            let zeros = padding(header.len());
            header.extend(zeros);
        }
        out.write_all(&header).map_err(failed)?;
        for tensor in &self.tensors {
            out.write_all(&tensor.data).map_err(failed)?;
            out.write_all(&padding(tensor.data.len())).map_err(failed)?;
        }
        out.flush().map_err(failed)
    }

    /// Checks what the parser would, and returns the alignment.
    fn check(&self) -> Result<usize> {
        if !matches!(self.version, 2 | 3) {
            let message = format!("cannot write GGUF version {}; versions 2 and 3 are supported", self.version);
            return Err(Error::invalid_input(message));
        }
        let invalid = |error: Error| Error::invalid_input(error.to_string());
        let metadata = Metadata::new(self.entries.clone()).map_err(invalid)?;
        for (key, value) in &self.entries {
            check_name("metadata key", key)?;
            if nesting(value) > MAX_NESTING {
                let message = format!("metadata key {} has arrays nested more than {MAX_NESTING} deep", show(key));
                return Err(Error::invalid_input(message));
            }
        }
        sorted_by_name(&self.tensors, |tensor| &tensor.name)
            .map_err(|name| Error::invalid_input(format!("tensor {} appears twice", show(name))))?;
        for tensor in &self.tensors {
            tensor.check()?;
        }
        let alignment = metadata.u64("general.alignment").map_err(invalid)?.unwrap_or(DEFAULT_ALIGNMENT);
        check_alignment(alignment).map(|alignment| alignment as usize).map_err(Error::invalid_input)
    }
}

impl Tensor {
    fn check(&self) -> Result<()> {
        check_name("tensor", &self.name)?;
        let name = show(&self.name);
        if self.dims.len() > 4 {
            let message = format!("tensor {name} has {} dimensions; at most 4 are allowed", self.dims.len());
            return Err(Error::invalid_input(message));
        }
        let expected = tensor_bytes(self.ty, &self.dims)
            .map_err(|fault| Error::invalid_input(format!("tensor {name} is not valid: {fault}")))?;
        if expected != self.data.len() as u64 {
            return Err(Error::invalid_input(format!(
                "tensor {name} of type {} and dimensions {:?} has {expected} bytes, but {} were given",
                self.ty,
                self.dims,
                self.data.len()
            )));
        }
        Ok(())
    }
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() as u64 > MAX_KEY_BYTES {
        let message = format!("{what} {} has {} bytes; 1 to {MAX_KEY_BYTES} are allowed", show(name), name.len());
        return Err(Error::invalid_input(message));
    }
    Ok(())
}

/// How many arrays deep a value is.
fn nesting(value: &Value) -> usize {
    fn of_array(array: &Array) -> usize {
        match array {
            Array::Nested(arrays) => 1 + arrays.iter().map(of_array).max().unwrap_or(0),
            _ => 1,
        }
    }
    value.as_array().map_or(0, of_array)
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |ty: u32, bytes: &[u8]| {
        out.extend(ty.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[u8::from(*v)]),
        Value::String(v) => {
            put(8, &[]);
            put_string(out, v);
        }
        Value::Array(v) => {
            put(9, &[]);
            put_array(out, v);
        }
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(v) => put_numbers(out, 0, v, u8::to_le_bytes),
        Array::I8(v) => put_numbers(out, 1, v, i8::to_le_bytes),
        Array::U16(v) => put_numbers(out, 2, v, u16::to_le_bytes),
        Array::I16(v) => put_numbers(out, 3, v, i16::to_le_bytes),
        Array::U32(v) => put_numbers(out, 4, v, u32::to_le_bytes),
        Array::I32(v) => put_numbers(out, 5, v, i32::to_le_bytes),
        Array::F32(v) => put_numbers(out, 6, v, f32::to_le_bytes),
        Array::Bool(v) => put_numbers(out, 7, v, |v| [u8::from(v)]),
        Array::String(v) => {
            put_array_head(out, 8, v.len());
            v.iter().for_each(|string| put_string(out, string));
        }
        Array::Nested(v) => {
            put_array_head(out, 9, v.len());
            v.iter().for_each(|array| put_array(out, array));
        }
        Array::U64(v) => put_numbers(out, 10, v, u64::to_le_bytes),
        Array::I64(v) => put_numbers(out, 11, v, i64::to_le_bytes),
        Array::F64(v) => put_numbers(out, 12, v, f64::to_le_bytes),
    }
}

fn put_array_head(out: &mut Vec<u8>, ty: u32, len: usize) {
    out.extend(ty.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

fn put_numbers<T: Copy, const N: usize>(out: &mut Vec<u8>, ty: u32, values: &[T], to_bytes: fn(T) -> [u8; N]) {
    put_array_head(out, ty, values.len());
    out.extend(values.iter().flat_map(|&value| to_bytes(value)));
}
