//! Noticing that a peer has vanished: a network that was cut sends no end.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// Where no setting says otherwise, a peer that has vanished is given up after so long.
pub const VANISHED_TIMEOUT: Duration = Duration::from_secs(240);

/// Has the kernel ask a peer that is silent whether it is there, and give one up that says nothing, or
/// takes nothing, for `after` (8 s at the least): a network that was cut sends no end.
///
/// # Errors
/// The system's.
pub fn watch_for_vanished(socket: SockRef<'_>, after: Duration) -> io::Result<()> {
    let keep_alive = TcpKeepalive::new().with_time(after / 2).with_interval(after / 8);
    socket.set_tcp_keepalive(&keep_alive)?;
    // Without it, bytes that are on their way are sent again for a quarter of an hour. It takes the place of
    // a count of unanswered probes, too (tcp(7)).
    socket.set_tcp_user_timeout(Some(after))
}
