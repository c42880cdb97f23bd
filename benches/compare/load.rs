//! Raw and TLS clients: idle clients, busy clients, and clients that come and go.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use sametime_mux::load::any_certificate;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::{JoinSet, spawn_local},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{client::Resumption, pki_types::ServerName},
};

use super::{
    echo::{HEAD, MESSAGE, WAKE_ALL, frame, now_ns},
    proxies::Running,
};

pub trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}
pub type Stream = Box<dyn Duplex>;

/// The most clients that connect at the same time.
const AT_ONCE: usize = 64;
/// The number of connections that carry bulk data.
const BULK_CONNECTIONS: usize = 4;
/// The bytes of each frame of bulk data.
const BULK_FRAME: usize = 16 * 1024;

/// What was measured with busy clients.
pub struct Busy {
    /// Units of work in a second.
    pub rate: f64,
    /// The proxy's CPU seconds for each unit of work.
    pub cpu: f64,
    /// Latencies in microseconds, sorted.
    pub latencies: Vec<f64>,
}

impl Busy {
    pub fn percentile(&self, percent: f64) -> f64 {
        percentile(&self.latencies, percent)
    }
}

/// The percentile of sorted values, by the nearest rank; NaN if there are none.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// TLS without resumption, so that every handshake is a full one. Both ends prefer TLS 1.3.
pub fn tls() -> TlsConnector {
    let mut config = any_certificate();
    config.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

pub async fn connect(to: SocketAddr, tls: Option<&TlsConnector>) -> io::Result<Stream> {
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    match tls {
        None => Ok(Box::new(tcp)),
        Some(tls) => Ok(Box::new(tls.connect(ServerName::try_from("localhost").unwrap(), tcp).await?)),
    }
}

/// The first frame of a client, with the size that real clients send.
pub fn handshake_frame() -> Vec<u8> {
    frame(0, &[[0xFF; 2].as_slice(), &[0; 98]].concat())
}

/// The log-in frame of a client.
pub fn login_frame() -> Vec<u8> {
    frame(1, &[0; 200])
}

pub async fn read_frame(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; u32::from_be_bytes(head[..4].try_into().unwrap()) as usize - 8];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn exchange(stream: &mut Stream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request).await?;
    stream.flush().await?;
    read_frame(stream).await
}

async fn log_in(to: SocketAddr, tls: Option<&TlsConnector>) -> io::Result<Stream> {
    let mut stream = connect(to, tls).await?;
    exchange(&mut stream, &handshake_frame()).await?;
    exchange(&mut stream, &login_frame()).await?;
    Ok(stream)
}

/// `n` clients that are logged in and send nothing.
pub async fn idle(n: usize, to: SocketAddr, tls: Option<&TlsConnector>) -> Vec<Stream> {
    let (made, left) = (Rc::new(RefCell::new(Vec::with_capacity(n))), Rc::new(RefCell::new(n)));
    let mut makers = JoinSet::new();
    for _ in 0..AT_ONCE.min(n) {
        let (made, left, tls) = (Rc::clone(&made), Rc::clone(&left), tls.cloned());
        makers.spawn_local(async move {
            while take_one(&left) {
                let stream = log_in(to, tls.as_ref()).await.expect("a log-in");
                made.borrow_mut().push(stream);
            }
        });
    }
    makers.join_all().await;
    made.take()
}

/// Takes one from a counter. Returns false if it is 0.
pub fn take_one(left: &RefCell<usize>) -> bool {
    let mut left = left.borrow_mut();
    let is_left = *left > 0;
    *left -= usize::from(is_left);
    is_left
}

/// Each of `clients` sends a message and waits for its echo, again and again.
pub async fn messages(running: &Running, clients: usize, tls: Option<&TlsConnector>, window: Window) -> Busy {
    let streams = idle(clients, running.address, tls).await;
    let record = Rc::new(Record::new(window));
    let mut workers = JoinSet::new();
    for mut stream in streams {
        let record = Rc::clone(&record);
        workers.spawn_local(async move {
            let message = frame(4, &[b'm'; MESSAGE - HEAD]);
            let mut buffer = [0; 2 * MESSAGE];
            while record.continues() {
                let since = Instant::now();
                stream.write_all(&message).await.expect("a message");
                stream.flush().await.expect("a message");
                let mut have = 0;
                while have < MESSAGE {
                    match stream.read(&mut buffer).await.expect("an echo") {
                        0 => panic!("the echo ended"),
                        n => have += n,
                    }
                }
                record.add(since);
            }
        });
    }
    record.measure(|| running.cpu(), || workers.join_all()).await
}

/// The time in which is measured.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The time before it.
    pub warm_up: Duration,
    /// The time in which is measured.
    pub length: Duration,
}

/// Latencies within a window.
pub struct Record {
    begin: Instant,
    end: Instant,
    latencies: RefCell<Vec<f64>>,
}

impl Record {
    pub fn new(window: Window) -> Self {
        let begin = Instant::now() + window.warm_up;
        Self { begin, end: begin + window.length, latencies: RefCell::default() }
    }

    /// Whether clients continue. They continue a little after the window, so that the load is the same in all of it.
    pub fn continues(&self) -> bool {
        Instant::now() < self.end + Duration::from_millis(20)
    }

    pub fn add(&self, since: Instant) {
        let now = Instant::now();
        if now >= self.begin && now < self.end {
            self.latencies.borrow_mut().push((now - since).as_secs_f64() * 1e6);
        }
    }

    /// Runs the workers and measures in the window. `cpu` returns the proxies' CPU time so far, in seconds.
    pub async fn measure<F: Future>(&self, cpu: impl Fn() -> f64, workers: impl FnOnce() -> F) -> Busy {
        let watch = async {
            tokio::time::sleep_until(self.begin.into()).await;
            let (since, before) = (Instant::now(), cpu());
            tokio::time::sleep_until(self.end.into()).await;
            (since.elapsed(), cpu() - before)
        };
        let ((elapsed, cpu), _) = tokio::join!(watch, workers());
        let mut latencies = self.latencies.take();
        latencies.sort_by(f64::total_cmp);
        let count = latencies.len() as f64;
        Busy { rate: count / elapsed.as_secs_f64(), cpu: cpu / count, latencies }
    }
}

/// `n` clients log in and close their connections, one after the other on each of 64 tasks.
pub async fn come_and_go(running: &Running, n: usize, tls: Option<&TlsConnector>) -> Busy {
    let left = Rc::new(RefCell::new(n));
    let (since, before) = (Instant::now(), running.cpu());
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (to, left, tls) = (running.address, Rc::clone(&left), tls.cloned());
        workers.spawn_local(async move {
            while take_one(&left) {
                drop(log_in(to, tls.as_ref()).await.expect("a log-in"));
            }
        });
    }
    workers.join_all().await;
    let rate = n as f64 / since.elapsed().as_secs_f64();
    // The last connections are still being closed.
    tokio::time::sleep(Duration::from_millis(150)).await;
    Busy { rate, cpu: (running.cpu() - before) / n as f64, latencies: Vec::new() }
}

/// A few clients send frames as fast as they receive the echoes. `rate` and `cpu` are for each byte.
pub async fn bulk(running: &Running, window: Window) -> Busy {
    let streams = idle(BULK_CONNECTIONS, running.address, None).await;
    let record = Rc::new(Record::new(window));
    let bytes = Rc::new(RefCell::new(0u64));
    let mut workers = JoinSet::new();
    for stream in streams {
        let (mut from, mut into) = tokio::io::split(stream);
        let (record, bytes) = (Rc::clone(&record), Rc::clone(&bytes));
        let writing = Rc::clone(&record);
        let writer = spawn_local(async move {
            let frames = frame(4, &[b'b'; BULK_FRAME - HEAD]).repeat(4);
            while writing.continues() && into.write_all(&frames).await.is_ok() {}
            let _ = into.shutdown().await;
        });
        workers.spawn_local(async move {
            let mut buffer = vec![0; 128 * 1024];
            loop {
                match from.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => {
                        let now = Instant::now();
                        if now >= record.begin && now < record.end {
                            *bytes.borrow_mut() += n as u64;
                        }
                    }
                }
            }
            let _ = writer.await;
        });
    }
    let length = window.length.as_secs_f64();
    // `Record::measure` divides by messages, and here are none. So CPU time is read here.
    let watch = async {
        tokio::time::sleep_until(record.begin.into()).await;
        let before = running.cpu();
        tokio::time::sleep_until(record.end.into()).await;
        running.cpu() - before
    };
    let (cpu, _) = tokio::join!(watch, workers.join_all());
    let bytes = *bytes.borrow() as f64;
    Busy { rate: bytes / length, cpu: cpu / bytes, latencies: Vec::new() }
}

/// How long a frame of the Community takes to idle clients. Returns microseconds, sorted.
pub async fn wake_up(running: &Running, clients: usize, sweeps: usize, pause: Duration) -> Vec<f64> {
    let latencies = Rc::new(RefCell::new(Vec::new()));
    for mut stream in idle(clients, running.address, None).await {
        let latencies = Rc::clone(&latencies);
        spawn_local(async move {
            while let Ok(body) = read_frame(&mut stream).await {
                latencies.borrow_mut().push(since(&body));
            }
        });
    }
    sweep(running, clients, sweeps, pause, &latencies).await
}

/// Microseconds since the time that a wake-up frame's body begins with.
pub fn since(body: &[u8]) -> f64 {
    let sent = u64::from_be_bytes(body[..8].try_into().unwrap());
    now_ns().saturating_sub(sent) as f64 / 1e3
}

/// Makes the Community send a frame to every client, `sweeps` times, and waits until all clients have it. Returns the
/// latencies, sorted.
pub async fn sweep(
    running: &Running,
    clients: usize,
    sweeps: usize,
    pause: Duration,
    latencies: &RefCell<Vec<f64>>,
) -> Vec<f64> {
    let mut asker = TcpStream::connect(running.community).await.unwrap();
    for swept in 1..=sweeps {
        let pause = u32::try_from(pause.as_micros()).unwrap().to_be_bytes();
        asker.write_all(&frame(WAKE_ALL, &pause)).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while latencies.borrow().len() < swept * clients {
            assert!(
                Instant::now() < deadline,
                "{} of {} clients have the frame",
                latencies.borrow().len(),
                swept * clients
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Tunnel clients send their next request, which must be held before the next sweep.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut sorted = latencies.borrow().clone();
    sorted.sort_by(f64::total_cmp);
    sorted
}
