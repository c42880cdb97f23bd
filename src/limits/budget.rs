//! The budget for bytes that are held because a peer is slow: in total, and for each client address.
//!
//! Nothing is dropped when the budget is used up. Whoever wants to hold many bytes asks first. If there is no room, it
//! holds at most [`LITTLE`], reads in pieces of that size, and the sender waits.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ipnet::IpNet;
use parking_lot::RwLock;

use super::tally::AddressTable;
use crate::net::address::lies_in;

/// How many bytes each holder may have also when the budget is used up, so that its session continues.
pub const LITTLE: usize = 4 * 1024;

/// Counts held bytes, and knows their limits.
///
/// To ask ([`Self::lacks`]) and to count ([`Self::settle`]) are two steps. Holders that ask at the same time may
/// together exceed a limit, each by no more than it reads at once.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    limit: AtomicUsize,
    /// 0: an address has no limit of its own, and its bytes are not counted for it.
    per_address: AtomicUsize,
    exempt: RwLock<Vec<IpNet>>,
    by_address: AddressTable<usize>,
}

impl Budget {
    /// A budget of `limit` bytes. One address may have `per_address` of them (0: all) unless it is in `exempt`.
    pub fn new(limit: usize, per_address: usize, exempt: &[IpNet]) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            per_address: AtomicUsize::new(per_address),
            exempt: RwLock::new(exempt.to_vec()),
            by_address: AddressTable::default(),
        })
    }

    /// Sets new limits. Bytes that are held stay held and counted.
    pub fn set(&self, limit: usize, per_address: usize, exempt: &[IpNet]) {
        self.limit.store(limit, Relaxed);
        self.per_address.store(per_address, Relaxed);
        *self.exempt.write() = exempt.to_vec();
        if per_address == 0 {
            self.by_address.clear();
        }
    }

    /// How many bytes are held.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Whether there is no room for `n` more bytes of `client`.
    #[inline]
    pub fn lacks(&self, client: IpAddr, n: usize) -> bool {
        if self.held().saturating_add(n) > self.limit.load(Relaxed) {
            return true;
        }
        let per_address = self.per_address.load(Relaxed);
        per_address > 0 && self.address_lacks(client, n, per_address)
    }

    fn address_lacks(&self, client: IpAddr, n: usize, limit: usize) -> bool {
        self.by_address.get(client).saturating_add(n) > limit && !lies_in(&self.exempt.read(), client)
    }

    /// Counts `now` bytes of `client` instead of `before`, whether or not there is room.
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

    /// Bytes that were held before a reload set a limit for addresses are not counted for their address: the count
    /// must not go below zero when they are released.
    fn settle_address(&self, client: IpAddr, before: usize, now: usize) {
        self.by_address.update(client, |held| *held = (*held + now).saturating_sub(before));
    }
}

/// The bytes that one holder has, counted in a [`Budget`] until this is dropped.
#[derive(Debug)]
pub struct HeldBytes {
    budget: Arc<Budget>,
    client: IpAddr,
    bytes: usize,
}

impl HeldBytes {
    /// No bytes yet, for `client`.
    pub fn none(budget: &Arc<Budget>, client: IpAddr) -> Self {
        Self { budget: Arc::clone(budget), client, bytes: 0 }
    }

    /// No bytes yet, of the same budget and client.
    pub fn another(&self) -> Self {
        Self::none(&self.budget, self.client)
    }

    /// The client that the bytes are counted for.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Whether there is no room for `n` more bytes.
    pub fn lacks(&self, n: usize) -> bool {
        self.budget.lacks(self.client, n)
    }

    /// Counts `n` bytes from now on, whether or not there is room: for a holder that has asked before.
    pub fn set(&mut self, n: usize) {
        self.budget.settle(self.client, self.bytes, n);
        self.bytes = n;
    }

    /// Counts `n` more bytes, if there is room.
    pub fn grow(&mut self, n: usize) -> bool {
        let has_room = !self.lacks(n);
        if has_room {
            self.set(self.bytes + n);
        }
        has_room
    }
}

impl Drop for HeldBytes {
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
        let (mut ann, mut bob) = (HeldBytes::none(&budget, ANN), HeldBytes::none(&budget, BOB));
        assert!(ann.grow(4) && !ann.grow(3) && ann.grow(2));
        assert!(HeldBytes::none(&budget, ANN).lacks(1), "another of the same address");
        assert!(!bob.grow(5) && bob.grow(4) && !bob.grow(1));
        ann.set(1);
        assert!(bob.grow(1));
        drop((ann, bob));
        assert_eq!(budget.held(), 0);
        assert!(budget.by_address.is_empty(), "no address is remembered");
    }

    #[test]
    fn a_bound_for_one_address_may_come_and_go() {
        let budget = Budget::new(100, 0, &[]);
        let mut early = HeldBytes::none(&budget, ANN);
        assert!(early.grow(50));
        budget.set(100, 10, &[]);
        let mut late = HeldBytes::none(&budget, ANN);
        assert!(late.grow(10) && !late.grow(1));
        early.set(0);
        assert!(!budget.lacks(ANN, 10), "the count is not below zero");
        drop((early, late));
        assert_eq!(budget.held(), 0);
        budget.set(100, 0, &[]);
        assert!(budget.by_address.is_empty());
    }

    #[test]
    fn exempt_networks_and_new_bounds() {
        let budget = Budget::new(10, 1, &["10.0.0.0/31".parse().expect("network")]);
        assert!(!budget.lacks(ANN, 9) && budget.lacks(BOB, 9));
        budget.set(3, 0, &[]);
        assert!(budget.lacks(ANN, 9) && !budget.lacks(BOB, 3));
    }
}
