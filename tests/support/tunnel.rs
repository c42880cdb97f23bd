//! A client's side of the HTTP tunnel, as the recordings show it. This code is written from the tunnel's description
//! and shares nothing with the program.

use std::{io, sync::LazyLock, time::Duration};

use num_bigint::BigUint;
use rc2::{
    Rc2,
    cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{
    http::{self, Response, Stream},
    route::Route,
};

pub static PRIME: LazyLock<BigUint> = LazyLock::new(|| {
    let hex = b"CF84AFCE86DDFA527F136D10357528EEFBA0AFEF808F29174E3B6A9E970001717C8F106C41C161A6CE91057B34DA62CBB87BFDC1B35C1B910FEA72249D566B9F";
    BigUint::parse_bytes(hex, 16).unwrap()
});

/// A chain of RC2 blocks in CBC mode.
#[derive(Clone)]
pub struct Chain(pub [u8; 8]);

impl Default for Chain {
    fn default() -> Self {
        Self([0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF])
    }
}

impl Chain {
    pub fn encrypt(&mut self, cipher: &Rc2, plain: &[u8]) -> Vec<u8> {
        let pad = 8 - plain.len() % 8;
        let padded = [plain, &vec![pad as u8; pad]].concat();
        let mut out = Vec::new();
        for block in padded.chunks(8) {
            let mut one = Array::from(std::array::from_fn(|i| block[i] ^ self.0[i]));
            cipher.encrypt_block(&mut one);
            self.0 = one.into();
            out.extend(self.0);
        }
        out
    }

    pub fn decrypt(&mut self, cipher: &Rc2, secret: &[u8]) -> Vec<u8> {
        assert!(!secret.is_empty() && secret.len().is_multiple_of(8), "{} bytes of ciphertext", secret.len());
        let mut out = Vec::new();
        for block in secret.chunks(8) {
            let block: [u8; 8] = block.try_into().unwrap();
            let mut one = Array::from(block);
            cipher.decrypt_block(&mut one);
            out.extend((0..8).map(|i| one[i] ^ self.0[i]));
            self.0 = block;
        }
        let pad = usize::from(*out.last().unwrap());
        assert!((1..=8).contains(&pad) && out.ends_with(&vec![pad as u8; pad]), "padding");
        out.truncate(out.len() - pad);
        out
    }
}

/// The public Diffie-Hellman value of a secret.
pub fn public(secret: &BigUint) -> Vec<u8> {
    padded(&BigUint::from(3u32).modpow(secret, &PRIME))
}

fn padded(n: &BigUint) -> Vec<u8> {
    let bytes = n.to_bytes_be();
    [vec![0; 64 - bytes.len()], bytes].concat()
}

/// The session's key, from the other side's public value and the own secret.
pub fn key(theirs: &[u8], secret: &BigUint) -> Vec<u8> {
    padded(&BigUint::from_bytes_be(theirs).modpow(secret, &PRIME))[48..].to_vec()
}

pub fn cipher(key: &[u8]) -> Rc2 {
    Rc2::new_with_eff_key_len(key, 1024)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Polling,
    Hybrid,
}

impl Kind {
    pub fn number(self) -> u8 {
        match self {
            Self::Polling => 35,
            Self::Hybrid => 39,
        }
    }
}

/// One session, as its client knows it. Without I/O: it makes the bodies of requests and reads those of responses.
pub struct Session {
    pub kind: Kind,
    secret: BigUint,
    pub name: String,
    pub version: u32,
    cipher: Option<Rc2>,
    token: Vec<u8>,
    acknowledgement: Option<Vec<u8>>,
    acknowledgement_chain: Chain,
    sent: Chain,
    received: Chain,
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (now, rest) = bytes.split_at(n);
    *bytes = rest;
    now
}

fn take_u32(bytes: &mut &[u8]) -> u32 {
    u32::from_be_bytes(take(bytes, 4).try_into().unwrap())
}

fn take_opaque<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let n = take_u32(bytes) as usize;
    take(bytes, n)
}

pub fn record(data: &[u8]) -> Vec<u8> {
    if data.is_empty() {
        return Vec::new();
    }
    [&[0, 0, 0, 1, b'M'][..], &(data.len() as u32).to_be_bytes(), data].concat()
}

pub fn records(mut payload: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while !payload.is_empty() {
        assert_eq!(take(&mut payload, 5), [0, 0, 0, 1, b'M'], "a record of connection 1");
        data.extend(take_opaque(&mut payload));
    }
    data
}

impl Session {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            secret: BigUint::from(0x1234_5678_9ABC_DEF1u64).pow(7),
            name: String::new(),
            version: 0,
            cipher: None,
            token: Vec::new(),
            acknowledgement: None,
            acknowledgement_chain: Chain::default(),
            sent: Chain::default(),
            received: Chain::default(),
        }
    }

    pub fn path(&self) -> String {
        format!("/CommunityCBR/CC.{}.{}/", self.kind.number(), self.name)
    }

    /// The body of the first request.
    pub fn opening(&self) -> Vec<u8> {
        let mut body = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 64];
        body.extend(public(&self.secret));
        if self.kind == Kind::Hybrid {
            body.extend(b"\0\0\0\0M\0\0\0\x06S\0\0\0\x01C");
        }
        body
    }

    /// Reads the body of the first response.
    pub fn opened(&mut self, mut body: &[u8]) {
        let body = &mut body;
        assert_eq!(take(body, 6), [0; 6], "u32 0 and an empty string");
        self.version = take_u32(body);
        let n = u16::from_be_bytes(take(body, 2).try_into().unwrap());
        self.name = String::from_utf8(take(body, n.into()).to_vec()).unwrap();
        assert!((22..64).contains(&self.name.len()), "a name of 128 bits, under 64 characters: {}", self.name);
        self.cipher = Some(cipher(&key(take_opaque(body), &self.secret)));
        self.token = take_opaque(body).to_vec();
        assert!(!self.token.is_empty());
        let padding = take(body, 1)[0];
        take(body, padding.into());
        assert!(body.is_empty(), "nothing was asked yet");
    }

    /// The body of a request after the first.
    pub fn request(&mut self, data: &[u8]) -> Vec<u8> {
        let cipher = self.cipher.as_ref().unwrap();
        let acknowledgement =
            self.acknowledgement.get_or_insert_with(|| self.acknowledgement_chain.encrypt(cipher, &self.token));
        let mut payload = if self.kind == Kind::Hybrid { record(data) } else { data.to_vec() };
        if self.version > 0 && !payload.is_empty() {
            payload = self.sent.encrypt(cipher, &payload);
        }
        [&[0; 4][..], &super::frames::opaque(acknowledgement), &payload].concat()
    }

    /// Reads the body of a response after the first. Returns the bytes of the stream in it.
    pub fn response(&mut self, mut body: &[u8]) -> Vec<u8> {
        let body = &mut body;
        self.token = take_opaque(body).to_vec();
        self.acknowledgement = None;
        let padding = take(body, 1)[0];
        take(body, padding.into());
        if body.is_empty() {
            return Vec::new();
        }
        let clear =
            if self.version > 0 { self.received.decrypt(self.cipher.as_ref().unwrap(), body) } else { body.to_vec() };
        if self.kind == Kind::Hybrid { records(&clear) } else { clear }
    }

    /// The payload of a response that the client ignores.
    pub fn ignored_payload(&self, mut body: &[u8]) -> Vec<u8> {
        let body = &mut body;
        take_opaque(body);
        let padding = take(body, 1)[0];
        take(body, padding.into());
        body.to_vec()
    }
}

/// The waiting times of a tunnel client. Real clients wait a second each time. If a hybrid client waits too little on a
/// busy machine, two requests with data may overtake each other, which the protocol cannot detect.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Polling: the time from a response to the next poll without data.
    pub idle: Duration,
    /// Hybrid: how long data waits for the response to the held request.
    pub held_timeout: Duration,
    /// The time between the second copy of a request and the third, and so on.
    pub retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            idle: Duration::from_millis(10),
            held_timeout: Duration::from_millis(500),
            retry: Duration::from_millis(200),
        }
    }
}

/// The number of copies of a request without a response after which a test fails. A real client sends six copies: the
/// second at once, the others every three seconds.
const COPIES: u32 = 30;

type Posted = (Stream, io::Result<Response>);

/// Sends one request on `connection`, or on a new one.
async fn post(route: Route, tls: bool, connection: Option<Stream>, path: String, body: Vec<u8>) -> io::Result<Posted> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => route.connect(tls).await?,
    };
    let response = http::exchange(&mut connection, &http::post(&path, &body)).await;
    Ok((connection, response))
}

/// The outcome of a request.
enum Outcome {
    Response(Stream, Response),
    /// There is no response, or one of a proxy: the identical request must be sent again.
    Lost(String),
    /// The multiplexer has no such session.
    Over,
}

fn outcome(posted: io::Result<Posted>) -> Outcome {
    match posted {
        Err(failed) => Outcome::Lost(failed.to_string()),
        Ok((_, Err(failed))) => Outcome::Lost(failed.to_string()),
        Ok((_, Ok(response))) if response.status == 404 => Outcome::Over,
        Ok((connection, Ok(response))) if response.status == 200 => Outcome::Response(connection, response),
        // The response of a proxy that does not reach the multiplexer.
        Ok((_, Ok(response))) if [502, 503, 504].contains(&response.status) => Outcome::Lost(response.head),
        Ok((_, Ok(response))) => panic!("{}", response.head),
    }
}

/// Opens a session, then carries the bytes of `stream` until the session or the stream ends.
pub async fn drive(kind: Kind, route: Route, tls: bool, pace: Pace, stream: DuplexStream) {
    let client = Driver { session: Session::new(kind), route, tls, pace };
    match kind {
        Kind::Polling => client.polling(stream).await,
        Kind::Hybrid => client.hybrid(stream).await,
    }
}

struct Driver {
    session: Session,
    route: Route,
    tls: bool,
    pace: Pace,
}

impl Driver {
    fn post(
        &self,
        connection: Option<Stream>,
        body: &[u8],
    ) -> impl Future<Output = io::Result<Posted>> + Send + 'static {
        let path = format!("{}{}", self.route.prefix, self.session.path());
        post(self.route.clone(), self.tls, connection, path, body.to_vec())
    }

    /// Sends a request, and the identical one again on a new connection if the response is lost. `None`: the session is
    /// over.
    async fn exchange(&self, connection: Option<Stream>, body: &[u8]) -> Option<(Stream, Response)> {
        let mut connection = connection;
        for copy in 0..COPIES {
            match outcome(self.post(connection.take(), body).await) {
                Outcome::Response(connection, response) => return Some((connection, response)),
                Outcome::Over => return None,
                Outcome::Lost(_) if copy == 0 => (),
                Outcome::Lost(_) => tokio::time::sleep(self.pace.retry).await,
            }
        }
        panic!("no response to {COPIES} requests");
    }

    async fn open(&mut self) -> Stream {
        let opened = self.exchange(None, &self.session.opening()).await;
        let (connection, first) = opened.expect("a session");
        self.session.opened(&first.body);
        connection
    }

    async fn polling(mut self, mut stream: DuplexStream) {
        let (mut buffer, mut connection) = (vec![0; 256 * 1024], Some(self.open().await));
        loop {
            let data = match tokio::time::timeout(self.pace.idle, stream.read(&mut buffer)).await {
                Err(_) => &[][..],
                Ok(Ok(n)) if n > 0 => &buffer[..n],
                Ok(_) => return,
            };
            let body = self.session.request(data);
            let Some((kept, response)) = self.exchange(connection.take(), &body).await else { return };
            connection = Some(kept);
            let payload = self.session.response(&response.body);
            if stream.write_all(&payload).await.is_err() {
                return;
            }
        }
    }

    async fn hybrid(mut self, stream: DuplexStream) {
        let (mut from, mut into) = tokio::io::split(stream);
        let mut buffer = vec![0; 256 * 1024];
        let connection = self.open().await;
        let mut body = self.session.request(&[]);
        let mut held = tokio::spawn(self.post(Some(connection), &body));
        let (mut data, mut copies) = (Vec::new(), 0);
        loop {
            let posted = if data.is_empty() {
                tokio::select! {
                    posted = &mut held => Some(posted),
                    read = from.read(&mut buffer) => match read {
                        Ok(n) if n > 0 => {
                            data.extend_from_slice(&buffer[..n]);
                            None
                        }
                        _ => return,
                    },
                }
            } else {
                None
            };
            // Data first waits for the response to the held request, then is sent with a second request.
            let posted = match posted {
                Some(posted) => Some(posted),
                None => tokio::time::timeout(self.pace.held_timeout, &mut held).await.ok(),
            };
            let Some(posted) = posted else {
                // A real client ignores the response to the older request.
                body = self.session.request(&std::mem::take(&mut data));
                let next = tokio::spawn(self.post(None, &body));
                tokio::spawn(std::mem::replace(&mut held, next));
                continue;
            };
            held = match outcome(posted.unwrap()) {
                Outcome::Over => return,
                Outcome::Response(connection, response) => {
                    copies = 0;
                    let payload = self.session.response(&response.body);
                    if into.write_all(&payload).await.is_err() {
                        return;
                    }
                    body = self.session.request(&std::mem::take(&mut data));
                    tokio::spawn(self.post(Some(connection), &body))
                }
                Outcome::Lost(why) => {
                    copies += 1;
                    assert!(copies < COPIES, "no response to {COPIES} requests: {why}");
                    if copies > 1 {
                        tokio::time::sleep(self.pace.retry).await;
                    }
                    tokio::spawn(self.post(None, &body))
                }
            };
        }
    }
}
