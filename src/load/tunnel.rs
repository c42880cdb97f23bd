//! The client's side of an HTTP tunnel, as the recordings in `tests/fixtures/transcripts` show real clients.
//!
//! ```text
//!  polling:  request with data, or empty after `poll` ──▶ response ──▶ next request
//!  hybrid:   request is held ──┬── response ──▶ next request is held
//!                              └── data, and no response within a second ──▶ a second request, on another
//!                                  connection, takes the place of the held one
//! ```

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    time::{sleep, timeout},
};

use super::connect::{LoadRoute, connect_failure};
use crate::{
    runtime::scratch,
    wire::{
        message::{Reader, Writer},
        tunnel::{
            cipher::{BLOCK, Cipher, FIRST_IV, SECRET, agree_with, public_of},
            envelope::{self, TunnelKind},
        },
    },
};

/// How long a hybrid client's data waits for the response to the held request before it is sent with a second
/// request.
const HELD_TIMEOUT: Duration = Duration::from_secs(1);
/// After a lost response a client sends the identical request again: at once, then at this interval.
const RETRY_EVERY: Duration = Duration::from_secs(3);
/// How often a request is sent again.
const RETRIES: u32 = 5;
/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 32 * 1024 * 1024;
/// The number of the virtual connection inside a hybrid session.
const CONNECTION: u32 = 1;

/// Why a session ended: a text for the report's table of errors.
type Failure = String;

/// An HTTP connection of a tunnel client.
struct TunnelHttp {
    sender: http1::SendRequest<Full<Bytes>>,
    /// What precedes the path of each request: empty, or scheme and host for a proxy.
    prefix: String,
}

impl TunnelHttp {
    async fn open(route: &LoadRoute) -> Result<Self, Failure> {
        let (tcp, prefix) = route.http().await.map_err(|error| connect_failure(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(tcp)).await.map_err(|error| format!("HTTP: {error}"))?;
        tokio::spawn(connection);
        Ok(Self { sender, prefix })
    }

    async fn post(&mut self, route: &LoadRoute, path: &str, body: Bytes) -> Result<(u16, Bytes), Failure> {
        let request = Request::post(format!("{}{path}", self.prefix))
            .header(header::HOST, route.http.to_string())
            .header(header::CONTENT_TYPE, "Application/Octet-Stream")
            .body(Full::new(body))
            .map_err(|error| format!("HTTP: {error}"))?;
        self.sender.ready().await.map_err(|error| format!("HTTP: {error}"))?;
        let response = self.sender.send_request(request).await.map_err(|error| format!("HTTP: {error}"))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
        Ok((status, body.map_err(|error| format!("HTTP: {error}"))?.to_bytes()))
    }
}

/// The client's state of one tunnel session. Without I/O: it makes the bodies of requests and reads those of
/// responses.
struct TunnelClientSession {
    kind: TunnelKind,
    name: String,
    /// From version 1, payload is encrypted.
    version: u32,
    cipher: Cipher,
    /// The token of the newest response.
    token: Vec<u8>,
    /// The acknowledgement of that token, once a request needed it. All copies of a request have the same.
    acknowledgement: Option<Vec<u8>>,
    /// The CBC chains: of acknowledgements, of payload that is sent, of payload that is received.
    acknowledgement_iv: [u8; BLOCK],
    sent_iv: [u8; BLOCK],
    received_iv: [u8; BLOCK],
}

/// `None` is a response that cannot be read.
fn or_malformed<T>(parts: Option<T>) -> Result<T, Failure> {
    parts.ok_or_else(|| "tunnel: a malformed response".to_owned())
}

/// The path of a session's requests; `name` is empty in the first request.
fn path(kind: TunnelKind, name: &str) -> String {
    let number = match kind {
        TunnelKind::Polling => 35,
        TunnelKind::Hybrid => 39,
    };
    format!("/CommunityCBR/CC.{number}.{name}/")
}

/// A session whose first request is on its way.
struct TunnelOpening {
    kind: TunnelKind,
    secret: [u8; SECRET],
}

impl TunnelOpening {
    fn new(kind: TunnelKind) -> Result<Self, Failure> {
        let mut secret = [0; SECRET];
        getrandom::fill(&mut secret).map_err(|error| error.to_string())?;
        Ok(Self { kind, secret })
    }

    /// The body of the first request.
    fn request(&self) -> Bytes {
        let mut body = Writer::new();
        body.u32(0).u32(1).opaque(&public_of(&self.secret));
        if self.kind == TunnelKind::Hybrid {
            let open = [&b"S"[..], &CONNECTION.to_be_bytes(), b"C"].concat();
            body.raw(&envelope::record(0, &open));
        }
        body.0.into()
    }

    /// Reads the first response: its status and its body.
    fn response(self, (status, body): (u16, Bytes)) -> Result<TunnelClientSession, Failure> {
        if status != 200 {
            return Err(format!("tunnel: refused with {status}"));
        }
        let mut reader = Reader(&body);
        let mut opened = || {
            let (_, _, version, name) = (reader.u32()?, reader.string()?, reader.u32()?, reader.string()?);
            let cipher = agree_with(reader.opaque()?, &self.secret)?.cipher;
            let name = String::from_utf8(name.to_vec()).ok()?;
            Some((version, name, cipher, reader.opaque()?.to_vec()))
        };
        let (version, name, cipher, token) = or_malformed(opened())?;
        Ok(TunnelClientSession {
            kind: self.kind,
            name,
            version,
            cipher,
            token,
            acknowledgement: None,
            acknowledgement_iv: FIRST_IV,
            sent_iv: FIRST_IV,
            received_iv: FIRST_IV,
        })
    }
}

impl TunnelClientSession {
    fn path(&self) -> String {
        path(self.kind, &self.name)
    }

    /// The body of a request that carries `data`.
    fn request(&mut self, data: &[u8]) -> Bytes {
        let (cipher, iv, token) = (&self.cipher, &mut self.acknowledgement_iv, &self.token);
        let acknowledgement = self.acknowledgement.get_or_insert_with(|| cipher.encrypt(iv, token));
        let mut payload = match self.kind {
            TunnelKind::Polling => data.to_vec(),
            TunnelKind::Hybrid => envelope::record(CONNECTION, data),
        };
        if self.version > 0 && !payload.is_empty() {
            payload = self.cipher.encrypt(&mut self.sent_iv, &payload);
        }
        let mut body = Writer::new();
        body.u32(0).opaque(acknowledgement).raw(&payload);
        body.0.into()
    }

    /// Reads a response: its status and its body. Returns the bytes of the stream in it.
    fn response(&mut self, (status, body): (u16, Bytes)) -> Result<Vec<u8>, Failure> {
        match status {
            200 => (),
            404 => return Err("tunnel: the session is gone".to_owned()),
            other => return Err(format!("tunnel: answered with {other}")),
        }
        let mut reader = Reader(&body);
        let mut parts = || {
            let token = reader.opaque()?.to_vec();
            let padding = reader.u8()?;
            reader.bytes(padding.into())?;
            Some((token, reader.0))
        };
        let (token, payload) = or_malformed(parts())?;
        self.token = token;
        self.acknowledgement = None;
        let clear = match (payload.is_empty(), self.version) {
            (true, _) | (_, 0) => payload.to_vec(),
            _ => or_malformed(self.cipher.decrypt(&mut self.received_iv, payload))?,
        };
        if self.kind == TunnelKind::Polling {
            return Ok(clear);
        }
        let mut data = Vec::new();
        envelope::each_record(&clear, |on, bytes| {
            if on == CONNECTION {
                data.extend_from_slice(bytes);
            }
        })
        .map_err(|error| format!("tunnel: an invalid response: {error}"))?;
        Ok(data)
    }
}

/// The next bytes that the client sends; `None` at the end of its stream.
async fn outgoing(stream: &mut DuplexStream) -> Option<Vec<u8>> {
    poll_fn(|cx| scratch::poll_read(stream, cx, |bytes, _| bytes.to_vec())).await.ok().flatten()
}

/// A request on its way: its connection, and status and body of its response.
type PostFuture = Pin<Box<dyn Future<Output = Result<(TunnelHttp, (u16, Bytes)), Failure>> + Send>>;

/// Sends a request on `http`, or on a new connection. After a lost response it sends the identical request
/// again, each time on a new connection.
fn post(route: Arc<LoadRoute>, path: String, mut http: Option<TunnelHttp>, body: Bytes) -> PostFuture {
    Box::pin(async move {
        let mut tries = 0;
        loop {
            let once = async {
                let mut connection = match http.take() {
                    Some(connection) => connection,
                    None => TunnelHttp::open(&route).await?,
                };
                let response = connection.post(&route, &path, body.clone()).await?;
                Ok((connection, response))
            };
            match once.await {
                Ok(posted) => return Ok(posted),
                Err(failure) if tries == RETRIES => return Err(failure),
                Err(_) if tries == 0 => (),
                Err(_) => sleep(RETRY_EVERY).await,
            }
            tries += 1;
        }
    })
}

/// Opens a session and carries the bytes of `stream` through it, until the session or the stream ends.
///
/// # Errors
/// Why the session ended; the end of `stream` is not an error.
pub(super) async fn drive(
    kind: TunnelKind,
    route: Arc<LoadRoute>,
    poll: Duration,
    mut stream: DuplexStream,
) -> Result<(), Failure> {
    let mut http = TunnelHttp::open(&route).await?;
    let opening = TunnelOpening::new(kind)?;
    let response = http.post(&route, &path(kind, ""), opening.request()).await?;
    let mut session = opening.response(response)?;
    match kind {
        TunnelKind::Polling => run_polling(&mut session, &route, poll, &mut stream, http).await,
        TunnelKind::Hybrid => run_hybrid(&mut session, &route, &mut stream, http).await,
    }
}

/// Sends requests one after the other: with data at once, without data every `poll`.
async fn run_polling(
    session: &mut TunnelClientSession,
    route: &Arc<LoadRoute>,
    poll: Duration,
    stream: &mut DuplexStream,
    http: TunnelHttp,
) -> Result<(), Failure> {
    let mut http = Some(http);
    loop {
        let data = match timeout(poll, outgoing(stream)).await {
            Ok(Some(data)) => data,
            Ok(None) => return Ok(()),
            Err(_) => Vec::new(),
        };
        let body = session.request(&data);
        let (kept, response) = post(Arc::clone(route), session.path(), http.take(), body).await?;
        http = Some(kept);
        let payload = session.response(response)?;
        if stream.write_all(&payload).await.is_err() {
            return Ok(());
        }
    }
}

/// Keeps one request at the server, which holds it until it has data for the client.
async fn run_hybrid(
    session: &mut TunnelClientSession,
    route: &Arc<LoadRoute>,
    stream: &mut DuplexStream,
    http: TunnelHttp,
) -> Result<(), Failure> {
    // The second request of a real client carries its Handshake.
    let first = match timeout(HELD_TIMEOUT, outgoing(stream)).await {
        Ok(Some(data)) => data,
        Ok(None) => return Ok(()),
        Err(_) => Vec::new(),
    };
    let body = session.request(&first);
    let mut held = post(Arc::clone(route), session.path(), Some(http), body);
    loop {
        let mut data = Vec::new();
        let posted = tokio::select! {
            posted = &mut held => Some(posted?),
            read = outgoing(stream) => {
                let Some(read) = read else { return Ok(()) };
                data = read;
                timeout(HELD_TIMEOUT, &mut held).await.ok().transpose()?
            }
        };
        let http = match posted {
            Some((http, response)) => {
                let payload = session.response(response)?;
                if stream.write_all(&payload).await.is_err() {
                    return Ok(());
                }
                Some(http)
            }
            None => None,
        };
        let is_superseded = http.is_none();
        let next = post(Arc::clone(route), session.path(), http, session.request(&data));
        let previous = std::mem::replace(&mut held, next);
        if is_superseded {
            // A real client lets the older request end by itself and ignores its response.
            tokio::spawn(previous);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tunnel::{cipher::Agreement, name::SessionName};

    const SERVER_SECRET: [u8; SECRET] = [5; SECRET];
    const FIRST_TOKEN: &[u8] = b"first";

    /// A session that a server has opened, and the server's side of the agreement.
    fn opened(kind: TunnelKind, version: u32) -> (TunnelClientSession, Agreement) {
        let opening = TunnelOpening::new(kind).expect("random numbers");
        let request = opening.request();
        let public = envelope::opening(kind, &request).expect("an opening").public.to_vec();
        let server = agree_with(&public, &SERVER_SECRET).expect("a legal value");
        let name = SessionName::random().expect("random numbers");
        let response = envelope::opened(version, &name, &server.public, FIRST_TOKEN);
        (opening.response((200, response.into())).expect("a session"), server)
    }

    #[test]
    fn a_request_acknowledges_the_newest_response_and_a_copy_is_identical() {
        for (kind, version) in
            [(TunnelKind::Polling, 0), (TunnelKind::Polling, 1), (TunnelKind::Hybrid, 0), (TunnelKind::Hybrid, 1)]
        {
            let (mut session, server) = opened(kind, version);
            let (mut acknowledgement_iv, mut payload_iv) = (FIRST_IV, FIRST_IV);
            let first = session.request(b"");
            let later = envelope::later(&first).expect("a request");
            assert_eq!(
                server.cipher.decrypt(&mut acknowledgement_iv, later.acknowledgement).as_deref(),
                Some(FIRST_TOKEN)
            );
            assert!(later.payload.is_empty());
            assert_eq!(session.request(b""), first);

            let data = match kind {
                TunnelKind::Polling => b"to the client".to_vec(),
                TunnelKind::Hybrid => envelope::record(CONNECTION, b"to the client"),
            };
            let payload = if version == 0 { data } else { server.cipher.encrypt(&mut payload_iv, &data) };
            let response = envelope::response(b"second", &payload);
            assert_eq!(session.response((200, response.into())), Ok(b"to the client".to_vec()));
            let request = session.request(b"to the server");
            let later = envelope::later(&request).expect("a request");
            assert_eq!(
                server.cipher.decrypt(&mut acknowledgement_iv, later.acknowledgement).as_deref(),
                Some(&b"second"[..])
            );
            let clear = match version {
                0 => later.payload.to_vec(),
                _ => server.cipher.decrypt(&mut FIRST_IV.clone(), later.payload).expect("payload"),
            };
            assert!(clear.ends_with(b"to the server"));
        }
    }

    #[test]
    fn a_response_that_ends_the_session_is_an_error() {
        let (mut session, _) = opened(TunnelKind::Polling, 0);
        assert_eq!(session.response((404, Bytes::new())), Err("tunnel: the session is gone".to_owned()));
        assert_eq!(session.response((503, Bytes::new())), Err("tunnel: answered with 503".to_owned()));
        assert_eq!(session.response((200, Bytes::new())), Err("tunnel: a malformed response".to_owned()));
    }
}
