//! Refusing and closing a client's stream so that the client receives the farewell message.

use std::{future::poll_fn, io, time::Duration};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{Stream, io::write_all};
use crate::{limits::budget::LITTLE, runtime::scratch, wire::reason::Reason};

/// How long a client may take to read the last bytes before its stream is closed. A polling client asks for them within
/// a second and acknowledges them within another one.
const LINGER: Duration = Duration::from_secs(3);
/// How many bytes a client may still send before its stream is closed.
const LINGER_BYTES: usize = 256 * 1024;

/// Sends a farewell message with `reason` (DestroyCnl on the master channel), then closes. Takes a bounded time and
/// reads a bounded number of bytes. Does nothing if the client is gone already.
pub async fn refuse(mut stream: Stream, reason: Reason) {
    let sent = timeout(LINGER, write_all(&mut stream, &reason.destroy())).await;
    if matches!(sent, Ok(Ok(()))) {
        linger(stream).await;
    }
}

/// Closes the sending side, and reads for up to 3 s what the client still sends. If a socket is closed while it has
/// unread bytes, the system resets the connection, and a reset destroys the last bytes on their way to the client.
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
