//! One Community server and what is known of it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::Notify};
use tracing::{info, warn};

use super::direct::Target;
use crate::stream::Lease;

/// First wait before a server that is down is tried again; doubled each time.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
const LAST_BACK_OFF: Duration = Duration::from_secs(5);

/// Whether a server takes clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answered last time.
    Up,
    /// It did not, or has not been tried yet.
    Down,
    /// It is no longer in the configuration; its sessions go on.
    Draining,
}

#[derive(Debug, Clone)]
struct Health {
    up: bool,
    /// Whether it was tried at all.
    tried: bool,
    last_error: Option<String>,
    /// When it may be tried next, and how long to wait after that.
    next_try: Instant,
    back_off: Duration,
}

/// One server.
pub(super) struct Known {
    /// As configured; the sandbox's is "sandbox".
    pub(super) name: Arc<str>,
    target: Target,
    health: Mutex<Health>,
    sessions: AtomicU64,
    draining: AtomicBool,
    /// Asks for a look before the next one is due.
    pub(super) look: Notify,
}

impl Known {
    pub(super) fn new(name: &str, address: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            target: Target::new(address),
            health: Mutex::new(Health {
                up: false,
                tried: false,
                last_error: None,
                next_try: Instant::now(),
                back_off: FIRST_BACK_OFF,
            }),
            sessions: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            look: Notify::new(),
        })
    }

    pub(super) fn sessions(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    pub(super) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
    }

    pub(super) fn state(&self) -> State {
        match (self.draining.load(Relaxed), self.health.lock().up) {
            (true, _) => State::Draining,
            (false, true) => State::Up,
            (false, false) => State::Down,
        }
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.health.lock().last_error.clone()
    }

    /// Whether a client may be sent there: it is up, or was not tried yet.
    pub(super) fn is_hopeful(&self) -> bool {
        let health = self.health.lock();
        health.up || !health.tried
    }

    /// Whether it is time to try it again although it is down.
    pub(super) fn may_be_tried(&self) -> bool {
        let health = self.health.lock();
        health.up || !health.tried || Instant::now() >= health.next_try
    }

    /// How long until it is to be looked at, when nothing else happens.
    pub(super) fn until_look(&self, check_interval: Option<Duration>) -> Option<Duration> {
        let health = self.health.lock();
        match (health.up, health.tried) {
            (true, _) => check_interval,
            (false, true) => Some(health.next_try.saturating_duration_since(Instant::now())),
            (false, false) => Some(Duration::ZERO),
        }
    }

    /// Opens a connection and notes how that went.
    pub(super) async fn connect(&self, within: Duration) -> io::Result<TcpStream> {
        let connected = self.target.connect(within).await;
        match &connected {
            Ok(_) => self.note_up(),
            Err(error) => self.note_down(&error.to_string()),
        }
        connected
    }

    fn note_up(&self) {
        let was_up = {
            let mut health = self.health.lock();
            health.tried = true;
            health.back_off = FIRST_BACK_OFF;
            if !health.up {
                health.last_error = None;
            }
            std::mem::replace(&mut health.up, true)
        };
        if !was_up {
            info!(server = %self.name, "Community server is up");
        }
    }

    fn note_down(&self, error: &str) {
        let (was_up, wait) = {
            let mut health = self.health.lock();
            let was_up = health.up || !health.tried;
            let wait = health.back_off;
            health.up = false;
            health.tried = true;
            health.last_error = Some(error.to_owned());
            // Of many clients that fail at once, the first sets the next try.
            if was_up || Instant::now() >= health.next_try {
                health.next_try = Instant::now() + wait;
                health.back_off = (wait * 2).min(LAST_BACK_OFF);
            }
            (was_up, wait)
        };
        if was_up {
            warn!(server = %self.name, error, "Community server is down; next try in {wait:?}");
            self.look.notify_one();
        }
    }

    /// Counts a session in.
    pub(super) fn lease(self: &Arc<Self>) -> Box<Leased> {
        self.sessions.fetch_add(1, Relaxed);
        Box::new(Leased(Arc::clone(self)))
    }
}

/// A session's place on a server.
pub(super) struct Leased(Arc<Known>);

impl std::fmt::Debug for Leased {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leased({})", self.0.name)
    }
}

impl Lease for Leased {
    fn broken(&self, _why: &str) {
        self.0.look.notify_one();
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }
}
