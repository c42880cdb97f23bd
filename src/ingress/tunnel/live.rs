//! One session while it lives, between the requests of its client and the byte stream of the core.
//!
//! There is no socket, no clock, no lock and no task here. Requests, the core's reads and writes, and the passing of
//! time come in as calls. What a request is answered with, and what the core reads, are return values; `None` means
//! that the caller has to wait. Who is to be woken is recorded, and taken with [`LiveSession::take_wakes`]. `handle`
//! does the waiting and the waking.
//!
//! ```text
//!                 the core shuts its stream down,
//!                 or drops it, and some bytes              the client acknowledges
//!                 are not acknowledged                     the last byte
//!   Open ────────────────────────────────────────▶ Ending ──────────────────────▶ Over
//!    │ │                                             │  ◀────────────────────────  │ │
//!    │ │                                             │     the core writes more    │ │
//!    │ └── the same, and all bytes are acknowledged ─┼───────────────────────────▶ ┘ │
//!    │                                               │                               │
//!    └───────────────────────────────────────────────┴───────────────────────────────┤
//!                                     no request within tunnel.session_timeout       │
//!                                                                                    ▼
//!                                                                                 TimedOut
//! ```
//!
//! | state | a new request | a read, when all data of the client was read | a write |
//! |---|---|---|---|
//! | Open | is answered when there is payload, or its time is up | waits | succeeds while there is room |
//! | Ending | is answered at once | waits | as in Open |
//! | Over | gets "gone" | end of the stream | as in Open |
//! | TimedOut | gets "gone" | fails with [`StreamError::SessionTimeout`] | as the read |
//!
//! Of the requests that wait, only the newest gets the payload. Each request that is received supersedes the one
//! before it, which then gets an empty response.
//!
//! **Requests have one order, that of their arrival.** A request's acknowledgement counts, and its payload goes into the
//! inbox, at the moment when it arrives; what waits is the response. So no request can overtake another one, what a
//! client that closes its connection has sent is not lost, and an acknowledgement always makes room for the Community,
//! however full the inbox is. A request that brought data has its response at once when there is payload for the
//! client. Otherwise it waits until the inbox has room: that slows the client down while the Community is slow. Only
//! when `limits.held_bytes` has no room at all is a payload not taken. Then the request, and those behind it, wait in
//! the order of their arrival, and nothing of them was taken when their client gets 503.
//!
//! **Payload for the client is carried down in any case.** Only the response to the newest request brings it, and this
//! request may have a payload of its own. If it had to wait for room until the Community reads, and the Community reads
//! no further before the client has taken what was written, both would wait for ever. So while there is payload for the
//! client, a second payload passes, and the limit of an address gives way: to eight payloads for each acknowledgement
//! of the client. The total limit never does.

use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::{
    TunnelSettings,
    response::{TunnelBody, TunnelResponse},
    session::{Accepted, RequestDigest, RequestError, TunnelSession},
    token::Token,
};
use crate::{
    limits::{
        budget::{Exception, Exceptions, HeldBytes, LITTLE},
        tally::Permit,
    },
    stream::StreamError,
    telemetry::outcome::TunnelOutcome,
    wire::tunnel::envelope::{self, TunnelKind},
};

/// A hybrid request that brought data has its response after so long, even while the Community is slow. One second
/// after a request, a client that has more data sends it in another request with the same acknowledgement. When that
/// is the same text, the two cannot be told from a request and its retry; so the client gets a new acknowledgement
/// before.
const DATA_RESPONSE: Duration = Duration::from_millis(900);
/// Bytes that a piece in the inbox takes in addition to its data.
const PIECE: usize = 64;
/// How many pieces may be in the inbox when the budget has no room, while there is payload for the client.
const MOST_PIECES: usize = 2;
/// How many payloads may exceed the limit of their address until the client acknowledges something. A client that has not
/// received a response sends a further payload about once a second.
const MOST_BEYOND: u8 = 8;
/// By how many windows the bodies of a session's requests may exceed the limit of their address while they wait.
const EXCEPTED_WINDOWS: usize = 4;

/// The state of a live session; see the module's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TunnelState {
    /// The Community may still send.
    Open,
    /// The Community has sent its last byte, and the client has not acknowledged all of them.
    Ending,
    /// The Community has sent its last byte, and the client has acknowledged all of them.
    Over,
    /// The client sent no request within `tunnel.session_timeout`.
    TimedOut,
}

/// What changes the state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The core has written bytes for the client.
    Written,
    /// A request was received, which may acknowledge bytes.
    Acknowledged,
    /// The core has shut its stream down, or has dropped it.
    CoreEnded,
    /// No request came in time.
    TimedOut,
}

impl TunnelState {
    /// The state after `event`; `unacknowledged` is the number of bytes that the client has not acknowledged then.
    fn after(self, event: Event, unacknowledged: usize) -> Self {
        match (self, event) {
            (Self::TimedOut, _) | (_, Event::TimedOut) => Self::TimedOut,
            (Self::Open, Event::Written | Event::Acknowledged) => Self::Open,
            (Self::Open, Event::CoreEnded) | (Self::Ending | Self::Over, _) if unacknowledged == 0 => Self::Over,
            (Self::Open, Event::CoreEnded) | (Self::Ending | Self::Over, _) => Self::Ending,
        }
    }
}

/// Those that wait for a change of a session. There is at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    /// The core, which reads what the client sends.
    Reader,
    /// The core, which writes to the client.
    Writer,
    /// The newest request.
    Request,
}

impl Waiter {
    /// All waiters, in the order of their numbers.
    pub(super) const ALL: [Self; 3] = [Self::Reader, Self::Writer, Self::Request];
}

/// The waiters that are to be woken: one bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wakes(u8);

impl Wakes {
    fn add(&mut self, waiter: Waiter) {
        self.0 |= 1 << waiter as u8;
    }

    pub(super) fn are_none(self) -> bool {
        self.0 == 0
    }

    pub(super) fn include(self, waiter: Waiter) -> bool {
        self.0 & 1 << waiter as u8 != 0
    }
}

/// What follows from a request that was received.
#[derive(Debug)]
pub(super) enum Received {
    /// It has its response.
    Response(TunnelResponse),
    /// It waits for its response.
    Held(HeldRequest),
    /// There is no room for its payload. When the same request is received again, it may be taken.
    NoRoom,
}

/// A request that waits for its response.
#[derive(Debug)]
pub(super) struct HeldRequest {
    number: u64,
    /// The client has sent the same request before.
    is_retry: bool,
    /// Whether it waits for room in the inbox, too.
    brought_data: bool,
    /// How long it waits for payload at most.
    pub(super) timeout: Duration,
    /// How long it waits at most, if the inbox is full when `timeout` has passed; `timeout` or longer.
    pub(super) longest: Duration,
}

/// See the module's page.
pub(super) struct LiveSession {
    session: TunnelSession,
    state: TunnelState,
    /// The core has dropped its stream. The state is not Open then.
    core_has_let_go: bool,
    wakes: Wakes,
    /// Bytes for the Community that the core has not read, in the pieces in which they arrived.
    inbox: VecDeque<Bytes>,
    /// The number of these bytes.
    inbox_len: usize,
    /// How many payloads have exceeded the limit of their address since the client last acknowledged bytes.
    beyond: u8,
    /// By how much the bodies of its requests may exceed the limit of their address; made when it is first needed.
    exceptions: Option<Arc<Exceptions>>,
    /// Requests whose payload had no room, in the order of their arrival. No other payload is taken before theirs.
    without_room: VecDeque<RequestDigest>,
    /// The number of the newest request.
    newest: u64,
    /// Requests that have arrived and have no response yet.
    in_flight: u32,
    /// When the client last gave a sign of life.
    last_request: Instant,
    /// Bytes that may wait in each direction.
    window: usize,
    /// Counts the bytes of this session for the client that opened it.
    held: HeldBytes,
    /// Counts this session among all.
    _place: Permit,
}

impl LiveSession {
    /// A session that is opened at `now`.
    pub(super) fn new(session: TunnelSession, window: usize, held: HeldBytes, place: Permit, now: Instant) -> Self {
        Self {
            session,
            state: TunnelState::Open,
            core_has_let_go: false,
            wakes: Wakes::default(),
            inbox: VecDeque::new(),
            inbox_len: 0,
            beyond: 0,
            exceptions: None,
            without_room: VecDeque::new(),
            newest: 0,
            in_flight: 0,
            last_request: now,
            window,
            held,
            _place: place,
        }
    }

    pub(super) fn kind(&self) -> TunnelKind {
        self.session.kind()
    }

    /// The address that the first request came from.
    pub(super) fn client(&self) -> IpAddr {
        self.held.client()
    }

    /// The waiters that changes since the last call concern.
    pub(super) fn take_wakes(&mut self) -> Wakes {
        std::mem::take(&mut self.wakes)
    }

    /// The only place where the state changes.
    fn follow(&mut self, event: Event) {
        self.state = self.state.after(event, self.session.unacknowledged());
    }

    /// Bytes that may wait in each direction at present.
    fn window(&self) -> usize {
        if self.held.lacks(1) { self.window.min(LITTLE) } else { self.window }
    }

    /// Bytes that the core may write at present.
    fn room(&self) -> usize {
        self.window().saturating_sub(self.session.unacknowledged())
    }

    /// Whether the responses to requests that brought data have to wait until the core has read.
    fn inbox_is_full(&self) -> bool {
        self.inbox_size() >= self.window() && !self.core_has_let_go
    }

    fn inbox_size(&self) -> usize {
        self.inbox_len + PIECE * self.inbox.len()
    }

    /// For the body of a request that has no room: all of them together may exceed the limit of their address by
    /// [`EXCEPTED_WINDOWS`], and one alone by its length.
    pub(super) fn exception(&mut self) -> Exception {
        self.exceptions.get_or_insert_with(|| Exceptions::new(EXCEPTED_WINDOWS * self.window)).none()
    }

    /// Counts the bytes that wait at present.
    fn settle(&mut self) {
        self.held.set(self.session.unacknowledged() + self.inbox_size());
    }

    /// A request has arrived. It is followed by [`Self::depart`].
    pub(super) fn arrive(&mut self) {
        self.in_flight += 1;
    }

    /// A request that has arrived has its response, or its client has closed the connection.
    pub(super) fn depart(&mut self, is_of_client: bool, now: Instant) {
        self.in_flight -= 1;
        if is_of_client {
            self.last_request = now;
        }
    }

    /// Receives a request that has arrived: its acknowledgement, and its payload. How long it is held follows from
    /// `settings`.
    ///
    /// # Errors
    /// When the request is not one of this session's client. Nothing has changed then.
    pub(super) fn receive(&mut self, body: &[u8], settings: &TunnelSettings) -> Result<Received, RequestError> {
        let (pieces, inbox, beyond) = (self.inbox.len(), self.inbox_size(), self.beyond);
        let (held, first, mut is_beyond) = (&self.held, self.without_room.front(), false);
        let before = self.session.unacknowledged();
        let accepted = self.session.accept_if(body, |digest, length, unacknowledged| {
            let has_payload = unacknowledged > 0;
            // One payload passes, whatever its length, and a little more, so that the session goes on and less is held.
            let passes = pieces == 0 || inbox + length <= LITTLE || has_payload && pieces < MOST_PIECES;
            is_beyond = !passes && held.lacks(length);
            let may_be_beyond = has_payload && beyond < MOST_BEYOND && !held.lacks_in_total(length);
            (!is_beyond || may_be_beyond) && first.is_none_or(|first| *first == digest)
        })?;
        if self.session.unacknowledged() < before {
            self.beyond = 0;
        }
        if is_beyond && matches!(accepted, Accepted::New(_)) {
            self.beyond += 1;
        }
        let (data, is_retry, has_room) = match accepted {
            Accepted::New(data) => (data, false, true),
            Accepted::Again => (Vec::new(), true, true),
            Accepted::NoRoom(digest) => {
                if !self.without_room.contains(&digest) {
                    self.without_room.push_back(digest);
                }
                (Vec::new(), false, false)
            }
            Accepted::Stale => {
                let empty = self.session.empty().into();
                return Ok(Received::Response(TunnelResponse::Body(empty, TunnelOutcome::Stale)));
            }
        };
        self.follow(Event::Acknowledged);
        if self.state == TunnelState::Over {
            // What it has acknowledged is not held any more.
            self.settle();
            self.wakes.add(Waiter::Reader);
            // A retry of the request that acknowledged the last byte gets a response once more.
            if !is_retry {
                return Ok(Received::Response(TunnelResponse::Failed(TunnelOutcome::Gone)));
            }
        }
        // The acknowledgement may have made room.
        if self.room() > 0 {
            self.wakes.add(Waiter::Writer);
        }
        if !has_room {
            self.settle();
            return Ok(Received::NoRoom);
        }
        let brought_data = envelope::later(body).is_ok_and(|later| !later.payload.is_empty());
        if brought_data && !is_retry && self.without_room.pop_front().is_some() && self.without_room.is_empty() {
            self.without_room = VecDeque::new();
        }
        let (timeout, longest) = match (self.session.kind(), brought_data) {
            (TunnelKind::Polling, true) => (settings.reply_wait, settings.hold.max(settings.reply_wait)),
            (TunnelKind::Hybrid, true) => (settings.reply_wait.min(DATA_RESPONSE), DATA_RESPONSE),
            (TunnelKind::Polling, false) => (Duration::ZERO, Duration::ZERO),
            (TunnelKind::Hybrid, false) => (settings.hold, settings.hold),
        };
        if !data.is_empty() && !self.core_has_let_go {
            self.inbox_len += data.len();
            self.inbox.push_back(data.into());
            self.wakes.add(Waiter::Reader);
        }
        self.settle();
        // The request that waited so far is superseded.
        self.newest += 1;
        self.wakes.add(Waiter::Request);
        Ok(Received::Held(HeldRequest { number: self.newest, is_retry, brought_data, timeout, longest }))
    }

    /// The response to a request that waits. `None`: it waits on. `is_due`: it has waited for its timeout; `is_late`:
    /// for the longest time that it may wait. `token` makes a fresh token.
    pub(super) fn respond(
        &mut self,
        request: &HeldRequest,
        is_due: bool,
        is_late: bool,
        token: impl FnOnce() -> Token,
    ) -> Option<TunnelResponse> {
        if self.newest != request.number {
            return Some(TunnelResponse::Body(self.session.empty().into(), TunnelOutcome::Superseded));
        }
        let has_payload = self.session.unacknowledged() > 0;
        match self.state {
            TunnelState::TimedOut => return Some(TunnelResponse::Failed(TunnelOutcome::Gone)),
            TunnelState::Open if !has_payload && !is_due => return None,
            TunnelState::Open if !has_payload && !is_late && request.brought_data && self.inbox_is_full() => {
                return None;
            }
            TunnelState::Open | TunnelState::Ending | TunnelState::Over => (),
        }
        let outcome = match (request.is_retry, has_payload) {
            (true, _) => TunnelOutcome::Retry,
            (false, true) => TunnelOutcome::Payload,
            (false, false) => TunnelOutcome::Empty,
        };
        Some(TunnelResponse::Body(self.newest_body(token()), outcome))
    }

    /// The body for the newest request: all bytes that are not acknowledged. When the budget has no room for a copy of
    /// them, it carries [`LITTLE`] of them, and the others follow when those are acknowledged.
    fn newest_body(&mut self, token: Token) -> TunnelBody {
        let all = self.session.unacknowledged();
        if all <= LITTLE {
            return self.session.respond(token).into();
        }
        let mut held = self.held.another();
        if held.grow(all) {
            TunnelBody::counted(self.session.respond(token), held)
        } else {
            self.session.respond_some(token, LITTLE).into()
        }
    }

    /// The core reads what the client has sent. `None`: there is nothing to read yet.
    pub(super) fn read(&mut self, buf: &mut ReadBuf<'_>) -> Option<Result<(), StreamError>> {
        if self.inbox.is_empty() {
            return match self.state {
                TunnelState::Open | TunnelState::Ending => None,
                // The client has acknowledged the last byte: it has nothing to add.
                TunnelState::Over => Some(Ok(())),
                TunnelState::TimedOut => Some(Err(StreamError::SessionTimeout)),
            };
        }
        let was_full = self.inbox_is_full();
        while let Some(front) = self.inbox.front_mut() {
            let n = front.len().min(buf.remaining());
            buf.put_slice(&front[..n]);
            front.advance(n);
            self.inbox_len -= n;
            if !front.is_empty() {
                break;
            }
            self.inbox.pop_front();
        }
        if self.inbox.is_empty() {
            // An idle session holds no buffer.
            self.inbox = VecDeque::new();
        }
        self.settle();
        if was_full && !self.inbox_is_full() {
            self.wakes.add(Waiter::Request);
        }
        Some(Ok(()))
    }

    /// The core writes to the client. Returns how many of the bytes there was room for; `None`: for none yet.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Option<Result<usize, StreamError>> {
        if self.state == TunnelState::TimedOut {
            return Some(Err(StreamError::SessionTimeout));
        }
        let n = match self.room() {
            0 => return None,
            room => room.min(bytes.len()),
        };
        self.session.push(&bytes[..n]);
        self.follow(Event::Written);
        self.settle();
        self.wakes.add(Waiter::Request);
        Some(Ok(n))
    }

    /// The core has written the last byte.
    pub(super) fn shut_down(&mut self) {
        self.follow(Event::CoreEnded);
        self.wakes.add(Waiter::Request);
        self.wakes.add(Waiter::Reader);
    }

    /// The core has dropped its stream: it neither reads nor writes any more.
    pub(super) fn let_go(&mut self) {
        self.core_has_let_go = true;
        self.inbox = VecDeque::new();
        self.inbox_len = 0;
        self.follow(Event::CoreEnded);
        self.settle();
        self.wakes.add(Waiter::Request);
    }

    /// Ends the session at `now` if no request came for `timeout`. Returns whether it is to be forgotten: it has timed
    /// out, or it is over and `linger` has passed since the last request.
    pub(super) fn expire(&mut self, now: Instant, timeout: Duration, linger: Duration) -> bool {
        if self.in_flight > 0 {
            return false;
        }
        let idle = now.saturating_duration_since(self.last_request);
        if idle >= timeout {
            self.follow(Event::TimedOut);
            self.wakes.add(Waiter::Reader);
            self.wakes.add(Waiter::Writer);
            return true;
        }
        self.state == TunnelState::Over && idle >= linger
    }
}

#[cfg(test)]
mod tests;
