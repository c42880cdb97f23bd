//! Protocols, and the bytes that they begin with.

/// What a connection uses, as its first bytes show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Frames of Sametime: the first byte of a frame's length, which is 0, or a keep-alive byte.
    Sametime,
    /// TLS: a record of type handshake.
    Tls,
    /// HTTP: the first letter of a method.
    Http,
    /// None of these.
    Unknown,
}

/// The protocol that begins with `bytes`; `None`: there are too few of them to decide.
pub fn detect(bytes: &[u8]) -> Option<Protocol> {
    Some(match *bytes {
        [] | [0x16] => return None,
        [0x16, 0x03, ..] => Protocol::Tls,
        [0x00 | 0x80..=0xFF, ..] => Protocol::Sametime,
        [byte, ..] if byte.is_ascii_alphabetic() => Protocol::Http,
        _ => Protocol::Unknown,
    })
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
