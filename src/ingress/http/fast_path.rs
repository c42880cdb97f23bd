//! Requests as nearly every client of the tunnel writes them, read and answered without hyper:
//! no buffer while a connection is idle or its request is held, one read and one write for each.
//!
//! What is not of this form to the letter is hyper's, with all its bytes. So the form is narrow
//! on purpose: a whole POST of HTTP/1.1 to the tunnel, its length by Content-Length or none,
//! nothing behind it, no header that asks for anything.

use std::{cell::RefCell, io::Write, time::SystemTime};

use bytes::Bytes;
use hyper::Response;

use super::{MAX_HEAD, framing::Framing};
use crate::{
    limits::budget::LITTLE,
    wire::tunnel::{
        envelope::{self, Address, TunnelKind},
        name::{SessionName, UrlName},
    },
};

/// Headers of a request, at the most; real clients send eight, proxies some more.
const HEADERS: usize = 32;
/// Bytes of a request that is waited for, at the most.
const MAX: usize = 64 * 1024;

/// A request of the tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) kind: TunnelKind,
    pub(super) name: UrlName,
    pub(super) body: Vec<u8>,
    /// X-Forwarded-For, its lines joined, where it is asked for.
    pub(super) forwarded: Option<Box<[u8]>>,
}

/// What a connection's bytes are, from the end of a request on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// One whole request.
    Call(Call),
    /// The beginning of one, its head whole: these bytes, and more to come.
    Begun(Bytes),
    /// Hyper's.
    Other(Bytes),
}

/// Looks at `bytes`, which begin where a request may begin; `forwarded`: X-Forwarded-For is
/// asked for.
pub(super) fn look(bytes: &[u8], forwarded: bool) -> Look {
    match read(bytes, forwarded) {
        Some((call, 0)) => Look::Call(call),
        Some(_) => Look::Begun(Bytes::copy_from_slice(bytes)),
        None => Look::Other(Bytes::copy_from_slice(bytes)),
    }
}

/// The request, and how many bytes of it are to come.
fn read(bytes: &[u8], forwarded: bool) -> Option<(Call, usize)> {
    if !bytes.starts_with(b"POST /") {
        return None;
    }
    // What hyper is guarded by holds here, too.
    let mut framing = Framing::default();
    framing.follow(bytes).ok()?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
    if (request.method, request.version) != (Some("POST"), Some(1)) {
        return None;
    }
    // No query, nothing that a URL's parser could have an opinion on.
    let path = request.path.filter(|path| path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/.-_".contains(&b)))?;
    let Address::Tunnel(kind, name) = envelope::address(path) else { return None };
    if matches!(name, UrlName::NotAName { length } if usize::from(length) > SessionName::DIGITS) {
        return None;
    }
    let (mut length, mut lines) = (0, Vec::new());
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            10 if is("connection") && !header.value.eq_ignore_ascii_case(b"keep-alive") => return None,
            14 if is("content-length") => {
                length = std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok()?;
            }
            17 if is("transfer-encoding") => return None,
            6 if is("expect") => return None,
            7 if is("upgrade") => return None,
            15 if forwarded && is("x-forwarded-for") => lines.push(header.value),
            _ => (),
        }
    }
    let end = head.checked_add(length).filter(|end| head <= MAX_HEAD && *end <= MAX)?;
    let missing = end.checked_sub(bytes.len())?;
    if missing == 0 && !(framing.requests() == 1 && framing.at_boundary()) {
        return None;
    }
    let body = if missing == 0 { bytes[head..end].to_vec() } else { Vec::new() };
    let forwarded = (!lines.is_empty()).then(|| lines.join(&b","[..]).into());
    Some((Call { kind, name, body, forwarded }, missing))
}

/// The response with the tunnel's bytes, as hyper would write it.
pub(super) fn tunnelled(body: &[u8]) -> Vec<u8> {
    let mut out = head(body.len());
    out.extend_from_slice(body);
    out
}

/// The head of a response with `length` bytes of the tunnel's. There is room for a short body.
pub(super) fn head(length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(192 + length.min(LITTLE));
    out.extend_from_slice(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncache-control: no-cache, no-store\r\npragma: no-cache\r\n",
    );
    end(&mut out, length);
    out
}

/// Any other response, as hyper would write it.
pub(super) fn written(response: &Response<Bytes>) -> Vec<u8> {
    let status = response.status();
    let mut out = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("-")).into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    end(&mut out, response.body().len());
    out.extend_from_slice(response.body());
    out
}

fn end(out: &mut Vec<u8>, length: usize) {
    // Writing to a Vec does not fail.
    let _ = write!(out, "content-length: {length}\r\ndate: ");
    DATE.with_borrow_mut(|date| out.extend_from_slice(date.now()));
    out.extend_from_slice(b"\r\n\r\n");
}

thread_local! {
    static DATE: RefCell<Date> = RefCell::default();
}

/// The date header's value, written once a second.
#[derive(Default)]
struct Date {
    second: u64,
    text: Vec<u8>,
}

impl Date {
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::{
        StatusCode,
        header::{self, HeaderValue},
    };

    const HEAD: &str = "POST /CommunityCBR/CC.39.abc/ HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n";

    #[test]
    fn a_whole_plain_request_is_read() {
        let Look::Call(call) = look(format!("{HEAD}Content-Length: 3\r\n\r\nxyz").as_bytes(), false) else {
            panic!("plain")
        };
        let expected = (TunnelKind::Hybrid, UrlName::NotAName { length: 3 }, &b"xyz"[..]);
        assert_eq!((call.kind, call.name, &call.body[..]), expected);
        let Look::Call(call) = look(b"POST //a/communitycbr/CC.35./ HTTP/1.1\r\n\r\n", false) else { panic!("plain") };
        assert_eq!((call.kind, call.name, &call.body[..]), (TunnelKind::Polling, UrlName::Empty, &b""[..]));
    }

    #[test]
    fn who_it_is_forwarded_for_is_told_where_that_is_asked() {
        let lines = "X-Forwarded-For: 1.2.3.4\r\nX-FORWARDED-FOR: 5.6.7.8, 9.9.9.9\r\nContent-Length: 0\r\n\r\n";
        for (asked, expected) in [(true, Some(&b"1.2.3.4,5.6.7.8, 9.9.9.9"[..])), (false, None)] {
            let Look::Call(call) = look(format!("{HEAD}{lines}").as_bytes(), asked) else { panic!("plain") };
            assert_eq!(call.forwarded.as_deref(), expected);
        }
    }

    #[test]
    fn one_whose_head_is_whole_is_waited_for() {
        for body in ["", "x", "xy"] {
            let bytes = format!("{HEAD}Content-Length: 3\r\n\r\n{body}");
            assert_eq!(look(bytes.as_bytes(), false), Look::Begun(bytes.clone().into()));
        }
    }

    #[test]
    fn what_is_of_another_form_is_not() {
        let length = "Content-Length: 0\r\n\r\n";
        for bytes in [
            String::new(),
            HEAD.to_owned(),
            format!("\r\n{HEAD}{length}"),
            format!("{HEAD}{length}\r\n"),
            format!("{HEAD}{length}{HEAD}"),
            format!("{HEAD}Content-Length: 3\r\n\r\nwxyz"),
            format!("{HEAD}Content-Length: 3\r\nContent-Length: 3\r\n\r\nxyz"),
            format!("{HEAD}Content-Length: +3\r\n\r\nxyz"),
            format!("{HEAD}Content-Length: 99999\r\n\r\n"),
            format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            format!("{HEAD}Expect: 100-continue\r\n{length}"),
            format!("{HEAD}Upgrade: h2c\r\n{length}"),
            format!("{HEAD}{}{length}", "X: y\r\n".repeat(HEADERS)),
            format!("{HEAD}X: y\n{length}"),
            format!("{HEAD}X: {}\r\n{length}", "y".repeat(MAX_HEAD)),
            HEAD.replace("keep-alive", "close") + length,
            HEAD.replace("HTTP/1.1", "HTTP/1.0") + length,
            HEAD.replace("POST", "GET") + length,
            HEAD.replace("abc/", "abc/?q") + length,
            HEAD.replace("CC.39", "CC.40") + length,
            HEAD.replace(" /Comm", " http://x/Comm") + length,
            HEAD.replace("/CommunityCBR", "") + length,
            HEAD.replace("abc", &"a".repeat(33)) + length,
        ] {
            assert_eq!(look(bytes.as_bytes(), false), Look::Other(bytes.clone().into()), "{bytes}");
        }
    }

    #[test]
    fn responses_are_whole() {
        let text = String::from_utf8(tunnelled(b"xyz")).expect("text");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with(" GMT\r\n\r\nxyz"), "{text}");
        assert!(text.contains("\r\ncontent-length: 3\r\ndate: "), "{text}");
        let mut response = Response::new(Bytes::from_static(b"no"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let text = String::from_utf8(written(&response)).expect("text");
        assert!(
            text.starts_with("HTTP/1.1 404 Not Found\r\ncache-control: no-store\r\ncontent-length: 2\r\n"),
            "{text}"
        );
    }
}
