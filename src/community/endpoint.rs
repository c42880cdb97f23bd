//! One Community server: its health, its sessions, and opening a link to it.

use std::{
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
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
};
use crate::{
    limits::budget::LITTLE,
    net::{lookup::RemoteHost, own::OwnListeners},
    runtime::scratch,
    stream::{Lease, MoreFromClient, Stream},
    wire::message,
};

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
    host: RemoteHost,
    health: Mutex<Health>,
    sessions: AtomicU64,
    is_draining: AtomicBool,
    /// Wakes [`Endpoint::keep_checking`] before the next check is due.
    check_now: Notify,
}

impl Endpoint {
    /// A server that was not tried yet. `address` is `host:port`; it must not be one of the listeners of `own`.
    pub(super) fn new(name: &str, address: &str, own: OwnListeners) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            host: RemoteHost::new(address, own),
            health: Mutex::new(Health::untried()),
            sessions: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            check_now: Notify::new(),
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

    /// Opens the stream of a link for `client`; `None`: for this program itself.
    ///
    /// This is the only place that opens streams to a server. Today each client gets its own TCP connection. A trunk
    /// would return the stream of one of its channels here.
    async fn open_stream(
        &self,
        client: Option<SocketAddr>,
        settings: &CommunitySettings,
    ) -> Result<OpenedStream, ConnectError> {
        direct::open(&self.host, client, settings).await
    }

    /// Opens a link for `client`, sends `hello`, and waits for the answer until `more` is ready. Returns the stream and
    /// the first bytes of the answer, none if there is no answer yet. Updates the health.
    pub(super) async fn open(
        &self,
        client: SocketAddr,
        hello: &[u8],
        more: MoreFromClient<'_>,
        settings: &CommunitySettings,
    ) -> Result<(Stream, Vec<u8>), OpenError> {
        let opening = async {
            let opened = self.open_stream(Some(client), settings).await?;
            let address = opened.address;
            let answered = handshake(opened, hello, more, settings).await;
            self.host.note_use(address, answered.is_ok());
            Ok(answered?)
        };
        let result: Result<(Stream, Vec<u8>), OpenError> = opening.await;
        match &result {
            Ok((_, answer)) => self.note_success(!answer.is_empty()),
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

    /// Checks whether it answers, on a connection that is closed again. Updates the health.
    async fn check(&self, settings: &CommunitySettings) {
        let by_handshake = settings.check == Check::Handshake || self.health.lock().is_suspect();
        let checked = async {
            let opened = self.open_stream(None, settings).await?;
            if by_handshake {
                let never = std::future::pending();
                let address = opened.address;
                let answered = handshake(opened, &message::handshake(), never, settings).await;
                self.host.note_use(address, answered.is_ok());
                answered?;
            }
            Ok::<_, OpenError>(())
        };
        match checked.await {
            Ok(()) => self.note_success(by_handshake),
            Err(error) => {
                let verdict = error.verdict_of_check();
                if verdict.is_suspect {
                    self.health.lock().unanswered();
                }
                if verdict.is_down {
                    self.note_down(&error);
                } else {
                    warn!(server = %self.name, %error, "Community server not checked");
                }
            }
        }
    }

    /// Checks the server for as long as it is configured. If it was not tried yet, or is down, it is checked when its
    /// next try is due. If it is up, it is checked every `check_interval`, and at once when a link to it broke or a
    /// Handshake was not answered.
    pub(super) async fn keep_checking(self: Arc<Self>, settings: CommunitySettings) {
        let next_check = || self.health.lock().next_check(Instant::now(), settings.check_interval);
        loop {
            match next_check() {
                Some(wait) => {
                    let _ = timeout(wait, self.check_now.notified()).await;
                    // If it was woken because the server went down, the next try is later.
                    let is_early = next_check().is_some_and(|wait| !wait.is_zero());
                    if is_early && self.state() != ServerState::Up {
                        continue;
                    }
                }
                None => self.check_now.notified().await,
            }
            self.check(&settings).await;
        }
    }

    /// Notes that the server accepted a connection, and whether it answered a Handshake on it.
    fn note_success(&self, has_answered: bool) {
        let mut health = self.health.lock();
        let is_up_now = if has_answered { health.answered() } else { health.accepted() };
        drop(health);
        if is_up_now {
            info!(server = %self.name, "Community server is up");
        }
    }

    /// Notes that the server did not answer a client's Handshake, and has it checked.
    fn note_unanswered(&self, error: &OpenError) {
        let is_suspect_now = self.health.lock().unanswered();
        if is_suspect_now {
            warn!(server = %self.name, %error, "Community server does not answer: others are tried first");
        }
        self.check_now.notify_one();
    }

    fn note_down(&self, error: &OpenError) {
        let went_down = self.health.lock().failed(error.to_string(), Instant::now());
        if let Some(next_try) = went_down {
            warn!(server = %self.name, %error, "Community server is down; next try in {next_try:?}");
            self.check_now.notify_one();
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

/// A session's place on a server.
pub(super) struct EndpointLease(Arc<Endpoint>);

impl fmt::Debug for EndpointLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointLease({})", self.0.name)
    }
}

impl Lease for EndpointLease {
    fn broken(&self) {
        self.0.check_now.notify_one();
    }
}

impl Drop for EndpointLease {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }
}
