//! Ending a client's stream so that it reads our last words; noticing that a peer is gone.

use std::{future::poll_fn, io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{Stream, budget::LITTLE, scratch, write_all};
use crate::wire::reason::Reason;

/// How long a client that is being closed may take to read our last words. A polling client
/// asks for them within a second, and says within another that it has them.
const LINGER: Duration = Duration::from_secs(3);
/// How much a client that is being closed may still send before it is cut off, in bytes.
const LINGER_BYTES: usize = 256 * 1024;

/// Has the kernel ask a peer that is silent whether it is there, and give one up that says nothing, or
/// takes nothing, for `after` (8 s at the least): a network that was cut sends no end.
///
/// # Errors
/// The system's.
pub fn note_vanished(socket: SockRef<'_>, after: Duration) -> io::Result<()> {
    let keep_alive = TcpKeepalive::new().with_time(after / 2).with_interval(after / 8);
    socket.set_tcp_keepalive(&keep_alive)?;
    // Without it, bytes that are on their way are sent again for a quarter of an hour. It takes the place of
    // a count of unanswered probes, too (tcp(7)).
    socket.set_tcp_user_timeout(Some(after))
}

/// Tells the client why in its own protocol (DestroyCnl on the master channel), then closes.
/// Bounded in time and bytes; a client that is gone already is no error.
pub async fn refuse(mut stream: Stream, reason: Reason) {
    let told = timeout(LINGER, write_all(&mut stream, &reason.destroy())).await;
    if matches!(told, Ok(Ok(()))) {
        linger(stream).await;
    }
}

/// Closes after reading for a moment: a socket closed with unread bytes is reset, and a reset
/// takes our last words from the client.
pub async fn linger(mut stream: Stream) {
    let _ = timeout(LINGER, async {
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        while left > 0 {
            let read = poll_fn(|cx| scratch::poll_read_some(&mut stream, cx, LITTLE, |bytes, _| bytes.len()));
            match read.await? {
                None => break,
                Some(n) => left = left.saturating_sub(n),
            }
        }
        io::Result::Ok(())
    })
    .await;
}
