//! The client's side of the streaming tunnel, as the recordings in `tests/fixtures/transcripts` show real clients: a
//! GET request whose response has no end, and for each message a POST request on a connection of its own.

use std::{future::poll_fn, io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split},
    net::TcpStream,
};

use super::connect::{LoadRoute, connect_failure};
use crate::{
    runtime::scratch,
    wire::message::{Reader, Writer},
};

/// The path of every request, as real clients write it.
const PATH: &str = "/communityCBR/";
/// The first byte of every body.
const MARK: u8 = 0xFF;
/// Bytes between the session's name and the stream, in the response to the GET request.
const RESERVED: usize = 6;
/// The longest head of a response, and the longest body of a response to a POST request, in bytes.
const LONGEST: usize = 16 * 1024;

/// Why a session ended: a text for the report's table of errors.
type Failure = String;

fn broken(error: &io::Error) -> Failure {
    format!("HTTP: {}", error.kind())
}

/// The next bytes of `stream`; `None` at its end.
async fn next_bytes<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<Vec<u8>>> {
    poll_fn(|cx| scratch::poll_read(stream, cx, |bytes, _| bytes.to_vec())).await
}

/// A response whose head has been read, with the bytes of the body that came with it.
struct BegunResponse {
    tcp: TcpStream,
    /// Content-Length; 0 if there is none.
    length: usize,
    body: Vec<u8>,
}

impl BegunResponse {
    /// Sends a request on a new connection. The response must have status 200.
    async fn to(route: &LoadRoute, method: &str, body: &[u8]) -> Result<Self, Failure> {
        let (mut tcp, prefix) = route.http().await.map_err(|error| connect_failure(&error))?;
        let mut request = format!(
            "{method} {prefix}{PATH} HTTP/1.0\r\nPragma: No-Cache\r\nHost: {}\r\nContent-Type: Application/Octet-Stream\r\n",
            route.http
        );
        if method == "POST" {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        tcp.write_all(&[request.as_bytes(), body].concat()).await.map_err(|error| broken(&error))?;
        let mut begun = Self { tcp, length: 0, body: Vec::new() };
        let head = loop {
            begun.read_more().await?;
            if let Some(at) = begun.body.windows(4).position(|four| four == b"\r\n\r\n") {
                break begun.body.drain(..at + 4).collect::<Vec<u8>>();
            }
        };
        let head = String::from_utf8_lossy(&head).into_owned();
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status != "200" {
            return Err(format!("tunnel: answered with {status}"));
        }
        let length = head.lines().filter_map(|line| line.split_once(':'));
        let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        begun.length = length.filter_map(|(_, value)| value.trim().parse().ok()).next().unwrap_or(0);
        Ok(begun)
    }

    /// Reads some more bytes, which are bounded.
    async fn read_more(&mut self) -> Result<(), Failure> {
        match next_bytes(&mut self.tcp).await.map_err(|error| broken(&error))? {
            Some(bytes) if self.body.len() < LONGEST => self.body.extend_from_slice(&bytes),
            Some(_) => return Err("tunnel: a malformed response".to_owned()),
            None => return Err("HTTP: the response is cut off".to_owned()),
        }
        Ok(())
    }

    /// Reads the session's name and `more` bytes behind it, and removes them from the body.
    async fn name(&mut self, more: usize) -> Result<Vec<u8>, Failure> {
        loop {
            let mut reader = Reader(&self.body);
            let mark = reader.u8();
            if mark.is_some_and(|mark| mark != MARK) {
                return Err("tunnel: a malformed response".to_owned());
            }
            if let Some(name) = reader.string()
                && reader.bytes(more).is_some()
            {
                let (name, rest) = (name.to_vec(), reader.0.to_vec());
                self.body = rest;
                return Ok(name);
            }
            self.read_more().await?;
        }
    }
}

/// Opens a session and carries the bytes of `stream` through it, until the session or the stream ends.
///
/// # Errors
/// Why the session ended; the end of `stream` is not an error.
pub(super) async fn drive(route: Arc<LoadRoute>, stream: DuplexStream) -> Result<(), Failure> {
    let mut down = BegunResponse::to(&route, "GET", b"").await?;
    let name = down.name(RESERVED).await?;
    let (from, into) = split(stream);
    tokio::select! {
        end = carry_down(down, into) => end,
        end = carry_up(&route, name, from) => end,
    }
}

/// Carries what comes in the endless response.
async fn carry_down(down: BegunResponse, mut into: WriteHalf<DuplexStream>) -> Result<(), Failure> {
    let BegunResponse { mut tcp, body, .. } = down;
    let mut next = body;
    loop {
        if into.write_all(&next).await.is_err() {
            return Ok(());
        }
        drop(next);
        next = match next_bytes(&mut tcp).await.map_err(|error| broken(&error))? {
            Some(bytes) => bytes,
            None => return Err("closed by the server".to_owned()),
        };
    }
}

/// Sends a request for each piece of the client's stream, one after another.
async fn carry_up(route: &LoadRoute, mut name: Vec<u8>, mut from: ReadHalf<DuplexStream>) -> Result<(), Failure> {
    while let Ok(Some(data)) = next_bytes(&mut from).await {
        let mut body = Writer::new();
        body.u8(MARK).string(&name).raw(&data);
        let mut response = BegunResponse::to(route, "POST", &body.0).await?;
        if response.length < 3 {
            return Err("tunnel: a response without a name".to_owned());
        }
        name = response.name(0).await?;
    }
    Ok(())
}
