//! Moves a session's bytes, both ways, on one task.
//!
//! An idle session holds no buffer: bytes are read, when there are some, into a buffer that
//! all sessions of a thread share, and only what a full peer would not take is kept. A peer
//! that is full is not read for: the other side's TCP holds it back.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{io::AsyncWrite, time::Sleep};

use super::{Shared, admission::Ticket, end::End};
use crate::{
    runtime::scratch,
    stream::{Arrival, Link, Stream, StreamError, Via},
    telemetry::{Direction, Telemetry},
    wire::{
        frame::{FrameError, Head, MAX_BEFORE_LOGIN, Scanner},
        message::kind,
    },
};

/// When one side has closed: how long the other may take to follow.
const HALF_CLOSED: Duration = Duration::from_secs(30);
/// The longest frame that a Community may send: all that a length can say.
const ANY_LENGTH: u32 = 0x7FFF_FFFF;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) scanner: Scanner,
    /// Bytes that the receiver would not take yet.
    pub(super) kept: Vec<u8>,
    /// How many of them it has taken since.
    taken: u32,
    pub(super) bytes: u64,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The sender has closed; the receiver is to be told.
    Ending,
    Ended,
}

/// A session: its two streams and what is known of them. All that lasts lies here, so that the
/// task has it once.
pub(super) struct Relay {
    pub(super) shared: Arc<Shared>,
    pub(super) ticket: Ticket,
    pub(super) via: Via,
    pub(super) client: Stream,
    /// There once the session is open.
    pub(super) link: Option<Link>,
    pub(super) up: Way,
    pub(super) down: Way,
    pub(super) known: Known,
    /// Runs once one side has closed.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Whether that side was the Community.
    community_first: bool,
    registered: bool,
}

/// What a session's frames have said.
#[derive(Debug)]
pub(super) struct Known {
    max_frame: u32,
    /// The LoginAck has passed.
    logged_in: bool,
    /// The client has ended the session in its own words.
    client_said_good_bye: bool,
    /// The Community has.
    community_said_good_bye: bool,
}

impl Known {
    /// The longest frame that the client may send now.
    pub(super) fn limit(&self) -> u32 {
        if self.logged_in { self.max_frame } else { self.max_frame.min(MAX_BEFORE_LOGIN) }
    }

    fn client_frame(&mut self, head: Head) {
        if head.kind == kind::DESTROY_CNL && head.channel == 0 {
            self.client_said_good_bye = true;
        }
    }

    /// However the streams ended, a client that had said good-bye has logged out.
    fn end_of(&self, end: End) -> End {
        if self.client_said_good_bye { End::LogOut } else { end }
    }

    /// Follows the frames of `bytes` in `direction`, and counts them.
    ///
    /// # Errors
    /// A frame that is none, and how many bytes stand before it: only those are counted, and passed on.
    #[inline]
    fn follow(
        &mut self,
        direction: Direction,
        scanner: &mut Scanner,
        bytes: &[u8],
        of: Session<'_>,
    ) -> Result<(), (usize, FrameError)> {
        let (mut frames, was_logged_in) = (0, self.logged_in);
        let scanned = match direction {
            Direction::ToCommunity => scanner.scan(bytes, self.limit(), |head| {
                frames += 1;
                self.client_frame(head);
            }),
            Direction::ToClient => scanner.scan(bytes, ANY_LENGTH, |head| {
                frames += 1;
                self.community_frame(head, of.accepted, of.telemetry);
            }),
        };
        let whole = scanned.map_or_else(|(at, _)| at, |()| bytes.len());
        of.ticket.heard();
        of.telemetry.traffic.bytes(direction, whole as u64);
        if frames > 0 {
            of.telemetry.traffic.frames(direction, frames);
        }
        if self.logged_in && !was_logged_in {
            of.ticket.logged_in();
        }
        scanned
    }

    fn community_frame(&mut self, head: Head, accepted: Instant, telemetry: &Telemetry) {
        if head.channel != 0 {
            return;
        }
        match head.kind {
            kind::LOGIN_ACK if !self.logged_in => {
                self.logged_in = true;
                telemetry.sessions.login(accepted.elapsed().as_secs_f64(), true);
            }
            kind::DESTROY_CNL => {
                self.community_said_good_bye = true;
                if !self.logged_in {
                    telemetry.sessions.login(accepted.elapsed().as_secs_f64(), false);
                }
            }
            _ => (),
        }
    }
}

/// Who is told what a session's frames say.
#[derive(Clone, Copy)]
pub(super) struct Session<'a> {
    pub(super) ticket: &'a Ticket,
    pub(super) telemetry: &'a Telemetry,
    pub(super) accepted: Instant,
}

/// Where one direction came to.
enum Step {
    /// Its sender has closed and its receiver knows.
    Ended,
    /// The sender's stream broke.
    From(io::Error),
    /// The receiver's stream broke.
    To(io::Error),
    /// The sender sent a frame that is none; what stood before it has been passed on.
    FrameError(FrameError),
}

impl Way {
    /// Moves what there is until one side has to be waited for. When the `other` way has ended and this
    /// one does, the receiver is closed at once: TCP need not be told before.
    fn poll(
        &mut self,
        other: State,
        (from, to): (&mut Stream, &mut Stream),
        cx: &mut Context<'_>,
        most: usize,
        mut scan: impl FnMut(&mut Scanner, &[u8]) -> Result<(), (usize, FrameError)>,
    ) -> Poll<Step> {
        loop {
            if let Err(error) = ready!(self.poll_kept(to, cx)) {
                return Poll::Ready(Step::To(error));
            }
            match self.state {
                State::Open => (),
                State::Ending if other == State::Ended && matches!(to, Stream::Tcp(_)) => {
                    self.state = State::Ended;
                    return Poll::Ready(Step::Ended);
                }
                State::Ending => {
                    if let Err(error) = ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        return Poll::Ready(Step::To(error));
                    }
                    self.state = State::Ended;
                    return Poll::Ready(Step::Ended);
                }
                State::Ended => return Poll::Ready(Step::Ended),
            }
            let (scanner, kept) = (&mut self.scanner, &mut self.kept);
            let read = scratch::poll_read_some(from, cx, most, |bytes, cx| {
                let scanned = scan(scanner, bytes);
                let whole = scanned.map_or_else(|(at, _)| &bytes[..at], |()| bytes);
                let written = match Pin::new(&mut *to).poll_write(cx, whole) {
                    _ if whole.is_empty() => Ok(0),
                    Poll::Ready(written) => written,
                    Poll::Pending => Ok(0),
                };
                if let Ok(n) = written {
                    kept.extend_from_slice(&whole[n..]);
                }
                (whole.len(), written, scanned)
            });
            match ready!(read) {
                Ok(Some((whole, written, scanned))) => {
                    self.bytes += whole as u64;
                    if let Err(error) = written {
                        return Poll::Ready(Step::To(error));
                    }
                    if let Err((_, fault)) = scanned {
                        return Poll::Ready(Step::FrameError(fault));
                    }
                }
                Ok(None) => self.state = State::Ending,
                Err(error) if StreamError::of(&error) == Some(StreamError::Truncated) => self.state = State::Ending,
                Err(error) => return Poll::Ready(Step::From(error)),
            }
        }
    }

    /// Takes what was read before there was a link; what does not stand before a fault is cut off.
    pub(super) fn take(
        &mut self,
        direction: Direction,
        bytes: &mut Vec<u8>,
        known: &mut Known,
        of: Session<'_>,
    ) -> Result<(), FrameError> {
        let followed = known.follow(direction, &mut self.scanner, bytes, of);
        if let Err((whole, _)) = followed {
            bytes.truncate(whole);
        }
        self.bytes += bytes.len() as u64;
        followed.map_err(|(_, fault)| fault)
    }

    /// The sender has closed already.
    pub(super) fn end(&mut self) {
        self.state = State::Ending;
    }

    /// Passes on what was kept, and flushes a receiver that buffers itself.
    pub(super) fn poll_kept(&mut self, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // At most one read and the last words are kept.
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

impl Relay {
    /// A client that has just been admitted.
    pub(super) fn new(shared: Arc<Shared>, arrival: Arrival, ticket: Ticket) -> Self {
        let Arrival { stream, first, via } = arrival;
        let max_frame = shared.settings.load().max_frame;
        Self {
            shared,
            ticket,
            via,
            client: stream,
            link: None,
            up: Way { kept: first.into(), ..Way::default() },
            down: Way::default(),
            known: Known { max_frame, logged_in: false, client_said_good_bye: false, community_said_good_bye: false },
            half_closed: None,
            community_first: false,
            registered: false,
        }
    }

    /// Moves bytes until the session ends. Needs a link.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // A task has one waker for all its life: once is enough.
        if !std::mem::replace(&mut self.registered, true) {
            self.ticket.entry.poll_order(cx);
        }
        if let Some(order) = self.ticket.entry.order() {
            return Poll::Ready(End::Ordered(order));
        }
        let Some(Link { stream: link, .. }) = &mut self.link else { return Poll::Pending };
        let ticket = &self.ticket;
        let of = Session { ticket, telemetry: &self.shared.telemetry, accepted: self.via.accepted };
        let (known, most) = (&mut self.known, ticket.may_read());
        let down = self.down.poll(self.up.state, (link, &mut self.client), cx, most, |scanner, bytes| {
            known.follow(Direction::ToClient, scanner, bytes, of)
        });
        let up = self.up.poll(self.down.state, (&mut self.client, link), cx, most, |scanner, bytes| {
            known.follow(Direction::ToCommunity, scanner, bytes, of)
        });
        ticket.holds(self.up.kept.len() + self.down.kept.len());
        let end = match (up, down) {
            (Poll::Ready(Step::FrameError(fault)), _) => End::ClientFault(fault),
            (_, Poll::Ready(Step::FrameError(fault))) => End::CommunityFault(fault),
            (Poll::Ready(Step::From(error)), _) | (_, Poll::Ready(Step::To(error))) => client_broken(error, known),
            (_, Poll::Ready(Step::From(error))) | (Poll::Ready(Step::To(error)), _) => community_broken(error, known),
            (Poll::Ready(Step::Ended), Poll::Ready(Step::Ended)) => {
                known.end_of(if self.community_first { End::CommunityClosed } else { End::ClientClosed })
            }
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
            // The Community has closed and the client knows why: it has nothing to add.
            (Poll::Pending, _) if known.client_said_good_bye || known.community_said_good_bye => {
                known.end_of(End::CommunityClosed)
            }
            (up, _) => {
                let timer = self.half_closed.get_or_insert_with(|| {
                    self.community_first = up.is_pending();
                    Box::pin(tokio::time::sleep(HALF_CLOSED))
                });
                ready!(timer.as_mut().poll(cx));
                known.end_of(End::HalfClosed)
            }
        };
        Poll::Ready(end)
    }
}

pub(super) fn client_broken(error: io::Error, known: &Known) -> End {
    // No system error: the tunnel session's own word (TCP's time-out is one).
    if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() {
        return known.end_of(End::SessionTimeout);
    }
    known.end_of(End::ClientBroken(error))
}

fn community_broken(error: io::Error, known: &Known) -> End {
    known.end_of(if known.community_said_good_bye { End::CommunityClosed } else { End::CommunityBroken(error) })
}
