//! The protocol of one tunnel session: what of the requests is taken, and what the client has received.
//!
//! There is no socket and no clock here. A client sends one request after another. By its acknowledgement, each request
//! names the response that the client has received last. Requests with the same acknowledgement make an **epoch**: the
//! client has received nothing since. Within an epoch
//! - the first request, and any that differs from those before it, is **new**: its payload is taken, once;
//! - a request equal to the newest one is a **retry** of it: no payload is taken;
//! - a request equal to an older one is **stale**: a late copy of a request whose response the client does not read any
//!   more. It gets an empty response and takes no data from the newest request.
//!
//! ```text
//!                 new request, same acknowledgement
//!                        ┌────────┐
//!                        ▼        │
//!   opened ── new ──▶  epoch n ───┘ ── acknowledges a token of epoch n, or the ──▶ epoch n+1
//!                      │    ▲          token that epoch n acknowledges, again
//!                      └────┘ retry (gets the payload again) | stale (gets an empty response)
//! ```
//!
//! A response carries a fresh token and all payload that is not acknowledged. Which bytes a token stands for is kept
//! until its epoch ends, so a token acknowledges exactly what its response carried. The empty response to a superseded
//! or stale request repeats the token that the client has acknowledged already: if the client reads it, it
//! acknowledges nothing.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
};

use super::token::Token;
use crate::wire::tunnel::{
    cipher::{BLOCK, Cipher, FIRST_IV},
    envelope::{self, EnvelopeError, TunnelKind},
};

/// How many tokens of an epoch are kept, including the newest. Each late copy of an answered request gets one, while
/// the client may still acknowledge the response that it has read. It sends about five copies.
const TOKENS_KEPT: usize = 16;
/// For how many epochs a late retry is still recognized.
const EPOCHS_KEPT: usize = 4;
/// How many requests an epoch may have. A client sends one per second in addition to the one that it waits for, and
/// gives up long before.
const REQUESTS_KEPT: usize = 64;
/// Bytes of a buffer that may be unused.
const SPARE: usize = 4 * 1024;

/// The hash of requests. It has a random key, so that no client can make two different requests with the same digest.
static DIGESTS: std::sync::LazyLock<RandomState> = std::sync::LazyLock::new(RandomState::new);

/// A response that was sent in this epoch.
struct Issued {
    token: Token,
    /// How many of the outbound bytes it carried.
    end: usize,
    /// The outbound chain after them.
    iv: [u8; BLOCK],
}

/// What a request is.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A new request, with its bytes for the Community. It supersedes the requests before it.
    New(Vec<u8>),
    /// A retry of the newest request. It supersedes the copy before it.
    Again,
    /// A late copy of a request that is not the newest any more. Its response is [`TunnelSession::empty`].
    Stale,
    /// A new request whose payload may not be taken yet. Its acknowledgement counts; the same request is new again.
    NoRoom(RequestDigest),
}

/// The hash of a request's body, by which copies of it are recognized.
pub type RequestDigest = u64;

/// Why a request is refused. The session stays as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestError {
    /// The body is not of the tunnel's form.
    Envelope(EnvelopeError),
    /// The acknowledgement belongs to no token that the client can have.
    Acknowledgement,
    /// The payload cannot be decrypted.
    Payload,
    /// The client has sent very many requests in one epoch: it has read none of their responses.
    Unread,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envelope(error) => error.fmt(f),
            Self::Acknowledgement => f.write_str("the acknowledgement is not one of this session"),
            Self::Payload => f.write_str("the payload cannot be decrypted"),
            Self::Unread => f.write_str("the client has read none of very many responses"),
        }
    }
}

impl std::error::Error for RequestError {}

/// See the module's page.
pub struct TunnelSession {
    kind: TunnelKind,
    version: u32,
    /// Hybrid: the virtual connection that carries the stream.
    connection: u32,
    cipher: Cipher,
    /// The acknowledgement of this epoch. Its ciphertext is also the initial vector of the next one.
    acknowledgement: Option<[u8; BLOCK]>,
    /// Acknowledgements of earlier epochs, newest last.
    older: [Option<[u8; BLOCK]>; EPOCHS_KEPT],
    /// The token that this epoch acknowledges.
    token: Token,
    issued: Vec<Issued>,
    /// Digests of this epoch's requests, newest last.
    requests: Vec<RequestDigest>,
    /// Bytes for the client that it has not acknowledged.
    outbound: Vec<u8>,
    /// The outbound chain before `outbound`.
    outbound_iv: [u8; BLOCK],
    inbound_iv: [u8; BLOCK],
}

impl TunnelSession {
    /// A session whose first response carried `token`.
    pub fn new(kind: TunnelKind, version: u32, connection: u32, cipher: Cipher, token: Token) -> Self {
        Self {
            kind,
            version,
            connection,
            cipher,
            acknowledgement: None,
            older: [None; EPOCHS_KEPT],
            token,
            issued: vec![Issued { token, end: 0, iv: FIRST_IV }],
            requests: Vec::new(),
            outbound: Vec::new(),
            outbound_iv: FIRST_IV,
            inbound_iv: FIRST_IV,
        }
    }

    /// The kind of the tunnel.
    pub fn kind(&self) -> TunnelKind {
        self.kind
    }

    /// Reads the body of a request, and takes its payload if the request is new.
    ///
    /// # Errors
    /// Why the request is refused. Nothing has changed then.
    pub fn accept(&mut self, body: &[u8]) -> Result<Accepted, RequestError> {
        self.accept_if(body, |_, _, _| true)
    }

    /// As [`Self::accept`]. Whether the payload of a new request may be taken now is decided by `takes`, which gets the
    /// request's digest, the length of its payload in bytes, and the number of bytes that its client has not acknowledged
    /// by it. The acknowledgement counts in any case.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn accept_if(
        &mut self,
        body: &[u8],
        takes: impl FnOnce(RequestDigest, usize, usize) -> bool,
    ) -> Result<Accepted, RequestError> {
        let envelope::LaterRequest { acknowledgement, payload } =
            envelope::later(body).map_err(RequestError::Envelope)?;
        let acknowledgement: [u8; BLOCK] = acknowledgement.try_into().map_err(|_| RequestError::Acknowledgement)?;
        let digest = DIGESTS.hash_one(body);
        let received = if self.acknowledgement == Some(acknowledgement) {
            if let Some(at) = self.requests.iter().position(|known| *known == digest) {
                return Ok(if at + 1 == self.requests.len() { Accepted::Again } else { Accepted::Stale });
            }
            // If one were forgotten, the payload of a late copy of it would be taken again.
            if self.requests.len() == REQUESTS_KEPT {
                return Err(RequestError::Unread);
            }
            None
        } else if let Some(received) = self.acknowledged_by(&acknowledgement) {
            Some(received)
        } else {
            let late = self.older.contains(&Some(acknowledgement));
            return if late { Ok(Accepted::Stale) } else { Err(RequestError::Acknowledgement) };
        };
        let acknowledged = received.flatten().map_or(0, |at| self.issued[at].end);
        let left = self.outbound.len() - acknowledged;
        let is_taken = payload.is_empty() || takes(digest, payload.len(), left);
        let data = if is_taken { Some(self.decode(payload)?) } else { None };
        if let Some(received) = received {
            self.begin_epoch(acknowledgement, received);
        }
        let Some(data) = data else { return Ok(Accepted::NoRoom(digest)) };
        self.requests.push(digest);
        Ok(Accepted::New(data))
    }

    /// The response that `acknowledgement` names: `Some(Some(index into issued))`, or `Some(None)` for the token that
    /// this epoch acknowledges. `None`: no response of this session's.
    fn acknowledged_by(&self, acknowledgement: &[u8; BLOCK]) -> Option<Option<usize>> {
        let iv = self.acknowledgement.unwrap_or(FIRST_IV);
        let is = |token: &Token| self.cipher.encrypt(&mut { iv }, token) == acknowledgement;
        if let Some(at) = self.issued.iter().rposition(|issued| is(&issued.token)) {
            return Some(Some(at));
        }
        (self.acknowledgement.is_some() && is(&self.token)).then_some(None)
    }

    fn begin_epoch(&mut self, acknowledgement: [u8; BLOCK], received: Option<usize>) {
        if let Some(at) = received {
            let Issued { token, end, iv } = self.issued.swap_remove(at);
            self.outbound.drain(..end);
            // The budget counts the length, not the capacity.
            if self.outbound.is_empty() || self.outbound.capacity() > 2 * self.outbound.len() + SPARE {
                self.outbound.shrink_to_fit();
            }
            self.outbound_iv = iv;
            self.token = token;
            // The tokens of the old epoch stand for bytes that begin where the old epoch began. The client may still
            // read such a response, but cannot acknowledge it any more.
            self.issued.clear();
        }
        if let Some(old) = self.acknowledgement.replace(acknowledgement) {
            self.older.rotate_left(1);
            self.older[EPOCHS_KEPT - 1] = Some(old);
        }
        self.requests.clear();
    }

    /// The bytes for the Community in the payload of a request.
    fn decode(&mut self, payload: &[u8]) -> Result<Vec<u8>, RequestError> {
        let mut iv = self.inbound_iv;
        let clear = match (payload.is_empty(), self.version) {
            (true, _) => Vec::new(),
            (false, 0) => payload.to_vec(),
            (false, _) => self.cipher.decrypt(&mut iv, payload).ok_or(RequestError::Payload)?,
        };
        let data = match self.kind {
            TunnelKind::Polling => clear,
            TunnelKind::Hybrid => {
                let mut data = Vec::new();
                envelope::each_record(&clear, |on, bytes| {
                    if on == self.connection {
                        data.extend_from_slice(bytes);
                    }
                })
                .map_err(RequestError::Envelope)?;
                data
            }
        };
        self.inbound_iv = iv;
        Ok(data)
    }

    /// The response to the newest request: `token`, which must be fresh, and all bytes that the client has not
    /// acknowledged.
    pub fn respond(&mut self, token: Token) -> Vec<u8> {
        self.respond_some(token, usize::MAX)
    }

    /// As [`Self::respond`], with at most `most` of the bytes. The others follow in later responses.
    pub fn respond_some(&mut self, token: Token, most: usize) -> Vec<u8> {
        let mut iv = self.outbound_iv;
        let some = &self.outbound[..most.min(self.outbound.len())];
        let end = some.len();
        let payload = match self.kind {
            TunnelKind::Polling => None,
            TunnelKind::Hybrid => Some(envelope::record(self.connection, some)),
        };
        let payload = payload.as_deref().unwrap_or(some);
        let body = if self.version == 0 || payload.is_empty() {
            envelope::response(&token, payload)
        } else {
            envelope::response(&token, &self.cipher.encrypt(&mut iv, payload))
        };
        if self.issued.len() == TOKENS_KEPT {
            self.issued.remove(0);
        }
        self.issued.push(Issued { token, end, iv });
        body
    }

    /// The response to a superseded or stale request.
    pub fn empty(&self) -> Vec<u8> {
        envelope::response(&self.token, &[])
    }

    /// Adds bytes of the Community for the client.
    pub fn push(&mut self, bytes: &[u8]) {
        self.outbound.extend_from_slice(bytes);
    }

    /// Number of bytes that the client has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.outbound.len()
    }
}

#[cfg(test)]
mod tests;
