//! Copies between a stream of the trunk and the connection to the target.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::TrunkStream;
use crate::runtime::scratch;

/// One direction.
///
/// ```text
///   open ── the sender has closed ──► finishing ── the receiver is shut down ──► over
/// ```
/// As long as there is something that the receiver has not taken, the sender is not read.
#[derive(Default)]
struct CopyDirection {
    phase: CopyPhase,
    /// What the receiver has not taken yet, from `taken` on.
    kept: Vec<u8>,
    taken: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum CopyPhase {
    #[default]
    Open,
    Finishing,
    Over,
}

impl CopyDirection {
    fn poll<F, T>(&mut self, from: &mut F, to: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        while self.phase == CopyPhase::Open {
            while self.taken < self.kept.len() {
                self.taken += ready!(Pin::new(&mut *to).poll_write(cx, &self.kept[self.taken..]))?;
            }
            if self.taken > 0 {
                (self.kept, self.taken) = (Vec::new(), 0);
            }
            let kept = &mut self.kept;
            let read = scratch::poll_read(from, cx, |bytes, cx| {
                let written = match Pin::new(&mut *to).poll_write(cx, bytes) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => 0,
                };
                kept.extend_from_slice(&bytes[written..]);
                io::Result::Ok(())
            });
            match ready!(read)? {
                Some(written) => written?,
                None => self.phase = CopyPhase::Finishing,
            }
        }
        if self.phase == CopyPhase::Finishing {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.phase = CopyPhase::Over;
        }
        Poll::Ready(Ok(()))
    }
}

/// Copies in both directions until both have ended, or one of the streams fails. If it is that of the target, the stream
/// of the trunk is reset.
pub(super) async fn relay(mut stream: TrunkStream, mut tcp: TcpStream) {
    let (mut to_target, mut from_target) = (CopyDirection::default(), CopyDirection::default());
    let both = poll_fn(|cx| {
        let ended = to_target.poll(&mut stream, &mut tcp, cx)?;
        let answered = from_target.poll(&mut tcp, &mut stream, cx)?;
        if ended.is_ready() && answered.is_ready() { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
    });
    if both.await.is_err() {
        stream.reset();
    }
}
