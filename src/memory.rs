//! Memory whose amount an input decides: a file, a prompt, an option or the length of a context.
//! The crate asks for all such memory here. A failure is then an error of the kind
//! [`OutOfMemory`](ErrorKind::OutOfMemory) and never ends the process.

mod available;

use crate::{Error, ErrorKind, Result};
pub(crate) use available::available_memory;
use memmap2::MmapMut;
use std::alloc::Layout;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Display;
use std::hash::{BuildHasher, Hash};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The error for `bytes` bytes that the system does not grant. `what` says what they were for: "the
/// tokens of a prompt".
pub(crate) fn out_of_memory(what: impl Display, bytes: usize) -> Error {
    Error::new(ErrorKind::OutOfMemory, format!("no memory for {what}: {bytes} bytes cannot be had"))
}

/// Bytes that stay free for pieces too small to check: texts of errors, the standard library's own
/// memory. The process ends where such a piece cannot be allocated.
const SPARE: usize = 4 << 20;

/// Checks that the system grants `bytes` bytes and [`SPARE`] besides. Small amounts are added up
/// and checked together.
///
/// # Errors
/// `OutOfMemory`.
fn check(bytes: usize, what: impl Display) -> Result<()> {
    /// Asking the system takes some 2 microseconds.
    const STEP: usize = 256 << 10;
    static SINCE: AtomicUsize = AtomicUsize::new(0);
    let since = SINCE.fetch_add(bytes, Ordering::Relaxed);
    if since.saturating_add(bytes) < STEP {
        return Ok(());
    }
    SINCE.store(0, Ordering::Relaxed);
    check_groups(bytes, &what)?;
    check_addresses(bytes, what)
}

/// Checks that the system grants `bytes` bytes and [`SPARE`] more. Nothing is written to the
/// mapping, so this takes no memory.
fn check_addresses(bytes: usize, what: impl Display) -> Result<()> {
    match MmapMut::map_anon(bytes.saturating_add(SPARE)) {
        Ok(_) => Ok(()),
        Err(error) => Err(out_of_memory(what, bytes).with_source(error)),
    }
}

/// Makes sure of [`SPARE`] at the beginning of an operation, or after memory was taken elsewhere.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn check_spare(what: impl Display) -> Result<()> {
    check_addresses(0, what)
}

/// Compares a large amount with what the control groups of this process leave. Linux grants any
/// amount that is asked for, and ends the process when it uses more than the groups allow.
///
/// # Errors
/// `OutOfMemory`.
fn check_groups(bytes: usize, what: impl Display) -> Result<()> {
    /// Less is not worth asking for: the answer takes some 50 microseconds.
    const LARGE: usize = 1 << 20;
    if bytes < LARGE {
        return Ok(());
    }
    match available::left_by_groups() {
        Some(left) if left < (bytes as u64).saturating_add(SPARE as u64) => {
            let text =
                format!("no memory for {what}: {bytes} bytes do not fit the {left} that the control group leaves");
            Err(Error::new(ErrorKind::OutOfMemory, text))
        }
        _ => Ok(()),
    }
}

/// How many values to make room for when `more` of them come: the capacity at least doubles.
fn growth(len: usize, capacity: usize, more: usize) -> usize {
    if more <= capacity - len { 0 } else { len.saturating_add(more).saturating_sub(capacity).max(capacity) }
}

/// Zeros in pages of their own.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn mapped(bytes: usize, what: impl Display) -> Result<MmapMut> {
    check(bytes, &what)?;
    MmapMut::map_anon(bytes).map_err(|error| out_of_memory(what, bytes).with_source(error))
}

/// Makes room for `more` values after those in `values`, and for some beyond that, so that pushing
/// values one by one takes linear time.
///
/// # Errors
/// `OutOfMemory`; `values` is as before.
pub(crate) fn reserve<T>(values: &mut Vec<T>, more: usize, what: impl Display) -> Result<()> {
    let len = values.len();
    check(bytes_of::<T>(growth(len, values.capacity(), more)), &what)?;
    values.try_reserve(more).map_err(|_| out_of_memory(what, bytes_of::<T>(len.saturating_add(more))))
}

/// Like [`reserve`], but without spare room.
pub(crate) fn reserve_exact<T>(values: &mut Vec<T>, more: usize, what: impl Display) -> Result<()> {
    let len = values.len();
    check(bytes_of::<T>(len.saturating_add(more).saturating_sub(values.capacity())), &what)?;
    values.try_reserve_exact(more).map_err(|_| out_of_memory(what, bytes_of::<T>(len.saturating_add(more))))
}

/// Makes room for `more` bytes at the end of `text`.
///
/// # Errors
/// `OutOfMemory`; `text` is as before.
pub(crate) fn reserve_text(text: &mut String, more: usize, what: impl Display) -> Result<()> {
    let len = text.len();
    check(growth(len, text.capacity(), more), &what)?;
    text.try_reserve(more).map_err(|_| out_of_memory(what, len.saturating_add(more)))
}

/// An empty vector with room for `len` values.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn with_room<T>(len: usize, what: impl Display) -> Result<Vec<T>> {
    let mut values = Vec::new();
    reserve_exact(&mut values, len, what)?;
    Ok(values)
}

/// A vector of `len` copies of `value`.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn filled<T: Clone>(len: usize, value: T, what: impl Display) -> Result<Vec<T>> {
    let mut values = with_room(len, what)?;
    values.resize(len, value);
    Ok(values)
}

/// A copy of a slice.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn copied<T: Copy>(slice: &[T], what: impl Display) -> Result<Vec<T>> {
    let mut values = with_room(slice.len(), what)?;
    values.extend_from_slice(slice);
    Ok(values)
}

/// A copy of a text.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn copied_text(text: &str, what: impl Display) -> Result<String> {
    let mut copy = String::new();
    reserve_text(&mut copy, text.len(), what)?;
    copy.push_str(text);
    Ok(copy)
}

/// Appends to a text.
///
/// # Errors
/// `OutOfMemory`; `text` is as before.
pub(crate) fn push_text(text: &mut String, more: &str, what: impl Display) -> Result<()> {
    reserve_text(text, more.len(), what)?;
    text.push_str(more);
    Ok(())
}

/// A value in memory of its own.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn boxed<T>(value: T, what: impl Display) -> Result<Box<T>> {
    const { assert!(size_of::<T>() > 0) }
    let layout = Layout::new::<T>();
    // SAFETY: `T` has a nonzero size, so its layout has one too. A box of `T` frees memory of that
    // same layout with the same allocator, and the value is written before the box is made.
    unsafe {
        let Some(place) = NonNull::new(std::alloc::alloc(layout)) else {
            return Err(out_of_memory(what, layout.size()));
        };
        let place = place.cast::<T>();
        place.write(value);
        Ok(Box::from_raw(place.as_ptr()))
    }
}

/// Adds `value`.
///
/// # Errors
/// `OutOfMemory`; `values` is as before.
#[inline]
pub(crate) fn push<T>(values: &mut Vec<T>, value: T, what: impl Display) -> Result<()> {
    if values.len() == values.capacity() {
        reserve(values, 1, what)?;
    }
    values.push(value);
    Ok(())
}

/// Adds `value` to a heap.
///
/// # Errors
/// `OutOfMemory`; `values` is as before.
#[inline]
pub(crate) fn push_to_heap<T: Ord>(values: &mut BinaryHeap<T>, value: T, what: impl Display) -> Result<()> {
    let len = values.len();
    if len == values.capacity() {
        values.try_reserve(1).map_err(|_| out_of_memory(what, bytes_of::<T>(len.saturating_add(1))))?;
    }
    values.push(value);
    Ok(())
}

/// Makes room for `more` keys of a map.
///
/// # Errors
/// `OutOfMemory`; `map` is as before.
pub(crate) fn reserve_in_map<K: Eq + Hash, V, S: BuildHasher>(
    map: &mut HashMap<K, V, S>,
    more: usize,
    what: impl Display,
) -> Result<()> {
    let len = map.len();
    map.try_reserve(more).map_err(|_| out_of_memory(what, bytes_of::<(K, V)>(len.saturating_add(more))))
}

/// Adds a slice.
///
/// # Errors
/// `OutOfMemory`; `values` is as before.
pub(crate) fn extend<T: Copy>(values: &mut Vec<T>, slice: &[T], what: impl Display) -> Result<()> {
    reserve(values, slice.len(), what)?;
    values.extend_from_slice(slice);
    Ok(())
}

/// All values of an iterator.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn collected<T>(values: impl IntoIterator<Item = T>, what: impl Display + Copy) -> Result<Vec<T>> {
    try_collected(values.into_iter().map(Ok), what)
}

/// All values of an iterator, up to its first error.
///
/// # Errors
/// That error; `OutOfMemory`.
pub(crate) fn try_collected<T>(
    values: impl IntoIterator<Item = Result<T>>,
    what: impl Display + Copy,
) -> Result<Vec<T>> {
    let values = values.into_iter();
    let mut all = with_room(values.size_hint().0, what)?;
    for value in values {
        push(&mut all, value?, what)?;
    }
    Ok(all)
}

fn bytes_of<T>(len: usize) -> usize {
    len.saturating_mul(size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_as_vectors_do() {
        for (len, capacity, more) in [(0, 0, 7), (10, 10, 1), (10, 10, 11), (3, 10, 7), (3, 10, 8), (3, 10, 90)] {
            let mut values: Vec<u64> = Vec::with_capacity(capacity);
            values.resize(len, 0);
            assert_eq!(values.capacity(), capacity);
            values.reserve(more);
            assert_eq!(values.capacity() - capacity, growth(len, capacity, more), "{len} {capacity} {more}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error_that_says_for_what() {
        let error = with_room::<u64>(usize::MAX / 4, "a test").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert_eq!(error.to_string(), format!("no memory for a test: {} bytes cannot be had", usize::MAX));
        let mut values = vec![1u8];
        assert!(reserve(&mut values, usize::MAX, "a test").is_err());
        assert_eq!(values, [1]);
        let mut text = "a".to_string();
        assert!(reserve_text(&mut text, usize::MAX, "a test").is_err());
        assert!(filled(isize::MAX as usize, 0u16, "a test").is_err());
        assert!(reserve_in_map(&mut HashMap::from([(1, 2)]), usize::MAX, "a test").is_err());
    }

    #[test]
    fn what_can_be_had_is_as_asked_for() {
        assert_eq!(filled(3, 7, "a test").unwrap(), [7; 3]);
        assert_eq!(copied(&[1, 2], "a test").unwrap(), [1, 2]);
        assert_eq!(copied_text("ab", "a test").unwrap(), "ab");
        assert_eq!(collected(0..1000, "a test").unwrap(), (0..1000).collect::<Vec<_>>());
        assert_eq!(try_collected([Ok(1), Ok(2)], "a test").unwrap(), [1, 2]);
        assert!(try_collected([Ok(1), Err(out_of_memory("a test", 1))], "a test").is_err());
        assert_eq!(*boxed([7u64; 100], "a test").unwrap(), [7; 100]);
        let mut heap = BinaryHeap::new();
        (0..100).for_each(|i| push_to_heap(&mut heap, i, "a test").unwrap());
        assert_eq!((heap.len(), heap.pop()), (100, Some(99)));
        let mut text = "a".to_string();
        push_text(&mut text, "bc", "a test").unwrap();
        assert_eq!(text, "abc");
        let mut values = Vec::new();
        push(&mut values, 1, "a test").unwrap();
        extend(&mut values, &[2, 3], "a test").unwrap();
        assert_eq!(values, [1, 2, 3]);
    }
}
