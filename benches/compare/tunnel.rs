//! Tunnel clients: polling clients, and hybrid clients whose request is held.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::LazyLock,
    time::{Duration, Instant},
};

use num_bigint::BigUint;
use rc2::{
    Rc2,
    cipher::{Array, BlockCipherEncrypt},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinSet, spawn_local},
};

use super::{
    echo::HEAD,
    load::{Busy, Record, Window, handshake_frame, login_frame, since, sweep, take_one},
    proxies::Running,
};

static PRIME: LazyLock<BigUint> = LazyLock::new(|| {
    let hex = b"CF84AFCE86DDFA527F136D10357528EEFBA0AFEF808F29174E3B6A9E970001717C8F106C41C161A6CE91057B34DA62CBB87BFDC1B35C1B910FEA72249D566B9F";
    BigUint::parse_bytes(hex, 16).unwrap()
});
/// The client's Diffie-Hellman secret. It is small, so that the client's side of the agreement costs almost nothing.
const SECRET: u32 = 5;
const FIRST_IV: [u8; 8] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF];
const AT_ONCE: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Polling,
    Hybrid,
}

/// A tunnel session on one keep-alive connection.
pub struct Session {
    tcp: TcpStream,
    kind: Kind,
    cipher: Rc2,
    chain: [u8; 8],
    token: [u8; 5],
    head: String,
    buffer: Vec<u8>,
}

fn padded(number: &BigUint) -> Vec<u8> {
    let bytes = number.to_bytes_be();
    [vec![0; 64 - bytes.len()], bytes].concat()
}

fn opaque(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// The head of a request as a real Java client writes it, up to the value of Content-Length.
fn head(kind: Kind, name: &str) -> String {
    let number = if kind == Kind::Polling { 35 } else { 39 };
    format!(
        "POST /CommunityCBR/CC.{number}.{name}/ HTTP/1.1\r\nPragma: No-Cache\r\nContent-Type: Application/Octet-Stream\r\nCache-Control: no-cache\r\nUser-Agent: Java/17.0.15\r\nHost: 127.0.0.1:8082\r\nAccept: text/html, image/gif, image/jpeg, */*; q=0.2\r\nConnection: keep-alive\r\nContent-Length: "
    )
}

impl Session {
    /// A client that sends the same requests to an HTTP server without sessions.
    pub async fn without_session(to: SocketAddr) -> io::Result<Self> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        Ok(Self {
            tcp,
            kind: Kind::Polling,
            cipher: Rc2::new_with_eff_key_len(&[7; 16], 1024),
            chain: FIRST_IV,
            token: [0; 5],
            head: head(Kind::Polling, "0123456789abcdef0123456789abcdef"),
            buffer: Vec::new(),
        })
    }

    /// Opens a session and logs in over it.
    pub async fn log_in(kind: Kind, to: SocketAddr) -> io::Result<Self> {
        let mut this = Self::without_session(to).await?;
        this.kind = kind;
        this.head = head(kind, "");
        let mut body = [&[0, 0, 0, 0, 0, 0, 0, 1][..], &opaque(&padded(&BigUint::from(3u32).pow(SECRET)))].concat();
        if kind == Kind::Hybrid {
            body.extend(b"\0\0\0\0M\0\0\0\x06S\0\0\0\x01C");
        }
        let response = this.post(&body).await?;
        // The response is a u32, an empty String, the u32 version, then the session's name, public value and token.
        let mut rest = &response[10..];
        let name_length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        this.head = head(kind, std::str::from_utf8(&rest[2..2 + name_length]).unwrap());
        rest = &rest[2 + name_length..];
        let public_length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let key = BigUint::from_bytes_be(&rest[4..4 + public_length]).modpow(&SECRET.into(), &PRIME);
        this.cipher = Rc2::new_with_eff_key_len(&padded(&key)[48..], 1024);
        this.token = rest[4 + public_length + 4..][..5].try_into().unwrap();
        let mut received = this.request(&[handshake_frame(), login_frame()].concat()).await?;
        let all = HEAD + 32 + HEAD + 64;
        while received.len() < all {
            received.extend(this.request(&[]).await?);
        }
        Ok(this)
    }

    /// Sends all further requests to another address.
    pub async fn connect_to(&mut self, to: SocketAddr) -> io::Result<()> {
        self.tcp = TcpStream::connect(to).await?;
        self.tcp.set_nodelay(true)
    }

    /// Sends a request with `data` for the Community. Returns the Community's bytes in its response.
    pub async fn request(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut block: [u8; 8] = [0, 0, 0, 0, 0, 3, 3, 3];
        block[..5].copy_from_slice(&self.token);
        let mut one = Array::from(std::array::from_fn(|i| block[i] ^ self.chain[i]));
        self.cipher.encrypt_block(&mut one);
        self.chain = one.into();
        let mut body = [&[0; 4][..], &opaque(&self.chain)].concat();
        if self.kind == Kind::Polling {
            body.extend(data);
        } else if !data.is_empty() {
            body.extend([&b"\0\0\0\x01M"[..], &opaque(data)].concat());
        }
        let response = self.post(&body).await?;
        self.token = response[4..9].try_into().unwrap();
        let payload = &response[10..];
        Ok(match self.kind {
            Kind::Hybrid if !payload.is_empty() => payload[9..].to_vec(),
            _ => payload.to_vec(),
        })
    }

    async fn post(&mut self, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut request = format!("{}{}\r\n\r\n", self.head, body.len()).into_bytes();
        request.extend(body);
        self.tcp.write_all(&request).await?;
        self.buffer.clear();
        let (mut chunk, mut end) = ([0; 2048], None);
        loop {
            let n = self.tcp.read(&mut chunk).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend(&chunk[..n]);
            if end.is_none()
                && let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&self.buffer[..at]).unwrap().to_ascii_lowercase();
                assert!(head.starts_with("http/1.1 200"), "{head}");
                let length = head.split("content-length: ").nth(1).expect("a length").split('\r').next().unwrap();
                end = Some((at + 4, at + 4 + length.parse::<usize>().unwrap()));
            }
            if let Some((begin, end)) = end
                && self.buffer.len() >= end
            {
                return Ok(self.buffer[begin..end].to_vec());
            }
        }
    }
}

/// `n` sessions that are logged in and idle. With `None` for `kind`: connections to a server without sessions, after
/// one response.
pub async fn sessions(n: usize, kind: Option<Kind>, to: SocketAddr) -> Vec<Session> {
    let (made, left) = (Rc::new(RefCell::new(Vec::with_capacity(n))), Rc::new(RefCell::new(n)));
    let mut makers = JoinSet::new();
    for _ in 0..AT_ONCE.min(n) {
        let (made, left) = (Rc::clone(&made), Rc::clone(&left));
        makers.spawn_local(async move {
            while take_one(&left) {
                let session = match kind {
                    Some(kind) => Session::log_in(kind, to).await,
                    None => Session::without_session(to).await,
                };
                let mut session = session.expect("a session");
                if kind != Some(Kind::Hybrid) {
                    session.request(&[]).await.expect("a poll");
                }
                made.borrow_mut().push(session);
            }
        });
    }
    makers.join_all().await;
    made.take()
}

/// Sends a request on every hybrid session, which the server holds. After each response the next request is sent. The
/// latencies of the Community's frames are added to `latencies`.
pub fn hold(sessions: Vec<Session>, latencies: &Rc<RefCell<Vec<f64>>>) {
    for mut session in sessions {
        let latencies = Rc::clone(latencies);
        spawn_local(async move {
            while let Ok(data) = session.request(&[]).await {
                if data.len() > HEAD {
                    latencies.borrow_mut().push(since(&data[HEAD..]));
                }
            }
        });
    }
}

/// How long a frame of the Community takes to clients whose request is held. Returns microseconds, sorted.
pub async fn wake_up(running: &Running, clients: usize, sweeps: usize, pause: Duration) -> Vec<f64> {
    let latencies = Rc::new(RefCell::new(Vec::new()));
    hold(sessions(clients, Some(Kind::Hybrid), running.address).await, &latencies);
    tokio::time::sleep(Duration::from_millis(300)).await;
    sweep(running, clients, sweeps, pause, &latencies).await
}

/// Idle polls, one after the other on each of `clients` connections, for the time of `window`.
pub async fn polls(running: &Running, clients: usize, kind: Option<Kind>, window: Window) -> Busy {
    poll(sessions(clients, kind, running.address).await, || running.cpu(), window).await
}

/// Idle polls of these sessions. `cpu` is the CPU time of what serves them.
pub async fn poll(sessions: Vec<Session>, cpu: impl Fn() -> f64, window: Window) -> Busy {
    let record = Rc::new(Record::new(window));
    let mut workers = JoinSet::new();
    for mut session in sessions {
        let record = Rc::clone(&record);
        workers.spawn_local(async move {
            while record.continues() {
                let since = Instant::now();
                session.request(&[]).await.expect("a poll");
                record.add(since);
            }
        });
    }
    record.measure(cpu, || workers.join_all()).await
}
