//! The budget for bytes that are held because a peer is slow: in total, and for each client address.
//!
//! Nothing is dropped when the budget is used up. Whoever wants to hold many bytes asks first. If there is no room, it
//! holds at most [`LITTLE`], reads in pieces of that size, and the sender waits.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
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
    /// 0: an address has no limit of its own.
    per_address: AtomicUsize,
    exempt: RwLock<Vec<IpNet>>,
    /// Whether bytes are counted for their address. Counting costs a little, so it begins with the first limit for
    /// addresses. It never ends, since then a later limit would begin with wrong counts.
    counts_addresses: AtomicBool,
    by_address: AddressTable<usize>,
}

/// The bytes that one holder has, as a [`Budget`] counts them, and whether they are counted for their address, too: they
/// are, if that had begun when they last changed. In one number, since every session has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share(u64);

impl Share {
    fn new(bytes: usize, is_of_address: bool) -> Self {
        Self((bytes as u64) << 1 | u64::from(is_of_address))
    }

    /// The number of bytes.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0 >> 1).unwrap_or(usize::MAX)
    }

    fn is_of_address(self) -> bool {
        self.0 & 1 == 1
    }

    /// The share as a number, for a holder that keeps it in an atomic one.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The share that [`Self::to_bits`] has made a number of.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// Bytes by which some holders together may exceed the limit of their address, but not the total limit.
#[derive(Debug)]
pub struct Exceptions {
    used: AtomicUsize,
    most: usize,
}

impl Exceptions {
    /// Up to `most` bytes, or any number for one holder alone.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most })
    }

    /// None of them yet, for one more holder.
    pub fn none(self: &Arc<Self>) -> Exception {
        Exception { of: Arc::clone(self), bytes: 0 }
    }
}

/// What one holder has of [`Exceptions`].
#[derive(Debug)]
pub struct Exception {
    of: Arc<Exceptions>,
    bytes: usize,
}

impl Exception {
    /// Takes `n` bytes, if there are so many.
    fn grow(&mut self, n: usize) -> bool {
        let Exceptions { used, most } = &*self.of;
        let is_alone = |used| used == self.bytes;
        let grown = used.fetch_update(Relaxed, Relaxed, |used| {
            let then = used.saturating_add(n);
            (is_alone(used) || then <= *most).then_some(then)
        });
        if grown.is_ok() {
            self.bytes += n;
        }
        grown.is_ok()
    }
}

impl Drop for Exception {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.bytes, Relaxed);
    }
}

impl Budget {
    /// A budget of `limit` bytes. One address may have `per_address` of them (0: all) unless it is in `exempt`.
    pub fn new(limit: usize, per_address: usize, exempt: &[IpNet]) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            per_address: AtomicUsize::new(per_address),
            exempt: RwLock::new(exempt.to_vec()),
            counts_addresses: AtomicBool::new(per_address > 0),
            by_address: AddressTable::default(),
        })
    }

    /// Sets new limits. Bytes that are held stay held and counted.
    pub fn set(&self, limit: usize, per_address: usize, exempt: &[IpNet]) {
        self.limit.store(limit, Relaxed);
        self.per_address.store(per_address, Relaxed);
        *self.exempt.write() = exempt.to_vec();
        self.counts_addresses.fetch_or(per_address > 0, Relaxed);
    }

    /// How many bytes are held.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Whether there is no room for `n` more bytes of `client`.
    #[inline]
    pub fn lacks(&self, client: IpAddr, n: usize) -> bool {
        if self.lacks_in_total(n) {
            return true;
        }
        let per_address = self.per_address.load(Relaxed);
        per_address > 0 && self.address_lacks(client, n, per_address)
    }

    /// Whether there is no room for `n` more bytes, whatever the limit of an address is.
    pub fn lacks_in_total(&self, n: usize) -> bool {
        self.held().saturating_add(n) > self.limit.load(Relaxed)
    }

    fn address_lacks(&self, client: IpAddr, n: usize, limit: usize) -> bool {
        self.by_address.get(client).saturating_add(n) > limit && !lies_in(&self.exempt.read(), client)
    }

    /// Counts `now` bytes of `client` instead of those of `before`, whether or not there is room. Returns the share that
    /// takes the place of `before`.
    #[inline]
    #[must_use]
    pub fn settle(&self, client: IpAddr, before: Share, now: usize) -> Share {
        let before_bytes = before.bytes();
        if before_bytes == now {
            return before;
        }
        // An atomic addition wraps around, so this is a subtraction if there are fewer bytes now.
        self.held.fetch_add(now.wrapping_sub(before_bytes), Relaxed);
        let is_of_address = self.counts_addresses.load(Relaxed);
        if is_of_address {
            self.settle_address(client, if before.is_of_address() { before_bytes } else { 0 }, now);
        }
        Share::new(now, is_of_address)
    }

    /// Bytes that were held before counting began are not counted for their address until they change.
    fn settle_address(&self, client: IpAddr, counted: usize, now: usize) {
        self.by_address.update(client, |held| *held = *held + now - counted);
    }
}

/// The bytes that one holder has, counted in a [`Budget`] until this is dropped.
#[derive(Debug)]
pub struct HeldBytes {
    budget: Arc<Budget>,
    /// In the form that takes fewer bytes: an IPv4 address is mapped.
    client: Ipv6Addr,
    share: Share,
    /// Boxed, since it is rare.
    exception: Option<Box<Exception>>,
}

impl HeldBytes {
    /// No bytes yet, for `client`.
    pub fn none(budget: &Arc<Budget>, client: IpAddr) -> Self {
        let client = match client {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { budget: Arc::clone(budget), client, share: Share::default(), exception: None }
    }

    /// No bytes yet, of the same budget and client.
    pub fn another(&self) -> Self {
        Self::none(&self.budget, self.client())
    }

    /// The client that the bytes are counted for.
    pub fn client(&self) -> IpAddr {
        self.client.to_canonical()
    }

    /// From now on, [`Self::grow`] may exceed the limit of the address by `exception`.
    pub fn except(&mut self, exception: Exception) {
        self.exception = Some(Box::new(exception));
    }

    /// Whether there is no room for `n` more bytes.
    pub fn lacks(&self, n: usize) -> bool {
        self.budget.lacks(self.client(), n)
    }

    /// Whether there is no room for `n` more bytes, whatever the limit of an address is.
    pub fn lacks_in_total(&self, n: usize) -> bool {
        self.budget.lacks_in_total(n)
    }

    /// Counts `n` bytes from now on, whether or not there is room: for a holder that has asked before.
    pub fn set(&mut self, n: usize) {
        self.share = self.budget.settle(self.client(), self.share, n);
    }

    /// Counts `n` more bytes, if there is room.
    pub fn grow(&mut self, n: usize) -> bool {
        let has_room = !self.lacks(n)
            || !self.lacks_in_total(n) && self.exception.as_mut().is_some_and(|exception| exception.grow(n));
        if has_room {
            self.set(self.share.bytes() + n);
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
    fn without_a_bound_for_one_address_no_address_takes_memory() {
        let budget = Budget::new(10, 0, &[]);
        budget.set(20, 0, &[]);
        let mut ann = HeldBytes::none(&budget, ANN);
        assert!(ann.grow(15) && budget.by_address.is_empty());
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
        assert!(late.lacks(1), "the bytes of before do not count, and so they make no room");
        early.set(50);
        late.set(0);
        assert!(late.lacks(1), "they count since they have changed");
        early.set(2);
        assert!(late.grow(8) && late.lacks(1));
        budget.set(100, 0, &[]);
        assert!(late.grow(40));
        budget.set(100, 10, &[]);
        early.set(0);
        late.set(9);
        assert!(!early.lacks(1) && early.lacks(2), "while there was no limit, all was counted");
        drop((early, late));
        assert_eq!(budget.held(), 0);
        assert!(budget.by_address.is_empty());
    }

    #[test]
    fn a_share_is_the_same_as_a_number() {
        for (bytes, is_of_address) in [(0, false), (7, true), (1 << 40, false)] {
            let share = Share::from_bits(Share::new(bytes, is_of_address).to_bits());
            assert_eq!((share.bytes(), share.is_of_address()), (bytes, is_of_address));
        }
    }

    #[test]
    fn an_exception_is_from_the_limit_of_an_address_only() {
        let (budget, exceptions) = (Budget::new(100, 10, &[]), Exceptions::new(30));
        let excepted = || {
            let mut held = HeldBytes::none(&budget, ANN);
            held.except(exceptions.none());
            held
        };
        let (mut first, mut second) = (excepted(), excepted());
        assert!(first.grow(10), "there was room");
        assert!(first.grow(20) && second.grow(10) && !second.grow(1) && !first.grow(1), "thirty for both");
        assert!(HeldBytes::none(&budget, ANN).lacks(1) && !HeldBytes::none(&budget, BOB).lacks(10));
        drop(first);
        assert!(second.grow(40), "it is alone");
        assert!(!second.grow(51) && second.grow(50), "the total limit stands");
        drop(second);
        assert_eq!((budget.held(), exceptions.used.load(Relaxed)), (0, 0));
    }

    #[test]
    fn exempt_networks_and_new_bounds() {
        let budget = Budget::new(10, 1, &["10.0.0.0/31".parse().expect("network")]);
        assert!(!budget.lacks(ANN, 9) && budget.lacks(BOB, 9));
        budget.set(3, 0, &[]);
        assert!(budget.lacks(ANN, 4) && !budget.lacks(BOB, 3));
    }
}
