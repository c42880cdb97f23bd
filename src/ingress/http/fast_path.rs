//! Requests of the tunnel in the form in which nearly every client writes them. They are read without hyper, so a
//! connection has no buffer while it is idle or its request is held, and a request takes one read and one write.
//!
//! A request without exactly this form goes to hyper, with all its bytes. So the form is narrow on purpose: a complete
//! POST of HTTP/1.1 to the tunnel, with Content-Length or without a body, with no bytes behind it, and with no header
//! that asks for anything. Streaming clients send HTTP/1.0 on a connection for each request, and the absolute form to a
//! proxy; their GET request is read here, too.

use bytes::Bytes;

use super::{
    MAX_HEAD,
    framing::Framing,
    response::Reuse,
    route::{Destination, StreamSigns, route},
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
    pub(super) call: TunnelCall,
    pub(super) body: Vec<u8>,
    /// The lines of X-Forwarded-For, joined by commas, if they were wanted.
    pub(super) forwarded: Option<Box<[u8]>>,
    /// How the connection goes on.
    pub(super) reuse: Reuse,
}

/// Which tunnel a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TunnelCall {
    /// Polling or hybrid: the session that the URL names.
    Named(TunnelKind, UrlName),
    /// Streaming: the session that the body names.
    Upload,
}

/// A streaming client's GET request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StreamRequest {
    /// Whether the response is in chunks: the request is in HTTP/1.1.
    pub(super) is_chunked: bool,
    /// The lines of X-Forwarded-For, joined by commas, if they were wanted.
    pub(super) forwarded: Option<Box<[u8]>>,
}

/// What the first bytes of a request show.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FirstLook {
    /// A complete request.
    Complete(FastRequest),
    /// A complete GET request that opens a stream.
    Stream(StreamRequest),
    /// These bytes have a complete head of this form, and more bytes of the body are to come.
    Begun(Bytes),
    /// These bytes are for hyper.
    Other(Bytes),
}

/// Looks at `bytes`, which begin where a request may begin. `wants_forwarded`: X-Forwarded-For is needed.
pub(super) fn first_look(bytes: &[u8], wants_forwarded: bool) -> FirstLook {
    if bytes.starts_with(b"GET ") {
        let stream = read_get(bytes, wants_forwarded);
        return stream.map_or_else(|| FirstLook::Other(Bytes::copy_from_slice(bytes)), FirstLook::Stream);
    }
    match read(bytes, wants_forwarded) {
        Some((request, 0)) => FirstLook::Complete(request),
        Some(_) => FirstLook::Begun(Bytes::copy_from_slice(bytes)),
        None => FirstLook::Other(Bytes::copy_from_slice(bytes)),
    }
}

/// The request, and how many bytes of it are to come. Its body is empty until there are none.
fn read(bytes: &[u8], wants_forwarded: bool) -> Option<(FastRequest, usize)> {
    if !bytes.starts_with(b"POST ") {
        return None;
    }
    // The same rules as in front of hyper.
    let mut framing = Framing::default();
    framing.follow(bytes).ok()?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
    if request.method != Some("POST") {
        return None;
    }
    let call = match route("POST", path_of(request.path?)?, StreamSigns::default(), None) {
        Destination::Tunnel(kind, name) => TunnelCall::Named(kind, name),
        Destination::Upload => TunnelCall::Upload,
        Destination::OpenStream | Destination::WebServer(_) | Destination::Page(_) => return None,
    };
    if matches!(call, TunnelCall::Named(_, UrlName::NotAName { length }) if usize::from(length) > SessionName::DIGITS) {
        return None;
    }
    let mut reuse = if request.version == Some(1) { Reuse::KeptAlive } else { Reuse::ClosesOld };
    let (mut length, mut lines) = (0, Vec::new());
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            10 if is("connection") => match reuse {
                _ if header.value.eq_ignore_ascii_case(b"close") => {
                    reuse = if reuse == Reuse::KeptAlive { Reuse::Closes } else { reuse };
                }
                Reuse::KeptAlive if header.value.eq_ignore_ascii_case(b"keep-alive") => (),
                _ => return None,
            },
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
    // The clients of the other two tunnels keep their connections.
    if call != TunnelCall::Upload && reuse != Reuse::KeptAlive {
        return None;
    }
    let end = head.checked_add(length).filter(|end| head <= MAX_HEAD && *end <= MAX)?;
    let missing = end.checked_sub(bytes.len())?;
    if missing == 0 && !(framing.requests() == 1 && framing.at_boundary()) {
        return None;
    }
    let body = if missing == 0 { bytes[head..end].to_vec() } else { Vec::new() };
    Some((FastRequest { call, body, forwarded: joined(&lines), reuse }, missing))
}

/// The GET request of a streaming client, when `bytes` are that and nothing more.
fn read_get(bytes: &[u8], wants_forwarded: bool) -> Option<StreamRequest> {
    let mut framing = Framing::default();
    framing.follow(bytes).ok()?;
    if bytes.len() > MAX_HEAD || framing.requests() != 1 || !framing.at_boundary() {
        return None;
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
    let signs = StreamSigns::of(request.headers.iter().map(|header| (header.name, header.value)));
    let destination = route(request.method?, path_of(request.path?)?, signs, None);
    if head != bytes.len() || destination != Destination::OpenStream {
        return None;
    }
    let mut lines = Vec::new();
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if ["transfer-encoding", "expect", "upgrade"].into_iter().any(is) {
            return None;
        }
        if wants_forwarded && is("x-forwarded-for") {
            lines.push(header.value);
        }
    }
    Some(StreamRequest { is_chunked: request.version == Some(1), forwarded: joined(&lines) })
}

/// The path of a request's target, which begins with `/` or is `http://host/path`. `None`: the target has a query, or a
/// character that a parser of URLs could change, or another form.
fn path_of(target: &str) -> Option<&str> {
    let path = match target.strip_prefix("http://") {
        Some(absolute) => &absolute[absolute.find('/')?..],
        None => target,
    };
    let is_plain = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/.-_".contains(&b));
    is_plain.then_some(path)
}

/// Lines of one header as one line. `None`: there are none.
pub(super) fn joined(lines: &[&[u8]]) -> Option<Box<[u8]>> {
    (!lines.is_empty()).then(|| lines.join(&b","[..]).into())
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
        let expected = (TunnelCall::Named(TunnelKind::Hybrid, UrlName::NotAName { length: 3 }), &b"xyz"[..]);
        assert_eq!((request.call, &request.body[..]), expected);
        let request = complete(b"POST //a/communitycbr/CC.35./ HTTP/1.1\r\n\r\n", false);
        assert_eq!(
            (request.call, &request.body[..]),
            (TunnelCall::Named(TunnelKind::Polling, UrlName::Empty), &b""[..])
        );
        let absolute = HEAD.replace(" /Comm", " http://x:80/Comm") + "Content-Length: 0\r\n\r\n";
        assert_eq!(complete(absolute.as_bytes(), false).reuse, Reuse::KeptAlive);
    }

    #[test]
    fn a_streaming_clients_requests_are_read_in_every_form_of_proxies() {
        const RECORDED: &str = "Pragma: No-Cache\r\nHost: 127.0.0.1\r\nContent-Type: Application/Octet-Stream\r\n";
        for (line, connection, reuse) in [
            ("http://127.0.0.1:8082/communityCBR/ HTTP/1.0", "", Reuse::ClosesOld),
            ("/communityCBR/ HTTP/1.0", "Connection: close\r\n", Reuse::ClosesOld),
            ("//st01//CommunityCBR HTTP/1.1", "Connection: Keep-Alive\r\n", Reuse::KeptAlive),
            ("/COMMUNITYCBR/ HTTP/1.1", "connection: close\r\n", Reuse::Closes),
            ("/COMMUNITYCBR/ HTTP/1.1", "", Reuse::KeptAlive),
        ] {
            let post = format!("POST {line}\r\n{connection}{RECORDED}Content-Length: 3\r\n\r\nxyz");
            let request = complete(post.as_bytes(), false);
            assert_eq!((request.call, request.reuse, &request.body[..]), (TunnelCall::Upload, reuse, &b"xyz"[..]));
            let get = format!("GET {line}\r\n{connection}{RECORDED}\r\n");
            let is_chunked = reuse != Reuse::ClosesOld;
            let expected = FirstLook::Stream(StreamRequest { is_chunked, forwarded: None });
            assert_eq!(first_look(get.as_bytes(), false), expected, "{get}");
            // hyper reads these.
            for other in [&get[..get.len() - 1], &format!("{get}x"), &get.replace("Pragma", "Expect: x\r\nPragma")] {
                assert_eq!(first_look(other.as_bytes(), false), FirstLook::Other(other.to_owned().into()), "{other}");
            }
        }
        let kept = format!("POST /communityCBR/ HTTP/1.0\r\nConnection: keep-alive\r\n{RECORDED}\r\n");
        assert_eq!(first_look(kept.as_bytes(), false), FirstLook::Other(kept.clone().into()));
        let forwarded = format!("GET /communityCBR/ HTTP/1.1\r\n{RECORDED}X-Forwarded-For: 1.2.3.4\r\n\r\n");
        let lines = Some(b"1.2.3.4"[..].into());
        let expected = FirstLook::Stream(StreamRequest { is_chunked: true, forwarded: lines });
        assert_eq!(first_look(forwarded.as_bytes(), true), expected);
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
            HEAD.replace(" /Comm", " https://x/Comm") + length,
            HEAD.replace(" /Comm", " http://x") + length,
            HEAD.replace("/CommunityCBR", "") + length,
            HEAD.replace("abc", &"a".repeat(33)) + length,
        ] {
            assert_eq!(first_look(bytes.as_bytes(), false), FirstLook::Other(bytes.clone().into()), "{bytes}");
        }
    }
}
