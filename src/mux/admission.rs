//! Counts clients in and out, and reaches every one of them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
    time::Instant,
};

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;

use super::Settings;
use crate::{
    stream::{Refusal, Via},
    telemetry::{SessionsGauge, Telemetry},
};

/// Tables with a lock each: log-ins on all cores take turns less often.
const SHARDS: usize = 16;

/// What a session is told to do from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Nothing was heard for too long.
    Idle = 1,
    /// The drain's deadline has passed.
    Drain = 2,
}

/// What the rest of the core can reach of a session.
pub(super) struct Entry {
    order: AtomicU8,
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
            _ => Some(Order::Drain),
        }
    }

    fn give(&self, order: Order) {
        self.order.store(order as u8, Relaxed);
        self.waker.wake();
    }
}

/// Every client at present.
pub(super) struct Admission {
    sessions: AtomicUsize,
    draining: AtomicBool,
    by_address: Mutex<HashMap<IpAddr, u32>>,
    shards: [Mutex<Slab<Arc<Entry>>>; SHARDS],
    next_shard: AtomicUsize,
    started: Instant,
    clock: AtomicU64,
    telemetry: Arc<Telemetry>,
}

impl Admission {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self {
            sessions: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            by_address: Mutex::default(),
            shards: std::array::from_fn(|_| Mutex::new(Slab::new())),
            next_shard: AtomicUsize::new(0),
            started: Instant::now(),
            clock: AtomicU64::new(0),
            telemetry,
        }
    }

    pub(super) fn sessions(&self) -> usize {
        self.sessions.load(Relaxed)
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
        let has_room = |n: usize| (n < settings.capacity).then_some(n + 1);
        self.sessions.fetch_update(Relaxed, Relaxed, has_room).map_err(|_| Refusal::Capacity)?;
        let address = via.client.ip();
        {
            let mut by_address = self.by_address.lock();
            let count = by_address.entry(address).or_insert(0);
            if settings.per_address > 0 && *count as usize >= settings.per_address {
                self.sessions.fetch_sub(1, Relaxed);
                return Err(Refusal::PerAddress);
            }
            *count += 1;
        }
        let entry = Arc::new(Entry {
            order: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            heard: AtomicU64::new(self.clock.load(Relaxed)),
        });
        let shard = self.next_shard.fetch_add(1, Relaxed) % SHARDS;
        let key = self.shards[shard].lock().insert(Arc::clone(&entry));
        let gauge = self.telemetry.sessions(via.port, via.transport);
        gauge.opened();
        Ok(Ticket { admission: Arc::clone(self), entry, shard, key, address, gauge })
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
        let mut count = 0;
        for shard in &self.shards {
            for (_, entry) in shard.lock().iter() {
                if entry.heard.load(Relaxed) < since && entry.order().is_none() {
                    entry.give(Order::Idle);
                    count += 1;
                }
            }
        }
        count
    }
}

/// A client's place; given back when dropped.
pub(super) struct Ticket {
    admission: Arc<Admission>,
    pub(super) entry: Arc<Entry>,
    shard: usize,
    key: usize,
    address: IpAddr,
    gauge: SessionsGauge,
}

impl Ticket {
    /// Notes that bytes passed.
    #[inline]
    pub(super) fn heard(&self) {
        self.entry.heard.store(self.admission.clock.load(Relaxed), Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.shards[self.shard].lock().remove(self.key);
        {
            let mut by_address = self.admission.by_address.lock();
            if let Some(count) = by_address.get_mut(&self.address) {
                *count -= 1;
                if *count == 0 {
                    by_address.remove(&self.address);
                }
            }
        }
        self.gauge.closed();
        self.admission.sessions.fetch_sub(1, Relaxed);
    }
}
