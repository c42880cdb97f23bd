//! Rewrites a request on its way to the web server, and the response on its way back. Knows no socket.
//!
//! The web server gets a request that is written anew from what was parsed here, with one Host and one length. So it
//! cannot read it in another way. A request that leaves a doubt is refused.

use hyper::{
    Request, Response, Uri, Version,
    body::Body,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::{Authority, Parts, PathAndQuery, Scheme},
};

use super::{
    BackendRefusal,
    origin_headers::{self, FORWARDED, FORWARDED_HOST, FORWARDED_PROTO, RequestOrigin},
};
use crate::ingress::http::forwarded::FORWARDED_FOR;

/// Methods that are not passed on.
const REFUSED_METHODS: [&str; 3] = ["CONNECT", "TRACE", "TRACK"];

/// Headers about one connection and not about the message (RFC 9110, 7.6.1).
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
/// Headers that stay even where Connection names them: a client must not be able to remove what is the message's own,
/// or ours.
const NEVER_HOP_BY_HOP: [HeaderName; 7] =
    [header::CONTENT_LENGTH, header::HOST, header::VIA, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED];

/// Rewrites `request`, which came from `origin`, for the web server at `url`. `via` is the member that its Via gets.
///
/// An Upgrade may always be ignored (RFC 9110, 7.8), and is: the request is served as one of HTTP/1.1.
///
/// # Errors
/// Why the request is not passed on.
pub(super) fn rewrite_request<B: Body>(
    request: &mut Request<B>,
    url: &Uri,
    origin: &RequestOrigin,
    via: Option<String>,
) -> Result<(), BackendRefusal> {
    let host = host(request)?;
    *request.uri_mut() = target(url, request)?;
    *request.version_mut() = Version::HTTP_11;
    let (length, is_empty) = (request.body().size_hint().exact(), request.body().is_end_stream());
    let headers = request.headers_mut();
    // hyper answers 100-continue itself, when the body is read.
    if headers.get_all(header::EXPECT).iter().any(|to| !to.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(BackendRefusal::Expectation);
    }
    headers.remove(header::EXPECT);
    remove_hop_by_hop(headers);
    headers.remove(HeaderName::from_static("http2-settings"));
    origin_headers::set(headers, origin, host.as_ref());
    if let Some(via) = via.and_then(|via| HeaderValue::try_from(via).ok()) {
        headers.append(header::VIA, via);
    }
    match host {
        Some(host) => headers.insert(header::HOST, host),
        None => headers.remove(header::HOST),
    };
    match length {
        Some(0) if is_empty && !headers.contains_key(header::CONTENT_LENGTH) => (),
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        None => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    Ok(())
}

/// Rewrites the web server's response for the client.
pub(super) fn rewrite_response<B>(response: &mut Response<B>) {
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
}

/// The host that a request is for. `None` only in HTTP/1.0, where it may be missing.
fn host<B>(request: &Request<B>) -> Result<Option<HeaderValue>, BackendRefusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host),
        (None, _) if request.version() == Version::HTTP_10 => None,
        _ => return Err(BackendRefusal::Host),
    };
    if host.is_some_and(|host| !is_legal_host(host.as_bytes())) {
        return Err(BackendRefusal::Host);
    }
    // A URL as the target names the host itself, and the Host header does not count (RFC 9112, 3.2.2).
    match request.uri().authority() {
        Some(named) if !is_legal_host(named.as_str().as_bytes()) => Err(BackendRefusal::Target),
        Some(named) => HeaderValue::from_str(named.as_str()).map(Some).map_err(|_| BackendRefusal::Target),
        None => Ok(host.cloned()),
    }
}

/// Whether `host` is `name`, `name:port`, or the same with an address.
fn is_legal_host(host: &[u8]) -> bool {
    let is_legal = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(b);
    host.iter().all(is_legal) && Authority::try_from(host).is_ok_and(|authority| !authority.host().is_empty())
}

/// The request's URL at the web server.
fn target<B>(url: &Uri, request: &Request<B>) -> Result<Uri, BackendRefusal> {
    if REFUSED_METHODS.iter().any(|method| method.eq_ignore_ascii_case(request.method().as_str())) {
        return Err(BackendRefusal::Method);
    }
    let asked = request.uri();
    let is_web = asked.scheme().is_none_or(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
    let path = match asked.path_and_query() {
        // `host:port` alone is the form of CONNECT, and `*` names no page.
        Some(path) if is_web && path.as_str().starts_with('/') => path.clone(),
        Some(path) if is_web && asked.scheme().is_some() && path.as_str().starts_with('?') => {
            path.to_string().parse().map_err(|_| BackendRefusal::Target)?
        }
        None if is_web && asked.scheme().is_some() => PathAndQuery::from_static("/"),
        _ => return Err(BackendRefusal::Target),
    };
    let mut parts = Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = url.authority().cloned();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| BackendRefusal::Target)
}

/// Removes the headers about one connection, and those that Connection names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named).filter(|name| !NEVER_HOP_BY_HOP.contains(name)) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        net::{Ipv4Addr, SocketAddr, SocketAddrV4},
        pin::Pin,
        task::{Context, Poll},
    };

    use super::*;
    use bytes::Bytes;
    use http_body_util::{Empty, Full};
    use hyper::{Method, body::Frame};

    const ORIGIN: RequestOrigin = RequestOrigin {
        peer: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 5000)),
        is_trusted: false,
        is_tls: false,
    };

    /// A request with these headers.
    fn request<B>(method: &str, target: &str, headers: &[(&'static str, &str)], body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(method.as_bytes()).expect("method");
        *request.uri_mut() = target.parse().expect("target");
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("value"));
        }
        request
    }

    fn rewrite<B: Body>(mut request: Request<B>) -> Result<Request<B>, BackendRefusal> {
        let via = Some("1.1 here".to_owned());
        rewrite_request(&mut request, &Uri::from_static("http://10.1.1.1:8080"), &ORIGIN, via)?;
        Ok(request)
    }

    /// The URL and the Host of what the web server gets.
    fn rewritten(method: &str, target: &str, hosts: &[&str]) -> Result<(String, String), BackendRefusal> {
        let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        let request = rewrite(request(method, target, &hosts, Empty::<Bytes>::new()))?;
        let host = request.headers()[header::HOST].to_str().expect("text").to_owned();
        Ok((request.uri().to_string(), host))
    }

    #[test]
    fn a_request_keeps_its_path_and_its_host() {
        for (target, host, expected) in [
            ("/a/b?c=d", "web.example", ("http://10.1.1.1:8080/a/b?c=d", "web.example")),
            ("/", "[::1]:80", ("http://10.1.1.1:8080/", "[::1]:80")),
            // The URL's host counts, and not the header.
            ("http://web.example/a", "other", ("http://10.1.1.1:8080/a", "web.example")),
            ("https://web.example:444", "other", ("http://10.1.1.1:8080/", "web.example:444")),
            ("http://web.example?q", "other", ("http://10.1.1.1:8080/?q", "web.example")),
        ] {
            let expected = (expected.0.to_owned(), expected.1.to_owned());
            assert_eq!(rewritten("GET", target, &[host]), Ok(expected), "{target}");
        }
    }

    #[test]
    fn what_leaves_a_doubt_is_refused() {
        use BackendRefusal::*;
        for (method, target, hosts, refusal) in [
            ("CONNECT", "web.example:443", &["web.example"][..], Method),
            ("TRACE", "/", &["web.example"], Method),
            ("track", "/", &["web.example"], Method),
            ("OPTIONS", "*", &["web.example"], Target),
            ("GET", "web.example:80", &["web.example"], Target),
            ("GET", "ftp://web.example/a", &["web.example"], Target),
            ("GET", "http://user:secret@web.example/a", &["web.example"], Target),
            ("GET", "/", &[], Host),
            ("GET", "/", &["web.example", "web.example"], Host),
            ("GET", "/", &[""], Host),
            ("GET", "/", &[":80"], Host),
            ("GET", "/", &["web.example/b"], Host),
            ("GET", "/", &["a@web.example"], Host),
            ("GET", "/", &["web.example, other"], Host),
        ] {
            assert_eq!(rewritten(method, target, hosts), Err(refusal), "{method} {target} {hosts:?}");
        }
        for (name, value, refusal) in [
            ("upgrade", "websocket", None),
            ("upgrade", "TLS/1.2", None),
            ("upgrade", "H2C", None),
            ("expect", "100-Continue", None),
            ("expect", "200-ok", Some(Expectation)),
        ] {
            let headers = [("host", "web.example"), (name, value)];
            let rewritten = rewrite(request("GET", "/", &headers, Empty::<Bytes>::new()));
            assert_eq!(rewritten.as_ref().err(), refusal.as_ref(), "{name}: {value}");
            assert!(rewritten.is_err() || !rewritten.is_ok_and(|request| request.headers().contains_key(name)));
        }
    }

    #[test]
    fn only_http_1_0_needs_no_host() {
        let mut old = request("GET", "/", &[], Empty::<Bytes>::new());
        *old.version_mut() = Version::HTTP_10;
        let rewritten = rewrite(old).expect("passed on");
        assert_eq!((rewritten.version(), rewritten.headers().get(header::HOST)), (Version::HTTP_11, None));
    }

    /// A body whose length nobody knows.
    struct Chunks;

    impl Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(None)
        }
    }

    #[test]
    fn a_request_gets_one_length() {
        let lengths = |headers: &HeaderMap| {
            let all = |name| headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned());
            (all(header::CONTENT_LENGTH).collect::<Vec<_>>(), all(header::TRANSFER_ENCODING).collect::<Vec<_>>())
        };
        let host = ("host", "web.example");
        let (length, chunked) = (("content-length", "3"), ("transfer-encoding", "chunked"));
        let none: Vec<String> = Vec::new();
        let get = rewrite(request("GET", "/", &[host], Empty::<Bytes>::new())).expect("passed on");
        assert_eq!(lengths(get.headers()), (none.clone(), none.clone()));
        let empty = rewrite(request("POST", "/", &[host, ("content-length", "0")], Empty::<Bytes>::new()));
        assert_eq!(lengths(empty.expect("passed on").headers()), (vec!["0".to_owned()], none.clone()));
        let whole = rewrite(request("POST", "/", &[host, length], Full::new(Bytes::from_static(b"abc"))));
        assert_eq!(lengths(whole.expect("passed on").headers()), (vec!["3".to_owned()], none.clone()));
        for headers in [&[host, chunked][..], &[host, length, chunked]] {
            let chunks = rewrite(request("POST", "/", headers, Chunks)).expect("passed on");
            assert_eq!(lengths(chunks.headers()), (none.clone(), vec!["chunked".to_owned()]));
        }
    }

    #[test]
    fn a_response_gets_one_length() {
        let mut response = Response::new(());
        for (name, value) in [("content-length", "3"), ("transfer-encoding", "chunked"), ("connection", "close")] {
            response.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        *response.version_mut() = Version::HTTP_10;
        rewrite_response(&mut response);
        assert_eq!((response.version(), response.headers().len()), (Version::HTTP_11, 0));
    }

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
    fn via_is_added_behind_that_of_the_client() {
        let headers = [("host", "web.example"), ("via", "1.0 proxy"), ("connection", "via")];
        let request = rewrite(request("GET", "/", &headers, Empty::<Bytes>::new())).expect("passed on");
        let via: Vec<_> = request.headers().get_all(header::VIA).iter().collect();
        assert_eq!(via, ["1.0 proxy", "1.1 here"]);
    }
}
