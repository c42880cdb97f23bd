//! Counts clients in and out, and reaches every one of them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
};

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;

use super::Settings;
use crate::{
    limits::budget::{Budget, LITTLE},
    net::address::{counted_address, lies_in},
    runtime::scratch,
    stream::Via,
    telemetry::{SessionsGauge, Telemetry, outcome::Refusal},
};

/// Tables with a lock each: log-ins on all cores take turns less often.
const SHARDS: usize = 16;
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
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    sessions: usize,
    logging_in: usize,
}

#[derive(Default)]
struct Table {
    all: Counts,
    by_address: HashMap<IpAddr, Counts>,
}

impl Table {
    /// Changes the counts of all and of one address.
    fn change(&mut self, address: IpAddr, change: impl Fn(&mut Counts)) {
        change(&mut self.all);
        let of_address = self.by_address.entry(address).or_default();
        change(of_address);
        if of_address.sessions == 0 {
            self.by_address.remove(&address);
        }
    }
}

/// Every client at present.
pub(super) struct Admission {
    sessions: AtomicUsize,
    draining: AtomicBool,
    table: Mutex<Table>,
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
            sessions: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            table: Mutex::default(),
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
        self.sessions.load(Relaxed)
    }

    pub(super) fn logging_in(&self) -> usize {
        self.table.lock().all.logging_in
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
        {
            let mut table = self.table.lock();
            let of_address = table.by_address.get(&address).copied().unwrap_or_default();
            refusal(settings, table.all, of_address, lies_in(&settings.exempt, via.client.ip()))?;
            table.change(address, |counts| {
                counts.sessions += 1;
                counts.logging_in += 1;
            });
            self.sessions.store(table.all.sessions, Relaxed);
        }
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
            self.admission.table.lock().change(self.address, |counts| counts.logging_in -= 1);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.shards[self.shard as usize].lock().remove(self.key as usize);
        self.gauge.closed();
        self.holds(0);
        let was_logging_in = self.entry.logging_in.load(Relaxed);
        let mut table = self.admission.table.lock();
        table.change(self.address, |counts| {
            counts.sessions -= 1;
            counts.logging_in -= usize::from(was_logging_in);
        });
        self.admission.sessions.store(table.all.sessions, Relaxed);
    }
}
