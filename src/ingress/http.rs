//! HTTP on a client port: the tunnel, and everything else to the web back end.
//!
//! ```text
//!  connection ──┬── plain: a request of the tunnel to the letter ──────────────┬── tunnel
//!     (idle)    └── turn: anything else, hyper's ── guarded ── framing ── answer ──┤
//!                                                                              └── backend
//! ```
//! Between two requests a connection keeps nothing but its stream.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{self, HeaderValue},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tracing::{debug, warn};

mod backend;
mod connection;
mod fast_path;
mod forwarded;
pub mod framing;
mod guard;
mod hyper_path;
mod response;

pub(super) use backend::Backend;
pub(super) use connection::serve;

use super::{
    Ingress, Origin, Settings,
    tunnel::{self, Answer},
};
use crate::{
    limits::budget::{Held, LITTLE},
    net::Port,
    stream,
    telemetry::outcome::{ConnectionDrop, Outcome, Refusal, TunnelOutcome},
    wire::tunnel::envelope::{self, Address, Kind},
};
use backend::{Body, own};
use forwarded::{FORWARDED_FOR, client_of};
use response::{page, unavailable};

/// Bytes of a request's head, at the most.
const MAX_HEAD: usize = 16 * 1024;
/// A request for a session that is not there is answered after a multiple of this.
const MISS_GRID: Duration = Duration::from_millis(20);
/// And so much later, where there are very many of them.
const MISS_DELAY: Duration = Duration::from_secs(1);

/// For a connection that there is no room for.
pub(super) const NO_ROOM: (&str, &str) =
    ("503 Service Unavailable\r\nRetry-After: 10", "No room for this client now.\n");
/// For one without TLS where clients must have certificates.
pub(super) const NO_CERTIFICATE: (&str, &str) =
    ("403 Forbidden", "This port takes TLS only, from clients with a certificate.\n");

/// Refuses a connection whose request is not looked at.
pub(super) async fn turn_away(mut tcp: TcpStream, (status, body): (&str, &str)) {
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    if let Ok(Ok(())) = timeout(Duration::from_secs(1), tcp.write_all(response.as_bytes())).await {
        stream::linger(stream::Stream::Tcp(tcp)).await;
    }
}

/// Notes a connection that did not end in order.
fn dropped(ingress: &Ingress, origin: &Origin, error: &dyn std::error::Error) {
    ingress.telemetry.connections.dropped.count(ConnectionDrop::Http);
    debug!(client = %origin.client, port = origin.port.number, %error, "HTTP connection ended");
}

/// Answers what hyper has read.
async fn answer(ingress: &Ingress, request: Request<Incoming>, origin: Origin) -> Response<Body> {
    let settings = ingress.settings.load_full();
    let forwarded: Vec<&HeaderValue> = request.headers().get_all(FORWARDED_FOR).into_iter().collect();
    let lines = forwarded.iter().map(|line| line.as_bytes());
    let client = client_of(&settings.forwarded_for_from, lines, origin.client);
    match envelope::address(request.uri().path()) {
        Address::Tunnel(kind, name) if request.method() == Method::POST => {
            let name = name.to_owned();
            tunnelled(ingress, &settings, request, kind, &name, client, origin.port).await.map(own)
        }
        Address::Probe | Address::Tunnel(..) if [Method::GET, Method::HEAD].contains(request.method()) => {
            page(StatusCode::OK, "Sametime Community tunnel: ready for clients.\n").map(own)
        }
        Address::Probe | Address::Tunnel(..) => {
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, "The tunnel takes POST.\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, GET, HEAD"));
            response.map(own)
        }
        Address::Malformed => {
            ingress.telemetry.tunnel.malformed_path();
            page(StatusCode::NOT_FOUND, "Not found.\n").map(own)
        }
        Address::Other => match &settings.http_backend {
            Some(url) => match backend::forward(&ingress.backend, url, request, origin.client, client, &settings).await
            {
                Ok(response) => response,
                Err(refused) => {
                    if let Some(reason) = refused.outcome() {
                        ingress.odd_request(reason, &origin);
                    }
                    refused.into()
                }
            },
            None => page(StatusCode::NOT_FOUND, "Not found. This port is for Sametime clients.\n").map(own),
        },
    }
}

/// Answers a request of the tunnel that hyper has read.
async fn tunnelled(
    ingress: &Ingress,
    settings: &Settings,
    request: Request<Incoming>,
    kind: Kind,
    name: &str,
    client: SocketAddr,
    port: Port,
) -> Response<Bytes> {
    let body = match collect(request.into_body(), settings, Held::none(&ingress.budget, client.ip())).await {
        Ok(body) => body,
        Err((status, outcome)) => {
            ingress.telemetry.tunnel.request(tunnel::transport(kind), outcome);
            let mut response =
                if status == StatusCode::SERVICE_UNAVAILABLE { unavailable(outcome.name()) } else { page(status, "") };
            // What is left of the body is not waited for.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return response;
        }
    };
    match ask(ingress, kind, name, body, client, port).await {
        Answer::Body(body) => {
            let mut response = Response::new(body.into());
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
            headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
            response
        }
        refused => refusal(&refused),
    }
}

/// Asks the tunnel, notes what came of it, and lets those wait who are to wait.
async fn ask(
    ingress: &Ingress,
    kind: Kind,
    name: &str,
    body: impl AsRef<[u8]>,
    client: SocketAddr,
    port: Port,
) -> Answer {
    // From here on the client can't make it longer or shorter.
    let began = Instant::now();
    let (answer, outcome) = if name.is_empty() {
        ingress.tunnel.open(kind, body.as_ref(), client, port)
    } else {
        ingress.tunnel.request(kind, name, body, client.ip()).await
    };
    ingress.telemetry.tunnel.request(tunnel::transport(kind), outcome);
    match &answer {
        Answer::Unknown => missed(ingress, client, port.number, began).await,
        Answer::Refused(refusal @ (Refusal::TunnelSessions | Refusal::TunnelSessionsPerAddress)) => {
            ingress.no_session(*refusal, client, port.number);
        }
        _ => (),
    }
    answer
}

/// What the tunnel says where it has no bytes.
fn refusal(answer: &Answer) -> Response<Bytes> {
    match answer {
        Answer::Malformed => page(StatusCode::BAD_REQUEST, "Not a request of the tunnel.\n"),
        Answer::Unknown => page(StatusCode::NOT_FOUND, "No such session.\n"),
        Answer::Refused(refusal) => unavailable(refusal.name()),
        Answer::Busy => unavailable("busy"),
        Answer::Failed | Answer::Body(_) => page(StatusCode::INTERNAL_SERVER_ERROR, "No session could be made.\n"),
    }
}

/// Waits before a request is told that there is no such session.
async fn missed(ingress: &Ingress, client: SocketAddr, port: u16, began: Instant) {
    let mut due = miss_due(began, Instant::now());
    if ingress.counters.miss(client.ip()) {
        ingress.telemetry.tunnel.guess_delayed();
        if let Some(more) = ingress.guesses.pass() {
            warn!(%client, port, more, "very many requests for tunnel sessions that are not there: answered late");
        }
        due += MISS_DELAY;
    }
    tokio::time::sleep_until(due.into()).await;
}

/// When to answer: a round time after `began`, so that how long looking took says nothing.
fn miss_due(began: Instant, now: Instant) -> Instant {
    let mut due = began + MISS_GRID;
    while due < now {
        due += MISS_GRID;
    }
    due
}

/// A request's body, counted until it is dropped.
struct Collected {
    bytes: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for Collected {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a request's body, bounded in bytes and time.
async fn collect(
    mut body: Incoming,
    settings: &Settings,
    mut held: Held,
) -> Result<Collected, (StatusCode, TunnelOutcome)> {
    // Frames come in the tunnel's envelope, several in one request.
    let limit = 2 * settings.max_frame as usize + 64 * 1024;
    if body.size_hint().lower() > limit as u64 {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, TunnelOutcome::TooLarge));
    }
    let reading = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.map_err(|_| (StatusCode::BAD_REQUEST, TunnelOutcome::CutOff))?.into_data() else {
                continue;
            };
            if bytes.len() + piece.len() > limit {
                return Err((StatusCode::PAYLOAD_TOO_LARGE, TunnelOutcome::TooLarge));
            }
            // Small ones pass, so that sessions go on and what is held becomes less.
            if bytes.len() + piece.len() > LITTLE && !held.grow(piece.len()) {
                return Err((StatusCode::SERVICE_UNAVAILABLE, TunnelOutcome::HeldBytes));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Collected { bytes, _held: held })
    };
    match timeout(settings.login_timeout.max(Duration::from_secs(1)), reading).await {
        Ok(read) => read,
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, TunnelOutcome::TooSlow)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_is_answered_at_a_time_that_says_nothing() {
        let began = Instant::now();
        let after = |micros| miss_due(began, began + Duration::from_micros(micros)) - began;
        for looking in [0, 1, 100, 5_000, 19_999, 20_000] {
            assert_eq!(after(looking), MISS_GRID, "{looking}");
        }
        assert_eq!(after(20_001), 2 * MISS_GRID, "a machine that is out of breath");
    }
}
