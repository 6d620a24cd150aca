//! How the members of a walk come and go: through a door, which the calling thread opens and closes.
//!
//! Workers of a pool are invited, and nobody knows when they come: they may be asleep, or work for somebody else, or wait
//! for what the caller of the walk gives them later. So nobody waits for them. A worker that comes while the door is open
//! enters; one that comes later finds it closed, and goes away. The caller closes the door when the walk is done and then
//! waits for those inside alone, who are leaving. It waits without taking any other task of the pool: that task could be
//! one that needs what this thread holds.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a member does, given its number.
type Work = dyn Fn(usize) + Sync;

/// The state of a door as one word, so that nobody enters once it is closed: how many are inside, how many have entered
/// so far, and the bits below. The pure functions here are all that changes it; a test tries all their orders.
pub(super) mod state {
    pub(in super::super) const CLOSED: u64 = 1 << 63;
    /// The caller is asleep, or will be unless everybody has left.
    pub(in super::super) const AWAITED: u64 = 1 << 62;
    const ENTERED: u64 = 1 << 32;
    const INSIDE: u64 = ENTERED - 1;

    /// An open door. The caller has the first place, but is not counted as inside.
    pub(in super::super) const OPEN: u64 = ENTERED;

    /// The state after one more has entered, and its number; nothing where the door is closed or all places are taken.
    pub(in super::super) fn entered(state: u64, places: usize) -> Option<(u64, usize)> {
        let number = ((state & !(CLOSED | AWAITED)) / ENTERED) as usize;
        (state & CLOSED == 0 && number < places).then_some((state + ENTERED + 1, number))
    }

    /// The state after one of those inside has left.
    pub(in super::super) fn left(state: u64) -> u64 {
        state - 1
    }

    pub(in super::super) fn inside(state: u64) -> u64 {
        state & INSIDE
    }
}

/// The door of one walk.
struct Door {
    state: AtomicU64,
    places: usize,
    /// Borrowed from the caller, who does not leave while the door is open or somebody is inside.
    work: *const Work,
    /// What the caller sleeps on.
    lock: Mutex<()>,
    empty: Condvar,
}

// SAFETY: `work` is the only part that is not `Send` and `Sync` by itself. It points to what is `Sync`, and is used only
// by members that are inside, during whose stay the caller keeps it alive.
unsafe impl Send for Door {}
// SAFETY: as above.
unsafe impl Sync for Door {}

impl Door {
    /// Enters, if it is open and there is a place; returns the number of that.
    fn enter(&self) -> Option<usize> {
        let mut seen = self.state.load(Ordering::Relaxed);
        loop {
            let (next, number) = state::entered(seen, self.places)?;
            // Closing changes the same word, so this succeeds before the door is closed or not at all.
            match self.state.compare_exchange_weak(seen, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(number),
                Err(now) => seen = now,
            }
        }
    }

    /// Works as the member with this number, and leaves.
    ///
    /// # Safety
    /// The number is from [`enter`](Self::enter), and used once.
    unsafe fn work(&self, number: usize) {
        /// Leaves when dropped, so that the caller never waits in vain.
        struct Inside<'a>(&'a Door);
        impl Drop for Inside<'_> {
            fn drop(&mut self) {
                self.0.leave();
            }
        }
        let _inside = Inside(self);
        // SAFETY: this thread has entered and not left yet. The door was open then, so the caller had not closed it, and
        // it does not return from `close`, which ends the borrow that `work` was made of, before this thread has left.
        unsafe { (*self.work)(number) }
    }

    fn leave(&self) {
        // Release: the caller sees all that was done inside. The state is not below 1, as this thread is inside.
        let before = self.state.fetch_sub(1, Ordering::Release);
        if state::inside(state::left(before)) == 0 && before & state::AWAITED != 0 {
            // Holding the lock, the caller either has not looked at the state yet, or is asleep.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.empty.notify_one();
        }
    }

    /// Closes the door and returns when nobody is inside.
    fn close(&self) {
        const SPINS: usize = 500;
        const YIELDS: usize = 20;
        let mut now = self.state.fetch_or(state::CLOSED, Ordering::Acquire);
        // The walk is done: they are just leaving, if they need not wait for this core.
        for turn in 0..SPINS + YIELDS {
            if state::inside(now) == 0 {
                return;
            }
            if turn < SPINS {
                std::hint::spin_loop()
            } else {
                std::thread::yield_now()
            }
            now = self.state.load(Ordering::Acquire);
        }
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        now = self.state.fetch_or(state::AWAITED, Ordering::Acquire);
        while state::inside(now) > 0 {
            lock = self.empty.wait(lock).unwrap_or_else(PoisonError::into_inner);
            now = self.state.load(Ordering::Acquire);
        }
    }
}

/// The doors of a team that are open, and the workers that are on their way. Invitations own a part of it.
#[derive(Default)]
pub(super) struct Hall {
    open: Mutex<Vec<Arc<Door>>>,
    /// Invitations that no worker has answered yet. A worker that never comes keeps its own, and no more than that: one
    /// invitation is to whatever door is open when it is answered.
    invited: AtomicUsize,
}

impl Hall {
    fn doors(&self) -> MutexGuard<'_, Vec<Arc<Door>>> {
        // Adding and removing leave the list whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work(0)` on this thread and `work(n)`, with other numbers below `places`, on those that come meanwhile.
    /// `invite(n)` makes `n` threads call [`answer`](Self::answer) some time.
    pub(super) fn walk(self: &Arc<Self>, places: usize, work: &(dyn Fn(usize) + Sync), invite: impl FnOnce(usize)) {
        let work: *const (dyn Fn(usize) + Sync + '_) = work;
        // SAFETY: only the lifetime changes, which a raw pointer makes no use of.
        let work = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Work>(work) };
        let state = AtomicU64::new(state::OPEN);
        let door = Arc::new(Door { state, places, work, lock: Mutex::new(()), empty: Condvar::new() });
        /// Takes the door away and closes it when dropped, so also where this thread's work panics.
        struct Opened<'a>(&'a Hall, &'a Arc<Door>);
        impl Drop for Opened<'_> {
            fn drop(&mut self) {
                self.0.doors().retain(|door| !Arc::ptr_eq(door, self.1));
                self.1.close();
            }
        }
        self.doors().push(Arc::clone(&door));
        let _opened = Opened(self, &door);
        let missing = self.missing(places.saturating_sub(1));
        if missing > 0 {
            invite(missing);
        }
        // SAFETY: `_opened` is dropped before `work` ends.
        unsafe { (*door.work)(0) }
    }

    /// How many invitations there must be besides those on their way, so that `wanted` are; they count as sent. The door
    /// is open before this looks, and who answers has counted its invitation out before it looks for open doors: so
    /// each of those on their way will see this door.
    fn missing(&self, wanted: usize) -> usize {
        let mut seen = self.invited.load(Ordering::SeqCst);
        while seen < wanted {
            match self.invited.compare_exchange_weak(seen, wanted, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return wanted - seen,
                Err(now) => seen = now,
            }
        }
        0
    }

    /// Answers an invitation: works behind each door that is open now, one after the other, as far as there is a place when
    /// it comes to that. Doors that open later have invitations of their own, so that a worker which many sessions want
    /// goes back to its pool's other tasks in between.
    pub(super) fn answer(&self) {
        self.invited.fetch_sub(1, Ordering::SeqCst);
        let doors = self.doors().clone();
        for door in doors {
            if let Some(number) = door.enter() {
                // SAFETY: the number was just given to this thread.
                unsafe { door.work(number) }
            }
        }
    }

    /// Invitations that no worker has answered yet.
    #[cfg(test)]
    pub(super) fn invited(&self) -> usize {
        self.invited.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;
