//! One Community server and what is known of it.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify, time::timeout};
use tracing::{info, warn};

use super::{
    Check, Settings,
    direct::{self, Target},
};
use crate::{
    limits::budget::LITTLE,
    runtime::scratch,
    stream::{Lease, SpeaksOn},
    wire::{message, reason::Reason},
};

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
    /// It has left a Handshake unanswered: connections to it prove nothing until it answers one.
    suspect: bool,
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
                suspect: false,
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

    /// Whether it has left a Handshake unanswered.
    pub(super) fn is_suspect(&self) -> bool {
        self.health.lock().suspect
    }

    /// Whether it is time to try it again although it is down. One that hangs is tried without
    /// clients, who would wait in vain.
    pub(super) fn may_be_tried(&self) -> bool {
        let health = self.health.lock();
        health.up || !health.tried || (!health.suspect && Instant::now() >= health.next_try)
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

    /// Opens a connection for `client` and sends its `hello`; waits for an answer, whose first bytes it
    /// returns, unless the client speaks on. Notes how that went.
    ///
    /// # Errors
    /// What went wrong, and the reason for the client.
    pub(super) async fn open(
        &self,
        client: SocketAddr,
        hello: &[u8],
        speaks_on: SpeaksOn<'_>,
        settings: &Settings,
    ) -> Result<(TcpStream, Vec<u8>), (Reason, io::Error)> {
        let mut tcp = match self.target.connect(settings.connect_timeout).await {
            Ok(tcp) => tcp,
            Err(error) if is_ours(&error) => return Err((Reason::ServerFull, error)),
            Err(error) => {
                self.note_down(&error.to_string());
                let timed_out = error.kind() == io::ErrorKind::TimedOut;
                return Err((if timed_out { Reason::NotResponding } else { Reason::CannotConnect }, error));
            }
        };
        match greet(&mut tcp, client, hello, speaks_on, settings).await {
            Ok(answer) => {
                self.note_up(!answer.is_empty());
                Ok((tcp, answer))
            }
            Err(error) => {
                // It may be the client's fault: our own Handshake will tell.
                self.note_suspect(&error.to_string());
                Err((Reason::NotResponding, error))
            }
        }
    }

    /// Looks whether it answers, by a connection that is closed, and notes it.
    pub(super) async fn look_at(&self, settings: &Settings) {
        let by_handshake = settings.check == Check::Handshake || self.is_suspect();
        let looked = async {
            let mut tcp = self.target.connect(settings.connect_timeout).await?;
            if by_handshake {
                let us = tcp.local_addr()?;
                let never = std::pin::pin!(std::future::pending());
                if let Err(error) = greet(&mut tcp, us, &message::handshake(), never, settings).await {
                    self.health.lock().suspect = true;
                    return Err(error);
                }
            }
            Ok(())
        };
        match looked.await {
            Ok(()) => self.note_up(by_handshake),
            Err(error) if is_ours(&error) => warn!(server = %self.name, %error, "Community server not looked at"),
            Err(error) => self.note_down(&error.to_string()),
        }
    }

    /// It took a connection; or has `answered` on one, which is worth more.
    fn note_up(&self, answered: bool) {
        let was_up = {
            let mut health = self.health.lock();
            health.suspect &= !answered;
            if health.suspect {
                return;
            }
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

    /// It took a connection and left a Handshake unanswered.
    fn note_suspect(&self, error: &str) {
        let was_suspect = std::mem::replace(&mut self.health.lock().suspect, true);
        if !was_suspect {
            warn!(server = %self.name, error, "Community server does not answer: others are tried first");
        }
        self.look.notify_one();
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

/// Sends `hello`, and waits for an answer; returns its first bytes, none where the client speaks on
/// before they have come.
async fn greet(
    tcp: &mut TcpStream,
    client: SocketAddr,
    hello: &[u8],
    speaks_on: SpeaksOn<'_>,
    settings: &Settings,
) -> io::Result<Vec<u8>> {
    let within = settings.handshake_timeout;
    let greeting = async {
        if settings.send_proxy_protocol {
            direct::introduce(tcp, client).await?;
        }
        tcp.write_all(hello).await?;
        let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed before it answered the Handshake");
        tokio::select! {
            biased;
            answer = poll_fn(|cx| scratch::poll_read_some(tcp, cx, LITTLE, |bytes, _| bytes.to_vec())) => {
                answer?.ok_or_else(closed)
            }
            () = speaks_on => Ok(Vec::new()),
        }
    };
    timeout(within, greeting).await.unwrap_or_else(|_| {
        let what = format!("no answer to the Handshake within {}", humantime::format_duration(within));
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    })
}

/// Whether an error of connecting is this machine's: out of descriptors, memory or ports. It says
/// nothing of the server.
fn is_ours(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.contains(&Errno::from_raw_os_error(code)))
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
