//! Counts clients in and out, and reaches every one of them.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
    time::Instant,
};

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;

use super::Settings;
use crate::{
    limits::{
        budget::{Budget, LITTLE},
        tally::{AddressTable, SHARDS},
    },
    net::address::{counted_address, lies_in},
    runtime::scratch,
    stream::Via,
    telemetry::{SessionsGauge, Telemetry, outcome::Refusal},
};

/// Clients that are not logged in are looked for at every so many ticks of the clock.
const LOOK_EVERY: u64 = 5;

/// What a session is told to do from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Nothing was heard for too long.
    Idle = 1,
    /// The Community has not logged it in for too long.
    NotLoggedIn = 2,
    /// The drain's deadline has passed.
    Drain = 3,
}

/// What the rest of the core can reach of a session.
pub(super) struct Entry {
    order: AtomicU8,
    logging_in: AtomicBool,
    /// The clock when it was admitted, in seconds.
    admitted: u32,
    waker: AtomicWaker,
    /// The clock when its last byte passed, in milliseconds.
    heard: AtomicU64,
}

impl Entry {
    /// The order, if there is one; else the task is woken by it.
    pub(super) fn poll_order(&self, cx: &Context<'_>) -> Option<Order> {
        self.waker.register(cx.waker());
        self.order()
    }

    /// The order, if there is one.
    #[inline]
    pub(super) fn order(&self) -> Option<Order> {
        match self.order.load(Relaxed) {
            0 => None,
            1 => Some(Order::Idle),
            2 => Some(Order::NotLoggedIn),
            _ => Some(Order::Drain),
        }
    }

    fn give(&self, order: Order) {
        self.order.store(order as u8, Relaxed);
        self.waker.wake();
    }
}

/// How many there are, in all or from one address.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Counts {
    sessions: usize,
    logging_in: usize,
}

/// The number of clients in total and from each address.
///
/// The lock of the total is held while the counts of an address are checked and changed. So a check of all limits and
/// the change that follows are one step, and no limit is exceeded by a race.
#[derive(Default)]
struct ClientCounts {
    all: Mutex<Counts>,
    by_address: AddressTable<Counts>,
    /// A copy of the total of sessions, which is read without the lock.
    sessions: AtomicUsize,
}

impl ClientCounts {
    /// Counts one more client, unless `check` finds in the counts of all and of the address that a limit is reached.
    fn add(&self, address: IpAddr, check: impl FnOnce(Counts, Counts) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let mut all = self.all.lock();
        self.by_address.update(address, |of_address| {
            check(*all, *of_address)?;
            for counts in [&mut *all, of_address] {
                counts.sessions += 1;
                counts.logging_in += 1;
            }
            Ok(())
        })?;
        self.sessions.store(all.sessions, Relaxed);
        Ok(())
    }

    /// Changes the counts of all and of one address.
    fn change(&self, address: IpAddr, change: impl Fn(&mut Counts)) {
        let mut all = self.all.lock();
        change(&mut all);
        self.by_address.update(address, change);
        self.sessions.store(all.sessions, Relaxed);
    }
}

/// Every client at present.
pub(super) struct Admission {
    draining: AtomicBool,
    counts: ClientCounts,
    shards: [Mutex<Slab<Arc<Entry>>>; SHARDS],
    next_shard: AtomicUsize,
    started: Instant,
    clock: AtomicU64,
    /// Counts the clock's ticks: not everything is looked at each time.
    ticks: AtomicU64,
    telemetry: Arc<Telemetry>,
    budget: Arc<Budget>,
}

impl Admission {
    pub(super) fn new(telemetry: Arc<Telemetry>, budget: Arc<Budget>) -> Self {
        Self {
            draining: AtomicBool::new(false),
            counts: ClientCounts::default(),
            shards: std::array::from_fn(|_| Mutex::new(Slab::new())),
            next_shard: AtomicUsize::new(0),
            started: Instant::now(),
            clock: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            telemetry,
            budget,
        }
    }

    pub(super) fn sessions(&self) -> usize {
        self.counts.sessions.load(Relaxed)
    }

    pub(super) fn logging_in(&self) -> usize {
        self.counts.all.lock().logging_in
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Counts a client in, or says why not.
    pub(super) fn admit(self: &Arc<Self>, settings: &Settings, via: &Via) -> Result<Ticket, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        let address = counted_address(via.client.ip());
        let is_exempt = lies_in(&settings.exempt, via.client.ip());
        self.counts.add(address, |all, of_address| refusal(settings, all, of_address, is_exempt))?;
        let clock = self.clock.load(Relaxed);
        let entry = Arc::new(Entry {
            order: AtomicU8::new(0),
            logging_in: AtomicBool::new(true),
            admitted: seconds(clock),
            waker: AtomicWaker::new(),
            heard: AtomicU64::new(clock),
        });
        let shard = self.next_shard.fetch_add(1, Relaxed) % SHARDS;
        let key = self.shards[shard].lock().insert(Arc::clone(&entry));
        let gauge = self.telemetry.sessions.of(via.port, via.transport);
        gauge.opened();
        // Both are below `limits.capacity`, which is at most a million.
        let [shard, key] = [shard, key].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Ok(Ticket { admission: Arc::clone(self), entry, shard, key, address, held: AtomicU32::new(0), gauge })
    }

    /// Sets the clock that sessions read; returns it, in milliseconds.
    pub(super) fn set_clock(&self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.clock.store(now, Relaxed);
        now
    }

    /// Orders every session.
    pub(super) fn order_all(&self, order: Order) {
        for shard in &self.shards {
            shard.lock().iter().for_each(|(_, entry)| entry.give(order));
        }
    }

    /// Orders the sessions that were heard last before `since`, and says how many there were.
    pub(super) fn order_idle(&self, since: u64) -> usize {
        self.order_where(Order::Idle, |entry| entry.heard.load(Relaxed) < since)
    }

    /// Orders the sessions that were admitted before `since` and are not logged in. Not at every
    /// call: it looks at every session for the sake of a few.
    pub(super) fn order_not_logged_in(&self, since: u64) {
        if self.ticks.fetch_add(1, Relaxed).is_multiple_of(LOOK_EVERY) && self.logging_in() > 0 {
            self.order_where(Order::NotLoggedIn, |entry| {
                entry.admitted < seconds(since) && entry.logging_in.load(Relaxed)
            });
        }
    }

    fn order_where(&self, order: Order, is_due: impl Fn(&Entry) -> bool) -> usize {
        let mut count = 0;
        for shard in &self.shards {
            for (_, entry) in shard.lock().iter() {
                if is_due(entry) && entry.order().is_none() {
                    entry.give(order);
                    count += 1;
                }
            }
        }
        count
    }
}

/// The limit that one more client would pass.
fn refusal(settings: &Settings, all: Counts, of_address: Counts, is_exempt: bool) -> Result<(), Refusal> {
    let own = |n| if is_exempt || n == 0 { usize::MAX } else { n };
    let limits = [
        (Refusal::Capacity, all.sessions, settings.capacity),
        (Refusal::LoggingIn, all.logging_in, settings.logging_in),
        (Refusal::PerAddress, of_address.sessions, own(settings.per_address)),
        (Refusal::LoggingInPerAddress, of_address.logging_in, own(settings.logging_in_per_address)),
    ];
    match limits.into_iter().find(|&(_, n, limit)| n >= limit) {
        Some((refusal, ..)) => Err(refusal),
        None => Ok(()),
    }
}

/// Of a clock in milliseconds.
fn seconds(clock: u64) -> u32 {
    u32::try_from(clock / 1000).unwrap_or(u32::MAX)
}

/// A client's place; given back when dropped.
pub(super) struct Ticket {
    admission: Arc<Admission>,
    pub(super) entry: Arc<Entry>,
    /// Where its entry lies; narrow, since every session has one.
    shard: u32,
    key: u32,
    address: IpAddr,
    /// Bytes that are held for it and counted.
    held: AtomicU32,
    gauge: SessionsGauge,
}

impl Ticket {
    /// Notes that bytes passed.
    #[inline]
    pub(super) fn heard(&self) {
        self.entry.heard.store(self.admission.clock.load(Relaxed), Relaxed);
    }

    /// How many bytes may be read at once, since what can't be passed on has to be held.
    #[inline]
    pub(super) fn may_read(&self) -> usize {
        if self.admission.budget.lacks(self.address, scratch::SIZE) { LITTLE } else { scratch::SIZE }
    }

    /// Whether so many bytes may be held: few may, always.
    pub(super) fn may_hold(&self, n: usize) -> bool {
        n <= LITTLE || !self.admission.budget.lacks(self.address, n.saturating_sub(self.held.load(Relaxed) as usize))
    }

    /// Notes how many bytes are held.
    #[inline]
    pub(super) fn holds(&self, n: usize) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        // The session's own task is the only one that writes.
        let before = self.held.load(Relaxed);
        if before != n {
            self.held.store(n, Relaxed);
            self.admission.budget.settle(self.address, before as usize, n as usize);
        }
    }

    /// Notes that the Community has logged the client in.
    pub(super) fn logged_in(&self) {
        if self.entry.logging_in.swap(false, Relaxed) {
            self.admission.counts.change(self.address, |counts| counts.logging_in -= 1);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.shards[self.shard as usize].lock().remove(self.key as usize);
        self.gauge.closed();
        self.holds(0);
        let was_logging_in = self.entry.logging_in.load(Relaxed);
        self.admission.counts.change(self.address, |counts| {
            counts.sessions -= 1;
            counts.logging_in -= usize::from(was_logging_in);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn threads_that_admit_clients_at_the_same_time_exceed_no_limit() {
        let (counts, client) = (ClientCounts::default(), IpAddr::from([10, 0, 0, 1]));
        let check = |all: Counts, of_address: Counts| {
            assert!(all.sessions <= 3 && of_address.sessions <= 2);
            if all.sessions == 3 || of_address.sessions == 2 { Err(Refusal::Capacity) } else { Ok(()) }
        };
        let end = |address| {
            counts.change(address, |counts| {
                counts.sessions -= 1;
                counts.logging_in -= 1;
            });
        };
        thread::scope(|scope| {
            for n in 0..4 {
                let (counts, end) = (&counts, &end);
                scope.spawn(move || {
                    for address in [client, IpAddr::from([10, 0, 0, n])].into_iter().cycle().take(1_000) {
                        if counts.add(address, check).is_ok() {
                            end(address);
                        }
                    }
                });
            }
        });
        assert_eq!((*counts.all.lock(), counts.by_address.len()), (Counts::default(), 0));
    }
}
