//! Requests of the tunnel in the form in which nearly every client writes them. They are read without hyper, so a
//! connection has no buffer while it is idle or its request is held, and a request takes one read and one write.
//!
//! A request without exactly this form goes to hyper, with all its bytes. So the form is narrow on purpose: a complete
//! POST of HTTP/1.1 to the tunnel, with Content-Length or without a body, with no bytes behind it, and with no header
//! that asks for anything.

use bytes::Bytes;

use super::{
    MAX_HEAD,
    framing::Framing,
    route::{Destination, route},
};
use crate::wire::tunnel::{
    envelope::TunnelKind,
    name::{SessionName, UrlName},
};

/// The most headers of a request. Real clients send eight, and proxies add a few.
const HEADERS: usize = 32;
/// The longest request that is waited for, in bytes.
const MAX: usize = 64 * 1024;

/// A request of the tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FastRequest {
    pub(super) kind: TunnelKind,
    pub(super) name: UrlName,
    pub(super) body: Vec<u8>,
    /// The lines of X-Forwarded-For, joined by commas, if they were wanted.
    pub(super) forwarded: Option<Box<[u8]>>,
}

/// What the first bytes of a request show.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FirstLook {
    /// A complete request.
    Complete(FastRequest),
    /// These bytes have a complete head of this form, and more bytes of the body are to come.
    Begun(Bytes),
    /// These bytes are for hyper.
    Other(Bytes),
}

/// Looks at `bytes`, which begin where a request may begin. `wants_forwarded`: X-Forwarded-For is needed.
pub(super) fn first_look(bytes: &[u8], wants_forwarded: bool) -> FirstLook {
    match read(bytes, wants_forwarded) {
        Some((request, 0)) => FirstLook::Complete(request),
        Some(_) => FirstLook::Begun(Bytes::copy_from_slice(bytes)),
        None => FirstLook::Other(Bytes::copy_from_slice(bytes)),
    }
}

/// The request, and how many bytes of it are to come. Its body is empty until there are none.
fn read(bytes: &[u8], wants_forwarded: bool) -> Option<(FastRequest, usize)> {
    if !bytes.starts_with(b"POST /") {
        return None;
    }
    // The same rules as in front of hyper.
    let mut framing = Framing::default();
    framing.follow(bytes).ok()?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
    if (request.method, request.version) != (Some("POST"), Some(1)) {
        return None;
    }
    // No query, and no character that a parser of URLs could change.
    let path = request.path.filter(|path| path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/.-_".contains(&b)))?;
    let Destination::Tunnel(kind, name) = route("POST", path, None) else { return None };
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
            15 if wants_forwarded && is("x-forwarded-for") => lines.push(header.value),
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
    Some((FastRequest { kind, name, body, forwarded }, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "POST /CommunityCBR/CC.39.abc/ HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n";

    fn complete(bytes: &[u8], wants_forwarded: bool) -> FastRequest {
        match first_look(bytes, wants_forwarded) {
            FirstLook::Complete(request) => request,
            look => panic!("{look:?}"),
        }
    }

    #[test]
    fn a_whole_plain_request_is_read() {
        let request = complete(format!("{HEAD}Content-Length: 3\r\n\r\nxyz").as_bytes(), false);
        let expected = (TunnelKind::Hybrid, UrlName::NotAName { length: 3 }, &b"xyz"[..]);
        assert_eq!((request.kind, request.name, &request.body[..]), expected);
        let request = complete(b"POST //a/communitycbr/CC.35./ HTTP/1.1\r\n\r\n", false);
        assert_eq!((request.kind, request.name, &request.body[..]), (TunnelKind::Polling, UrlName::Empty, &b""[..]));
    }

    #[test]
    fn forwarded_lines_are_given_where_they_are_wanted() {
        let lines = "X-Forwarded-For: 1.2.3.4\r\nX-FORWARDED-FOR: 5.6.7.8, 9.9.9.9\r\nContent-Length: 0\r\n\r\n";
        for (wanted, expected) in [(true, Some(&b"1.2.3.4,5.6.7.8, 9.9.9.9"[..])), (false, None)] {
            let request = complete(format!("{HEAD}{lines}").as_bytes(), wanted);
            assert_eq!(request.forwarded.as_deref(), expected);
        }
    }

    #[test]
    fn one_whose_head_is_whole_is_waited_for() {
        for body in ["", "x", "xy"] {
            let bytes = format!("{HEAD}Content-Length: 3\r\n\r\n{body}");
            assert_eq!(first_look(bytes.as_bytes(), false), FirstLook::Begun(bytes.clone().into()));
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
            assert_eq!(first_look(bytes.as_bytes(), false), FirstLook::Other(bytes.clone().into()), "{bytes}");
        }
    }
}
