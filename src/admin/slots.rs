//! The connections that the endpoint has, and which of them is closed when a new one needs its place.
//!
//! ```text
//!                    request                    no place is left
//!  accepted ─▶ waiting ─────▶ answering      waiting ─────────▶ evicted
//!                 ▲               │             │
//!                 └───────────────┘             └─ 30 s after its response, not taken ─▶ stalled
//! ```

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// Connections at the same time: enough for some scrapers and a few people.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for a response, and to send its next request.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The place of one connection.
pub(super) struct ConnectionSlot {
    pub(super) peer: IpAddr,
    /// Since when it waits for a request to be complete; none while a request is answered.
    waiting_since: Mutex<Option<Instant>>,
}

impl ConnectionSlot {
    pub(super) fn new(peer: IpAddr, now: Instant) -> Self {
        Self { peer: peer.to_canonical(), waiting_since: Mutex::new(Some(now)) }
    }

    /// A request is complete.
    pub(super) fn answers(&self) {
        *self.waiting_since.lock() = None;
    }

    /// The response is ready; whether the client takes it is not known.
    pub(super) fn waits(&self, now: Instant) {
        *self.waiting_since.lock() = Some(now);
    }

    /// Waits until the client has neither taken its response nor sent its next request for too long.
    pub(super) async fn stalled(&self) {
        loop {
            let since = *self.waiting_since.lock();
            let due = since.unwrap_or_else(Instant::now) + STALL_TIMEOUT;
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

/// The places that are taken.
#[derive(Default)]
pub(super) struct ConnectionSlots(Vec<(Arc<ConnectionSlot>, AbortHandle)>);

impl ConnectionSlots {
    /// Makes room for one more connection, and returns the slot of the connection that was closed for it, if one was.
    pub(super) fn make_room(&mut self) -> Option<Arc<ConnectionSlot>> {
        self.0.retain(|(_, task)| !task.is_finished());
        if self.0.len() < MAX_CONNECTIONS {
            return None;
        }
        let waiting: Vec<_> = self.0.iter().map(|(slot, _)| (slot.peer, *slot.waiting_since.lock())).collect();
        let (slot, task) = self.0.swap_remove(least_missed(&waiting)?);
        task.abort();
        Some(slot)
    }

    pub(super) fn take(&mut self, slot: Arc<ConnectionSlot>, task: AbortHandle) {
        self.0.push((slot, task));
    }
}

/// Which connection is closed first: of the address that has the most connections that wait, the one that has waited the
/// longest. So an address with many connections takes no place from one with few. A request that is being answered is
/// never cut off: `None` if all are.
fn least_missed(connections: &[(IpAddr, Option<Instant>)]) -> Option<usize> {
    let waiting = || connections.iter().enumerate().filter_map(|(at, (peer, since))| Some((at, *peer, (*since)?)));
    let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
    for (_, peer, _) in waiting() {
        *by_address.entry(peer).or_default() += 1;
    }
    let most = by_address.values().max().copied()?;
    waiting().filter(|(_, peer, _)| by_address[peer] == most).min_by_key(|(.., since)| *since).map(|(at, ..)| at)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn who_has_the_most_and_has_waited_the_longest_goes_first() {
        let now = Instant::now();
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        let choose = |connections: &[(u8, Option<Instant>)]| {
            least_missed(&connections.iter().map(|(last, since)| (ip(*last), *since)).collect::<Vec<_>>())
        };
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[(1, None), (2, None)]), None, "all are being answered");
        assert_eq!(choose(&[(1, at(5)), (1, at(3)), (1, at(4))]), Some(1));
        assert_eq!(choose(&[(1, at(0)), (2, at(5)), (2, at(3))]), Some(2), "the first address has one only");
        assert_eq!(choose(&[(1, at(9)), (2, None), (2, None), (2, None)]), Some(0));
        assert_eq!(choose(&[(1, at(2)), (2, at(1))]), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_is_stalled_only_while_it_waits() {
        let slot = Arc::new(ConnectionSlot::new(ip(1), Instant::now()));
        slot.answers();
        let waiting = tokio::time::timeout(STALL_TIMEOUT / 2, slot.stalled());
        assert!(waiting.await.is_err(), "it is being answered");
    }

    #[tokio::test]
    async fn the_number_of_seats_is_bounded() {
        let mut slots = ConnectionSlots::default();
        let mut evicted = 0;
        for _ in 0..2 * MAX_CONNECTIONS {
            evicted += usize::from(slots.make_room().is_some());
            slots.take(
                Arc::new(ConnectionSlot::new(ip(1), Instant::now())),
                tokio::spawn(pending::<()>()).abort_handle(),
            );
            assert!(slots.0.len() <= MAX_CONNECTIONS);
        }
        assert_eq!(evicted, MAX_CONNECTIONS);
    }
}
