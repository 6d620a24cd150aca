//! How the members of a walk come and go: through a door, which the calling thread opens and
//! closes.
//!
//! Workers of a pool are invited, but may come late: they may be asleep, work for another caller,
//! or wait for something that this caller provides later. So nobody waits for them. A worker that
//! comes while the door is open enters; a later one finds it closed and goes away. When the walk is
//! done, the caller closes the door and waits only for the members inside, who are leaving.
//! Meanwhile it takes no other task of the pool, because that task could need something that this
//! thread holds.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The work of a member, given its number.
type Work = dyn Fn(usize) + Sync;

/// The state of a door: the number of members inside, the number that have entered so far, and the
/// bits below. It is one word, so that nobody enters once the door is closed. Only the pure
/// functions here change it; a test tries all their orders.
pub(super) mod state {
    pub(in super::super) const CLOSED: u64 = 1 << 63;
    /// The caller is asleep, or will be unless everybody has left.
    pub(in super::super) const AWAITED: u64 = 1 << 62;
    const ENTERED: u64 = 1 << 32;
    const INSIDE: u64 = ENTERED - 1;

    /// An open door. The caller has the first place, but does not count as inside.
    pub(in super::super) const OPEN: u64 = ENTERED;

    /// The state after one more member has entered, and its number; `None` if the door is closed or
    /// all places are taken.
    pub(in super::super) fn entered(state: u64, places: usize) -> Option<(u64, usize)> {
        let number = ((state & !(CLOSED | AWAITED)) / ENTERED) as usize;
        (state & CLOSED == 0 && number < places).then_some((state + ENTERED + 1, number))
    }

    /// The state after a member has left.
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
    /// The caller sleeps on these.
    lock: Mutex<()>,
    empty: Condvar,
}

// SAFETY: only `work` is not `Send` and `Sync` by itself. It points to a `Sync` value, and only
// members that are inside use it. The caller keeps it alive during their stay.
unsafe impl Send for Door {}
// SAFETY: as above.
unsafe impl Sync for Door {}

impl Door {
    /// Enters, if the door is open and has a place. Returns the place's number.
    fn enter(&self) -> Option<usize> {
        let mut seen = self.state.load(Ordering::Relaxed);
        loop {
            let (next, number) = state::entered(seen, self.places)?;
            // Closing changes the same word, so this succeeds before the door is closed or not at
            // all.
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
        // SAFETY: this thread has entered and not left yet. The door was open then, so the caller
        // had not closed it. The caller does not return from `close`, which ends the borrow behind
        // `work`, before this thread has left.
        unsafe { (*self.work)(number) }
    }

    fn leave(&self) {
        // Release: the caller sees everything that was done inside. The count is at least 1, as
        // this thread is inside.
        let before = self.state.fetch_sub(1, Ordering::Release);
        if state::inside(state::left(before)) == 0 && before & state::AWAITED != 0 {
            // While this thread holds the lock, the caller either has not looked at the state yet,
            // or is asleep.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.empty.notify_one();
        }
    }

    /// Closes the door and returns when nobody is inside.
    fn close(&self) {
        const SPINS: usize = 500;
        const YIELDS: usize = 20;
        let mut now = self.state.fetch_or(state::CLOSED, Ordering::Acquire);
        // The walk is done, so the members are just leaving, unless they wait for this core.
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

/// The open doors of a team, and the workers that are on their way. Invitations share ownership of
/// it.
#[derive(Default)]
pub(super) struct Hall {
    open: Mutex<Vec<Arc<Door>>>,
    /// Invitations that no worker has answered yet. A worker that never comes keeps only one: an
    /// invitation is to all doors that are open when it is answered.
    invited: AtomicUsize,
}

impl Hall {
    fn doors(&self) -> MutexGuard<'_, Vec<Arc<Door>>> {
        // Adding and removing leave the list intact, so a poisoned lock does no harm.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work(0)` on this thread, and `work(n)`, with other numbers below `places`, on the
    /// threads that come meanwhile. `invite(n)` must make `n` threads call [`answer`](Self::answer)
    /// eventually.
    pub(super) fn walk(self: &Arc<Self>, places: usize, work: &(dyn Fn(usize) + Sync), invite: impl FnOnce(usize)) {
        let work: *const (dyn Fn(usize) + Sync + '_) = work;
        // SAFETY: only the lifetime changes, and a raw pointer does not depend on it.
        let work = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Work>(work) };
        let state = AtomicU64::new(state::OPEN);
        let door = Arc::new(Door { state, places, work, lock: Mutex::new(()), empty: Condvar::new() });
        /// Removes the door and closes it when dropped, also if this thread's work panics.
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

    /// The number of invitations to send so that `wanted` are on their way. They count as sent. The
    /// door is open before this looks, and a worker counts its invitation out before it looks for
    /// open doors. So each worker on its way will see this door.
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

    /// Answers an invitation: works behind each door that is open now, one after the other, if it
    /// still has a place by then. Doors that open later have invitations of their own. So a worker
    /// that many sessions want returns to its pool's other tasks in between.
    pub(super) fn answer(&self) {
        self.invited.fetch_sub(1, Ordering::SeqCst);
        let doors = self.doors().clone();
        for door in doors {
            if let Some(number) = door.enter() {
                // SAFETY: `enter` just gave this number to this thread.
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
