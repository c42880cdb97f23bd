//! The life of one client: first frame, link, relay, end.
//!
//! ```text
//!  taken ── first frame whole ── link open ── relayed ── last words ── counted out
//!    │            │                  │           │
//!    └─ timeout, ─┴─ no Handshake, ──┴─ none ────┴─ fault, order, broken: one End each
//!       closed       fault
//! ```

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::{timeout, timeout_at};
use tracing::{Level, field::display, info, warn};

use super::{
    Shared,
    admission::Ticket,
    end::End,
    relay::{Relay, Session, Way, client_broken},
};
use crate::{
    runtime::scratch,
    stream::{self, Arrival, Stream},
    telemetry::{Direction, outcome::Outcome},
    wire::{
        frame::{self, First, FrameError, MAX_BEFORE_LOGIN},
        message::{kind, stamp_client_address},
    },
};

/// How long a client may take to accept our last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What may stand before and behind the first frame while it is not whole, in bytes:
/// keep-alives, a second frame.
const FIRST_BYTES: usize = 2 * MAX_BEFORE_LOGIN as usize;

/// Serves a client to its end. What outlasts a moment lies in `relay`, once; all else is boxed,
/// so that it is not carried through the hours in between.
pub(super) fn run(shared: Arc<Shared>, arrival: Arrival, ticket: Ticket) -> impl Future<Output = ()> + Send {
    let mut relay = Relay::new(shared, arrival, ticket);
    async move {
        let end = match Box::pin(open(&mut relay)).await {
            Ok(()) => poll_fn(|cx| relay.poll(cx)).await,
            Err(end) => end,
        };
        Box::pin(finish(relay, end)).await;
    }
}

/// Collects the first frame and gets a link to a server that has it. What the client said before the
/// server answered is left in `up`.
async fn open(relay: &mut Relay) -> Result<(), End> {
    let Relay { shared, ticket, via, client, link: linked, up, down, known, .. } = relay;
    let first = mem::take(&mut up.kept);
    let deadline = via.accepted + shared.settings.load().login_timeout;
    let (mut bytes, frame) = {
        let collecting = pin!(timeout_at(deadline.into(), handshake(client, first, known.limit(), ticket)));
        unless_ordered(ticket, collecting).await?.map_err(|_| End::LoginTimeout)??
    };
    let waits = bytes[frame.end..].iter().all(|&byte| frame::is_keep_alive(byte));
    stamp_client_address(&mut bytes[frame], via.client.ip());
    let of = Session { ticket, telemetry: &shared.telemetry, accepted: via.accepted };
    up.take(Direction::ToCommunity, &mut bytes, known, of).map_err(End::ClientFault)?;
    ticket.holds(bytes.len());
    let mut more = None;
    let link = {
        // One read, and no more until there is a link.
        let speaks_on = pin!(async {
            if waits {
                let most = ticket.may_read();
                let read = poll_fn(|cx| scratch::poll_read_some(client, cx, most, |bytes, _| bytes.to_vec()));
                more = Some(read.await);
            }
        });
        unless_ordered(ticket, shared.community.connect(via.client, &bytes, speaks_on)).await?
    };
    let (link, mut answer) = link.map_err(|error| End::NoCommunity(error.reason, error.detail))?;
    *linked = Some(link);
    let answered = down.take(Direction::ToClient, &mut answer, known, of);
    down.kept = answer;
    answered.map_err(End::CommunityFault)?;
    match more {
        None => (),
        Some(Ok(Some(mut more))) => {
            let taken = up.take(Direction::ToCommunity, &mut more, known, of);
            up.kept = more;
            taken.map_err(End::ClientFault)?;
        }
        Some(Ok(None)) => up.end(),
        Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => up.end(),
        Some(Err(error)) => return Err(client_broken(error, known)),
    }
    ticket.holds(up.kept.len() + down.kept.len());
    Ok(())
}

/// Reads until the first frame is whole. Returns all that was read and where the frame stands.
async fn handshake(
    client: &mut Stream,
    mut bytes: Vec<u8>,
    limit: u32,
    ticket: &Ticket,
) -> Result<(Vec<u8>, std::ops::Range<usize>), End> {
    loop {
        match frame::first(&bytes, limit).map_err(End::ClientFault)? {
            First::Whole { head, start, end } if head.kind == kind::HANDSHAKE && head.channel == 0 => {
                return Ok((bytes, start..end));
            }
            First::Whole { head, .. } => return Err(End::NotAHandshake(head.kind)),
            First::Partial if bytes.len() >= FIRST_BYTES => {
                return Err(End::ClientFault(FrameError::TooShort { length: 0 }));
            }
            First::Partial if !ticket.may_hold(bytes.len()) => return Err(End::HeldBytes),
            First::Partial => ticket.holds(bytes.len()),
        }
        match poll_fn(|cx| scratch::poll_read(client, cx, |read, _| bytes.extend_from_slice(read))).await {
            Ok(Some(())) => (),
            Ok(None) => return Err(End::NoHandshake),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(End::NoHandshake),
            Err(error) if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() => {
                return Err(End::SessionTimeout);
            }
            Err(error) => return Err(End::ClientBroken(error)),
        }
    }
}

/// `work`'s result, unless the session is told to end first.
async fn unless_ordered<T>(ticket: &Ticket, mut work: impl Future<Output = T> + Unpin) -> Result<T, End> {
    poll_fn(|cx| match ticket.entry.poll_order(cx) {
        Some(order) => Poll::Ready(Err(End::Ordered(order))),
        None => pin!(&mut work).poll(cx).map(Ok),
    })
    .await
}

/// Ends a session for both sides, and counts it out.
async fn finish(mut relay: Relay, end: End) {
    let mut server = None;
    if let Some(mut link) = relay.link.take() {
        if let End::CommunityBroken(error) = &end {
            link.lease.broken(&error.to_string());
        }
        if matches!(end, End::ClientFault(_)) {
            // What the client sent before its fault is the Community's.
            let _ = Box::pin(timeout(LAST_WORDS, poll_fn(|cx| relay.up.poll_kept(&mut link.stream, cx)))).await;
        }
        server = Some(link.server);
    }
    report(&relay, &end, server.as_deref());
    if end.reason().is_some() || end.lingers() {
        Box::pin(close(relay.client, relay.down, &end)).await;
    } else {
        drop(relay.client);
    }
    drop(relay.ticket);
}

/// Says the last words, if there are some, and closes so that they are read.
async fn close(mut client: Stream, mut down: Way, end: &End) {
    let words = match end.reason() {
        // In the middle of a frame there is nothing to say that would be understood.
        Some(reason) if down.scanner.at_boundary() => reason.destroy(),
        Some(_) => Vec::new(),
        None => return stream::linger(client).await,
    };
    down.kept.extend_from_slice(&words);
    let told = timeout(LAST_WORDS, poll_fn(|cx| down.poll_kept(&mut client, cx))).await;
    if matches!(told, Ok(Ok(()))) {
        stream::linger(client).await;
    }
}

/// One count for each session, and one line; of those that never had a server, which anybody can make
/// many of, one a second.
fn report(relay: &Relay, end: &End, server: Option<&str>) {
    let Relay { shared, via, up, down, .. } = relay;
    let seconds = via.accepted.elapsed().as_secs_f64();
    let outcome = end.outcome();
    shared.telemetry.sessions.closed(outcome, seconds);
    if let (None, Some(refusal)) = (server, outcome.refusal()) {
        shared.telemetry.sessions.refused.count(refusal);
    }
    let Some(more) = (if server.is_some() { Some(None) } else { shared.unserved.pass() }) else { return };
    let detail = end.detail().map(display);
    macro_rules! line {
        ($level:ident) => {
            $level!(client = %via.client, port = via.port.number, transport = %via.transport, server,
                seconds = (seconds * 1e3).round() / 1e3, bytes_to_community = up.bytes, bytes_to_client = down.bytes,
                reason = outcome.name(), detail, more, "session closed")
        };
    }
    if outcome.policy().level == Level::WARN { line!(warn) } else { line!(info) }
}
