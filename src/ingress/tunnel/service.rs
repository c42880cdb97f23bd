//! Opens sessions, passes requests to them, and forgets them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;

use super::{
    TunnelSettings,
    handle::SessionHandle,
    live::LiveSession,
    registry::Registry,
    response::TunnelResponse,
    session::TunnelSession,
    stream::TunnelStream,
    streaming::{StreamingConnection, StreamingHandle, StreamingTimes, Upload},
    token::random_token,
};
use crate::{
    limits::{
        budget::{Budget, Exception, HeldBytes},
        tally::{Permit, Tally},
    },
    net::{
        Port,
        address::{counted_address, lies_in},
    },
    stream::{Arrival, Core, Duplex, Stream, Via},
    telemetry::outcome::{Refusal, TunnelOutcome},
    wire::{
        Transport,
        tunnel::{
            cipher::agree,
            envelope::{self, TunnelKind},
            name::{NodeTag, SessionName},
            stream,
        },
    },
};

/// How long a session that is over still recognizes retries of its client. Real clients give up after about five
/// retries, at intervals of 3 s.
const LINGER: Duration = Duration::from_secs(15);

/// The sessions of the tunnel.
pub struct Service {
    /// Polling and hybrid sessions.
    registry: Registry<SessionHandle>,
    streaming: Registry<StreamingHandle>,
    settings: ArcSwap<TunnelSettings>,
    core: Arc<dyn Core>,
    budget: Arc<Budget>,
    tally: Arc<Tally>,
    /// The node of a cluster that this is.
    node: Option<NodeTag>,
}

impl Service {
    /// A service that hands its sessions to `core`. Must be called on a tokio runtime: for as long as the service
    /// exists, a task ends sessions whose clients are gone.
    pub fn start(settings: TunnelSettings, core: Arc<dyn Core>) -> Arc<Self> {
        Self::start_on_node(settings, core, None)
    }

    /// As [`Self::start`], on this node of a cluster: the names of the sessions begin with its tag.
    pub fn start_on_node(settings: TunnelSettings, core: Arc<dyn Core>, node: Option<NodeTag>) -> Arc<Self> {
        let service = Arc::new(Self {
            registry: Registry::default(),
            streaming: Registry::default(),
            settings: ArcSwap::from_pointee(settings),
            budget: core.budget(),
            core,
            tally: Arc::default(),
            node,
        });
        tokio::spawn(forget_sessions(Arc::downgrade(&service)));
        service
    }

    /// Uses new settings. Requests that wait already are not affected.
    pub fn reconfigure(&self, settings: TunnelSettings) {
        self.settings.store(Arc::new(settings));
    }

    /// The number of sessions at present, including those that have ended but may still be asked for.
    pub fn sessions(&self) -> usize {
        self.tally.count()
    }

    /// Counts one more session of `client`.
    fn enter(&self, client: IpAddr) -> Result<Permit, Refusal> {
        let settings = self.settings.load();
        let mut place = self.tally.enter(settings.sessions).map_err(|_| Refusal::TunnelSessions)?;
        if !lies_in(&settings.exempt, client) {
            place.claim(settings.sessions_per_address, client).map_err(|_| Refusal::TunnelSessionsPerAddress)?;
        }
        Ok(place)
    }

    /// The name of a new session.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new_name(&self) -> Result<SessionName, getrandom::Error> {
        SessionName::random_on(self.node)
    }

    /// Opens a session for a first request with this body.
    pub fn open(&self, kind: TunnelKind, body: &[u8], client: SocketAddr, port: impl Into<Port>) -> TunnelResponse {
        let port = port.into();
        let opening = match envelope::opening(kind, body) {
            Ok(opening) => opening,
            Err(error) => {
                debug!(%client, port = port.number, %error, "tunnel: a first request is refused");
                return TunnelResponse::Failed(TunnelOutcome::Malformed);
            }
        };
        // This is checked first, because the agreement costs much.
        let place = match self.enter(client.ip()) {
            Ok(place) => place,
            Err(refusal) => return TunnelResponse::Refused(refusal, TunnelOutcome::Full),
        };
        let (agreement, name) = match (agree(opening.public), self.new_name()) {
            (Ok(Some(agreement)), Ok(name)) => (agreement, name),
            (Ok(None), _) => return TunnelResponse::Failed(TunnelOutcome::Malformed),
            _ => return TunnelResponse::Failed(TunnelOutcome::Failed),
        };
        let (settings, token, now) = (self.settings.load(), random_token(), Instant::now());
        let session = TunnelSession::new(kind, settings.version, opening.connection, agreement.cipher, token);
        let held = HeldBytes::none(&self.budget, client.ip());
        let session = SessionHandle::new(LiveSession::new(session, settings.window, held, place, now));
        let arrival = Arrival {
            stream: Stream::other(TunnelStream::new(Arc::clone(&session))),
            first: Bytes::new(),
            via: Via { client, port, transport: transport(kind), accepted: now.into_std() },
        };
        if let Err(refused) = self.core.take(arrival) {
            return TunnelResponse::Refused(refused.0, TunnelOutcome::Refused);
        }
        self.registry.insert(name, session);
        let body = envelope::opened(settings.version, &name, &agreement.public, &token);
        TunnelResponse::Body(body.into(), TunnelOutcome::Opened)
    }

    /// What a request of this session may have when its body has no room in the budget; `None`: there is no such session.
    /// Without it, a session whose own bytes use up the limit of its address would stand still.
    pub fn exception(&self, kind: TunnelKind, name: &SessionName) -> Option<Exception> {
        let session = self.registry.get(name).filter(|session| session.kind() == kind)?;
        Some(session.change(LiveSession::exception))
    }

    /// As [`Self::exception`], for a request of a streaming session: one body at a time may exceed the limit of its address.
    pub fn upload_exception(&self, name: &SessionName) -> Option<Exception> {
        Some(self.streaming.get(name)?.exception())
    }

    /// Passes a later request of `client` to its session, and waits for the response. A body of more than
    /// [`LITTLE`](crate::limits::budget::LITTLE) bytes must be counted in the budget.
    pub async fn request(
        &self,
        kind: TunnelKind,
        name: SessionName,
        body: impl AsRef<[u8]>,
        client: IpAddr,
    ) -> TunnelResponse {
        let Some(session) = self.registry.get(&name).filter(|session| session.kind() == kind) else {
            return Self::unknown();
        };
        let settings = self.settings.load_full();
        if settings.same_address && counted_address(session.client()) != counted_address(client) {
            return TunnelResponse::Failed(TunnelOutcome::OtherAddress);
        }
        match session.request(body, &settings).await {
            Ok(response) => {
                if response.outcome() == TunnelOutcome::Gone {
                    self.registry.remove(&name);
                }
                response
            }
            // The response is the same as when there is no such session: who has a name but not the acknowledgement
            // does not learn that the session exists.
            Err(error) => {
                debug!(refused = %error, "tunnel: a request is refused");
                TunnelResponse::Failed(TunnelOutcome::NotAcknowledged)
            }
        }
    }

    /// Opens a streaming session on `stream`, the connection of a GET request that has been read.
    ///
    /// # Errors
    /// The client is refused. It can be told why in its stream.
    pub fn open_stream(&self, stream: impl Duplex + 'static, opening: StreamOpening) -> Result<(), RefusedStream> {
        let StreamOpening { name, head, is_chunked, client, port } = opening;
        let (place, refusal) = match self.enter(client.ip()) {
            Ok(place) => (Some(place), None),
            Err(refusal) => (None, Some(refusal)),
        };
        let now = Instant::now();
        let session = StreamingHandle::new(client.ip(), place, now);
        let beginning = stream::beginning(&name);
        let stream = StreamingConnection::new(stream, Arc::clone(&session), is_chunked, head, &beginning);
        let stream = Stream::other(stream);
        if let Some(refusal) = refusal {
            return Err(RefusedStream { refusal, outcome: TunnelOutcome::Full, stream });
        }
        // The client may send its first request as soon as it has the name, so the session is found before.
        self.streaming.insert(name, session);
        let via = Via { client, port, transport: Transport::HttpStreaming, accepted: now.into_std() };
        self.core.take(Arrival { stream, first: Bytes::new(), via }).map_err(|refused| {
            self.streaming.remove(&name);
            let (refusal, Arrival { stream, .. }) = *refused;
            RefusedStream { refusal, outcome: TunnelOutcome::Refused, stream }
        })
    }

    /// Passes what a streaming client's POST request brought to its session, and waits until the core has read it.
    pub async fn upload(&self, name: SessionName, body: Vec<u8>, at: usize, held: HeldBytes) -> TunnelResponse {
        let Some(session) = self.streaming.get(&name) else { return Self::unknown() };
        if self.settings.load().same_address && counted_address(session.client()) != counted_address(held.client()) {
            return TunnelResponse::Failed(TunnelOutcome::OtherAddress);
        }
        match session.take(Upload { body, at, _held: held }).await {
            outcome @ (TunnelOutcome::Taken | TunnelOutcome::AfterEnd) => {
                TunnelResponse::Body(stream::post_response(&name).into(), outcome)
            }
            outcome => TunnelResponse::Failed(outcome),
        }
    }

    /// The response to a request for a session that does not exist, or whose URL has no legal name.
    pub fn unknown() -> TunnelResponse {
        TunnelResponse::Failed(TunnelOutcome::Unknown)
    }
}

/// A streaming client's GET request.
pub struct StreamOpening {
    /// The new session's name.
    pub name: SessionName,
    /// The head of the response, which is written before anything else.
    pub head: Vec<u8>,
    /// Whether the response is in chunks.
    pub is_chunked: bool,
    /// The client's address.
    pub client: SocketAddr,
    /// The listener's port.
    pub port: Port,
}

/// A streaming client that is refused.
pub struct RefusedStream {
    /// Why.
    pub refusal: Refusal,
    /// How the request is counted.
    pub outcome: TunnelOutcome,
    /// The client's stream. The response's head goes before whatever is written to it.
    pub stream: Stream,
}

/// The transport that a tunnel counts as.
pub fn transport(kind: TunnelKind) -> Transport {
    match kind {
        TunnelKind::Polling => Transport::HttpPolling,
        TunnelKind::Hybrid => Transport::HttpHybrid,
    }
}

/// Ends sessions that have timed out, and forgets those that nobody asks for any more, until the service is dropped.
async fn forget_sessions(service: Weak<Service>) {
    loop {
        let Some(live) = service.upgrade() else { return };
        let (settings, now) = (live.settings.load_full(), Instant::now());
        let timeout = settings.session_timeout;
        live.registry.forget(|session| session.change(|live| live.expire(now, timeout, LINGER)));
        let times = StreamingTimes { session_timeout: timeout, keep_alive: settings.stream_keep_alive, linger: LINGER };
        live.streaming.forget(|session| session.sweep(now, &times));
        drop(live);
        let shortest = times.keep_alive.map_or(timeout, |keep_alive| keep_alive.min(timeout));
        tokio::time::sleep((shortest / 8).clamp(Duration::from_millis(20), Duration::from_secs(1))).await;
    }
}

#[cfg(test)]
mod tests;
