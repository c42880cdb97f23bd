//! Chooses a server for each client, and looks after those that are down.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::{Balance, Server, Settings, State, endpoint::Known};
use crate::{
    stream::{Community, Link, LinkError, Linking, SpeaksOn, Stream},
    wire::reason::Reason,
};

/// The servers in force and how they are chosen from.
struct Present {
    settings: Settings,
    servers: Vec<Arc<Known>>,
}

/// Least-sessions: the server that was found, and for how many more log-ins it stands.
#[derive(Default)]
struct Choice {
    server: Option<Arc<Known>>,
    log_ins_left: u32,
}

/// The Community servers.
pub struct Pool {
    present: ArcSwap<Present>,
    /// Servers that are no longer configured but have sessions.
    leaving: Mutex<Vec<Arc<Known>>>,
    turn: AtomicUsize,
    choice: Mutex<Choice>,
    watchers: Mutex<Vec<(Arc<str>, AbortHandle)>>,
}

/// A server, as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// As configured.
    pub address: Arc<str>,
    /// Whether it takes clients.
    pub state: State,
    /// Clients that it has through us.
    pub sessions: u64,
    /// What was wrong when it was tried last; none when it is up.
    pub last_error: Option<String>,
}

impl Pool {
    /// A pool whose servers are tried from now on; `sandbox` is where the embedded one listens.
    /// Must be called on a tokio runtime.
    pub fn start(settings: Settings, sandbox: Option<SocketAddr>) -> Arc<Self> {
        let pool = Arc::new(Self {
            present: ArcSwap::from_pointee(Present { settings: settings.clone(), servers: Vec::new() }),
            leaving: Mutex::default(),
            turn: AtomicUsize::new(0),
            choice: Mutex::default(),
            watchers: Mutex::default(),
        });
        pool.reconfigure(settings, sandbox);
        pool
    }

    /// Takes up new settings: servers that stay keep their state and counts, those that go get
    /// no more clients.
    pub fn reconfigure(&self, settings: Settings, sandbox: Option<SocketAddr>) {
        let before = self.present.load_full();
        let mut leaving = self.leaving.lock();
        let servers: Vec<Arc<Known>> = settings
            .servers
            .iter()
            .filter_map(|server| {
                let (name, address) = match server {
                    Server::Sandbox => ("sandbox", sandbox?.to_string()),
                    Server::Address(address) => (address.as_str(), address.clone()),
                };
                let known = before.servers.iter().chain(&*leaving).find(|known| *known.name == *name);
                Some(known.cloned().unwrap_or_else(|| Known::new(name, &address)))
            })
            .collect();
        let stays = |known: &Arc<Known>| servers.iter().any(|server| Arc::ptr_eq(server, known));
        leaving.extend(before.servers.iter().cloned());
        leaving.retain(|known| !stays(known) && known.sessions() > 0);
        leaving.iter().for_each(|known| known.set_draining(true));
        servers.iter().for_each(|known| known.set_draining(false));
        let mut watchers = self.watchers.lock();
        for (_, watcher) in watchers.drain(..) {
            watcher.abort();
        }
        for known in &servers {
            let watcher = tokio::spawn(watch(Arc::clone(known), settings.clone()));
            watchers.push((Arc::clone(&known.name), watcher.abort_handle()));
        }
        *self.choice.lock() = Choice::default();
        self.present.store(Arc::new(Present { settings, servers }));
    }

    /// Every server, those that are leaving last.
    pub fn status(&self) -> Vec<ServerStatus> {
        let present = self.present.load();
        let mut leaving = self.leaving.lock();
        leaving.retain(|known| known.sessions() > 0);
        let all = present.servers.iter().chain(&*leaving);
        all.map(|known| ServerStatus {
            address: Arc::clone(&known.name),
            state: known.state(),
            sessions: known.sessions(),
            last_error: known.last_error(),
        })
        .collect()
    }

    /// Whether a server answers.
    pub fn any_up(&self) -> bool {
        self.present.load().servers.iter().any(|known| known.state() == State::Up)
    }

    /// The servers in the order in which a client tries them.
    fn order(&self, present: &Present) -> Vec<Arc<Known>> {
        let servers = &present.servers;
        let first = match present.settings.balance {
            Balance::Failover => 0,
            Balance::RoundRobin => self.turn.fetch_add(1, Relaxed) % servers.len().max(1),
            Balance::LeastSessions => self.least(present),
        };
        let mut order: Vec<_> = servers[first.min(servers.len())..].iter().chain(&servers[..first]).cloned().collect();
        // Those that do not answer come late; those that are down last, and only when it is time to try
        // them again.
        order.sort_by_key(|known| (!known.is_hopeful(), known.is_suspect()));
        order.retain(|known| known.may_be_tried());
        order
    }

    /// The least loaded server that is up. It stands for some log-ins: the counts of others lag
    /// behind when many clients come at once, and a recalculation for each would be for nothing.
    fn least(&self, present: &Present) -> usize {
        let mut choice = self.choice.lock();
        let stands =
            choice.log_ins_left > 0 && choice.server.as_ref().is_some_and(|server| server.state() == State::Up);
        if !stands {
            let up = present.servers.iter().filter(|known| known.is_hopeful());
            choice.server = up.min_by_key(|known| (known.is_suspect(), known.sessions())).cloned();
            choice.log_ins_left = present.settings.recalculate_after;
        }
        choice.log_ins_left = choice.log_ins_left.saturating_sub(1);
        let chosen = choice.server.as_ref();
        chosen.and_then(|chosen| present.servers.iter().position(|known| Arc::ptr_eq(known, chosen))).unwrap_or(0)
    }

    async fn open(
        &self,
        client: SocketAddr,
        hello: &[u8],
        mut speaks_on: SpeaksOn<'_>,
    ) -> Result<(Link, Vec<u8>), LinkError> {
        let present = self.present.load_full();
        let (mut failures, mut reason) = (Vec::new(), Reason::CannotConnect);
        for known in self.order(&present) {
            // Counted while connecting: others see that it has one more.
            let lease = known.lease();
            match known.open(client, hello, speaks_on.as_mut(), &present.settings).await {
                Ok((tcp, answer)) => {
                    let link = Link { stream: Stream::Tcp(tcp), server: Arc::clone(&known.name), lease };
                    return Ok((link, answer));
                }
                Err((why, error)) => {
                    if why != Reason::CannotConnect {
                        reason = why;
                    }
                    failures.push(format!("{}: {error}", known.name));
                }
            }
        }
        if failures.is_empty() {
            if present.servers.iter().any(|known| known.is_suspect()) {
                reason = Reason::NotResponding;
            }
            let down = present.servers.iter();
            failures = down
                .map(|known| format!("{}: down ({})", known.name, known.last_error().unwrap_or_default()))
                .collect();
        }
        Err(LinkError { reason, detail: failures.join("; ") })
    }
}

impl Community for Pool {
    fn connect<'a>(&'a self, client: SocketAddr, hello: &'a [u8], speaks_on: SpeaksOn<'a>) -> Linking<'a> {
        Box::pin(self.open(client, hello, speaks_on))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (_, watcher) in self.watchers.lock().drain(..) {
            watcher.abort();
        }
    }
}

/// Looks at a server now and then: one that is down until it is up again, one that is up every
/// `check_interval`, and whenever a link to it broke or a Handshake went unanswered.
async fn watch(known: Arc<Known>, settings: Settings) {
    loop {
        match known.until_look(settings.check_interval) {
            Some(wait) => {
                let _ = tokio::time::timeout(wait, known.look.notified()).await;
                // Woken because it went down: the wait is a different one now.
                if known.until_look(settings.check_interval).is_some_and(|wait| !wait.is_zero())
                    && known.state() != State::Up
                {
                    continue;
                }
            }
            None => known.look.notified().await,
        }
        known.look_at(&settings).await;
    }
}

#[cfg(test)]
mod tests;
