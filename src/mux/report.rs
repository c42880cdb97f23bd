//! Reports the end of a session: the metric and the line in the log.

use tracing::{Level, field::display, info, warn};

use super::{MuxContext, end::End};
use crate::{stream::Via, telemetry::outcome::Outcome};

/// Counts the end and logs it. Each session that was logged in has a line. The others have at most one line per second
/// and reason, since anybody can make many of them.
pub(super) fn report(
    context: &MuxContext,
    via: &Via,
    end: &End,
    server: Option<&str>,
    is_logged_in: bool,
    (bytes_to_community, bytes_to_client): (u64, u64),
) {
    let seconds = via.accepted.elapsed().as_secs_f64();
    let outcome = end.outcome();
    context.telemetry.sessions.closed(outcome, seconds);
    if let (None, Some(refusal)) = (server, outcome.refusal()) {
        context.telemetry.sessions.refused.count(refusal);
    }
    let may_log = if is_logged_in { Some(None) } else { context.not_logged_in.pass(outcome.index()) };
    let Some(more) = may_log else { return };
    let detail = end.detail().map(display);
    macro_rules! line {
        ($level:ident) => {
            $level!(client = %via.client, port = via.port.number, transport = %via.transport, server,
                seconds = (seconds * 1e3).round() / 1e3, bytes_to_community, bytes_to_client, reason = outcome.name(),
                detail, more, "session closed")
        };
    }
    if outcome.policy().level == Some(Level::WARN) { line!(warn) } else { line!(info) }
}
