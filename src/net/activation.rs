//! Listening sockets that a service manager opened and passed to this process: systemd.socket(5), sd_listen_fds(3).
//!
//! The service manager keeps such a socket open when this process ends. Connections that arrive until the next process
//! accepts them wait in the kernel's queue, so that no client is refused during a restart. A socket is found by its
//! address, and is passed only once: so this keeps it for as long as the process runs, and hands out copies.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
};

use listenfd::ListenFd;
use socket2::SockRef;

use super::address::{canonical, overlap};

/// The sockets that were passed. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct PassedSockets(Arc<[PassedSocket]>);

#[derive(Debug)]
struct PassedSocket {
    address: SocketAddr,
    socket: StdListener,
    /// Whether it blocked when it was passed.
    blocks: bool,
}

impl PassedSockets {
    /// Takes the sockets that the variables `LISTEN_FDS` and `LISTEN_PID` announce, and removes these variables. To be
    /// called once, before there are other threads.
    ///
    /// # Errors
    /// For the admin, one text for each descriptor that can't be used: it is not a TCP socket, or does not listen.
    pub fn from_environment() -> Result<Self, Vec<String>> {
        let mut passed = ListenFd::from_env();
        let (mut sockets, mut unusable) = (Vec::new(), Vec::new());
        for index in 0..passed.len() {
            match passed.take_tcp_listener(index) {
                Ok(Some(socket)) => match Self::of(socket) {
                    Ok(socket) => sockets.push(socket),
                    Err(why) => unusable.push(why),
                },
                Ok(None) => (),
                // It names the descriptor, and what it is not.
                Err(error) => unusable.push(error.to_string()),
            }
        }
        if unusable.is_empty() { Ok(Self(sockets.into())) } else { Err(unusable) }
    }

    fn of(socket: StdListener) -> Result<PassedSocket, String> {
        let address = socket.local_addr().map_err(|error| error.to_string())?;
        let listens = SockRef::from(&socket).is_listener().map_err(|error| error.to_string())?;
        if !listens {
            return Err(format!("{address} does not listen: the unit needs Accept=no"));
        }
        let blocks = !SockRef::from(&socket).nonblocking().map_err(|error| error.to_string())?;
        Ok(PassedSocket { address, socket, blocks })
    }

    /// Whether a socket blocked when it was passed. All processes that have a socket share this property. So if the
    /// service manager makes the sockets block when it starts a further process, it halts this one in accept(2).
    pub fn block(&self) -> bool {
        self.0.iter().any(|passed| passed.blocks)
    }

    /// The address of each socket.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|passed| passed.address)
    }

    /// The sockets for a listener on `address`; several if they share it, and none if none was passed. For `[::]`, which
    /// takes IPv4, too, these are those on `[::]` and those on `0.0.0.0`.
    pub fn on(&self, address: SocketAddr) -> impl Iterator<Item = &StdListener> {
        self.0.iter().filter(move |passed| serves(passed.address, address)).map(|passed| &passed.socket)
    }

    /// The address of a socket that is in the way of a listener on `address`: both would take the same connections, and
    /// the listener is on another address.
    pub fn in_the_way_of(&self, address: SocketAddr) -> Option<SocketAddr> {
        self.addresses().find(|passed| overlap(*passed, address) && !serves(*passed, address))
    }

    /// The addresses, each once, that none of the listeners on `wanted` has.
    pub fn unused(&self, wanted: &[SocketAddr]) -> Vec<SocketAddr> {
        let is_unused = |passed: &SocketAddr| !wanted.iter().any(|wanted| serves(*passed, *wanted));
        let mut unused: Vec<SocketAddr> = self.addresses().filter(is_unused).collect();
        unused.sort_unstable();
        unused.dedup();
        unused
    }
}

/// Whether a socket on `passed` is one for a listener on `wanted`.
fn serves(passed: SocketAddr, wanted: SocketAddr) -> bool {
    let (passed, wanted) = (canonical(passed), canonical(wanted));
    let is_every = |address: SocketAddr| address.ip().is_unspecified();
    passed == wanted || (passed.port() == wanted.port() && wanted.is_ipv6() && is_every(wanted) && is_every(passed))
}

#[cfg(test)]
impl PassedSockets {
    /// As if these were passed.
    pub(crate) fn of_all(sockets: Vec<StdListener>) -> Self {
        Self(sockets.into_iter().map(|socket| Self::of(socket).expect("it listens")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_by_their_address() {
        let [one, other] = [0, 0].map(|port| StdListener::bind(("127.0.0.1", port)).expect("a port"));
        let [first, second] = [&one, &other].map(|socket| socket.local_addr().expect("bound"));
        let again = one.try_clone().expect("a descriptor");
        let passed = PassedSockets::of_all(vec![one, other, again]);
        let on = |address| passed.on(address).map(|socket| socket.local_addr().expect("bound")).collect::<Vec<_>>();
        assert_eq!(on(first), [first, first]);
        assert_eq!(on(second), [second]);
        let every = SocketAddr::new("::".parse().expect("address"), first.port());
        assert_eq!(on(every), [], "it takes other connections");
        assert_eq!(passed.in_the_way_of(every), Some(first));
        assert_eq!(passed.in_the_way_of(first), None);
        assert_eq!(passed.in_the_way_of(SocketAddr::from(([127, 0, 0, 9], first.port()))), None);
        assert_eq!(passed.unused(&[second]), [first]);
        assert!(passed.unused(&[second, first]).is_empty());
    }

    #[test]
    fn the_empty_host_has_the_sockets_of_both_families() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("address");
        assert!(serves(address("[::]:80"), address("[::]:80")));
        assert!(serves(address("0.0.0.0:80"), address("[::]:80")));
        assert!(!serves(address("[::]:80"), address("0.0.0.0:80")));
        assert!(!serves(address("0.0.0.0:81"), address("[::]:80")));
        assert!(serves(address("[::ffff:127.0.0.1]:80"), address("127.0.0.1:80")));
    }

    #[test]
    fn a_socket_that_does_not_listen_is_none() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let why = PassedSockets::of(socket.into()).expect_err("it does not listen");
        assert!(why.contains("Accept=no"), "{why}");
    }
}
