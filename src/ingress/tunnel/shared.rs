//! A tunnel session between its two users: requests on one side, the core on the other.
//!
//! Requests are answered by [`Shared::answer`]; the core reads and writes a
//! [`TunnelStream`], a plain byte stream.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Settings,
    session::{Accepted, Refused, Session, TOKEN, Token},
};
use crate::{
    limits::{
        budget::{HeldBytes, LITTLE},
        tally::Permit,
    },
    telemetry::outcome::TunnelOutcome,
    wire::tunnel::envelope::{self, Kind},
};

/// What a piece in the inbox takes beside its bytes.
const PIECE: usize = 64;

/// A session, as the registry holds it.
pub(super) struct Shared(Mutex<State>);

struct State {
    session: Session,
    /// Bytes for the Community that the core has not taken, in the pieces that they came in.
    inbox: VecDeque<Bytes>,
    inbox_len: usize,
    /// The core, waiting for the inbox to fill, and for the client to acknowledge.
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The request that is waiting for its answer, and its number.
    waiter: Option<Waker>,
    newest: u64,
    /// Requests between arrival and response.
    in_flight: u32,
    last_request: Instant,
    /// The core has let go of the stream, or the session has timed out.
    abandoned: bool,
    timed_out: bool,
    window: usize,
    /// What this session holds, for the client that sent the first request.
    held: HeldBytes,
    /// Its place among all.
    _place: Permit,
}

impl State {
    /// How many bytes there may be each way.
    fn window(&self) -> usize {
        if self.held.lacks(1) { self.window.min(LITTLE) } else { self.window }
    }

    /// How many more unacknowledged bytes there may be.
    fn room(&self) -> usize {
        self.window().saturating_sub(self.session.unacknowledged())
    }

    fn inbox_is_full(&self) -> bool {
        self.inbox_size() >= self.window() && !self.abandoned
    }

    fn inbox_size(&self) -> usize {
        self.inbox_len + PIECE * self.inbox.len()
    }

    /// Brings the budget up to date.
    fn settle(&mut self) {
        self.held.set(self.session.unacknowledged() + self.inbox_size());
    }

    /// The response to the newest request. Where too much is held, a part of it: the others come
    /// when that is acknowledged.
    fn respond(&mut self) -> Payload {
        let all = self.session.unacknowledged();
        let mut held = self.held.another();
        if all <= LITTLE {
            Payload { bytes: self.session.respond(fresh_token()), held: None }
        } else if held.grow(all) {
            Payload { bytes: self.session.respond(fresh_token()), held: Some(held) }
        } else {
            Payload { bytes: self.session.respond_some(fresh_token(), LITTLE), held: None }
        }
    }
}

/// A response's body. It is counted until it has been written.
pub struct Payload {
    bytes: Vec<u8>,
    held: Option<HeldBytes>,
}

/// What is said, and the session's name and token, are in no log.
impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, held: None }
    }
}

impl From<Payload> for Bytes {
    fn from(payload: Payload) -> Self {
        if payload.held.is_none() { payload.bytes.into() } else { Self::from_owner(payload) }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Reply {
    /// The response's body, and a name for what happened.
    Body(Payload, TunnelOutcome),
    /// The client has it all, or the session is gone.
    Gone,
    /// Refused; see the error.
    Refused(Refused),
    /// The Community is too slow to take more. Nothing was consumed.
    Busy,
}

/// A fresh token.
///
/// # Panics
/// When the system has no random numbers; it had some when the session was made.
pub(super) fn fresh_token() -> Token {
    thread_local! {
        // Tokens that are next; asked for one by one, they were a third of a poll's system calls.
        static NEXT: RefCell<Vec<Token>> = const { RefCell::new(Vec::new()) };
    }
    NEXT.with_borrow_mut(|next| {
        if next.is_empty() {
            let mut random = [0; 64 * TOKEN];
            getrandom::fill(&mut random).expect("the system's random numbers");
            next.extend(random.as_chunks::<TOKEN>().0);
        }
        next.pop().expect("just filled")
    })
}

/// Counts a request in, and out when dropped: a client that hangs up is out, too.
struct InFlight<'a> {
    shared: &'a Shared,
    /// Whether the client is seen to be there: not by what somebody else sends.
    is_sign_of_life: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.0.lock();
        state.in_flight -= 1;
        if self.is_sign_of_life {
            state.last_request = Instant::now();
        }
    }
}

impl Shared {
    pub(super) fn new(session: Session, window: usize, held: HeldBytes, place: Permit) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            session,
            inbox: VecDeque::new(),
            inbox_len: 0,
            reader: None,
            writer: None,
            waiter: None,
            newest: 0,
            in_flight: 0,
            last_request: Instant::now(),
            abandoned: false,
            timed_out: false,
            window,
            held,
            _place: place,
        })))
    }

    pub(super) fn kind(&self) -> Kind {
        self.0.lock().session.kind()
    }

    /// Where the first request came from.
    pub(super) fn client(&self) -> IpAddr {
        self.0.lock().held.client()
    }

    /// Takes a request's body in and waits for what is to be answered: at once where there is
    /// payload; up to `reply_wait` where it brought data; up to `hold` for an idle hybrid one.
    pub(super) async fn answer(&self, body: impl AsRef<[u8]>, settings: &Settings) -> Reply {
        let mut in_flight = {
            let mut state = self.0.lock();
            // Who does not know the session does not wait: that it is there would be seen by that.
            if state.inbox_is_full() && !state.session.knows(body.as_ref()) {
                return Reply::Refused(Refused::Acknowledgement);
            }
            state.in_flight += 1;
            InFlight { shared: self, is_sign_of_life: true }
        };
        if !self.inbox_has_room(settings.hold).await {
            return Reply::Busy;
        }
        let (number, wait, retry) = {
            let mut state = self.0.lock();
            let accepted = match state.session.accept(body.as_ref()) {
                Ok(accepted) => accepted,
                Err(refused) => {
                    in_flight.is_sign_of_life = false;
                    drop(state);
                    return Reply::Refused(refused);
                }
            };
            let (data, retry) = match accepted {
                Accepted::Stale => {
                    let empty = state.session.empty();
                    drop(state);
                    return Reply::Body(empty.into(), TunnelOutcome::Stale);
                }
                Accepted::Again => (Vec::new(), true),
                Accepted::New(data) => (data, false),
            };
            if state.session.is_over() {
                wake(&mut state.reader);
            }
            // The client has it all: this was the request that said so.
            if !retry && state.session.is_over() {
                return Reply::Gone;
            }
            let brought_data = envelope::later(body.as_ref()).is_ok_and(|later| !later.payload.is_empty());
            let wait = match (state.session.kind(), brought_data) {
                // An answered request has a new acknowledgement after it, so that the same words
                // said twice are two requests and no retry: hybrid data is not held long, either.
                (_, true) => settings.reply_wait,
                (Kind::Polling, false) => Duration::ZERO,
                (Kind::Hybrid, false) => settings.hold,
            };
            if !data.is_empty() && !state.abandoned {
                state.inbox_len += data.len();
                state.inbox.push_back(data.into());
                wake(&mut state.reader);
            }
            state.settle();
            // What was acknowledged makes room.
            if state.room() > 0 {
                wake(&mut state.writer);
            }
            state.newest += 1;
            wake(&mut state.waiter);
            (state.newest, wait, retry)
        };
        // It may be long, and so may the wait.
        drop(body);
        let timer = (!wait.is_zero()).then(|| Box::pin(tokio::time::sleep(wait)));
        let reply = self.wait(number, timer, retry).await;
        drop(in_flight);
        reply
    }

    async fn wait(&self, number: u64, mut timer: Option<Pin<Box<tokio::time::Sleep>>>, retry: bool) -> Reply {
        poll_fn(|cx| {
            let expired = timer.as_mut().is_none_or(|timer| timer.as_mut().poll(cx).is_ready());
            let mut state = self.0.lock();
            if state.newest != number {
                return Poll::Ready(Reply::Body(state.session.empty().into(), TunnelOutcome::Superseded));
            }
            if state.timed_out {
                return Poll::Ready(Reply::Gone);
            }
            let has_payload = state.session.unacknowledged() > 0;
            if !has_payload && !expired && !state.session.has_ended() {
                state.waiter = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let outcome = match (retry, has_payload) {
                (true, _) => TunnelOutcome::Retry,
                (false, true) => TunnelOutcome::Payload,
                (false, false) => TunnelOutcome::Empty,
            };
            Poll::Ready(Reply::Body(state.respond(), outcome))
        })
        .await
    }

    /// Waits until the core has taken enough of what clients sent before.
    async fn inbox_has_room(&self, at_most: Duration) -> bool {
        if !self.0.lock().inbox_is_full() {
            return true;
        }
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline {
            // Rare, and a client behind a Community this slow does not notice the grain.
            tokio::time::sleep(Duration::from_millis(20)).await;
            if !self.0.lock().inbox_is_full() {
                return true;
            }
        }
        false
    }

    /// Ends the session when no request has come for `timeout`. True when it is to be
    /// forgotten: it timed out, or its core is gone and `linger` has passed.
    pub(super) fn sweep(&self, now: Instant, timeout: Duration, linger: Duration) -> bool {
        let mut state = self.0.lock();
        let idle = now.saturating_duration_since(state.last_request);
        if state.in_flight > 0 {
            return false;
        }
        if idle >= timeout {
            state.timed_out = true;
            wake(&mut state.reader);
            wake(&mut state.writer);
            return true;
        }
        state.session.is_over() && idle >= linger
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// A session's bytes, for the core: reads what the client posted, writes what it will fetch.
pub(super) struct TunnelStream(pub(super) Arc<Shared>);

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no request for tunnel.session_timeout")
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut guard = self.0.0.lock();
        let state = &mut *guard;
        if state.inbox.is_empty() {
            if state.timed_out {
                return Poll::Ready(Err(timed_out()));
            }
            // The client has fetched our last word: it has nothing to add.
            if state.session.is_over() {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        while let Some(front) = state.inbox.front_mut() {
            let n = front.len().min(buf.remaining());
            buf.put_slice(&front[..n]);
            front.advance(n);
            state.inbox_len -= n;
            if !front.is_empty() {
                break;
            }
            state.inbox.pop_front();
        }
        if state.inbox.is_empty() {
            state.inbox = VecDeque::new();
        }
        state.settle();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.0.lock();
        if state.timed_out {
            return Poll::Ready(Err(timed_out()));
        }
        let room = state.room();
        if room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = room.min(buf.len());
        state.session.push(&buf[..n]);
        state.settle();
        wake(&mut state.waiter);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.0.lock();
        state.session.end();
        wake(&mut state.waiter);
        wake(&mut state.reader);
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.abandoned = true;
        state.session.end();
        state.inbox = VecDeque::new();
        state.inbox_len = 0;
        state.settle();
        wake(&mut state.waiter);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_token_comes_twice() {
        let tokens: HashSet<Token> = (0..200).map(|_| fresh_token()).collect();
        assert_eq!(tokens.len(), 200);
    }
}
