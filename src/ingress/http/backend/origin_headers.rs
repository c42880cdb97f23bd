//! The headers that tell the web server who asked, for which host, and whether with TLS: `X-Forwarded-For`, `-Proto` and
//! `-Host`, and `Forwarded` (RFC 7239). Whoever ends TLS has to set them: a web server that gets the request without TLS
//! would redirect its client to https for ever.
//!
//! | header | the peer is not a trusted proxy | the peer is a trusted proxy |
//! |---|---|---|
//! | `X-Forwarded-For` | the peer | the proxy's list, and behind it the peer |
//! | `X-Forwarded-Proto`, `-Host` | of this connection | the proxy's; if it sent none, those of its `Forwarded`, or of this connection |
//! | `Forwarded` | one element | the proxy's list, or one made of its `X-Forwarded-...`, and behind it the peer |
//! | other headers of that kind | removed | stay |
//!
//! `Forwarded` and `X-Forwarded-...` never contradict each other, whichever of them the web server believes.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::ingress::http::forwarded::FORWARDED_FOR;

pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const FORWARDED: HeaderName = hyper::header::FORWARDED;

/// Headers that some proxy or connector sets, and that a web server may believe.
const OF_PROXIES: [&str; 7] = [
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "front-end-https",
    "x-url-scheme",
    "client-ip",
];
/// What such headers begin with. Those of the connectors of Domino and WebSphere name even a user (`$WSRU`).
const OF_PROXIES_PREFIXES: [&str; 2] = ["x-forwarded", "$ws"];

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingress::http) struct RequestOrigin {
    /// The other end of the connection.
    pub(in crate::ingress::http) peer: SocketAddr,
    /// Whether it is a trusted proxy.
    pub(in crate::ingress::http) is_trusted: bool,
    /// Whether the connection uses TLS.
    pub(in crate::ingress::http) is_tls: bool,
}

/// Sets the headers. `host` is the host that the request is for, of legal characters.
pub(super) fn set(headers: &mut HeaderMap, origin: &RequestOrigin, host: Option<&HeaderValue>) {
    if !origin.is_trusted {
        remove_forged(headers);
    }
    let named = FirstElement::of(headers.get(FORWARDED).map(HeaderValue::as_bytes).unwrap_or_default());
    let proto = first_value(headers, &FORWARDED_PROTO)
        .or(named.proto)
        .filter(|proto| ["http", "https"].contains(&proto.as_str()))
        .unwrap_or_else(|| if origin.is_tls { "https" } else { "http" }.to_owned());
    let asked = host.and_then(|host| host.to_str().ok()).map(ToOwned::to_owned);
    let host = first_value(headers, &FORWARDED_HOST).or(named.host).filter(|host| is_host(host)).or(asked);
    add(headers, &FORWARDED_FOR, &origin.peer.ip().to_string());
    let elements = if headers.contains_key(FORWARDED) {
        element(&origin.peer.ip().to_string(), None, None)
    } else {
        let list = joined(headers, &FORWARDED_FOR);
        let mut hops = list.split(',').map(str::trim);
        let first = element(hops.next().unwrap_or_default(), host.as_deref(), Some(&proto));
        hops.fold(first, |list, hop| list + ", " + &element(hop, None, None))
    };
    add(headers, &FORWARDED, &elements);
    set_if_absent(headers, FORWARDED_PROTO, &proto);
    if let Some(host) = host {
        set_if_absent(headers, FORWARDED_HOST, &host);
    }
}

/// Removes what an untrusted peer wrote.
fn remove_forged(headers: &mut HeaderMap) {
    let is_forged = |name: &&HeaderName| {
        let name = name.as_str();
        OF_PROXIES.contains(&name) || OF_PROXIES_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    let forged: Vec<HeaderName> = headers.keys().filter(is_forged).cloned().collect();
    for name in forged.iter().chain([&FORWARDED]) {
        headers.remove(name);
    }
}

/// The values of a header as one list.
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    lines.join(", ")
}

/// The first value of a list.
fn first_value(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.split(',').next()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// Puts `value` behind the values of a header.
fn add(headers: &mut HeaderMap, name: &HeaderName, value: &str) {
    let mut line = Vec::new();
    for value in headers.get_all(name) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(value.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(line)) {
        headers.insert(name, value);
    }
}

fn set_if_absent(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if !headers.contains_key(&name)
        && let Ok(value) = HeaderValue::from_str(value)
    {
        headers.insert(name, value);
    }
}

/// An element of `Forwarded`. `hop` is one of X-Forwarded-For.
fn element(hop: &str, host: Option<&str>, proto: Option<&str>) -> String {
    let mut element = match hop.parse::<SocketAddr>().map(|hop| hop.ip()).or_else(|_| hop.parse()) {
        Ok(IpAddr::V4(address)) => format!("for={address}"),
        Ok(IpAddr::V6(address)) => format!("for=\"[{address}]\""),
        Err(_) => "for=unknown".to_owned(),
    };
    // Writing to a String does not fail.
    if let Some(host) = host {
        let _ = write!(element, ";host=\"{host}\"");
    }
    if let Some(proto) = proto {
        let _ = write!(element, ";proto={proto}");
    }
    element
}

/// Whether `host` needs no escape in a quoted string.
fn is_host(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
}

/// What the first element of `Forwarded` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct FirstElement {
    proto: Option<String>,
    host: Option<String>,
}

impl FirstElement {
    fn of(line: &[u8]) -> Self {
        let (mut parameters, mut is_quoted) = (vec![Vec::new()], false);
        for &byte in line {
            match byte {
                b'"' => is_quoted = !is_quoted,
                b',' if !is_quoted => break,
                b';' if !is_quoted => parameters.push(Vec::new()),
                byte => parameters.last_mut().into_iter().for_each(|parameter| parameter.push(byte)),
            }
        }
        let mut first = Self::default();
        for parameter in parameters {
            let parameter = String::from_utf8_lossy(&parameter).into_owned();
            let Some((name, value)) = parameter.split_once('=') else { continue };
            let value = value.trim().to_owned();
            match name.trim().to_ascii_lowercase().as_str() {
                "proto" => first.proto = Some(value.to_ascii_lowercase()),
                "host" => first.host = Some(value),
                _ => (),
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the web server gets of these headers: X-Forwarded-For, -Proto, -Host, and Forwarded.
    fn sent(is_trusted: bool, is_tls: bool, lines: &[(&'static str, &str)]) -> [String; 4] {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        }
        let origin = RequestOrigin { peer: ([10, 0, 0, 1], 5000).into(), is_trusted, is_tls };
        set(&mut headers, &origin, Some(&HeaderValue::from_static("web.example:81")));
        [&FORWARDED_FOR, &FORWARDED_PROTO, &FORWARDED_HOST, &FORWARDED].map(|name| joined(&headers, name))
    }

    #[test]
    fn this_connection_counts_and_what_a_client_invents_does_not() {
        let forged = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=6.6.6.6;proto=https;host=evil.example"),
        ];
        for (is_tls, proto) in [(false, "http"), (true, "https")] {
            let expected = format!("for=10.0.0.1;host=\"web.example:81\";proto={proto}");
            let expected = ["10.0.0.1", proto, "web.example:81", &expected].map(ToOwned::to_owned);
            assert_eq!(sent(false, is_tls, &[]), expected);
            assert_eq!(sent(false, is_tls, &forged), expected);
            assert_eq!(sent(true, is_tls, &[]), expected, "a trusted proxy that says nothing");
        }
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_both_kinds_of_headers_say_the_same() {
        let made = sent(
            true,
            false,
            &[
                ("x-forwarded-for", "192.0.2.7, 2001:db8::1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "chat.example"),
            ],
        );
        let forwarded =
            "for=192.0.2.7;host=\"chat.example\";proto=https, for=\"[2001:db8::1]\", for=10.0.0.1".to_owned();
        assert_eq!(made[1..], ["https".to_owned(), "chat.example".to_owned(), forwarded]);
        assert_eq!(made[0], "192.0.2.7, 2001:db8::1, 10.0.0.1");
        let kept = sent(true, false, &[("forwarded", "for=\"[::1]:5\";Proto=HTTPS;host=\"a.example:8443\", for=x")]);
        let forwarded = "for=\"[::1]:5\";Proto=HTTPS;host=\"a.example:8443\", for=x, for=10.0.0.1".to_owned();
        assert_eq!(kept, ["10.0.0.1".to_owned(), "https".to_owned(), "a.example:8443".to_owned(), forwarded]);
        // What is not an address, a host or a protocol has no way into another header.
        let odd = sent(
            true,
            true,
            &[("x-forwarded-for", "x\";y"), ("x-forwarded-host", "a\";b"), ("x-forwarded-proto", "gopher")],
        );
        assert_eq!(odd[3], "for=unknown;host=\"web.example:81\";proto=https, for=10.0.0.1");
    }

    #[test]
    fn other_headers_of_proxies_are_believed_only_from_proxies() {
        for is_trusted in [false, true] {
            let mut headers = HeaderMap::new();
            for name in ["x-real-ip", "x-forwarded-server", "$wsru", "front-end-https", "x-forwarded", "accept"] {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
            }
            let origin = RequestOrigin { peer: ([10, 0, 0, 1], 5000).into(), is_trusted, is_tls: false };
            set(&mut headers, &origin, None);
            assert_eq!(headers.contains_key("$wsru"), is_trusted);
            assert_eq!(headers.len(), 3 + if is_trusted { 6 } else { 1 }, "{headers:?}");
            assert!(!headers.contains_key(FORWARDED_HOST), "HTTP/1.0 without a host");
        }
    }
}
