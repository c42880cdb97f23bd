//! The set of Community servers: reconfiguration, status, and a link for each client.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::{
    CommunitySettings, ConfiguredServer, ServerAddress, ServerState,
    balance::{Balancer, Candidate, full_share, share},
    endpoint::{DrainCause, Endpoint},
    trust::Suspicion,
};
use crate::{
    net::own::OwnListeners,
    stream::{Community, Link, LinkError, LinkFailure, Linking, MoreFromClient},
    trunk::Trunks,
    wire::message,
};

/// How many servers may close at a client's Handshake. Then it is the Handshake that is wrong, and no further server gets
/// it.
const MOST_CLOSES: usize = 3;

/// The servers of one configuration.
struct ServerSet {
    settings: CommunitySettings,
    endpoints: Vec<Arc<Endpoint>>,
    /// The weight of each endpoint.
    weights: Vec<u32>,
    balancer: Balancer,
}

/// The Community servers.
pub struct Pool {
    current: ArcSwap<ServerSet>,
    /// Servers that are no longer configured and still have sessions.
    leaving: Mutex<Vec<Arc<Endpoint>>>,
    /// The tasks that check the configured servers.
    checks: Mutex<Vec<AbortHandle>>,
    /// Where the next number of a server is looked for.
    next_number: AtomicU16,
    own: OwnListeners,
    trunks: Arc<Trunks>,
}

/// A server, as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// As in the configuration; "sandbox" for the sandbox.
    pub address: Arc<str>,
    /// Whether it gets clients.
    pub state: ServerState,
    /// The sessions of this program on it.
    pub sessions: u64,
    /// The last error; `None` if the server is up or was not tried yet.
    pub last_error: Option<String>,
}

/// A server that gets no new clients, and whose sessions are to be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainingServer {
    /// As in the configuration.
    pub name: Arc<str>,
    /// The number that the leases of its links have.
    pub number: u16,
    /// The sessions of this program on it, with those that are being opened.
    pub sessions: u64,
}

/// Why a server is not drained, or not resumed, by a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainRefusal {
    /// The configuration has no such server.
    Unknown {
        /// The name that was given.
        server: String,
        /// The names of the configured servers.
        known: Vec<String>,
    },
    /// The configuration says that this server is drained.
    Configured(String),
}

impl fmt::Display for DrainRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { server, known } => {
                write!(f, "{server:?} is no server of community.servers, which has {}", known.join(", "))
            }
            Self::Configured(server) => {
                write!(f, "{server} is drained by community.servers: remove the word \"drain\" there and reload")
            }
        }
    }
}

impl Pool {
    /// Starts to check the servers of `settings`. `sandbox` is the address of the sandbox Community server, if it runs.
    /// A server whose address is that of a listener in `own` is not used. Trunks share what
    /// is in `trunks`. Must be called on a tokio runtime.
    pub fn start(
        settings: CommunitySettings,
        sandbox: Option<SocketAddr>,
        own: OwnListeners,
        trunks: Arc<Trunks>,
    ) -> Arc<Self> {
        let balancer = Balancer::new(settings.balance, settings.recalculate_after, None);
        let none = ServerSet { settings: settings.clone(), endpoints: Vec::new(), weights: Vec::new(), balancer };
        let current = ArcSwap::from_pointee(none);
        let pool = Arc::new(Self {
            current,
            leaving: Mutex::default(),
            checks: Mutex::default(),
            next_number: AtomicU16::new(1),
            own,
            trunks,
        });
        pool.reconfigure(settings, sandbox);
        pool
    }

    /// Puts new settings into force. Servers that stay keep their health and sessions. Servers that leave get no more
    /// clients. A server that is added beside others starts slowly, like one that is back.
    pub fn reconfigure(&self, settings: CommunitySettings, sandbox: Option<SocketAddr>) {
        let before = self.current.load_full();
        let mut leaving = self.leaving.lock();
        let (endpoints, servers): (Vec<Arc<Endpoint>>, Vec<&ConfiguredServer>) = settings
            .servers
            .iter()
            .filter_map(|server| {
                let (name, address) = match &server.address {
                    ServerAddress::Sandbox => ("sandbox", sandbox?.to_string()),
                    ServerAddress::Address(address) => (address.as_str(), address.clone()),
                };
                let known = before.endpoints.iter().chain(&*leaving).find(|endpoint| *endpoint.name == *name);
                let added = || {
                    let endpoint =
                        Endpoint::new(name, &address, self.unused_number(&leaving), self.own.clone(), &self.trunks);
                    if !before.endpoints.is_empty() {
                        endpoint.start_slowly();
                    }
                    endpoint
                };
                Some((known.cloned().unwrap_or_else(added), server))
            })
            .unzip();
        let stays = |endpoint: &Arc<Endpoint>| endpoints.iter().any(|other| Arc::ptr_eq(other, endpoint));
        leaving.extend(before.endpoints.iter().cloned());
        leaving.retain(|endpoint| !stays(endpoint) && endpoint.sessions() > 0);
        leaving.iter().for_each(|endpoint| endpoint.set_drained(DrainCause::Removed, true));
        for (endpoint, server) in endpoints.iter().zip(&servers) {
            endpoint.set_drained(DrainCause::Removed, false);
            endpoint.set_drained(DrainCause::Configured, server.is_drained);
        }
        let weights = servers.iter().map(|server| server.weight).collect();
        let mut checks = self.checks.lock();
        checks.drain(..).for_each(|check| check.abort());
        for endpoint in &endpoints {
            let check = tokio::spawn(Arc::clone(endpoint).keep_checking(settings.clone()));
            checks.push(check.abort_handle());
        }
        let balancer = Balancer::new(settings.balance, settings.recalculate_after, Some(&before.balancer));
        self.current.store(Arc::new(ServerSet { settings, endpoints, weights, balancer }));
    }

    /// A number that no server has.
    fn unused_number(&self, leaving: &[Arc<Endpoint>]) -> u16 {
        let current = self.current.load();
        loop {
            let number = self.next_number.fetch_add(1, Relaxed);
            if number != 0 && !current.endpoints.iter().chain(leaving).any(|endpoint| endpoint.number == number) {
                return number;
            }
        }
    }

    /// Drains a configured server by its name: it gets no new clients until [`resume`](Self::resume), also after a reload.
    /// Returns the number of its sessions.
    ///
    /// # Errors
    /// There is no such server.
    pub fn drain(&self, server: &str) -> Result<u64, DrainRefusal> {
        let endpoint = self.configured(server)?;
        endpoint.set_drained(DrainCause::Command, true);
        Ok(endpoint.sessions())
    }

    /// Sends clients to a server again that was drained by [`drain`](Self::drain). Returns the number of its sessions.
    ///
    /// # Errors
    /// There is no such server, or the configuration says that it is drained.
    pub fn resume(&self, server: &str) -> Result<u64, DrainRefusal> {
        let endpoint = self.configured(server)?;
        endpoint.set_drained(DrainCause::Command, false);
        if endpoint.is_drained_by(DrainCause::Configured) {
            return Err(DrainRefusal::Configured(server.to_owned()));
        }
        Ok(endpoint.sessions())
    }

    fn configured(&self, server: &str) -> Result<Arc<Endpoint>, DrainRefusal> {
        let current = self.current.load();
        let found = current.endpoints.iter().find(|endpoint| *endpoint.name == *server);
        found.cloned().ok_or_else(|| DrainRefusal::Unknown {
            server: server.to_owned(),
            known: current.endpoints.iter().map(|endpoint| endpoint.name.to_string()).collect(),
        })
    }

    /// The servers that are drained, or were removed from the configuration.
    pub fn draining(&self) -> Vec<DrainingServer> {
        let (current, leaving) = (self.current.load(), self.leaving.lock());
        let draining = current.endpoints.iter().chain(&*leaving).filter(|endpoint| endpoint.is_draining());
        let server = |endpoint: &Arc<Endpoint>| DrainingServer {
            name: Arc::clone(&endpoint.name),
            number: endpoint.number,
            sessions: endpoint.sessions(),
        };
        draining.map(server).collect()
    }

    /// Every server. Those that are leaving are the last ones.
    pub fn status(&self) -> Vec<ServerStatus> {
        let current = self.current.load();
        let mut leaving = self.leaving.lock();
        leaving.retain(|endpoint| endpoint.sessions() > 0);
        let all = current.endpoints.iter().chain(&*leaving);
        all.map(|endpoint| ServerStatus {
            address: Arc::clone(&endpoint.name),
            state: endpoint.state(),
            sessions: endpoint.sessions(),
            last_error: endpoint.last_error(),
        })
        .collect()
    }

    /// Whether a configured server is up.
    pub fn any_up(&self) -> bool {
        self.current.load().endpoints.iter().any(|endpoint| endpoint.state() == ServerState::Up)
    }

    /// Whether this is a Handshake with which this program probes a server, and which came back; then the server is one
    /// that leads back. If the Handshake `is_forwarded`, all servers are probed that are not trusted to lead elsewhere.
    async fn find_loop(&self, client: SocketAddr, hello: &[u8], is_forwarded: bool) -> Result<(), LinkError> {
        let probe = message::probe_number(hello);
        if probe.is_none() && !is_forwarded {
            return Ok(());
        }
        let current = self.current.load_full();
        let came_back = |endpoint: &&Arc<Endpoint>| probe.is_some_and(|number| endpoint.note_probe(number, client));
        let mut found: Vec<String> =
            current.endpoints.iter().filter(came_back).map(|endpoint| endpoint.name.to_string()).collect();
        if found.is_empty() && is_forwarded {
            let now = Instant::now();
            for endpoint in current.endpoints.iter().filter(|endpoint| endpoint.view(now).may_be_tried) {
                if endpoint.leads_back(Suspicion::Forwarded, &current.settings).await.is_err() {
                    found.push(endpoint.name.to_string());
                }
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let detail = format!("{} leads back to this program itself", found.join(", "));
        Err(LinkError { failure: LinkFailure::Loop, detail })
    }

    /// Tries the servers in the order of the balancer. See [`Community::connect`].
    async fn open(
        &self,
        client: SocketAddr,
        hello: &[u8],
        mut more: MoreFromClient<'_>,
    ) -> Result<(Link, Vec<u8>), LinkError> {
        let current = self.current.load_full();
        let ServerSet { settings, endpoints, .. } = &*current;
        let (mut details, mut failure, mut closes) = (Vec::new(), LinkFailure::CannotConnect, 0);
        for candidate in current.order() {
            let endpoint = &endpoints[candidate.index];
            // The session is counted while the link is opened, so that the choices for other clients include it.
            let lease = endpoint.lease();
            match endpoint.open(client, hello, more.as_mut(), settings).await {
                Ok((stream, answer)) => {
                    return Ok((Link { stream, server: Arc::clone(&endpoint.name), lease }, answer));
                }
                Err(error) => {
                    // An unreachable server is only the reason if nothing else went wrong.
                    if error.link_failure() != LinkFailure::CannotConnect {
                        failure = error.link_failure();
                    }
                    details.push(format!("{}: {error}", endpoint.name));
                    closes += usize::from(error.is_close());
                    if closes == MOST_CLOSES {
                        break;
                    }
                }
            }
        }
        if details.is_empty() {
            // No server may be tried.
            let now = Instant::now();
            if endpoints.iter().any(|endpoint| endpoint.view(now).is_suspect) {
                failure = LinkFailure::NotResponding;
            }
            let down = |endpoint: &Arc<Endpoint>| match endpoint.state() {
                ServerState::Draining => format!("{}: draining", endpoint.name),
                _ => format!("{}: down ({})", endpoint.name, endpoint.last_error().unwrap_or_default()),
            };
            details = endpoints.iter().map(down).collect();
        }
        Err(LinkError { failure, detail: details.join("; ") })
    }
}

impl ServerSet {
    /// The servers in the order in which a client tries them.
    fn order(&self) -> Vec<Candidate> {
        let now = Instant::now();
        let slow_start = self.settings.slow_start;
        let candidate = |(index, (endpoint, &weight)): (usize, (&Arc<Endpoint>, &u32))| {
            let share = share(weight, endpoint.back_for(now), slow_start);
            Candidate {
                index,
                health: endpoint.view(now),
                sessions: endpoint.sessions(),
                share,
                starts_slowly: share < full_share(weight),
            }
        };
        let candidates = self.endpoints.iter().zip(&self.weights).enumerate();
        self.balancer.order(candidates.map(candidate).collect())
    }
}

impl Community for Pool {
    fn connect<'a>(&'a self, client: SocketAddr, hello: &'a [u8], more: MoreFromClient<'a>) -> Linking<'a> {
        Box::pin(async move {
            self.find_loop(client, hello, false).await?;
            self.open(client, hello, more).await
        })
    }

    fn connect_forwarded<'a>(&'a self, client: SocketAddr, hello: &'a [u8], more: MoreFromClient<'a>) -> Linking<'a> {
        Box::pin(async move {
            self.find_loop(client, hello, true).await?;
            self.open(client, hello, more).await
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.checks.lock().drain(..).for_each(|check| check.abort());
    }
}

#[cfg(test)]
mod tests;
