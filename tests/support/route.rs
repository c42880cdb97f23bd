//! How a client reaches the multiplexer: direct, or through a proxy.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::http::{self, Stream};

/// The protocol in which a client asks a proxy for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// An HTTP CONNECT request.
    Connect,
    /// SOCKS4 with an address.
    Socks4,
    /// SOCKS5 with an address.
    Socks5,
    /// SOCKS5 with a host name, which the proxy resolves.
    Socks5Name,
}

/// The route of each connection that a client opens.
#[derive(Debug, Clone)]
pub struct Route {
    /// The address that its TCP connections go to.
    pub to: SocketAddr,
    /// How the proxy at `to` is asked for a connection to `target`; `None`: there is no such proxy.
    pub hop: Option<Hop>,
    pub target: SocketAddr,
    /// User name and password for a SOCKS5 proxy.
    pub login: Option<(String, String)>,
    /// What precedes `/CommunityCBR/`: the prefix of a reverse proxy, or scheme and host for an HTTP proxy.
    pub prefix: String,
}

impl From<SocketAddr> for Route {
    fn from(to: SocketAddr) -> Self {
        Self { to, hop: None, target: to, login: None, prefix: String::new() }
    }
}

impl Route {
    /// Through the proxy at `proxy`, which is asked for a connection to `target`.
    pub fn through(proxy: SocketAddr, hop: Hop, target: SocketAddr) -> Self {
        Self { hop: Some(hop), target, ..proxy.into() }
    }

    /// Through a reverse proxy that has the tunnel under the path `prefix`.
    pub fn behind(proxy: SocketAddr, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..proxy.into() }
    }

    /// Through an HTTP proxy, which gets requests in absolute form.
    pub fn absolute(proxy: SocketAddr, target: SocketAddr) -> Self {
        Self { prefix: format!("http://{target}"), ..proxy.into() }
    }

    pub fn login(self, user: &str, password: &str) -> Self {
        Self { login: Some((user.to_owned(), password.to_owned())), ..self }
    }

    /// Opens a connection, with TLS inside it if `tls` is true.
    pub async fn connect(&self, tls: bool) -> io::Result<Stream> {
        let mut tcp = TcpStream::connect(self.to).await?;
        tcp.set_nodelay(true)?;
        match self.hop {
            None => (),
            Some(Hop::Connect) => self.http_connect(&mut tcp).await?,
            Some(Hop::Socks4) => self.socks4(&mut tcp).await?,
            Some(Hop::Socks5) => self.socks5(&mut tcp, false).await?,
            Some(Hop::Socks5Name) => self.socks5(&mut tcp, true).await?,
        }
        if tls { Ok(Box::new(http::tls_over(tcp).await?)) } else { Ok(Box::new(tcp)) }
    }

    /// Sends CONNECT as a real Java client does.
    async fn http_connect(&self, tcp: &mut TcpStream) -> io::Result<()> {
        tcp.write_all(format!("CONNECT {} HTTP/1.0\r\n\r\n", self.target).as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        if head.split(' ').nth(1) == Some("200") { Ok(()) } else { Err(io::Error::other(head.into_owned())) }
    }

    async fn socks4(&self, tcp: &mut TcpStream) -> io::Result<()> {
        let IpAddr::V4(ip) = self.target.ip() else { return Err(io::Error::other("SOCKS4 has IPv4 only")) };
        let port = self.target.port().to_be_bytes();
        tcp.write_all(&[&[4, 1][..], &port, &ip.octets(), b"bob\0"].concat()).await?;
        let mut answer = [0; 8];
        tcp.read_exact(&mut answer).await?;
        if answer[1] == 90 { Ok(()) } else { Err(io::Error::other(format!("SOCKS4: {answer:?}"))) }
    }

    async fn socks5(&self, tcp: &mut TcpStream, by_name: bool) -> io::Result<()> {
        let method = if self.login.is_some() { 2 } else { 0 };
        tcp.write_all(&[5, 1, method]).await?;
        let mut chosen = [0; 2];
        tcp.read_exact(&mut chosen).await?;
        if chosen != [5, method] {
            return Err(io::Error::other(format!("SOCKS5: method {chosen:?}")));
        }
        if let Some((user, password)) = &self.login {
            let of = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
            tcp.write_all(&[&[1][..], &of(user), &of(password)].concat()).await?;
            tcp.read_exact(&mut chosen).await?;
            if chosen[1] != 0 {
                return Err(io::Error::other("SOCKS5: log-in refused"));
            }
        }
        let host = match (by_name, self.target.ip()) {
            (true, _) => [&[3, 9][..], b"localhost"].concat(),
            (false, IpAddr::V4(ip)) => [&[1][..], &ip.octets()].concat(),
            (false, IpAddr::V6(ip)) => [&[4][..], &ip.octets()].concat(),
        };
        tcp.write_all(&[&[5, 1, 0][..], &host, &self.target.port().to_be_bytes()].concat()).await?;
        let mut answer = [0; 4];
        tcp.read_exact(&mut answer).await?;
        if answer[1] != 0 {
            return Err(io::Error::other(format!("SOCKS5: {answer:?}")));
        }
        let rest = match answer[3] {
            1 => 6,
            4 => 18,
            _ => usize::from(tcp.read_u8().await?) + 2,
        };
        tcp.read_exact(&mut vec![0; rest]).await?;
        Ok(())
    }
}
