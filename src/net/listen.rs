//! Listening sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;

use super::keepalive::{VANISHED_TIMEOUT, watch_for_vanished};

/// How many connections may wait in the kernel to be accepted: 20,000 clients may log in at once. The kernel lowers it
/// to `net.core.somaxconn`.
pub const BACKLOG: i32 = 20_000;

/// Binds an address and listens on it. `[::]` also takes IPv4; on a machine without IPv6, `0.0.0.0` is bound instead.
/// `share`: other processes of the same user that share the address, too, may bind it at the same time, and the kernel
/// spreads connections over them.
///
/// # Errors
/// The system's: the address is in use, is not permitted, or is not an address of this machine.
pub fn bind(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
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

/// As [`bind`], but on a machine without IPv6 `[::]` is an error.
///
/// # Errors
/// The system's.
pub fn bind_one(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // On Linux, accepted sockets inherit these two, so they need no system calls for each client.
    socket.set_tcp_nodelay(true)?;
    watch_for_vanished(SockRef::from(&socket), VANISHED_TIMEOUT)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{address::canonical, resolve::addresses};

    #[tokio::test]
    async fn the_empty_host_takes_both_families() {
        let address = addresses("", 0).expect("no look-up")[0];
        let listener = bind(address, false).expect("any port");
        let port = listener.local_addr().expect("bound").port();
        let _v4 = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("IPv4");
        let (tcp, peer) = listener.accept().await.expect("accepted");
        assert!(tcp.nodelay().expect("option"), "inherited");
        assert_eq!(canonical(peer).ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
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
