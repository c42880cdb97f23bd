//! The servers behind the contenders: a small Community server that echoes frames, and hyper alone as an HTTP server.
//! Each is a process of its own. The Community server has one thread and does little, so that nearly all work is the
//! proxy's.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    io::{Read, Write},
    rc::Rc,
    task::{Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::spawn_local,
};

const HANDSHAKE: u16 = 0x0000;
const LOGIN: u16 = 0x0001;
const HANDSHAKE_ACK: u16 = 0x8000;
const LOGIN_ACK: u16 = 0x8001;
/// Asks the echo server to send a frame to every other client. The body is a `u32`: the microseconds between two of
/// these frames.
pub const WAKE_ALL: u16 = 0x7F01;
/// The frame that it sends then: the time in nanoseconds since 1970 as a `u64`, and filler.
pub const WAKE: u16 = 0x7F02;
/// The bytes of the messages that are measured, with their length field.
pub const MESSAGE: usize = 104;
/// A frame's length field and header, in bytes.
pub const HEAD: usize = 12;

/// Nanoseconds since 1970. Both ends have the same clock, because they are on one machine.
pub fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(0)
}

/// A whole frame.
pub fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    out.extend(kind.to_be_bytes());
    out.extend([0; 6]);
    out.extend(body);
    out
}

type Clients = Rc<RefCell<BTreeMap<u64, Rc<OwnedWriteHalf>>>>;

/// The echo server. It prints its port first, and serves until its parent process is gone.
pub fn community() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = listen();
        let (clients, mut next): (Clients, u64) = (Rc::default(), 0);
        loop {
            let Ok((tcp, _)) = listener.accept().await else { continue };
            tcp.set_nodelay(true).unwrap();
            next += 1;
            spawn_local(serve(tcp, next, Rc::clone(&clients)));
        }
    });
}

/// Opens a listener with a listen queue for thousands of connections, prints its port, and ends the process when the
/// parent process is gone.
pub fn listen() -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(4096).unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    std::io::stdout().flush().unwrap();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    listener
}

thread_local! {
    /// The bytes that were read and those that are to be written.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = RefCell::new((vec![0; 256 * 1024], Vec::new()));
}

async fn serve(tcp: TcpStream, id: u64, clients: Clients) {
    let (mut from, into) = tcp.into_split();
    let into = Rc::new(into);
    clients.borrow_mut().insert(id, Rc::clone(&into));
    let mut frames = Frames::default();
    while let Ok(Some((rest, wake))) = read_and_answer(&mut from, &into, &mut frames).await {
        if write_all(&into, &rest).await.is_err() {
            break;
        }
        if let Some(pause) = wake {
            spawn_local(wake_all(id, Rc::clone(&clients), pause));
        }
    }
    clients.borrow_mut().remove(&id);
}

/// Reads once and answers. Returns the bytes that the client did not take, and the pause if the client asked for
/// frames to all clients; `None` at the end of the stream.
async fn read_and_answer(
    from: &mut OwnedReadHalf,
    into: &OwnedWriteHalf,
    frames: &mut Frames,
) -> std::io::Result<Option<(Vec<u8>, Option<Duration>)>> {
    std::future::poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|(input, output)| {
            let mut buffer = ReadBuf::new(input);
            ready!(std::pin::Pin::new(&mut *from).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(None));
            }
            output.clear();
            let wake = frames.take(buffer.filled(), output);
            let written = match into.try_write(output) {
                _ if output.is_empty() => 0,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
                Err(error) => return Poll::Ready(Err(error)),
            };
            Poll::Ready(Ok(Some((output[written..].to_vec(), wake))))
        })
    })
    .await
}

pub async fn write_all(into: &OwnedWriteHalf, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        into.writable().await?;
        match into.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends a frame to every client except the one that asked for it.
async fn wake_all(asker: u64, clients: Clients, pause: Duration) {
    let others: Vec<u64> = clients.borrow().keys().copied().filter(|id| *id != asker).collect();
    let mut ticks = tokio::time::interval(pause.max(Duration::from_micros(1)));
    for id in others {
        ticks.tick().await;
        let into = clients.borrow().get(&id).cloned();
        if let Some(into) = into {
            let mut body = [0; MESSAGE - HEAD];
            body[..8].copy_from_slice(&now_ns().to_be_bytes());
            let _ = write_all(&into, &frame(WAKE, &body)).await;
        }
    }
}

/// Follows a client's frames: acknowledges the first two, and echoes the others byte by byte.
#[derive(Default)]
pub struct Frames {
    /// The head of a frame, until it is complete.
    head: Vec<u8>,
    /// Bytes of the frame's body that are still to come.
    left: usize,
    /// Whether the frame's body is not echoed.
    is_swallowed: bool,
    /// The body of a [`WAKE_ALL`] frame.
    wake: Vec<u8>,
}

impl Frames {
    /// Takes bytes of the client and adds the response to `out`. Returns the pause of a [`WAKE_ALL`] frame.
    pub fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Option<Duration> {
        let mut wake = None;
        while let Some(&first) = bytes.first() {
            if self.left > 0 {
                let (body, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= body.len();
                bytes = rest;
                if !self.is_swallowed {
                    out.extend(body);
                } else if self.wake.len() < 4 {
                    self.wake.extend(body);
                }
                continue;
            }
            if self.head.is_empty() && first & 0x80 != 0 {
                bytes = &bytes[1..];
                continue;
            }
            let (part, rest) = bytes.split_at((HEAD - self.head.len()).min(bytes.len()));
            self.head.extend(part);
            bytes = rest;
            if self.head.len() < HEAD {
                continue;
            }
            self.left = u32::from_be_bytes(self.head[..4].try_into().unwrap()) as usize - 8;
            let kind = u16::from_be_bytes([self.head[4], self.head[5]]);
            self.is_swallowed = matches!(kind, HANDSHAKE | LOGIN | WAKE_ALL);
            self.wake.clear();
            match kind {
                HANDSHAKE => out.extend(frame(HANDSHAKE_ACK, &[0; 32])),
                LOGIN => out.extend(frame(LOGIN_ACK, &[0; 64])),
                WAKE_ALL => wake = Some(()),
                _ => out.extend(&self.head),
            }
            self.head.clear();
        }
        // A WAKE_ALL frame is small and the last frame of its read, so its body is complete.
        wake.and_then(|()| self.wake.first_chunk::<4>())
            .map(|pause| Duration::from_micros(u32::from_be_bytes(*pause).into()))
    }
}

/// The body of the response to an idle poll: an envelope without payload.
pub const POLL_ANSWER: [u8; 10] = *b"0123token0";

/// An HTTP server of hyper alone. It reads the request's body and sends the response to an idle poll, with the same
/// headers as the multiplexer. It has as many threads as the multiplexer.
pub fn hyper() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = listen();
        loop {
            let Ok((tcp, _)) = listener.accept().await else { continue };
            tcp.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let service = service_fn(answer);
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(30))
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
            });
        }
    });
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(Bytes::from_static(&POLL_ANSWER)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    Ok(response)
}
