//! One direction of a relay: from a sender's stream to a receiver's stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::{
    end::is_truncation,
    facts::{FrameObserver, SessionFacts},
};
use crate::{
    runtime::scratch,
    stream::Stream,
    telemetry::Direction,
    wire::frame::{FrameError, Scanner},
};

/// One direction of a relay.
#[derive(Debug, Default)]
pub(super) struct RelayDirection {
    /// Follows the frames.
    pub(super) scanner: Scanner,
    /// Bytes that the receiver has not accepted yet. At most one read, and a farewell message.
    pub(super) kept: Vec<u8>,
    /// How many of the kept bytes it has accepted since: `0 <= taken <= kept.len()`.
    taken: u32,
    /// All bytes so far.
    pub(super) bytes: u64,
    pub(super) state: DirectionState,
}

/// ```text
///          the sender has closed              the receiver's stream is closed
///   open ────────────────────────► ending ──────────────────────────────────► ended
/// ```
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectionState {
    /// Bytes are relayed.
    #[default]
    Open,
    /// The sender has closed. The receiver gets the kept bytes, and then its stream is closed.
    Ending,
    /// The receiver's stream is closed.
    Ended,
}

/// Why a direction relays nothing any more.
pub(super) enum Step {
    /// The sender has closed, and the receiver's stream is closed.
    Ended,
    /// The sender's stream failed.
    SenderFailed(io::Error),
    /// The receiver's stream failed.
    ReceiverFailed(io::Error),
    /// The sender sent an invalid frame. Everything before it was relayed.
    InvalidFrame(FrameError),
}

impl RelayDirection {
    /// A direction whose first bytes have been read already.
    pub(super) fn with_first(first: Vec<u8>) -> Self {
        Self { kept: first, ..Self::default() }
    }

    /// Relays bytes until one of the streams is not ready. `other` is the state of the opposite direction, `most` is
    /// how many bytes may be read at once, and `follow` follows the frames of the bytes that were read.
    pub(super) fn poll(
        &mut self,
        other: DirectionState,
        (from, to): (&mut Stream, &mut Stream),
        cx: &mut Context<'_>,
        most: usize,
        mut follow: impl FnMut(&mut Scanner, &[u8]) -> Result<(), (usize, FrameError)>,
    ) -> Poll<Step> {
        loop {
            if let Err(error) = ready!(self.poll_kept(to, cx)) {
                return Poll::Ready(Step::ReceiverFailed(error));
            }
            match self.state {
                DirectionState::Open => (),
                // The other direction has ended, too: both streams are dropped next, which closes a TCP stream without
                // the system call of a shutdown.
                DirectionState::Ending if other == DirectionState::Ended && matches!(to, Stream::Tcp(_)) => {
                    self.state = DirectionState::Ended;
                    return Poll::Ready(Step::Ended);
                }
                DirectionState::Ending => {
                    if let Err(error) = ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        return Poll::Ready(Step::ReceiverFailed(error));
                    }
                    self.state = DirectionState::Ended;
                    return Poll::Ready(Step::Ended);
                }
                DirectionState::Ended => return Poll::Ready(Step::Ended),
            }
            let (scanner, kept) = (&mut self.scanner, &mut self.kept);
            let read = scratch::poll_read_some(from, cx, most, |bytes, cx| {
                let followed = follow(scanner, bytes);
                let valid = followed.map_or_else(|(at, _)| &bytes[..at], |()| bytes);
                let written = match Pin::new(&mut *to).poll_write(cx, valid) {
                    _ if valid.is_empty() => Ok(0),
                    Poll::Ready(written) => written,
                    Poll::Pending => Ok(0),
                };
                if let Ok(n) = written {
                    kept.extend_from_slice(&valid[n..]);
                }
                (valid.len(), written, followed)
            });
            match ready!(read) {
                Ok(Some((valid, written, followed))) => {
                    self.bytes += valid as u64;
                    if let Err(error) = written {
                        return Poll::Ready(Step::ReceiverFailed(error));
                    }
                    if let Err((_, error)) = followed {
                        return Poll::Ready(Step::InvalidFrame(error));
                    }
                }
                Ok(None) => self.state = DirectionState::Ending,
                Err(error) if is_truncation(&error) => self.state = DirectionState::Ending,
                Err(error) => return Poll::Ready(Step::SenderFailed(error)),
            }
        }
    }

    /// Counts bytes that were read before there was a link, and follows their frames. Bytes from an invalid frame on
    /// are removed.
    ///
    /// # Errors
    /// The invalid frame.
    pub(super) fn take(
        &mut self,
        direction: Direction,
        bytes: &mut Vec<u8>,
        facts: &mut SessionFacts,
        observer: FrameObserver<'_>,
    ) -> Result<(), FrameError> {
        let followed = facts.follow(direction, &mut self.scanner, bytes, observer);
        if let Err((valid, _)) = followed {
            bytes.truncate(valid);
        }
        self.bytes += bytes.len() as u64;
        followed.map_err(|(_, error)| error)
    }

    /// Notes that the sender has closed before there was a link.
    pub(super) fn end(&mut self) {
        self.state = DirectionState::Ending;
    }

    /// Writes the kept bytes, and flushes the receiver's stream, which may have a buffer of its own.
    pub(super) fn poll_kept(&mut self, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while (self.taken as usize) < self.kept.len() {
            let taken = self.taken as usize;
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.kept[taken..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.taken += u32::try_from(n).unwrap_or(u32::MAX),
            }
        }
        if !self.kept.is_empty() {
            (self.kept, self.taken) = (Vec::new(), 0);
        }
        Pin::new(to).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::wire::frame;

    /// A stream in memory that takes `size` bytes, and its far end.
    fn stream(size: usize) -> (Stream, DuplexStream) {
        let (near, far) = duplex(size);
        (Stream::other(near), far)
    }

    async fn step(direction: &mut RelayDirection, from: &mut Stream, to: &mut Stream) -> Poll<Step> {
        let follow = |scanner: &mut Scanner, bytes: &[u8]| scanner.scan(bytes, 100, |_| ());
        poll_fn(|cx| {
            Poll::Ready(direction.poll(DirectionState::Open, (&mut *from, &mut *to), cx, scratch::SIZE, follow))
        })
        .await
    }

    #[tokio::test]
    async fn what_a_slow_receiver_does_not_take_is_kept_and_the_sender_waits() {
        let ((mut from, mut sender), (mut to, mut receiver)) = (stream(1000), stream(10));
        let (mut direction, message) = (RelayDirection::default(), frame::build(4, 1, &[7; 20]));
        sender.write_all(&message).await.expect("room");
        assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
        assert_eq!((direction.bytes, direction.kept.len()), (32, 22));
        sender.write_all(&message).await.expect("room");
        let mut received = vec![0; 32];
        for at in [0, 10, 20] {
            receiver.read_exact(&mut received[at..at + 10]).await.expect("relayed");
            assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
        }
        assert_eq!(direction.bytes, 64, "the next message was read when the first one was taken");
        receiver.read_exact(&mut received[30..]).await.expect("relayed");
        assert_eq!(received, message);
    }

    #[tokio::test]
    async fn the_receiver_gets_everything_before_an_invalid_frame() {
        let ((mut from, mut sender), (mut to, mut receiver)) = (stream(1000), stream(1000));
        let (mut direction, message) = (RelayDirection::default(), frame::build(4, 1, &[7; 20]));
        sender.write_all(&[&message[..], &[0, 0, 0, 1]].concat()).await.expect("room");
        let step = step(&mut direction, &mut from, &mut to).await;
        assert!(matches!(step, Poll::Ready(Step::InvalidFrame(FrameError::TooShort { length: 1 }))));
        drop(to);
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).await.expect("relayed");
        assert_eq!(received, message);
    }

    #[tokio::test]
    async fn a_sender_that_closes_ends_the_direction_after_its_last_bytes() {
        let ((mut from, mut sender), (mut to, mut receiver)) = (stream(1000), stream(10));
        let mut direction = RelayDirection::default();
        sender.write_all(&frame::build(4, 1, &[])).await.expect("room");
        drop(sender);
        assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
        receiver.read_exact(&mut [0; 10]).await.expect("relayed");
        assert!(matches!(step(&mut direction, &mut from, &mut to).await, Poll::Ready(Step::Ended)));
        assert_eq!(direction.state, DirectionState::Ended);
        let mut rest = Vec::new();
        receiver.read_to_end(&mut rest).await.expect("relayed");
        assert_eq!(rest.len(), 2);
    }
}
