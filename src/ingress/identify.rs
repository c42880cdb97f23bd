//! Identification of a connection by its first bytes: a state machine that knows no socket and no clock.
//!
//! ```text
//!  connection of a trusted proxy          connection of any other peer
//!               │                                      │
//!               ▼          header complete             ▼
//!       AwaitProxyHeader ──────────────────────► AwaitFirstBytes ── Sametime, HTTP, SSL 2.0, unknown ──► Identified
//!               │                                  │   │
//!               │ no header, or a wrong one        │   └─ TLS, then the handshake ──► AwaitTlsInner
//!               ▼                                  │                                       │
//!     Err(ProxyHeader)                             │ a PROXY header                        │ Sametime, HTTP,
//!                                                  ▼                                       │ unknown
//!                                     Err(ProxyNotTrusted)                                 ▼
//!                                                                                      Identified
//! ```
//! The machine is fed with the bytes of the connection, and after the TLS handshake with the bytes inside TLS. However
//! the bytes are cut into pieces, the result is the same.

use std::{fmt, mem, net::SocketAddr};

use bytes::Bytes;

use super::detect::{Protocol, detect};
use crate::wire::proxy_protocol::{self, Parsed, ProxyHeaderError};

/// A connection that is being identified.
#[derive(Debug)]
pub struct Identification {
    state: State,
    /// Bytes of the present state: behind a PROXY header, and inside TLS, it begins anew.
    received: Vec<u8>,
}

/// What the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The PROXY header that a trusted proxy has to send.
    AwaitProxyHeader,
    /// The bytes that show the client's protocol.
    AwaitFirstBytes(ProxyHeader),
    /// The bytes that show the protocol inside TLS.
    AwaitTlsInner,
    /// Nothing: the protocol is known.
    Identified,
}

/// The PROXY header in front of a client's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// There is none, and there must be none.
    Absent,
    /// There was one.
    Read {
        /// The client; `None`: the proxy connects for itself, or does not know the client.
        client: Option<SocketAddr>,
    },
}

/// What a connection turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// Inside TLS never [`Protocol::Tls`] or [`Protocol::Ssl2`]: TLS inside TLS is [`Protocol::Unknown`].
    pub protocol: Protocol,
    /// Inside TLS always [`ProxyHeader::Absent`]: the header is in front of TLS.
    pub proxy_header: ProxyHeader,
    /// The protocol's bytes that were received.
    pub first: Bytes,
}

/// Why a connection is dropped without being identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentifyError {
    /// The PROXY header is missing or wrong.
    ProxyHeader(ProxyHeaderError),
    /// There is a PROXY header, and the peer is not a trusted proxy.
    ProxyNotTrusted,
}

impl fmt::Display for IdentifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProxyHeader(error) => error.fmt(f),
            Self::ProxyNotTrusted => {
                f.write_str("a PROXY header from an address that is not in listeners.proxy_protocol_from")
            }
        }
    }
}

impl std::error::Error for IdentifyError {}

impl Identification {
    /// A new connection. `proxy_header_due`: the peer is a trusted proxy, which has to send a PROXY header.
    pub fn new(proxy_header_due: bool) -> Self {
        let state =
            if proxy_header_due { State::AwaitProxyHeader } else { State::AwaitFirstBytes(ProxyHeader::Absent) };
        Self { state, received: Vec::new() }
    }

    /// Takes the next bytes of the connection. `None`: they are too few to decide.
    ///
    /// After [`Protocol::Tls`] the machine waits for the bytes inside TLS. After any other protocol and after an error
    /// it takes no more bytes.
    ///
    /// # Errors
    /// The connection has to be dropped.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<Identified>, IdentifyError> {
        self.received.extend_from_slice(bytes);
        loop {
            match self.state {
                State::AwaitProxyHeader => {
                    match proxy_protocol::parse(&self.received).map_err(IdentifyError::ProxyHeader)? {
                        Parsed::Partial => return Ok(None),
                        Parsed::Whole { source, length } => {
                            self.received.drain(..length);
                            self.state = State::AwaitFirstBytes(ProxyHeader::Read { client: source });
                        }
                    }
                }
                State::AwaitFirstBytes(proxy_header) => {
                    if proxy_header == ProxyHeader::Absent {
                        if proxy_protocol::is_header(&self.received) {
                            return Err(IdentifyError::ProxyNotTrusted);
                        }
                        // "P" may become POST or PROXY.
                        if proxy_protocol::could_be(&self.received) {
                            return Ok(None);
                        }
                    }
                    let Some(protocol) = detect(&self.received) else { return Ok(None) };
                    let is_tls = protocol == Protocol::Tls;
                    self.state = if is_tls { State::AwaitTlsInner } else { State::Identified };
                    return Ok(Some(Identified { protocol, proxy_header, first: self.take_received() }));
                }
                State::AwaitTlsInner => {
                    let Some(protocol) = detect(&self.received) else { return Ok(None) };
                    let is_tls = matches!(protocol, Protocol::Tls | Protocol::Ssl2);
                    let protocol = if is_tls { Protocol::Unknown } else { protocol };
                    self.state = State::Identified;
                    let (proxy_header, first) = (ProxyHeader::Absent, self.take_received());
                    return Ok(Some(Identified { protocol, proxy_header, first }));
                }
                State::Identified => return Ok(None),
            }
        }
    }

    fn take_received(&mut self) -> Bytes {
        mem::take(&mut self.received).into()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    /// The last result that the machine gave for `pieces`; pieces that follow it are left over.
    fn identify(machine: &mut Identification, pieces: &[&[u8]]) -> Result<Option<Identified>, IdentifyError> {
        for piece in pieces {
            match machine.receive(piece) {
                Ok(None) => (),
                decided => return decided,
            }
        }
        Ok(None)
    }

    /// What one connection is, if all its bytes arrive at once.
    fn identify_all(due: bool, bytes: &[u8]) -> Result<Option<Identified>, IdentifyError> {
        identify(&mut Identification::new(due), &[bytes])
    }

    fn identified(protocol: Protocol, proxy_header: ProxyHeader, first: &'static [u8]) -> Option<Identified> {
        Some(Identified { protocol, proxy_header, first: Bytes::from_static(first) })
    }

    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 1533\r\n";
    /// What is read of it.
    const READ: ProxyHeader =
        ProxyHeader::Read { client: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 4000)) };

    #[test]
    fn a_connection_without_a_header_is_identified_by_its_own_bytes() {
        for (bytes, protocol) in [
            (&b"\0\0\0\x14"[..], Protocol::Sametime),
            (b"POST /", Protocol::Http),
            (b"\x16\x03\x01", Protocol::Tls),
            (b"\r\n\r\nx", Protocol::Http),
            (b"\r\n\r\n\x01", Protocol::Unknown),
            (b"\x80\x2E\x01\0\x02", Protocol::Ssl2),
        ] {
            assert_eq!(identify_all(false, bytes), Ok(identified(protocol, ProxyHeader::Absent, bytes)));
        }
        for bytes in [&b""[..], b"P", b"\x16", b"\x80", b"\r\n", b"\r\n\r\n", b"\r\n\r\n\0"] {
            assert_eq!(identify_all(false, bytes), Ok(None), "{bytes:?}");
        }
    }

    #[test]
    fn a_header_that_is_not_due_is_refused() {
        let binary = proxy_protocol::v2(SocketAddr::from(([1; 4], 1)), SocketAddr::from(([2; 4], 2)));
        for header in [HEADER, &binary] {
            assert_eq!(identify_all(false, header), Err(IdentifyError::ProxyNotTrusted));
        }
    }

    #[test]
    fn a_header_that_is_due_is_required_and_names_the_client() {
        let with_header = [HEADER, b"\0\0"].concat();
        assert_eq!(identify_all(true, &with_header), Ok(identified(Protocol::Sametime, READ, b"\0\0")));
        let unknown = ProxyHeader::Read { client: None };
        assert_eq!(identify_all(true, b"PROXY UNKNOWN\r\nGET"), Ok(identified(Protocol::Http, unknown, b"GET")));
        assert_eq!(identify_all(true, HEADER), Ok(None), "the client's own bytes are to come");
        let missing = IdentifyError::ProxyHeader(ProxyHeaderError::Missing);
        for bytes in [&b"\0\0"[..], b"GET /", b"\x16\x03\x01"] {
            assert_eq!(identify_all(true, bytes), Err(missing), "{bytes:?}");
        }
        assert!(matches!(identify_all(true, b"PROXY UDP4\r\n"), Err(IdentifyError::ProxyHeader(_))));
        // A second header is not one: "P" begins a method.
        let twice = [HEADER, b"PROXY "].concat();
        assert_eq!(identify_all(true, &twice), Ok(identified(Protocol::Http, READ, b"PROXY ")));
    }

    #[test]
    fn inside_tls_the_machine_begins_anew() {
        for (inside, protocol) in [
            (&b"\0\0"[..], Protocol::Sametime),
            (b"GET /", Protocol::Http),
            (b"\r\nGET /", Protocol::Http),
            // TLS inside TLS, and a PROXY header inside TLS.
            (b"\x80\x2E\x01\x03\x01", Protocol::Unknown),
            (b"\x16\x03\x01", Protocol::Unknown),
            (b"\r\n\r\n\0\r\nQUIT\n", Protocol::Unknown),
            (b"PROXY ", Protocol::Http),
        ] {
            for due in [false, true] {
                let mut machine = Identification::new(due);
                let (header, read) = if due { (HEADER, READ) } else { (&b""[..], ProxyHeader::Absent) };
                let outer = identify(&mut machine, &[header, b"\x16\x03\x01"]);
                assert_eq!(outer, Ok(identified(Protocol::Tls, read, b"\x16\x03\x01")));
                assert_eq!(machine.receive(inside), Ok(identified(protocol, ProxyHeader::Absent, inside)));
            }
        }
    }

    proptest! {
        #[test]
        fn any_fragmentation_gives_the_same_result(
            due: bool,
            with_header: bool,
            start in prop::sample::select(vec![&b""[..], b"\0\0\0\x14", b"GET / HTTP/1.1", b"\x16\x03\x01", b"\x16", b"PR", b"\r\n\r\n", b"\r\n\r\nG", b"\x80\x2E\x01", b"\x80"]),
            rest in prop::collection::vec(any::<u8>(), 0..20),
            cuts in prop::collection::vec(1usize..20, 1..100),
        ) {
            let header: &[u8] = if with_header { HEADER } else { b"" };
            let bytes = [header, start, &rest].concat();
            let (mut pieces, mut at) = (Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(bytes.len());
                pieces.push(&bytes[at..end]);
                at = end;
                if at == bytes.len() {
                    break;
                }
            }
            let (whole, cut) = (identify_all(due, &bytes), identify(&mut Identification::new(due), &pieces));
            match (&whole, &cut) {
                (Ok(Some(whole)), Ok(Some(cut))) => {
                    prop_assert_eq!((whole.protocol, whole.proxy_header), (cut.protocol, cut.proxy_header));
                    // Pieces that were not needed are still in the socket.
                    prop_assert!(whole.first.starts_with(&cut.first) && !cut.first.is_empty());
                }
                _ => prop_assert_eq!(&whole, &cut),
            }
        }
    }
}
