//! Direct links: one TCP connection to a Community server for each client.

use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};

use super::{CommunitySettings, failure::ConnectError};
use crate::{
    net::{
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
    let within = settings.connect_timeout;
    let tcp = timeout(within, connect(host)).await.map_err(|_| ConnectError::NoAnswer(within))??;
    tcp.set_nodelay(true)?;
    watch_for_vanished(SockRef::from(&tcp), VANISHED_TIMEOUT)?;
    let preamble = if settings.send_proxy_protocol { proxy_header(&tcp, client)? } else { Vec::new() };
    Ok(OpenedStream { stream: Stream::Tcp(tcp), preamble })
}

/// Connects to the first address that accepts a connection.
async fn connect(host: &RemoteHost) -> Result<TcpStream, ConnectError> {
    let mut last = None;
    for address in &*host.addresses().await.map_err(ConnectError::NotResolved)? {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = Some(error),
        }
    }
    host.expire();
    // There is at least one address.
    Err(last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()).into())
}

/// The PROXY header that tells the server the client's address.
fn proxy_header(tcp: &TcpStream, client: Option<SocketAddr>) -> Result<Vec<u8>, ConnectError> {
    let client = match client {
        Some(client) => client,
        None => tcp.local_addr()?,
    };
    let server = tcp.peer_addr().unwrap_or(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0));
    Ok(proxy_protocol::v2(client, server))
}
