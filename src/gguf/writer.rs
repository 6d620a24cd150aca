//! A writer of GGUF files, for tests and tools.

use super::metadata::{Array, Value};
use super::parse::DEFAULT_ALIGNMENT;
use super::{MAX_KEY_BYTES, MAX_NESTING, TensorType, check_alignment, show, sorted_by_name, tensor_bytes};
use crate::{Error, ErrorKind, Result, memory};
use std::io::{self, Write};

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
    /// Whether memory ran out for one of them.
    incomplete: bool,
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
        Self { version: 3, entries: Vec::new(), tensors: Vec::new(), incomplete: false }
    }

    /// Sets the version, 2 or 3; both have the same layout.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Adds a value. `general.alignment` sets the alignment of the tensors' data; the default is 32
    /// bytes.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.incomplete |= memory::push(&mut self.entries, (key.into(), value.into()), "the metadata").is_err();
        self
    }

    /// Adds a tensor: its dimensions, innermost (columns) first, and its data in the layout of `ty`, little-endian.
    pub fn tensor(mut self, name: impl Into<String>, ty: TensorType, dims: &[u64], data: impl Into<Vec<u8>>) -> Self {
        let tensor = Tensor { name: name.into(), ty, dims: dims.to_vec(), data: data.into() };
        self.incomplete |= memory::push(&mut self.tensors, tensor, "the list of tensors").is_err();
        self
    }

    /// The file as bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Growing(Vec::new());
        self.write(&mut bytes)?;
        Ok(bytes.0)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// `InvalidInput` where the parser would refuse the file: a name that is empty, too long or given twice, a tensor
    /// whose type, dimensions and data disagree, an alignment or version that does not exist. `Io` where writing fails.
    /// `OutOfMemory`, also where a value or tensor could not be added.
    pub fn write(&self, mut out: impl Write) -> Result<()> {
        let alignment = self.check()?;
        let mut out = Out { to: &mut out, buffer: Vec::with_capacity(Out::BUFFER), written: 0 };
        self.write_to(&mut out, alignment).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => memory::out_of_memory("the bytes of the file", out.written),
            _ => Error::io("cannot write the file", error),
        })
    }

    fn write_to(&self, out: &mut Out<'_>, alignment: usize) -> io::Result<()> {
        out.put(b"GGUF")?;
        out.put(&self.version.to_le_bytes())?;
        out.put_size(self.tensors.len())?;
        out.put_size(self.entries.len())?;
        for (key, value) in &self.entries {
            out.put_string(key)?;
            out.put_value(value)?;
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.put_string(&tensor.name)?;
            out.put(&(tensor.dims.len() as u32).to_le_bytes())?;
            tensor.dims.iter().try_for_each(|dim| out.put(&dim.to_le_bytes()))?;
            out.put(&tensor.ty.id().to_le_bytes())?;
            out.put_size(offset)?;
            offset += tensor.data.len().next_multiple_of(alignment);
        }
        // Padding follows each tensor, and the header unless it is the end of the file.
        if !self.tensors.is_empty() {
            out.pad(alignment)?;
        }
        for tensor in &self.tensors {
            out.put(&tensor.data)?;
            out.pad(alignment)?;
        }
        Ok(())
    }

    /// Checks the same rules as the parser, and returns the alignment.
    fn check(&self) -> Result<usize> {
        if !matches!(self.version, 2 | 3) {
            let message = format!("cannot write GGUF version {}; versions 2 and 3 are supported", self.version);
            return Err(Error::invalid_input(message));
        }
        if self.incomplete {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                "there was no memory for all values and tensors of the file",
            ));
        }
        sorted_by_name(&self.entries, |(key, _)| key)?
            .map_err(|key| Error::invalid_input(format!("metadata key {} appears twice", show(key))))?;
        for (key, value) in &self.entries {
            check_name("metadata key", key)?;
            if nesting(value) > MAX_NESTING {
                let message = format!("metadata key {} has arrays nested more than {MAX_NESTING} deep", show(key));
                return Err(Error::invalid_input(message));
            }
        }
        sorted_by_name(&self.tensors, |tensor| &tensor.name)?
            .map_err(|name| Error::invalid_input(format!("tensor {} appears twice", show(name))))?;
        for tensor in &self.tensors {
            tensor.check()?;
        }
        const ALIGNMENT: &str = "general.alignment";
        let alignment = match self.entries.iter().find(|(key, _)| key == ALIGNMENT) {
            None => DEFAULT_ALIGNMENT,
            Some((_, value)) => value.as_int().and_then(|value| u64::try_from(value).ok()).ok_or_else(|| {
                let found = value.describe();
                Error::invalid_input(format!("metadata key {ALIGNMENT} must be a power of two, but is {found}"))
            })?,
        };
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

/// How many arrays deep a value is nested.
fn nesting(value: &Value) -> usize {
    fn of_array(array: &Array) -> usize {
        match array {
            Array::Nested(arrays) => 1 + arrays.iter().map(of_array).max().unwrap_or(0),
            _ => 1,
        }
    }
    value.as_array().map_or(0, of_array)
}

/// Bytes in memory that grow as long as memory lasts.
struct Growing(Vec<u8>);

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes values, little-endian.
struct Out<'a> {
    to: &'a mut dyn Write,
    buffer: Vec<u8>,
    /// Bytes so far.
    written: usize,
}

impl Out<'_> {
    const BUFFER: usize = 16 << 10;

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        if self.buffer.len() + bytes.len() > Self::BUFFER {
            self.to.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        if bytes.len() > Self::BUFFER {
            return self.to.write_all(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer)?;
        self.buffer.clear();
        self.to.flush()
    }

    fn pad(&mut self, alignment: usize) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut padding = self.written.next_multiple_of(alignment) - self.written;
        while padding > 0 {
            let zeros = ZEROS.get(..padding).unwrap_or(&ZEROS);
            self.put(zeros)?;
            padding -= zeros.len();
        }
        Ok(())
    }

    fn put_size(&mut self, size: usize) -> io::Result<()> {
        self.put(&(size as u64).to_le_bytes())
    }

    fn put_string(&mut self, string: &str) -> io::Result<()> {
        self.put_size(string.len())?;
        self.put(string.as_bytes())
    }

    fn put_value(&mut self, value: &Value) -> io::Result<()> {
        let mut put = |ty: u32, bytes: &[u8]| {
            self.put(&ty.to_le_bytes())?;
            self.put(bytes)
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
                put(8, &[])?;
                self.put_string(v)
            }
            Value::Array(v) => {
                put(9, &[])?;
                self.put_array(v)
            }
            Value::U64(v) => put(10, &v.to_le_bytes()),
            Value::I64(v) => put(11, &v.to_le_bytes()),
            Value::F64(v) => put(12, &v.to_le_bytes()),
        }
    }

    fn put_array(&mut self, array: &Array) -> io::Result<()> {
        match array {
            Array::U8(v) => self.put_numbers(0, v, u8::to_le_bytes),
            Array::I8(v) => self.put_numbers(1, v, i8::to_le_bytes),
            Array::U16(v) => self.put_numbers(2, v, u16::to_le_bytes),
            Array::I16(v) => self.put_numbers(3, v, i16::to_le_bytes),
            Array::U32(v) => self.put_numbers(4, v, u32::to_le_bytes),
            Array::I32(v) => self.put_numbers(5, v, i32::to_le_bytes),
            Array::F32(v) => self.put_numbers(6, v, f32::to_le_bytes),
            Array::Bool(v) => self.put_numbers(7, v, |v| [u8::from(v)]),
            Array::String(v) => {
                self.put_array_head(8, v.len())?;
                v.iter().try_for_each(|string| self.put_string(string))
            }
            Array::Nested(v) => {
                self.put_array_head(9, v.len())?;
                v.iter().try_for_each(|array| self.put_array(array))
            }
            Array::U64(v) => self.put_numbers(10, v, u64::to_le_bytes),
            Array::I64(v) => self.put_numbers(11, v, i64::to_le_bytes),
            Array::F64(v) => self.put_numbers(12, v, f64::to_le_bytes),
        }
    }

    fn put_array_head(&mut self, ty: u32, len: usize) -> io::Result<()> {
        self.put(&ty.to_le_bytes())?;
        self.put_size(len)
    }

    fn put_numbers<T: Copy, const N: usize>(
        &mut self,
        ty: u32,
        values: &[T],
        to_bytes: fn(T) -> [u8; N],
    ) -> io::Result<()> {
        self.put_array_head(ty, values.len())?;
        values.iter().try_for_each(|&value| self.put(&to_bytes(value)))
    }
}
