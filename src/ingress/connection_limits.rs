//! Bounds for connections that are no sessions, and for tunnel sessions: how many, how fast, from
//! where. Clients are the core's to count, bytes that are held [`crate::stream::Budget`]'s.
//!
//! A total is a bound for memory, a bound for one address keeps one client from taking the others'
//! place, a rate keeps the start of many cheap enough that the present ones don't notice.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    limits::{
        rate::Bucket,
        tally::{Place, SHARDS, Tally, shard_of},
    },
    net::address::{counted_address, lies_in},
    telemetry::outcome::ConnectionDrop,
};

/// How often addresses that nothing is known of any more are forgotten.
const SWEEP: Duration = Duration::from_secs(5);
/// Addresses whose rate is followed, in each table; more share one.
const FOLLOWED: usize = 4096;
/// Requests for tunnel sessions that are not there, per second and address, beyond which the
/// answer comes late. A proxy whose clients all come back after a restart stays below it, or
/// waits a second.
const MISSES: f64 = 50.0;
/// Connections that are being refused, at once.
const TOLD: usize = 500;

/// Bounds for connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once that are no session: those that have not said what they are, and HTTP.
    pub connections: usize,
    /// Of those, from one address; 0: no bound.
    pub connections_per_address: usize,
    /// Connections accepted per second, over all ports; further ones wait. 0: no bound.
    pub rate: usize,
    /// From one address; further ones are refused. 0: no bound.
    pub rate_per_address: usize,
    /// Networks without bounds for one address.
    pub exempt: Vec<IpNet>,
}

/// How fast an address is.
#[derive(Debug)]
struct Pace {
    started: Option<Bucket>,
    missed: Option<Bucket>,
    seen: Instant,
}

/// What the bounds are held against.
#[derive(Debug)]
pub(super) struct Counters {
    connections: Arc<Tally>,
    started: Mutex<Option<Bucket>>,
    paces: [Mutex<HashMap<IpAddr, Pace>>; SHARDS],
    /// Connections that may be told that there is no room for them; more are closed without a word.
    told: Arc<Semaphore>,
}

/// The bound that a connection would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Connections,
    ConnectionsPerAddress,
    RatePerAddress,
}

impl Over {
    pub(super) fn outcome(self) -> ConnectionDrop {
        match self {
            Self::Connections => ConnectionDrop::Connections,
            Self::ConnectionsPerAddress => ConnectionDrop::ConnectionsPerAddress,
            Self::RatePerAddress => ConnectionDrop::RatePerAddress,
        }
    }
}

impl Counters {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            connections: Arc::default(),
            started: Mutex::default(),
            paces: std::array::from_fn(|_| Mutex::default()),
            told: Arc::new(Semaphore::new(TOLD)),
        })
    }

    /// Connections at present that are no session.
    pub(super) fn connections(&self) -> usize {
        self.connections.count()
    }

    /// How long to wait before the next connection is served.
    pub(super) fn pause(&self, limits: &Limits) -> Option<Duration> {
        if limits.rate == 0 {
            return None;
        }
        let (rate, now) = (as_rate(limits.rate), Instant::now());
        let mut started = self.started.lock();
        let bucket = started.get_or_insert_with(|| Bucket::full(rate, now));
        // Goes below zero: each that waits has its own turn.
        bucket.fill(rate, now);
        bucket.tokens -= 1.0;
        (bucket.tokens < 0.0).then(|| Duration::from_secs_f64(-bucket.tokens / rate))
    }

    /// Counts a connection in.
    pub(super) fn enter(&self, limits: &Limits) -> Result<Place, Over> {
        self.connections.enter(limits.connections).map_err(|_| Over::Connections)
    }

    /// Counts it for `client`, once it is known.
    pub(super) fn claim(&self, place: &mut Place, limits: &Limits, client: SocketAddr) -> Result<(), Over> {
        if lies_in(&limits.exempt, client.ip()) {
            return Ok(());
        }
        place.claim(limits.connections_per_address, client.ip()).map_err(|_| Over::ConnectionsPerAddress)?;
        let (rate, now) = (as_rate(limits.rate_per_address), Instant::now());
        let has_turn = limits.rate_per_address == 0
            || self.pace(client.ip(), now, |pace| {
                pace.started.get_or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
            });
        if has_turn { Ok(()) } else { Err(Over::RatePerAddress) }
    }

    /// A place among those that are told why they are refused.
    pub(super) fn tell(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.told).try_acquire_owned().ok()
    }

    /// Counts a request for a session that is not there. True: it is one of too many.
    pub(super) fn miss(&self, client: IpAddr) -> bool {
        let now = Instant::now();
        !self.pace(client, now, |pace| pace.missed.get_or_insert_with(|| Bucket::full(MISSES, now)).take(MISSES, now))
    }

    fn pace<T>(&self, client: IpAddr, now: Instant, with: impl FnOnce(&mut Pace) -> T) -> T {
        let mut address = counted_address(client);
        let mut shard = self.paces[shard_of(address)].lock();
        if shard.len() >= FOLLOWED && !shard.contains_key(&address) {
            // Somebody has very many addresses: those that are new have one bucket.
            address = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        }
        let pace = shard.entry(address).or_insert_with(|| Pace { started: None, missed: None, seen: now });
        pace.seen = now;
        with(pace)
    }

    /// Forgets addresses that were not seen of late; their buckets have filled up.
    fn sweep(&self, now: Instant) {
        for shard in &self.paces {
            let mut shard = shard.lock();
            shard.retain(|_, pace| now.saturating_duration_since(pace.seen) < SWEEP);
            if shard.capacity() > 4 * shard.len() + 64 {
                shard.shrink_to_fit();
            }
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn as_rate(rate: usize) -> f64 {
    rate as f64
}

/// Forgets addresses, for as long as the counters live.
pub(super) async fn sweep(counters: Weak<Counters>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(counters) = counters.upgrade() else { return };
        counters.sweep(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { connections: 3, connections_per_address: 2, rate: 0, rate_per_address: 0, exempt: vec![] }
    }

    fn client(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 1000))
    }

    fn come(counters: &Arc<Counters>, limits: &Limits, from: SocketAddr) -> Result<Place, Over> {
        let mut place = counters.enter(limits)?;
        counters.claim(&mut place, limits, from)?;
        Ok(place)
    }

    #[test]
    fn places_are_bounded_in_all_and_for_each_address() {
        let (counters, limits) = (Counters::new(), limits());
        let one = come(&counters, &limits, client(1)).expect("room");
        let _two = come(&counters, &limits, client(1)).expect("room");
        assert_eq!(come(&counters, &limits, client(1)).expect_err("two"), Over::ConnectionsPerAddress);
        let _three = come(&counters, &limits, client(2)).expect("another's");
        assert_eq!(come(&counters, &limits, client(3)).expect_err("three in all"), Over::Connections);
        drop(one);
        let _again = come(&counters, &limits, client(1)).expect("given back");
        assert_eq!(counters.connections(), 3);
    }

    #[test]
    fn exempt_networks_have_no_bound_of_their_own() {
        let counters = Counters::new();
        let limits = Limits { exempt: vec!["10.0.0.0/8".parse().expect("network")], ..limits() };
        let places: Vec<_> = (0..3).map(|_| come(&counters, &limits, client(1)).expect("exempt")).collect();
        assert_eq!(come(&counters, &limits, client(1)).expect_err("in all"), Over::Connections);
        drop(places);
        assert_eq!(counters.connections(), 0);
    }

    #[test]
    fn a_bucket_holds_a_second() {
        let now = Instant::now();
        let mut bucket = Bucket::full(2.0, now);
        assert!(bucket.take(2.0, now) && bucket.take(2.0, now) && !bucket.take(2.0, now));
        let later = now + Duration::from_millis(500);
        assert!(bucket.take(2.0, later) && !bucket.take(2.0, later));
        let much_later = now + Duration::from_secs(3600);
        assert!(bucket.take(2.0, much_later) && bucket.take(2.0, much_later) && !bucket.take(2.0, much_later));
    }

    #[test]
    fn serving_pauses_beyond_its_rate() {
        let mut bucket = Bucket::full(10.0, Instant::now());
        bucket.tokens = 0.0;
        let counters = Counters::new();
        *counters.started.lock() = Some(bucket);
        let limits = Limits { rate: 1, ..limits() };
        let pause = counters.pause(&limits).expect("there is no token");
        assert!(pause <= Duration::from_secs(1), "{pause:?}");
        *counters.started.lock() = None;
        assert_eq!(counters.pause(&limits), None, "a full bucket");
        assert_eq!(counters.pause(&Limits { rate: 0, ..limits }), None, "no bound");
    }

    #[test]
    fn the_rate_of_one_address_is_its_own() {
        let counters = Counters::new();
        let limits = Limits { rate_per_address: 1, connections_per_address: 0, ..limits() };
        let refused = (0..100).filter(|_| come(&counters, &limits, client(1)).is_err()).count();
        assert!(refused > 0, "a hundred in no time");
        assert_eq!(counters.connections(), 0, "given back");
        drop(come(&counters, &limits, client(2)).expect("another's"));
    }

    #[test]
    fn guessing_is_noticed_and_forgotten() {
        let counters = Counters::new();
        assert!((0..1000).any(|_| counters.miss(client(1).ip())));
        assert!(!counters.miss(client(2).ip()));
        counters.sweep(Instant::now());
        assert!(counters.paces.iter().any(|shard| !shard.lock().is_empty()), "just seen");
        counters.sweep(Instant::now() + SWEEP);
        assert!(counters.paces.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn very_many_addresses_share_one_bucket() {
        let counters = Counters::new();
        for n in 0..100_000u128 {
            counters.miss(IpAddr::V6((0x2001_0db8_u128 << 96 | n << 64).into()));
        }
        let followed: usize = counters.paces.iter().map(|shard| shard.lock().len()).sum();
        assert!(followed <= SHARDS * (FOLLOWED + 1), "{followed}");
    }
}
