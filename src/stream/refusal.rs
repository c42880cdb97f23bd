//! Refusing and closing a client's stream so that the client receives the last bytes.
//!
//! If a socket is closed while it has unread bytes, the system resets the connection, and a reset destroys the last bytes
//! on their way to the client. So every stream is closed in stages (RFC 9112, section 9.6), by [`close_in_stages`]:
//!
//! ```text
//!  last bytes written ──▶ sending side closed ──▶ what the client still sends is read and discarded ──▶ closed
//!                         (in TLS: close_notify)  until it closes, or a bound is reached
//! ```

use std::{future::poll_fn, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{Stream, io::write_all};
use crate::{limits::budget::LITTLE, runtime::scratch, wire::reason::Reason};

/// Bounds of what is read and discarded before a stream is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosingBounds {
    /// How long all of it may take, with the closing of the sending side.
    total: Duration,
    /// How long the client may send nothing.
    pause: Duration,
    /// How many bytes are read. The last read may exceed it.
    bytes: usize,
}

impl ClosingBounds {
    /// For a client of Sametime. A polling client asks for the last bytes within a second and acknowledges them within
    /// another one.
    pub const SESSION: Self = Self { total: Duration::from_secs(3), pause: Duration::from_secs(3), bytes: 256 * 1024 };
    /// For an HTTP client, which may send a long body before it reads its response. Its connection counts meanwhile.
    pub const RESPONSE: Self =
        Self { total: Duration::from_secs(30), pause: Duration::from_secs(5), bytes: 64 * 1024 * 1024 };
}

/// Sends a farewell message with `reason` (DestroyCnl on the master channel), then closes. Takes a bounded time and
/// reads a bounded number of bytes. Does nothing if the client is gone already.
pub async fn refuse(mut stream: Stream, reason: Reason) {
    let sent = timeout(ClosingBounds::SESSION.total, write_all(&mut stream, &reason.destroy())).await;
    if matches!(sent, Ok(Ok(()))) {
        linger(stream).await;
    }
}

/// Closes the stream of a client of Sametime, whose last bytes were written, in stages.
pub async fn linger(stream: Stream) {
    close_in_stages(stream, ClosingBounds::SESSION).await;
}

/// Closes a stream whose last bytes were written: closes the sending side, and reads within `bounds` what the client still
/// sends. See the module's page.
pub async fn close_in_stages<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bounds: ClosingBounds) {
    let _ = timeout(bounds.total, async {
        stream.shutdown().await?;
        let mut left = bounds.bytes;
        while left > 0 {
            let read = poll_fn(|cx| scratch::poll_read_some(&mut stream, cx, LITTLE, |bytes, _| bytes.len()));
            match timeout(bounds.pause, read).await {
                Ok(Ok(Some(n))) => left = left.saturating_sub(n),
                Ok(Ok(None)) | Err(_) => break,
                Ok(Err(error)) => return Err(error),
            }
        }
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, duplex},
        time::{Instant, sleep},
    };

    use super::*;

    /// How long a stream takes to close whose other side sends `piece` every `interval` for ever.
    async fn closing_time(bounds: ClosingBounds, piece: usize, interval: Duration) -> Duration {
        let (near, mut far) = duplex(64 * 1024);
        let began = Instant::now();
        let sending = async {
            while far.write_all(&vec![b'x'; piece]).await.is_ok() {
                sleep(interval).await;
            }
        };
        let closing = async {
            close_in_stages(near, bounds).await;
            began.elapsed()
        };
        tokio::join!(closing, sending).0
    }

    #[tokio::test(start_paused = true)]
    async fn closing_takes_a_bounded_time() {
        for bounds in [ClosingBounds::SESSION, ClosingBounds::RESPONSE] {
            let dripping = closing_time(bounds, 1, Duration::from_millis(100)).await;
            assert!(dripping >= bounds.total && dripping < bounds.total + Duration::from_secs(1), "{dripping:?}");
            let silent = closing_time(bounds, 1, Duration::from_secs(100)).await;
            assert!(silent <= bounds.pause + Duration::from_millis(10), "{silent:?}");
            // The clock stands still while there is something to read.
            assert_eq!(closing_time(bounds, 64 * 1024, Duration::ZERO).await.as_secs(), 0, "a flood");
        }
    }

    #[tokio::test]
    async fn a_peer_that_closes_has_read_the_last_bytes() {
        let (mut near, mut far) = duplex(64);
        near.write_all(b"last").await.expect("room");
        let reading = async {
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.expect("the end");
            drop(far);
            read
        };
        let ((), read) = tokio::join!(close_in_stages(near, ClosingBounds::RESPONSE), reading);
        assert_eq!(read, b"last");
    }
}
