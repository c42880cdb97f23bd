//! What the POST requests of a streaming session brought, until the core has read it. No socket, no lock, no clock.
//!
//! ```text
//!            a request waits for tunnel.session_timeout
//!   open ───────────────────────────────────────────────▶ overdue
//!     │                                                       │
//!     └──────────────── the core lets the session go ─────────┴──────▶ over ── 15 s ──▶ forgotten
//! ```

use std::{collections::VecDeque, mem, time::Duration};

use tokio::{io::ReadBuf, time::Instant};

use crate::{limits::budget::HeldBytes, telemetry::outcome::TunnelOutcome};

/// How many requests of one session may wait at once. A client sends one, and waits for its response.
const MOST_WAITING: usize = 4;

/// The bytes that one request brought.
pub(in crate::ingress::tunnel) struct Upload {
    /// The body of the request.
    pub(in crate::ingress::tunnel) body: Vec<u8>,
    /// Where in the body the bytes for the Community begin.
    pub(in crate::ingress::tunnel) at: usize,
    /// Counts the body until it has been read.
    pub(in crate::ingress::tunnel) _held: HeldBytes,
}

/// A request whose bytes the core has not read to their end.
struct WaitingUpload {
    upload: Upload,
    since: Instant,
}

/// The number of a request in its session, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UploadNumber(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InboxState {
    Open,
    /// The Community takes nothing: the session ends.
    Overdue,
    /// The core has let the session go.
    Over {
        since: Instant,
    },
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum InboxRead {
    /// Bytes, which are in the buffer now.
    Bytes,
    /// Nothing yet.
    Empty,
    /// The session has to end: a request has waited too long for the Community.
    Overdue,
}

/// The requests of one session that wait for the core, in the order of their arrival.
pub(super) struct Inbox {
    waiting: VecDeque<WaitingUpload>,
    arrived: UploadNumber,
    taken: UploadNumber,
    /// Whether the core has read something since the last check.
    progresses: bool,
    state: InboxState,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            arrived: UploadNumber(0),
            taken: UploadNumber(0),
            progresses: false,
            state: InboxState::Open,
        }
    }

    /// Takes the bytes of a request, which keep the place of their arrival.
    ///
    /// # Errors
    /// What the request is answered with instead. Its bytes are not taken then.
    pub(super) fn arrive(&mut self, upload: Upload, now: Instant) -> Result<UploadNumber, TunnelOutcome> {
        match self.state {
            InboxState::Open if upload.at >= upload.body.len() => return Err(TunnelOutcome::Taken),
            InboxState::Open if self.waiting.len() < MOST_WAITING => (),
            InboxState::Open | InboxState::Overdue => return Err(TunnelOutcome::Busy),
            InboxState::Over { .. } => return Err(TunnelOutcome::AfterEnd),
        }
        self.arrived.0 += 1;
        self.waiting.push_back(WaitingUpload { upload, since: now });
        Ok(self.arrived)
    }

    /// What the request of this number is answered with. `None`: it has to wait.
    pub(super) fn outcome(&self, number: UploadNumber) -> Option<TunnelOutcome> {
        match self.state {
            _ if number <= self.taken => Some(TunnelOutcome::Taken),
            InboxState::Open => None,
            InboxState::Overdue => Some(TunnelOutcome::Busy),
            InboxState::Over { .. } => Some(TunnelOutcome::AfterEnd),
        }
    }

    /// Reads into `buf`. The second value: whether a request's bytes have been read to their end.
    pub(super) fn read(&mut self, buf: &mut ReadBuf<'_>) -> (InboxRead, bool) {
        if self.state == InboxState::Overdue {
            return (InboxRead::Overdue, false);
        }
        let Some(WaitingUpload { upload, .. }) = self.waiting.front_mut() else { return (InboxRead::Empty, false) };
        let left = &upload.body[upload.at..];
        let n = left.len().min(buf.remaining());
        buf.put_slice(&left[..n]);
        upload.at += n;
        self.progresses = true;
        let is_whole = upload.at == upload.body.len();
        if is_whole {
            self.waiting.pop_front();
            self.taken.0 += 1;
            if self.waiting.is_empty() {
                // An idle session has no buffer.
                self.waiting = VecDeque::new();
            }
        }
        (InboxRead::Bytes, is_whole)
    }

    /// Whether the session has to end because the Community takes nothing.
    pub(super) fn is_overdue(&self) -> bool {
        self.state == InboxState::Overdue
    }

    /// The core has let the session go.
    pub(super) fn end(&mut self, now: Instant) {
        self.state = InboxState::Over { since: now };
        self.waiting = VecDeque::new();
    }

    /// Marks the session as overdue if a request has waited for `timeout`, and nothing was read of it. Returns whether
    /// that has just happened. The time of a request that is read bit by bit begins anew with each check.
    pub(super) fn check(&mut self, now: Instant, timeout: Duration) -> bool {
        if let (true, Some(first)) = (mem::take(&mut self.progresses), self.waiting.front_mut()) {
            first.since = now;
        }
        let is_late = |first: &WaitingUpload| now.duration_since(first.since) >= timeout;
        let becomes_overdue = self.state == InboxState::Open && self.waiting.front().is_some_and(is_late);
        if becomes_overdue {
            self.state = InboxState::Overdue;
        }
        becomes_overdue
    }

    /// Whether the session can be forgotten: it has been over for `linger`.
    pub(super) fn is_forgotten(&self, now: Instant, linger: Duration) -> bool {
        matches!(self.state, InboxState::Over { since } if now.duration_since(since) >= linger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Budget;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn upload(bytes: &[u8]) -> Upload {
        let held = HeldBytes::none(&Budget::new(usize::MAX, 0, &[]), [127, 0, 0, 1].into());
        Upload { body: [b"head", bytes].concat(), at: 4, _held: held }
    }

    fn read(inbox: &mut Inbox, most: usize) -> (InboxRead, bool, Vec<u8>) {
        let mut bytes = vec![0; most];
        let mut buf = ReadBuf::new(&mut bytes);
        let (read, is_whole) = inbox.read(&mut buf);
        (read, is_whole, buf.filled().to_vec())
    }

    #[tokio::test]
    async fn requests_are_read_in_the_order_of_their_arrival_and_answered_when_read() {
        let (mut inbox, now) = (Inbox::new(), Instant::now());
        let first = inbox.arrive(upload(b"abc"), now).expect("room");
        let second = inbox.arrive(upload(b"de"), now).expect("room");
        assert_eq!(read(&mut inbox, 2), (InboxRead::Bytes, false, b"ab".to_vec()));
        assert_eq!(inbox.outcome(first), None, "one byte is left");
        assert_eq!(read(&mut inbox, 9), (InboxRead::Bytes, true, b"c".to_vec()));
        assert_eq!((inbox.outcome(first), inbox.outcome(second)), (Some(TunnelOutcome::Taken), None));
        assert_eq!(read(&mut inbox, 9), (InboxRead::Bytes, true, b"de".to_vec()));
        assert_eq!(inbox.outcome(second), Some(TunnelOutcome::Taken));
        assert_eq!(read(&mut inbox, 9), (InboxRead::Empty, false, vec![]));
        assert_eq!(inbox.waiting.capacity(), 0, "an idle session has no buffer");
    }

    #[tokio::test]
    async fn few_requests_wait_at_once() {
        let (mut inbox, now) = (Inbox::new(), Instant::now());
        for _ in 0..MOST_WAITING {
            inbox.arrive(upload(b"x"), now).expect("room");
        }
        assert_eq!(inbox.arrive(upload(b"x"), now), Err(TunnelOutcome::Busy));
        assert_eq!(inbox.arrive(upload(b""), now), Err(TunnelOutcome::Taken), "it brings nothing");
        read(&mut inbox, 9);
        inbox.arrive(upload(b"x"), now).expect("room again");
    }

    #[tokio::test]
    async fn a_request_that_waits_too_long_ends_the_session() {
        let (mut inbox, now) = (Inbox::new(), Instant::now());
        assert!(!inbox.check(now + 2 * TIMEOUT, TIMEOUT), "nothing waits");
        let number = inbox.arrive(upload(b"x"), now).expect("room");
        assert!(!inbox.check(now + TIMEOUT / 2, TIMEOUT));
        let later = inbox.arrive(upload(b"y"), now).expect("room");
        read(&mut inbox, 1);
        assert!(!inbox.check(now + TIMEOUT, TIMEOUT), "the first one was read, and the second one is the first now");
        assert_eq!((inbox.outcome(number), inbox.outcome(later)), (Some(TunnelOutcome::Taken), None));
        let (number, now) = (later, now + TIMEOUT);
        assert!(inbox.check(now + TIMEOUT, TIMEOUT));
        assert!(!inbox.check(now + TIMEOUT, TIMEOUT), "once");
        assert_eq!(inbox.outcome(number), Some(TunnelOutcome::Busy));
        assert_eq!(read(&mut inbox, 9), (InboxRead::Overdue, false, vec![]));
        assert_eq!(inbox.arrive(upload(b"x"), now), Err(TunnelOutcome::Busy));
    }

    #[tokio::test]
    async fn the_last_request_is_answered_after_the_end() {
        let (mut inbox, now) = (Inbox::new(), Instant::now());
        let number = inbox.arrive(upload(b"x"), now).expect("room");
        inbox.end(now);
        assert_eq!(inbox.outcome(number), Some(TunnelOutcome::AfterEnd));
        assert_eq!(inbox.arrive(upload(b"x"), now), Err(TunnelOutcome::AfterEnd));
        assert!(!inbox.is_forgotten(now, TIMEOUT));
        assert!(inbox.is_forgotten(now + TIMEOUT, TIMEOUT));
    }
}
