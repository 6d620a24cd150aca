//! Compact storage of many byte strings, and a hash index from their bytes to their numbers.

use crate::{Result, memory};
use std::hash::{BuildHasher, RandomState};

/// No token.
pub(super) const NONE: u32 = u32::MAX;

/// Many byte strings in one allocation.
#[derive(Default)]
pub(super) struct Strings {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Strings {
    /// Makes room for `strings` strings of `bytes` bytes in all.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn with_capacity(strings: usize, bytes: usize) -> Result<Self> {
        const WHAT: &str = "the vocabulary";
        Ok(Self { bytes: memory::with_room(bytes, WHAT)?, ends: memory::with_room(strings, WHAT)? })
    }

    /// Appends a string that `write` makes. The caller has made room for it, and the total must
    /// stay below 4 GiB.
    pub(super) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<&[u8]> {
        let number = number as usize;
        let end = *self.ends.get(number)? as usize;
        let start = match number.checked_sub(1) {
            Some(before) => *self.ends.get(before)? as usize,
            None => 0,
        };
        self.bytes.get(start..end)
    }
}

/// A multiplicative hash. `seed` differs between processes, so that nobody can craft a file whose
/// strings collide.
#[inline]
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

pub(super) const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

/// A new seed.
pub(super) fn seed() -> u64 {
    RandomState::new().hash_one(0)
}

#[inline]
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = seed ^ bytes.len() as u64;
    let mut rest = bytes;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        state = mix(state ^ u64::from_le_bytes(*word), ODD);
        rest = tail;
    }
    // Two reads that may overlap cover 4 to 7 bytes; three cover 1 to 3.
    let last = match (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
        (Some(low), Some(high)) => u64::from(u32::from_le_bytes(*low)) << 32 | u64::from(u32::from_le_bytes(*high)),
        _ => match rest {
            [] => 0,
            [first, ..] => {
                let middle = rest.get(rest.len() / 2).copied().unwrap_or(0);
                let end = rest.last().copied().unwrap_or(0);
                u64::from(*first) << 16 | u64::from(middle) << 8 | u64::from(end) | 1 << 24
            }
        },
    };
    mix(state ^ last, ODD ^ seed)
}

/// An open-addressing hash table from byte strings to their numbers in a [`Strings`].
pub(super) struct Index {
    /// The upper half of the hash in the upper half, the string's number in the lower half; all
    /// ones where empty.
    slots: Vec<u64>,
    seed: u64,
    /// Bytes of the longest string.
    longest: usize,
}

const EMPTY: u64 = u64::MAX;

impl Index {
    /// A table for up to `capacity` strings.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn with_capacity(capacity: usize) -> Result<Self> {
        let slots = (capacity.saturating_mul(3) / 2 + 1).next_power_of_two();
        Ok(Self { slots: memory::filled(slots, EMPTY, "an index of the vocabulary")?, seed: seed(), longest: 0 })
    }

    /// Adds string `number` of `strings`. It replaces an equal string and returns that one's
    /// number; [`NONE`] otherwise.
    pub(super) fn insert(&mut self, strings: &Strings, number: u32) -> u32 {
        let Some(bytes) = strings.get(number) else { return NONE };
        self.longest = self.longest.max(bytes.len());
        let hash = hash(self.seed, bytes);
        let slot = self.find_slot(strings, bytes, hash);
        let slot = self.slots.get_mut(slot);
        slot.map_or(NONE, |slot| std::mem::replace(slot, hash >> 32 << 32 | u64::from(number)) as u32)
    }

    /// The number of the string `bytes`, or [`NONE`].
    #[inline]
    pub(super) fn get(&self, strings: &Strings, bytes: &[u8]) -> u32 {
        if bytes.len() > self.longest {
            return NONE;
        }
        let slot = self.find_slot(strings, bytes, hash(self.seed, bytes));
        self.slots.get(slot).map_or(NONE, |&slot| slot as u32)
    }

    /// The slot that holds `bytes`, or the empty slot where it would go.
    #[inline]
    fn find_slot(&self, strings: &Strings, bytes: &[u8], hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            // The table is never full: it has more slots than strings.
            match self.slots.get(at) {
                Some(&EMPTY) | None => return at,
                Some(&slot) if slot >> 32 == hash >> 32 && strings.get(slot as u32) == Some(bytes) => return at,
                Some(_) => at = (at + 1) & mask,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_inserted() {
        let mut strings = Strings::default();
        let texts: Vec<String> = (0..3000).map(|i| "xyz".repeat(i % 7) + &i.to_string()).collect();
        let mut index = Index::with_capacity(texts.len()).unwrap();
        for (number, text) in texts.iter().enumerate() {
            strings.push_with(|out| out.extend_from_slice(text.as_bytes()));
            assert_eq!(index.insert(&strings, number as u32), NONE);
        }
        for (number, text) in texts.iter().enumerate() {
            assert_eq!(index.get(&strings, text.as_bytes()), number as u32);
        }
        strings.push_with(|out| out.extend_from_slice(texts[7].as_bytes()));
        assert_eq!(index.insert(&strings, 3000), 7);
        assert_eq!(index.get(&strings, texts[7].as_bytes()), 3000);
        assert_eq!(index.get(&strings, b""), NONE);
        assert_eq!(index.get(&strings, b"3000"), NONE);
        assert_eq!(index.get(&strings, b"xyzxyzxyzxyzxyzxyzxyzxyzxyz"), NONE);
    }
}
