//! Protocols, and the bytes that they begin with.

/// What a connection uses, as its first bytes show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Frames of Sametime: the first byte of a frame's length, which is 0, or a keep-alive byte.
    Sametime,
    /// TLS: a record of type handshake.
    Tls,
    /// SSL 2.0, or a client that offers a later version in the hello of SSL 2.0.
    Ssl2,
    /// HTTP: the first letter of a method, perhaps behind empty lines.
    Http,
    /// None of these.
    Unknown,
}

/// How many empty lines may come before the first request. RFC 9112, section 2.2, asks for one at least.
const MAX_EMPTY_LINES: usize = 8;

/// The protocol that begins with `bytes`; `None`: there are too few of them to decide.
pub fn detect(bytes: &[u8]) -> Option<Protocol> {
    Some(match *bytes {
        [] | [0x16] => return None,
        [0x16, 0x03, ..] => Protocol::Tls,
        [0x80..=0xFF, ..] => match is_ssl2_hello(bytes)? {
            true => Protocol::Ssl2,
            false => Protocol::Sametime,
        },
        [0x00, ..] => Protocol::Sametime,
        [b'\r', ..] => return behind_empty_lines(bytes),
        [byte, ..] if byte.is_ascii_alphabetic() => Protocol::Http,
        _ => Protocol::Unknown,
    })
}

/// The protocol of bytes that begin with CR: HTTP, if a request follows behind empty lines.
fn behind_empty_lines(bytes: &[u8]) -> Option<Protocol> {
    let lines = bytes.chunks(2).take(MAX_EMPTY_LINES + 1).take_while(|line| *line == b"\r\n").count();
    match bytes.get(2 * lines..).unwrap_or_default() {
        _ if lines > MAX_EMPTY_LINES => Some(Protocol::Unknown),
        [] | [b'\r'] => None,
        [byte, ..] if byte.is_ascii_alphabetic() => Some(Protocol::Http),
        _ => Some(Protocol::Unknown),
    }
}

/// Whether `bytes`, the first of which is 0x80 or more, begin with a hello of SSL 2.0; `None`: there are too few of them.
///
/// | bytes | SSL 2.0 | Sametime |
/// |---|---|---|
/// | `80`-`83`, then one | the length, 9 to 1023, with the highest bit set | keep-alives, or the first byte of a frame |
/// | `01` | CLIENT-HELLO | a frame of 64 KiB or more, which nobody may send at first |
/// | `00 02`, or `03` and a minor version | the highest version that the client offers | |
fn is_ssl2_hello(bytes: &[u8]) -> Option<bool> {
    let is_part = |at: usize, byte: u8| match at {
        0 => (0x80..=0x83).contains(&byte),
        1 => bytes[0] != 0x80 || byte >= 9,
        2 => byte == 1,
        3 => byte == 0 || byte == 3,
        _ => (bytes[3] == 0 && byte == 2) || (bytes[3] == 3 && byte <= 4),
    };
    let hello = &bytes[..bytes.len().min(5)];
    if !hello.iter().enumerate().all(|(at, byte)| is_part(at, *byte)) {
        return Some(false);
    }
    (hello.len() == 5).then_some(true)
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
            // A keep-alive, or the beginning of a hello of SSL 2.0.
            (b"\x80", None),
            (b"\x80\x80", None),
            (b"\x80\x2E\x01", None),
            (b"\x80\x2E\x01\x03", None),
            (b"\x80\x2E\x01\0\x02", Some(Protocol::Ssl2)),
            (b"\x81\0\x01\x03\x01\0", Some(Protocol::Ssl2)),
            (b"\x80\0", Some(Protocol::Sametime)),
            (b"\x80\x80\0\0", Some(Protocol::Sametime)),
            (b"\x80\x2E\x02", Some(Protocol::Sametime)),
            (b"\x80\x2E\x01\0\x03", Some(Protocol::Sametime)),
            (b"\x84", Some(Protocol::Sametime)),
            (b"\xFF\0", Some(Protocol::Sametime)),
            (b"P", Some(Protocol::Http)),
            (b"get /", Some(Protocol::Http)),
            (b"\x05\x01\0", Some(Protocol::Unknown)),
            (b"\r", None),
            (b"\r\n", None),
            (b"\r\n\r", None),
            (b"\r\n\r\nGET", Some(Protocol::Http)),
            (&b"\r\n".repeat(MAX_EMPTY_LINES), None),
            (&b"\r\n".repeat(MAX_EMPTY_LINES + 1), Some(Protocol::Unknown)),
            (b"\r\n\0", Some(Protocol::Unknown)),
            (b"\r\n\x16\x03", Some(Protocol::Unknown)),
            (b"\rG", Some(Protocol::Unknown)),
            (b"\n", Some(Protocol::Unknown)),
            (b"1", Some(Protocol::Unknown)),
        ] {
            assert_eq!(detect(bytes), protocol, "{bytes:?}");
        }
    }
}
