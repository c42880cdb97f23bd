//! Refusing and closing a client's stream so that it reads our farewell message.

use std::{future::poll_fn, io, time::Duration};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{Stream, io::write_all};
use crate::{limits::budget::LITTLE, runtime::scratch, wire::reason::Reason};

/// How long a client that is being closed may take to read our last words. A polling client
/// asks for them within a second, and says within another that it has them.
const LINGER: Duration = Duration::from_secs(3);
/// How much a client that is being closed may still send before it is cut off, in bytes.
const LINGER_BYTES: usize = 256 * 1024;

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
