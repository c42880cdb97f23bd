//! The hello of two nodes on a socket. Requests follow on the same connection.

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    hello::{self, Hello, LONGEST_LINE, Nonce},
    secret::Secret,
};
use crate::telemetry::outcome::PeerRefusal;

/// Why the node at the other end is not the one that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoHello {
    /// The connection ended or broke, or the system has no random numbers.
    Broken,
    /// The other end did not prove what it has to prove.
    NotProven,
}

/// What was read from a connection and is not used yet.
#[derive(Default)]
struct HelloLines(Vec<u8>);

impl HelloLines {
    /// The next line without its end. `None`: it is too long.
    ///
    /// # Errors
    /// The connection ended or broke.
    async fn next(&mut self, tcp: &mut TcpStream) -> Result<Option<Vec<u8>>, NoHello> {
        loop {
            if let Some(end) = self.0.windows(2).position(|two| two == b"\r\n") {
                let rest = self.0.split_off(end + 2);
                let mut line = std::mem::replace(&mut self.0, rest);
                line.truncate(end);
                return Ok(Some(line));
            }
            if self.0.len() > LONGEST_LINE {
                return Ok(None);
            }
            let mut some = [0; LONGEST_LINE];
            match tcp.read(&mut some).await {
                Ok(n) if n > 0 => self.0.extend_from_slice(&some[..n]),
                _ => return Err(NoHello::Broken),
            }
        }
    }
}

fn nonce() -> Result<Nonce, NoHello> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(|_| NoHello::Broken)?;
    Ok(nonce)
}

/// Proves to the node `wanted` that this is the node `own`. Returns the last line, which has to be sent in front of the
/// first request.
///
/// # Errors
/// The connection broke, or what accepted it is not the node that is wanted.
pub(super) async fn greet(tcp: &mut TcpStream, own: &str, wanted: &str, secret: &Secret) -> Result<String, NoHello> {
    let its_nonce = nonce()?;
    tcp.write_all(hello::greeting(own, &its_nonce).as_bytes()).await.map_err(|_| NoHello::Broken)?;
    let mut lines = HelloLines::default();
    let answer = lines.next(tcp).await?;
    let (nonce, proof) = answer.as_deref().and_then(hello::read_answer).ok_or(NoHello::NotProven)?;
    let hello = Hello { connects: own, its_nonce, accepts: wanted, nonce };
    // The other node waits for the proof now, and sends nothing.
    if !hello.is_answered(secret, &proof) || !lines.0.is_empty() {
        return Err(NoHello::NotProven);
    }
    Ok(hello.last(secret))
}

/// Proves to the node that has connected that this is the node `own`, and demands its proof. `is_node` tells which names
/// are those of nodes. Returns what was read behind the proof.
///
/// # Errors
/// Why the connection is refused.
pub(super) async fn answer(
    tcp: &mut TcpStream,
    own: &str,
    secret: &Secret,
    is_node: impl Fn(&str) -> bool,
) -> Result<Bytes, PeerRefusal> {
    let early = |_| PeerRefusal::ClosedEarly;
    let mut lines = HelloLines::default();
    let greeting = lines.next(tcp).await.map_err(early)?.ok_or(PeerRefusal::NotANode)?;
    let (name, its_nonce) = hello::read_greeting(&greeting).ok_or(PeerRefusal::NotANode)?;
    if !is_node(name) {
        return Err(PeerRefusal::UnknownNode);
    }
    let hello = Hello { connects: name, its_nonce, accepts: own, nonce: nonce().map_err(early)? };
    tcp.write_all(hello.answer(secret).as_bytes()).await.map_err(|_| PeerRefusal::ClosedEarly)?;
    let last = lines.next(tcp).await.map_err(early)?.ok_or(PeerRefusal::NotProven)?;
    if !hello.is_completed(secret, &last) {
        return Err(PeerRefusal::NotProven);
    }
    Ok(lines.0.into())
}
