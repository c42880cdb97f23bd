//! One tunnel session, without sockets and clocks: what was consumed, what was received.
//!
//! A client sends one request after another and says in each, by its acknowledgement, which
//! response it has received last. Requests with the same acknowledgement make an **epoch**:
//! the client has received nothing since. Within an epoch
//! - the first request, and any that differs from those before it, is **new**: its payload is
//!   consumed, once;
//! - one equal to the newest is a retry of it: nothing is consumed;
//! - one equal to an older one is **stale**: a late retry of a request whose response the
//!   client no longer reads. It gets an empty response and steals nothing.
//!
//! ```text
//!                 new request, same acknowledgement
//!                        ┌────────┐
//!                        ▼        │
//!   opened ── new ──▶  epoch n ───┘ ── newest, or previous, token acknowledged ──▶ epoch n+1
//!                      │    ▲
//!                      └────┘ retry (answered again) | stale (answered empty)
//! ```
//!
//! A response carries a fresh token and every payload byte that is not acknowledged. Which
//! bytes a token stands for is kept until its epoch ends, so a token acknowledges exactly what
//! its response carried. A superseded or stale response repeats the token that the client has
//! acknowledged already: should it be read after all, it claims nothing.

use std::hash::{BuildHasher, RandomState};

use crate::wire::tunnel::{
    cipher::{BLOCK, Cipher, FIRST_IV},
    envelope::{self, Kind, Malformed},
};

/// Bytes of a token. Five, as in the recordings: its acknowledgement is one RC2 block.
pub const TOKEN: usize = 5;
/// A response's token.
pub type Token = [u8; TOKEN];

/// How many tokens of one epoch are kept, the newest among them. Each late copy of an answered
/// request takes one, while the client may still acknowledge the answer that it read: it sends
/// about five copies.
const TOKENS_KEPT: usize = 16;
/// How many epochs back a late retry is still known as one.
const EPOCHS_KEPT: usize = 4;
/// How many requests an epoch may have. A client sends one a second beside the one that it waits
/// for, and gives up long before.
const REQUESTS_KEPT: usize = 64;
/// Bytes of a buffer that may stand empty behind what is held.
const SPARE: usize = 4 * 1024;

/// Digests of requests: keyed, so that no client can make two of its own collide on purpose.
static DIGESTS: std::sync::LazyLock<RandomState> = std::sync::LazyLock::new(RandomState::new);

/// A response that was sent in this epoch.
struct Issued {
    token: Token,
    /// How many of the outbound bytes it carried.
    end: usize,
    /// The outbound chain behind them.
    iv: [u8; BLOCK],
}

/// What a request turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// New. The bytes for the Community, in order; the request supersedes those before it.
    New(Vec<u8>),
    /// The newest request again. It supersedes its first copy.
    Again,
    /// A late retry of a request that is no longer the newest: answer with [`Session::empty`].
    Stale,
}

/// A request that is refused; the session stays as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The body is not the tunnel's.
    Malformed(Malformed),
    /// The acknowledgement is of no token that the client may have.
    Acknowledgement,
    /// The payload does not decrypt.
    Payload,
    /// The client has read none of very many responses.
    Unread,
}

/// See the module's page.
pub struct Session {
    kind: Kind,
    version: u32,
    /// Hybrid: the virtual connection that carries the stream.
    connection: u32,
    cipher: Cipher,
    /// The acknowledgement of this epoch: its ciphertext, the next one's initial vector.
    acknowledgement: Option<[u8; BLOCK]>,
    /// Acknowledgements of the epochs before, newest last.
    older: [Option<[u8; BLOCK]>; EPOCHS_KEPT],
    /// The token that this epoch acknowledges.
    token: Token,
    issued: Vec<Issued>,
    /// Digests of this epoch's requests, newest last.
    requests: Vec<u64>,
    /// Bytes for the client that it has not acknowledged.
    outbound: Vec<u8>,
    /// The outbound chain in front of `outbound`.
    outbound_iv: [u8; BLOCK],
    inbound_iv: [u8; BLOCK],
    /// The Community has said its last byte.
    ended: bool,
}

impl Session {
    /// A session whose first response carried `token`.
    pub fn new(kind: Kind, version: u32, connection: u32, cipher: Cipher, token: Token) -> Self {
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
            ended: false,
        }
    }

    /// Which tunnel it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes a request's body in.
    ///
    /// # Errors
    /// Why the request is refused. Nothing has changed then.
    pub fn accept(&mut self, body: &[u8]) -> Result<Accepted, Refused> {
        let envelope::Later { acknowledgement, payload } = envelope::later(body).map_err(Refused::Malformed)?;
        let acknowledgement: [u8; BLOCK] = acknowledgement.try_into().map_err(|_| Refused::Acknowledgement)?;
        let digest = DIGESTS.hash_one(body);
        if self.acknowledgement == Some(acknowledgement) {
            if let Some(at) = self.requests.iter().position(|known| *known == digest) {
                return Ok(if at + 1 == self.requests.len() { Accepted::Again } else { Accepted::Stale });
            }
            // To forget one would be to consume a late copy of it again.
            if self.requests.len() == REQUESTS_KEPT {
                return Err(Refused::Unread);
            }
            let data = self.decode(payload)?;
            self.requests.push(digest);
            return Ok(Accepted::New(data));
        }
        let Some(received) = self.acknowledged_by(&acknowledgement) else {
            let late = self.older.contains(&Some(acknowledgement));
            return if late { Ok(Accepted::Stale) } else { Err(Refused::Acknowledgement) };
        };
        let data = self.decode(payload)?;
        self.begin_epoch(acknowledgement, received);
        self.requests.push(digest);
        Ok(Accepted::New(data))
    }

    /// Which response `acknowledgement` says was received: an index into `issued`, or `None`
    /// inside for the token that was acknowledged before.
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
            // What is held is counted by its length.
            if self.outbound.is_empty() || self.outbound.capacity() > 2 * self.outbound.len() + SPARE {
                self.outbound.shrink_to_fit();
            }
            self.outbound_iv = iv;
            self.token = token;
            // A token of the epoch before stands for bytes from its beginning; the newest
            // response may be read still, but it can't be acknowledged any more.
            self.issued.clear();
        }
        if let Some(old) = self.acknowledgement.replace(acknowledgement) {
            self.older.rotate_left(1);
            self.older[EPOCHS_KEPT - 1] = Some(old);
        }
        self.requests.clear();
    }

    /// Whether a request may be of this session's client: it carries an acknowledgement that only
    /// the client can have made. Changes nothing.
    pub fn knows(&self, body: &[u8]) -> bool {
        let acknowledgement = envelope::later(body).ok().and_then(|later| later.acknowledgement.try_into().ok());
        acknowledgement.is_some_and(|acknowledgement: [u8; BLOCK]| {
            self.acknowledgement == Some(acknowledgement)
                || self.older.contains(&Some(acknowledgement))
                || self.acknowledged_by(&acknowledgement).is_some()
        })
    }

    /// The Community's bytes in a request's payload.
    fn decode(&mut self, payload: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut iv = self.inbound_iv;
        let clear = match (payload.is_empty(), self.version) {
            (true, _) => Vec::new(),
            (false, 0) => payload.to_vec(),
            (false, _) => self.cipher.decrypt(&mut iv, payload).ok_or(Refused::Payload)?,
        };
        let data = match self.kind {
            Kind::Polling => clear,
            Kind::Hybrid => {
                let mut data = Vec::new();
                envelope::each_record(&clear, |on, bytes| {
                    if on == self.connection {
                        data.extend_from_slice(bytes);
                    }
                })
                .map_err(Refused::Malformed)?;
                data
            }
        };
        self.inbound_iv = iv;
        Ok(data)
    }

    /// The body for the newest request: `token`, which must be fresh, and all that the client
    /// has not acknowledged.
    pub fn respond(&mut self, token: Token) -> Vec<u8> {
        self.respond_some(token, usize::MAX)
    }

    /// As [`Self::respond`], with `most` bytes of it at the most; the others come later.
    pub fn respond_some(&mut self, token: Token, most: usize) -> Vec<u8> {
        let mut iv = self.outbound_iv;
        let some = &self.outbound[..most.min(self.outbound.len())];
        let end = some.len();
        let payload = match self.kind {
            Kind::Polling => None,
            Kind::Hybrid => Some(envelope::record(self.connection, some)),
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

    /// The body for a superseded or stale request.
    pub fn empty(&self) -> Vec<u8> {
        envelope::response(&self.token, &[])
    }

    /// Adds bytes of the Community's for the client.
    pub fn push(&mut self, bytes: &[u8]) {
        self.outbound.extend_from_slice(bytes);
    }

    /// Bytes that the client has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.outbound.len()
    }

    /// The Community has said its last byte.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether the Community has said its last byte.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the client has it all: then the session is gone.
    pub fn is_over(&self) -> bool {
        self.ended && self.outbound.is_empty()
    }
}

#[cfg(test)]
mod tests;
