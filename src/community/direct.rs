//! Direct links: one TCP connection to a Community server for each client.

use std::{io, net::SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::{CommunitySettings, failure::ConnectError};
use crate::{
    net::{
        connect::connect,
        keepalive::{VANISHED_TIMEOUT, watch_for_vanished},
        lookup::RemoteHost,
    },
    stream::Stream,
    wire::proxy_protocol,
};

/// A stream to a server on which nothing was sent yet.
pub(super) struct OpenedStream {
    /// The stream.
    pub(super) stream: Stream,
    /// The server's address.
    pub(super) address: SocketAddr,
    /// What has to be sent before the client's bytes. With `community.send_proxy_protocol` this is a PROXY v2 header,
    /// otherwise it is empty.
    pub(super) preamble: Vec<u8>,
}

/// Opens a TCP connection to `host` for `client`; `None`: for this program itself.
///
/// # Errors
/// No address of the host accepted a connection within `connect_timeout`. This includes the time of a name look-up.
pub(super) async fn open(
    host: &RemoteHost,
    client: Option<SocketAddr>,
    settings: &CommunitySettings,
) -> Result<OpenedStream, ConnectError> {
    let (tcp, address) = connect(host, settings.connect_timeout).await?;
    let prepared = prepare(&tcp, client, address, settings);
    let preamble = prepared.map_err(|error| ConnectError::at_once(address, error))?;
    Ok(OpenedStream { stream: Stream::Tcp(tcp), address, preamble })
}

/// Sets the options of a new connection. Returns what has to be sent first.
fn prepare(
    tcp: &TcpStream,
    client: Option<SocketAddr>,
    server: SocketAddr,
    settings: &CommunitySettings,
) -> io::Result<Vec<u8>> {
    tcp.set_nodelay(true)?;
    watch_for_vanished(SockRef::from(tcp), VANISHED_TIMEOUT)?;
    if settings.send_proxy_protocol { proxy_header(tcp, client, server) } else { Ok(Vec::new()) }
}

/// The PROXY header that tells the server the client's address.
fn proxy_header(tcp: &TcpStream, client: Option<SocketAddr>, server: SocketAddr) -> io::Result<Vec<u8>> {
    let client = match client {
        Some(client) => client,
        None => tcp.local_addr()?,
    };
    Ok(proxy_protocol::v2(client, server))
}
