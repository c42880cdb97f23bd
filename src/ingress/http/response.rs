//! The responses that a client port makes itself. Each is one value, [`PortResponse`], with two encoders:
//!
//! | encoder | used by |
//! |---|---|
//! | into a `hyper::Response` | requests that hyper has read |
//! | [`PortResponse::head`], [`PortResponse::to_bytes`] | the fast path; connections that are refused unread |
//!
//! Both encoders write the same bytes, so a client cannot see which path its request took. A test compares them.

use std::{borrow::Cow, cell::RefCell, io::Write, time::SystemTime};

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};

use crate::{
    ingress::tunnel::TunnelBody,
    limits::budget::LITTLE,
    telemetry::outcome::{Outcome, Sent},
};

/// Headers that are the same in each response of a kind, in both forms that the encoders need. Content-Length, Date and
/// Connection are not among them.
#[derive(Debug)]
struct FixedHeaders {
    /// Complete lines, as they are written.
    lines: &'static str,
    /// Names and values.
    pairs: &'static [(&'static str, &'static str)],
}

/// Makes both forms from one list.
macro_rules! fixed_headers {
    ($($name:literal: $value:literal;)+) => {
        FixedHeaders { lines: concat!($($name, ": ", $value, "\r\n",)+), pairs: &[$(($name, $value),)+] }
    };
}

/// A page.
static PAGE: FixedHeaders = fixed_headers! {
    "content-type": "text/plain; charset=utf-8";
    "x-content-type-options": "nosniff";
    "cache-control": "no-store";
};
/// A page with status 503: the client may come again after so many seconds.
static PAGE_RETRY: FixedHeaders = fixed_headers! {
    "content-type": "text/plain; charset=utf-8";
    "x-content-type-options": "nosniff";
    "cache-control": "no-store";
    "retry-after": "10";
};
/// A page that names the methods of the tunnel's paths.
static PAGE_ALLOW: FixedHeaders = fixed_headers! {
    "content-type": "text/plain; charset=utf-8";
    "x-content-type-options": "nosniff";
    "cache-control": "no-store";
    "allow": "POST, GET, HEAD, OPTIONS";
};
/// A page with status 405, for a method that is not passed on.
static PAGE_ALLOW_WEB: FixedHeaders = fixed_headers! {
    "content-type": "text/plain; charset=utf-8";
    "x-content-type-options": "nosniff";
    "cache-control": "no-store";
    "allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
};
/// Bytes of the tunnel.
static TUNNEL: FixedHeaders = fixed_headers! {
    "content-type": "application/octet-stream";
    "cache-control": "no-cache, no-store";
    "pragma": "no-cache";
};

/// The response to a streaming client's GET request, which has no end. The last two keep proxies from storing it.
static STREAM: FixedHeaders = fixed_headers! {
    "content-type": "application/octet-stream";
    "cache-control": "no-cache, no-transform";
    "pragma": "no-cache";
    "x-accel-buffering": "no";
};

/// Bytes that the longest head needs.
const HEAD_ROOM: usize = 256;

/// The status that a request with this outcome is answered with.
pub(super) fn status_of(outcome: impl Outcome) -> StatusCode {
    let status = match outcome.policy().sent {
        Sent::Status(status) => StatusCode::from_u16(status).ok(),
        Sent::Nothing | Sent::Farewell(_) | Sent::LinkFailure | Sent::LastBytes | Sent::TlsAlert(_) => None,
    };
    // Outcomes of requests all have one; a test of this room walks them.
    status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// What becomes of a connection behind a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    /// It takes the next request.
    KeptAlive,
    /// It closes.
    Closes,
    /// It closes, because the request is in HTTP/1.0. So is the response.
    ClosesOld,
}

/// A response that a client port makes itself.
#[derive(Debug)]
pub(super) struct PortResponse {
    status: StatusCode,
    headers: &'static FixedHeaders,
    reuse: Reuse,
    body: PortBody,
}

#[derive(Debug)]
enum PortBody {
    Text(Cow<'static, str>),
    /// Counted where it is, so it is not copied when it is long.
    Tunnel(TunnelBody),
}

impl PortResponse {
    /// A page of one sentence, or of none.
    pub(super) fn page(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        let headers = if status == StatusCode::SERVICE_UNAVAILABLE { &PAGE_RETRY } else { &PAGE };
        Self { status, headers, reuse: Reuse::KeptAlive, body: PortBody::Text(text.into()) }
    }

    /// 200 with bytes of the tunnel.
    pub(super) fn tunnel(payload: TunnelBody) -> Self {
        Self { status: StatusCode::OK, headers: &TUNNEL, reuse: Reuse::KeptAlive, body: PortBody::Tunnel(payload) }
    }

    /// The response of another node of the cluster. `body` counts it where it is.
    pub(super) fn passed(status: StatusCode, body: TunnelBody) -> Self {
        let headers = match status {
            StatusCode::OK => &TUNNEL,
            StatusCode::SERVICE_UNAVAILABLE => &PAGE_RETRY,
            _ => &PAGE,
        };
        Self { status, headers, reuse: Reuse::KeptAlive, body: PortBody::Tunnel(body) }
    }

    /// A page that names the methods of the tunnel's paths.
    pub(super) fn tunnel_methods(status: StatusCode, text: &'static str) -> Self {
        Self { headers: &PAGE_ALLOW, ..Self::page(status, text) }
    }

    /// 405, for a method that is not passed on to the web server.
    pub(super) fn web_method_not_allowed(text: &'static str) -> Self {
        Self { headers: &PAGE_ALLOW_WEB, ..Self::page(StatusCode::METHOD_NOT_ALLOWED, text) }
    }

    /// The same response, behind which the connection closes.
    pub(super) fn closing(self) -> Self {
        Self { reuse: Reuse::Closes, ..self }
    }

    /// The same response, for a request after which the connection goes on in this way.
    pub(super) fn with_reuse(self, reuse: Reuse) -> Self {
        if self.reuse == Reuse::KeptAlive { Self { reuse, ..self } } else { self }
    }

    /// The body's bytes.
    pub(super) fn body(&self) -> &[u8] {
        match &self.body {
            PortBody::Text(text) => text.as_bytes(),
            PortBody::Tunnel(payload) => payload,
        }
    }

    /// Status line and headers, with the empty line behind them, as hyper writes them. The `Vec` has room for a body
    /// of up to [`LITTLE`] bytes.
    pub(super) fn head(&self) -> Vec<u8> {
        let length = self.body().len();
        let mut head = Vec::with_capacity(HEAD_ROOM + length.min(LITTLE));
        let mut write = |parts: &[&str]| parts.iter().for_each(|part| head.extend_from_slice(part.as_bytes()));
        let version = if self.reuse == Reuse::ClosesOld { "HTTP/1.0 " } else { "HTTP/1.1 " };
        write(&[version, self.status.as_str(), " ", self.status.canonical_reason().unwrap_or_default(), "\r\n"]);
        write(&[self.headers.lines]);
        if self.reuse == Reuse::Closes {
            write(&["connection: close\r\n"]);
        }
        // Writing to a Vec does not fail.
        let _ = write!(head, "content-length: {length}\r\ndate: ");
        DATE.with_borrow_mut(|date| head.extend_from_slice(date.now()));
        head.extend_from_slice(b"\r\n\r\n");
        head
    }

    /// The whole response, as hyper writes it.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        bytes.extend_from_slice(self.body());
        bytes
    }
}

impl From<PortResponse> for Response<Bytes> {
    fn from(response: PortResponse) -> Self {
        let PortResponse { status, headers: fixed, reuse, body } = response;
        let mut response = Self::new(match body {
            PortBody::Text(Cow::Borrowed(text)) => Bytes::from_static(text.as_bytes()),
            PortBody::Text(Cow::Owned(text)) => text.into(),
            PortBody::Tunnel(payload) => payload.into(),
        });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in fixed.pairs {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        if reuse == Reuse::Closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // hyper adds Content-Length and Date.
        response
    }
}

/// Status line and headers of the response to a streaming client's GET request, with the empty line behind them. In
/// chunks the response is in HTTP/1.1; otherwise in HTTP/1.0, and it ends with the connection.
pub(super) fn stream_head(is_chunked: bool) -> Vec<u8> {
    let (version, length) = match is_chunked {
        true => ("HTTP/1.1", "connection: close\r\ntransfer-encoding: chunked\r\n"),
        false => ("HTTP/1.0", "connection: close\r\n"),
    };
    let mut head = Vec::with_capacity(2 * HEAD_ROOM);
    for part in [version, " 200 OK\r\n", STREAM.lines, length, "date: "] {
        head.extend_from_slice(part.as_bytes());
    }
    DATE.with_borrow_mut(|date| head.extend_from_slice(date.now()));
    head.extend_from_slice(b"\r\n\r\n");
    head
}

thread_local! {
    static DATE: RefCell<DateHeader> = RefCell::default();
}

/// The value of the Date header, formatted once a second.
#[derive(Default)]
struct DateHeader {
    /// Since the Unix epoch.
    second: u64,
    text: Vec<u8>,
}

impl DateHeader {
    fn now(&mut self) -> &[u8] {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text.clear();
            let _ = write!(self.text, "{}", httpdate::HttpDate::from(now));
        }
        &self.text
    }
}
