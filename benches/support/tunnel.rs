//! A tunnel client without sockets, and a core that keeps the sessions that arrive.
#![allow(dead_code, unreachable_pub)]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use parking_lot::Mutex;
use sametime_mux::{
    ingress::tunnel::{Service, TunnelResponse, TunnelSettings},
    stream::{Arrival, Core},
    telemetry::outcome::Refusal,
    wire::{
        message::{Reader, Writer},
        tunnel::{
            cipher::{Agreement, Cipher, FIRST_IV, agree_with},
            envelope::{self, TunnelKind},
            name::SessionName,
        },
    },
};

/// The address of the clients.
pub const FROM: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECRET: [u8; 1] = [5];

pub fn settings(reply_wait: Duration) -> TunnelSettings {
    TunnelSettings {
        hold: Duration::from_secs(25),
        reply_wait,
        session_timeout: Duration::from_secs(600),
        stream_keep_alive: None,
        version: 0,
        window: 128 * 1024,
        same_address: false,
        sessions: 1_000_000,
        sessions_per_address: 0,
        exempt: vec![],
    }
}

/// A core that keeps every session, so that it stays open.
#[derive(Default)]
pub struct Keep(Mutex<Vec<Arrival>>);

impl Core for Keep {
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>> {
        self.0.lock().push(arrival);
        Ok(())
    }
}

/// The agreement on the server's side, and the cipher on the client's side.
pub fn agreed() -> (Agreement, Cipher) {
    let ours = agree_with(&agree_with(&[3], &SECRET).unwrap().public, &[9; 32]).unwrap();
    let client = agree_with(&ours.public, &SECRET).unwrap().cipher;
    (ours, client)
}

pub struct Client {
    kind: TunnelKind,
    version: u32,
    cipher: Cipher,
    pub name: Option<SessionName>,
    pub token: [u8; 5],
    chain: [u8; 8],
    sent: [u8; 8],
}

impl Client {
    pub fn of(kind: TunnelKind, version: u32, cipher: Cipher, token: [u8; 5]) -> Self {
        Self { kind, version, cipher, name: None, token, chain: FIRST_IV, sent: FIRST_IV }
    }

    /// Opens a session.
    pub fn open(service: &Service, kind: TunnelKind) -> Self {
        let mut body = Writer::new();
        body.u32(0).u32(1).opaque(&agree_with(&[3], &SECRET).unwrap().public);
        if kind == TunnelKind::Hybrid {
            body.raw(&envelope::record(0, b"S\0\0\0\x01C"));
        }
        let client = SocketAddr::from(([127, 0, 0, 1], 5000));
        let TunnelResponse::Body(response, _) = service.open(kind, &body.0, client, 1533) else { panic!("opened") };
        let mut reader = Reader(&response);
        let (_, _, version) = (reader.u32(), reader.string(), reader.u32().unwrap());
        let name = SessionName::parse(std::str::from_utf8(reader.string().unwrap()).unwrap());
        let cipher = agree_with(reader.opaque().unwrap(), &SECRET).unwrap().cipher;
        let token = reader.opaque().unwrap().try_into().unwrap();
        Self { name, ..Self::of(kind, version, cipher, token) }
    }

    /// The body of a request after the first.
    pub fn request(&mut self, data: &[u8]) -> Vec<u8> {
        let mut payload = if self.kind == TunnelKind::Hybrid { envelope::record(1, data) } else { data.to_vec() };
        if self.version > 0 && !payload.is_empty() {
            payload = self.cipher.encrypt(&mut self.sent, &payload);
        }
        let mut body = Writer::new();
        body.u32(0).opaque(&self.cipher.encrypt(&mut self.chain, &self.token)).raw(&payload);
        body.0
    }

    /// Reads a response. Returns the bytes of the Community in it.
    pub fn take(&mut self, response: &TunnelResponse) -> Vec<u8> {
        let TunnelResponse::Body(body, _) = response else { panic!("{response:?}") };
        let mut reader = Reader(body);
        self.token = reader.opaque().unwrap().try_into().unwrap();
        reader.u8().unwrap();
        match self.kind {
            TunnelKind::Hybrid if !reader.0.is_empty() => reader.0[9..].to_vec(),
            _ => reader.0.to_vec(),
        }
    }
}
