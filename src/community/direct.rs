//! One TCP connection to a Community server.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tracing::warn;

use crate::wire::proxy_protocol;

/// How long the addresses of a name are good.
const RESOLVED_FOR: Duration = Duration::from_secs(10);

/// Where a server is: an address, or a name whose addresses are looked up now and then.
pub(super) struct Target {
    name: String,
    fixed: Option<Arc<[SocketAddr]>>,
    resolved: Mutex<Option<(Instant, Arc<[SocketAddr]>)>>,
}

impl Target {
    pub(super) fn new(name: &str) -> Self {
        let fixed = name.parse().ok().map(|address: SocketAddr| Arc::from([address]));
        Self { name: name.to_owned(), fixed, resolved: Mutex::new(None) }
    }

    /// The server's addresses. A look-up that fails leaves the last good answer in force.
    async fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
        if let Some(fixed) = &self.fixed {
            return Ok(Arc::clone(fixed));
        }
        let known = self.resolved.lock().clone();
        if let Some((when, addresses)) = &known
            && when.elapsed() < RESOLVED_FOR
        {
            return Ok(Arc::clone(addresses));
        }
        let found: io::Result<Arc<[SocketAddr]>> = lookup_host(&*self.name).await.map(Iterator::collect);
        let addresses = match (found, known) {
            (Ok(found), _) if !found.is_empty() => found,
            (failed, Some((_, addresses))) => {
                let error = failed.err().map_or_else(|| "no address".to_owned(), |error| error.to_string());
                warn!(server = self.name, error, "name not resolved: its last addresses stay in force");
                addresses
            }
            (Ok(_), None) => return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            (Err(error), None) => return Err(error),
        };
        *self.resolved.lock() = Some((Instant::now(), Arc::clone(&addresses)));
        Ok(addresses)
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
            Err(last)
        };
        let tcp = timeout(within, connecting).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {}", humantime::format_duration(within)))
        })??;
        tcp.set_nodelay(true)?;
        let keep_alive = TcpKeepalive::new().with_time(Duration::from_secs(120));
        SockRef::from(&tcp).set_tcp_keepalive(&keep_alive)?;
        Ok(tcp)
    }
}

/// Tells the server who the client is, in front of its bytes.
pub(super) async fn introduce(tcp: &mut TcpStream, client: SocketAddr) -> io::Result<()> {
    let destination = tcp.peer_addr().unwrap_or(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0));
    tcp.write_all(&proxy_protocol::v2(client, destination)).await
}
