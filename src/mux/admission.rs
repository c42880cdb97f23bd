//! Admission: counts clients in total and per address, refuses those above a limit, and sends orders to sessions.

use std::{
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
};

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;

use super::{LastArrivals, MuxSettings};
use crate::{
    limits::{
        budget::{Budget, LITTLE, Share},
        tally::{AddressTable, SHARDS},
    },
    net::address::lies_in,
    runtime::scratch,
    stream::Via,
    telemetry::{SessionsGauge, Telemetry, outcome::Refusal},
};

/// After how many ticks of the clock the sessions that are not logged in are checked.
const TICKS_PER_LOGIN_CHECK: u64 = 5;

/// An order from outside to end a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum SessionOrder {
    /// No byte was sent for `limits.idle_timeout`.
    Idle = 1,
    /// The Community has not logged the client in within `limits.logging_in_timeout`.
    NotLoggedIn = 2,
    /// The program drains, and the session's turn to end has come.
    Drain = 3,
    /// Its Community server is drained.
    ServerDrain = 4,
}

/// A session, as other tasks see it. The session's own task has it through its [`Ticket`].
pub(super) struct Entry {
    /// A [`SessionOrder`], or 0.
    order: AtomicU8,
    is_logging_in: AtomicBool,
    /// The number of its Community server, as [`Lease::server_number`] has it; 0: it has no link yet.
    ///
    /// [`Lease::server_number`]: crate::stream::Lease::server_number
    server: AtomicU16,
    /// When the client was admitted: the clock in seconds.
    admitted: u32,
    /// Wakes the session's task for an order.
    waker: AtomicWaker,
    /// When the last byte was relayed: the clock in milliseconds.
    heard: AtomicU64,
}

impl Entry {
    /// The order, if there is one. Otherwise an order wakes the task.
    pub(super) fn poll_order(&self, cx: &Context<'_>) -> Option<SessionOrder> {
        self.waker.register(cx.waker());
        self.order()
    }

    /// The order, if there is one.
    #[inline]
    pub(super) fn order(&self) -> Option<SessionOrder> {
        match self.order.load(Relaxed) {
            0 => None,
            1 => Some(SessionOrder::Idle),
            2 => Some(SessionOrder::NotLoggedIn),
            3 => Some(SessionOrder::Drain),
            _ => Some(SessionOrder::ServerDrain),
        }
    }

    /// Whether it is on this server; `None`: on any, or on none yet.
    fn is_on(&self, server: Option<u16>) -> bool {
        server.is_none_or(|server| self.server.load(Relaxed) == server)
    }

    fn give(&self, order: SessionOrder) {
        self.order.store(order as u8, Relaxed);
        self.waker.wake();
    }
}

/// The number of clients, in total or from one address.
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

/// The present clients.
pub(super) struct Admission {
    is_draining: AtomicBool,
    last: OnceLock<LastArrivals>,
    counts: ClientCounts,
    shards: [Mutex<Slab<Arc<Entry>>>; SHARDS],
    next_shard: AtomicUsize,
    started: Instant,
    /// Milliseconds since `started`, set every 100 ms: sessions read the time without a system call.
    clock: AtomicU64,
    ticks: AtomicU64,
    telemetry: Arc<Telemetry>,
    budget: Arc<Budget>,
}

impl Admission {
    pub(super) fn new(telemetry: Arc<Telemetry>, budget: Arc<Budget>) -> Self {
        Self {
            is_draining: AtomicBool::new(false),
            last: OnceLock::new(),
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
        self.is_draining.store(true, Relaxed);
    }

    pub(super) fn admit_last(&self, last: LastArrivals) {
        // It is set once.
        let _ = self.last.set(last);
    }

    /// Whether clients may arrive that the drain waits for.
    pub(super) fn may_arrive(&self) -> bool {
        self.last.get().is_some_and(|last| (last.may_come)())
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    /// Admits a client and counts it until its ticket is dropped, or returns why it is refused.
    pub(super) fn admit(self: &Arc<Self>, settings: &MuxSettings, via: &Via) -> Result<Ticket, Refusal> {
        if self.is_draining() && !self.last.get().is_some_and(|last| last.ports.contains(&via.port)) {
            return Err(Refusal::Draining);
        }
        let address = via.client.ip();
        let is_exempt = lies_in(&settings.exempt, address);
        self.counts.add(address, |all, of_address| check_limits(settings, all, of_address, is_exempt))?;
        let clock = self.clock.load(Relaxed);
        let entry = Arc::new(Entry {
            order: AtomicU8::new(0),
            is_logging_in: AtomicBool::new(true),
            server: AtomicU16::new(0),
            admitted: seconds(clock),
            waker: AtomicWaker::new(),
            heard: AtomicU64::new(clock),
        });
        let shard = self.next_shard.fetch_add(1, Relaxed) % SHARDS;
        let key = self.shards[shard].lock().insert(Arc::clone(&entry));
        let gauge = self.telemetry.sessions.of(via.port, via.transport);
        gauge.opened();
        // `limits.capacity` is at most a million, and so are both numbers.
        let [shard, key] = [shard, key].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Ok(Ticket { admission: Arc::clone(self), entry, shard, key, address, held: AtomicU64::new(0), gauge })
    }

    /// Sets the clock that sessions read, and returns it, in milliseconds.
    pub(super) fn set_clock(&self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.clock.store(now, Relaxed);
        now
    }

    /// The number of sessions on this server; `None`: of all.
    pub(super) fn sessions_on(&self, server: Option<u16>) -> usize {
        let on_server =
            |entries: &Mutex<Slab<Arc<Entry>>>| entries.lock().iter().filter(|(_, entry)| entry.is_on(server)).count();
        if server.is_none() { self.sessions() } else { self.shards.iter().map(on_server).sum() }
    }

    /// Gives sessions on `server` (`None`: on any) an order until at most `stay` of them are left without one: those first
    /// whose last byte was relayed the longest ago. Returns how many there were.
    pub(super) fn order_idlest(&self, order: SessionOrder, stay: usize, server: Option<u16>) -> usize {
        let mut present = Vec::new();
        for (shard, entries) in self.shards.iter().enumerate() {
            let entries = entries.lock();
            let free = entries.iter().filter(|(_, entry)| entry.is_on(server) && entry.order().is_none());
            present.extend(free.map(|(key, entry)| (entry.heard.load(Relaxed), shard, key)));
        }
        let surplus = present.len().saturating_sub(stay);
        if surplus == 0 {
            return 0;
        }
        if surplus < present.len() {
            present.select_nth_unstable(surplus);
        }
        for (_, shard, key) in &present[..surplus] {
            // It may have ended meanwhile, and another one may have its key.
            if let Some(entry) = self.shards[*shard].lock().get(*key).filter(|entry| entry.is_on(server)) {
                entry.give(order);
            }
        }
        surplus
    }

    /// Orders sessions to end whose last byte was relayed before `since`. Returns how many there were.
    pub(super) fn order_idle(&self, since: u64) -> usize {
        self.order_where(SessionOrder::Idle, |entry| entry.heard.load(Relaxed) < since)
    }

    /// Orders sessions to end that were admitted before `since` and are not logged in. Only every fifth call does this,
    /// since it has to go through all sessions to find a few.
    pub(super) fn order_not_logged_in(&self, since: u64) {
        if self.ticks.fetch_add(1, Relaxed).is_multiple_of(TICKS_PER_LOGIN_CHECK) && self.logging_in() > 0 {
            self.order_where(SessionOrder::NotLoggedIn, |entry| {
                entry.admitted < seconds(since) && entry.is_logging_in.load(Relaxed)
            });
        }
    }

    fn order_where(&self, order: SessionOrder, is_due: impl Fn(&Entry) -> bool) -> usize {
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

/// Whether there is room for one more client. An error is the limit that is reached.
fn check_limits(settings: &MuxSettings, all: Counts, of_address: Counts, is_exempt: bool) -> Result<(), Refusal> {
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

/// The seconds of a clock in milliseconds.
fn seconds(clock: u64) -> u32 {
    u32::try_from(clock / 1000).unwrap_or(u32::MAX)
}

/// A client's place. The client is counted until its ticket is dropped.
pub(super) struct Ticket {
    admission: Arc<Admission>,
    pub(super) entry: Arc<Entry>,
    /// The list that has the entry, and the key in it. They are narrow, since every session has a ticket.
    shard: u32,
    key: u32,
    address: IpAddr,
    /// The [`Share`] of the budget that is held for the client.
    held: AtomicU64,
    gauge: SessionsGauge,
}

impl Ticket {
    /// Notes the server that the session is on.
    pub(super) fn is_on(&self, server: u16) {
        self.entry.server.store(server, Relaxed);
    }

    /// Notes that bytes were relayed.
    #[inline]
    pub(super) fn heard(&self) {
        self.entry.heard.store(self.admission.clock.load(Relaxed), Relaxed);
    }

    /// How many bytes may be read at once. If the receiver does not take them, they have to be held.
    #[inline]
    pub(super) fn may_read(&self) -> usize {
        if self.admission.budget.lacks(self.address, scratch::SIZE) { LITTLE } else { scratch::SIZE }
    }

    /// Whether `n` bytes may be held. Up to 4 KiB may always be.
    pub(super) fn may_hold(&self, n: usize) -> bool {
        n <= LITTLE || !self.admission.budget.lacks(self.address, n.saturating_sub(self.share().bytes()))
    }

    /// Notes that `n` bytes are held now.
    #[inline]
    pub(super) fn holds(&self, n: usize) {
        // Only the session's own task writes it.
        let before = self.share();
        if before.bytes() != n {
            self.held.store(self.admission.budget.settle(self.address, before, n).to_bits(), Relaxed);
        }
    }

    fn share(&self) -> Share {
        Share::from_bits(self.held.load(Relaxed))
    }

    /// Whether the Community has not logged the client in.
    #[cfg(test)]
    pub(super) fn is_logging_in(&self) -> bool {
        self.entry.is_logging_in.load(Relaxed)
    }

    /// Notes that the Community has logged the client in.
    pub(super) fn logged_in(&self) {
        if self.entry.is_logging_in.swap(false, Relaxed) {
            self.admission.counts.change(self.address, |counts| counts.logging_in -= 1);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.shards[self.shard as usize].lock().remove(self.key as usize);
        self.gauge.closed();
        self.holds(0);
        let was_logging_in = self.entry.is_logging_in.load(Relaxed);
        self.admission.counts.change(self.address, |counts| {
            counts.sessions -= 1;
            counts.logging_in -= usize::from(was_logging_in);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, thread};

    use super::*;
    use crate::{mux::tests::settings, wire::Transport};

    fn admission(budget: Arc<Budget>) -> Arc<Admission> {
        Arc::new(Admission::new(Telemetry::new("0"), budget))
    }

    fn admit(admission: &Arc<Admission>, client: &str) -> Result<Ticket, Refusal> {
        let client = SocketAddr::new(client.parse().expect("an address"), 4000);
        let via = Via { client, port: 1533.into(), transport: Transport::Raw, accepted: std::time::Instant::now() };
        let settings = MuxSettings { capacity: 100, logging_in: 100, ..settings() };
        admission.admit(&settings, &via)
    }

    #[test]
    fn a_ticket_asks_the_budget_for_its_own_address() {
        let exempt = ["2001:db8::5/128".parse().expect("a network")];
        let admission = admission(Budget::new(1 << 20, 10, &exempt));
        let tickets = ["2001:db8::5", "2001:db8::6"].map(|client| admit(&admission, client).expect("room"));
        assert_eq!(tickets.each_ref().map(Ticket::may_read), [scratch::SIZE, LITTLE]);
        assert_eq!(tickets.each_ref().map(|ticket| ticket.may_hold(LITTLE + 1)), [true, false]);
        // They are of one subscriber.
        assert_eq!(admission.counts.by_address.len(), 1);
    }

    #[test]
    fn a_ticket_may_hold_what_it_holds_and_what_there_is_room_for() {
        let admission = admission(Budget::new(10_000, 0, &[]));
        let ticket = admit(&admission, "10.0.0.1").expect("room");
        assert!(ticket.may_hold(10_000) && !ticket.may_hold(10_001));
        ticket.holds(10_000);
        assert!(ticket.may_hold(10_000) && !ticket.may_hold(10_001));
        assert!(ticket.may_hold(LITTLE) && ticket.may_read() == LITTLE);
        let other = admit(&admission, "10.0.0.2").expect("room");
        assert!(other.may_hold(LITTLE) && !other.may_hold(LITTLE + 1));
        drop(ticket);
        assert!(other.may_hold(10_000));
        assert_eq!(admission.budget.held(), 0);
    }

    #[test]
    fn clients_are_logging_in_until_they_are_logged_in_or_gone() {
        let admission = admission(Budget::new(1 << 20, 0, &[]));
        let [first, second, third] = ["10.0.0.1", "10.0.0.1", "10.0.0.2"].map(|client| admit(&admission, client));
        assert_eq!((admission.sessions(), admission.logging_in()), (3, 3));
        let first = first.expect("room");
        first.logged_in();
        first.logged_in();
        assert_eq!((admission.sessions(), admission.logging_in()), (3, 2));
        drop((first, second));
        assert_eq!((admission.sessions(), admission.logging_in()), (1, 1));
        drop(third);
        assert_eq!((admission.sessions(), admission.logging_in()), (0, 0));
        assert_eq!(admission.counts.by_address.len(), 0);
    }

    #[test]
    fn those_that_are_not_logged_in_are_ordered_to_end_and_no_others() {
        let admission = admission(Budget::new(1 << 20, 0, &[]));
        let (late, done) = (admit(&admission, "10.0.0.1").expect("room"), admit(&admission, "10.0.0.2").expect("room"));
        done.logged_in();
        let ordered = |since| {
            (0..TICKS_PER_LOGIN_CHECK).for_each(|_| admission.order_not_logged_in(since));
            [late.entry.order(), done.entry.order()]
        };
        // They were admitted in the second 0.
        assert_eq!(ordered(0), [None, None]);
        assert_eq!(ordered(999), [None, None], "in the same second");
        assert_eq!(ordered(1000), [Some(SessionOrder::NotLoggedIn), None]);
        assert_eq!(admission.order_idle(1), 1, "the other one has an order already");
        assert_eq!(done.entry.order(), Some(SessionOrder::Idle));
        assert_eq!(admission.order_idle(1), 0, "both have an order");
    }

    #[test]
    fn sessions_that_are_not_logged_in_are_looked_for_at_every_fifth_tick() {
        let admission = admission(Budget::new(1 << 20, 0, &[]));
        let late = admit(&admission, "10.0.0.1").expect("room");
        admission.order_not_logged_in(0);
        for _ in 1..TICKS_PER_LOGIN_CHECK {
            admission.order_not_logged_in(1000);
            assert_eq!(late.entry.order(), None);
        }
        admission.order_not_logged_in(1000);
        assert_eq!(late.entry.order(), Some(SessionOrder::NotLoggedIn));
    }

    #[test]
    fn each_limit_refuses_for_its_own_reason_and_who_is_exempt_has_no_limits_of_an_address() {
        let settings =
            MuxSettings { capacity: 9, logging_in: 7, per_address: 5, logging_in_per_address: 3, ..settings() };
        let (none, of) = (Counts::default(), |sessions, logging_in| Counts { sessions, logging_in });
        assert_eq!(check_limits(&settings, of(8, 6), of(4, 2), false), Ok(()));
        assert_eq!(check_limits(&settings, of(9, 0), none, false), Err(Refusal::Capacity));
        assert_eq!(check_limits(&settings, of(8, 7), none, false), Err(Refusal::LoggingIn));
        assert_eq!(check_limits(&settings, of(8, 6), of(5, 0), false), Err(Refusal::PerAddress));
        assert_eq!(check_limits(&settings, of(8, 6), of(4, 3), false), Err(Refusal::LoggingInPerAddress));
        assert_eq!(check_limits(&settings, of(8, 6), of(8, 6), true), Ok(()));
        let no_limits = MuxSettings { per_address: 0, logging_in_per_address: 0, ..settings };
        assert_eq!(check_limits(&no_limits, of(8, 6), of(8, 6), false), Ok(()));
    }

    #[test]
    fn sessions_are_spread_over_the_shards() {
        let admission = admission(Budget::new(1 << 20, 0, &[]));
        let tickets: Vec<_> = (0..2 * SHARDS).map(|_| admit(&admission, "10.0.0.1").expect("room")).collect();
        assert!(admission.shards.iter().all(|shard| shard.lock().len() == 2));
        drop(tickets);
        assert!(admission.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn the_clock_counts_milliseconds() {
        let mut admission = Admission::new(Telemetry::new("0"), Budget::new(1 << 20, 0, &[]));
        admission.started = admission.started.checked_sub(std::time::Duration::from_millis(2500)).expect("a clock");
        let now = admission.set_clock();
        assert!((2500..60_000).contains(&now), "{now}");
        let ticket = admit(&Arc::new(admission), "10.0.0.1").expect("room");
        assert_eq!((u64::from(ticket.entry.admitted), ticket.entry.heard.load(Relaxed)), (now / 1000, now));
    }

    #[test]
    fn the_idlest_sessions_are_ordered_to_end_until_few_enough_are_left() {
        let admission = admission(Budget::new(1 << 20, 0, &[]));
        let tickets: Vec<Ticket> = (0..40).map(|_| admit(&admission, "10.0.0.1").expect("room")).collect();
        // The seventh has been idle for the longest, then the fourteenth, and so on.
        for (n, ticket) in tickets.iter().enumerate() {
            ticket.entry.heard.store((n as u64 * 23) % 40, Relaxed);
        }
        let ordered = || -> Vec<u64> {
            let entries = tickets.iter().map(|ticket| &ticket.entry).filter(|entry| entry.order().is_some());
            let mut heard: Vec<u64> = entries.map(|entry| entry.heard.load(Relaxed)).collect();
            heard.sort_unstable();
            heard
        };
        assert_eq!((admission.order_idlest(SessionOrder::Drain, 40, None), ordered()), (0, vec![]));
        assert_eq!((admission.order_idlest(SessionOrder::Drain, 37, None), ordered()), (3, vec![0, 1, 2]));
        assert_eq!((admission.order_idlest(SessionOrder::Drain, 37, None), ordered().len()), (0, 3), "37 are left");
        assert_eq!((admission.order_idlest(SessionOrder::Drain, 30, None), ordered()), (7, (0..10).collect()));
        assert_eq!((admission.order_idlest(SessionOrder::Drain, 0, None), ordered()), (30, (0..40).collect()));
        assert_eq!(admission.order_idlest(SessionOrder::Drain, 0, None), 0);
        drop(tickets);
        assert_eq!(admission.order_idlest(SessionOrder::Drain, 0, None), 0);
    }

    #[test]
    fn the_sessions_of_one_server_are_ordered_to_end_and_no_others() {
        let admission = admission(Budget::new(1 << 20, 0, &[]));
        let tickets: Vec<Ticket> = (0..30).map(|_| admit(&admission, "10.0.0.1").expect("room")).collect();
        for (n, ticket) in (0..).zip(&tickets) {
            ticket.is_on(n % 3);
        }
        assert_eq!([None, Some(1), Some(2), Some(3)].map(|server| admission.sessions_on(server)), [30, 10, 10, 0]);
        assert_eq!(admission.order_idlest(SessionOrder::ServerDrain, 4, Some(2)), 6);
        assert_eq!(admission.order_idlest(SessionOrder::ServerDrain, 0, Some(2)), 4);
        for (n, ticket) in tickets.iter().enumerate() {
            assert_eq!(ticket.entry.order(), (n % 3 == 2).then_some(SessionOrder::ServerDrain));
        }
    }

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
