//! A streaming client's GET request: the connection becomes the client's stream, and the core has it from then on.

use std::{io, iter};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{
    HttpContext, fast_path::StreamRequest, forwarded::client_behind, guard::Guarded, response::stream_head,
    tunnel_request::respond,
};
use crate::{
    ingress::{
        Origin,
        tunnel::{RefusedStream, StreamOpening, TunnelResponse},
    },
    stream::{Replayed, refuse},
    telemetry::outcome::{Outcome, TunnelOutcome},
    wire::{Transport, reason::Reason},
};

/// Opens a session on the connection. A client that is refused is told so inside the stream, in its own protocol.
///
/// # Errors
/// The client did not take the page that says that no session can be made.
pub(super) async fn open<S>(
    context: &HttpContext,
    stream: Replayed<S>,
    request: StreamRequest,
    origin: &Origin,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = context.settings.load_full();
    let lines = request.forwarded.iter().flat_map(|line| iter::once(&line[..]));
    let client = client_behind(&settings.trusted_proxies, lines, origin);
    let count = |outcome| context.telemetry.tunnel.request(Transport::HttpStreaming, outcome);
    let Ok(name) = context.tunnel.new_name() else {
        count(TunnelOutcome::Failed);
        let page = respond(TunnelResponse::Failed(TunnelOutcome::Failed)).closing();
        let mut to = Guarded::new(stream, settings.timeout, |_| ());
        to.write_all(&page.to_bytes()).await?;
        return to.shutdown().await;
    };
    // Bytes behind the request have no meaning: a streaming client sends none.
    let (_, stream) = stream.into_parts();
    let head = stream_head(request.is_chunked);
    let opening = StreamOpening { name, head, is_chunked: request.is_chunked, client, port: origin.port };
    match context.tunnel.open_stream(stream, opening) {
        Ok(()) => count(TunnelOutcome::Opened),
        Err(RefusedStream { refusal, outcome, stream }) => {
            count(outcome);
            // The core has counted and logged its own refusals.
            if outcome == TunnelOutcome::Full {
                context.record_refused_session(refusal, client, origin.port.number);
            }
            // The policy of the tunnel's own limits is a status, which is for the other two tunnels.
            refuse(stream, refusal.policy().farewell().unwrap_or(Reason::ServerFull)).await;
        }
    }
    Ok(())
}
