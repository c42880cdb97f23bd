//! Who connects all the time, and wants to be served each time.

use std::{
    fs::File,
    io::{Read, Write},
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use crate::support::wait_until;

/// So many at once at each address.
const AT_ONCE: usize = 3;
/// So many connections of each follow what happened.
const MORE: u32 = 8;

/// One who knocks.
struct Knocker {
    to: SocketAddr,
    served: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

pub struct Knockers(Vec<Knocker>);

impl Knockers {
    /// Some at each address; each was served once when this returns.
    pub async fn start(addresses: &[SocketAddr]) -> Self {
        let knockers = addresses.iter().flat_map(|&to| (0..AT_ONCE).map(move |_| to)).map(|to| {
            let (served, over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
            let task = tokio::spawn(knock(to, Arc::clone(&served), Arc::clone(&over)));
            Knocker { to, served, over, task }
        });
        let this = Self(knockers.collect());
        this.go_on().await;
        this
    }

    /// Waits until each was served some more.
    pub async fn go_on(&self) {
        for knocker in &self.0 {
            let wanted = knocker.served.load(Relaxed) + MORE;
            wait_until("more served", || knocker.served.load(Relaxed) >= wanted || knocker.task.is_finished()).await;
            assert!(knocker.over.load(Relaxed) || !knocker.task.is_finished(), "{} is not served", knocker.to);
        }
    }

    /// Ends them. Each connection was served.
    pub async fn stop(self) {
        for Knocker { over, task, .. } in self.0 {
            over.store(true, Relaxed);
            task.await.unwrap();
        }
    }

    /// As `stop`, for those at one address; what the others see no longer matters.
    pub async fn stop_at(self, address: SocketAddr) {
        for Knocker { to, over, task, .. } in self.0 {
            over.store(true, Relaxed);
            let ended = task.await;
            assert!(to != address || ended.is_ok(), "{ended:?}");
        }
    }
}

/// Connects, asks, and wants an answer, until it is over.
async fn knock(to: SocketAddr, served: Arc<AtomicU32>, over: Arc<AtomicBool>) {
    while !over.load(Relaxed) {
        let mut tcp = TcpStream::connect(to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap_or_else(|error| panic!("{to}: asking: {error}"));
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap_or_else(|error| panic!("{to}: the answer: {error}"));
        assert!(answer.starts_with(b"HTTP/1.1 "), "{to}: {:?}", String::from_utf8_lossy(&answer));
        served.fetch_add(1, Relaxed);
        // Others are to run, too.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Threads in another network namespace that do the same.
pub struct RemoteKnockers {
    served: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl RemoteKnockers {
    /// Some in the network of process `id`.
    pub fn start(id: u32, to: SocketAddr) -> Self {
        let (served, over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..2 * AT_ONCE).map(|_| {
            let (served, over) = (Arc::clone(&served), Arc::clone(&over));
            thread::spawn(move || {
                let network = File::open(format!("/proc/{id}/ns/net")).unwrap();
                rustix::thread::move_into_link_name_space(network.as_fd(), None).unwrap();
                while !over.load(Relaxed) {
                    knock_once(to);
                    served.fetch_add(1, Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { served, over, threads }
    }

    /// Waits until some more were served.
    pub async fn go_on(&self) {
        let wanted = self.served.load(Relaxed) + MORE;
        let failed = || self.threads.iter().any(thread::JoinHandle::is_finished);
        wait_until("more served", || self.served.load(Relaxed) >= wanted || failed()).await;
        assert!(!failed(), "a connection was not served");
    }

    /// Ends them. Each connection was served.
    pub fn stop(self) {
        self.over.store(true, Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn knock_once(to: SocketAddr) {
    let mut tcp = std::net::TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap_or_else(|e| panic!("{to}: asking: {e}"));
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{to}: the answer: {error}"));
    assert!(answer.starts_with(b"HTTP/1.1 "), "{to}: {:?}", String::from_utf8_lossy(&answer));
}
