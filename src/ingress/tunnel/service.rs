//! Answers the tunnel's requests.

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
    Settings,
    registry::{self, Registry},
    session::Session,
    shared::{Payload, Reply, Shared, TunnelStream, fresh_token},
};
use crate::{
    limits::{
        budget::{Budget, Held},
        tally::{Place, Tally},
    },
    net::{
        Port,
        address::{counted_address, lies_in},
    },
    stream::{Arrival, Core, Stream, Via},
    telemetry::outcome::{Refusal, TunnelOutcome},
    wire::{
        Transport,
        tunnel::{
            cipher::agree,
            envelope::{self, Kind},
        },
    },
};

/// After its end a session still knows its client's retries for so long: real clients give
/// up after about five, 3 s apart.
const LINGER: Duration = Duration::from_secs(15);

/// What a request is answered with.
#[derive(Debug)]
pub enum Answer {
    /// 200 with this body.
    Body(Payload),
    /// 400: not the tunnel's.
    Malformed,
    /// 404: no such session, or not this client's. The client starts anew by itself.
    Unknown,
    /// 503: no room now.
    Refused(Refusal),
    /// 503: the Community is too slow to take what the client sends.
    Busy,
    /// 500: ours.
    Failed,
}

/// An answer, and what happened, for the metrics.
pub type Outcome = (Answer, TunnelOutcome);

/// The tunnel's sessions and how to answer their requests.
pub struct Service {
    registry: Registry,
    settings: ArcSwap<Settings>,
    core: Arc<dyn Core>,
    budget: Arc<Budget>,
    tally: Arc<Tally>,
}

impl Service {
    /// A service that hands its sessions to `core`. Must be called on a tokio runtime: a task
    /// ends sessions whose clients are gone, for as long as the service lives.
    pub fn start(settings: Settings, core: Arc<dyn Core>) -> Arc<Self> {
        let (registry, settings, budget) = (Registry::default(), ArcSwap::from_pointee(settings), core.budget());
        let service = Arc::new(Self { registry, settings, core, budget, tally: Arc::default() });
        tokio::spawn(sweep(Arc::downgrade(&service)));
        service
    }

    /// Takes up new settings; requests that wait already wait as before.
    pub fn reconfigure(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Sessions at present, those that have ended but may be asked for still among them.
    pub fn sessions(&self) -> usize {
        self.tally.count()
    }

    /// A place for one more session of `client`.
    fn place(&self, client: IpAddr) -> Result<Place, Refusal> {
        let settings = self.settings.load();
        let mut place = self.tally.enter(settings.sessions).map_err(|_| Refusal::TunnelSessions)?;
        if !lies_in(&settings.exempt, client) {
            place.claim(settings.sessions_per_address, client).map_err(|_| Refusal::TunnelSessionsPerAddress)?;
        }
        Ok(place)
    }

    /// Answers the first request of a session.
    pub fn open(&self, kind: Kind, body: &[u8], client: SocketAddr, port: impl Into<Port>) -> Outcome {
        let port = port.into();
        let opening = match envelope::opening(kind, body) {
            Ok(opening) => opening,
            Err(error) => {
                debug!(%client, port = port.number, "tunnel: a first request that {}", error.0);
                return (Answer::Malformed, TunnelOutcome::Malformed);
            }
        };
        // Before the costly part.
        let place = match self.place(client.ip()) {
            Ok(place) => place,
            Err(refusal) => return (Answer::Refused(refusal), TunnelOutcome::Full),
        };
        let (agreement, name) = match (agree(opening.public), registry::fresh_name()) {
            (Ok(Some(agreement)), Ok(name)) => (agreement, name),
            (Ok(None), _) => return (Answer::Malformed, TunnelOutcome::Malformed),
            _ => return (Answer::Failed, TunnelOutcome::Failed),
        };
        let (settings, token) = (self.settings.load(), fresh_token());
        let session = Session::new(kind, settings.version, opening.connection, agreement.cipher, token);
        let shared = Shared::new(session, settings.window, Held::none(&self.budget, client.ip()), place);
        let transport = transport(kind);
        let arrival = Arrival {
            stream: Stream::other(TunnelStream(Arc::clone(&shared))),
            first: Bytes::new(),
            via: Via { client, port, transport, accepted: Instant::now().into_std() },
        };
        if let Err(refused) = self.core.take(arrival) {
            return (Answer::Refused(refused.0), TunnelOutcome::Refused);
        }
        self.registry.insert(name, shared);
        let name = registry::to_text(&name);
        (
            Answer::Body(envelope::opened(settings.version, &name, &agreement.public, &token).into()),
            TunnelOutcome::Opened,
        )
    }

    /// Answers a later request of `client`'s.
    pub async fn request(&self, kind: Kind, name: &str, body: impl AsRef<[u8]>, client: IpAddr) -> Outcome {
        // A name that is none and a name that is not there look the same from outside.
        let Some(name) = registry::from_text(name) else { return (Answer::Unknown, TunnelOutcome::Unknown) };
        let Some(session) = self.registry.get(&name).filter(|session| session.kind() == kind) else {
            return (Answer::Unknown, TunnelOutcome::Unknown);
        };
        let settings = self.settings.load_full();
        if settings.same_address && counted_address(session.client()) != counted_address(client) {
            return (Answer::Unknown, TunnelOutcome::OtherAddress);
        }
        match session.answer(body, &settings).await {
            Reply::Body(body, outcome) => (Answer::Body(body), outcome),
            Reply::Gone => {
                self.registry.remove(&name);
                (Answer::Unknown, TunnelOutcome::Gone)
            }
            // As if it weren't there: whoever has a name but not the acknowledgement learns nothing.
            Reply::Refused(refused) => {
                debug!(?refused, "tunnel: a request is refused");
                (Answer::Unknown, TunnelOutcome::NotAcknowledged)
            }
            Reply::Busy => (Answer::Busy, TunnelOutcome::Busy),
        }
    }
}

/// The transport that a tunnel counts as.
pub fn transport(kind: Kind) -> Transport {
    match kind {
        Kind::Polling => Transport::HttpPolling,
        Kind::Hybrid => Transport::HttpHybrid,
    }
}

async fn sweep(service: Weak<Service>) {
    loop {
        let Some(live) = service.upgrade() else { return };
        let (timeout, now) = (live.settings.load().session_timeout, Instant::now());
        live.registry.sweep(|session| session.sweep(now, timeout, LINGER));
        drop(live);
        tokio::time::sleep((timeout / 8).clamp(Duration::from_millis(20), Duration::from_secs(1))).await;
    }
}
