//! Threads of ours that share a core take turns.
//!
//! The system lets a thread that has work run until its next tick (4 ms at 250 Hz), even where a second
//! one waits for the same core, with all its clients. So a thread looks, every so much work, whether
//! another one stands still on its own core, and if so lets that go first. One that slept and waits for
//! the core to wake up is not seen: that is the system's to see to.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use rustix::thread::{sched_getcpu, sched_yield};

/// Work between two looks, in reads: a sixth of a millisecond of a busy thread (8 us of CPU for a message
/// and its echo).
const WORK: usize = 40;
/// So many bytes are as much work as a read.
const AS_A_READ: usize = 4096;

/// What the others see of a thread.
#[derive(Debug)]
struct Seat {
    is_awake: AtomicBool,
    /// Where it was at its last look.
    core: AtomicU32,
    /// Goes up while the thread gets on.
    beat: AtomicU32,
}

/// The threads that take turns.
#[derive(Debug)]
pub(super) struct Turns(Box<[Seat]>);

/// A thread among them.
struct Place {
    turns: Arc<Turns>,
    at: usize,
    /// The others' beats at the last look.
    seen: Box<[u32]>,
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
    static DONE: Cell<usize> = const { Cell::new(0) };
}

impl Turns {
    /// For so many threads.
    pub(super) fn new(threads: usize) -> Arc<Self> {
        let seat = || Seat { is_awake: AtomicBool::new(false), core: AtomicU32::new(0), beat: AtomicU32::new(0) };
        Arc::new(Self((0..threads).map(|_| seat()).collect()))
    }

    /// Makes the present thread number `at`. Its runtime is to call [`Self::sleeps`] and
    /// [`Self::wakes`].
    pub(super) fn take_place(self: &Arc<Self>, at: usize) {
        let seen = self.0.iter().map(|_| 0).collect();
        PLACE.set(Some(Place { turns: Arc::clone(self), at, seen }));
    }

    /// Thread `at` has nothing to do.
    pub(super) fn sleeps(&self, at: usize) {
        self.0[at].is_awake.store(false, Relaxed);
    }

    /// Thread `at` has.
    pub(super) fn wakes(&self, at: usize) {
        self.0[at].is_awake.store(true, Relaxed);
    }
}

impl Seat {
    fn gets_on(&self, core: u32) {
        self.core.store(core, Relaxed);
        self.beat.fetch_add(1, Relaxed);
    }

    fn may_wait_for(&self, core: u32) -> bool {
        self.is_awake.load(Relaxed) && self.core.load(Relaxed) == core
    }
}

impl Place {
    /// Whether another thread seems to wait for this `core`: it is awake, was here when it looked last,
    /// and has not got on since that was seen first.
    fn holds_up(&mut self, core: u32) -> bool {
        self.turns.0[self.at].gets_on(core);
        let mut holds_up = false;
        for (at, (seat, seen)) in self.turns.0.iter().zip(&mut self.seen).enumerate() {
            if at != self.at && seat.may_wait_for(core) {
                let beat = seat.beat.load(Relaxed);
                holds_up |= std::mem::replace(seen, beat) == beat;
            }
        }
        holds_up
    }
}

/// Counts a read of so many bytes, and lets another thread go first when that is due.
#[inline]
pub(super) fn count_read(bytes: usize) {
    let done = DONE.get() + 1 + bytes / AS_A_READ;
    let is_due = done >= WORK;
    DONE.set(if is_due { 0 } else { done });
    if is_due
        && PLACE.with_borrow_mut(|place| {
            place.as_mut().is_some_and(|place| place.holds_up(u32::try_from(sched_getcpu()).unwrap_or(0)))
        })
    {
        sched_yield();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_stands_still_on_the_same_core_is_let_go_first() {
        let turns = Turns::new(2);
        turns.take_place(0);
        let holds_up = |core| PLACE.with_borrow_mut(|place| place.as_mut().expect("a place").holds_up(core));
        turns.0[1].gets_on(3);
        assert!(!holds_up(3), "the other sleeps");
        turns.wakes(1);
        assert!(!holds_up(3), "it gets on");
        assert!(holds_up(3), "it stands still");
        assert!(!holds_up(2), "elsewhere it is in nobody's way");
        turns.0[1].gets_on(3);
        assert!(!holds_up(3));
        turns.sleeps(1);
        assert!(!holds_up(3));
    }
}
