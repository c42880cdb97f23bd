//! Bytes that are held because somebody is slow: so many in all, and so many for one address.
//!
//! What is over the bound is not dropped. Whoever holds something asks first; where there is no
//! room it holds [`LITTLE`], reads in pieces of that size, and the sender waits.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};

use super::tally::{SHARDS, shard_of};
use crate::net::address::{counted_address, lies_in};

/// When too much is held, each holder may have so many bytes all the same, and goes on.
pub const LITTLE: usize = 4 * 1024;

/// Bytes held, of so many that may be.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    limit: AtomicUsize,
    /// 0: no bound of its own.
    per_address: AtomicUsize,
    exempt: RwLock<Vec<IpNet>>,
    by_address: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
}

impl Budget {
    /// A budget of `limit` bytes, of which one address may have `per_address` (0: all) unless it
    /// lies in `exempt`.
    pub fn new(limit: usize, per_address: usize, exempt: &[IpNet]) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            per_address: AtomicUsize::new(per_address),
            exempt: RwLock::new(exempt.to_vec()),
            by_address: std::array::from_fn(|_| Mutex::default()),
        })
    }

    /// Takes up new bounds. What is held stays.
    pub fn set(&self, limit: usize, per_address: usize, exempt: &[IpNet]) {
        self.limit.store(limit, Relaxed);
        self.per_address.store(per_address, Relaxed);
        *self.exempt.write() = exempt.to_vec();
        if per_address == 0 {
            self.by_address.iter().for_each(|shard| *shard.lock() = HashMap::new());
        }
    }

    /// Bytes held at present.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    fn shard(&self, address: IpAddr) -> &Mutex<HashMap<IpAddr, usize>> {
        &self.by_address[shard_of(address)]
    }

    /// Whether `n` more bytes for `client` are too many.
    #[inline]
    pub fn lacks(&self, client: IpAddr, n: usize) -> bool {
        if self.held().saturating_add(n) > self.limit.load(Relaxed) {
            return true;
        }
        let per_address = self.per_address.load(Relaxed);
        per_address > 0 && self.address_lacks(client, n, per_address)
    }

    fn address_lacks(&self, client: IpAddr, n: usize, limit: usize) -> bool {
        let address = counted_address(client);
        let held = self.shard(address).lock().get(&address).copied().unwrap_or(0);
        held.saturating_add(n) > limit && !lies_in(&self.exempt.read(), client)
    }

    /// Counts `now` bytes of `client`'s where `before` were counted.
    #[inline]
    pub fn settle(&self, client: IpAddr, before: usize, now: usize) {
        if before == now {
            return;
        }
        if now > before {
            self.held.fetch_add(now - before, Relaxed);
        } else {
            self.held.fetch_sub(before - now, Relaxed);
        }
        if self.per_address.load(Relaxed) > 0 {
            self.settle_address(client, before, now);
        }
    }

    /// What was held before a reload set the bound is not counted for it, and may not be below zero.
    fn settle_address(&self, client: IpAddr, before: usize, now: usize) {
        let address = counted_address(client);
        let mut shard = self.shard(address).lock();
        let held = shard.entry(address).or_default();
        *held = (*held + now).saturating_sub(before);
        if *held == 0 {
            shard.remove(&address);
        }
    }
}

/// Bytes that one holder has; given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    client: IpAddr,
    bytes: usize,
}

impl Held {
    /// None yet, for `client`.
    pub fn none(budget: &Arc<Budget>, client: IpAddr) -> Self {
        Self { budget: Arc::clone(budget), client, bytes: 0 }
    }

    /// None yet, of the same budget and client.
    pub fn another(&self) -> Self {
        Self::none(&self.budget, self.client)
    }

    /// Whose they are.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Whether `n` more are too many.
    pub fn lacks(&self, n: usize) -> bool {
        self.budget.lacks(self.client, n)
    }

    /// Holds `n`, whether or not there is room: for whoever has asked.
    pub fn set(&mut self, n: usize) {
        self.budget.settle(self.client, self.bytes, n);
        self.bytes = n;
    }

    /// Holds `n` more, if there is room.
    pub fn grow(&mut self, n: usize) -> bool {
        let there = !self.lacks(n);
        if there {
            self.set(self.bytes + n);
        }
        there
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn bytes_are_bounded_in_all_and_for_each_address_and_given_back() {
        let budget = Budget::new(10, 6, &[]);
        let (mut ann, mut bob) = (Held::none(&budget, ANN), Held::none(&budget, BOB));
        assert!(ann.grow(4) && !ann.grow(3) && ann.grow(2));
        assert!(Held::none(&budget, ANN).lacks(1), "another of the same address");
        assert!(!bob.grow(5) && bob.grow(4) && !bob.grow(1));
        ann.set(1);
        assert!(bob.grow(1));
        drop((ann, bob));
        assert_eq!(budget.held(), 0);
        assert!(budget.by_address.iter().all(|shard| shard.lock().is_empty()), "nothing is remembered");
    }

    #[test]
    fn a_bound_for_one_address_may_come_and_go() {
        let budget = Budget::new(100, 0, &[]);
        let mut early = Held::none(&budget, ANN);
        assert!(early.grow(50));
        budget.set(100, 10, &[]);
        let mut late = Held::none(&budget, ANN);
        assert!(late.grow(10) && !late.grow(1));
        early.set(0);
        assert!(!budget.lacks(ANN, 10), "no less than nothing");
        drop((early, late));
        assert_eq!(budget.held(), 0);
        budget.set(100, 0, &[]);
        assert!(budget.by_address.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn exempt_networks_and_new_bounds() {
        let budget = Budget::new(10, 1, &["10.0.0.0/31".parse().expect("network")]);
        assert!(!budget.lacks(ANN, 9) && budget.lacks(BOB, 9));
        budget.set(3, 0, &[]);
        assert!(budget.lacks(ANN, 9) && !budget.lacks(BOB, 3));
    }
}
