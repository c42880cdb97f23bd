//! The seam between the multiplexer core and the Community servers.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use super::Stream;
use crate::wire::reason::Reason;

/// A link that is being opened.
pub type Linking<'a> = Pin<Box<dyn Future<Output = Result<(Link, Vec<u8>), LinkError>> + Send + 'a>>;
/// Is over when a client speaks on, or ends, although it has no answer yet.
pub type SpeaksOn<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send + 'a)>;

/// What the core asks for links.
pub trait Community: Send + Sync + 'static {
    /// Chooses a server, opens a link to it for `client`, sends it `hello` (the client's Handshake)
    /// and waits for its first answer, whose bytes come with the link. A server that refuses, or does
    /// not answer, is skipped for the next one. When the client speaks on, it is committed: the
    /// server that has its hello keeps it, and is not waited for.
    fn connect<'a>(&'a self, client: SocketAddr, hello: &'a [u8], speaks_on: SpeaksOn<'a>) -> Linking<'a>;
}

/// A stream to a Community server, and the place on that server that it takes up.
#[derive(Debug)]
pub struct Link {
    /// Bytes to and from the server.
    pub stream: Stream,
    /// Which server, for logs.
    pub server: Arc<str>,
    /// Counted on the server until dropped; told how the link ended.
    pub lease: Box<dyn Lease>,
}

/// A place on a Community server, given back when dropped.
pub trait Lease: Send + Sync + fmt::Debug {
    /// The link broke (no orderly end): the server may be in trouble.
    fn broken(&self, why: &str);
}

/// No Community server could be reached. Ours to tell the client, in its protocol.
#[derive(Debug)]
pub struct LinkError {
    /// The reason for the client: can't connect, or not responding.
    pub reason: Reason,
    /// For the log: which servers were tried, and what each said.
    pub detail: String,
}
