//! A client's connections: straight, or through a proxy.

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

/// The longest head of a CONNECT's answer, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// Proxies on the way, each where it is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Proxies {
    /// For raw and TLS clients.
    pub socks5: Option<SocketAddr>,
    /// For raw and TLS clients: CONNECT.
    pub https: Option<SocketAddr>,
    /// For tunnels: requests in absolute form.
    pub http: Option<SocketAddr>,
}

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Route {
    /// The multiplexer's port for raw clients.
    pub raw: SocketAddr,
    /// For TLS clients.
    pub tls: SocketAddr,
    /// For tunnels.
    pub http: SocketAddr,
    /// Proxies on the way.
    pub proxies: Proxies,
    /// Loopback only: where connections come from, so that each worker has ports of its own.
    pub source: Option<Ipv4Addr>,
}

impl Route {
    /// Every address that is connected to.
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

    /// A connection for frames, through a proxy where one is set, with TLS inside.
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

    /// A connection for requests, and what stands in front of their paths.
    pub(super) async fn http(&self) -> io::Result<(TcpStream, String)> {
        match self.proxies.http {
            None => Ok((self.tcp(self.http).await?, String::new())),
            Some(proxy) => Ok((self.tcp(proxy).await?, format!("http://{}", self.http))),
        }
    }
}

fn refused(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, what)
}

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
    let mut answer = [0; 4];
    tcp.read_exact(&mut answer).await?;
    if answer[1] != 0 {
        return Err(refused(format!("the SOCKS5 proxy answers {}", answer[1])));
    }
    let rest = match answer[3] {
        1 => 6,
        4 => 18,
        _ => usize::from(tcp.read_u8().await?) + 2,
    };
    tcp.read_exact(&mut vec![0; rest]).await?;
    Ok(tcp)
}

async fn connect(mut tcp: TcpStream, to: SocketAddr) -> io::Result<TcpStream> {
    tcp.write_all(format!("CONNECT {to} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(refused("the HTTPS proxy's answer has no end".to_owned()));
        }
        // What follows the head is the client's.
        head.push(tcp.read_u8().await?);
    }
    let status = head.split(|&b| b == b' ').nth(1).unwrap_or_default();
    if status != b"200" {
        return Err(refused(format!("the HTTPS proxy answers {}", String::from_utf8_lossy(status))));
    }
    Ok(tcp)
}

/// TLS that takes any certificate: what is tested here is a server of one's own, and load.
pub fn any_certificate() -> ClientConfig {
    ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate)).with_no_client_auth()
}

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

/// A failed connection, as an error is counted: the same for all that fail in the same way.
pub(super) fn connect_failure(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => format!("connect: {}", error.kind()),
        None => format!("connect: {error}"),
    }
}
