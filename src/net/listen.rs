//! Listening sockets.
//!
//! A socket is bound first, which can fail, and listens later: a socket that is bound takes no connection away from one
//! that listens.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener},
};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::{
    activation::PassedSockets,
    keepalive::{VANISHED_TIMEOUT, watch_for_vanished},
};

/// How many connections may wait in the kernel to be accepted: 20,000 clients may log in at once. The kernel lowers it
/// to `net.core.somaxconn`.
pub const BACKLOG: i32 = 20_000;

/// A socket that is bound and does not listen yet, or sockets that a service manager passed, which listen already.
#[derive(Debug)]
pub struct BoundSocket(Source);

#[derive(Debug)]
enum Source {
    Bound(Socket),
    Passed(Vec<StdListener>),
}

impl BoundSocket {
    /// The sockets that a service manager passed for `address`; `None`: there are none.
    ///
    /// # Errors
    /// The system's: no descriptor is left.
    pub fn passed(passed: &PassedSockets, address: SocketAddr) -> io::Result<Option<Self>> {
        let sockets = passed.on(address).map(|socket| {
            let socket = socket.try_clone()?;
            prepare(SockRef::from(&socket))?;
            Ok(socket)
        });
        let mut sockets: Vec<StdListener> = sockets.collect::<io::Result<_>>()?;
        // The address of the first one is shown.
        sockets.sort_by_key(|socket| socket.local_addr().is_ok_and(|address| address.is_ipv4()));
        Ok((!sockets.is_empty()).then_some(Self(Source::Passed(sockets))))
    }

    /// Listens. Connections are accepted once the listener belongs to a runtime.
    ///
    /// # Errors
    /// Another process has begun to listen on the address since it was bound.
    pub fn listen(self) -> io::Result<ListeningSockets> {
        match self.0 {
            Source::Bound(socket) => {
                socket.listen(BACKLOG)?;
                Ok(ListeningSockets { sockets: vec![socket.into()], are_passed: false })
            }
            Source::Passed(sockets) => Ok(ListeningSockets { sockets, are_passed: true }),
        }
    }
}

/// Sockets that listen on one address: one that this process bound, or those that a service manager passed.
#[derive(Debug)]
pub struct ListeningSockets {
    /// At least one. The kernel spreads connections over all of them.
    pub sockets: Vec<StdListener>,
    /// Whether a service manager passed them. Then the kernel keeps what was not accepted for the next process.
    pub are_passed: bool,
}

impl ListeningSockets {
    /// The only socket, on the present runtime.
    ///
    /// # Errors
    /// A service manager passed several, or the system's errors.
    pub fn into_one(mut self) -> io::Result<TcpListener> {
        match (self.sockets.pop(), self.sockets.is_empty()) {
            (Some(socket), true) => TcpListener::from_std(socket),
            _ => Err(io::Error::other("the service manager passed several sockets on this address: one is enough")),
        }
    }
}

/// Binds an address. `[::]` also takes IPv4; on a machine without IPv6, `0.0.0.0` is bound instead. `share`: other
/// sockets of the same user that share the address, too, may be bound to it, or to one that overlaps with it, at the same
/// time.
///
/// # Errors
/// The system's: the address is in use, is not permitted, or is not an address of this machine.
pub fn bind(address: SocketAddr, share: bool) -> io::Result<BoundSocket> {
    match bind_one(address, share) {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && is_without_ipv6(&error) => {
            bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), share)
        }
        bound => bound,
    }
}

/// Whether the machine has no IPv6: the kernel does not support it, or it is disabled.
fn is_without_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// As [`bind`], and listens on the present runtime.
///
/// # Errors
/// As for [`bind`].
pub fn listen(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    bind(address, share)?.listen()?.into_one()
}

/// Another socket on the address of one that listens, and that shares it.
///
/// # Errors
/// No descriptor is left, or the other socket does not share its address.
pub fn listen_beside(address: SocketAddr) -> io::Result<TcpListener> {
    bind_one(address, true)?.listen()?.into_one()
}

fn bind_one(address: SocketAddr, share: bool) -> io::Result<BoundSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    prepare(SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    Ok(BoundSocket(Source::Bound(socket)))
}

/// Sets the options of a listening socket. On Linux, accepted sockets inherit the first two, so they need no system calls
/// for each client.
fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    watch_for_vanished(socket, VANISHED_TIMEOUT)
}

/// The next connection in the kernel's queue of `listener`; `None`: there is none. It asks the kernel, and does not wait
/// until the runtime has noticed a connection.
///
/// # Errors
/// Those of accept(2).
pub fn accept_queued(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    let (socket, peer) = match SockRef::from(listener).accept() {
        Ok(accepted) => accepted,
        Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    socket.set_nonblocking(true)?;
    let tcp = TcpStream::from_std(socket.into())?;
    match peer.as_socket() {
        Some(peer) => Ok(Some((tcp, peer))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{address::canonical, resolve::literal};

    #[tokio::test]
    async fn the_empty_host_takes_both_families() {
        let every = literal("").expect("no look-up");
        let listener = listen(SocketAddr::new(every, 0), false).expect("any port");
        let port = listener.local_addr().expect("bound").port();
        let _v4 = TcpStream::connect(("127.0.0.1", port)).await.expect("IPv4");
        let (tcp, peer) = listener.accept().await.expect("accepted");
        assert!(tcp.nodelay().expect("option"), "inherited");
        assert_eq!(canonical(peer).ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let _v6 = TcpStream::connect(("::1", port)).await.expect("IPv6");
    }

    #[tokio::test]
    async fn a_port_is_shared_by_those_who_share_it() {
        let listen_here = |port, share| listen(SocketAddr::from(([127, 0, 0, 1], port)), share);
        let first = listen_here(0, true).expect("any port");
        let port = first.local_addr().expect("bound").port();
        let second = listen_here(port, true).expect("shared");
        for share in [false, true] {
            let alone = listen_here(0, !share).expect("any port");
            let port = alone.local_addr().expect("bound").port();
            let refused = listen_here(port, share).expect_err("one of the two does not share");
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        }
        drop(first);
        let _client = TcpStream::connect(("127.0.0.1", port)).await.expect("the second goes on");
        second.accept().await.expect("accepted");
    }

    #[tokio::test]
    async fn a_bound_socket_takes_nothing_before_it_listens() {
        for (first, second) in [("[::]:0", "127.0.0.1"), ("127.0.0.1:0", "[::]"), ("0.0.0.0:0", "127.0.0.1")] {
            // A connection of somebody else may have the port at another address.
            let pair = (0..100).find_map(|_| {
                let first = listen(first.parse().expect("address"), false).expect("any port");
                let port = first.local_addr().expect("bound").port();
                SockRef::from(&first).set_reuse_port(true).expect("option");
                let second = bind(format!("{second}:{port}").parse().expect("address"), true).ok()?;
                Some((first, port, second))
            });
            let (first, port, second) = pair.expect("both share it");
            let _client = TcpStream::connect(("127.0.0.1", port)).await.expect("the first listens");
            assert!(accept_queued(&first).expect("accepted").is_some(), "it took the connection");
            assert!(accept_queued(&first).expect("accepted").is_none(), "there was one");
            let _second = second.listen().expect("both share it");
        }
    }
}
