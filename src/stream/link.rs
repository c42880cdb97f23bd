//! The seam between the core and the Community servers.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use super::Stream;
use crate::wire::reason::Reason;

/// The result of [`Community::connect`], when it is ready: the link, and the first bytes of the server's answer.
pub type Linking<'a> = Pin<Box<dyn Future<Output = Result<(Link, Vec<u8>), LinkError>> + Send + 'a>>;
/// Is ready when the client sends more bytes, or closes, before the server has answered.
pub type MoreFromClient<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send + 'a)>;

/// The Community servers, as the core sees them.
pub trait Community: Send + Sync + 'static {
    /// Chooses a server, opens a link to it for `client`, sends it `hello`, which is the client's Handshake, and waits
    /// for the answer. The first bytes of the answer are returned with the link.
    ///
    /// A server that refuses, or does not answer, is skipped, and the next one gets the same Handshake. Nothing is
    /// lost, since the client has not received anything. When `more` is ready, the server that has the Handshake keeps
    /// the client: the link is returned at once, without an answer.
    fn connect<'a>(&'a self, client: SocketAddr, hello: &'a [u8], more: MoreFromClient<'a>) -> Linking<'a>;

    /// As [`connect`](Self::connect), for a client whose Handshake another multiplexer has passed on. That may be this one:
    /// then the connection is one of its own links, and is refused with [`LinkFailure::Loop`].
    fn connect_forwarded<'a>(&'a self, client: SocketAddr, hello: &'a [u8], more: MoreFromClient<'a>) -> Linking<'a> {
        self.connect(client, hello, more)
    }
}

/// A connection to a Community server for one client.
#[derive(Debug)]
pub struct Link {
    /// The bytes to and from the server.
    pub stream: Stream,
    /// The server's name in the log.
    pub server: Arc<str>,
    /// The session's place on the server.
    pub lease: Box<dyn Lease>,
}

/// A session's place on a Community server. The server counts the session until the lease is dropped.
pub trait Lease: Send + Sync + fmt::Debug {
    /// Reports that the link broke. The server may have a problem, so it is checked.
    fn broken(&self);

    /// The number of the server, by which its sessions are found; 0: it has none.
    fn server_number(&self) -> u16 {
        0
    }
}

/// Why no server accepted a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkFailure {
    /// The fault of the servers: none could be reached.
    CannotConnect,
    /// The fault of the servers: one that could be reached did not answer.
    NotResponding,
    /// The fault of this machine: descriptors, memory or local ports have run out.
    System,
    /// The fault of the configuration: the connection is one of this program's own links, which came back.
    Loop,
}

impl LinkFailure {
    /// The reason of the farewell message.
    pub fn reason(self) -> Reason {
        match self {
            Self::CannotConnect | Self::Loop => Reason::CannotConnect,
            Self::NotResponding => Reason::NotResponding,
            Self::System => Reason::ServerFull,
        }
    }
}

/// No Community server accepted the client. The core sends the client a farewell message.
#[derive(Debug)]
pub struct LinkError {
    /// Why.
    pub failure: LinkFailure,
    /// For the log: which servers were tried, and the error of each.
    pub detail: String,
}
