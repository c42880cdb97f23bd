//! A tunnel client, as the recordings of real ones show it.

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    time::{sleep, timeout},
};

use super::{Route, connect::connect_failure};
use crate::{
    runtime::scratch,
    wire::{
        message::{Reader, Writer},
        tunnel::{
            cipher::{BLOCK, Cipher, FIRST_IV, SECRET, agree_with, public_of},
            envelope::{self, TunnelKind as Kind},
        },
    },
};

/// How long data waits for the held request's response before it goes beside it.
const PATIENCE: Duration = Duration::from_secs(1);
/// A lost response: the identical request again at once, then so often, so many times.
const RETRY_EVERY: Duration = Duration::from_secs(3);
const RETRIES: u32 = 5;
/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 32 * 1024 * 1024;
/// The stream's number inside a hybrid session.
const CONNECTION: u32 = 1;

/// What a session is over by: for the table of errors.
type Failure = String;

struct Http {
    sender: http1::SendRequest<Full<Bytes>>,
    prefix: String,
}

impl Http {
    async fn open(route: &Route) -> Result<Self, Failure> {
        let (tcp, prefix) = route.http().await.map_err(|error| connect_failure(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(tcp)).await.map_err(|error| format!("HTTP: {error}"))?;
        tokio::spawn(connection);
        Ok(Self { sender, prefix })
    }

    async fn post(&mut self, route: &Route, path: &str, body: Bytes) -> Result<(u16, Bytes), Failure> {
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

/// What both sides of a session know, on the client's side.
struct Session {
    kind: Kind,
    name: String,
    version: u32,
    cipher: Cipher,
    token: Vec<u8>,
    /// The acknowledgement of that token, once it was made.
    acknowledgement: Option<Vec<u8>>,
    acknowledgement_iv: [u8; BLOCK],
    sent_iv: [u8; BLOCK],
    received_iv: [u8; BLOCK],
}

fn malformed<T>(what: Option<T>) -> Result<T, Failure> {
    what.ok_or_else(|| "tunnel: a malformed response".to_owned())
}

fn path(kind: Kind, name: &str) -> String {
    let number = match kind {
        Kind::Polling => 35,
        Kind::Hybrid => 39,
    };
    format!("/CommunityCBR/CC.{number}.{name}/")
}

impl Session {
    async fn open(kind: Kind, route: &Route, http: &mut Http) -> Result<Self, Failure> {
        let mut secret = [0; SECRET];
        getrandom::fill(&mut secret).map_err(|error| error.to_string())?;
        let mut body = Writer::new();
        body.u32(0).u32(1).opaque(&public_of(&secret));
        if kind == Kind::Hybrid {
            let open = [&b"S"[..], &CONNECTION.to_be_bytes(), b"C"].concat();
            body.raw(&envelope::record(0, &open));
        }
        let (status, answer) = http.post(route, &path(kind, ""), body.0.into()).await?;
        if status != 200 {
            return Err(format!("tunnel: refused with {status}"));
        }
        let mut reader = Reader(&answer);
        let mut opened = || {
            let (_, _, version, name) = (reader.u32()?, reader.string()?, reader.u32()?, reader.string()?);
            let cipher = agree_with(reader.opaque()?, &secret)?.cipher;
            let name = String::from_utf8(name.to_vec()).ok()?;
            Some((version, name, cipher, reader.opaque()?.to_vec()))
        };
        let (version, name, cipher, token) = malformed(opened())?;
        Ok(Self {
            kind,
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

    fn path(&self) -> String {
        path(self.kind, &self.name)
    }

    fn request(&mut self, data: &[u8]) -> Bytes {
        let (cipher, iv, token) = (&self.cipher, &mut self.acknowledgement_iv, &self.token);
        let acknowledgement = self.acknowledgement.get_or_insert_with(|| cipher.encrypt(iv, token));
        let mut payload = match self.kind {
            Kind::Polling => data.to_vec(),
            Kind::Hybrid => envelope::record(CONNECTION, data),
        };
        if self.version > 0 && !payload.is_empty() {
            payload = self.cipher.encrypt(&mut self.sent_iv, &payload);
        }
        let mut body = Writer::new();
        body.u32(0).opaque(acknowledgement).raw(&payload);
        body.0.into()
    }

    /// The stream's bytes in a response.
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
        let (token, payload) = malformed(parts())?;
        self.token = token;
        self.acknowledgement = None;
        let clear = match (payload.is_empty(), self.version) {
            (true, _) | (_, 0) => payload.to_vec(),
            _ => malformed(self.cipher.decrypt(&mut self.received_iv, payload))?,
        };
        if self.kind == Kind::Polling {
            return Ok(clear);
        }
        let mut data = Vec::new();
        envelope::each_record(&clear, |on, bytes| {
            if on == CONNECTION {
                data.extend_from_slice(bytes);
            }
        })
        .map_err(|error| format!("tunnel: a malformed response: {error}"))?;
        Ok(data)
    }
}

/// What is there to be sent; `None` at the client's end.
async fn outgoing(stream: &mut DuplexStream) -> Option<Vec<u8>> {
    poll_fn(|cx| scratch::poll_read(stream, cx, |bytes, _| bytes.to_vec())).await.ok().flatten()
}

type Posted = Pin<Box<dyn Future<Output = Result<(Http, (u16, Bytes)), Failure>> + Send>>;

/// Posts; after a lost response, the identical request again on a new connection.
fn post(route: Arc<Route>, path: String, mut http: Option<Http>, body: Bytes) -> Posted {
    Box::pin(async move {
        let mut tries = 0;
        loop {
            let once = async {
                let mut connection = match http.take() {
                    Some(connection) => connection,
                    None => Http::open(&route).await?,
                };
                let answer = connection.post(&route, &path, body.clone()).await?;
                Ok((connection, answer))
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

/// Carries the bytes of `stream` through a session of its own, until one of them ends.
///
/// # Errors
/// Why it ended, unless the client itself did.
pub(super) async fn drive(
    kind: Kind,
    route: Arc<Route>,
    poll: Duration,
    mut stream: DuplexStream,
) -> Result<(), Failure> {
    let mut http = Http::open(&route).await?;
    let mut session = Session::open(kind, &route, &mut http).await?;
    match kind {
        Kind::Polling => poll_on(&mut session, &route, poll, &mut stream, http).await,
        Kind::Hybrid => hold_on(&mut session, &route, &mut stream, http).await,
    }
}

async fn poll_on(
    session: &mut Session,
    route: &Arc<Route>,
    poll: Duration,
    stream: &mut DuplexStream,
    http: Http,
) -> Result<(), Failure> {
    let mut http = Some(http);
    loop {
        let data = match timeout(poll, outgoing(stream)).await {
            Ok(Some(data)) => data,
            Ok(None) => return Ok(()),
            Err(_) => Vec::new(),
        };
        let body = session.request(&data);
        let (kept, answer) = post(Arc::clone(route), session.path(), http.take(), body).await?;
        http = Some(kept);
        let payload = session.response(answer)?;
        if stream.write_all(&payload).await.is_err() {
            return Ok(());
        }
    }
}

async fn hold_on(
    session: &mut Session,
    route: &Arc<Route>,
    stream: &mut DuplexStream,
    http: Http,
) -> Result<(), Failure> {
    // A real client's first request brings its Handshake.
    let first = match timeout(PATIENCE, outgoing(stream)).await {
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
                timeout(PATIENCE, &mut held).await.ok().transpose()?
            }
        };
        let http = match posted {
            Some((http, answer)) => {
                let payload = session.response(answer)?;
                if stream.write_all(&payload).await.is_err() {
                    return Ok(());
                }
                Some(http)
            }
            None => None,
        };
        let superseded = http.is_none();
        let next = post(Arc::clone(route), session.path(), http, session.request(&data));
        let before = std::mem::replace(&mut held, next);
        if superseded {
            // It comes to its end by itself, and no one reads what it brings.
            tokio::spawn(before);
        }
    }
}
