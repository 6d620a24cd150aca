//! The parser: from the bytes of one file to metadata and tensor index. It is total: whatever the
//! bytes are, it returns, reads nothing past the header, and allocates no more than a small
//! multiple of the bytes that are there.

use super::metadata::{Array, Metadata, StringArray, Value};
use super::{MAX_KEY_BYTES, MAX_NESTING, TensorInfo, TensorType, check_alignment, show, tensor_bytes};
use crate::{Error, ErrorKind, Result, memory};
use std::fmt;

/// The alignment of tensor data in a file that does not state one.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// The fewest bytes that a metadata entry takes: key length, one byte of key, value type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// The fewest bytes that a tensor's description takes: name length, one byte of name, no dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;
/// The bytes of an array's head, and so the fewest of an array within an array: type and count.
const MIN_ARRAY_BYTES: u64 = 4 + 8;

/// The parsed header of one file.
#[derive(Debug)]
pub(super) struct Parsed {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
}

/// Parses one file, which is number `part` of its split set (0 for a file of its own).
pub(super) fn parse(bytes: &[u8], part: usize) -> Result<Parsed> {
    let mut reader = Reader { bytes, pos: 0 };
    let version = check_magic(&mut reader)?;
    let in_header = |fault: Fault| fault.error("the header is not valid");
    let tensor_count = reader.u64().map_err(in_header)?;
    let entry_count = reader.u64().map_err(in_header)?;
    let entry_count = reader.count(entry_count, MIN_ENTRY_BYTES, "metadata keys").map_err(in_header)?;

    let mut entries = memory::with_room(entry_count, "the metadata")?;
    for i in 0..entry_count {
        let key = read_name(&mut reader)
            .map_err(|fault| fault.error(format_args!("metadata key number {} is not valid", i + 1)))?;
        let value = read_value(&mut reader)
            .map_err(|fault| fault.error(format_args!("metadata key {} is not valid", show(key))))?;
        entries.push((memory::copied_text(key, "a metadata key")?, value));
    }
    let metadata = Metadata::new(entries)?;
    let alignment = match metadata.u64("general.alignment")? {
        None => DEFAULT_ALIGNMENT,
        Some(alignment) => check_alignment(alignment).map_err(Error::invalid_file)?,
    };

    let tensor_count = reader.count(tensor_count, MIN_TENSOR_BYTES, "tensors").map_err(in_header)?;
    let mut tensors = memory::with_room(tensor_count, "the list of tensors")?;
    for i in 0..tensor_count {
        tensors.push(read_tensor(&mut reader, i, part)?);
    }
    place_tensors(&mut tensors, reader.pos as u64, alignment, bytes.len() as u64)?;
    Ok(Parsed { version, alignment, metadata, tensors })
}

/// Reads magic and version, and recognizes files that people mistake for GGUF.
fn check_magic(reader: &mut Reader<'_>) -> Result<u32> {
    let invalid = |message: &str| Err(Error::invalid_file(message));
    let big_endian = || Error::unsupported("this is a big-endian GGUF file: convert it to little-endian");
    match reader.bytes {
        [] => return invalid("the file is empty"),
        [b'G', b'G', b'U', b'F', ..] => {}
        [b'F', b'U', b'G', b'G', ..] => return Err(big_endian()),
        [b'l' | b't' | b'f' | b'a', b'm' | b'j' | b'l', b'g', b'g', ..] => {
            return Err(Error::unsupported("this is a GGML file from before GGUF: convert the model anew"));
        }
        bytes if bytes.starts_with(b"version https://git-lfs") => {
            return invalid("this is a Git LFS pointer, not the model itself: fetch it with `git lfs pull`");
        }
        bytes if b"GGUF".starts_with(bytes) => return invalid("the file ends within its first 4 bytes"),
        _ => return invalid("this is not a GGUF file: it does not start with the letters GGUF"),
    }
    reader.pos = 4;
    let version = reader.u32().map_err(|fault| fault.error("the GGUF version cannot be read"))?;
    match version {
        2 | 3 => Ok(version),
        0 => invalid("the GGUF version is 0; valid ones are 2 and 3"),
        1 => Err(Error::unsupported(
            "this file has GGUF version 1, which nobody writes any more: convert the model anew",
        )),
        // A small version number in the other byte order has zeros in its low half.
        _ if version & 0xffff == 0 => Err(big_endian()),
        _ => Err(Error::unsupported(format!("this file has GGUF version {version}; versions 2 and 3 are supported"))),
    }
}

fn read_name<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Fault> {
    let at = reader.pos;
    let len = reader.u64()?;
    if len == 0 {
        return Err(Fault::new(format!("the name at byte {at} is empty")));
    }
    if len > MAX_KEY_BYTES {
        return Err(Fault::new(format!("the name at byte {at} has {len} bytes; at most {MAX_KEY_BYTES} are allowed")));
    }
    reader.text(len)
}

fn read_value(reader: &mut Reader<'_>) -> Result<Value, Fault> {
    Ok(match reader.u32()? {
        0 => Value::U8(u8::from_le_bytes(reader.bytes()?)),
        1 => Value::I8(i8::from_le_bytes(reader.bytes()?)),
        2 => Value::U16(u16::from_le_bytes(reader.bytes()?)),
        3 => Value::I16(i16::from_le_bytes(reader.bytes()?)),
        4 => Value::U32(u32::from_le_bytes(reader.bytes()?)),
        5 => Value::I32(i32::from_le_bytes(reader.bytes()?)),
        6 => Value::F32(f32::from_le_bytes(reader.bytes()?)),
        7 => Value::Bool(to_bool(u8::from_le_bytes(reader.bytes()?))?),
        8 => {
            let len = reader.u64()?;
            Value::String(memory::copied_text(reader.text(len)?, "a text")?)
        }
        9 => Value::Array(read_array(reader, 1)?),
        10 => Value::U64(u64::from_le_bytes(reader.bytes()?)),
        11 => Value::I64(i64::from_le_bytes(reader.bytes()?)),
        12 => Value::F64(f64::from_le_bytes(reader.bytes()?)),
        ty => return Err(Fault::new(format!("there is no value type {ty}"))),
    })
}

/// Reads an array that lies `depth` arrays deep, itself included.
fn read_array(reader: &mut Reader<'_>, depth: usize) -> Result<Array, Fault> {
    let ty = reader.u32()?;
    let count = reader.u64()?;
    Ok(match ty {
        0 => Array::U8(reader.numbers(count, u8::from_le_bytes)?),
        1 => Array::I8(reader.numbers(count, i8::from_le_bytes)?),
        2 => Array::U16(reader.numbers(count, u16::from_le_bytes)?),
        3 => Array::I16(reader.numbers(count, i16::from_le_bytes)?),
        4 => Array::U32(reader.numbers(count, u32::from_le_bytes)?),
        5 => Array::I32(reader.numbers(count, i32::from_le_bytes)?),
        6 => Array::F32(reader.numbers(count, f32::from_le_bytes)?),
        7 => {
            let len = reader.count(count, 1, "booleans")?;
            let mut values = memory::with_room(len, "an array")?;
            for &byte in reader.take(len as u64)? {
                values.push(to_bool(byte)?);
            }
            Array::Bool(values)
        }
        8 => Array::String(read_strings(reader, count)?),
        9 if depth == MAX_NESTING => {
            return Err(Fault::new(format!("arrays are nested more than {MAX_NESTING} deep")));
        }
        9 => {
            let count = reader.count(count, MIN_ARRAY_BYTES, "arrays")?;
            let mut arrays = memory::with_room(count, "an array")?;
            for _ in 0..count {
                arrays.push(read_array(reader, depth + 1)?);
            }
            Array::Nested(arrays)
        }
        10 => Array::U64(reader.numbers(count, u64::from_le_bytes)?),
        11 => Array::I64(reader.numbers(count, i64::from_le_bytes)?),
        12 => Array::F64(reader.numbers(count, f64::from_le_bytes)?),
        _ => return Err(Fault::new(format!("there is no array element type {ty}"))),
    })
}

/// Reads strings into one allocation: a first walk adds up their lengths, a second one copies them.
fn read_strings(reader: &mut Reader<'_>, count: u64) -> Result<StringArray, Fault> {
    let count = reader.count(count, 8, "strings")?;
    let mut walk = *reader;
    let mut total = 0;
    for _ in 0..count {
        let len = walk.u64()?;
        total += walk.take(len)?.len();
    }
    let mut text = memory::with_room(total, "the texts of an array")?;
    let mut ends = memory::with_room(count, "the lengths of texts")?;
    let mut copy = *reader;
    for _ in 0..count {
        let len = copy.u64()?;
        text.extend_from_slice(copy.take(len)?);
        ends.push(text.len());
    }
    // All the text is checked at once, which is much faster than string by string.
    if let Ok(text) = String::from_utf8(text)
        && let Some(strings) = StringArray::from_parts(text, ends)?
    {
        *reader = copy;
        return Ok(strings);
    }
    for i in 0..count {
        let len = reader.u64()?;
        reader.text(len).map_err(|fault| Fault::new(format!("string {i}: {fault}")))?;
    }
    Err(Fault::new("its strings are not valid UTF-8".to_string()))
}

/// Reads a tensor's description; `offset` is relative to the data section until [`place_tensors`] has run.
fn read_tensor(reader: &mut Reader<'_>, index: usize, part: usize) -> Result<TensorInfo> {
    let name =
        read_name(reader).map_err(|fault| fault.error(format_args!("tensor number {} is not valid", index + 1)))?;
    let invalid =
        |fault: &dyn fmt::Display| Error::invalid_file(format!("tensor {} is not valid: {fault}", show(name)));
    let dim_count = reader.u32().map_err(|fault| invalid(&fault))?;
    if dim_count > 4 {
        return Err(Error::invalid_file(format!(
            "tensor {} has {dim_count} dimensions; at most 4 are allowed",
            show(name)
        )));
    }
    let mut dims = Vec::with_capacity(dim_count.max(1) as usize);
    for _ in 0..dim_count {
        dims.push(reader.u64().map_err(|fault| invalid(&fault))?);
    }
    if dims.is_empty() {
        dims.push(1); // a scalar
    }
    let id = reader.u32().map_err(|fault| invalid(&fault))?;
    let ty = TensorType::from_id(id).ok_or_else(|| {
        Error::unsupported(match TensorType::removed_name(id) {
            Some(removed) => {
                format!("tensor {} has type {removed}, which ggml no longer has: quantize the model anew", show(name))
            }
            None => format!("tensor {} has type number {id}, which this version does not know", show(name)),
        })
    })?;
    let size = tensor_bytes(ty, &dims).map_err(|fault| invalid(&fault))?;
    let offset = reader.u64().map_err(|fault| invalid(&fault))?;
    Ok(TensorInfo { name: memory::copied_text(name, "the name of a tensor")?, ty, dims, part, offset, size })
}

/// Makes offsets absolute, and checks that every tensor lies in the file, aligned, and apart from all others.
fn place_tensors(tensors: &mut [TensorInfo], header_end: u64, alignment: u64, file_len: u64) -> Result<()> {
    let data_start = header_end.next_multiple_of(alignment);
    for tensor in &mut *tensors {
        if tensor.offset % alignment != 0 {
            return Err(Error::invalid_file(format!(
                "tensor {} has offset {}, which is no multiple of the alignment {alignment}",
                show(&tensor.name),
                tensor.offset
            )));
        }
        let start = data_start.checked_add(tensor.offset);
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(tensor.size)?))) else {
            return Err(Error::invalid_file(format!(
                "tensor {} has offset {}, which lies beyond any file",
                show(&tensor.name),
                tensor.offset
            )));
        };
        if end > file_len {
            return Err(Error::invalid_file(format!(
                "tensor {} ends at byte {end}, but the file has {file_len}",
                show(&tensor.name)
            )));
        }
        tensor.offset = start;
    }
    let range = |tensor: &TensorInfo| (tensor.offset, tensor.offset + tensor.size);
    let ranges = tensors.iter().map(|tensor| (range(tensor).0, range(tensor).1, tensor.name.as_str()));
    let mut ranges = memory::collected(ranges, "the places of tensors")?;
    ranges.sort_unstable();
    for (before, after) in ranges.iter().zip(ranges.iter().skip(1)) {
        if before.1 > after.0 {
            return Err(Error::invalid_file(format!(
                "tensors {} and {} overlap: one ends at byte {}, the other starts at byte {}",
                show(before.2),
                show(after.2),
                before.1,
                after.0
            )));
        }
    }
    Ok(())
}

fn to_bool(byte: u8) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fault::new(format!("a boolean has the value {byte}; valid ones are 0 and 1"))),
    }
}

/// An error from code that does not know which key or tensor it is reading.
#[derive(Debug)]
struct Fault {
    kind: ErrorKind,
    text: String,
}

impl Fault {
    fn new(text: String) -> Self {
        Self { kind: ErrorKind::InvalidFile, text }
    }

    /// Turns the fault into an error about `what`.
    fn error(self, what: impl fmt::Display) -> Error {
        Error::new(self.kind, format!("{what}: {self}"))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self { kind: error.kind(), text: error.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A position in the bytes of a file. `pos` never exceeds their number.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    fn remaining(&self) -> &'a [u8] {
        self.bytes.get(self.pos..).unwrap_or_default()
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let taken = usize::try_from(len).ok().and_then(|len| self.remaining().get(..len));
        let taken = taken.ok_or_else(|| self.truncated(len))?;
        self.pos += taken.len();
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = *self.remaining().first_chunk().ok_or_else(|| self.truncated(N as u64))?;
        self.pos += N;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self, len: u64) -> Result<&'a str, Fault> {
        let at = self.pos;
        std::str::from_utf8(self.take(len)?).map_err(|error| {
            Fault::new(format!(
                "the text at byte {at} is not valid UTF-8 after its first {} bytes",
                error.valid_up_to()
            ))
        })
    }

    /// Checks that the file is long enough for `count` elements of at least `min_bytes` each, and
    /// returns `count`.
    fn count(&self, count: u64, min_bytes: u64, what: &str) -> Result<usize, Fault> {
        let left = self.remaining().len() as u64;
        match count.checked_mul(min_bytes) {
            Some(needed) if needed <= left => Ok(count as usize), // at most `left`, a usize
            _ => Err(Fault::new(format!(
                "{count} {what} of at least {min_bytes} bytes each cannot follow byte {}, as the file has {} bytes",
                self.pos,
                self.bytes.len()
            ))),
        }
    }

    fn numbers<const N: usize, T>(&mut self, count: u64, convert: fn([u8; N]) -> T) -> Result<Vec<T>, Fault> {
        let count = self.count(count, N as u64, "numbers")?;
        let (chunks, _) = self.take((count * N) as u64)?.as_chunks();
        Ok(memory::collected(chunks.iter().map(|&chunk| convert(chunk)), "an array")?)
    }

    fn truncated(&self, needed: u64) -> Fault {
        Fault::new(format!("{needed} bytes are needed at byte {}, but the file has {}", self.pos, self.bytes.len()))
    }
}
