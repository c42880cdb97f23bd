//! The set of Community servers: reconfiguration, status, and a link for each client.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::{
    CommunitySettings, ServerAddress, ServerState,
    balance::{Balancer, Candidate, full_share, share},
    endpoint::Endpoint,
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
        let pool = Arc::new(Self { current, leaving: Mutex::default(), checks: Mutex::default(), own, trunks });
        pool.reconfigure(settings, sandbox);
        pool
    }

    /// Puts new settings into force. Servers that stay keep their health and sessions. Servers that leave get no more
    /// clients. A server that is added beside others starts slowly, like one that is back.
    pub fn reconfigure(&self, settings: CommunitySettings, sandbox: Option<SocketAddr>) {
        let before = self.current.load_full();
        let mut leaving = self.leaving.lock();
        let (endpoints, weights): (Vec<Arc<Endpoint>>, Vec<u32>) = settings
            .servers
            .iter()
            .filter_map(|server| {
                let (name, address) = match &server.address {
                    ServerAddress::Sandbox => ("sandbox", sandbox?.to_string()),
                    ServerAddress::Address(address) => (address.as_str(), address.clone()),
                };
                let known = before.endpoints.iter().chain(&*leaving).find(|endpoint| *endpoint.name == *name);
                let added = || {
                    let endpoint = Endpoint::new(name, &address, self.own.clone(), &self.trunks);
                    if !before.endpoints.is_empty() {
                        endpoint.start_slowly();
                    }
                    endpoint
                };
                Some((known.cloned().unwrap_or_else(added), server.weight))
            })
            .unzip();
        let stays = |endpoint: &Arc<Endpoint>| endpoints.iter().any(|other| Arc::ptr_eq(other, endpoint));
        leaving.extend(before.endpoints.iter().cloned());
        leaving.retain(|endpoint| !stays(endpoint) && endpoint.sessions() > 0);
        leaving.iter().for_each(|endpoint| endpoint.set_draining(true));
        endpoints.iter().for_each(|endpoint| endpoint.set_draining(false));
        let mut checks = self.checks.lock();
        checks.drain(..).for_each(|check| check.abort());
        for endpoint in &endpoints {
            let check = tokio::spawn(Arc::clone(endpoint).keep_checking(settings.clone()));
            checks.push(check.abort_handle());
        }
        let balancer = Balancer::new(settings.balance, settings.recalculate_after, Some(&before.balancer));
        self.current.store(Arc::new(ServerSet { settings, endpoints, weights, balancer }));
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
            let now = Instant::now();
            if endpoints.iter().any(|endpoint| endpoint.view(now).is_suspect) {
                failure = LinkFailure::NotResponding;
            }
            let down = |endpoint: &Arc<Endpoint>| {
                format!("{}: down ({})", endpoint.name, endpoint.last_error().unwrap_or_default())
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
        self.balancer.order(self.endpoints.iter().zip(&self.weights).enumerate().map(candidate).collect())
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
