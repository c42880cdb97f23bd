//! The envelope of the tunnel: URL and body of a request, body of a response.
//!
//! All integers are big-endian. String = `u16 length` + bytes, Opaque = `u32 length` + bytes.
//! Every length is checked: CVE-2008-2499 was a stack overflow by an over-long path.
//!
//! ```text
//! first request    u32 0, u32 1, Opaque public value, in a hybrid session also records
//! first response   u32 0, String "", u32 version, String name, Opaque public value, Opaque token, u8 padding
//! later request    u32 0, Opaque acknowledgement, payload
//! later response   Opaque token, u8 padding, payload
//! record           u32 virtual connection, 'M', Opaque data
//! ```
//! The payload of a polling session is the byte stream itself. That of a hybrid session is a sequence of records.
//! From version 1 on, payload is encrypted. `padding` is the number of bytes to skip after it; this side writes 0.

use std::fmt;

use super::{
    cipher::PUBLIC,
    name::{SessionName, UrlName},
};
use crate::wire::message::{Reader, Writer};

/// The two tunnels. A URL has them as the numbers 35 and 39.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelKind {
    /// 35: the client sends a request every second.
    Polling,
    /// 39: a request is held until there is something to send.
    Hybrid,
}

/// What a URL path asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Address {
    /// `/CommunityCBR` alone: a person, or a health check, asks whether the tunnel is there.
    Probe,
    /// `/CommunityCBR/CC.<kind>.<name>/`: a request of a tunnel session.
    Tunnel(TunnelKind, UrlName),
    /// The path is meant for the tunnel, but does not have its form.
    Malformed,
    /// The path is not meant for the tunnel.
    Other,
}

/// Reads a URL path. It may have any prefix and repeated slashes, and `CommunityCBR` may be in any case.
pub fn address(path: &str) -> Address {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    if !parts.any(|part| part.eq_ignore_ascii_case("CommunityCBR")) {
        return Address::Other;
    }
    let Some(call) = parts.next() else { return Address::Probe };
    let is_last = parts.next().is_none();
    let tunnel = || {
        let call = call.get(..3).filter(|cc| cc.eq_ignore_ascii_case("CC.")).and_then(|_| call.get(3..))?;
        let (kind, name) = call.split_once('.')?;
        let kind = match kind {
            "35" => TunnelKind::Polling,
            "39" => TunnelKind::Hybrid,
            _ => return None,
        };
        UrlName::parse(name).map(|name| Address::Tunnel(kind, name))
    };
    if is_last { tunnel().unwrap_or(Address::Malformed) } else { Address::Malformed }
}

/// Why a body is not of the tunnel's form. It is the other side's fault; the request fails, and the session stays as
/// it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// A first request does not begin with the numbers 0 and 1.
    OpeningStart,
    /// A later request does not begin with the number 0.
    RequestStart,
    /// A field is longer than what is left of the body.
    CutOff,
    /// The Diffie-Hellman value is longer than [`PUBLIC`] bytes and one leading zero.
    PublicValueTooLong,
    /// The first request of a hybrid session opens no virtual connection to the Community.
    NoVirtualConnection,
    /// A record is longer than what is left of the payload.
    RecordCutOff,
    /// A record has a type other than `M`.
    RecordType,
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpeningStart => "the body does not begin with 0 and 1",
            Self::RequestStart => "the body does not begin with 0",
            Self::CutOff => "the body is cut off",
            Self::PublicValueTooLong => "the public value is too long",
            Self::NoVirtualConnection => "no virtual connection to the Community is opened",
            Self::RecordCutOff => "a record is cut off",
            Self::RecordType => "a record has an unknown type",
        })
    }
}

impl std::error::Error for EnvelopeError {}

/// The first request of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct OpeningRequest<'a> {
    /// The client's Diffie-Hellman value.
    pub public: &'a [u8],
    /// Hybrid: the virtual connection to the Community that the client opens. Polling: 0.
    pub connection: u32,
}

/// Reads the body of a first request.
///
/// # Errors
/// What is missing or out of bounds.
pub fn opening(kind: TunnelKind, body: &[u8]) -> Result<OpeningRequest<'_>, EnvelopeError> {
    let mut reader = Reader(body);
    let head = (reader.u32(), reader.u32());
    if head != (Some(0), Some(1)) {
        return Err(EnvelopeError::OpeningStart);
    }
    let public = reader.opaque().ok_or(EnvelopeError::CutOff)?;
    if public.len() > PUBLIC + 1 {
        return Err(EnvelopeError::PublicValueTooLong);
    }
    let mut connection = 0;
    if kind == TunnelKind::Hybrid {
        // A control record `'S', u32 virtual connection, 'C'` opens the connection.
        each_record(reader.0, |on, data| {
            if let (0, Some((b'S', rest))) = (on, data.split_first())
                && let Some((id, b"C")) = rest.split_first_chunk::<4>()
            {
                connection = u32::from_be_bytes(*id);
            }
        })?;
        if connection == 0 {
            return Err(EnvelopeError::NoVirtualConnection);
        }
    }
    Ok(OpeningRequest { public, connection })
}

/// A request after the first.
#[derive(Debug, PartialEq, Eq)]
pub struct LaterRequest<'a> {
    /// The newest token that the client received, encrypted.
    pub acknowledgement: &'a [u8],
    /// The payload as the request has it: in records, and encrypted, where the session says so.
    pub payload: &'a [u8],
}

/// Reads the body of a later request.
///
/// # Errors
/// What is missing.
pub fn later(body: &[u8]) -> Result<LaterRequest<'_>, EnvelopeError> {
    let mut reader = Reader(body);
    if reader.u32() != Some(0) {
        return Err(EnvelopeError::RequestStart);
    }
    let acknowledgement = reader.opaque().ok_or(EnvelopeError::CutOff)?;
    Ok(LaterRequest { acknowledgement, payload: reader.0 })
}

/// Calls `on_record` with the virtual connection and the data of each record. Connection 0 is control.
///
/// # Errors
/// A record that is cut off or of an unknown type. `on_record` was called for the records before it.
pub fn each_record(payload: &[u8], mut on_record: impl FnMut(u32, &[u8])) -> Result<(), EnvelopeError> {
    let mut reader = Reader(payload);
    while !reader.0.is_empty() {
        let connection = reader.u32().ok_or(EnvelopeError::RecordCutOff)?;
        if reader.u8().ok_or(EnvelopeError::RecordCutOff)? != b'M' {
            return Err(EnvelopeError::RecordType);
        }
        on_record(connection, reader.opaque().ok_or(EnvelopeError::RecordCutOff)?);
    }
    Ok(())
}

/// Writes `data` as one record; nothing when there is no data.
pub fn record(connection: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    if !data.is_empty() {
        out.u32(connection).u8(b'M').opaque(data);
    }
    out.0
}

/// Writes the body of a first response. It has no padding and no payload: the client has sent nothing yet.
pub fn opened(version: u32, name: &SessionName, public: &[u8], token: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u32(0).string(b"").u32(version).string(&name.digits()).opaque(public).opaque(token).u8(0);
    out.0
}

/// Writes the body of a later response, without padding.
pub fn response(token: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(4 + token.len() + 1 + payload.len()));
    out.opaque(token).u8(0).raw(payload);
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_the_path_is_the_same_request() {
        for path in [
            "/CommunityCBR/CC.35.abc/",
            "/communityCBR/CC.35.abc/",
            "/st01/CommunityCBR/CC.35.abc/",
            "//CommunityCBR//CC.35.abc",
            "/a/b/COMMUNITYCBR/cc.35.abc/",
        ] {
            assert_eq!(address(path), Address::Tunnel(TunnelKind::Polling, UrlName::NotAName { length: 3 }), "{path}");
        }
        assert_eq!(address("/CommunityCBR/CC.39./"), Address::Tunnel(TunnelKind::Hybrid, UrlName::Empty));
        let name = SessionName::parse("0123456789abcdef0123456789ABCDEF").expect("a name");
        assert_eq!(
            address("/CommunityCBR/CC.39.0123456789abcdef0123456789abcdef/"),
            Address::Tunnel(TunnelKind::Hybrid, UrlName::Session(name))
        );
        assert_eq!(address("/CommunityCBR"), Address::Probe);
        assert_eq!(address("/x/communitycbr//"), Address::Probe);
        for path in ["/", "", "*", "/index.html", "/CommunityCBRx/CC.35./"] {
            assert_eq!(address(path), Address::Other, "{path}");
        }
        let long = format!("/CommunityCBR/CC.39.{}/", "A".repeat(5000));
        for path in
            [&long, "/CommunityCBR/CC.36.a/", "/CommunityCBR/CC.35", "/CommunityCBR/é", "/CommunityCBR/CC.35.a/b"]
        {
            assert_eq!(address(path), Address::Malformed, "{path}");
        }
    }

    #[test]
    fn the_public_value_may_have_one_byte_more_than_the_prime() {
        let opening_with = |length: usize| {
            let mut body = Writer::new();
            body.u32(0).u32(1).opaque(&vec![7; length]);
            opening(TunnelKind::Polling, &body.0).map(|opening| opening.public.len())
        };
        assert_eq!(opening_with(PUBLIC + 1), Ok(PUBLIC + 1));
        for length in [PUBLIC + 2, PUBLIC + 100] {
            assert_eq!(opening_with(length), Err(EnvelopeError::PublicValueTooLong));
        }
    }

    #[test]
    fn a_record_that_is_cut_off_is_told_from_one_of_an_unknown_type() {
        let whole = record(1, b"data");
        for cut in 1..whole.len() {
            assert_eq!(each_record(&whole[..cut], |_, _| ()), Err(EnvelopeError::RecordCutOff), "{cut}");
        }
        let mut other = whole;
        other[4] = b'X';
        assert_eq!(each_record(&other, |_, _| ()), Err(EnvelopeError::RecordType));
        assert_ne!(EnvelopeError::RecordCutOff.to_string(), EnvelopeError::RecordType.to_string());
    }

    #[test]
    fn an_opening_is_read() {
        let mut body = Writer::new();
        body.u32(0).u32(1).opaque(&[7; 64]);
        assert_eq!(opening(TunnelKind::Polling, &body.0), Ok(OpeningRequest { public: &[7; 64], connection: 0 }));
        assert!(opening(TunnelKind::Hybrid, &body.0).is_err());
        body.raw(&record(0, b"S\0\0\0\x01C"));
        assert_eq!(opening(TunnelKind::Hybrid, &body.0), Ok(OpeningRequest { public: &[7; 64], connection: 1 }));
        assert!(opening(TunnelKind::Hybrid, &body.0[..body.0.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_the_readers_panic(body in proptest::collection::vec(any::<u8>(), 0..300), path in ".{0,80}") {
            let _ = (opening(TunnelKind::Polling, &body), opening(TunnelKind::Hybrid, &body), later(&body), address(&path));
            let _ = each_record(&body, |_, _| ());
        }

        #[test]
        fn records_come_back(data in proptest::collection::vec((1u32.., proptest::collection::vec(any::<u8>(), 1..50)), 0..6)) {
            let payload: Vec<u8> = data.iter().flat_map(|(on, bytes)| record(*on, bytes)).collect();
            let mut seen = Vec::new();
            each_record(&payload, |on, bytes| seen.push((on, bytes.to_vec()))).expect("whole records");
            prop_assert_eq!(seen, data);
        }
    }
}
