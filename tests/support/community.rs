//! A Community server that follows a script of the test, and keeps every byte that it receives.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::AbortHandle,
};

use super::frames::{self, Frame};

pub type Record = Arc<Mutex<Vec<u8>>>;

/// One connection, as a script uses it.
pub struct Connection {
    pub from: Recording,
    pub into: OwnedWriteHalf,
}

/// Reads from a connection and keeps what it reads.
pub struct Recording {
    inner: OwnedReadHalf,
    record: Record,
}

impl AsyncRead for Recording {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let before = buf.filled().len();
        let ready = std::pin::Pin::new(&mut self.inner).poll_read(cx, buf);
        self.record.lock().extend_from_slice(&buf.filled()[before..]);
        ready
    }
}

impl Connection {
    /// The next frame; `None` at the end of the stream.
    pub async fn recv(&mut self) -> Option<Frame> {
        Frame::read(&mut self.from).await
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.into.write_all(bytes).await;
    }

    /// Acknowledges Handshake and Login. `None` if the client sends something else, or nothing more.
    pub async fn accept_login(&mut self) -> Option<()> {
        while let Some(frame) = self.recv().await {
            match frame.kind {
                frames::HANDSHAKE => {
                    let ack = [&[0, 0x1E, 0, 0x18][..], &frame.body[8..12]].concat();
                    self.send(&Frame::new(frames::HANDSHAKE_ACK, 0, &ack).bytes()).await;
                }
                frames::LOGIN => {
                    self.send(&Frame::new(frames::LOGIN_ACK, 0, &[0; 30]).bytes()).await;
                    return Some(());
                }
                _ => return None,
            }
        }
        None
    }

    /// Accepts the log-in and every channel, and sends back every message, until the client logs out or closes.
    pub async fn echo(mut self) {
        self.accept_login().await;
        while let Some(frame) = self.recv().await {
            match frame.kind {
                frames::CREATE => {
                    let channel = u32::from_be_bytes(frame.body[4..8].try_into().unwrap());
                    self.send(&Frame::new(frames::ACCEPT, channel, b"accepted").bytes()).await;
                }
                frames::SEND => self.send(&frame.bytes()).await,
                frames::DESTROY => return,
                _ => (),
            }
        }
    }

    /// Reads until the client closes.
    pub async fn read_to_end(&mut self) {
        let _ = self.from.read_to_end(&mut Vec::new()).await;
    }
}

/// A Community server. It ends when it is dropped.
pub struct Community {
    pub address: SocketAddr,
    records: Arc<Mutex<Vec<Record>>>,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Community {
    /// Starts a server that runs `script` for every connection on which a byte arrives. Connections without a byte are
    /// health checks of the multiplexer.
    pub async fn start<F, S>(script: F) -> Self
    where
        F: Fn(Connection) -> S + Send + Sync + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (records, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (all, count) = (Arc::clone(&records), Arc::clone(&connections));
        let script = Arc::new(script);
        let task = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (all, count, script) = (Arc::clone(&all), Arc::clone(&count), Arc::clone(&script));
                sessions.spawn(async move {
                    let mut first = [0];
                    if tcp.peek(&mut first).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let record = Record::default();
                    all.lock().push(Arc::clone(&record));
                    count.fetch_add(1, Relaxed);
                    let (inner, into) = tcp.into_split();
                    script(Connection { from: Recording { inner, record }, into }).await;
                });
            }
        });
        Self { address, records, connections, task: task.abort_handle() }
    }

    pub async fn start_echo() -> Self {
        Self::start(Connection::echo).await
    }

    /// The configuration with which the multiplexer sends clients to this server.
    pub fn setting(&self) -> String {
        format!("[community]\nservers = [\"{}\"]\n", self.address)
    }

    /// The number of sessions so far.
    pub fn sessions(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// The bytes that session `n` has sent so far.
    pub fn received(&self, n: usize) -> Vec<u8> {
        self.records.lock()[n].lock().clone()
    }
}

impl Drop for Community {
    fn drop(&mut self) {
        self.task.abort();
    }
}
