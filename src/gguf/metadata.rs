//! Metadata: typed values under unique keys.

use super::show;
use crate::{Error, Result, memory};
use std::sync::Arc;

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

impl Value {
    /// The name of the value's type, like `u32` or `array`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F32(_) => "f32",
            Value::F64(_) => "f64",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(_) => "array",
        }
    }

    /// The value of any integer type; every one of them fits `i128`.
    pub fn as_int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value of either floating-point type.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The value of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(v) => Some(v),
            _ => None,
        }
    }

    /// The value of an array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }

    /// The type with an article, and the element type of an array, for error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Array(array) => match array.type_name() {
                plural @ ("string" | "array" | "bool") => format!("an array of {plural}s"),
                name => format!("an array of {name}"),
            },
            Value::U8(_) => "a u8".to_string(),
            Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) | Value::F32(_) | Value::F64(_) => {
                format!("an {}", self.type_name())
            }
            _ => format!("a {}", self.type_name()),
        }
    }
}

impl Array {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Nested(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the elements' type, like `u32`, `string` or `array`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F32(_) => "f32",
            Array::F64(_) => "f64",
            Array::Bool(_) => "bool",
            Array::String(_) => "string",
            Array::Nested(_) => "array",
        }
    }
}

macro_rules! values_from {
    ($($variant:ident($ty:ty))*) => {$(
        impl From<$ty> for Value {
            fn from(value: $ty) -> Self {
                Value::$variant(value)
            }
        }
        impl From<Vec<$ty>> for Value {
            fn from(values: Vec<$ty>) -> Self {
                Value::Array(Array::$variant(values))
            }
        }
    )*};
}
values_from! { U8(u8) I8(i8) U16(u16) I16(i16) U32(u32) I32(i32) U64(u64) I64(i64) F32(f32) F64(f64) Bool(bool) }

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_string())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::String(value)
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Self {
        Value::Array(value)
    }
}

impl From<StringArray> for Value {
    fn from(value: StringArray) -> Self {
        Value::Array(Array::String(value))
    }
}

/// Many strings in one allocation, which clones share.
#[derive(Debug, Clone)]
pub struct StringArray(Arc<Strings>);

impl PartialEq for StringArray {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text && self.len() == other.len() && self.iter().eq(other.iter())
    }
}

#[derive(Debug)]
struct Strings {
    text: String,
    ends: Ends,
}

/// Where each string ends in the text: 32 bits each where that is enough, as it is for every
/// vocabulary in a file.
#[derive(Debug)]
enum Ends {
    Short(Vec<u32>),
    Long(Vec<usize>),
}

impl Ends {
    /// The ends; none is before the one before it.
    fn new(ends: Vec<usize>) -> Result<Self> {
        Ok(match ends.last() {
            Some(&last) if u32::try_from(last).is_err() => Self::Long(ends),
            _ => Self::Short(memory::collected(ends.iter().map(|&end| end as u32), "the lengths of texts")?),
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Short(ends) => ends.len(),
            Self::Long(ends) => ends.len(),
        }
    }

    fn get(&self, i: usize) -> Option<usize> {
        match self {
            Self::Short(ends) => ends.get(i).map(|&end| end as usize),
            Self::Long(ends) => ends.get(i).copied(),
        }
    }
}

impl Default for StringArray {
    fn default() -> Self {
        std::iter::empty::<&str>().collect()
    }
}

impl StringArray {
    /// Splits `text` into consecutive strings, each up to its end. `None` where an end is not a
    /// character boundary at or after the end before it.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn from_parts(text: String, ends: Vec<usize>) -> Result<Option<Self>> {
        let mut start = 0;
        for &end in &ends {
            if end < start || !text.is_char_boundary(end) {
                return Ok(None);
            }
            start = end;
        }
        Ok(Some(Self(Arc::new(Strings { text, ends: Ends::new(ends)? }))))
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The i-th string.
    pub fn get(&self, i: usize) -> Option<&str> {
        let Strings { text, ends } = &*self.0;
        let end = ends.get(i)?;
        let start = if i == 0 { 0 } else { ends.get(i - 1)? };
        text.get(start..end)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

/// For tests and tools: like other collections, this ends the process when there is no memory for
/// the strings.
impl<S: AsRef<str>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for string in strings {
            text.push_str(string.as_ref());
            ends.push(text.len());
        }
        Self(Arc::new(Strings { text, ends: Ends::Long(ends) }))
    }
}

/// The metadata of a file: unique keys in file order.
///
/// The typed getters return `Ok(None)` where the key is absent, and an error of kind `InvalidFile`
/// that names the key where the value has another type or does not fit. Integers of every width are
/// accepted where the value fits; booleans are no integers. Getters that make a vector may report
/// `OutOfMemory`. Cloning the metadata, like all cloning, ends the process when there is no memory
/// for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Positions in `entries`, sorted by key.
    sorted: Vec<usize>,
}

impl Metadata {
    /// Metadata of these entries.
    ///
    /// # Errors
    /// `InvalidFile` where a key appears twice; `OutOfMemory`.
    pub fn new(entries: Vec<(String, Value)>) -> Result<Self> {
        let sorted = super::sorted_by_name(&entries, |(key, _)| key)?
            .map_err(|key| Error::invalid_file(format!("metadata key {} appears twice", show(key))))?;
        Ok(Self { entries, sorted })
    }

    /// The raw value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        super::find_by_name(&self.entries, &self.sorted, |(key, _)| key, key).map(|(_, value)| value)
    }

    /// All keys and values in file order.
    pub fn iter(&self) -> std::slice::Iter<'_, (String, Value)> {
        self.entries.iter()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is a value under `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// An integer that fits u32.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.int(key, "an integer from 0 to 4294967295")
    }

    /// An integer that fits u64.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.int(key, "an integer of at most 64 bits that is not negative")
    }

    /// An integer that fits i64.
    pub fn i64(&self, key: &str) -> Result<Option<i64>> {
        self.int(key, "a signed integer of at most 64 bits")
    }

    /// An integer that fits usize.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.int(key, "an integer that is not negative and fits an address")
    }

    /// A floating-point number (f32 or f64).
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a floating-point number that fits f32", |value| value.as_float().and_then(narrow))
    }

    /// A floating-point number (f32 or f64).
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a floating-point number", Value::as_float)
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&StringArray>> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        })
    }

    /// An array of floating-point numbers.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let converted = self.typed(key, "an array of floating-point numbers that fit f32", |value| match value {
            Value::Array(Array::F32(v)) => Some(convert_all(v, Some)),
            Value::Array(Array::F64(v)) if v.iter().all(|&v| narrow(v).is_some()) => Some(convert_all(v, narrow)),
            _ => None,
        });
        converted?.transpose()
    }

    /// An array of integers that fit i64.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        fn widen<T: Copy + Into<i64>>(values: &[T]) -> Option<Result<Vec<i64>>> {
            Some(convert_all(values, |v| Some(v.into())))
        }
        let converted = self.typed(key, "an array of integers that fit i64", |value| match value.as_array()? {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::U64(v) if v.iter().all(|&v| i64::try_from(v).is_ok()) => {
                Some(convert_all(v, |v| i64::try_from(v).ok()))
            }
            Array::I64(v) => widen(v),
            _ => None,
        });
        converted?.transpose()
    }

    /// An array of booleans.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.typed(key, "an array of booleans", |value| match value {
            Value::Array(Array::Bool(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    fn int<T: TryFrom<i128>>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        self.typed(key, expected, |value| value.as_int().and_then(|v| v.try_into().ok()))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => {
                let number = value.as_int().map(|v| v.to_string()).or(value.as_float().map(|v| v.to_string()));
                let found = value.describe() + &number.map(|v| format!(" of value {v}")).unwrap_or_default();
                Err(Error::invalid_file(format!("metadata key {} must be {expected}, but is {found}", show(key))))
            }
        }
    }
}

/// Converts numbers, and leaves out those for which `convert` returns `None`.
fn convert_all<T: Copy, N>(values: &[T], convert: impl Fn(T) -> Option<N>) -> Result<Vec<N>> {
    let mut numbers = memory::with_room(values.len(), "an array")?;
    numbers.extend(values.iter().filter_map(|&value| convert(value)));
    Ok(numbers)
}

/// To f32, unless a finite number would become infinite.
fn narrow(value: f64) -> Option<f32> {
    let narrowed = value as f32;
    (narrowed.is_finite() || !value.is_finite()).then_some(narrowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn metadata(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Metadata {
        Metadata::new(entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()).unwrap()
    }

    #[test]
    fn integers_of_any_width_are_accepted_where_they_fit() {
        let m = metadata([
            ("a", 7u8.into()),
            ("b", 7i64.into()),
            ("c", (-1i32).into()),
            ("d", u64::MAX.into()),
            ("e", true.into()),
        ]);
        assert_eq!(m.u32("a").unwrap(), Some(7));
        assert_eq!(m.usize("b").unwrap(), Some(7));
        assert_eq!(m.i64("c").unwrap(), Some(-1));
        assert_eq!(m.u64("d").unwrap(), Some(u64::MAX));
        assert_eq!(m.u32("absent").unwrap(), None);
        for error in [m.u32("c"), m.u32("d"), m.u32("e")].map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::InvalidFile);
        }
        let text = m.u32("c").unwrap_err().to_string();
        assert_eq!(text, "metadata key c must be an integer from 0 to 4294967295, but is an i32 of value -1");
    }

    #[test]
    fn floats_are_narrowed_only_where_they_fit() {
        let m = metadata([
            ("a", 0.5f64.into()),
            ("b", 1e300.into()),
            ("c", f32::INFINITY.into()),
            ("d", vec![1.0f64, 1e300].into()),
            ("e", 1u32.into()),
        ]);
        assert_eq!(m.f32("a").unwrap(), Some(0.5));
        assert!(m.f32("b").is_err());
        assert_eq!(m.f64("b").unwrap(), Some(1e300));
        assert_eq!(m.f32("c").unwrap(), Some(f32::INFINITY));
        assert!(m.f32s("d").is_err());
        assert!(m.f32("e").is_err());
    }

    #[test]
    fn arrays_keep_their_order_and_type() {
        let strings: StringArray = ["", "é", "abc", ""].into_iter().collect();
        let m = metadata([
            ("s", strings.into()),
            ("i", vec![1u16, 65535].into()),
            ("u", vec![u64::MAX].into()),
            ("b", vec![true, false].into()),
        ]);
        let s = m.strings("s").unwrap().unwrap();
        assert_eq!(s.iter().collect::<Vec<_>>(), ["", "é", "abc", ""]);
        assert_eq!((s.get(3), s.get(4)), (Some(""), None));
        assert_eq!(m.ints("i").unwrap(), Some(vec![1, 65535]));
        assert!(m.ints("u").is_err());
        assert_eq!(m.bools("b").unwrap(), Some(&[true, false][..]));
        let text = m.f32s("s").unwrap_err().to_string();
        assert!(text.ends_with("but is an array of strings"), "{text}");
    }

    #[test]
    fn entries_stay_in_order_and_keys_are_unique() {
        let m = metadata([("b", 1u32.into()), ("a", "x".into()), ("c", 2u32.into())]);
        assert_eq!(m.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(m.str("a").unwrap(), Some("x"));
        let twice =
            vec![("k".to_string(), Value::U8(1)), ("j".to_string(), Value::U8(1)), ("k".to_string(), 2u8.into())];
        assert_eq!(Metadata::new(twice).unwrap_err().to_string(), "metadata key k appears twice");
    }

    #[test]
    fn string_array_parts_must_be_whole_characters() {
        assert!(StringArray::from_parts("aé".into(), vec![1, 3]).unwrap().is_some());
        assert!(StringArray::from_parts("aé".into(), vec![2, 3]).unwrap().is_none());
        assert!(StringArray::from_parts("aé".into(), vec![1, 0]).unwrap().is_none());
        assert!(StringArray::from_parts("aé".into(), vec![4]).unwrap().is_none());
        assert_eq!(StringArray::default().get(0), None);
    }

    #[test]
    fn ends_need_32_bits_only_where_they_are_that_large() {
        let far = u32::MAX as usize;
        for (ends, short) in [(vec![0, 3, far], true), (vec![3, far, far + 1], false), (vec![], true)] {
            let all = Ends::new(ends.clone()).unwrap();
            assert_eq!(matches!(all, Ends::Short(_)), short);
            assert_eq!((0..all.len()).filter_map(|i| all.get(i)).collect::<Vec<_>>(), ends);
            assert_eq!(all.get(ends.len()), None);
        }
    }
}
