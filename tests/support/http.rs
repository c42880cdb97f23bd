//! HTTP/1 without a library, so that a test decides about every byte of a request.

use std::{io, net::SocketAddr, sync::Arc};

use sametime_mux::load::any_certificate;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub type Stream = Box<dyn Duplex>;

pub async fn tcp(to: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(to).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// Connects, with TLS if `tls` is true. Every certificate of the server is accepted, because it is self-signed.
pub async fn connect(to: SocketAddr, tls: bool) -> Stream {
    if tls { Box::new(connect_tls(to).await) } else { Box::new(tcp(to).await) }
}

pub async fn connect_tls(to: SocketAddr) -> TlsStream<TcpStream> {
    tls_over(tcp(to).await).await.unwrap()
}

pub async fn tls_over(tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(any_certificate()));
    connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .head
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(have, _)| have.eq_ignore_ascii_case(name)));
        line.map(|line| line.split_once(':').unwrap().1.trim())
    }
}

/// A POST as a real Java client writes it.
pub fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nPragma: No-Cache\r\nContent-Type: Application/Octet-Stream\r\nCache-Control: no-cache\r\nUser-Agent: Java/17.0.15\r\nHost: 127.0.0.1:8082\r\nAccept: text/html, image/gif, image/jpeg, */*; q=0.2\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Writes a request and reads its response.
pub async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> io::Result<Response> {
    stream.write_all(request).await?;
    stream.flush().await?;
    read_response(stream).await
}

pub async fn read_response(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Response> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"));
    let mut response = Response { status, head, body: Vec::new() };
    if let Some(length) = response.header("content-length").map(|l| l.parse::<usize>().unwrap()) {
        response.body.resize(length, 0);
        stream.read_exact(&mut response.body).await?;
    } else if response.header("transfer-encoding").is_some_and(|t| t.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = usize::from_str_radix(read_line(stream).await?.trim(), 16).unwrap();
            let mut chunk = vec![0; size];
            stream.read_exact(&mut chunk).await?;
            response.body.extend(chunk);
            read_line(stream).await?;
            if size == 0 {
                break;
            }
        }
    } else {
        stream.read_to_end(&mut response.body).await?;
    }
    Ok(response)
}

pub async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}
