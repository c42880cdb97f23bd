//! Streaming clients: a GET request whose response has no end, and for each message a POST request on a connection of
//! its own. And a server that ends this tunnel itself, for a proxy that passes HTTP on.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinSet, spawn_local},
};

use super::{
    echo::{Frames, HEAD, MESSAGE, frame, listen, write_all},
    load::{Busy, Record, Window, handshake_frame, login_frame, since, sweep, take_one},
    proxies::Running,
};

const AT_ONCE: usize = 32;
/// Bytes of a session's name.
const NAME: usize = 32;
/// Bytes in front of the stream: the mark, the name with its length, and six zero bytes.
const BEGINNING: usize = 3 + NAME + 6;

/// The first lines of a request as a real Java client writes it.
fn head(method: &str) -> String {
    format!(
        "{method} /communityCBR/ HTTP/1.0\r\nPragma: No-Cache\r\nHost: 127.0.0.1\r\nContent-Type: Application/Octet-Stream\r\n"
    )
}

/// Reads until `bytes` has a complete head. Returns its length.
async fn read_head(tcp: &mut OwnedReadHalf, bytes: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(at + 4);
        }
        if tcp.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The value of Content-Length in a head; 0 if there is none.
fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).unwrap().to_ascii_lowercase();
    let value = head.split("content-length:").nth(1);
    value.map_or(0, |value| value.split('\r').next().unwrap().trim().parse().unwrap())
}

/// A client that is logged in.
pub struct StreamingClient {
    down: OwnedReadHalf,
    _keep: OwnedWriteHalf,
    name: Vec<u8>,
    to: SocketAddr,
    /// Bytes that were read and not used.
    read: Vec<u8>,
}

impl StreamingClient {
    pub async fn log_in(to: SocketAddr) -> io::Result<Self> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        let (mut down, mut keep) = tcp.into_split();
        keep.write_all(format!("{}\r\n", head("GET")).as_bytes()).await?;
        let mut read = Vec::new();
        let at = read_head(&mut down, &mut read).await?;
        assert!(read.starts_with(b"HTTP/1.") && read[8..].starts_with(b" 200"), "{}", read.escape_ascii());
        // A proxy may change the version, but not put a body for HTTP/1.0 into chunks.
        assert!(!read[..at].to_ascii_lowercase().windows(7).any(|seven| seven == b"chunked"));
        read.drain(..at);
        let mut this = Self { down, _keep: keep, name: Vec::new(), to, read };
        this.name = this.take(BEGINNING).await?[3..3 + NAME].to_vec();
        this.post(&[handshake_frame(), login_frame()].concat()).await?;
        this.take(HEAD + 32 + HEAD + 64).await?;
        Ok(this)
    }

    /// Sends all further POST requests to another address.
    pub fn post_to(&mut self, to: SocketAddr) {
        self.to = to;
    }

    /// The next `n` bytes of the stream.
    async fn take(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < n {
            if self.down.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let taken = self.read.drain(..n).collect();
        if self.read.is_empty() {
            self.read = Vec::new();
        }
        Ok(taken)
    }

    /// Sends `data`, and waits for the response.
    async fn post(&self, data: &[u8]) -> io::Result<()> {
        let mut tcp = TcpStream::connect(self.to).await?;
        tcp.set_nodelay(true)?;
        let body = [&[0xFF, 0, NAME as u8][..], &self.name, data].concat();
        let head = format!("{}Content-Length: {}\r\n\r\n", head("POST"), body.len());
        tcp.write_all(&[head.as_bytes(), &body].concat()).await?;
        let (mut response, mut buffer) = (Vec::new(), [0; 1024]);
        loop {
            let n = tcp.read(&mut buffer).await?;
            response.extend_from_slice(&buffer[..n]);
            let at = response.windows(4).position(|four| four == b"\r\n\r\n");
            if at.is_some_and(|at| response.len() >= at + 4 + content_length(&response[..at])) {
                assert!(response[8..].starts_with(b" 200"), "{}", response.escape_ascii());
                return Ok(());
            }
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// `n` clients that are logged in and idle.
pub async fn clients(n: usize, to: SocketAddr) -> Vec<StreamingClient> {
    let (made, left) = (Rc::new(RefCell::new(Vec::with_capacity(n))), Rc::new(RefCell::new(n)));
    let mut makers = JoinSet::new();
    for _ in 0..AT_ONCE.min(n) {
        let (made, left) = (Rc::clone(&made), Rc::clone(&left));
        makers.spawn_local(async move {
            while take_one(&left) {
                let client = StreamingClient::log_in(to).await.expect("a log-in");
                made.borrow_mut().push(client);
            }
        });
    }
    makers.join_all().await;
    made.take()
}

/// Each of `n` clients sends a message and waits for its echo, again and again.
pub async fn messages(running: &Running, n: usize, window: Window) -> Busy {
    talk(clients(n, running.address).await, || running.cpu(), window).await
}

/// Messages of these clients. `cpu` is the CPU time of what serves them.
pub async fn talk(clients: Vec<StreamingClient>, cpu: impl Fn() -> f64, window: Window) -> Busy {
    let record = Rc::new(Record::new(window));
    let mut workers = JoinSet::new();
    for mut client in clients {
        let record = Rc::clone(&record);
        workers.spawn_local(async move {
            let message = frame(4, &[b'm'; MESSAGE - HEAD]);
            while record.continues() {
                let since = Instant::now();
                client.post(&message).await.expect("a message");
                client.take(MESSAGE).await.expect("an echo");
                record.add(since);
            }
        });
    }
    record.measure(cpu, || workers.join_all()).await
}

/// How long a frame of the Community takes to idle clients. Returns microseconds, sorted.
pub async fn wake_up(running: &Running, n: usize, sweeps: usize, pause: Duration) -> Vec<f64> {
    let latencies = Rc::new(RefCell::new(Vec::new()));
    for mut client in clients(n, running.address).await {
        let latencies = Rc::clone(&latencies);
        spawn_local(async move {
            while let Ok(frame) = client.take(MESSAGE).await {
                latencies.borrow_mut().push(since(&frame[HEAD..]));
            }
        });
    }
    sweep(running, n, sweeps, pause, &latencies).await
}

/// A session of the server below: its endless response, whether that is in chunks, and the frames of its client.
struct ServerSession {
    into: Rc<OwnedWriteHalf>,
    is_chunked: bool,
    frames: Frames,
}

type Sessions = Rc<RefCell<BTreeMap<Vec<u8>, ServerSession>>>;

/// A server that ends the streaming tunnel and echoes frames as the echo server does. It has one thread, prints its port
/// first, and serves until its parent process is gone.
pub fn server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (listener, sessions) = (listen(), Sessions::default());
        loop {
            let Ok((tcp, _)) = listener.accept().await else { continue };
            tcp.set_nodelay(true).unwrap();
            let sessions = Rc::clone(&sessions);
            spawn_local(async move {
                let _ = serve(tcp, sessions).await;
            });
        }
    });
}

/// `data` as one chunk, or as it is.
fn in_chunk(is_chunked: bool, data: &[u8]) -> Vec<u8> {
    if !is_chunked {
        return data.to_vec();
    }
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

async fn serve(tcp: TcpStream, sessions: Sessions) -> io::Result<()> {
    let (mut from, into) = tcp.into_split();
    let (into, mut read) = (Rc::new(into), Vec::new());
    loop {
        let at = read_head(&mut from, &mut read).await?;
        let request = read.drain(..at).collect::<Vec<u8>>();
        let is_new = request.windows(9).any(|nine| nine == b" HTTP/1.1");
        let version = if is_new { "1.1" } else { "1.0" };
        if request.starts_with(b"GET ") {
            let name = format!("{:032x}", sessions.borrow().len()).into_bytes();
            let coding = if is_new { "transfer-encoding: chunked\r\n" } else { "" };
            let head = format!(
                "HTTP/{version} 200 OK\r\ncontent-type: application/octet-stream\r\nconnection: close\r\n{coding}\r\n"
            );
            let beginning = [&[0xFF, 0, NAME as u8][..], &name, &[0; 6]].concat();
            write_all(&into, &[head.as_bytes(), &in_chunk(is_new, &beginning)].concat()).await?;
            let session = ServerSession { into: Rc::clone(&into), is_chunked: is_new, frames: Frames::default() };
            sessions.borrow_mut().insert(name, session);
            // Until the client closes.
            while from.read_buf(&mut read).await? > 0 {}
            return Ok(());
        }
        let length = content_length(&request);
        while read.len() < length {
            if from.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let body: Vec<u8> = read.drain(..length).collect();
        let (name, data) = body[3..].split_at(NAME);
        let (down, echo) = {
            let mut sessions = sessions.borrow_mut();
            let session = sessions.get_mut(name).expect("a session");
            let mut echo = Vec::new();
            session.frames.take(data, &mut echo);
            (Rc::clone(&session.into), in_chunk(session.is_chunked, &echo))
        };
        let head = format!(
            "HTTP/{version} 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
            3 + NAME
        );
        write_all(&into, &[head.as_bytes(), &body[..3 + NAME]].concat()).await?;
        write_all(&down, &echo).await?;
        if !is_new {
            return Ok(());
        }
    }
}
