//! The web back end: where requests that are not the tunnel's go.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::Either;
use hyper::{
    Method, Request, Response, StatusCode, Uri, Version,
    body::Incoming,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::{PathAndQuery, Scheme},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;
use tracing::warn;

use super::{
    Settings, believed,
    http::{Body, FORWARDED_FOR, page},
};

/// How long the back end may take to accept a connection, and to begin its answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

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

/// Connections to the back end, kept for the next request.
pub(super) struct Backend(Client<HttpConnector, Incoming>);

impl Backend {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self(client)
    }
}

/// Passes a request on and its answer back, both streaming.
pub(super) async fn forward(
    backend: &Backend,
    url: &Uri,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    client: SocketAddr,
    settings: &Settings,
) -> Response<Body> {
    if request.method() == Method::CONNECT {
        return page(StatusCode::METHOD_NOT_ALLOWED, "This is no forward proxy.\n");
    }
    // curl and others offer h2c beside a request that is fine without; anything else they insist on.
    if request.headers().get(header::UPGRADE).is_some_and(|to| !to.as_bytes().eq_ignore_ascii_case(b"h2c")) {
        return page(StatusCode::NOT_IMPLEMENTED, "Upgrades are not passed on.\n");
    }
    let Some(uri) = target(url, request.uri()) else {
        return page(StatusCode::BAD_REQUEST, "The request's target can't be passed on.\n");
    };
    // An absolute form names the host itself, whatever the Host header says (RFC 9112, 3.2.2).
    if let Some(host) = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    headers.remove(HeaderName::from_static("http2-settings"));
    note_client(headers, peer, believed(&settings.forwarded_for_from, peer.ip()));
    match timeout(ANSWER_TIMEOUT, backend.0.request(request)).await {
        Ok(Ok(mut response)) => {
            remove_hop_by_hop(response.headers_mut());
            response.map(Either::Right)
        }
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            warn!(%client, %url, %error, source, "web back end: no answer");
            page(StatusCode::BAD_GATEWAY, "The web server behind this port does not answer.\n")
        }
        Err(_) => {
            warn!(%client, %url, "web back end: no answer in time");
            page(StatusCode::GATEWAY_TIMEOUT, "The web server behind this port takes too long.\n")
        }
    }
}

/// The request's path on the back end.
fn target(url: &Uri, request: &Uri) -> Option<Uri> {
    let path = request.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let mut parts = hyper::http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(url.authority()?.clone());
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
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
        // A client can't have the message's own length taken away.
        if *name != header::CONTENT_LENGTH && *name != header::HOST {
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
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["content-length", "accept"]);
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
