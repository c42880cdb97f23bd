//! The listening sockets of this process, and how another one is bound beside them.
//!
//! A reload may ask for an address that overlaps with one that this process listens on already: `127.0.0.1:1533` while
//! it listens on `[::]:1533`, or an admin endpoint in the place of a client port. The kernel permits both at the same
//! time if both sockets have `SO_REUSEPORT`: the more exact address gets the connections. So the new one is there before
//! the old one is closed.

use std::{io, net::SocketAddr, sync::Arc};

use socket2::SockRef;
use tokio::{net::TcpListener, task::spawn_blocking};

use super::{
    listener_error::ListenerError,
    port_holder::{PortHolder, port_holder},
};
use crate::net::{
    activation::PassedSockets,
    address::overlap,
    listen::{self, BoundSocket},
};

/// Listening sockets of this process. As long as this exists, none of them is closed.
#[derive(Default)]
pub(super) struct OwnSockets {
    /// Those that it accepts on, with their addresses.
    pub(super) held: Vec<(SocketAddr, Arc<TcpListener>)>,
    /// Those that a service manager passed, whether it accepts on them or not.
    pub(super) passed: PassedSockets,
}

impl OwnSockets {
    /// Binds `address`, beside those sockets that overlap with it, or takes the sockets that were passed for it. `share`:
    /// other processes of the same user may bind it, too.
    ///
    /// # Errors
    /// Why it can't be bound. What could take a while for this is done on a thread for blocking work.
    pub(super) async fn bind(&self, address: SocketAddr, share: bool) -> Result<BoundSocket, ListenerError> {
        let passed = BoundSocket::passed(&self.passed, address);
        if let Some(passed) = passed.map_err(|error| ListenerError::from_listen(&error))? {
            return Ok(passed);
        }
        if let Some(passed) = self.passed.in_the_way_of(address) {
            return Err(ListenerError::beside_passed(address, passed));
        }
        let mut is_beside = false;
        for (_, socket) in self.held.iter().filter(|(own, _)| overlap(*own, address)) {
            SockRef::from(&**socket).set_reuse_port(true).map_err(|e| ListenerError::from_bind(&e, address))?;
            is_beside = true;
        }
        let bound = spawn_blocking(move || bind(address, share, is_beside)).await;
        bound.unwrap_or_else(|ended| Err(ListenerError::from_listen(&io::Error::other(ended))))
    }
}

fn bind(address: SocketAddr, share: bool, is_beside: bool) -> Result<BoundSocket, ListenerError> {
    // With SO_REUSEPORT the kernel would also permit an address that another process of this user shares.
    if is_beside
        && !share
        && let Some(holder @ PortHolder::Other(_)) = port_holder(address)
    {
        return Err(ListenerError::in_use(address, Some(holder)));
    }
    listen::bind(address, share || is_beside).map_err(|error| ListenerError::from_bind(&error, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_this_process_has_is_not_in_the_way() {
        for (own, wanted) in [("[::]", "127.0.0.1"), ("127.0.0.1", "[::]"), ("127.0.0.1", "127.0.0.1")] {
            let mut beside = Err(ListenerError::from_listen(&io::ErrorKind::Other.into()));
            // A connection of somebody else may have the port at another address.
            for _ in 0..100 {
                let own = listen::listen(format!("{own}:0").parse().expect("address"), false).expect("any port");
                let address = own.local_addr().expect("bound");
                let wanted = format!("{wanted}:{}", address.port()).parse().expect("address");
                let refused = OwnSockets::default().bind(wanted, false).await.expect_err("nobody said that it is ours");
                assert!(refused.what.contains("of this program"), "{refused}");
                let sockets = OwnSockets { held: vec![(address, Arc::new(own))], ..OwnSockets::default() };
                beside = sockets.bind(wanted, false).await.map(|bound| (sockets, bound));
                if beside.is_ok() {
                    break;
                }
            }
            let (_sockets, bound) = beside.expect("beside it");
            bound.listen().expect("both share it");
        }
    }
}
