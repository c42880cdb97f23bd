//! The order and the times of the attempts to connect to a host with several addresses, as in RFC 8305 ("Happy
//! Eyeballs"). No I/O; time is an argument.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

/// The time from the start of one attempt to that of the next (RFC 8305, section 5: Connection Attempt Delay).
const DELAY: Duration = Duration::from_millis(250);
/// The shortest such time, for a short time-out and many addresses. RFC 8305 permits nothing shorter.
const SHORTEST_DELAY: Duration = Duration::from_millis(10);

/// The order of the addresses of a host, by what happened to the last connections.
#[derive(Debug, Default)]
pub(super) struct AddressHistory {
    /// The address of the last connection.
    last_good: Option<SocketAddr>,
    /// The address of the last connection that turned out to be useless.
    last_bad: Option<SocketAddr>,
}

impl AddressHistory {
    /// A connection to the address was made.
    pub(super) fn connected(&mut self, address: SocketAddr) {
        self.last_good = Some(address);
    }

    /// A connection to the address was made, and was useless: it is tried last from now on.
    pub(super) fn useless(&mut self, address: SocketAddr) {
        self.last_bad = Some(address);
        if self.last_good == Some(address) {
            self.last_good = None;
        }
    }

    /// A connection to the address was useful.
    pub(super) fn useful(&mut self, address: SocketAddr) {
        if self.last_bad == Some(address) {
            self.last_bad = None;
        }
    }

    /// `addresses`, which the resolver has put into its order (RFC 6724), in the order of the attempts: the address
    /// that worked last, then the two families in turn, beginning with the resolver's first (RFC 8305, section 4).
    pub(super) fn order(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let is_of_first_family =
            |address: &&SocketAddr| addresses.first().is_some_and(|first| first.is_ipv4() == address.is_ipv4());
        let (first, second): (Vec<&SocketAddr>, Vec<&SocketAddr>) = addresses.iter().partition(is_of_first_family);
        let pairs = (0..first.len().max(second.len())).flat_map(|at| [first.get(at), second.get(at)]);
        let mut order: Vec<SocketAddr> = pairs.flatten().map(|address| **address).collect();
        // A stable sort: the rest keeps its order.
        order.sort_by_key(|address| (Some(*address) == self.last_bad, Some(*address) != self.last_good));
        order
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptStep {
    /// Begin to connect to this address.
    Start(SocketAddr),
    /// Wait for an attempt to end, until this time.
    WaitUntil(Instant),
    /// Wait for an attempt to end.
    Wait,
    /// Nothing: every attempt has failed.
    Failed,
}

/// The attempts to connect to one host.
///
/// ```text
///     an address is started, when ┌───┐
///     DELAY has passed, or as soon│   ▼    none is left to start             the last one failed
///     as an attempt has failed    starting ───────────────────────► waiting ────────────────────► failed
///                                    │                                 │
///                                    └──── an attempt has succeeded ───┴──► the others are dropped
/// ```
///
/// `0 <= running <= started <= addresses.len()`
#[derive(Debug)]
pub(super) struct Attempts {
    addresses: Vec<SocketAddr>,
    /// How many of them were started.
    started: usize,
    /// How many of those have not ended.
    running: usize,
    delay: Duration,
    /// When the next one is started; `None`: at once.
    next_start: Option<Instant>,
}

impl Attempts {
    /// Attempts to connect to `addresses` in this order, which all have to be started `within` this time.
    pub(super) fn new(addresses: Vec<SocketAddr>, within: Duration) -> Self {
        let starts = u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
        let delay = DELAY.min((within / starts).max(SHORTEST_DELAY));
        Self { addresses, started: 0, running: 0, delay, next_start: None }
    }

    /// What to do at `now`. An address that is returned counts as started.
    pub(super) fn next(&mut self, now: Instant) -> AttemptStep {
        match (self.addresses.get(self.started), self.next_start) {
            (Some(_), Some(at)) if now < at => AttemptStep::WaitUntil(at),
            (Some(address), _) => {
                self.started += 1;
                self.running += 1;
                self.next_start = Some(now + self.delay);
                AttemptStep::Start(*address)
            }
            (None, _) if self.running > 0 => AttemptStep::Wait,
            (None, _) => AttemptStep::Failed,
        }
    }

    /// An attempt has failed: the next one is started at once.
    pub(super) fn failed(&mut self) {
        self.running -= 1;
        self.next_start = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const WITHIN: Duration = Duration::from_secs(5);

    fn v4(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 1533))
    }

    fn v6(n: u16) -> SocketAddr {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 1533))
    }

    #[test]
    fn the_families_take_turns_and_the_resolvers_first_one_begins() {
        let history = AddressHistory::default();
        assert_eq!(history.order(&[v6(1), v6(2), v6(3), v4(1)]), [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(history.order(&[v4(1), v4(2), v6(1), v6(2)]), [v4(1), v6(1), v4(2), v6(2)]);
        assert_eq!(history.order(&[v4(2), v4(1)]), [v4(2), v4(1)]);
        assert!(history.order(&[]).is_empty());
    }

    #[test]
    fn what_worked_comes_first_and_what_was_useless_last() {
        let (mut history, all) = (AddressHistory::default(), [v4(1), v4(2), v4(3)]);
        history.connected(v4(2));
        assert_eq!(history.order(&all), [v4(2), v4(1), v4(3)]);
        history.useless(v4(2));
        assert_eq!(history.order(&all), [v4(1), v4(3), v4(2)]);
        history.connected(v4(3));
        assert_eq!(history.order(&all), [v4(3), v4(1), v4(2)]);
        history.useful(v4(2));
        assert_eq!(history.order(&all), [v4(3), v4(1), v4(2)]);
        history.connected(v4(9));
        assert_eq!(history.order(&all), all, "the host has that address no more");
    }

    #[test]
    fn a_silent_address_delays_the_next_one_and_a_failed_one_does_not() {
        let (mut attempts, start) = (Attempts::new(vec![v4(1), v4(2), v4(3)], WITHIN), Instant::now());
        assert_eq!(attempts.next(start), AttemptStep::Start(v4(1)));
        assert_eq!(attempts.next(start), AttemptStep::WaitUntil(start + DELAY));
        assert_eq!(attempts.next(start + DELAY - MS), AttemptStep::WaitUntil(start + DELAY));
        let later = start + DELAY;
        assert_eq!(attempts.next(later), AttemptStep::Start(v4(2)));
        assert_eq!(attempts.next(later), AttemptStep::WaitUntil(later + DELAY));
        attempts.failed();
        assert_eq!(attempts.next(later), AttemptStep::Start(v4(3)));
        assert_eq!(attempts.next(later), AttemptStep::Wait);
        attempts.failed();
        assert_eq!(attempts.next(later), AttemptStep::Wait, "one is still silent");
        attempts.failed();
        assert_eq!(attempts.next(later), AttemptStep::Failed);
    }

    #[test]
    fn every_address_is_started_within_a_short_time_out() {
        for (within, addresses) in [(50 * MS, 4), (WITHIN, 60), (WITHIN, 2), (Duration::from_secs(120), 3)] {
            let all: Vec<SocketAddr> = (0..addresses).map(v4).collect();
            let (mut attempts, mut now) = (Attempts::new(all, within), Instant::now());
            let start = now;
            loop {
                match attempts.next(now) {
                    AttemptStep::WaitUntil(at) => {
                        assert!(at - now <= DELAY && at > now);
                        now = at;
                    }
                    AttemptStep::Start(_) => assert!(now - start < within, "{addresses} within {within:?}"),
                    step => break assert_eq!(step, AttemptStep::Wait),
                }
            }
        }
    }
}
