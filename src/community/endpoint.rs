//! One Community server: its health, its sessions, and opening a link to it.

use std::{
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, sync::Notify, time::timeout};
use tracing::{info, warn};

use super::{
    Check, CommunitySettings,
    direct::{self, OpenedStream},
    failure::{ConnectError, HandshakeError, OpenError},
    health::{Health, HealthView},
    state_log::{StateLine, StateLog},
    trust::{Suspicion, Trust},
};
use crate::{
    limits::budget::LITTLE,
    log::Throttle,
    net::{lookup::RemoteHost, own::OwnListeners},
    runtime::scratch,
    stream::{Lease, MoreFromClient, Stream},
    trunk::{Trunk, Trunks},
    wire::{
        frame::{self, First},
        message::{self, kind},
    },
};

/// How long a client waits for the probe of a server. A server that takes longer is not known to lead back, and is left to
/// its own time-outs.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a server gets clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// It answered, or accepted a connection, the last time.
    Up,
    /// It failed the last time, or was not tried yet.
    Down,
    /// It is no longer in the configuration, and sessions on it continue.
    Draining,
}

/// One server. See [`Health`] for what is known of it.
pub(super) struct Endpoint {
    /// As in the configuration; "sandbox" for the sandbox.
    pub(super) name: Arc<str>,
    host: Arc<RemoteHost>,
    trunk: Arc<Trunk>,
    health: Mutex<Health>,
    sessions: AtomicU64,
    is_draining: AtomicBool,
    /// A client has seen something that a check clears up.
    is_check_wanted: AtomicBool,
    /// Wakes [`Endpoint::keep_checking`] when that has happened, or the server went down.
    check_now: Notify,
    trust: Mutex<Trust>,
    /// Handshakes of clients since the last answer.
    unanswered: AtomicU32,
    /// Held during a probe, so that there is one at a time.
    probing: tokio::sync::Mutex<()>,
    /// The number in the Handshake of the present probe; 0: there is none.
    probe: AtomicU32,
    /// What came back last, and how often something did.
    came_back: Mutex<CameBack>,
    lines: EndpointLines,
}

/// Probes that came back.
#[derive(Clone, Copy, Default)]
struct CameBack {
    count: u64,
    /// The address that the last one came from.
    from: Option<SocketAddr>,
}

/// For log lines that outsiders can cause.
#[derive(Default)]
struct EndpointLines {
    state: Mutex<StateLog>,
    unanswered: Throttle,
    unchecked: Throttle,
}

impl Endpoint {
    /// A server that was not tried yet. `address` is `host:port`; it must not be one of the listeners of `own`.
    pub(super) fn new(name: &str, address: &str, own: OwnListeners, trunks: &Arc<Trunks>) -> Arc<Self> {
        let host = Arc::new(RemoteHost::new(address, own));
        Arc::new(Self {
            name: name.into(),
            trunk: Trunk::new(Arc::clone(trunks), address, Arc::clone(&host)),
            host,
            health: Mutex::new(Health::untried()),
            sessions: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            is_check_wanted: AtomicBool::new(false),
            check_now: Notify::new(),
            trust: Mutex::default(),
            unanswered: AtomicU32::new(0),
            probing: tokio::sync::Mutex::new(()),
            probe: AtomicU32::new(0),
            came_back: Mutex::default(),
            lines: EndpointLines::default(),
        })
    }

    pub(super) fn sessions(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    pub(super) fn set_draining(&self, draining: bool) {
        self.is_draining.store(draining, Relaxed);
    }

    pub(super) fn state(&self) -> ServerState {
        if self.is_draining.load(Relaxed) {
            ServerState::Draining
        } else if self.health.lock().is_up() {
            ServerState::Up
        } else {
            ServerState::Down
        }
    }

    /// Why it is down; `None` if it is not.
    pub(super) fn last_error(&self) -> Option<String> {
        self.health.lock().last_error().map(str::to_owned)
    }

    /// Its health, as the choice of a server needs it.
    pub(super) fn view(&self, now: Instant) -> HealthView {
        self.health.lock().view(now)
    }

    /// Has it start slowly as soon as it is up, as one that was down.
    pub(super) fn start_slowly(&self) {
        self.health.lock().start_slowly();
    }

    /// For how long it is up, if it was down before; `None`: it has been up since it is known, or is not up.
    pub(super) fn back_for(&self, now: Instant) -> Option<Duration> {
        self.health.lock().back_for(now)
    }

    /// Opens the stream of a link for `client`; `None`: for this program itself.
    ///
    /// This is the only place that opens streams to a server.
    async fn open_stream(
        &self,
        client: Option<SocketAddr>,
        settings: &CommunitySettings,
    ) -> Result<OpenedStream, ConnectError> {
        if settings.trunk.is_used {
            direct::open_on_trunk(&self.trunk, client, settings).await
        } else {
            direct::open(&self.host, client, settings).await
        }
    }

    /// Opens a link for `client`, sends `hello`, and waits for the answer until `more` is ready. Returns the stream and
    /// the first bytes of the answer, none if there is no answer yet. Updates the health.
    pub(super) async fn open(
        self: &Arc<Self>,
        client: SocketAddr,
        hello: &[u8],
        more: MoreFromClient<'_>,
        settings: &CommunitySettings,
    ) -> Result<(Stream, Vec<u8>), OpenError> {
        let before = self.came_back.lock().count;
        let opening = async {
            let unanswered = self.unanswered.fetch_add(1, Relaxed);
            self.leads_back(Suspicion::AfterUnanswered(unanswered), settings).await?;
            let opened = self.open_stream(Some(client), settings).await?;
            let address = opened.address;
            let answered = handshake(opened, hello, more, settings).await;
            self.note_use(address, &answered);
            // The answer may be that of this program, to a Handshake that came back.
            self.came_back_since(before).map_or(Ok(answered?), Err)
        };
        let result: Result<(Stream, Vec<u8>), OpenError> = opening.await;
        match &result {
            Ok((_, answer)) if answer.is_empty() => self.note_success(false),
            Ok((_, answer)) => {
                self.unanswered.store(0, Relaxed);
                self.note_success(!is_farewell(answer));
            }
            Err(error) => {
                let verdict = error.verdict_of_client();
                if verdict.is_suspect {
                    self.note_unanswered(error);
                }
                if verdict.is_down {
                    self.note_down(error);
                }
            }
        }
        result
    }

    /// Whether the server leads back to this program, as far as `suspicion` requires to find it out.
    ///
    /// # Errors
    /// It does.
    pub(super) async fn leads_back(
        self: &Arc<Self>,
        suspicion: Suspicion,
        settings: &CommunitySettings,
    ) -> Result<(), OpenError> {
        let permits = || self.trust.lock().permits(suspicion, Instant::now());
        if permits() {
            return Ok(());
        }
        let before = self.came_back.lock().count;
        let probing = async {
            let _one_at_a_time = self.probing.lock().await;
            if self.came_back_since(before).is_none() && !permits() {
                // If it fails in another way, nothing is known against the server.
                let _ = self.probe(settings).await;
            }
        };
        let _ = timeout(PROBE_TIMEOUT, probing).await;
        if self.came_back_since(before).is_none() {
            self.trust.lock().grant(Instant::now());
        }
        self.came_back_since(before).map_or(Ok(()), Err)
    }

    /// Notes that a Handshake with this number has arrived on a port of this program, from `from`. Returns whether it is
    /// that of the present probe: then the server leads back to this program.
    pub(super) fn note_probe(self: &Arc<Self>, number: u32, from: SocketAddr) -> bool {
        let is_own = number != 0 && self.probe.load(Relaxed) == number;
        if is_own {
            let mut came_back = self.came_back.lock();
            *came_back = CameBack { count: came_back.count + 1, from: Some(from) };
            drop(came_back);
            self.health.lock().unanswered();
            self.note_down(&OpenError::LeadsBack(from));
        }
        is_own
    }

    /// The failure of a probe that came back since `before` had come back; `None`: none did.
    fn came_back_since(&self, before: u64) -> Option<OpenError> {
        let came_back = *self.came_back.lock();
        came_back.from.filter(|_| came_back.count != before).map(OpenError::LeadsBack)
    }

    /// Checks by a Handshake that this program recognises if it comes back. `probing` must be held.
    async fn probe(&self, settings: &CommunitySettings) -> Result<(), OpenError> {
        let before = self.came_back.lock().count;
        let opened = self.open_stream(None, settings).await?;
        let address = opened.address;
        // Without random numbers, the probe is not recognised.
        let number = getrandom::u32().unwrap_or(0);
        self.probe.store(number, Relaxed);
        let answered = handshake(opened, &message::probe(number), std::future::pending(), settings).await;
        self.probe.store(0, Relaxed);
        self.note_use(address, &answered);
        match self.came_back_since(before) {
            Some(leads_back) => Err(leads_back),
            None => answered.map(|_| self.unanswered.store(0, Relaxed)).map_err(OpenError::from),
        }
    }

    /// Notes whether a connection to `address` was useful, unless it failed by this machine's fault.
    fn note_use<T>(&self, address: SocketAddr, answered: &Result<T, HandshakeError>) {
        if !matches!(answered, Err(HandshakeError::System(_))) {
            self.host.note_use(address, answered.is_ok());
        }
    }

    /// Checks whether it answers, on a connection that is closed again. Updates the health.
    async fn check(self: &Arc<Self>, settings: &CommunitySettings) {
        let by_handshake = settings.check == Check::Handshake || self.health.lock().is_suspect();
        let checked = if by_handshake {
            let _one_at_a_time = self.probing.lock().await;
            self.probe(settings).await
        } else {
            self.open_stream(None, settings).await.map(drop).map_err(OpenError::from)
        };
        let is_conclusive = match &checked {
            Ok(()) => {
                self.note_success(by_handshake);
                if by_handshake {
                    self.trust.lock().grant(Instant::now());
                }
                true
            }
            Err(error) => {
                let verdict = error.verdict_of_check();
                if verdict.is_suspect {
                    self.health.lock().unanswered();
                }
                if verdict.is_down {
                    self.note_down(error);
                } else if let Some(more) = self.lines.unchecked.pass() {
                    warn!(server = %self.name, %error, more, "Community server not checked");
                }
                verdict.is_down
            }
        };
        self.health.lock().checked(is_conclusive, Instant::now());
    }

    /// Checks the server for as long as it is configured. If it was not tried yet, or is down, it is checked when its
    /// next try is due. If it is up, it is checked every `check_interval`, and at once when a link to it broke or a
    /// Handshake was not answered, but then no more than once a second.
    pub(super) async fn keep_checking(self: Arc<Self>, settings: CommunitySettings) {
        loop {
            let is_wanted = self.is_check_wanted.load(Relaxed);
            let next_check = self.health.lock().next_check(Instant::now(), settings.check_interval, is_wanted);
            let is_due = match next_check {
                Some(wait) => wait.is_zero() || timeout(wait, self.check_now.notified()).await.is_err(),
                None => {
                    self.check_now.notified().await;
                    false
                }
            };
            // Woken before the next check is due: that may be at another time now.
            if is_due {
                self.is_check_wanted.store(false, Relaxed);
                self.check(&settings).await;
            }
        }
    }

    /// Has the server checked soon, because of what a client has seen.
    fn want_check(&self) {
        if !self.is_check_wanted.swap(true, Relaxed) {
            self.check_now.notify_one();
        }
    }

    /// Notes that the server accepted a connection, and whether it answered a Handshake on it.
    fn note_success(self: &Arc<Self>, has_answered: bool) {
        let mut health = self.health.lock();
        let now = Instant::now();
        let is_up_now = if has_answered { health.answered(now) } else { health.accepted(now) };
        drop(health);
        if is_up_now {
            self.log_state_change(true);
        }
    }

    /// Notes that the server did not answer a client's Handshake, and has it checked.
    fn note_unanswered(&self, error: &OpenError) {
        let is_suspect_now = self.health.lock().unanswered();
        if is_suspect_now && let Some(more) = self.lines.unanswered.pass() {
            warn!(server = %self.name, %error, more, "Community server does not answer: others are tried first");
        }
        self.want_check();
    }

    fn note_down(self: &Arc<Self>, error: &OpenError) {
        let went_down = self.health.lock().failed(error.to_string(), Instant::now()).is_some();
        if went_down {
            self.log_state_change(false);
            self.check_now.notify_one();
        }
    }

    /// Logs that the server is up, or down, since now; later if there was such a line just before.
    fn log_state_change(self: &Arc<Self>, is_up: bool) {
        let line = self.lines.state.lock().changed(is_up, Instant::now());
        match line {
            StateLine::Now(more) => self.log_state(more),
            StateLine::Later(wait) => {
                let endpoint = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let is_up = endpoint.health.lock().is_up();
                    let more = endpoint.lines.state.lock().due(is_up, Instant::now());
                    endpoint.log_state(more);
                });
            }
            StateLine::None => (),
        }
    }

    fn log_state(&self, more: Option<NonZero<u64>>) {
        match self.last_error() {
            None => info!(server = %self.name, more, "Community server is up"),
            Some(error) => warn!(server = %self.name, error, more, "Community server is down"),
        }
    }

    /// Counts a session until the lease is dropped.
    pub(super) fn lease(self: &Arc<Self>) -> Box<EndpointLease> {
        self.sessions.fetch_add(1, Relaxed);
        Box::new(EndpointLease(Arc::clone(self)))
    }
}

/// Sends `hello`, and waits for an answer until `more` is ready.
async fn handshake(
    OpenedStream { mut stream, preamble, .. }: OpenedStream,
    hello: &[u8],
    more: impl Future<Output = ()>,
    settings: &CommunitySettings,
) -> Result<(Stream, Vec<u8>), HandshakeError> {
    let within = settings.handshake_timeout;
    let exchange = async {
        if !preamble.is_empty() {
            stream.write_all(&preamble).await?;
        }
        stream.write_all(hello).await?;
        stream.flush().await?;
        tokio::select! {
            biased;
            answer = poll_fn(|cx| scratch::poll_read_some(&mut stream, cx, LITTLE, |bytes, _| bytes.to_vec())) => {
                answer?.ok_or(HandshakeError::Closed)
            }
            () = more => Ok(Vec::new()),
        }
    };
    let answer = timeout(within, exchange).await.map_err(|_| HandshakeError::NoAnswer(within))??;
    Ok((stream, answer))
}

/// Whether an answer to a Handshake is a farewell message. It shows that somebody answers, and nothing more.
fn is_farewell(answer: &[u8]) -> bool {
    matches!(frame::first(answer, u32::MAX), Ok(First::Whole { head, .. }) if head.kind == kind::DESTROY_CNL)
}

/// A session's place on a server.
pub(super) struct EndpointLease(Arc<Endpoint>);

impl fmt::Debug for EndpointLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointLease({})", self.0.name)
    }
}

impl Lease for EndpointLease {
    fn broken(&self) {
        self.0.want_check();
    }
}

impl Drop for EndpointLease {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }
}
