//! An alert to a client that has not made its handshake.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::{
    stream::{ClosingBounds, close_in_stages},
    telemetry::outcome::TlsAlert,
};

/// How long a client may take to receive an alert.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends a fatal alert without encryption, and closes.
pub(in crate::ingress) async fn send_alert<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, alert: TlsAlert) {
    // A record of type alert, in the version that every client reads (RFC 8446, 5.1), with 2 bytes: fatal, and which one.
    let record = [0x15, 3, 1, 0, 2, 2, alert as u8];
    if let Ok(Ok(())) = timeout(WRITE_TIMEOUT, stream.write_all(&record)).await {
        close_in_stages(stream, ClosingBounds::SESSION).await;
    }
}
