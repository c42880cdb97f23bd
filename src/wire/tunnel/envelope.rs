//! The tunnel's envelope: URL and body of a request, body of a response.
//!
//! All integers are big-endian; String = `u16 length` + bytes, Opaque = `u32 length` + bytes.
//! Everything is length-checked: CVE-2008-2499 was a stack overflow by an over-long path.

use super::cipher::PUBLIC;
use crate::wire::message::{Reader, Writer};

/// Bytes of the longest session name that a URL may hold; ours have 32.
const MAX_NAME: usize = 64;

/// The two tunnels. The numbers stand in the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 35: the client asks every second.
    Polling,
    /// 39: a request is held until there is something to say.
    Hybrid,
}

/// What a URL path asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Address<'a> {
    /// `/CommunityCBR` alone: a person, or a check, that asks whether the tunnel is there.
    Probe,
    /// `/CommunityCBR/CC.<kind>.<session>/`; the name is empty in the first request.
    Tunnel(Kind, &'a str),
    /// Meant for the tunnel, but not of its form.
    Malformed,
    /// Not meant for the tunnel.
    Other,
}

/// Reads a URL path: any prefix, single or double slashes, `CommunityCBR` in any case.
pub fn address(path: &str) -> Address<'_> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    if !parts.any(|part| part.eq_ignore_ascii_case("CommunityCBR")) {
        return Address::Other;
    }
    let Some(call) = parts.next() else { return Address::Probe };
    let rest_is_empty = parts.next().is_none();
    let parsed = (|| {
        let call = call.get(..3).filter(|cc| cc.eq_ignore_ascii_case("CC.")).and_then(|_| call.get(3..))?;
        let (kind, name) = call.split_once('.')?;
        let kind = match kind {
            "35" => Kind::Polling,
            "39" => Kind::Hybrid,
            _ => return None,
        };
        (name.len() <= MAX_NAME).then_some(Address::Tunnel(kind, name))
    })();
    parsed.filter(|_| rest_is_empty).unwrap_or(Address::Malformed)
}

/// A body that is not the tunnel's. The client's fault; the request dies, the session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The first request of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct Opening<'a> {
    /// The client's Diffie-Hellman value.
    pub public: &'a [u8],
    /// Hybrid: the virtual connection that it opens to the Community. Polling: 0.
    pub connection: u32,
}

/// Reads the first request's body.
///
/// # Errors
/// What is missing or out of bounds.
pub fn opening(kind: Kind, body: &[u8]) -> Result<Opening<'_>, Malformed> {
    let mut reader = Reader(body);
    let head = (reader.u32(), reader.u32());
    if head != (Some(0), Some(1)) {
        return Err(Malformed("does not begin with 0 and 1"));
    }
    let public = reader.opaque().ok_or(Malformed("is cut off"))?;
    if public.len() > PUBLIC + 1 {
        return Err(Malformed("has an over-long public value"));
    }
    let mut connection = 0;
    if kind == Kind::Hybrid {
        each_record(reader.0, |on, data| {
            if let (0, Some((b'S', rest))) = (on, data.split_first())
                && let Some((id, b"C")) = rest.split_first_chunk::<4>()
            {
                connection = u32::from_be_bytes(*id);
            }
        })?;
        if connection == 0 {
            return Err(Malformed("opens no virtual connection to the Community"));
        }
    }
    Ok(Opening { public, connection })
}

/// A request after the first.
#[derive(Debug, PartialEq, Eq)]
pub struct Later<'a> {
    /// The newest token that the client received, encrypted.
    pub acknowledgement: &'a [u8],
    /// The payload, as it stands in the request.
    pub payload: &'a [u8],
}

/// Reads a later request's body.
///
/// # Errors
/// What is missing.
pub fn later(body: &[u8]) -> Result<Later<'_>, Malformed> {
    let mut reader = Reader(body);
    if reader.u32() != Some(0) {
        return Err(Malformed("does not begin with 0"));
    }
    let acknowledgement = reader.opaque().ok_or(Malformed("is cut off"))?;
    Ok(Later { acknowledgement, payload: reader.0 })
}

/// Calls `on_record` with virtual connection and data of each record: `u32 virtual
/// connection, 'M', Opaque data`. Connection 0 is control.
///
/// # Errors
/// A record that is cut off or of an unknown type.
pub fn each_record(payload: &[u8], mut on_record: impl FnMut(u32, &[u8])) -> Result<(), Malformed> {
    let mut reader = Reader(payload);
    while !reader.0.is_empty() {
        match (reader.u32(), reader.u8(), reader.opaque()) {
            (Some(connection), Some(b'M'), Some(data)) => on_record(connection, data),
            (Some(_), Some(b'M'), None) | (_, None, _) => return Err(Malformed("has a record that is cut off")),
            _ => return Err(Malformed("has a record of unknown type")),
        }
    }
    Ok(())
}

/// `data` as one record, or nothing when there is none.
pub fn record(connection: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    if !data.is_empty() {
        out.u32(connection).u8(b'M').opaque(data);
    }
    out.0
}

/// The first response's body. Without padding and payload: the client has sent nothing yet.
pub fn opened(version: u32, name: &str, public: &[u8], token: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u32(0).string(b"").u32(version).string(name.as_bytes()).opaque(public).opaque(token).u8(0);
    out.0
}

/// A later response's body, without padding.
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
            assert_eq!(address(path), Address::Tunnel(Kind::Polling, "abc"), "{path}");
        }
        assert_eq!(address("/CommunityCBR/CC.39./"), Address::Tunnel(Kind::Hybrid, ""));
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
    fn an_opening_is_read() {
        let mut body = Writer::new();
        body.u32(0).u32(1).opaque(&[7; 64]);
        assert_eq!(opening(Kind::Polling, &body.0), Ok(Opening { public: &[7; 64], connection: 0 }));
        assert!(opening(Kind::Hybrid, &body.0).is_err());
        body.raw(&record(0, b"S\0\0\0\x01C"));
        assert_eq!(opening(Kind::Hybrid, &body.0), Ok(Opening { public: &[7; 64], connection: 1 }));
        assert!(opening(Kind::Hybrid, &body.0[..body.0.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_the_readers_panic(body in proptest::collection::vec(any::<u8>(), 0..300), path in ".{0,80}") {
            let _ = (opening(Kind::Polling, &body), opening(Kind::Hybrid, &body), later(&body), address(&path));
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
