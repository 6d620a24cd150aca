//! Tries all orders of the protocol's steps, one by one. A step is one atomic operation of the code
//! or one critical section, and changes states by the same functions. Effects of weak memory order
//! beyond that are left to ThreadSanitizer.

use super::Hall;
use super::state::{AWAITED, CLOSED, OPEN, entered, inside, left};
use std::cell::UnsafeCell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Defects of the protocol. The test must find each.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Bug {
    None,
    EntersClosed,
    NotifiesWithoutLock,
    NeverNotifies,
    LooksBeforeCounting,
    InvitesBeforeOpening,
    WaitsForNobody,
}

/// The position of a thread in the protocol.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum At {
    // A caller, with the number of its walk. Each caller has some, one after the other.
    Opens(usize),
    Invites(usize),
    Sends(usize, usize),
    Works(usize),
    Hides(usize),
    Closes(usize),
    Spins(usize),
    Awaits(usize),
    Dozes(usize),
    Sleeps(usize),
    Wakes(usize),
    // A worker, with the number of a walk, and as bits the walks that were open when it looked.
    Idle,
    Counts,
    Looks,
    Enters(usize, u32),
    Inside(usize, u32),
    Leaves(usize, u32),
    Locks(usize, u32),
    Notifies(usize, u32),
    Done,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    doors: Vec<u64>,
    listed: Vec<bool>,
    /// For each walk, whether its caller has returned.
    returned: Vec<bool>,
    locked: Vec<bool>,
    notified: Vec<bool>,
    /// The numbers of each walk's members, as bits.
    members: Vec<u32>,
    invited: usize,
    jobs: usize,
    threads: Vec<At>,
}

struct Model {
    bug: Bug,
    places: usize,
    /// Walks of each caller.
    walks: usize,
    /// How many members must come before the last walk of each caller ends, if any.
    needs: Option<u32>,
}

impl Model {
    /// Tries all orders. Returns the number of states, or the error in one of them.
    fn check(&self, callers: usize, workers: usize) -> Result<usize, String> {
        let count = callers * self.walks;
        let callers = (0..callers).map(|caller| self.begin(caller * self.walks));
        let world = World {
            doors: vec![OPEN; count],
            listed: vec![false; count],
            returned: vec![false; count],
            locked: vec![false; count],
            notified: vec![false; count],
            members: vec![1; count],
            invited: 0,
            jobs: 0,
            threads: callers.chain(std::iter::repeat_n(At::Idle, workers)).collect(),
        };
        let (mut seen, mut left) = (HashSet::from([world.clone()]), vec![world]);
        while let Some(world) = left.pop() {
            let mut stuck = true;
            for thread in 0..world.threads.len() {
                if let Some(next) = self.steps(&world, thread)? {
                    stuck = false;
                    if seen.insert(next.clone()) {
                        left.push(next);
                    }
                }
            }
            let all_home = world.threads.iter().all(|at| matches!(at, At::Done | At::Idle));
            if stuck && !(all_home && world.invited == 0) {
                return Err(format!("nobody can go on: {world:?}"));
            }
        }
        Ok(seen.len())
    }

    fn begin(&self, walk: usize) -> At {
        if self.bug == Bug::InvitesBeforeOpening { At::Invites(walk) } else { At::Opens(walk) }
    }

    /// The position of a caller after a walk.
    fn after(&self, walk: usize) -> At {
        if (walk + 1).is_multiple_of(self.walks) { At::Done } else { self.begin(walk + 1) }
    }

    /// The world after one step of a thread; `None` if the thread is blocked.
    fn steps(&self, world: &World, thread: usize) -> Result<Option<World>, String> {
        let mut next = world.clone();
        let at = world.threads[thread].clone();
        let to = match at {
            At::Opens(walk) => {
                next.listed[walk] = true;
                if self.bug == Bug::InvitesBeforeOpening { At::Works(walk) } else { At::Invites(walk) }
            }
            At::Invites(walk) => {
                let missing = (self.places - 1).saturating_sub(world.invited);
                next.invited += missing;
                At::Sends(walk, missing)
            }
            At::Sends(walk, missing) => {
                next.jobs += missing;
                if next.jobs >= self.places {
                    return Err(format!("invitations pile up: {next:?}"));
                }
                if self.bug == Bug::InvitesBeforeOpening { At::Opens(walk) } else { At::Works(walk) }
            }
            At::Works(walk) => match self.needs {
                Some(needs) if self.after(walk) == At::Done && world.members[walk].count_ones() < needs => {
                    return Ok(None);
                }
                _ => At::Hides(walk),
            },
            At::Hides(walk) => {
                next.listed[walk] = false;
                At::Closes(walk)
            }
            At::Closes(walk) => {
                next.doors[walk] |= CLOSED;
                At::Spins(walk)
            }
            At::Spins(walk) if inside(world.doors[walk]) == 0 || self.bug == Bug::WaitsForNobody => {
                next.returned[walk] = true;
                self.after(walk)
            }
            // The caller may spin for any time before it takes the lock. With the lock it acts at
            // once, or after sleeping.
            At::Spins(walk) if !world.locked[walk] => {
                next.locked[walk] = true;
                At::Awaits(walk)
            }
            At::Awaits(walk) => {
                next.doors[walk] |= AWAITED;
                self.sleep_or_return(&mut next, walk)
            }
            At::Dozes(walk) => {
                next.locked[walk] = false;
                At::Sleeps(walk)
            }
            At::Sleeps(walk) if world.notified[walk] => {
                next.notified[walk] = false;
                At::Wakes(walk)
            }
            At::Wakes(walk) if !world.locked[walk] => {
                next.locked[walk] = true;
                self.sleep_or_return(&mut next, walk)
            }
            At::Idle if world.jobs > 0 => {
                next.jobs -= 1;
                if self.bug == Bug::LooksBeforeCounting { At::Looks } else { At::Counts }
            }
            At::Counts => {
                next.invited -= 1;
                if self.bug == Bug::LooksBeforeCounting { At::Idle } else { At::Looks }
            }
            At::Looks => {
                let open = (0..world.listed.len()).filter(|&walk| world.listed[walk]);
                self.next_door(0, open.fold(0, |open, walk| open | 1 << walk))
            }
            At::Enters(walk, open) => {
                let ignored = if self.bug == Bug::EntersClosed { CLOSED } else { 0 };
                match entered(world.doors[walk] & !ignored, self.places) {
                    Some((door, number)) => {
                        next.doors[walk] = door | world.doors[walk] & ignored;
                        if number >= self.places || world.members[walk] >> number & 1 == 1 {
                            return Err(format!("two are member {number}: {world:?}"));
                        }
                        next.members[walk] |= 1 << number;
                        At::Inside(walk, open)
                    }
                    None => self.next_door(walk + 1, open),
                }
            }
            At::Inside(walk, _) if world.returned[walk] => {
                return Err(format!("a member uses what its caller has taken away: {world:?}"));
            }
            At::Inside(walk, open) => At::Leaves(walk, open),
            At::Leaves(walk, open) => {
                let before = world.doors[walk];
                next.doors[walk] = left(before);
                match inside(left(before)) == 0 && before & AWAITED != 0 {
                    true if self.bug == Bug::NeverNotifies => At::Idle,
                    true if self.bug == Bug::NotifiesWithoutLock => At::Notifies(walk, open),
                    true => At::Locks(walk, open),
                    false => self.next_door(walk + 1, open),
                }
            }
            At::Locks(walk, open) if !world.locked[walk] => At::Notifies(walk, open),
            At::Notifies(walk, open) => {
                next.notified[walk] = world.threads.contains(&At::Sleeps(walk));
                self.next_door(walk + 1, open)
            }
            _ => return Ok(None),
        };
        next.threads[thread] = to;
        Ok(Some(next))
    }

    /// The position of a worker that has seen the `open` doors and is done with those before
    /// `from`.
    fn next_door(&self, from: usize, open: u32) -> At {
        match (from..32).find(|&walk| open >> walk & 1 == 1) {
            Some(walk) => At::Enters(walk, open),
            None if self.bug == Bug::LooksBeforeCounting => At::Counts,
            None => At::Idle,
        }
    }

    /// The step of a caller that has the lock.
    fn sleep_or_return(&self, next: &mut World, walk: usize) -> At {
        if inside(next.doors[walk]) > 0 {
            return At::Dozes(walk);
        }
        next.locked[walk] = false;
        next.returned[walk] = true;
        self.after(walk)
    }
}

#[test]
fn no_order_of_steps_lets_a_member_stay_or_a_caller_wait_in_vain() {
    for (callers, walks, workers, places) in [(1, 3, 1, 2), (1, 3, 2, 3), (1, 2, 3, 3), (2, 1, 2, 3), (2, 2, 1, 2)] {
        let model = Model { bug: Bug::None, places, walks, needs: None };
        let states = model.check(callers, workers).unwrap();
        println!("{callers} callers of {walks} walks, {workers} workers, {places} places: {states} states");
        assert!(states > 100);
    }
}

#[test]
fn in_every_order_all_come_who_are_waited_for() {
    for (callers, walks, workers, places) in [(1, 3, 1, 2), (1, 2, 2, 3), (1, 2, 3, 3), (2, 2, 1, 2), (2, 1, 2, 2)] {
        let model = Model { bug: Bug::None, places, walks, needs: Some(places as u32) };
        let states = model.check(callers, workers).unwrap();
        println!("{callers} callers of {walks} walks, {workers} workers, {places} places: {states} states");
    }
}

#[test]
fn each_mistake_in_the_protocol_is_found() {
    let check = |bug, needs| Model { bug, places: 2, walks: 2, needs }.check(1, 1);
    for bug in [Bug::EntersClosed, Bug::NotifiesWithoutLock, Bug::NeverNotifies, Bug::WaitsForNobody] {
        assert!(check(bug, None).is_err(), "{bug:?}");
    }
    for bug in [Bug::LooksBeforeCounting, Bug::InvitesBeforeOpening] {
        assert!(check(bug, Some(2)).is_err(), "{bug:?}");
    }
    assert!(check(Bug::None, None).is_ok() && check(Bug::None, Some(2)).is_ok());
}

/// A number that a member writes and the caller reads, with only the door between them.
struct Plain(UnsafeCell<usize>);

// SAFETY: in the test below one member writes to each, and the caller reads it when nobody is
// inside.
unsafe impl Sync for Plain {}

#[test]
fn what_members_did_the_caller_sees_without_any_other_order() {
    const PLACES: usize = 3;
    let hall = Arc::new(Hall::default());
    let (invite, invited) = mpsc::channel::<()>();
    let invited = Mutex::new(invited);
    let came = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PLACES - 1 {
            scope.spawn(|| {
                while { invited.lock().unwrap().recv() }.is_ok() {
                    hall.answer();
                }
            });
        }
        let callers: Vec<_> = (0..2)
            .map(|caller| {
                let (hall, came, invite) = (&hall, &came, invite.clone());
                scope.spawn(move || {
                    for round in 1..=5000 {
                        let found: [Plain; PLACES] = std::array::from_fn(|_| Plain(UnsafeCell::new(0)));
                        let left = AtomicUsize::new(if round % 50 == 0 { PLACES } else { 1 });
                        let work = |number: usize| {
                            // SAFETY: no other member has this number, and the caller waits.
                            unsafe { *found[number].0.get() = round + caller };
                            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
                            // In some rounds the caller waits for all.
                            while number == 0 && round % 50 == 0 && left.load(Ordering::Relaxed) > 0 {
                                std::thread::yield_now();
                            }
                        };
                        hall.walk(PLACES, &work, |n| (0..n).for_each(|_| invite.send(()).unwrap()));
                        // Everybody has left.
                        let found = found.map(|found| found.0.into_inner());
                        assert_eq!(found[0], round + caller);
                        assert!(found.iter().all(|&n| n == 0 || n == round + caller));
                        came.fetch_add(found.iter().filter(|&&n| n > 0).count() - 1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        drop(invite);
    });
    assert!(came.into_inner() >= 200);
    assert_eq!(hall.invited(), 0);
}
