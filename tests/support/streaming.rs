//! A client's side of the streaming tunnel, as the recordings show it. This code is written from the tunnel's
//! description and shares nothing with the program.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::{
    http::{self, Response, Stream},
    route::Route,
};

/// The path of both requests, as the recorded clients write it.
pub const PATH: &str = "/communityCBR/";

/// The GET request of a real Java client, behind `prefix`.
pub fn get(prefix: &str) -> Vec<u8> {
    format!(
        "GET {prefix}{PATH} HTTP/1.0\r\nPragma: No-Cache\r\nHost: 127.0.0.1\r\nContent-Type: Application/Octet-Stream\r\n\r\n"
    )
    .into_bytes()
}

/// The POST request of a real Java client, behind `prefix`, with this body.
pub fn post(prefix: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {prefix}{PATH} HTTP/1.0\r\nPragma: No-Cache\r\nHost: 127.0.0.1\r\nContent-Type: Application/Octet-Stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The body of a POST request, and the beginning of every other body: the mark, the session's name, and `data`.
pub fn body(name: &[u8], data: &[u8]) -> Vec<u8> {
    [&[0xFF][..], &(name.len() as u16).to_be_bytes(), name, data].concat()
}

/// The endless response, from its head on.
pub struct Down {
    stream: ReadHalf<Stream>,
    is_chunked: bool,
    /// How many bytes of the present chunk are to come.
    chunk_left: usize,
    pub head: String,
    pub name: Vec<u8>,
}

impl Down {
    /// Reads the head and the beginning of the body.
    pub async fn begin(mut stream: ReadHalf<Stream>) -> io::Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let response = Response { status: 0, head: head.clone(), body: Vec::new() };
        if head.split(' ').nth(1) != Some("200") || response.header("content-length").is_some() {
            return Err(io::Error::other(head));
        }
        let is_chunked = response.header("transfer-encoding").is_some_and(|t| t.eq_ignore_ascii_case("chunked"));
        let mut down = Self { stream, is_chunked, chunk_left: 0, head, name: Vec::new() };
        let mark = down.exactly(3).await?;
        assert_eq!(mark[0], 0xFF, "the first byte");
        down.name = down.exactly(usize::from(u16::from_be_bytes([mark[1], mark[2]]))).await?;
        assert!((22..=36).contains(&down.name.len()), "a name of 128 bits that every client takes: {:?}", down.name);
        down.exactly(6).await?;
        Ok(down)
    }

    async fn exactly(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < n {
            let mut some = vec![0; n - all.len()];
            match self.read(&mut some).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => all.extend_from_slice(&some[..read]),
            }
        }
        Ok(all)
    }

    /// Reads some bytes of the body; 0 at its end.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_chunked {
            return self.stream.read(buffer).await;
        }
        if self.chunk_left == 0 {
            let line = http::read_line(&mut self.stream).await?;
            self.chunk_left = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            if self.chunk_left == 0 {
                http::read_line(&mut self.stream).await?;
                return Ok(0);
            }
        }
        let most = self.chunk_left.min(buffer.len());
        let n = self.stream.read(&mut buffer[..most]).await?;
        self.chunk_left -= n;
        if self.chunk_left == 0 {
            http::read_line(&mut self.stream).await?;
        }
        Ok(n)
    }
}

/// Opens a session. The second value keeps the connection open.
pub async fn open(route: &Route, tls: bool) -> io::Result<(Down, WriteHalf<Stream>)> {
    let (from, mut into) = tokio::io::split(route.connect(tls).await?);
    into.write_all(&get(&route.prefix)).await?;
    into.flush().await?;
    Ok((Down::begin(from).await?, into))
}

/// Sends one POST request on a connection of its own.
pub async fn send(route: &Route, tls: bool, name: &[u8], data: &[u8]) -> io::Result<Response> {
    let mut connection = route.connect(tls).await?;
    http::exchange(&mut connection, &post(&route.prefix, &body(name, data))).await
}

/// Opens a session, then carries the bytes of `stream` until the session or the stream ends.
pub async fn drive(route: Route, tls: bool, stream: DuplexStream) {
    let (mut from, mut into) = tokio::io::split(stream);
    let Ok((mut down, get)) = open(&route, tls).await else { return };
    let mut name = down.name.clone();
    let receiving = tokio::spawn(async move {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match down.read(&mut buffer).await {
                Ok(n) if n > 0 && into.write_all(&buffer[..n]).await.is_ok() => (),
                _ => return into.shutdown().await,
            }
        }
    });
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(n) if n > 0 => n,
            _ => break,
        };
        // A real client gives up after any other response.
        let Ok(response) = send(&route, tls, &name, &buffer[..n]).await else { break };
        if response.status != 200 || response.body.len() < 3 {
            break;
        }
        // The next request has the name of this response.
        name = response.body[3..].to_vec();
    }
    receiving.abort();
    drop(get);
}
