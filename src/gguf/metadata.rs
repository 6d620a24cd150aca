//! Metadata: typed values under unique keys.

use crate::Result;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array of metadata values, all of one type.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(StringArray),
    Nested(Vec<Array>),
}

/// Many strings in one allocation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StringArray {
    text: String,
    ends: Vec<usize>,
}

impl StringArray {
    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    /// The i-th string.
    pub fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { *self.ends.get(i - 1)? };
        self.text.get(start..end)
    }
    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

/// The metadata of a file: unique keys in file order.
#[derive(Debug, Clone, Default)]
pub struct Metadata {}

impl Metadata {
    /// The raw value under `key`.
    pub fn get(&self, _key: &str) -> Option<&Value> {
        todo!()
    }
    /// All keys and values in file order.
    pub fn iter(&self) -> std::slice::Iter<'_, (String, Value)> {
        todo!()
    }
    // Typed getters: `Ok(None)` where the key is absent, `InvalidFile` naming the key where the value has another type
    // or does not fit. Any integer type is accepted where the value fits (also bool -> integer is refused).
    /// An integer that fits u32.
    pub fn u32(&self, _key: &str) -> Result<Option<u32>> {
        todo!()
    }
    /// An integer that fits usize.
    pub fn usize(&self, _key: &str) -> Result<Option<usize>> {
        todo!()
    }
    /// A floating-point number (f32 or f64).
    pub fn f32(&self, _key: &str) -> Result<Option<f32>> {
        todo!()
    }
    /// A boolean.
    pub fn bool(&self, _key: &str) -> Result<Option<bool>> {
        todo!()
    }
    /// A string.
    pub fn str(&self, _key: &str) -> Result<Option<&str>> {
        todo!()
    }
    /// An array of strings.
    pub fn strings(&self, _key: &str) -> Result<Option<&StringArray>> {
        todo!()
    }
    /// An array of floating-point numbers.
    pub fn f32s(&self, _key: &str) -> Result<Option<Vec<f32>>> {
        todo!()
    }
    /// An array of integers that fit i64.
    pub fn ints(&self, _key: &str) -> Result<Option<Vec<i64>>> {
        todo!()
    }
}
