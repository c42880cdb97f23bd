//! The web back end: where requests that are not the tunnel's go.

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Request, Response, StatusCode, Uri, Version,
    body::{Body as _, Frame, Incoming, SizeHint},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::{Authority, PathAndQuery, Scheme},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout_at;
use tracing::warn;

mod request_body;

use request_body::Paced;

use super::{IngressSettings, forwarded::FORWARDED_FOR, response::page};
use crate::{
    limits::tally::{Permit, Tally},
    net::address::lies_in,
    telemetry::outcome::RequestRefusal,
};

/// How long the back end may take to accept a connection, and to begin its answer once the
/// request's last piece has come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections to the back end that are kept for requests to come.
const MAX_IDLE: usize = 64;
/// Bytes of an answer that are read at once, at the most; its head has to fit.
const MAX_BUFFER: usize = 64 * 1024;

/// Headers that speak of one connection and not of the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What HTTP on a client port is answered with: bytes of its own, or the back end's stream.
pub(super) type Body = Either<Full<Bytes>, Answered>;

/// Bytes of its own.
pub(super) fn own(bytes: Bytes) -> Body {
    Either::Left(Full::new(bytes))
}

/// Connections to the back end, kept for the next request.
pub(in crate::ingress) struct Backend {
    client: Client<HttpConnector, Paced>,
    requests: Arc<Tally>,
}

impl Backend {
    pub(in crate::ingress) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_BUFFER)
            .build(connector);
        Self { client, requests: Arc::default() }
    }
}

/// Why a request is not passed on, or not to its end. The client's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// CONNECT makes a tunnel, TRACE an echo of what the client can't see otherwise.
    Method,
    /// Neither a path nor `http://host/path`.
    Target,
    /// Not one Host of legal characters.
    Host,
    /// An expectation that is not 100-continue.
    Expectation,
    /// Another protocol is asked for.
    Upgrade,
    /// As many requests are on their way as `http_backend.connections` allows.
    Busy,
    /// See [`request_body::BodyError`].
    Body(request_body::BodyError),
}

impl Refused {
    /// As it is counted and logged. None for a broken body: its form was noted when it was read,
    /// or the client hung up.
    pub(super) fn outcome(self) -> Option<RequestRefusal> {
        Some(match self {
            Self::Method => RequestRefusal::Method,
            Self::Target => RequestRefusal::Target,
            Self::Host => RequestRefusal::Host,
            Self::Expectation => RequestRefusal::Expectation,
            Self::Upgrade => RequestRefusal::Upgrade,
            Self::Busy => RequestRefusal::Backend,
            Self::Body(request_body::BodyError::TooSlow) => RequestRefusal::BodyTooSlow,
            Self::Body(request_body::BodyError::Broken) => return None,
        })
    }
}

impl From<Refused> for Response<Body> {
    fn from(refused: Refused) -> Self {
        let (status, text) = match refused {
            Refused::Method => (StatusCode::METHOD_NOT_ALLOWED, "This method is not passed on.\n"),
            Refused::Target => (StatusCode::BAD_REQUEST, "The request's target can't be passed on.\n"),
            Refused::Host => (StatusCode::BAD_REQUEST, "The request needs one Host, and a legal one.\n"),
            Refused::Expectation => (StatusCode::EXPECTATION_FAILED, "No expectation but 100-continue is known.\n"),
            Refused::Upgrade => (StatusCode::NOT_IMPLEMENTED, "Upgrades are not passed on.\n"),
            Refused::Busy => (StatusCode::SERVICE_UNAVAILABLE, "The web server behind this port is busy.\n"),
            Refused::Body(request_body::BodyError::Broken) => {
                (StatusCode::BAD_REQUEST, "The request's body is broken.\n")
            }
            Refused::Body(request_body::BodyError::TooSlow) => {
                (StatusCode::REQUEST_TIMEOUT, "The request's body did not come in time.\n")
            }
        };
        let mut response = page(status, text);
        // What is left of the request is not waited for.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response.map(own)
    }
}

/// Passes a request on and its answer back, both streaming.
///
/// What goes to the back end is written anew from what was understood, with one Host and one
/// length, so that it can't be read in another way there.
pub(super) async fn forward(
    backend: &Backend,
    url: &Uri,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    client: SocketAddr,
    settings: &IngressSettings,
) -> Result<Response<Body>, Refused> {
    let host = host(&request)?;
    *request.uri_mut() = target(url, &request)?;
    *request.version_mut() = Version::HTTP_11;
    let (length, empty) = (request.body().size_hint().exact(), request.body().is_end_stream());
    let headers = request.headers_mut();
    // curl and others offer h2c beside a request that is fine without; anything else they insist on.
    if headers.get_all(header::UPGRADE).iter().any(|to| !to.as_bytes().eq_ignore_ascii_case(b"h2c")) {
        return Err(Refused::Upgrade);
    }
    // Answered here, when the body is asked for.
    if headers.get_all(header::EXPECT).iter().any(|to| !to.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refused::Expectation);
    }
    headers.remove(header::EXPECT);
    remove_hop_by_hop(headers);
    headers.remove(HeaderName::from_static("http2-settings"));
    note_client(headers, peer, lies_in(&settings.forwarded_for_from, peer.ip()));
    match host {
        Some(host) => headers.insert(header::HOST, host),
        None => headers.remove(header::HOST),
    };
    match length {
        Some(0) if empty && !headers.contains_key(header::CONTENT_LENGTH) => (),
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        None => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    let place = backend.requests.enter(settings.http_backend_connections).map_err(|_| Refused::Busy)?;
    let (parts, body) = request.into_parts();
    let (body, progress) = Paced::new(body, settings.login_timeout);
    let mut answer = pin!(backend.client.request(Request::from_parts(parts, body)));
    let answered = loop {
        // As long as the body comes, the back end need not answer.
        let deadline = progress.last() + ANSWER_TIMEOUT;
        match timeout_at(deadline.into(), &mut answer).await {
            Ok(answered) => break Some(answered),
            Err(_) if progress.last() + ANSWER_TIMEOUT > Instant::now() => (),
            Err(_) => break None,
        }
    };
    Ok(match (answered, progress.fault()) {
        (Some(Ok(response)), _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            warn!(%client, %url, "web back end: switches protocols unasked");
            page(StatusCode::BAD_GATEWAY, "The web server behind this port gave no answer of HTTP.\n").map(own)
        }
        (Some(Ok(mut response)), _) => {
            *response.version_mut() = Version::HTTP_11;
            let headers = response.headers_mut();
            if headers.contains_key(header::TRANSFER_ENCODING) {
                headers.remove(header::CONTENT_LENGTH);
            }
            remove_hop_by_hop(headers);
            response.map(|inner| Either::Right(Answered { inner, _place: place }))
        }
        (_, Some(fault)) => return Err(Refused::Body(fault)),
        (Some(Err(error)), None) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            warn!(%client, %url, %error, source, "web back end: no answer");
            page(StatusCode::BAD_GATEWAY, "The web server behind this port does not answer.\n").map(own)
        }
        (None, None) => {
            warn!(%client, %url, "web back end: no answer in time");
            page(StatusCode::GATEWAY_TIMEOUT, "The web server behind this port takes too long.\n").map(own)
        }
    })
}

/// An answer's body. The request takes a place until it is over.
pub(super) struct Answered {
    inner: Incoming,
    _place: Permit,
}

impl hyper::body::Body for Answered {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The host that a request is for; `None` only in HTTP/1.0, which need not say.
fn host(request: &Request<Incoming>) -> Result<Option<HeaderValue>, Refused> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host),
        (None, _) if request.version() == Version::HTTP_10 => None,
        _ => return Err(Refused::Host),
    };
    let legal = |host: &[u8]| {
        let character = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(b);
        host.iter().all(character) && Authority::try_from(host).is_ok_and(|authority| !authority.host().is_empty())
    };
    if host.is_some_and(|host| !legal(host.as_bytes())) {
        return Err(Refused::Host);
    }
    // An absolute form names the host itself, whatever the Host header says (RFC 9112, 3.2.2).
    match request.uri().authority() {
        Some(named) if !legal(named.as_str().as_bytes()) => Err(Refused::Target),
        Some(named) => HeaderValue::from_str(named.as_str()).map(Some).map_err(|_| Refused::Target),
        None => Ok(host.cloned()),
    }
}

/// The request's path on the back end.
fn target(url: &Uri, request: &Request<Incoming>) -> Result<Uri, Refused> {
    if ["CONNECT", "TRACE", "TRACK"].iter().any(|method| method.eq_ignore_ascii_case(request.method().as_str())) {
        return Err(Refused::Method);
    }
    let asked = request.uri();
    let web = asked.scheme().is_none_or(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
    let path = match asked.path_and_query() {
        // `host:port` alone is CONNECT's form, `*` asks for no page.
        Some(path) if web && path.as_str().starts_with('/') => path.clone(),
        Some(path) if web && asked.scheme().is_some() && path.as_str().starts_with('?') => {
            path.to_string().parse().map_err(|_| Refused::Target)?
        }
        None if web && asked.scheme().is_some() => PathAndQuery::from_static("/"),
        _ => return Err(Refused::Target),
    };
    let mut parts = hyper::http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = url.authority().cloned();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| Refused::Target)
}

/// Removes the headers that end here, those named by Connection among them.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        // A client can't have taken away what is the message's own, or ours.
        if ![header::CONTENT_LENGTH, header::HOST, FORWARDED_FOR].contains(name) {
            headers.remove(name);
        }
    }
}

/// Adds the peer to X-Forwarded-For; what stood there stays only if the peer is believed.
fn note_client(headers: &mut HeaderMap, peer: SocketAddr, believed: bool) {
    let mut line = Vec::new();
    if believed {
        for value in headers.get_all(FORWARDED_FOR) {
            line.extend_from_slice(value.as_bytes());
            line.extend_from_slice(b", ");
        }
    }
    line.extend_from_slice(peer.ip().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(line)) {
        headers.insert(FORWARDED_FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_connection_end_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret , content-length"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length"]);
    }

    #[test]
    fn the_peer_is_noted_and_invention_is_not_passed_on() {
        let peer = "10.0.0.1:1".parse().expect("address");
        for (believed, expected) in [(false, "10.0.0.1"), (true, "6.6.6.6, 10.0.0.1")] {
            let mut headers = HeaderMap::new();
            headers.append(FORWARDED_FOR, HeaderValue::from_static("6.6.6.6"));
            note_client(&mut headers, peer, believed);
            assert_eq!(headers[FORWARDED_FOR], expected);
        }
    }
}
