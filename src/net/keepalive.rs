//! TCP keep-alive: detects peers that have vanished. A peer whose network was cut sends neither an end nor a reset.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// The timeout of connections that have no setting for it, and of listeners until their setting is known.
pub const VANISHED_TIMEOUT: Duration = Duration::from_secs(240);
/// The shortest timeout. The system counts the time between two probes in whole seconds.
pub const MIN_VANISHED_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest times that Linux takes, in seconds: MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL in its net/tcp.h.
const MAX_SECONDS: u64 = 32_767;
/// Probes after the first one. When the last of them is due, the peer has been silent for the whole time.
const FURTHER_PROBES: u64 = 4;

/// When a silent peer gets probes, and when its connection is closed.
///
/// ```text
///  last byte        first probe      further probes, each after an interval       closed
///      │◀──── first ────▶│◀── interval ──▶│◀── interval ──▶│◀─ ... ─▶│ = first + 4 × interval
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSchedule {
    /// From the last byte to the first probe: whole seconds, about half of the time.
    pub first: Duration,
    /// From one probe to the next: whole seconds.
    pub interval: Duration,
    /// How long bytes and probes may be without an acknowledgement.
    pub closed: Duration,
}

impl ProbeSchedule {
    /// The schedule by which a connection is closed when its peer is silent for `timeout`, which is 8 s to 1 d. The system
    /// takes each of its times.
    pub fn new(timeout: Duration) -> Self {
        // The system counts these times in whole seconds.
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let shortest = seconds.saturating_sub(MAX_SECONDS).div_ceil(FURTHER_PROBES);
        let interval = (seconds / (2 * FURTHER_PROBES)).max(shortest).clamp(1, MAX_SECONDS);
        let first = seconds.saturating_sub(FURTHER_PROBES * interval).clamp(1, MAX_SECONDS);
        Self { first: Duration::from_secs(first), interval: Duration::from_secs(interval), closed: timeout }
    }
}

/// Makes the system close a connection whose peer acknowledges nothing for `timeout` (8 s to 1 d). Connections that a
/// listener accepts inherit it.
///
/// # Errors
/// The system's.
pub fn watch_for_vanished(socket: SockRef<'_>, timeout: Duration) -> io::Result<()> {
    let ProbeSchedule { first, interval, closed } = ProbeSchedule::new(timeout);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(first).with_interval(interval))?;
    // Without this, bytes on the way are sent again for a quarter of an hour. It also replaces the number of
    // unanswered probes after which a connection is closed (tcp(7)).
    socket.set_tcp_user_timeout(Some(closed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use socket2::{Domain, Socket, Type};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What `limits.vanished_timeout` may be: its edges, and where the system's limits are.
    fn timeouts() -> impl Strategy<Value = Duration> {
        const EDGES: &[u64] = &[8_000, 8_001, 65_533_999, 65_534_000, 65_534_001, 86_399_999, 86_400_000];
        prop_oneof![8_000..=86_400_000u64, proptest::sample::select(EDGES)].prop_map(Duration::from_millis)
    }

    proptest! {
        #[test]
        fn each_timeout_becomes_times_that_the_system_takes(timeout in timeouts()) {
            let ProbeSchedule { first, interval, closed } = ProbeSchedule::new(timeout);
            let longest = Duration::from_secs(MAX_SECONDS);
            prop_assert!((SECOND..=longest).contains(&first), "{first:?}");
            prop_assert!((SECOND..=longest).contains(&interval), "{interval:?}");
            prop_assert_eq!(closed, timeout);
            // The last probe is due when the time has passed, and within a second of it.
            let last = first + 4 * interval;
            prop_assert!(last >= timeout && last < timeout + SECOND, "{last:?}");
        }

        #[test]
        fn the_system_has_each_timeout_in_force(timeout in timeouts()) {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            watch_for_vanished(SockRef::from(&socket), timeout).expect("the system takes it");
            let schedule = ProbeSchedule::new(timeout);
            prop_assert!(socket.keepalive().expect("an option"));
            prop_assert_eq!(socket.tcp_keepalive_time().expect("an option"), schedule.first);
            prop_assert_eq!(socket.tcp_keepalive_interval().expect("an option"), schedule.interval);
            prop_assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(timeout));
        }
    }
}
