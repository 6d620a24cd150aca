//! The entries of a dictionary in order of insertion, with an index by hash.

use super::budget::Budget;
use super::fault::{Fault, Res};
use super::ops;
use super::value::{MAX_DEPTH, Value};
use crate::memory;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// The most entries that are searched one by one.
const SMALL: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Map {
    entries: Vec<(Value, Value)>,
    /// The hash of each key, once there is an index.
    hashes: Vec<u64>,
    index: Option<Index>,
}

/// Places of entries by hash, with open addressing. A slot holds the entry's place plus one, or 0
/// if empty.
#[derive(Debug)]
struct Index {
    slots: Vec<u32>,
    state: RandomState,
}

impl Map {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, (Value, Value)> {
        self.entries.iter()
    }

    pub fn entry(&self, place: usize) -> Option<&(Value, Value)> {
        self.entries.get(place)
    }

    /// The value under a text key. Unlike other lookups, it ignores keys that cannot be compared.
    pub fn get_str(&self, key: &str, budget: &Budget) -> Res<Option<&Value>> {
        // A short key is free, because each access already pays a step. In a small dictionary every
        // key may be as long as this one and must be compared.
        budget.steps((key.len() / 16 * self.entries.len().clamp(1, SMALL)) as u64)?;
        let place = match &self.index {
            None => self.entries.iter().position(|(other, _)| other.as_str() == Some(key)),
            Some(index) => {
                let mut hasher = index.state.build_hasher();
                hash_str(key, &mut hasher);
                index.find(hasher.finish(), &self.hashes, budget, |place| {
                    Ok(self.entries.get(place).is_some_and(|(other, _)| other.as_str() == Some(key)))
                })?
            }
        };
        Ok(place.and_then(|place| self.entries.get(place)).map(|(_, value)| value))
    }

    pub fn get(&self, key: &Value, budget: &Budget) -> Res<Option<&Value>> {
        Ok(self.place(key, budget)?.and_then(|place| self.entries.get(place)).map(|(_, value)| value))
    }

    pub fn contains(&self, key: &Value, budget: &Budget) -> Res<bool> {
        Ok(self.place(key, budget)?.is_some())
    }

    fn place(&self, key: &Value, budget: &Budget) -> Res<Option<usize>> {
        if let Some(text) = key.as_text() {
            budget.bytes(text.len())?;
        }
        match &self.index {
            None => {
                check_hashable(key, 0, budget)?;
                for (place, (other, _)) in self.entries.iter().enumerate() {
                    if ops::equal(key, other, budget)? {
                        return Ok(Some(place));
                    }
                }
                Ok(None)
            }
            Some(index) => self.find(index, index.hash(key, budget)?, key, budget),
        }
    }

    fn find(&self, index: &Index, hash: u64, key: &Value, budget: &Budget) -> Res<Option<usize>> {
        index.find(hash, &self.hashes, budget, |place| match self.entries.get(place) {
            Some((other, _)) => ops::equal(key, other, budget),
            None => Ok(false),
        })
    }

    /// Sets the value of a key, and returns the old one.
    pub fn insert(&mut self, key: Value, value: Value, budget: &Budget) -> Res<Option<Value>> {
        if let Some(place) = self.place(&key, budget)? {
            return Ok(self.entries.get_mut(place).map(|(_, old)| std::mem::replace(old, value)));
        }
        if self.entries.len() == self.entries.capacity() {
            budget.memory((self.entries.len() + 4) * 2 * (size_of::<(Value, Value)>() + 24))?;
        }
        memory::push(&mut self.entries, (key, value), "a dictionary of a chat template")?;
        if self.index.is_none() && self.entries.len() <= SMALL {
            return Ok(None);
        }
        match &mut self.index {
            Some(index) if self.entries.len() * 2 < index.slots.len() => {
                let place = self.entries.len() - 1;
                let hash = match self.entries.get(place) {
                    Some((key, _)) => index.hash(key, budget)?,
                    None => 0,
                };
                memory::push(&mut self.hashes, hash, "a dictionary of a chat template")?;
                index.add(hash, place);
            }
            _ => self.rebuild(budget)?,
        }
        Ok(None)
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &Value, budget: &Budget) -> Res<Option<(Value, Value)>> {
        let Some(place) = self.place(key, budget)? else { return Ok(None) };
        budget.items(self.entries.len())?;
        let entry = self.entries.remove(place);
        if self.index.is_some() {
            self.rebuild(budget)?;
        }
        Ok(Some(entry))
    }

    pub fn pop_last(&mut self, budget: &Budget) -> Res<Option<(Value, Value)>> {
        let Some(entry) = self.entries.pop() else { return Ok(None) };
        if self.index.is_some() {
            budget.items(self.entries.len())?;
            self.rebuild(budget)?;
        }
        Ok(Some(entry))
    }

    /// A copy of all entries.
    pub fn copy(&self, budget: &Budget) -> Res<Self> {
        let mut copy = Self::default();
        copy.add_all(self, budget)?;
        Ok(copy)
    }

    pub fn add_all(&mut self, other: &Self, budget: &Budget) -> Res<()> {
        for (key, value) in &other.entries {
            self.insert(key.clone(), value.clone(), budget)?;
        }
        Ok(())
    }

    fn rebuild(&mut self, budget: &Budget) -> Res<()> {
        self.index = None;
        self.hashes.clear();
        if self.entries.len() <= SMALL {
            return Ok(());
        }
        let slots = (self.entries.len() * 4).next_power_of_two();
        budget.items(self.entries.len())?;
        budget.memory(slots * 4 + self.entries.len() * 8)?;
        let mut index =
            Index { slots: memory::filled(slots, 0, "a dictionary of a chat template")?, state: RandomState::new() };
        memory::reserve(&mut self.hashes, self.entries.len(), "a dictionary of a chat template")?;
        for (place, (key, _)) in self.entries.iter().enumerate() {
            let hash = index.hash(key, budget)?;
            self.hashes.push(hash);
            index.add(hash, place);
        }
        self.index = Some(index);
        Ok(())
    }
}

impl Index {
    fn hash(&self, key: &Value, budget: &Budget) -> Res<u64> {
        let mut hasher = self.state.build_hasher();
        hash(key, 0, budget, &mut hasher)?;
        Ok(hasher.finish())
    }

    fn add(&mut self, hash: u64, place: usize) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(slot) = self.slots.get_mut(at) {
            if *slot == 0 {
                *slot = place as u32 + 1;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn find(
        &self,
        hash: u64,
        hashes: &[u64],
        budget: &Budget,
        mut is_it: impl FnMut(usize) -> Res<bool>,
    ) -> Res<Option<usize>> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(place) = self.slots.get(at).and_then(|slot| slot.checked_sub(1)) {
            budget.steps(1)?;
            let place = place as usize;
            if hashes.get(place) == Some(&hash) && is_it(place)? {
                return Ok(Some(place));
            }
            at = (at + 1) & mask;
        }
        Ok(None)
    }
}

fn hash_str(text: &str, hasher: &mut impl Hasher) {
    3u8.hash(hasher);
    text.hash(hasher);
}

/// Hashes a value that can be a key. Equal numbers hash alike, whatever their type.
fn hash(key: &Value, depth: u32, budget: &Budget, hasher: &mut impl Hasher) -> Res<()> {
    budget.steps(1)?;
    match key {
        Value::Undefined(_) => 0u8.hash(hasher),
        Value::None(_) => 1u8.hash(hasher),
        Value::Bool(..) | Value::Int(..) => (2u8, key.as_int().unwrap_or_default()).hash(hasher),
        Value::Float(f, _) if f.trunc() == *f && f.abs() < 1e38 => (2u8, *f as i128).hash(hasher),
        Value::Float(f, _) => (4u8, f.to_bits()).hash(hasher),
        Value::Text(text) => {
            budget.bytes(text.len())?;
            hash_str(text.as_str(), hasher);
        }
        Value::Tuple(tuple) => {
            check_depth(depth)?;
            (5u8, tuple.items.len()).hash(hasher);
            for item in &tuple.items {
                hash(item, depth + 1, budget, hasher)?;
            }
        }
        Value::Range(range) => (6u8, range.len).hash(hasher),
        Value::Namespace(_) | Value::Iter(_) | Value::Loop(_) | Value::Call(_) => 7u8.hash(hasher),
        Value::List(_) | Value::Dict(_) | Value::View(..) => return Err(unhashable(key)),
    }
    Ok(())
}

fn check_hashable(key: &Value, depth: u32, budget: &Budget) -> Res<()> {
    match key {
        Value::List(_) | Value::Dict(_) | Value::View(..) => Err(unhashable(key)),
        Value::Tuple(tuple) => {
            check_depth(depth)?;
            budget.items(tuple.items.len())?;
            tuple.items.iter().try_for_each(|item| check_hashable(item, depth + 1, budget))
        }
        _ => Ok(()),
    }
}

/// Refuses a value that cannot be a key or an item of a set.
pub(super) fn unhashable(key: &Value) -> Fault {
    Fault::invalid(format_args!("unhashable type: '{}'", key.type_name()))
}

pub(super) fn check_depth(depth: u32) -> Res<()> {
    if depth > MAX_DEPTH { Err(Fault::too_deep("a value")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Limits;
    use super::super::text::By;
    use super::*;

    #[test]
    fn keys_are_found_whatever_the_size() {
        let budget = Budget::new(Limits::new(0, 0, 0));
        let mut map = Map::default();
        for i in 0..1000i128 {
            assert!(map.insert(Value::Int(i, By::Template), Value::Int(-i, By::Template), &budget).unwrap().is_none());
        }
        assert!(map.insert(Value::Float(7.0, By::Caller), Value::NONE, &budget).unwrap().is_some());
        assert_eq!(map.len(), 1000);
        for i in (0..1000i128).step_by(3) {
            assert!(map.remove(&Value::Int(i, By::Template), &budget).unwrap().is_some());
        }
        for i in 0..1001i128 {
            let found = map.contains(&Value::Float(i as f64, By::Template), &budget).unwrap();
            assert_eq!(found, i < 1000 && i % 3 != 0, "{i}");
        }
        assert!(map.get(&Value::list(Vec::new()).unwrap(), &budget).is_err());
    }
}
