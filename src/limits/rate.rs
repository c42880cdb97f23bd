//! How often something may happen per second: token buckets, one alone or one for each client address.
//!
//! The time is an argument of every function, so that tests need no clock.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::tally::AddressTable;

/// How many addresses each shard of an [`AddressRates`] follows; further ones share one bucket.
pub const MAX_FOLLOWED: usize = 4096;
/// For how long an address is followed after its last token, and how often to call [`AddressRates::sweep`]. It is
/// longer than a bucket needs to become full.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A bucket for the tokens of one second: `tokens <= rate`. It fills with `rate` tokens per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenBucket {
    /// Below zero while there are reservations: each of them has one token that is still to come.
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(rate: f64, now: Instant) -> Self {
        Self { tokens: rate, filled: now }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, rate: f64, now: Instant) -> bool {
        self.fill(rate, now);
        let has_token = self.tokens >= 1.0;
        if has_token {
            self.tokens -= 1.0;
        }
        has_token
    }

    /// Takes a token, also one that is still to come. Returns how long to wait for it; `None`: it is there.
    pub fn reserve(&mut self, rate: f64, now: Instant) -> Option<Duration> {
        self.fill(rate, now);
        self.tokens -= 1.0;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / rate))
    }

    /// Adds the tokens of the time that has passed since this was called last.
    fn fill(&mut self, rate: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(rate);
        self.filled = now;
    }
}

/// A bucket for each address. [`Self::sweep`] has to be called regularly, so that addresses are forgotten.
#[derive(Debug, Default)]
pub struct AddressRates(AddressTable<Option<TokenBucket>>);

impl AddressRates {
    /// Takes a token of `client`'s address, which gets `rate` per second, if there is one. When very many addresses
    /// are followed, new ones share a bucket, so that memory is bounded.
    pub fn take(&self, client: IpAddr, rate: f64, now: Instant) -> bool {
        self.0.update_at_most(MAX_FOLLOWED, client, |bucket| {
            bucket.get_or_insert_with(|| TokenBucket::full(rate, now)).take(rate, now)
        })
    }

    /// Forgets the addresses that took no token for [`SWEEP_INTERVAL`]: their buckets have become full again.
    pub fn sweep(&self, now: Instant) {
        let is_recent = |bucket: TokenBucket| now.saturating_duration_since(bucket.filled) < SWEEP_INTERVAL;
        self.0.retain(|bucket| bucket.is_some_and(is_recent));
    }

    /// How many addresses are followed.
    pub fn followed(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::tally::SHARDS;

    fn client(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn a_bucket_holds_a_second() {
        let now = Instant::now();
        let mut bucket = TokenBucket::full(2.0, now);
        assert!(bucket.take(2.0, now) && bucket.take(2.0, now) && !bucket.take(2.0, now));
        let later = now + Duration::from_millis(500);
        assert!(bucket.take(2.0, later) && !bucket.take(2.0, later));
        let much_later = now + Duration::from_secs(3600);
        assert!(bucket.take(2.0, much_later) && bucket.take(2.0, much_later) && !bucket.take(2.0, much_later));
    }

    #[test]
    fn each_reservation_waits_for_a_token_of_its_own() {
        let now = Instant::now();
        let mut bucket = TokenBucket::full(2.0, now);
        let waits: Vec<_> = (0..5).map(|_| bucket.reserve(2.0, now).map(|wait| wait.as_millis())).collect();
        assert_eq!(waits, [None, None, Some(500), Some(1000), Some(1500)]);
        assert_eq!(bucket.reserve(2.0, now + Duration::from_secs(2)), None, "all of them have their tokens");
    }

    #[test]
    fn an_address_has_a_bucket_of_its_own_until_it_is_forgotten() {
        let (rates, now) = (AddressRates::default(), Instant::now());
        assert!(rates.take(client(1), 1.0, now) && !rates.take(client(1), 1.0, now));
        assert!(rates.take(client(2), 1.0, now));
        rates.sweep(now + SWEEP_INTERVAL / 2);
        assert_eq!(rates.followed(), 2);
        rates.sweep(now + SWEEP_INTERVAL);
        assert_eq!(rates.followed(), 0);
    }

    #[test]
    fn very_many_addresses_share_one_bucket() {
        let (rates, now) = (AddressRates::default(), Instant::now());
        for n in 0..100_000u128 {
            rates.take(IpAddr::V6((0x2001_0db8_u128 << 96 | n << 64).into()), 50.0, now);
        }
        assert!(rates.followed() <= SHARDS * (MAX_FOLLOWED + 1), "{}", rates.followed());
    }
}
