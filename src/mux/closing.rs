//! The state *closing* of a session: the last bytes, the farewell message, the log line, and the end.

use std::{future::poll_fn, time::Duration};

use tokio::time::timeout;
use tracing::{Level, field::display, info, warn};

use super::{
    direction::RelayDirection,
    end::{ClientFault, Closing, CommunityFault, End},
    relay::Relay,
};
use crate::{
    stream::{self, Stream},
    telemetry::outcome::Outcome,
};

/// How long a peer may take to accept the last bytes.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// Closes the link and the client's stream, reports the end, and counts the client out.
pub(super) async fn finish(mut relay: Relay, end: End) {
    let mut server = None;
    if let Some(mut link) = relay.link.take() {
        if let End::Community(CommunityFault::Broken(_)) = &end {
            link.lease.broken();
        }
        if let End::Client(ClientFault::Frame(_)) = &end {
            // The Community gets everything that the client sent before its invalid frame.
            let kept = poll_fn(|cx| relay.to_community.poll_kept(&mut link.stream, cx));
            let _ = Box::pin(timeout(LAST_BYTES, kept)).await;
        }
        server = Some(link.server);
    }
    report(&relay, &end, server.as_deref());
    match end.closing() {
        Closing::Nothing => drop(relay.client),
        Closing::LastBytes => Box::pin(stream::linger(relay.client)).await,
        Closing::Farewell(reason) => {
            // In the middle of a frame, the client would not understand a message.
            let farewell = if relay.to_client.scanner.at_boundary() { reason.destroy() } else { Vec::new() };
            Box::pin(close(relay.client, relay.to_client, &farewell)).await;
        }
    }
    drop(relay.ticket);
}

/// Sends the kept bytes and the farewell message, and closes so that the client receives them.
async fn close(mut client: Stream, mut to_client: RelayDirection, farewell: &[u8]) {
    to_client.kept.extend_from_slice(farewell);
    let sent = timeout(LAST_BYTES, poll_fn(|cx| to_client.poll_kept(&mut client, cx))).await;
    if matches!(sent, Ok(Ok(()))) {
        stream::linger(client).await;
    }
}

/// Counts the end and logs it. Each session that was logged in has a line. The others have at most one line per second and
/// reason, since anybody can make many of them.
fn report(relay: &Relay, end: &End, server: Option<&str>) {
    let Relay { context, via, to_community, to_client, .. } = relay;
    let seconds = via.accepted.elapsed().as_secs_f64();
    let outcome = end.outcome();
    context.telemetry.sessions.closed(outcome, seconds);
    if let (None, Some(refusal)) = (server, outcome.refusal()) {
        context.telemetry.sessions.refused.count(refusal);
    }
    let may_log = if relay.facts.is_logged_in() { Some(None) } else { context.not_logged_in.pass(outcome.index()) };
    let Some(more) = may_log else { return };
    let detail = end.detail().map(display);
    macro_rules! line {
        ($level:ident) => {
            $level!(client = %via.client, port = via.port.number, transport = %via.transport, server,
                seconds = (seconds * 1e3).round() / 1e3, bytes_to_community = to_community.bytes,
                bytes_to_client = to_client.bytes, reason = outcome.name(), detail, more, "session closed")
        };
    }
    if outcome.policy().level == Some(Level::WARN) { line!(warn) } else { line!(info) }
}
