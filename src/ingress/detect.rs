//! What a connection's first bytes say. Knows no socket: it is asked again when more have come.

use std::net::SocketAddr;

use crate::wire::proxy_protocol::{self, Parsed};

/// A protocol that a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Frames: a small length, or a keep-alive byte.
    Sametime,
    /// A TLS record with a handshake.
    Tls,
    /// A method's letter.
    Http,
    /// None of these.
    Unknown,
}

/// What `bytes` are the beginning of; `None` while they are too few to tell.
pub fn detect(bytes: &[u8]) -> Option<Protocol> {
    Some(match *bytes {
        [] | [0x16] => return None,
        [0x16, 0x03, ..] => Protocol::Tls,
        [0x00 | 0x80..=0xFF, ..] => Protocol::Sametime,
        [byte, ..] if byte.is_ascii_alphabetic() => Protocol::Http,
        _ => Protocol::Unknown,
    })
}

/// How a connection begins, once that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// What is spoken behind the PROXY header.
    pub protocol: Protocol,
    /// Bytes of the PROXY header in front of it; 0: there is none.
    pub header: usize,
    /// The client, as the header names it.
    pub source: Option<SocketAddr>,
}

/// What `bytes` are the beginning of; `None` while they are too few to tell. A PROXY header is
/// required where one is `due`, and a fault where none is.
///
/// # Errors
/// What is wrong with the PROXY header.
pub fn begin(bytes: &[u8], due: bool) -> Result<Option<Beginning>, String> {
    if !due {
        if proxy_protocol::is_header(bytes) {
            return Err("a PROXY header from an address that is not in listeners.proxy_protocol_from".to_owned());
        }
        // "P" may be POST or PROXY.
        let protocol = detect(bytes).filter(|_| !proxy_protocol::could_be(bytes));
        return Ok(protocol.map(|protocol| Beginning { protocol, header: 0, source: None }));
    }
    match proxy_protocol::parse(bytes) {
        Ok(Parsed::Partial) => Ok(None),
        Ok(Parsed::Whole { source, length }) => {
            Ok(detect(&bytes[length..]).map(|protocol| Beginning { protocol, header: length, source }))
        }
        Err(fault) => Err(fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        for (bytes, protocol) in [
            (&b""[..], None),
            (b"\x16", None),
            (b"\x16\x03\x01", Some(Protocol::Tls)),
            (b"\x16\x04", Some(Protocol::Unknown)),
            (b"\0", Some(Protocol::Sametime)),
            (b"\x80", Some(Protocol::Sametime)),
            (b"\xFF\0", Some(Protocol::Sametime)),
            (b"P", Some(Protocol::Http)),
            (b"get /", Some(Protocol::Http)),
            (b"\x05\x01\0", Some(Protocol::Unknown)),
            (b"\r\n", Some(Protocol::Unknown)),
            (b"1", Some(Protocol::Unknown)),
        ] {
            assert_eq!(detect(bytes), protocol, "{bytes:?}");
        }
    }
}
