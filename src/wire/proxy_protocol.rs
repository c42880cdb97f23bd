//! The PROXY protocol, versions 1 (a line of text) and 2 (binary): a proxy sends the client's address in front of the
//! client's bytes. The format is HAProxy's, from `proxy-protocol.txt`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

const V1_PREFIX: &[u8] = b"PROXY ";
/// The longest line of version 1, including its CR LF.
const V1_MAX: usize = 107;
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The length of the fixed part of version 2: signature (12), version and command (1), family (1), length (2).
const V2_FIXED: usize = 16;
/// The most bytes behind the fixed part that are accepted. The addresses take up to 36, and further fields may follow.
const V2_MAX: usize = 4096;
/// The second half of byte 12 of version 2: the connection is the proxy's own, or it is a client's.
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
/// Byte 13 of version 2: TCP over IPv4, TCP over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// What the first bytes of a connection contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header: more bytes are needed.
    Partial,
    /// A header of `length` bytes.
    Whole {
        /// The client; `None`: the proxy connects for itself, or does not know the client.
        source: Option<SocketAddr>,
        /// The length of the header in bytes.
        length: usize,
    },
}

/// Why bytes are not a PROXY header. This is the peer's fault, and ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeaderError {
    /// The bytes do not begin with a header.
    Missing,
    /// Version 1: the line is longer than 107 bytes.
    LineTooLong,
    /// Version 1: the line does not have the fields that it must have.
    BadLine,
    /// Version 2: the version or the command is unknown.
    UnknownVersion,
    /// Version 2: more than 4096 bytes follow the fixed part.
    HeaderTooLong,
    /// Version 2: the header is too short for the addresses of its family.
    HeaderTooShort,
}

impl fmt::Display for ProxyHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no PROXY header, where listeners.proxy_protocol_from requires one",
            Self::LineTooLong => "a PROXY line that is too long",
            Self::BadLine => "a PROXY line that is not of the form PROXY TCP4|TCP6 source destination port port",
            Self::UnknownVersion => "a binary PROXY header of unknown version or command",
            Self::HeaderTooLong => "a binary PROXY header that is too long",
            Self::HeaderTooShort => "a binary PROXY header that is too short for its addresses",
        })
    }
}

impl std::error::Error for ProxyHeaderError {}

/// Whether `bytes` begin with a header, which may be incomplete.
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_PREFIX) || bytes.starts_with(&V2_SIGNATURE)
}

/// Whether `bytes` begin with a header, or may do so once more bytes have arrived.
pub fn could_be(bytes: &[u8]) -> bool {
    let matches = |prefix: &[u8]| bytes.iter().zip(prefix).all(|(a, b)| a == b);
    matches(V1_PREFIX) || matches(&V2_SIGNATURE)
}

/// Reads the header that `bytes` begin with. Bytes behind it change nothing.
///
/// # Errors
/// The bytes do not begin with a header, or it is not of the format.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    if !could_be(bytes) {
        return Err(ProxyHeaderError::Missing);
    }
    match bytes.first() {
        None => Ok(Parsed::Partial),
        Some(b'P') => parse_v1(bytes),
        Some(_) => parse_v2(bytes),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() == V1_MAX { Err(ProxyHeaderError::LineTooLong) } else { Ok(Parsed::Partial) };
    };
    let line = window.get(V1_PREFIX.len()..end).and_then(|line| std::str::from_utf8(line).ok());
    let fields: Vec<&str> = line.ok_or(ProxyHeaderError::BadLine)?.split(' ').collect();
    let source = match fields[..] {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, destination, port, destination_port] => {
            let _: (Ipv4Addr, u16) = (field(destination)?, field(destination_port)?);
            Some(SocketAddr::new(field::<Ipv4Addr>(source)?.into(), field(port)?))
        }
        ["TCP6", source, destination, port, destination_port] => {
            let _: (Ipv6Addr, u16) = (field(destination)?, field(destination_port)?);
            Some(SocketAddr::new(field::<Ipv6Addr>(source)?.into(), field(port)?))
        }
        _ => return Err(ProxyHeaderError::BadLine),
    };
    Ok(Parsed::Whole { source, length: end + 2 })
}

fn field<T: std::str::FromStr>(text: &str) -> Result<T, ProxyHeaderError> {
    text.parse().map_err(|_| ProxyHeaderError::BadLine)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let Some(&[command, family, l0, l1]) = bytes.get(V2_SIGNATURE.len()..V2_FIXED) else {
        return Ok(Parsed::Partial);
    };
    let (version, command) = (command >> 4, command & 0x0F);
    if version != 2 || command > PROXY {
        return Err(ProxyHeaderError::UnknownVersion);
    }
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    if length > V2_MAX {
        return Err(ProxyHeaderError::HeaderTooLong);
    }
    let Some(body) = bytes.get(V2_FIXED..V2_FIXED + length) else {
        return Ok(Parsed::Partial);
    };
    let source = match (command, family) {
        (LOCAL, _) => None,
        // Source and destination address, source and destination port.
        (_, TCP4) => {
            let (ip, [high, low]): ([u8; 4], _) = (at(body, 0)?, at(body, 8)?);
            let _destination: [u8; 2] = at(body, 10)?;
            Some(SocketAddr::new(ip.into(), u16::from_be_bytes([high, low])))
        }
        (_, TCP6) => {
            let (ip, [high, low]): ([u8; 16], _) = (at(body, 0)?, at(body, 32)?);
            let _destination: [u8; 2] = at(body, 34)?;
            Some(SocketAddr::new(ip.into(), u16::from_be_bytes([high, low])))
        }
        _ => None,
    };
    Ok(Parsed::Whole { source, length: V2_FIXED + length })
}

/// The `N` bytes of `body` that begin at `at`.
fn at<const N: usize>(body: &[u8], at: usize) -> Result<[u8; N], ProxyHeaderError> {
    body.get(at..).and_then(|bytes| bytes.first_chunk()).copied().ok_or(ProxyHeaderError::HeaderTooShort)
}

/// A header of version 2: the client `source` connects to `destination`.
pub fn v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut out = V2_SIGNATURE.to_vec();
    out.push(2 << 4 | PROXY);
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[TCP4, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let v6 = |ip| match ip {
                IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
                IpAddr::V6(v6) => v6,
            };
            out.extend_from_slice(&[TCP6, 0, 36]);
            out.extend_from_slice(&v6(from).octets());
            out.extend_from_slice(&v6(to).octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header of version 2 with this body.
    fn v2_header(version_and_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("a short body").to_be_bytes();
        [&V2_SIGNATURE[..], &[version_and_command, family], &length, body].concat()
    }

    #[test]
    fn version_2_with_another_version_or_command_is_refused() {
        for version_and_command in [0x10, 0x11, 0x30, 0x22, 0x2F] {
            let header = v2_header(version_and_command, TCP4, &[0; 12]);
            assert_eq!(parse(&header), Err(ProxyHeaderError::UnknownVersion), "{version_and_command:#04x}");
        }
    }

    #[test]
    fn the_address_of_a_local_connection_is_no_clients() {
        let body = [192, 0, 2, 7, 192, 0, 2, 1, 15, 160, 5, 253];
        assert_eq!(whole(&v2_header(0x20, TCP4, &body)), (None, 28));
        assert_eq!(whole(&v2_header(0x21, TCP4, &body)).0, Some("192.0.2.7:4000".parse().expect("address")));
    }

    #[test]
    fn a_header_has_at_most_so_many_bytes() {
        assert_eq!(whole(&v2_header(0x21, 0, &[0; V2_MAX])), (None, V2_FIXED + V2_MAX));
        let too_long = v2_header(0x21, 0, &[0; V2_MAX + 1]);
        assert_eq!(parse(&too_long), Err(ProxyHeaderError::HeaderTooLong));
        assert_eq!(parse(&too_long[..V2_FIXED]), Err(ProxyHeaderError::HeaderTooLong), "as soon as it is known");
    }

    #[test]
    fn errors_are_told_apart() {
        let errors = [
            ProxyHeaderError::BadLine,
            ProxyHeaderError::LineTooLong,
            ProxyHeaderError::UnknownVersion,
            ProxyHeaderError::HeaderTooShort,
            ProxyHeaderError::HeaderTooLong,
        ];
        let texts: std::collections::HashSet<String> = errors.iter().map(ToString::to_string).collect();
        assert!(texts.len() == errors.len() && texts.iter().all(|text| text.contains(' ')), "{texts:?}");
    }

    fn whole(bytes: &[u8]) -> (Option<SocketAddr>, usize) {
        match parse(bytes) {
            Ok(Parsed::Whole { source, length }) => (source, length),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn version_1_is_read() {
        let line = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 1533\r\n";
        let mut bytes = line.to_vec();
        bytes.extend(b"\0\0\0");
        assert_eq!(whole(&bytes), (Some("192.0.2.7:4000".parse().expect("address")), line.len()));
        assert_eq!(whole(b"PROXY UNKNOWN\r\n"), (None, 15));
        assert_eq!(whole(b"PROXY TCP6 ::1 ::2 1 2\r\n").0, Some("[::1]:1".parse().expect("address")));
        for bad in [
            &b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n"[..],
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
            b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY \r\n",
            b"GET / HTTP/1.1\r\n",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat(),
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_method_is_told_from_a_header() {
        assert!(could_be(b"PR") && could_be(b"") && could_be(b"\r\n"));
        assert!(!could_be(b"PO") && !could_be(b"PROPFIND") && !could_be(b"\0"));
        assert!(is_header(b"PROXY ") && !is_header(b"PROXY"));
    }

    proptest! {
        #[test]
        fn what_was_built_is_read_in_any_piece(a: u32, b: u128, port: u16, v6: bool, rest in proptest::collection::vec(any::<u8>(), 0..20)) {
            let ip = if v6 { IpAddr::from(Ipv6Addr::from(b)).to_canonical() } else { Ipv4Addr::from(a).into() };
            let source = SocketAddr::new(ip, port);
            let header = v2(source, "127.0.0.1:1533".parse().expect("address"));
            for cut in 0..header.len() {
                prop_assert_eq!(parse(&header[..cut]), Ok(Parsed::Partial));
            }
            let (read, length) = whole(&[&header[..], &rest].concat());
            prop_assert_eq!(read.map(|s| SocketAddr::new(s.ip().to_canonical(), s.port())), Some(source));
            prop_assert_eq!(length, header.len());
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), v1: bool) {
            let _ = parse(&bytes);
            let prefix = if v1 { V1_PREFIX } else { &V2_SIGNATURE };
            let _ = parse(&[prefix, &bytes].concat());
        }
    }
}
