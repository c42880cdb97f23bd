//! Limits of connections that are not a session: how many there may be, and how many may come per second.
//!
//! The total bounds memory. The limit of one address keeps one client from taking the room of all others. The rates
//! keep a burst of new connections from slowing down the present clients. The core counts clients, and
//! [`Budget`](crate::limits::Budget) counts held bytes.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    limits::{
        rate::{AddressRates, SWEEP_INTERVAL, TokenBucket},
        tally::{Permit, Tally},
    },
    net::address::lies_in,
    telemetry::outcome::ConnectionDrop,
};

/// How many requests per second for tunnel sessions that do not exist one address may send before their responses are
/// delayed. A proxy whose clients all come back after a restart sends fewer, or its clients wait for a second.
const MAX_MISSES: f64 = 50.0;
/// How many connections may be notified at once that there is no room for them. Further ones are closed at once.
const MAX_NOTIFIED: usize = 500;

/// Limits of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The most connections that are not a session: those whose protocol is not known yet, and HTTP.
    pub connections: usize,
    /// The most of them from one address; 0: no limit.
    pub connections_per_address: usize,
    /// How many connections are accepted per second on all ports together; further ones wait. 0: no limit.
    pub rate: usize,
    /// How many connections from one address are accepted per second; further ones are refused. 0: no limit.
    pub rate_per_address: usize,
    /// Networks whose addresses have no limit of their own.
    pub exempt: Vec<IpNet>,
}

/// What the limits are checked against.
#[derive(Debug)]
pub(super) struct ConnectionCounters {
    connections: Arc<Tally>,
    /// Connections that were accepted. It is made when there is a limit.
    accepted: Mutex<Option<TokenBucket>>,
    accepted_from: AddressRates,
    /// Requests for tunnel sessions that do not exist.
    missed_by: AddressRates,
    notified: Arc<Semaphore>,
}

/// The limit that one more connection would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionLimitReached {
    Connections,
    ConnectionsPerAddress,
    RatePerAddress,
}

impl ConnectionLimitReached {
    pub(super) fn outcome(self) -> ConnectionDrop {
        match self {
            Self::Connections => ConnectionDrop::Connections,
            Self::ConnectionsPerAddress => ConnectionDrop::ConnectionsPerAddress,
            Self::RatePerAddress => ConnectionDrop::RatePerAddress,
        }
    }
}

impl ConnectionCounters {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            connections: Arc::default(),
            accepted: Mutex::default(),
            accepted_from: AddressRates::default(),
            missed_by: AddressRates::default(),
            notified: Arc::new(Semaphore::new(MAX_NOTIFIED)),
        })
    }

    /// How many connections there are that are not a session.
    pub(super) fn connections(&self) -> usize {
        self.connections.count()
    }

    /// How many of them have not become a session, and have not been served a request.
    pub(super) fn unsettled(&self) -> usize {
        self.connections.unsettled()
    }

    /// How long to wait before a connection that was accepted is served; `None`: it need not wait.
    pub(super) fn pause(&self, limits: &ConnectionLimits) -> Option<Duration> {
        if limits.rate == 0 {
            return None;
        }
        let (rate, now) = (limits.rate as f64, Instant::now());
        self.accepted.lock().get_or_insert_with(|| TokenBucket::full(rate, now)).reserve(rate, now)
    }

    /// Counts a connection in the total, until the permit is dropped.
    pub(super) fn enter(&self, limits: &ConnectionLimits) -> Result<Permit, ConnectionLimitReached> {
        self.connections.enter(limits.connections).map_err(|_| ConnectionLimitReached::Connections)
    }

    /// Counts it for `client`, once the client is known.
    pub(super) fn claim(
        &self,
        permit: &mut Permit,
        limits: &ConnectionLimits,
        client: SocketAddr,
    ) -> Result<(), ConnectionLimitReached> {
        if lies_in(&limits.exempt, client.ip()) {
            return Ok(());
        }
        let claimed = permit.claim(limits.connections_per_address, client.ip());
        claimed.map_err(|_| ConnectionLimitReached::ConnectionsPerAddress)?;
        let has_token = limits.rate_per_address == 0
            || self.accepted_from.take(client.ip(), limits.rate_per_address as f64, Instant::now());
        if has_token { Ok(()) } else { Err(ConnectionLimitReached::RatePerAddress) }
    }

    /// A permit to notify a client that its connection is refused; `None`: too many are being notified.
    pub(super) fn try_notify(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.notified).try_acquire_owned().ok()
    }

    /// Counts a request for a tunnel session that does not exist. Returns whether there are too many.
    pub(super) fn miss(&self, client: IpAddr) -> bool {
        !self.missed_by.take(client, MAX_MISSES, Instant::now())
    }
}

/// Forgets addresses that have not been seen for a while, as long as the counters are in use.
pub(super) async fn sweep(counters: Weak<ConnectionCounters>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(counters) = counters.upgrade() else { return };
        let now = Instant::now();
        counters.accepted_from.sweep(now);
        counters.missed_by.sweep(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ConnectionLimits {
        ConnectionLimits { connections: 3, connections_per_address: 2, rate: 0, rate_per_address: 0, exempt: vec![] }
    }

    fn client(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 1000))
    }

    fn come(
        counters: &Arc<ConnectionCounters>,
        limits: &ConnectionLimits,
        from: SocketAddr,
    ) -> Result<Permit, ConnectionLimitReached> {
        let mut permit = counters.enter(limits)?;
        counters.claim(&mut permit, limits, from)?;
        Ok(permit)
    }

    #[test]
    fn places_are_bounded_in_all_and_for_each_address() {
        let (counters, limits) = (ConnectionCounters::new(), limits());
        let one = come(&counters, &limits, client(1)).expect("room");
        let _two = come(&counters, &limits, client(1)).expect("room");
        assert_eq!(
            come(&counters, &limits, client(1)).expect_err("two"),
            ConnectionLimitReached::ConnectionsPerAddress
        );
        let _three = come(&counters, &limits, client(2)).expect("another's");
        assert_eq!(come(&counters, &limits, client(3)).expect_err("three in all"), ConnectionLimitReached::Connections);
        drop(one);
        let _again = come(&counters, &limits, client(1)).expect("given back");
        assert_eq!(counters.connections(), 3);
    }

    #[test]
    fn exempt_networks_have_no_bound_of_their_own() {
        let counters = ConnectionCounters::new();
        let limits = ConnectionLimits { exempt: vec!["10.0.0.0/8".parse().expect("network")], ..limits() };
        let places: Vec<_> = (0..3).map(|_| come(&counters, &limits, client(1)).expect("exempt")).collect();
        assert_eq!(come(&counters, &limits, client(1)).expect_err("in all"), ConnectionLimitReached::Connections);
        drop(places);
        assert_eq!(counters.connections(), 0);
    }

    #[test]
    fn serving_pauses_beyond_its_rate() {
        let counters = ConnectionCounters::new();
        *counters.accepted.lock() = Some(TokenBucket::full(0.0, Instant::now()));
        let limits = ConnectionLimits { rate: 1, ..limits() };
        let pause = counters.pause(&limits).expect("there is no token");
        assert!(pause <= Duration::from_secs(1), "{pause:?}");
        *counters.accepted.lock() = None;
        assert_eq!(counters.pause(&limits), None, "a full bucket");
        assert_eq!(counters.pause(&ConnectionLimits { rate: 0, ..limits }), None, "no bound");
    }

    #[test]
    fn the_rate_of_one_address_is_its_own() {
        let counters = ConnectionCounters::new();
        let limits = ConnectionLimits { rate_per_address: 1, connections_per_address: 0, ..limits() };
        let refused = (0..100).filter(|_| come(&counters, &limits, client(1)).is_err()).count();
        assert!(refused > 0, "a hundred in no time");
        assert_eq!(counters.connections(), 0, "given back");
        drop(come(&counters, &limits, client(2)).expect("another's"));
    }

    #[test]
    fn guessing_is_noticed_and_forgotten() {
        let counters = ConnectionCounters::new();
        assert!((0..1000).any(|_| counters.miss(client(1).ip())));
        assert!(!counters.miss(client(2).ip()));
        assert_eq!(counters.missed_by.followed(), 2);
        counters.missed_by.sweep(Instant::now() + SWEEP_INTERVAL);
        assert_eq!(counters.missed_by.followed(), 0);
    }
}
