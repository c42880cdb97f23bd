//! HTTP on a client port: the tunnel, and everything else to the web back end.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tracing::debug;

use super::{
    Ingress, Origin, Settings, backend, believed,
    tunnel::{
        self, Answer,
        envelope::{self, Address, Kind},
    },
};

/// What this floor answers with: bytes of its own, or the back end's stream.
pub(super) type Body = Either<Full<Bytes>, Incoming>;

/// Bytes of a request's head, at the most.
const MAX_HEAD: usize = 16 * 1024;
/// When there is no room, or the multiplexer is being stopped: seconds until a client may
/// come again.
const RETRY_AFTER: &str = "10";
/// The header that proxies note their client in.
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Serves HTTP/1 on `stream` until it closes.
///
/// A connection between two requests is hyper's, with its buffers. It could be parked here:
/// an idle hyper connection can be taken apart into stream and read bytes, and put together
/// again when the stream is readable.
pub(super) async fn serve<S>(ingress: Arc<Ingress>, stream: S, origin: Origin)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let head_timeout = ingress.settings.load().login_timeout;
    let service = service_fn(|request| {
        let ingress = Arc::clone(&ingress);
        async move { Ok::<_, Infallible>(answer(&ingress, request, origin).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        ingress.telemetry.connection_dropped("http");
        debug!(client = %origin.client, port = origin.port, %error, "HTTP connection ended");
    }
}

async fn answer(ingress: &Ingress, request: Request<Incoming>, origin: Origin) -> Response<Body> {
    let settings = ingress.settings.load_full();
    let client = client_of(&settings, request.headers(), origin.client);
    let path = request.uri().path();
    match envelope::address(path) {
        Address::Tunnel(kind, name) if request.method() == Method::POST => {
            let name = name.to_owned();
            tunnelled(ingress, &settings, request, kind, &name, client, origin.port).await
        }
        Address::Probe | Address::Tunnel(..) if [Method::GET, Method::HEAD].contains(request.method()) => {
            page(StatusCode::OK, "Sametime Community tunnel: ready for clients.\n")
        }
        Address::Probe | Address::Tunnel(..) => {
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, "The tunnel takes POST.\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, GET, HEAD"));
            response
        }
        Address::Malformed => {
            ingress.telemetry.tunnel_request("unknown", "malformed");
            page(StatusCode::NOT_FOUND, "Not found.\n")
        }
        Address::Other => match &settings.http_backend {
            Some(url) => backend::forward(&ingress.backend, url, request, origin.client, client, &settings).await,
            None => page(StatusCode::NOT_FOUND, "Not found. This port is for Sametime clients.\n"),
        },
    }
}

/// Answers a request of the tunnel.
async fn tunnelled(
    ingress: &Ingress,
    settings: &Settings,
    request: Request<Incoming>,
    kind: Kind,
    name: &str,
    client: SocketAddr,
    port: u16,
) -> Response<Body> {
    let label = tunnel::transport(kind).name();
    let body = match collect(request.into_body(), settings).await {
        Ok(body) => body,
        Err((status, outcome)) => {
            ingress.telemetry.tunnel_request(label, outcome);
            let mut response = page(status, "");
            // What is left of the body is not waited for.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return response;
        }
    };
    let (answer, outcome) = if name.is_empty() {
        ingress.tunnel.open(kind, &body, client, port)
    } else {
        ingress.tunnel.request(kind, name, &body).await
    };
    ingress.telemetry.tunnel_request(label, outcome);
    match answer {
        Answer::Body(body) => {
            let mut response = Response::new(Either::Left(Full::new(body.into())));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
            headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
            response
        }
        Answer::Malformed => page(StatusCode::BAD_REQUEST, "Not a request of the tunnel.\n"),
        Answer::Unknown => page(StatusCode::NOT_FOUND, "No such session.\n"),
        Answer::Refused(refusal) => unavailable(refusal.name()),
        Answer::Busy => unavailable("busy"),
        Answer::Failed => page(StatusCode::INTERNAL_SERVER_ERROR, "No session could be made.\n"),
    }
}

/// Reads a request's body, bounded in bytes and time.
async fn collect(body: Incoming, settings: &Settings) -> Result<Bytes, (StatusCode, &'static str)> {
    // Frames come in the tunnel's envelope, several in one request.
    let limit = 2 * settings.max_frame as usize + 64 * 1024;
    if body.size_hint().lower() > limit as u64 {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, "too_large"));
    }
    match timeout(settings.login_timeout.max(Duration::from_secs(1)), Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err((StatusCode::PAYLOAD_TOO_LARGE, "too_large")),
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "cut_off")),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "too_slow")),
    }
}

/// The client behind a believed proxy's X-Forwarded-For: the last address that is no believed
/// proxy's. Addresses in front of it could be anybody's invention.
fn client_of(settings: &Settings, headers: &HeaderMap, peer: SocketAddr) -> SocketAddr {
    let mut client = peer;
    let lines = headers.get_all(FORWARDED_FOR).into_iter().collect::<Vec<_>>();
    let hops = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|&b| b == b','));
    for hop in hops {
        if !believed(&settings.forwarded_for_from, client.ip()) {
            break;
        }
        let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| hop_address(hop.trim())) else { break };
        client = address;
    }
    client
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]:5`.
fn hop_address(hop: &str) -> Option<SocketAddr> {
    let ip = |text: &str| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip.to_canonical(), 0));
    hop.parse().ok().or_else(|| ip(hop)).or_else(|| ip(hop.strip_prefix('[')?.strip_suffix(']')?))
}

fn unavailable(why: &str) -> Response<Body> {
    let mut response = page(StatusCode::SERVICE_UNAVAILABLE, &format!("No room for this client now: {why}.\n"));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    response
}

/// A short plain answer.
pub(super) fn page(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::copy_from_slice(text.as_bytes()))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::{TlsSettings, tunnel};

    fn settings(believed: &[&str]) -> Settings {
        Settings {
            listeners: vec![],
            require_all: false,
            proxy_protocol_from: vec![],
            forwarded_for_from: believed.iter().map(|net| net.parse().expect("network")).collect(),
            login_timeout: Duration::from_secs(1),
            max_frame: 1024,
            tls: TlsSettings { certificate: "c".into(), private_key: "k".into() },
            http_backend: None,
            tunnel: tunnel::Settings {
                hold: Duration::from_secs(1),
                reply_wait: Duration::ZERO,
                session_timeout: Duration::from_secs(1),
                version: 0,
                window: 1024,
            },
        }
    }

    #[test]
    fn only_believed_proxies_name_the_client() {
        let peer: SocketAddr = "10.0.0.1:5000".parse().expect("address");
        let client = |settings: &Settings, lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().expect("value"));
            }
            client_of(settings, &headers, peer).ip().to_string()
        };
        let nobody = settings(&[]);
        assert_eq!(client(&nobody, &["1.2.3.4"]), "10.0.0.1");
        let proxies = settings(&["10.0.0.0/8"]);
        assert_eq!(client(&proxies, &[]), "10.0.0.1");
        assert_eq!(client(&proxies, &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client(&proxies, &["6.6.6.6, 1.2.3.4, 10.0.0.2"]), "1.2.3.4");
        assert_eq!(client(&proxies, &["6.6.6.6", "[2001:db8::1]:99, 10.9.9.9"]), "2001:db8::1");
        assert_eq!(client(&proxies, &["1.2.3.4, rubbish"]), "10.0.0.1");
        assert_eq!(client(&proxies, &["::ffff:1.2.3.4"]), "1.2.3.4");
    }
}
