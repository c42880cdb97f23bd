//! Workers on the same core yield to each other.
//!
//! The system lets a busy thread run until the system's next tick (4 ms at 250 Hz), even if another worker waits for
//! the same core, with all its clients. So a busy worker checks regularly whether another worker makes no progress on
//! its core, and yields the core if there is one.
//!
//! ```text
//!  core 3:  worker 0 ── 40 reads ── check: worker 1 is awake, was on core 3, has progressed ──┐
//!           worker 0 ◄─────────────── continue ───────────────────────────────────────────────┘
//!           worker 0 ── 40 reads ── check: worker 1 has not progressed since the last check ── yield
//!           worker 1 ── ...
//! ```
//! A worker that slept and waits for the core to wake up is not seen: the system takes care of it.

use std::{
    cell::{Cell, RefCell},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use rustix::thread::{sched_getcpu, sched_yield};

/// How many reads a worker does between two checks. A busy worker needs a sixth of a millisecond for them (8 us of CPU
/// time for a message and its echo).
const READS_PER_CHECK: usize = 40;
/// How many bytes are as much work as one read.
const BYTES_PER_READ: usize = 4096;

/// What a worker shows to the others.
#[derive(Debug, Default)]
struct Seat {
    is_awake: AtomicBool,
    /// The core that it was on at its last check.
    core: AtomicU32,
    /// How many checks it has made. The number grows as long as it makes progress.
    checks: AtomicU32,
}

/// The workers of a process, which may share cores.
#[derive(Debug)]
pub(super) struct CoreSharing(Box<[Seat]>);

/// What a worker knows about the others. Only its own thread has it.
struct Observer {
    sharing: Arc<CoreSharing>,
    /// The number of this worker.
    own: usize,
    /// For each worker: [`Seat::checks`] when it was looked at last.
    seen: Box<[u32]>,
}

thread_local! {
    /// `None` on a thread that is not a worker.
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
    /// Reads since the last check.
    static READS: Cell<usize> = const { Cell::new(0) };
}

impl CoreSharing {
    /// For a number of workers.
    pub(super) fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self((0..workers).map(|_| Seat::default()).collect()))
    }

    /// Makes the present thread worker number `worker`. Its runtime has to call [`Self::sleeps`] and [`Self::wakes`].
    pub(super) fn join(self: &Arc<Self>, worker: usize) {
        let seen = self.0.iter().map(|_| 0).collect();
        OBSERVER.set(Some(Observer { sharing: Arc::clone(self), own: worker, seen }));
    }

    /// The worker has nothing to do.
    pub(super) fn sleeps(&self, worker: usize) {
        self.0[worker].is_awake.store(false, Relaxed);
    }

    /// The worker has something to do.
    pub(super) fn wakes(&self, worker: usize) {
        self.0[worker].is_awake.store(true, Relaxed);
    }
}

impl Seat {
    fn note_check(&self, core: u32) {
        self.core.store(core, Relaxed);
        self.checks.fetch_add(1, Relaxed);
    }

    fn may_wait_for(&self, core: u32) -> bool {
        self.is_awake.load(Relaxed) && self.core.load(Relaxed) == core
    }
}

impl Observer {
    /// Whether another worker seems to wait for this `core`: it is awake, was here at its last check, and has not
    /// progressed since this worker looked at it before.
    fn should_yield(&mut self, core: u32) -> bool {
        self.sharing.0[self.own].note_check(core);
        let mut should_yield = false;
        for (worker, (seat, seen)) in self.sharing.0.iter().zip(&mut self.seen).enumerate() {
            if worker != self.own && seat.may_wait_for(core) {
                let checks = seat.checks.load(Relaxed);
                should_yield |= mem::replace(seen, checks) == checks;
            }
        }
        should_yield
    }
}

/// The number of the worker that the present thread is; `None` if it is none.
pub(super) fn worker() -> Option<usize> {
    OBSERVER.with_borrow(|observer| observer.as_ref().map(|observer| observer.own))
}

/// Counts a read of a number of bytes. When a check is due and another worker waits for the core, yields the core.
#[inline]
pub(super) fn count_read(bytes: usize) {
    let reads = READS.get() + 1 + bytes / BYTES_PER_READ;
    let is_due = reads >= READS_PER_CHECK;
    READS.set(if is_due { 0 } else { reads });
    if is_due
        && OBSERVER.with_borrow_mut(|observer| {
            observer.as_mut().is_some_and(|observer| observer.should_yield(u32::try_from(sched_getcpu()).unwrap_or(0)))
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
        let sharing = CoreSharing::new(2);
        sharing.join(0);
        let should_yield =
            |core| OBSERVER.with_borrow_mut(|observer| observer.as_mut().expect("joined").should_yield(core));
        sharing.0[1].note_check(3);
        assert!(!should_yield(3), "the other one sleeps");
        sharing.wakes(1);
        assert!(!should_yield(3), "it has progressed");
        assert!(should_yield(3), "it has not progressed");
        assert!(!should_yield(2), "it is on another core");
        sharing.0[1].note_check(3);
        assert!(!should_yield(3));
        sharing.sleeps(1);
        assert!(!should_yield(3));
    }
}
