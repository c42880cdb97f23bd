//! The messages that this program reads or writes, and the fields of which messages consist.
//!
//! A string is a `u16` length and the bytes, an opaque is a `u32` length and the bytes, a bool is one byte.

use std::net::IpAddr;

use super::frame;

/// Message types.
pub mod kind {
    /// The first message of a client.
    pub const HANDSHAKE: u16 = 0x0000;
    /// A log-in with a name and a secret.
    pub const LOGIN: u16 = 0x0001;
    /// Opens a channel.
    pub const CREATE_CNL: u16 = 0x0002;
    /// Ends a channel; on channel 0, the session.
    pub const DESTROY_CNL: u16 = 0x0003;
    /// Data on a channel.
    pub const SEND_ON_CNL: u16 = 0x0004;
    /// Accepts a channel.
    pub const ACCEPT_CNL: u16 = 0x0006;
    /// A message outside any channel.
    pub const ONE_TIME: u16 = 0x0007;
    /// The status of the user (active, away, ...).
    pub const SET_USER_STATUS: u16 = 0x0009;
    /// The privacy list of the user.
    pub const SET_PRIVACY_LIST: u16 = 0x000b;
    /// Asks for a notification when a service is available.
    pub const SENSE_SERVICE: u16 = 0x0011;
    /// The user's own name, as others are to see it.
    pub const SET_USER_NAME: u16 = 0x001e;
    /// The answer to a Handshake.
    pub const HANDSHAKE_ACK: u16 = 0x8000;
    /// The log-in succeeded.
    pub const LOGIN_ACK: u16 = 0x8001;
}

/// The client's address in a Handshake frame, counted from the length field. Clients send 0; the draft says that the
/// server side fills it in.
const HANDSHAKE_CLIENT_ADDRESS: std::ops::Range<usize> = 20..24;

/// Writes the client's address into a whole Handshake `frame`: its IPv4 address, or the IPv4 address that is mapped
/// into its IPv6 address, otherwise 0. A frame is not changed if it is too short for the field, or if its body is
/// encrypted or moved by attributes.
///
/// Returns whether the field had another value than 0 before: a multiplexer has passed the Handshake on already.
pub fn stamp_client_address(frame: &mut [u8], client: IpAddr) -> bool {
    let options = match frame.get(6..8) {
        Some(&[a, b]) => u16::from_be_bytes([a, b]),
        _ => return false,
    };
    if options & (frame::OPTION_ATTRIBUTES | frame::OPTION_ENCRYPTED) != 0 {
        return false;
    }
    let Some(field) = frame.get_mut(HANDSHAKE_CLIENT_ADDRESS) else { return false };
    let was_forwarded = *field != [0; 4];
    let address = match client.to_canonical() {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    field.copy_from_slice(&address);
    was_forwarded
}

/// A whole Handshake frame, like the first one of a client. A Community server answers it without knowing the client.
pub fn handshake() -> Vec<u8> {
    probe(0)
}

/// Where a [`probe`] has its number: the address that a client takes for its own. Nobody has a use for it.
const PROBE_NUMBER: std::ops::Range<usize> = 26..30;

/// A Handshake like [`handshake`] that carries a number, by which its sender recognises it.
pub fn probe(number: u32) -> Vec<u8> {
    let mut body = Writer::new();
    body.u16(0xFFFF).u16(0).u32(0).u32(0).u16(0x1003).u32(number);
    frame::build(kind::HANDSHAKE, 0, &body.0)
}

/// The number of a [`probe`], whatever client address was written into it; `None` if `frame` is none.
pub fn probe_number(frame: &[u8]) -> Option<u32> {
    let number = u32::from_be_bytes(*frame.get(PROBE_NUMBER)?.first_chunk()?);
    let mut sent = probe(number);
    if sent.len() != frame.len() {
        return None;
    }
    sent[HANDSHAKE_CLIENT_ADDRESS].copy_from_slice(&frame[HANDSHAKE_CLIENT_ADDRESS]);
    (sent == frame).then_some(number)
}

/// A whole DestroyCnl frame.
pub fn destroy(channel: u32, reason: u32) -> Vec<u8> {
    let mut body = Writer::new();
    body.u32(reason).opaque(&[]);
    frame::build(kind::DESTROY_CNL, channel, &body.0)
}

/// Reads the fields of a message body. Every method returns `None` if there are not enough bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(now)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*now)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The bytes of a string.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.bytes(usize::from(n))
    }

    /// The bytes of an opaque.
    pub fn opaque(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()?;
        self.bytes(n as usize)
    }
}

/// Writes the fields of a message body. Calls can be chained.
#[derive(Debug, Clone, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An empty body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes without a length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.raw(&[v])
    }

    /// Two bytes.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_be_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_be_bytes())
    }

    /// A string.
    ///
    /// # Panics
    /// When it is longer than 65,535 bytes.
    pub fn string(&mut self, v: &[u8]) -> &mut Self {
        self.u16(u16::try_from(v.len()).expect("a string under 64 KiB")).raw(v)
    }

    /// An opaque.
    ///
    /// # Panics
    /// When it is longer than 4 GiB.
    pub fn opaque(&mut self, v: &[u8]) -> &mut Self {
        self.u32(u32::try_from(v.len()).expect("an opaque under 4 GiB")).raw(v)
    }

    /// A block of fields with its mark in front: the offset at which the block ends, counted from the first byte of
    /// this writer. Readers skip by it what they do not know.
    ///
    /// # Panics
    /// When it ends beyond 4 GiB.
    pub fn marked(&mut self, write: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.0.len();
        write(self.u32(0));
        let end = u32::try_from(self.0.len()).expect("a block under 4 GiB");
        self.0[at..at + 4].copy_from_slice(&end.to_be_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn handshake(options: u16) -> Vec<u8> {
        let mut body = Writer::new();
        body.u16(0xFFFF).u16(0).u32(0).u32(0).u16(0x1003).u32(0);
        let mut frame = frame::build(kind::HANDSHAKE, 0, &body.0);
        frame[6..8].copy_from_slice(&options.to_be_bytes());
        frame
    }

    #[test]
    fn the_client_address_is_written_where_the_draft_has_it() {
        let mapped = IpAddr::V6(Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped());
        for (client, expected) in [
            (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), [192, 0, 2, 9]),
            (mapped, [10, 1, 2, 3]),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), [0, 0, 0, 0]),
        ] {
            let mut frame = handshake(0);
            assert!(!stamp_client_address(&mut frame, client));
            let mut plain = handshake(0);
            plain[20..24].copy_from_slice(&expected);
            assert_eq!(frame, plain);
            assert_eq!(stamp_client_address(&mut frame, client), expected != [0; 4], "a second time");
        }
    }

    #[test]
    fn a_probe_is_recognised_with_the_address_that_a_multiplexer_wrote() {
        let mut frame = probe(0x0102_0304);
        assert_eq!(probe_number(&frame), Some(0x0102_0304));
        stamp_client_address(&mut frame, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)));
        assert_eq!(probe_number(&frame), Some(0x0102_0304));
        frame[12] = 0;
        assert_eq!(probe_number(&frame), None, "another version");
        assert_eq!(probe_number(&[probe(7), vec![0]].concat()), None);
        assert_eq!(probe_number(&probe(7)[..29]), None);
    }

    #[test]
    fn a_shifted_or_short_body_is_left_alone() {
        let client = IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4));
        let mut frame = handshake(frame::OPTION_ATTRIBUTES);
        stamp_client_address(&mut frame, client);
        assert_eq!(frame, handshake(frame::OPTION_ATTRIBUTES));
        let mut short = frame::build(kind::HANDSHAKE, 0, &[0; 4]);
        stamp_client_address(&mut short, client);
        assert_eq!(short, frame::build(kind::HANDSHAKE, 0, &[0; 4]));
    }

    #[test]
    fn a_mark_is_the_offset_of_the_end_of_its_block() {
        let mut data = Writer::new();
        data.u16(7).marked(|outer| {
            outer.u8(1).marked(|inner| _ = inner.u8(2)).marked(|_| ());
        });
        assert_eq!(data.0, [0, 7, 0, 0, 0, 16, 1, 0, 0, 0, 12, 2, 0, 0, 0, 16]);
    }

    #[test]
    fn a_reader_says_where_bytes_run_out() {
        let mut body = Writer::new();
        body.string(b"bob").opaque(b"x").u8(1);
        let mut reader = Reader(&body.0);
        assert_eq!(reader.string(), Some(&b"bob"[..]));
        assert_eq!(reader.opaque(), Some(&b"x"[..]));
        assert_eq!(reader.u8(), Some(1));
        assert_eq!(reader.u16(), None);
        assert_eq!(Reader(&[0, 9, 1]).string(), None);
    }
}
