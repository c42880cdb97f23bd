//! Asks the other end of a connection for a sign of life.

use std::{
    future::{pending, poll_fn},
    io,
};

use h2::{Ping, PingPong};
use tokio::time::{Interval, interval};

use super::PING_INTERVAL;

/// Sends a PING again and again. One that is not answered before the next one is due shows a broken connection.
pub(super) struct Liveness {
    /// `None`: something else has taken the PINGs of the connection, which then has no sign of life.
    ping: Option<PingPong>,
    ticks: Interval,
    is_waiting: bool,
}

impl Liveness {
    pub(super) fn of(ping: Option<PingPong>) -> Self {
        Self { ping, ticks: interval(PING_INTERVAL), is_waiting: false }
    }

    /// Waits for the answer to a PING. It may be dropped and called again at any time.
    ///
    /// # Errors
    /// The answer is missing: the connection is broken.
    pub(super) async fn answered(&mut self) -> io::Result<()> {
        loop {
            let Some(ping) = &mut self.ping else { return pending().await };
            let is_waiting = self.is_waiting;
            let pong = poll_fn(|cx| if is_waiting { ping.poll_pong(cx) } else { std::task::Poll::Pending });
            tokio::select! {
                Ok(_) = pong => {
                    self.is_waiting = false;
                    return Ok(());
                }
                _ = self.ticks.tick() => {
                    if self.is_waiting {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.is_waiting = ping.send_ping(Ping::opaque()).is_ok();
                }
            }
        }
    }

    /// Waits until the other end gives no sign of life any more. It may be dropped and called again at any time.
    pub(super) async fn lost(&mut self) {
        while self.answered().await.is_ok() {}
    }
}
