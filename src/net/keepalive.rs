//! TCP keep-alive: detects peers that have vanished. A peer whose network was cut sends neither an end nor a reset.
//!
//! A silent peer gets its first probe after half of the timeout, and then one after each eighth. All bytes on the way
//! and all probes have to be acknowledged within the timeout.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// The timeout of connections that have no setting for it, and of listeners until their setting is known.
pub const VANISHED_TIMEOUT: Duration = Duration::from_secs(240);
/// The shortest timeout. The system counts the time between two probes in whole seconds.
pub const MIN_VANISHED_TIMEOUT: Duration = Duration::from_secs(8);
/// The first probe follows after the timeout divided by this.
const FIRST_PROBE: u32 = 2;
/// Further probes follow each other after the timeout divided by this.
const NEXT_PROBE: u32 = 8;

/// Makes the system close a connection whose peer acknowledges nothing for `timeout` (8 s or more). Connections that a
/// listener accepts inherit it.
///
/// # Errors
/// The system's.
pub fn watch_for_vanished(socket: SockRef<'_>, timeout: Duration) -> io::Result<()> {
    let keep_alive = TcpKeepalive::new().with_time(timeout / FIRST_PROBE).with_interval(timeout / NEXT_PROBE);
    socket.set_tcp_keepalive(&keep_alive)?;
    // Without this, bytes on the way are sent again for a quarter of an hour. It also replaces the number of
    // unanswered probes after which a connection is closed (tcp(7)).
    socket.set_tcp_user_timeout(Some(timeout))
}
