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
    wire::frame::{FrameError, Relayable, Scanner},
};

/// One direction of a relay.
///
/// ```text
///   the sender      open ──────────── has closed, or failed ────────────► ended
///
///   the receiver    open ──► finishing ──► shut down         (the kept bytes are written, then its stream is shut down)
///                     │          │
///                     └──────────┴─── has failed ───► failed
/// ```
///
/// What the sender sends is relayed while the receiver is open, and discarded afterwards. When the sender has ended, the
/// receiver is finishing at once: it is open only as long as the sender is.
#[derive(Debug, Default)]
pub(super) struct RelayDirection {
    /// Follows the frames.
    pub(super) scanner: Scanner,
    /// Bytes that the receiver has not accepted yet. At most one read, and a farewell message.
    pub(super) kept: Vec<u8>,
    /// How many of the kept bytes it has accepted since: `0 <= taken <= kept.len()`.
    taken: u32,
    sender_has_ended: bool,
    receiver: Receiver,
    /// All bytes that were relayed so far, those that are kept among them.
    pub(super) bytes: u64,
}

/// See the diagram of [`RelayDirection`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Receiver {
    #[default]
    Open,
    Finishing,
    ShutDown,
    Failed,
}

/// What has happened in a direction.
#[derive(Debug)]
pub(super) enum RelayEvent {
    /// The sender has closed.
    SenderClosed,
    /// The sender's stream failed.
    SenderFailed(io::Error),
    /// The receiver's stream failed.
    ReceiverFailed(io::Error),
    /// The sender sent an invalid frame. Everything before it was relayed, and nothing after it will be.
    InvalidFrame(FrameError),
    /// Bytes of the sender were discarded.
    Discarded,
}

impl RelayDirection {
    /// A direction whose first bytes have been read already.
    pub(super) fn with_first(first: Vec<u8>) -> Self {
        Self { kept: first, ..Self::default() }
    }

    /// Relays bytes until one of the streams is not ready, or something happens. `other_is_over` is whether the
    /// opposite direction is over, `most` is how many bytes may be read at once, and `follow` follows the frames of the
    /// bytes that were read.
    pub(super) fn poll(
        &mut self,
        other_is_over: bool,
        (from, to): (&mut Stream, &mut Stream),
        cx: &mut Context<'_>,
        most: usize,
        mut follow: impl FnMut(&mut Scanner, &[u8]) -> Result<(), (usize, FrameError)>,
    ) -> Poll<RelayEvent> {
        while self.receiver == Receiver::Open {
            if let Err(error) = ready!(self.poll_kept(to, cx)) {
                self.fail();
                return Poll::Ready(RelayEvent::ReceiverFailed(error));
            }
            let (scanner, kept) = (&mut self.scanner, &mut self.kept);
            let read = scratch::poll_read_some(from, cx, most, |bytes, cx| {
                let before = scanner.held_back();
                let followed = follow(scanner, bytes);
                let Relayable { before, bytes: valid } = Relayable::new(before, bytes, followed, scanner);
                let written = if !before.is_empty() {
                    // Rare: they are written together, as the kept bytes.
                    kept.extend_from_slice(before.as_ref());
                    Ok(0)
                } else if valid.is_empty() {
                    Ok(0)
                } else {
                    match Pin::new(&mut *to).poll_write(cx, valid) {
                        Poll::Ready(written) => written,
                        Poll::Pending => Ok(0),
                    }
                };
                if let Ok(n) = written {
                    kept.extend_from_slice(&valid[n..]);
                }
                (before.as_ref().len() + valid.len(), written, followed)
            });
            match ready!(read) {
                Ok(Some((valid, written, followed))) => {
                    self.bytes += valid as u64;
                    if let Err(error) = written {
                        self.fail();
                        return Poll::Ready(RelayEvent::ReceiverFailed(error));
                    }
                    if let Err((_, error)) = followed {
                        self.finish();
                        return Poll::Ready(RelayEvent::InvalidFrame(error));
                    }
                }
                Ok(None) => return Poll::Ready(self.sender_ends(Ok(()))),
                Err(error) => return Poll::Ready(self.sender_ends(Err(error))),
            }
        }
        self.poll_end(other_is_over, (from, to), cx, most)
    }

    /// Finishes the receiver, and discards what the sender still sends.
    fn poll_end(
        &mut self,
        other_is_over: bool,
        (from, to): (&mut Stream, &mut Stream),
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<RelayEvent> {
        if self.receiver == Receiver::Finishing {
            match self.poll_finish(other_is_over, to, cx) {
                Poll::Pending => (),
                Poll::Ready(Ok(())) => self.receiver = Receiver::ShutDown,
                Poll::Ready(Err(error)) => {
                    self.fail();
                    return Poll::Ready(RelayEvent::ReceiverFailed(error));
                }
            }
        }
        if self.sender_has_ended {
            return Poll::Pending;
        }
        let read = ready!(scratch::poll_read_some(from, cx, most, |_, _| ()));
        Poll::Ready(match read {
            Ok(Some(())) => RelayEvent::Discarded,
            Ok(None) => self.sender_ends(Ok(())),
            Err(error) => self.sender_ends(Err(error)),
        })
    }

    fn poll_finish(&mut self, other_is_over: bool, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_kept(to, cx))?;
        // If the other direction is over, too, both streams are dropped next, which closes a TCP stream without the
        // system call of a shutdown.
        if other_is_over && self.sender_has_ended && matches!(to, Stream::Tcp(_)) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(to).poll_shutdown(cx)
    }

    fn sender_ends(&mut self, read: io::Result<()>) -> RelayEvent {
        self.end_sender();
        match read {
            Err(error) if !is_truncation(&error) => RelayEvent::SenderFailed(error),
            Ok(()) | Err(_) => RelayEvent::SenderClosed,
        }
    }

    /// Notes that the sender has ended.
    pub(super) fn end_sender(&mut self) {
        self.sender_has_ended = true;
        self.finish();
    }

    /// Relays nothing any more. The receiver gets the kept bytes, and then its stream is shut down.
    pub(super) fn finish(&mut self) {
        if self.receiver == Receiver::Open {
            self.receiver = Receiver::Finishing;
            // The receiver has nothing of that frame.
            self.scanner.forget_held_back();
        }
    }

    /// Notes that the receiver's stream has failed.
    pub(super) fn fail(&mut self) {
        self.receiver = Receiver::Failed;
        (self.kept, self.taken) = (Vec::new(), 0);
    }

    /// Sends the receiver a message of this program after everything else, unless its stream is shut down or failed.
    pub(super) fn append(&mut self, message: &[u8]) {
        if matches!(self.receiver, Receiver::Open | Receiver::Finishing) {
            self.kept.extend_from_slice(message);
        }
    }

    /// Whether bytes are relayed.
    pub(super) fn relays(&self) -> bool {
        self.receiver == Receiver::Open
    }

    /// Whether the sender has ended.
    pub(super) fn sender_has_ended(&self) -> bool {
        self.sender_has_ended
    }

    /// Whether the receiver gets nothing any more.
    pub(super) fn receiver_is_done(&self) -> bool {
        matches!(self.receiver, Receiver::ShutDown | Receiver::Failed)
    }

    /// Whether the receiver's stream has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.receiver == Receiver::Failed
    }

    /// Whether there is nothing to do any more.
    pub(super) fn is_over(&self) -> bool {
        self.sender_has_ended && self.receiver_is_done()
    }

    /// A number that changes when the receiver accepts bytes.
    pub(super) fn position(&self) -> u64 {
        self.bytes.wrapping_add(u64::from(self.taken)).wrapping_sub(self.kept.len() as u64)
    }

    /// Counts bytes that were read before there was a link, and follows their frames. Bytes from an invalid frame on,
    /// or from a length that is not whole, are removed.
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
        let before = self.scanner.held_back();
        let followed = facts.follow(direction, &mut self.scanner, bytes, observer);
        let Relayable { before, bytes: valid } = Relayable::new(before, bytes, followed, &self.scanner);
        let valid = valid.len();
        bytes.truncate(valid);
        bytes.splice(..0, before.as_ref().iter().copied());
        self.bytes += bytes.len() as u64;
        followed.map_err(|(_, error)| {
            // The receiver has nothing of that frame.
            self.scanner.forget_held_back();
            error
        })
    }

    /// Writes the kept bytes, and flushes the receiver's stream, which may have a buffer of its own.
    fn poll_kept(&mut self, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
    use crate::{mux::tests::ticket, stream::StreamError, telemetry::Telemetry, wire::frame};

    /// A stream in memory that takes `size` bytes, and its far end.
    fn stream(size: usize) -> (Stream, DuplexStream) {
        let (near, far) = duplex(size);
        (Stream::other(near), far)
    }

    async fn step(direction: &mut RelayDirection, from: &mut Stream, to: &mut Stream) -> Poll<RelayEvent> {
        let follow = |scanner: &mut Scanner, bytes: &[u8]| scanner.scan(bytes, 100, |_| ());
        poll_fn(|cx| Poll::Ready(direction.poll(false, (&mut *from, &mut *to), cx, scratch::SIZE, follow))).await
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

    #[test]
    fn bytes_that_were_read_before_there_was_a_link_are_counted_up_to_an_invalid_frame() {
        let telemetry = Telemetry::new("0");
        let ticket = ticket(&telemetry);
        let observer = FrameObserver { ticket: &ticket, telemetry: &telemetry, accepted: std::time::Instant::now() };
        let (mut direction, mut facts) = (RelayDirection::default(), SessionFacts::new(1 << 20));
        let mut take = |bytes: &[u8]| {
            let mut taken = bytes.to_vec();
            let result = direction.take(Direction::ToCommunity, &mut taken, &mut facts, observer);
            (taken.len(), direction.bytes, result.is_ok(), direction.scanner.at_boundary())
        };
        let message = frame::build(4, 1, &[7; 20]);
        assert_eq!(take(&message), (32, 32, true, true));
        assert_eq!(take(&[&message[..], &[0, 0]].concat()), (32, 64, true, false), "the length is not whole");
        assert_eq!(take(&[0, 1]), (0, 64, false, true), "and now it is known to be too short");
    }

    #[tokio::test]
    async fn what_was_kept_and_written_takes_no_memory() {
        let ((mut from, _sender), (mut to, mut receiver)) = (stream(1000), stream(1000));
        let message = frame::build(4, 1, &[7; 20]);
        let mut direction = RelayDirection::with_first(message.clone());
        assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
        assert_eq!((direction.kept.capacity(), direction.taken), (0, 0));
        let mut received = vec![0; 32];
        receiver.read_exact(&mut received).await.expect("relayed");
        assert_eq!(received, message);
    }

    #[tokio::test]
    async fn a_stream_with_an_end_of_its_own_is_shut_down_although_the_other_direction_is_over() {
        for other_is_over in [false, true] {
            let ((mut from, sender), (mut to, mut receiver)) = (stream(1000), stream(1000));
            let mut direction = RelayDirection::default();
            drop(sender);
            let closed = step(&mut direction, &mut from, &mut to).await;
            assert!(matches!(closed, Poll::Ready(RelayEvent::SenderClosed)));
            let follow = |_: &mut Scanner, _: &[u8]| Ok(());
            let polled = poll_fn(|cx| {
                Poll::Ready(direction.poll(other_is_over, (&mut from, &mut to), cx, scratch::SIZE, follow))
            });
            assert!(polled.await.is_pending() && direction.is_over());
            assert_eq!(receiver.read(&mut [0; 10]).await.expect("the end"), 0);
        }
    }

    #[tokio::test]
    async fn a_receiver_that_has_failed_gets_nothing_any_more() {
        let ((mut from, mut sender), (mut to, receiver)) = (stream(1000), stream(10));
        let mut direction = RelayDirection::default();
        sender.write_all(&frame::build(4, 1, &[7; 20])).await.expect("room");
        assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
        assert!(!direction.has_failed());
        drop(receiver);
        let failed = step(&mut direction, &mut from, &mut to).await;
        assert!(matches!(failed, Poll::Ready(RelayEvent::ReceiverFailed(_))), "{failed:?}");
        assert!(direction.has_failed() && direction.receiver_is_done() && direction.kept.is_empty());
    }

    #[test]
    fn a_stream_that_is_cut_off_has_closed_and_another_error_is_a_failure() {
        let cut_off = RelayDirection::default().sender_ends(Err(StreamError::Truncated.into()));
        assert!(matches!(cut_off, RelayEvent::SenderClosed), "{cut_off:?}");
        let failed = RelayDirection::default().sender_ends(Err(rustix::io::Errno::CONNRESET.into()));
        assert!(matches!(failed, RelayEvent::SenderFailed(_)), "{failed:?}");
    }

    #[tokio::test]
    async fn the_receiver_gets_everything_before_an_invalid_frame() {
        let ((mut from, mut sender), (mut to, mut receiver)) = (stream(1000), stream(1000));
        let (mut direction, message) = (RelayDirection::default(), frame::build(4, 1, &[7; 20]));
        sender.write_all(&[&message[..], &[0, 0, 0, 1]].concat()).await.expect("room");
        let step = step(&mut direction, &mut from, &mut to).await;
        assert!(matches!(step, Poll::Ready(RelayEvent::InvalidFrame(FrameError::TooShort { length: 1 }))));
        drop(to);
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).await.expect("relayed");
        assert_eq!(received, message);
    }

    #[tokio::test]
    async fn the_receiver_gets_no_byte_of_an_invalid_frame_however_it_is_cut() {
        let message = frame::build(4, 1, &[7; 20]);
        for cut in 0..4 {
            let ((mut from, mut sender), (mut to, mut receiver)) = (stream(1000), stream(1000));
            let mut direction = RelayDirection::default();
            let bytes = [&message[..], &message, &[0, 0, 0, 1]].concat();
            let (first, second) = bytes.split_at(2 * message.len() + cut);
            sender.write_all(first).await.expect("room");
            assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
            sender.write_all(second).await.expect("room");
            let event = step(&mut direction, &mut from, &mut to).await;
            assert!(matches!(event, Poll::Ready(RelayEvent::InvalidFrame(_))), "{cut}: {event:?}");
            assert!(direction.scanner.at_boundary(), "{cut}: a farewell message is understood");
            assert_eq!(direction.bytes, 64, "{cut}");
            assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
            drop(to);
            let mut received = Vec::new();
            receiver.read_to_end(&mut received).await.expect("relayed");
            assert_eq!(received, [&message[..], &message].concat(), "{cut}");
        }
    }

    #[tokio::test]
    async fn a_length_that_comes_in_pieces_is_relayed_when_it_is_whole() {
        let ((mut from, mut sender), (mut to, mut receiver)) = (stream(1000), stream(1000));
        let (mut direction, message) = (RelayDirection::default(), frame::build(4, 1, &[7; 20]));
        let bytes = [&[frame::KEEP_ALIVE][..], &message, &message].concat();
        for byte in &bytes {
            sender.write_all(&[*byte]).await.expect("room");
            assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
        }
        assert_eq!(direction.bytes, bytes.len() as u64);
        let mut received = vec![0; bytes.len()];
        receiver.read_exact(&mut received).await.expect("relayed");
        assert_eq!(received, bytes);
    }

    #[tokio::test]
    async fn a_sender_that_closes_ends_the_direction_after_its_last_bytes() {
        let ((mut from, mut sender), (mut to, mut receiver)) = (stream(1000), stream(10));
        let mut direction = RelayDirection::default();
        sender.write_all(&frame::build(4, 1, &[])).await.expect("room");
        drop(sender);
        let closed = step(&mut direction, &mut from, &mut to).await;
        assert!(closed.is_pending(), "{closed:?}: the sender is not read before the receiver has room");
        receiver.read_exact(&mut [0; 10]).await.expect("relayed");
        assert!(matches!(step(&mut direction, &mut from, &mut to).await, Poll::Ready(RelayEvent::SenderClosed)));
        assert!(direction.sender_has_ended() && !direction.relays() && !direction.is_over());
        assert!(step(&mut direction, &mut from, &mut to).await.is_pending());
        assert!(direction.is_over() && !direction.has_failed());
        let mut rest = Vec::new();
        receiver.read_to_end(&mut rest).await.expect("relayed");
        assert_eq!(rest.len(), 2);
    }
}
