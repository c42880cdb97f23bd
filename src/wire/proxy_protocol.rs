//! The PROXY protocol, versions 1 (a line of text) and 2 (binary): who the client is, told by
//! a proxy in front of its bytes. Format: HAProxy's `proxy-protocol.txt`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

const V1_PREFIX: &[u8] = b"PROXY ";
/// The longest line of version 1, its end counted.
const V1_MAX: usize = 107;
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_HEAD: usize = 16;
/// Bytes of addresses and further fields that are put up with. The addresses take 36 at the most.
const V2_MAX: usize = 4096;

/// What the bytes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// More are needed.
    Partial,
    /// A header of `length` bytes.
    Whole {
        /// The client; `None`: the proxy speaks for itself, or does not know.
        source: Option<SocketAddr>,
        /// Bytes of the header.
        length: usize,
    },
}

/// Not a header. The peer's fault; it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeaderError(&'static str);

impl fmt::Display for ProxyHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Whether `bytes` begin with a header, whole or not.
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_PREFIX) || bytes.starts_with(&V2_SIGNATURE)
}

/// Whether `bytes` may turn out to begin with a header.
pub fn could_be(bytes: &[u8]) -> bool {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    begins(V1_PREFIX) || begins(&V2_SIGNATURE)
}

/// Reads a header off the front of `bytes`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    if !could_be(bytes) {
        return Err(ProxyHeaderError("no PROXY header, where listeners.proxy_protocol_from requires one"));
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
        return if window.len() == V1_MAX {
            Err(ProxyHeaderError("an over-long PROXY line"))
        } else {
            Ok(Parsed::Partial)
        };
    };
    let bad = ProxyHeaderError("a PROXY line that is not of the form PROXY TCP4|TCP6 source destination port port");
    let line = window.get(V1_PREFIX.len()..end).and_then(|line| std::str::from_utf8(line).ok()).ok_or(bad)?;
    let fields: Vec<&str> = line.split(' ').collect();
    let source = match fields[..] {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, destination, port, other] => {
            let ip: Ipv4Addr = source.parse().map_err(|_| bad)?;
            let _: (Ipv4Addr, u16) = (destination.parse().map_err(|_| bad)?, other.parse().map_err(|_| bad)?);
            Some(SocketAddr::new(ip.into(), port.parse().map_err(|_| bad)?))
        }
        ["TCP6", source, destination, port, other] => {
            let ip: Ipv6Addr = source.parse().map_err(|_| bad)?;
            let _: (Ipv6Addr, u16) = (destination.parse().map_err(|_| bad)?, other.parse().map_err(|_| bad)?);
            Some(SocketAddr::new(ip.into(), port.parse().map_err(|_| bad)?))
        }
        _ => return Err(bad),
    };
    Ok(Parsed::Whole { source, length: end + 2 })
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let Some(&[command, family, l0, l1]) = bytes.get(V2_SIGNATURE.len()..V2_HEAD) else {
        return Ok(Parsed::Partial);
    };
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    if command >> 4 != 2 || command & 0x0F > 1 {
        return Err(ProxyHeaderError("a binary PROXY header of unknown version or command"));
    }
    if length > V2_MAX {
        return Err(ProxyHeaderError("an over-long binary PROXY header"));
    }
    let Some(body) = bytes.get(V2_HEAD..V2_HEAD + length) else {
        return Ok(Parsed::Partial);
    };
    let short = ProxyHeaderError("a binary PROXY header too short for its addresses");
    let port = |at: usize| body.get(at..).and_then(|b| b.first_chunk()).map(|p| u16::from_be_bytes(*p)).ok_or(short);
    let source = match (command & 0x0F, family) {
        // LOCAL: the proxy's own check.
        (0, _) => None,
        (_, 0x11) => {
            let ip = Ipv4Addr::from(*body.first_chunk::<4>().ok_or(short)?);
            port(10)?;
            Some(SocketAddr::new(ip.into(), port(8)?))
        }
        (_, 0x21) => {
            let ip = Ipv6Addr::from(*body.first_chunk::<16>().ok_or(short)?);
            port(34)?;
            Some(SocketAddr::new(ip.into(), port(32)?))
        }
        _ => None,
    };
    Ok(Parsed::Whole { source, length: V2_HEAD + length })
}

/// A header of version 2 that says who the client is.
pub fn v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut out = V2_SIGNATURE.to_vec();
    out.push(0x21);
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x11, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let v6 = |ip| match ip {
                IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
                IpAddr::V6(v6) => v6,
            };
            out.extend_from_slice(&[0x21, 0, 36]);
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
