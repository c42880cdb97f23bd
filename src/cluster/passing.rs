//! The bytes of a request that is passed to another node, and of its response: HTTP/1.1 on a connection that is kept.
//!
//! A request has its client's address in X-Forwarded-For, which the other node believes because this node has proved
//! who it is. So the other node applies limits and rules of addresses to the client and not to this node.

use std::net::SocketAddr;

use crate::wire::tunnel::{envelope::TunnelKind, name::SessionName};

/// The longest head of a response, in bytes.
const MAX_HEAD: usize = 4 * 1024;
/// The most headers of a response.
const HEADERS: usize = 32;

/// What is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedTo {
    /// A request of a polling or hybrid session.
    Session(TunnelKind, SessionName),
    /// A streaming client's POST request. Its body has the name.
    Upload,
}

/// A request that is passed.
#[derive(Debug, Clone, Copy)]
pub struct PassedRequest<'a> {
    /// What it is for.
    pub to: PassedTo,
    /// The client.
    pub client: SocketAddr,
    /// The body.
    pub body: &'a [u8],
    /// The longest body of a response, in bytes.
    pub longest_response: usize,
}

/// The response of another node.
#[derive(Debug, PartialEq, Eq)]
pub struct PassedResponse {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl PassedRequest<'_> {
    /// The head, behind `first`, which begins a connection.
    pub(super) fn head(&self, first: &str, host: &str) -> Vec<u8> {
        let path = match self.to {
            PassedTo::Session(kind, name) => {
                let kind = if kind == TunnelKind::Polling { 35 } else { 39 };
                format!("CC.{kind}.{}/", String::from_utf8_lossy(&name.digits()))
            }
            PassedTo::Upload => String::new(),
        };
        let (client, length) = (self.client, self.body.len());
        format!(
            "{first}POST /CommunityCBR/{path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: {client}\r\nContent-Length: {length}\r\n\r\n"
        )
        .into_bytes()
    }

    /// Whether the node takes the request once, also if it arrives twice. A streaming session has no acknowledgements.
    pub(super) fn may_repeat(&self) -> bool {
        matches!(self.to, PassedTo::Session(..))
    }
}

/// What the first bytes of a response show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseHead {
    /// More bytes are needed.
    Incomplete,
    /// The head has these bytes, and the body these.
    Complete { status: u16, head: usize, body: usize },
    /// This is not a response of a node.
    Wrong,
}

/// Reads the head of a response, whose body may have so many bytes.
pub(super) fn response_head(bytes: &[u8], longest: usize) -> ResponseHead {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return ResponseHead::Incomplete,
        _ => return ResponseHead::Wrong,
    };
    let mut lengths = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    match (response.code, length) {
        (Some(status @ 200..), Some(body)) if body <= longest && lengths.next().is_none() => {
            ResponseHead::Complete { status, head, body }
        }
        _ => ResponseHead::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_session_and_its_client() {
        let name = SessionName::parse("000102030405060708090a0b0c0d0e0f").expect("a name");
        let client = "[2001:db8::1]:5000".parse().expect("an address");
        let to = PassedTo::Session(TunnelKind::Hybrid, name);
        let request = PassedRequest { to, client, body: b"xyz", longest_response: 9 };
        let head = String::from_utf8(request.head("proof\r\n", "mux-1:9534")).expect("text");
        let expected = "proof\r\nPOST /CommunityCBR/CC.39.000102030405060708090a0b0c0d0e0f/ HTTP/1.1\r\nHost: mux-1:9534\r\nX-Forwarded-For: [2001:db8::1]:5000\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(head, expected);
        assert!(request.may_repeat());
        let upload = PassedRequest { to: PassedTo::Upload, ..request };
        assert!(upload.head("", "x").starts_with(b"POST /CommunityCBR/ HTTP/1.1\r\n") && !upload.may_repeat());
    }

    #[test]
    fn only_whole_heads_with_one_length_are_read() {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: a\r\ncontent-length: 3\r\n\r\n";
        let complete = ResponseHead::Complete { status: 200, head: head.len(), body: 3 };
        assert_eq!(response_head(format!("{head}xyz").as_bytes(), 3), complete);
        for cut in 0..head.len() {
            assert_eq!(response_head(&head.as_bytes()[..cut], 3), ResponseHead::Incomplete, "{cut}");
        }
        assert_eq!(response_head(head.as_bytes(), 2), ResponseHead::Wrong, "too long");
        for wrong in [
            head.replace("content-length: 3\r\n", ""),
            head.replace("content-length: 3", "transfer-encoding: chunked"),
            head.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\n"),
            head.replace("200", "100"),
            head.replace("HTTP", "POST"),
            format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD)),
        ] {
            assert_eq!(response_head(wrong.as_bytes(), 3), ResponseHead::Wrong, "{wrong}");
        }
    }
}
