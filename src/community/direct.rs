//! One TCP connection to a Community server.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, lookup_host},
    sync::Notify,
    time::timeout,
};
use tracing::warn;

use crate::{
    net::keepalive::{VANISHED_TIMEOUT, watch_for_vanished},
    wire::proxy_protocol,
};

/// How long the addresses of a name are good.
const RESOLVED_FOR: Duration = Duration::from_secs(10);
/// How long a client waits for a new look-up when there are older addresses.
const LOOK_UP: Duration = Duration::from_secs(1);

/// Where a server is: an address, or a name whose addresses are looked up now and then.
pub(super) struct Target {
    fixed: Option<Arc<[SocketAddr]>>,
    resolved: Arc<Resolved>,
}

/// What is known of a name. One look-up at a time, on a task of its own: a name server that does not
/// answer holds no client up whose server's last address is still good.
struct Resolved {
    name: String,
    answer: Mutex<Answer>,
    over: Notify,
}

#[derive(Default)]
struct Answer {
    addresses: Option<Arc<[SocketAddr]>>,
    /// Until when they need no new look-up.
    good_until: Option<Instant>,
    error: Option<String>,
    looking: bool,
}

impl Resolved {
    async fn look_up(self: Arc<Self>) {
        let found: io::Result<Arc<[SocketAddr]>> = lookup_host(&*self.name).await.map(Iterator::collect);
        let mut answer = self.answer.lock();
        match found {
            Ok(found) if !found.is_empty() => (answer.addresses, answer.error) = (Some(found), None),
            failed => {
                let error =
                    failed.err().map_or_else(|| "the name has no address".to_owned(), |error| error.to_string());
                if answer.addresses.is_some() {
                    warn!(server = self.name, error, "name not resolved: its last addresses stay in force");
                }
                answer.error = Some(error);
            }
        }
        // Without any address the next client asks again.
        answer.good_until = answer.addresses.is_some().then(|| Instant::now() + RESOLVED_FOR);
        answer.looking = false;
        drop(answer);
        self.over.notify_waiters();
    }
}

impl Target {
    pub(super) fn new(name: &str) -> Self {
        let fixed = name.parse().ok().map(|address: SocketAddr| Arc::from([address]));
        let resolved = Resolved { name: name.to_owned(), answer: Mutex::default(), over: Notify::new() };
        Self { fixed, resolved: Arc::new(resolved) }
    }

    /// The server's addresses. A look-up that fails, or takes long, leaves the last good answer in force.
    async fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
        if let Some(fixed) = &self.fixed {
            return Ok(Arc::clone(fixed));
        }
        let mut over = std::pin::pin!(self.resolved.over.notified());
        let known = {
            let mut answer = self.resolved.answer.lock();
            if let Some(addresses) = &answer.addresses
                && answer.good_until.is_some_and(|until| Instant::now() < until)
            {
                return Ok(Arc::clone(addresses));
            }
            if !std::mem::replace(&mut answer.looking, true) {
                tokio::spawn(Arc::clone(&self.resolved).look_up());
            }
            // Under the lock: the look-up can't be over before.
            over.as_mut().enable();
            answer.addresses.is_some()
        };
        if !known {
            over.await;
        } else if timeout(LOOK_UP, over).await.is_err() {
            self.resolved.answer.lock().good_until = Some(Instant::now() + RESOLVED_FOR);
        }
        let answer = self.resolved.answer.lock();
        answer.addresses.clone().ok_or_else(|| io::Error::other(answer.error.clone().unwrap_or_default()))
    }

    /// Opens a connection to the first address that takes one.
    pub(super) async fn connect(&self, within: Duration) -> io::Result<TcpStream> {
        let connecting = async {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for address in &*self.addresses().await? {
                match TcpStream::connect(address).await {
                    Ok(tcp) => return Ok(tcp),
                    Err(error) => last = error,
                }
            }
            // The server may have moved.
            self.resolved.answer.lock().good_until = None;
            Err(last)
        };
        let tcp = timeout(within, connecting).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {}", humantime::format_duration(within)))
        })??;
        tcp.set_nodelay(true)?;
        watch_for_vanished(SockRef::from(&tcp), VANISHED_TIMEOUT)?;
        Ok(tcp)
    }
}

/// Tells the server who the client is, in front of its bytes.
pub(super) async fn introduce(tcp: &mut TcpStream, client: SocketAddr) -> io::Result<()> {
    let destination = tcp.peer_addr().unwrap_or(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0));
    tcp.write_all(&proxy_protocol::v2(client, destination)).await
}
