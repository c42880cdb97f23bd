//! Opens the stream of a link: a TCP connection to a Community server for each client, or a stream of a trunk.

use std::{io, net::SocketAddr, sync::Arc};

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
    trunk::Trunk,
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
    if !settings.send_proxy_protocol {
        return Ok(Vec::new());
    }
    let client = match client {
        Some(client) => client,
        None => tcp.local_addr()?,
    };
    Ok(proxy_protocol::v2(client, server))
}

/// Opens a stream of `trunk` for `client`; `None`: for this program itself. The PROXY header travels as the first bytes of
/// the stream, so that it also passes far ends that know nothing of it.
///
/// # Errors
/// No far end could be reached, or it could not reach its target, each within `connect_timeout`.
pub(super) async fn open_on_trunk(
    trunk: &Arc<Trunk>,
    client: Option<SocketAddr>,
    settings: &CommunitySettings,
) -> Result<OpenedStream, ConnectError> {
    let opened = trunk.open(&settings.trunk, settings.connect_timeout).await.map_err(ConnectError::Trunk)?;
    let (local, address) = opened.addresses;
    let preamble =
        if settings.send_proxy_protocol { proxy_protocol::v2(client.unwrap_or(local), address) } else { Vec::new() };
    Ok(OpenedStream { stream: Stream::other(opened.stream), address, preamble })
}
