//! Ports: binding them, accepting on them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tracing::{debug, error, warn};

use super::{Ingress, connection};
use crate::stream::note_vanished;

/// Connections that the kernel holds until we accept them: 20,000 clients may log in at once.
/// The kernel caps it at `net.core.somaxconn`.
pub const BACKLOG: i32 = 20_000;
/// On ports that have no setting of their own, a peer that is gone without a word is given up after so long.
const VANISHED: Duration = Duration::from_secs(240);
/// How long accepting pauses when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Where a `host_name` and a port listen. Empty: every address, IPv4 and IPv6 on one socket.
///
/// # Errors
/// When a name does not resolve.
pub fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.is_empty() {
        return Ok(vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]);
    }
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found: Vec<_> = (host, port).to_socket_addrs()?.collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")));
    }
    Ok(found)
}

/// Binds one address and listens. `[::]` takes IPv4, too; without IPv6 on the machine it is
/// `0.0.0.0`. `share`: other processes of the same user may bind it, too, if they share it; the
/// kernel spreads connections over them.
///
/// # Errors
/// The system's: in use, not permitted, not an address of this machine.
pub fn bind(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    match bind_one(address, share) {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
                    .iter()
                    .any(|e| error.raw_os_error() == Some(e.raw_os_error())) =>
        {
            bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), share)
        }
        bound => bound,
    }
}

fn bind_one(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Accepted sockets inherit these on Linux: no system calls for each client.
    socket.set_tcp_nodelay(true)?;
    note_vanished(SockRef::from(&socket), VANISHED)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What an accept error means for the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The connection that was to be accepted is gone. On to the next.
    Connection,
    /// Descriptors or memory have run out: a pause, since the error would be back at once.
    Exhausted,
    /// The listener itself. Not seen on Linux; a pause, too.
    Listener,
}

fn classify(error: &io::Error) -> Class {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    match code {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Class::Exhausted,
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => Class::Listener,
        // accept(2): network errors of the new connection are passed on by accept.
        _ => Class::Connection,
    }
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Exhausted => "exhausted",
            Self::Listener => "listener",
        }
    }
}

/// Accepts for ever: returns a task on each of the workers' threads, which end when they are
/// aborted. The one accept loop of all ports.
///
/// Each thread has a socket of its own on the port, and the kernel spreads connections over them: no
/// thread is woken for what another has taken, and few connections have to be handed over. That the
/// port is free of others has been seen when the first one was bound: only then do more follow. From
/// then on another process of the same user that shares ports can join.
///
/// # Errors
/// Descriptors have run out.
pub fn accept(
    listener: TcpListener,
    port: u16,
    ingress: &Arc<Ingress>,
    accepted: &Arc<AtomicU64>,
) -> io::Result<Vec<JoinHandle<()>>> {
    if ingress.workers.runtimes().len() > 1 {
        SockRef::from(&listener).set_reuse_port(true)?;
    }
    let address = listener.local_addr()?;
    let listener = listener.into_std()?;
    ingress.workers.spawn_on_each(|worker| {
        let another = if worker > 0 { bind_one(address, true).map(Some) } else { Ok(None) };
        let another = another.unwrap_or_else(|error| {
            warn!(port, %error, "a thread has no socket of its own on the port: it accepts on the first one's");
            None
        });
        let own = match another {
            Some(another) => another,
            None => TcpListener::from_std(listener.try_clone()?)?,
        };
        Ok(accept_on(worker, own, port, Arc::clone(ingress), Arc::clone(accepted)))
    })
}

async fn accept_on(worker: usize, listener: TcpListener, port: u16, ingress: Arc<Ingress>, accepted: Arc<AtomicU64>) {
    let mut vanished = None;
    loop {
        let after = ingress.settings.load().vanished_timeout;
        if vanished.replace(after) != Some(after)
            && let Err(failed) = note_vanished(SockRef::from(&listener), after)
        {
            warn!(port, %failed, "limits.vanished_timeout is not in force");
        }
        match listener.accept().await {
            Ok((tcp, peer)) => {
                accepted.fetch_add(1, Relaxed);
                let pause = ingress.counters.pause(&ingress.settings.load().limits);
                if let Some(pause) = pause {
                    ingress.paused(port);
                    tokio::time::sleep(pause).await;
                }
                serve(&ingress, worker, tcp, peer, port);
            }
            Err(failed) => {
                let class = classify(&failed);
                ingress.telemetry.accept_error(class.name());
                if let Some(more) = ingress.accept_errors.pass() {
                    match class {
                        Class::Connection => warn!(port, %failed, more, "a connection was gone before it was accepted"),
                        Class::Exhausted => error!(port, %failed, more,
                            "out of descriptors or memory: accepting pauses; raise the limit (LimitNOFILE, ulimit -n) or lower limits.capacity"),
                        Class::Listener => error!(port, %failed, more, "the port can't accept"),
                    }
                }
                if class != Class::Connection {
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }
}

/// Serves a connection on the thread that accepted it, or on one with less to do, which watches it
/// from then on.
fn serve(ingress: &Arc<Ingress>, worker: usize, tcp: TcpStream, peer: SocketAddr, port: u16) {
    let serving = Arc::clone(ingress);
    let Some(other) = ingress.workers.idler_than(worker) else {
        tokio::spawn(connection::serve(serving, tcp, peer, port));
        return;
    };
    let handed_over = tcp.into_std().map(|tcp| {
        other.spawn(async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => connection::serve(serving, tcp, peer, port).await,
                Err(error) => debug!(client = %peer, port, %error, "the connection can't be watched"),
            }
        });
    });
    if let Err(error) = handed_over {
        debug!(client = %peer, port, %error, "the connection can't be handed over");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_are_classed() {
        for (errno, class) in [
            (Errno::MFILE, Class::Exhausted),
            (Errno::NFILE, Class::Exhausted),
            (Errno::CONNABORTED, Class::Connection),
            (Errno::NETDOWN, Class::Connection),
            (Errno::INVAL, Class::Listener),
        ] {
            assert_eq!(classify(&errno.into()), class, "{errno}");
        }
    }

    #[tokio::test]
    async fn the_empty_host_takes_both_families() {
        let address = addresses("", 0).expect("no look-up")[0];
        let listener = bind(address, false).expect("any port");
        let port = listener.local_addr().expect("bound").port();
        let _v4 = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("IPv4");
        let (tcp, peer) = listener.accept().await.expect("accepted");
        assert!(tcp.nodelay().expect("option"), "inherited");
        assert_eq!(crate::stream::canonical(peer).ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let _v6 = tokio::net::TcpStream::connect(("::1", port)).await.expect("IPv6");
    }

    #[tokio::test]
    async fn a_port_is_shared_by_those_who_share_it() {
        let bind_here = |port, share| bind(SocketAddr::from(([127, 0, 0, 1], port)), share);
        let first = bind_here(0, true).expect("any port");
        let port = first.local_addr().expect("bound").port();
        let second = bind_here(port, true).expect("shared");
        for share in [false, true] {
            let alone = bind_here(0, !share).expect("any port");
            let port = alone.local_addr().expect("bound").port();
            let refused = bind_here(port, share).expect_err("one of the two does not share");
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        }
        drop(first);
        let _client = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("the second goes on");
        second.accept().await.expect("accepted");
    }
}
