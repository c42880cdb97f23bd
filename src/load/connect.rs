//! A client's connections: direct, or through a proxy.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use crate::stream::Stream;

/// The longest head of a response to CONNECT, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// The proxies between clients and the multiplexer. `None`: no proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Proxies {
    /// A SOCKS5 proxy for raw and TLS clients.
    pub socks5: Option<SocketAddr>,
    /// An HTTP proxy for raw and TLS clients, which send it a CONNECT request.
    pub https: Option<SocketAddr>,
    /// An HTTP proxy for tunnels, which send it requests in absolute form (RFC 9112, section 3.2.2).
    pub http: Option<SocketAddr>,
}

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadRoute {
    /// The multiplexer's port for raw clients.
    pub raw: SocketAddr,
    /// The port for TLS clients.
    pub tls: SocketAddr,
    /// The port for tunnels.
    pub http: SocketAddr,
    /// The proxies on the way.
    pub proxies: Proxies,
    /// The source address of connections on loopback, so that each worker has all ephemeral ports.
    /// `None`: the system chooses.
    pub source: Option<Ipv4Addr>,
}

impl LoadRoute {
    /// Every address that clients connect to, proxies included.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let Self { raw, tls, http, proxies, .. } = *self;
        [Some(raw), Some(tls), Some(http), proxies.socks5, proxies.https, proxies.http].into_iter().flatten()
    }

    async fn tcp(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let (Some(source), true, true) = (self.source, to.is_ipv4(), to.ip().is_loopback()) {
            socket.bind((IpAddr::V4(source), 0).into())?;
        }
        let tcp = socket.connect(to).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// Opens a connection for frames, through a proxy if one is set, with TLS if `tls` is given.
    pub(super) async fn direct(&self, tls: Option<&TlsConnector>) -> io::Result<Stream> {
        let to = if tls.is_some() { self.tls } else { self.raw };
        let tcp = match (self.proxies.socks5, self.proxies.https) {
            (Some(proxy), _) => socks5(self.tcp(proxy).await?, to).await?,
            (None, Some(proxy)) => connect(self.tcp(proxy).await?, to).await?,
            (None, None) => self.tcp(to).await?,
        };
        match tls {
            None => Ok(Stream::Tcp(tcp)),
            Some(connector) => Ok(Stream::other(connector.connect(ServerName::IpAddress(to.ip().into()), tcp).await?)),
        }
    }

    /// Opens a connection for HTTP requests. Returns it with the prefix of each request's path: empty, or
    /// scheme and host for a proxy.
    pub(super) async fn http(&self) -> io::Result<(TcpStream, String)> {
        match self.proxies.http {
            None => Ok((self.tcp(self.http).await?, String::new())),
            Some(proxy) => Ok((self.tcp(proxy).await?, format!("http://{}", self.http))),
        }
    }
}

/// The error for a proxy that does not open the connection.
fn refused(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, what)
}

/// Asks the SOCKS5 proxy on `tcp` for a connection to `to` (RFC 1928), without authentication.
async fn socks5(mut tcp: TcpStream, to: SocketAddr) -> io::Result<TcpStream> {
    tcp.write_all(&[5, 1, 0]).await?;
    let mut chosen = [0; 2];
    tcp.read_exact(&mut chosen).await?;
    if chosen != [5, 0] {
        return Err(refused("the SOCKS5 proxy wants a log-in".to_owned()));
    }
    let mut request = vec![5, 1, 0];
    match to.ip() {
        IpAddr::V4(ip) => request.extend([&[1][..], &ip.octets()].concat()),
        IpAddr::V6(ip) => request.extend([&[4][..], &ip.octets()].concat()),
    }
    request.extend(to.port().to_be_bytes());
    tcp.write_all(&request).await?;
    let mut reply = [0; 4];
    tcp.read_exact(&mut reply).await?;
    if reply[1] != 0 {
        return Err(refused(format!("the SOCKS5 proxy answers {}", reply[1])));
    }
    // The address and the port that the proxy uses, by the type of the address: IPv4, IPv6, name.
    let rest = match reply[3] {
        1 => 6,
        4 => 18,
        _ => usize::from(tcp.read_u8().await?) + 2,
    };
    tcp.read_exact(&mut vec![0; rest]).await?;
    Ok(tcp)
}

/// Asks the HTTP proxy on `tcp` for a connection to `to`, in the form that real clients use.
async fn connect(mut tcp: TcpStream, to: SocketAddr) -> io::Result<TcpStream> {
    tcp.write_all(format!("CONNECT {to} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(refused("the HTTPS proxy's answer has no end".to_owned()));
        }
        // Byte by byte: what follows the head belongs to the client's stream.
        head.push(tcp.read_u8().await?);
    }
    let status = head.split(|&b| b == b' ').nth(1).unwrap_or_default();
    if status != b"200" {
        return Err(refused(format!("the HTTPS proxy answers {}", String::from_utf8_lossy(status))));
    }
    Ok(tcp)
}

/// A TLS configuration that accepts any certificate, because a load test concerns the user's own server and
/// not its identity.
pub fn any_certificate() -> ClientConfig {
    ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate)).with_no_client_auth()
}

/// Accepts every certificate and every signature.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The text under which a failed connection is counted: the same text for the same kind of failure.
pub(super) fn connect_failure(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => format!("connect: {}", error.kind()),
        None => format!("connect: {error}"),
    }
}
