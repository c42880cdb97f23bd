//! Frames as a client or a Community server reads and writes them. This code is written from the protocol's
//! description and shares nothing with the program.

use tokio::io::{AsyncRead, AsyncReadExt};

pub const HANDSHAKE: u16 = 0x0000;
pub const LOGIN: u16 = 0x0001;
pub const CREATE: u16 = 0x0002;
pub const DESTROY: u16 = 0x0003;
pub const SEND: u16 = 0x0004;
pub const ACCEPT: u16 = 0x0006;
pub const HANDSHAKE_ACK: u16 = 0x8000;
pub const LOGIN_ACK: u16 = 0x8001;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u16,
    pub channel: u32,
    pub body: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u16, channel: u32, body: &[u8]) -> Self {
        Self { kind, channel, body: body.to_vec() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = (self.body.len() as u32 + 8).to_be_bytes().to_vec();
        out.extend(self.kind.to_be_bytes());
        out.extend([0, 0]);
        out.extend(self.channel.to_be_bytes());
        out.extend(&self.body);
        out
    }

    /// Reads the next frame and skips keep-alives; `None` at the end of the stream.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Self> {
        let first = loop {
            match stream.read_u8().await {
                Ok(byte) if byte & 0x80 != 0 => (),
                Ok(byte) => break byte,
                Err(_) => return None,
            }
        };
        let mut head = [first, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        stream.read_exact(&mut head[1..]).await.ok()?;
        let length = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 8];
        stream.read_exact(&mut body).await.ok()?;
        let kind = u16::from_be_bytes(head[4..6].try_into().unwrap());
        Some(Self { kind, channel: u32::from_be_bytes(head[8..12].try_into().unwrap()), body })
    }

    /// The reason of a DestroyCnl.
    pub fn reason(&self) -> u32 {
        assert_eq!(self.kind, DESTROY, "{self:x?}");
        u32::from_be_bytes(self.body[..4].try_into().unwrap())
    }

    /// The text of an instant message.
    pub fn text(&self) -> &[u8] {
        assert_eq!(
            (self.kind, &self.body[..2]),
            (SEND, &[0, 0x64][..]),
            "{:x?}",
            &self.body[..self.body.len().min(32)]
        );
        &self.body[12..]
    }
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text].concat()
}

pub fn opaque(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u32).to_be_bytes(), data].concat()
}

/// A Handshake as a real Java client sends it: major 0xFFFF, minor 0.
pub fn handshake() -> Frame {
    let mut body = vec![0xFF, 0xFF, 0, 0];
    body.extend([0; 16]);
    Frame::new(HANDSHAKE, 0, &body)
}

pub fn login(name: &str, password: &str) -> Frame {
    let body = [&[0x10, 0x03][..], &string(name.as_bytes()), &opaque(password.as_bytes()), &[0, 0, 0, 0]].concat();
    Frame::new(LOGIN, 0, &body)
}

pub fn create_chat(channel: u32, peer: &str) -> Frame {
    let mut body = [&[0; 4][..], &channel.to_be_bytes(), &string(peer.as_bytes()), &string(b"")].concat();
    for word in [0x1000u32, 0x1000, 3, 0] {
        body.extend(word.to_be_bytes());
    }
    body.extend(opaque(&[0, 0, 0, 1, 0, 0, 0, 1]));
    body.extend([0, 0, 0]);
    body.extend(opaque(b""));
    Frame::new(CREATE, 0, &body)
}

pub fn message(channel: u32, text: &[u8]) -> Frame {
    // The length of a String has two bytes, so a longer text is sent as data of another type.
    let data = if text.len() < 0x1_0000 {
        [&[0, 0, 0, 1][..], &string(text)].concat()
    } else {
        [&[0, 0, 0, 2, 0, 0][..], text].concat()
    };
    Frame::new(SEND, channel, &[&[0, 0x64][..], &opaque(&data)].concat())
}

pub fn log_out() -> Frame {
    Frame::new(DESTROY, 0, &[0; 8])
}
