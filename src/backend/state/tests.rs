use super::*;
use crate::{Error, ErrorKind};
use std::collections::HashMap;
use std::sync::Mutex;

/// Memory that remembers a value for each page, and is full after a number of pages.
#[derive(Clone)]
struct Fake {
    pages: Arc<Mutex<HashMap<PageId, u32>>>,
    limit: usize,
}

impl Fake {
    fn new(limit: usize) -> Self {
        Self { pages: Arc::default(), limit }
    }
}

impl PageStore for Fake {
    fn allocate(&self, page: PageId) -> Result<()> {
        let mut pages = self.pages.lock().unwrap();
        if pages.len() >= self.limit {
            return Err(Error::new(ErrorKind::OutOfMemory, "full"));
        }
        assert!(pages.insert(page, page).is_none(), "page {page} was allocated twice");
        Ok(())
    }
    fn release(&self, page: PageId) {
        assert!(self.pages.lock().unwrap().remove(&page).is_some(), "page {page} was not allocated");
    }
    fn copy(&self, from: PageId, to: PageId) -> Result<()> {
        let mut pages = self.pages.lock().unwrap();
        let value = pages[&from];
        pages.insert(to, value);
        Ok(())
    }
}

const FULL: GroupKind = GroupKind::Paged { window: None };
const WINDOW: GroupKind = GroupKind::Paged { window: Some(100) };

/// Groups of these kinds with room for `limit` pages each.
fn states(kinds: &[GroupKind], limit: usize) -> (Arc<States>, Vec<Fake>) {
    let stores: Vec<Fake> = kinds.iter().map(|_| Fake::new(limit)).collect();
    let groups: Vec<Group> = kinds.iter().map(|&kind| Group { kind, states: Vec::new() }).collect();
    (States::new(&groups, |i| Ok(Box::new(stores[i].clone()))).unwrap(), stores)
}

/// Evaluates positions up to `to`, some at a time.
fn run(sequence: &mut Sequence, to: usize, at_a_time: usize) {
    while sequence.len() < to {
        let next = (sequence.len() + at_a_time).min(to);
        sequence.prepare(next).unwrap();
        sequence.commit(next);
    }
}

/// Which pages of a group a sequence has.
fn held(sequence: &Sequence, group: usize) -> Vec<usize> {
    let pages = sequence.tables()[group].iter().enumerate();
    pages.filter(|(_, page)| **page != NO_PAGE).map(|(i, _)| i).collect()
}

#[test]
fn forks_share_until_one_writes() {
    let (states, stores) = states(&[FULL], 100);
    let mut a = Sequence::new(&states).unwrap();
    run(&mut a, 2 * PAGE_LEN + 1, 1000);
    let mut b = a.fork().unwrap();
    assert_eq!(a.tables(), b.tables());
    assert_eq!(states.pages_in_use(), [3]);
    run(&mut b, 2 * PAGE_LEN + 2, 1);
    let (in_a, in_b) = (a.tables()[0].clone(), b.tables()[0].clone());
    assert_eq!(in_a[..2], in_b[..2]);
    assert_ne!(in_a[2], in_b[2]);
    assert_eq!(stores[0].pages.lock().unwrap()[&in_b[2]], in_a[2], "the page was copied");
    drop(a);
    assert_eq!(states.pages_in_use(), [3]);
    assert_eq!(b.rewind(PAGE_LEN + 1), PAGE_LEN + 1);
    assert_eq!(states.pages_in_use(), [2]);
    drop(b);
    assert!(stores[0].pages.lock().unwrap().is_empty());
}

#[test]
fn a_full_pool_is_an_error_that_loses_nothing() {
    let (states, _) = states(&[FULL, WINDOW], 2);
    let mut a = Sequence::new(&states).unwrap();
    run(&mut a, 2 * PAGE_LEN - 1, 1000);
    let mut b = a.fork().unwrap();
    assert_eq!(a.prepare(3 * PAGE_LEN).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_eq!(b.prepare(2 * PAGE_LEN).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_eq!((a.abort(), b.abort()), (2 * PAGE_LEN - 1, 2 * PAGE_LEN - 1));
    drop(a);
    b.prepare(2 * PAGE_LEN).unwrap();
    drop(b);
    assert_eq!(states.pages_in_use(), [0, 0]);
}

#[test]
fn a_window_gives_back_what_left_it() {
    let (states, _) = states(&[FULL, WINDOW], 1000);
    let mut a = Sequence::new(&states).unwrap();
    for at_a_time in [1, 7, 64, 200] {
        run(&mut a, 2000, at_a_time);
        assert_eq!(held(&a, 0), (0..32).collect::<Vec<_>>());
        // The token at 2000 sees the positions from 1901 on, and 64 more are kept.
        assert_eq!(held(&a, 1), [28, 29, 30, 31]);
        assert_eq!(states.pages_in_use(), [32, 4]);
        assert!(most_pages(WINDOW, 4096, at_a_time) >= 4);
        assert_eq!(a.rewind(0), 0);
        assert_eq!(states.pages_in_use(), [0, 0]);
    }
}

#[test]
fn a_window_goes_back_as_far_as_it_reaches() {
    let (states, _) = states(&[WINDOW, FULL], 1000);
    for steps in [0, 1, 30, 64] {
        let mut a = Sequence::new(&states).unwrap();
        run(&mut a, 2000, 100);
        assert_eq!(a.rewind(2000 - steps), 2000 - steps);
        run(&mut a, 2100, 1);
    }
    let mut a = Sequence::new(&states).unwrap();
    run(&mut a, 2000, 100);
    assert_eq!(a.rewind(1500), 0, "there is no checkpoint");
    assert_eq!(states.pages_in_use(), [0, 0]);
    // As long as nothing has left the window, every position is there.
    run(&mut a, 150, 10);
    assert_eq!(a.rewind(3), 3);
}

#[test]
fn checkpoints_keep_the_state_of_their_position() {
    let (states, _) = states(&[WINDOW, FULL], 1000);
    let mut a = Sequence::new(&states).unwrap();
    run(&mut a, 1000, 100);
    a.checkpoint();
    run(&mut a, 3000, 100);
    a.checkpoint();
    run(&mut a, 5000, 100);
    let mut b = a.fork().unwrap();
    assert_eq!(a.rewind(4000), 3000, "the nearest checkpoint");
    assert_eq!(held(&a, 0).last(), Some(&46));
    run(&mut a, 4000, 100);
    assert_eq!(a.rewind(999), 999, "a little before a checkpoint");
    run(&mut a, 2000, 100);
    assert_eq!(a.rewind(1500), 0, "a checkpoint that was gone back to is no more");
    assert_eq!(b.rewind(1000), 1000);
    assert_eq!(b.rewind(800), 0);
    drop((a, b));
    assert_eq!(states.pages_in_use(), [0, 0]);
}

#[test]
fn checkpoints_are_few_and_far_between() {
    let (states, _) = states(&[WINDOW], 1000);
    let mut a = Sequence::new(&states).unwrap();
    let mut most = 0;
    for i in 1..=100 {
        run(&mut a, i * 64, 64);
        a.checkpoint();
        a.checkpoint();
        most = most.max(states.pages_in_use()[0]);
    }
    assert!(most <= most_pages(WINDOW, 6400, 64), "{most}");
    assert_eq!(a.checkpoints.len(), CHECKPOINTS);
    let places: Vec<usize> = a.checkpoints.iter().map(|c| c.len).collect();
    assert_eq!(places[CHECKPOINTS - 1], 6400);
    assert!(places.windows(2).all(|two| two[0] < two[1]), "{places:?}");
    // Without full caches there is nothing to remember.
    let (states, _) = self::states(&[FULL], 1000);
    let mut full = Sequence::new(&states).unwrap();
    run(&mut full, 100, 10);
    full.checkpoint();
    assert!(full.checkpoints.is_empty());
}

#[test]
fn a_slot_goes_back_to_checkpoints_only() {
    let (states, stores) = states(&[GroupKind::Recurrent, FULL], 1000);
    let mut a = Sequence::new(&states).unwrap();
    run(&mut a, 100, 30);
    a.checkpoint();
    let slot = a.tables()[0][0];
    run(&mut a, 200, 30);
    assert_ne!(a.tables()[0][0], slot, "a pass writes to a copy");
    assert_eq!(stores[0].pages.lock().unwrap()[&a.tables()[0][0]], slot);
    assert_eq!(a.rewind(200), 200);
    assert_eq!(a.rewind(150), 100);
    assert_eq!(a.tables()[0], [slot]);
    run(&mut a, 180, 30);
    a.checkpoint();
    run(&mut a, 190, 30);
    // A pass that failed may have written anything.
    a.prepare(200).unwrap();
    assert_eq!(a.abort(), 180);
    assert_eq!(a.rewind(179), 0);
    assert_eq!(states.pages_in_use(), [0, 0]);
    assert_eq!(a.abort(), 0);
}

#[test]
fn pages_are_counted_for_the_largest_context() {
    assert_eq!(most_pages(FULL, 1000, 256), 16);
    assert_eq!(most_pages(GroupKind::Recurrent, 1 << 20, 256), 1 + CHECKPOINTS);
    let window = most_pages(WINDOW, 1 << 20, 256);
    assert!((8..40).contains(&window), "{window}");
    // A context within the window.
    assert_eq!(most_pages(WINDOW, 128, 256), 2 + CHECKPOINTS);
    assert_eq!(most_pages(GroupKind::Paged { window: Some(usize::MAX) }, 1000, 256), 16 + CHECKPOINTS);
}
